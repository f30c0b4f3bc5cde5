//! Clients of a queue: messages at a rate, and listeners in every region that work on them, refuse
//! some, and come back when their gateway is lost. Their requests and hand-outs are recorded for
//! [`meridian_checker::queue`].
//!
//! Every message carries its number, and keys of its own that its death sets.

mod listener;
mod record;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use meridian_checker::queue::{
    DeadRead, Enqueue, EnqueueOutcome, QueueEvent, QueueHistory, ReportAnswer, Verdict,
};
use meridian_types::{Consistency, DatabaseId, Versionstamp};
use rand::Rng;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::kv_connect::{self, CallError, KvClient, range};
use crate::poll::{self, Timeout};
use crate::workload::Gateway;

use listener::Listener;
use record::Record;

/// Listeners of each region.
const LISTENERS: usize = 2;
/// The time-out of an attempt at a request.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The time for which a request is tried.
const PATIENCE: Duration = Duration::from_secs(15);
const RETRY_MS: std::ops::Range<u64> = 200..300;
/// Messages that are due again after a failure come well within this, and those of a listener that
/// was lost.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);
/// The time without a hand-out at the end: longer than a broken stream's messages stay leased.
const QUIET: Duration = Duration::from_secs(7);
/// The time between two reads of the keys of the dead.
const LOOK: Duration = Duration::from_millis(300);
/// Messages whose keys are read in one snapshot, of two keys each.
const DEAD_AT_A_TIME: u64 = 400;
const DEAD_KEYS: u32 = 2;
/// The pauses after each failure but the last.
const BACKOFF_MS: [u32; 3] = [100, 200, 400];
/// One in so many messages is due later.
const DELAYED: u64 = 4;
const DELAY_MS: u64 = 300;

/// The clients of one queue, and their record.
pub(crate) struct QueueWorkload {
    record: Record,
    database: DatabaseId,
    is_stopped: AtomicBool,
}

/// The clients at work, until this is dropped.
pub(crate) struct QueueClients {
    workload: Arc<QueueWorkload>,
    writers: JoinSet<()>,
    _listeners: JoinSet<()>,
}

impl QueueClients {
    /// `per_second` messages are enqueued in all regions together; each region has listeners.
    /// Times count from `origin`.
    pub(crate) fn start(
        database: DatabaseId,
        regions: &[Vec<Arc<Gateway>>],
        per_second: u32,
        origin: Instant,
        seed: u64,
    ) -> Self {
        let workload = Arc::new(QueueWorkload {
            record: Record::new(origin),
            database,
            is_stopped: AtomicBool::new(false),
        });
        let (mut writers, mut listeners) = (JoinSet::new(), JoinSet::new());
        let count = u32::try_from(regions.len()).unwrap_or(u32::MAX).max(1);
        let every = Duration::from_secs(1) * count / per_second.max(1);
        let mut number = 0;
        for gateways in regions {
            writers.spawn(Arc::clone(&workload).write(gateways.clone(), every));
            for at in 0..LISTENERS {
                let mut gateways = gateways.clone();
                let first = at % gateways.len().max(1);
                gateways.rotate_left(first);
                number += 1;
                let listener = Listener::new(Arc::clone(&workload), number, gateways, seed);
                listeners.spawn(listener.run());
            }
            writers.spawn(Arc::clone(&workload).look_for_the_dead(gateways.clone()));
        }
        Self { workload, writers, _listeners: listeners }
    }

    /// Ends the writers, waits until nothing is handed out any more, and reads the keys of the dead.
    ///
    /// # Errors
    /// When messages come without an end, or the gateway does not serve.
    pub(crate) async fn finish(mut self, gateway: &Gateway) -> Result<QueueHistory, Timeout> {
        self.workload.is_stopped.store(true, Ordering::Relaxed);
        while self.writers.join_next().await.is_some() {}
        let began = Instant::now();
        let deadline = DRAIN_DEADLINE + 2 * QUIET;
        poll::until("the queue is drained", deadline, async || {
            self.workload.read_the_dead(gateway).await.map_err(|error| error.to_string())?;
            let unsettled = self.workload.unsettled();
            let quiet = self.workload.record.since_the_last_message();
            // A message that is not settled after so long is lost: the checker says so.
            let is_late = began.elapsed() > DRAIN_DEADLINE;
            if (unsettled == 0 || is_late) && quiet >= QUIET {
                return Ok(());
            }
            tokio::time::sleep(LOOK).await;
            Err(format!("{unsettled} messages are not settled, the last came {quiet:?} ago"))
        })
        .await?;
        Ok(QueueHistory { events: self.workload.record.events(), is_drained: true })
    }
}

/// A request without a result, however often it was tried.
enum Unanswered {
    /// Each try was refused, or not sent.
    Refused,
    /// The answer to a try did not come.
    Unknown,
}

/// The answer to an enqueue.
#[derive(Deserialize)]
struct Enqueued {
    id: String,
    versionstamp: String,
}

/// Behind the keys of the recorded clients, which the final reads take as one range.
fn dead_keys(message: u64) -> [String; 2] {
    [format!("~dead/{message:012}/a"), format!("~dead/{message:012}/b")]
}

/// The number of the message whose key it is.
fn dead_message(key: &[u8]) -> Option<u64> {
    std::str::from_utf8(key).ok()?.split('/').nth(1)?.parse().ok()
}

/// The payload of a message: a text of V8's serializer.
fn payload(message: u64) -> String {
    let digits = message.to_string();
    let header = [0xff, 0x0f, b'"', u8::try_from(digits.len()).unwrap_or(u8::MAX)];
    STANDARD.encode([&header, digits.as_bytes()].concat())
}

/// The message with this payload.
fn message_of(payload: &str) -> Option<u64> {
    let bytes = STANDARD.decode(payload).ok()?;
    std::str::from_utf8(bytes.get(4..)?).ok()?.parse().ok()
}

fn versionstamp(hex: &str) -> Option<Versionstamp> {
    let byte = |at: usize| u8::from_str_radix(hex.get(2 * at..2 * at + 2)?, 16).ok();
    Versionstamp::from_slice(&(0..hex.len() / 2).map(byte).collect::<Option<Vec<_>>>()?)
}

impl QueueWorkload {
    fn client(&self, gateway: &Gateway) -> KvClient {
        kv_connect::client(gateway.url.clone(), self.database).with_timeout(ATTEMPT)
    }

    fn is_stopped(&self) -> bool {
        self.is_stopped.load(Ordering::Relaxed)
    }

    /// Posts JSON until it is answered with 200, through gateways in turn.
    async fn post(
        &self,
        path: &str,
        body: serde_json::Value,
        gateways: &[Arc<Gateway>],
    ) -> Result<Bytes, Unanswered> {
        let began = Instant::now();
        let body = Bytes::from(body.to_string());
        let mut unanswered = Unanswered::Refused;
        for gateway in gateways.iter().cycle() {
            if began.elapsed() >= PATIENCE {
                break;
            }
            if gateway.is_up() {
                let client = self.client(gateway);
                let headers = client.headers();
                let reply = tokio::select! {
                    reply = client.post(path, &headers, body.clone()) => reply,
                    () = gateway.lost() => Err(CallError::NoAnswer("it is lost".to_owned())),
                };
                match reply {
                    Ok(reply) if reply.status == 200 => return Ok(reply.body),
                    Ok(_) | Err(CallError::NotSent | CallError::Refused { .. }) => {}
                    Err(CallError::NoAnswer(_)) => unanswered = Unanswered::Unknown,
                }
            }
            pause().await;
        }
        Err(unanswered)
    }

    async fn write(self: Arc<Self>, gateways: Vec<Arc<Gateway>>, every: Duration) {
        let mut ticks = tokio::time::interval(every);
        let mut enqueues = JoinSet::new();
        while !self.is_stopped() {
            ticks.tick().await;
            enqueues.spawn(Arc::clone(&self).enqueue(gateways.clone()));
            while enqueues.try_join_next().is_some() {}
        }
        while enqueues.join_next().await.is_some() {}
    }

    async fn enqueue(self: Arc<Self>, gateways: Vec<Arc<Gateway>>) {
        let (at, message) = self.record.enqueue(|message, invoked_ns| Enqueue {
            message,
            invoked_ns,
            completed_ns: None,
            outcome: EnqueueOutcome::Unknown,
            delay_ns: delay_ms(message) * 1_000_000,
            attempts: u32::try_from(BACKOFF_MS.len()).unwrap_or(0) + 1,
            dead_keys: DEAD_KEYS,
        });
        let body = json!({
            "payload": payload(message),
            "delayMs": delay_ms(message),
            "backoffMs": BACKOFF_MS,
            "keysIfUndelivered": dead_keys(message).map(|key| STANDARD.encode(key)),
            "id": format!("message {message}"),
        });
        let enqueued = |answer: Bytes| {
            let Enqueued { id, versionstamp: hex } = serde_json::from_slice(&answer).ok()?;
            Some(EnqueueOutcome::Enqueued { id, versionstamp: versionstamp(&hex)? })
        };
        let outcome = match self.post("/kv/queue/enqueue", body, &gateways).await {
            Ok(answer) => enqueued(answer).unwrap_or(EnqueueOutcome::Unknown),
            Err(Unanswered::Unknown) => EnqueueOutcome::Unknown,
            Err(Unanswered::Refused) => EnqueueOutcome::NotEnqueued,
        };
        self.record.complete(at, |event, now_ns| {
            if let QueueEvent::Enqueue(enqueue) = event {
                enqueue.completed_ns = Some(now_ns);
                enqueue.outcome = outcome;
            }
        });
    }

    /// Reads the keys of the dead while messages come and go: a death is seen whole or not at all.
    async fn look_for_the_dead(self: Arc<Self>, gateways: Vec<Arc<Gateway>>) {
        for gateway in gateways.iter().cycle() {
            if self.is_stopped() {
                break;
            }
            tokio::time::sleep(LOOK).await;
            if gateway.is_up() {
                tokio::select! {
                    _ = self.read_the_dead(gateway) => {}
                    () = gateway.lost() => {}
                }
            }
        }
    }

    /// Reads the keys of all messages. Messages without a key are not dead, and not recorded.
    async fn read_the_dead(&self, gateway: &Gateway) -> Result<(), CallError> {
        let client = self.client(gateway);
        let last = self.record.messages();
        for first in (1..=last).step_by(usize::try_from(DEAD_AT_A_TIME).unwrap_or(usize::MAX)) {
            let [start, _] = dead_keys(first);
            let [end, _] = dead_keys(first + DEAD_AT_A_TIME);
            let invoked_ns = self.record.now_ns();
            let ranges = vec![range(start.as_bytes(), end.as_bytes(), 1000)];
            let output = client.read(Consistency::Strong, ranges).await?;
            let entries = output.ranges.iter().flat_map(|range| &range.values);
            let mut found: Vec<u64> =
                entries.filter_map(|entry| dead_message(&entry.key)).collect();
            let completed_ns = self.record.now_ns();
            found.sort_unstable();
            for dead in found.chunk_by(|one, other| one == other) {
                let set = u32::try_from(dead.len()).unwrap_or(u32::MAX);
                let message = dead.first().copied().unwrap_or(0);
                self.record.died(DeadRead { message, invoked_ns, completed_ns, set });
            }
        }
        Ok(())
    }

    /// Acknowledged messages that were not seen done or dead.
    fn unsettled(&self) -> usize {
        let mut enqueued = BTreeSet::new();
        let mut settled = BTreeSet::new();
        for event in self.record.events() {
            match event {
                QueueEvent::Enqueue(it)
                    if matches!(it.outcome, EnqueueOutcome::Enqueued { .. }) =>
                {
                    enqueued.insert(it.message);
                }
                QueueEvent::Report(it)
                    if it.verdict == Verdict::Ack && it.answer == Some(ReportAnswer::Done) =>
                {
                    settled.insert(it.message);
                }
                QueueEvent::DeadRead(it) if it.set > 0 => {
                    settled.insert(it.message);
                }
                _ => {}
            }
        }
        enqueued.difference(&settled).count()
    }
}

fn delay_ms(message: u64) -> u64 {
    if message.is_multiple_of(DELAYED) { DELAY_MS } else { 0 }
}

/// The pause before a request is tried again.
async fn pause() {
    let ms = rand::rng().random_range(RETRY_MS);
    tokio::time::sleep(Duration::from_millis(ms)).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_messages_are_read_as_they_were_written() {
        for message in [1, 42, 123_456_789] {
            assert_eq!(message_of(&payload(message)), Some(message));
            for key in dead_keys(message) {
                assert_eq!(dead_message(key.as_bytes()), Some(message));
            }
        }
        assert_eq!(payload(7), "/w8iATc=");
        assert_eq!(message_of("/w8w"), None);
        assert!(dead_keys(9) < dead_keys(10));
        assert_eq!(
            versionstamp("00010000000000020003").map(|it| it.to_hex()).as_deref(),
            Some("00010000000000020003")
        );
        assert_eq!(versionstamp("0001"), None);
    }
}
