//! Logs what became of messages: as a client's write does, by the proposer, with a request id.

use std::sync::Arc;
use std::time::Duration;

use meridian_gateway::new_request_id;
use meridian_queue::{MessageKey, Outcome};
use meridian_storage::{ShardState, or_fatal};
use meridian_types::{DatabaseId, QueueId, Settlement, Transaction, Verdict, WriteOutcome};

use super::{QueueParts, Shown};
use crate::write::proposer::{WriteReply, WriteRequest};

/// Between two tries.
const PAUSE: Duration = Duration::from_millis(100);

/// Tries until all has committed, or the log says that the database is gone. It ends with the term
/// that it is part of.
///
/// May be dropped at any await: what the proposer has goes on, and to settle a message again does
/// nothing.
pub(super) async fn settle(
    parts: Arc<QueueParts>,
    queue: QueueId,
    settlements: Vec<(MessageKey, Outcome)>,
) {
    let database = queue.database;
    let Some(settlements) = verdicts(&parts, queue, settlements).await else { return };
    let mut left = vec![settlements];
    while let Some(mut settlements) = left.pop() {
        if log(&parts, database, &settlements).await == Logged::Rejected {
            // Failed messages, under all their keys, may be too much for one transaction.
            let half = settlements.split_off(settlements.len() / 2);
            if settlements.is_empty() {
                tracing::error!(%database, "the settlement of a message was rejected");
            } else {
                left.extend([half, settlements]);
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Logged {
    Done,
    Rejected,
}

async fn log(parts: &QueueParts, database: DatabaseId, settlements: &[Settlement]) -> Logged {
    let transaction = Transaction { settlements: settlements.to_vec(), ..Transaction::default() };
    let request_id = new_request_id();
    let mut retry = false;
    loop {
        let transaction = transaction.clone();
        let request = WriteRequest { database, request_id, transaction, retry };
        let reply = match parts.proposer.reserve(&request) {
            Ok(reserved) => parts.proposer.write(request, reserved).await,
            Err(refused) => refused,
        };
        match reply {
            WriteReply::Done(outcome) if matches!(*outcome, WriteOutcome::Committed(_)) => {
                metrics::counter!("meridian_queue_settled_messages_total")
                    .increment(settlements.len() as u64);
                return Logged::Done;
            }
            // The messages went with their database.
            WriteReply::Done(_) if or_fatal(parts.shown.state.is_dropped(database)) => {
                return Logged::Done;
            }
            WriteReply::Done(_) => return Logged::Rejected,
            WriteReply::NotCommitted(_) | WriteReply::NotLeader(_) => {}
            WriteReply::Unknown => retry = true,
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// When what has failed is due again, which its schedule says unless its listener did. `None`: the
/// node is stopping.
async fn verdicts(
    parts: &Arc<QueueParts>,
    queue: QueueId,
    settlements: Vec<(MessageKey, Outcome)>,
) -> Option<Vec<Settlement>> {
    let now_ms = parts.time_ms();
    let Shown { state, reads, .. } = &*parts.shown;
    let state = Arc::clone(state);
    let verdict = move |(key, outcome): (MessageKey, Outcome)| {
        let verdict = match outcome {
            Outcome::Delivered => Verdict::Delivered,
            Outcome::Failed { retry_after } => {
                let after_ms = retry_after.map_or_else(
                    || scheduled_ms(&state, &queue, key),
                    |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
                );
                Verdict::Failed { retry_at_ms: now_ms.saturating_add(after_ms) }
            }
        };
        Settlement { queue: queue.name.clone(), id: key.id, due_ms: key.due_ms, verdict }
    };
    let is_delivered = |(_, outcome): &(MessageKey, Outcome)| *outcome == Outcome::Delivered;
    if settlements.iter().all(is_delivered) {
        return Some(settlements.into_iter().map(verdict).collect());
    }
    reads.little(None, move || settlements.into_iter().map(verdict).collect()).await
}

fn scheduled_ms(state: &ShardState, queue: &QueueId, key: MessageKey) -> u64 {
    let message = or_fatal(state.message(queue, key.due_ms, key.id));
    let interval = message.and_then(|message| message.backoff_ms.first().copied());
    interval.map_or(0, u64::from)
}
