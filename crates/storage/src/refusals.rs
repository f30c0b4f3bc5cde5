//! Batches that this node received and did not store, for operators.

use std::time::{Duration, Instant};

use meridian_proto::InvalidBatch;
use meridian_types::ShardId;
use parking_lot::Mutex;

/// A refusal is news for so long: the sender of the batch tries again sooner.
const RECENT: Duration = Duration::from_secs(30);
/// Between two warnings of the same shard.
const WARN_AGAIN: Duration = Duration::from_secs(10);

/// Batches that other nodes sent, and that this one did not take into any log: damaged on the way,
/// or of a format that it does not know. It goes on with what it has, and asks for them again.
#[derive(Debug, Default)]
pub struct Refusals {
    last: Mutex<Option<Refusal>>,
}

#[derive(Debug)]
struct Refusal {
    at: Instant,
    warned: Instant,
    why: String,
}

impl Refusals {
    /// Counts and remembers it, and warns unless there was a warning just before.
    pub fn record(&self, shard: ShardId, error: &InvalidBatch) {
        let reason = match error {
            InvalidBatch::Checksum => "damaged",
            InvalidBatch::Format(_) | InvalidBatch::Protobuf(_) | InvalidBatch::Field(_) => {
                "unreadable"
            }
        };
        metrics::counter!("meridian_refused_batches_total", "shard" => shard.to_string(), "reason" => reason)
            .increment(1);
        let (now, mut last) = (Instant::now(), self.last.lock());
        let warned = last
            .as_ref()
            .map(|last| last.warned)
            .filter(|warned| now.duration_since(*warned) < WARN_AGAIN);
        if warned.is_none() {
            tracing::warn!(%shard, %error, "a batch that another node sent was refused; it is asked for again");
        }
        *last = Some(Refusal { at: now, warned: warned.unwrap_or(now), why: error.to_string() });
    }

    /// Why the last one was refused, if that was not long ago.
    pub fn recent(&self) -> Option<String> {
        self.last
            .lock()
            .as_ref()
            .filter(|last| last.at.elapsed() < RECENT)
            .map(|last| last.why.clone())
    }
}
