//! The dispatcher as its driver sees it: rule by rule, and over random events.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "tests")]

mod claims;
mod names;
mod operators;
mod outcomes;
mod random;
mod rng;
mod scenarios;
mod world;

use std::time::Duration;

use meridian_queue::{Incarnation, ListenerId, MessageKey, Opening, SessionId};
use meridian_types::{DatabaseId, Epoch, MessageId, Position, QueueId, Versionstamp};

const DATABASE: DatabaseId = DatabaseId([1; 16]);
const OTHER: DatabaseId = DatabaseId([2; 16]);

/// A named queue of [`DATABASE`].
fn named(name: &str) -> QueueId {
    QueueId { database: DATABASE, name: name.parse().unwrap() }
}

fn key(due_ms: u64, sequence: u64) -> MessageKey {
    let enqueued = Versionstamp::new(Position::new(Epoch::FIRST, sequence), 0);
    MessageKey { due_ms, id: MessageId { enqueued, index: 0 } }
}

fn listener(number: u8) -> ListenerId {
    ListenerId([number; 16])
}

fn opening(queue: impl Into<QueueId>, number: u8, session: u64, credits: u32) -> Opening {
    Opening {
        queue: queue.into(),
        listener: listener(number),
        session: SessionId(session),
        incarnation: Incarnation(session.into()),
        credits,
        lease: None,
        held: Vec::new(),
        resumed: false,
    }
}

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}
