//! Webhooks that fail at present: for metrics, for operators, and for a log that they do not fill.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::DatabaseId;
use parking_lot::Mutex;

/// The log says of a webhook at most so often that it still fails.
const SAY_EVERY: Duration = Duration::from_secs(60);
/// Of an error, for people.
const MAX_REASON_BYTES: usize = 200;

/// The webhook of a queue.
pub(crate) type Queue = (DatabaseId, String);

/// Of the webhooks that this node serves.
#[derive(Default)]
pub(crate) struct Standings(Mutex<BTreeMap<Queue, Failing>>);

#[derive(Debug, Clone)]
struct Failing {
    /// Of the database, for people.
    name: String,
    since_ms: u64,
    reason: String,
    attempts: u64,
    said_at: Duration,
}

impl Standings {
    /// Nothing has been acknowledged since. `now` is monotonic, `now_ms` the wall clock's time.
    pub(super) fn fails(
        &self,
        queue: &Queue,
        name: &str,
        reason: &str,
        (now, now_ms): (Duration, u64),
    ) {
        let mut all = self.0.lock();
        let whole = (0..=MAX_REASON_BYTES).rev().find(|&end| reason.is_char_boundary(end));
        let reason = reason.get(..whole.unwrap_or(0)).unwrap_or(reason);
        let is_new = !all.contains_key(queue);
        let failing = all.entry(queue.clone()).or_insert_with(|| Failing {
            name: name.to_owned(),
            since_ms: now_ms,
            reason: String::new(),
            attempts: 0,
            said_at: now,
        });
        reason.clone_into(&mut failing.reason);
        failing.attempts = failing.attempts.saturating_add(1);
        if is_new {
            metrics::gauge!("meridian_webhooks_failing").increment(1.0);
        }
        if is_new || now.saturating_sub(failing.said_at) >= SAY_EVERY {
            failing.said_at = now;
            let attempts = failing.attempts;
            tracing::warn!(database = name, queue = queue.1, reason, attempts, "a webhook fails");
        }
    }

    pub(super) fn note_well(&self, queue: &Queue) {
        let ended = self.0.lock().remove(queue);
        if let Some(Failing { name, attempts, .. }) = ended {
            metrics::gauge!("meridian_webhooks_failing").decrement(1.0);
            tracing::info!(
                database = name,
                queue = queue.1,
                attempts,
                "a webhook takes messages again"
            );
        }
    }

    /// This node serves it no longer.
    pub(super) fn forget(&self, queue: &Queue) {
        if self.0.lock().remove(queue).is_some() {
            metrics::gauge!("meridian_webhooks_failing").decrement(1.0);
        }
    }

    /// A sentence on each that fails.
    pub(crate) fn warnings(&self, now_ms: u64) -> Vec<String> {
        let all = self.0.lock();
        let sentence = |((_, queue), failing): (&Queue, &Failing)| {
            let Failing { name, since_ms, reason, attempts, .. } = failing;
            let of = match &**queue {
                "" => String::new(),
                queue => format!("queue {queue} of "),
            };
            let seconds = now_ms.saturating_sub(*since_ms) / 1000;
            format!(
                "the webhook of {of}database {name} has failed for {seconds} s, {attempts} times: {reason}"
            )
        };
        all.iter().map(sentence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn webhook_fails_until_a_message_is_acknowledged_or_another_node_serves_it() {
        let (standings, queue) = (Standings::default(), (DatabaseId([1; 16]), String::new()));
        let at = |seconds: u64| (Duration::from_secs(seconds), seconds * 1000);
        standings.fails(&queue, "orders", "status 500", at(1));
        standings.fails(&queue, "orders", &"é".repeat(1000), at(5));
        let said = standings.warnings(9000);
        let sentence = "the webhook of database orders has failed for 8 s, 2 times: éé";
        assert!(
            said.len() == 1 && said[0].starts_with(sentence) && said[0].len() < 300,
            "{said:?}"
        );
        standings.note_well(&queue);
        assert!(standings.warnings(9000).is_empty());
        standings.fails(&queue, "orders", "status 500", at(10));
        standings.forget(&queue);
        assert!(standings.warnings(11_000).is_empty());
    }
}
