//! Histories of messages: the requests of a queue's clients, their answers, and the hand-outs.
//!
//! [`check_queue`] judges a history by the promises of `docs/queues.md`, each a [`QueueRule`]. It
//! believes the clients, and knows nothing of the inside of a queue:
//!
//! - A listener **surely holds** a message from when it was handed over until the listener reports
//!   on it, is told that it was released, or hears its stream for the last time before a break.
//! - While it surely holds it, no other listener may be handed the same attempt or a later one. A
//!   hand-out of an earlier attempt was on its way before.
//! - Where a hold is not sure to its end, a hand-out may be on its way for [`TRANSIT_NS`], and the
//!   attempt may have failed before it was acknowledged: the acknowledgement may have no effect.

mod course;
mod rules;

use std::fmt;

use meridian_types::Versionstamp;
use serde::{Deserialize, Serialize};

use crate::allowance::Allowance;

/// The longest time that a hand-out is on its way to a listener.
pub const TRANSIT_NS: u64 = 10_000_000_000;

/// The events that clients of one queue saw, in any order.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueHistory {
    pub events: Vec<QueueEvent>,
    /// Listeners heard until nothing more could come: a message that is not settled then is lost.
    pub is_drained: bool,
}

/// Times are nanoseconds of one clock. `message` is the number that the message carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueEvent {
    Enqueue(Enqueue),
    Handed(Handed),
    Report(Report),
    /// A listener is told that a message is no longer its own.
    Released {
        at_ns: u64,
        listener: u32,
        message: u64,
    },
    /// A listener's stream ended. `at_ns`: when it was heard for the last time.
    Broke {
        at_ns: u64,
        listener: u32,
    },
    DeadRead(DeadRead),
}

/// A message is enqueued, however often that is tried: all tries have one id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enqueue {
    pub message: u64,
    pub invoked_ns: u64,
    pub completed_ns: Option<u64>,
    pub outcome: EnqueueOutcome,
    pub delay_ns: u64,
    /// Attempts in all.
    pub attempts: u32,
    /// Keys that are set when the last attempt has failed.
    pub dead_keys: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EnqueueOutcome {
    Enqueued {
        id: String,
        #[serde(with = "crate::history::versionstamp_hex")]
        versionstamp: Versionstamp,
    },
    /// It is not, and never will be.
    NotEnqueued,
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handed {
    pub at_ns: u64,
    pub listener: u32,
    pub message: u64,
    pub id: String,
    /// From 1.
    pub attempt: u32,
}

/// A report, however often it is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub listener: u32,
    pub message: u64,
    pub attempt: u32,
    pub verdict: Verdict,
    pub invoked_ns: u64,
    pub completed_ns: Option<u64>,
    /// `None`: it was not answered.
    pub answer: Option<ReportAnswer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Ack,
    Nack,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportAnswer {
    Done,
    Late,
}

/// The number of a message's keys for its death that were found set, in one strong read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadRead {
    pub message: u64,
    pub invoked_ns: u64,
    pub completed_ns: u64,
    pub set: u32,
}

/// The promises that a history can break, each a function in `rules`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QueueRule {
    /// The history could have been recorded, whatever the queue does.
    WellFormed,
    /// A message is enqueued once, and not when its enqueue was refused.
    Enqueued,
    /// Each acknowledged message is handed out until it was done or has died.
    AtLeastOnce,
    /// A message is one listener's at a time.
    OneListener,
    /// A message that was acknowledged is not handed out again.
    Acknowledged,
    /// Attempts come after failures and after delays, and there are no more than the schedule has.
    Attempts,
    /// A message dies after its last attempt, into all of its keys at once.
    DeadLetters,
}

impl QueueRule {
    pub fn name(self) -> &'static str {
        match self {
            Self::WellFormed => "well-formed queue history",
            Self::Enqueued => "enqueued once",
            Self::AtLeastOnce => "at least once",
            Self::OneListener => "one listener at a time",
            Self::Acknowledged => "acknowledged messages",
            Self::Attempts => "attempts",
            Self::DeadLetters => "dead letters",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueViolation {
    pub rule: QueueRule,
    pub message: u64,
    pub text: String,
}

impl fmt::Display for QueueViolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: message {}: {}", self.rule.name(), self.message, self.text)
    }
}

/// The size of a history, and counts that are no violations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct QueueStatistics {
    /// Acknowledged enqueues.
    pub enqueued: usize,
    pub handed: usize,
    /// Messages whose delivery was acknowledged with `done`.
    pub done: usize,
    pub dead: usize,
    /// Handed out though an earlier hand-out of the same message had not been refused.
    pub duplicates: usize,
    /// Acknowledged messages that a failover lost as it admits.
    pub lost_as_admitted: usize,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct QueueVerdict {
    pub violations: Vec<QueueViolation>,
    pub statistics: QueueStatistics,
}

/// Judges a history. Losses that failovers admit to are no violations; neither are outcomes of older
/// messages that they undid.
pub fn check_queue(history: &QueueHistory, allowance: &Allowance) -> QueueVerdict {
    rules::check(history, allowance)
}
