//! Queues: messages as clients ask for them, as they are stored, and how they end.
//!
//! A message is a row of its database, under its due time. The transaction that enqueues it writes
//! the row; a transaction with a [`Settlement`] moves or removes it. So messages commit, replicate
//! and fail over as values do, and a settlement that is repeated finds no row and does nothing.
//!
//! In the log, all that happens to queues is an [`Effect::Queue`](crate::Effect::Queue) with one of
//! the [`QueueEffect`]s: rows of messages, dead letters (messages that died without keys), and
//! totals. Each named queue has rows and a total of its own; dead letters and bounds are of the
//! database, so that names multiply neither.
//!
//! A settlement names the row by queue, due time and id, as the delivering side has read it: there is no
//! index from a message's id to its row.

use std::fmt;
use std::str::FromStr;

use bytes::Bytes;

use crate::limits::DEFAULT_BACKOFF_MS;
use crate::{QueueName, Versionstamp};

/// Tags, lengths, ids and numbers: what the encoding adds to the bytes of an effect, at most.
const ENCODING_BYTES: usize = 96;
/// Of an interval of a schedule, or a key if undelivered, beside its bytes.
const ELEMENT_ENCODING_BYTES: usize = 5;

/// Names a message for its whole life: the transaction that enqueued it, and which of that
/// transaction's enqueues it is. Ordered as commits are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MessageId {
    pub enqueued: Versionstamp,
    pub index: u16,
}

impl MessageId {
    pub const LEN: usize = Versionstamp::LEN + 2;

    /// The versionstamp, and the index in big-endian order: sorted as the ids are.
    pub fn to_bytes(self) -> [u8; Self::LEN] {
        let [i0, i1] = self.index.to_be_bytes();
        let [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9] = self.enqueued.0;
        [s0, s1, s2, s3, s4, s5, s6, s7, s8, s9, i0, i1]
    }

    /// `None` unless `bytes` are twelve.
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        let (stamp, index) = bytes.split_first_chunk::<{ Versionstamp::LEN }>()?;
        let index = u16::from_be_bytes(index.try_into().ok()?);
        Some(Self { enqueued: Versionstamp(*stamp), index })
    }
}

/// Twenty-four lower-case hex characters.
impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:04x}", self.enqueued, self.index)
    }
}

/// Text that is not a message's id where one was wanted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a message: 24 hex characters")]
pub struct InvalidMessageId(pub String);

impl FromStr for MessageId {
    type Err = InvalidMessageId;

    fn from_str(text: &str) -> Result<Self, InvalidMessageId> {
        let byte = |pair: &[u8]| {
            let digits = std::str::from_utf8(pair).ok()?;
            // A sign would be taken as well.
            let is_hex = digits.len() == 2 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            is_hex.then(|| u8::from_str_radix(digits, 16).ok())?
        };
        let bytes: Option<Vec<u8>> = text.as_bytes().chunks(2).map(byte).collect();
        bytes
            .and_then(|bytes| Self::from_slice(&bytes))
            .ok_or_else(|| InvalidMessageId(text.to_owned()))
    }
}

/// An enqueue as a client asks for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Enqueue {
    pub queue: QueueName,
    /// V8-serialized.
    pub payload: Bytes,
    /// Milliseconds since the Unix epoch before which the message is not delivered. A time that has
    /// passed means now.
    pub due_ms: u64,
    /// The keys that are set to the payload if no delivery succeeds.
    pub keys_if_undelivered: Vec<Bytes>,
    /// How long after each failed delivery the next one is tried; after the last failure there is
    /// none. `None`: [`DEFAULT_BACKOFF_MS`].
    pub backoff_ms: Option<Vec<u32>>,
}

/// A message as it is stored under its due time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Message {
    /// V8-serialized.
    pub payload: Bytes,
    pub keys_if_undelivered: Vec<Bytes>,
    /// The rest of its schedule.
    pub backoff_ms: Vec<u32>,
    /// Deliveries that failed so far.
    pub attempts: u32,
    /// The logged time of the batch that enqueued it.
    pub enqueued_ms: u64,
}

impl Message {
    /// The message of an enqueue that commits in a batch with this time.
    pub fn new(enqueue: &Enqueue, enqueued_ms: u64) -> Self {
        Self {
            payload: enqueue.payload.clone(),
            keys_if_undelivered: enqueue.keys_if_undelivered.clone(),
            backoff_ms: enqueue.backoff_ms.clone().unwrap_or_else(|| DEFAULT_BACKOFF_MS.to_vec()),
            attempts: 0,
            enqueued_ms,
        }
    }

    /// Bytes that it carries.
    pub fn size(&self) -> usize {
        let keys: usize = self.keys_if_undelivered.iter().map(Bytes::len).sum();
        self.payload.len() + keys
    }
}

/// A message whose last delivery failed and that has no keys to be kept under.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
    /// In which it died.
    pub queue: QueueName,
    pub id: MessageId,
    /// V8-serialized.
    pub payload: Bytes,
    pub attempts: u32,
    pub enqueued_ms: u64,
    /// The logged time of the batch with its last failure.
    pub died_ms: u64,
}

/// The totals of a database's queues. Every transaction that changes one of them writes it anew, so
/// that the leader can bound the queues, and every node can tell their length, without a scan.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QueueTotals {
    /// Messages with a row in the unnamed queue, due or not.
    pub undelivered: u64,
    /// The same of all named queues together.
    pub named_undelivered: u64,
    /// Named queues that have such messages.
    pub names: u64,
    /// Dead letters have numbers in the order in which they died. The first that is kept.
    pub first_dead: u64,
    /// The number of the next one to die.
    pub next_dead: u64,
    /// How many of the numbers from the first on have no letter any more: operators took those out.
    pub removed_dead: u64,
}

impl QueueTotals {
    /// Messages with a row in any queue.
    pub fn undelivered_in_all(&self) -> u64 {
        self.undelivered.saturating_add(self.named_undelivered)
    }

    /// Dead letters that are kept.
    pub fn dead(&self) -> u64 {
        self.next_dead.saturating_sub(self.first_dead).saturating_sub(self.removed_dead)
    }
}

/// A change of one row of a queue by a transaction, with its final value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum QueueEffect {
    /// Stores a message under its due time.
    PutMessage {
        queue: QueueName,
        id: MessageId,
        due_ms: u64,
        message: Message,
    },
    /// Removes the row of a message. A message that moves is removed here and put there.
    DeleteMessage {
        queue: QueueName,
        id: MessageId,
        due_ms: u64,
    },
    PutDeadLetter {
        /// See [`QueueTotals`].
        number: u64,
        letter: DeadLetter,
    },
    DeleteDeadLetter {
        number: u64,
    },
    /// The totals of the database's queues from here on.
    PutTotals(QueueTotals),
    /// The undelivered messages of a named queue from here on. Of a queue without any nothing is
    /// stored.
    PutNamedTotals {
        queue: QueueName,
        undelivered: u64,
    },
}

impl QueueEffect {
    /// Bytes that it takes in an encoded batch, at most.
    pub fn size(&self) -> usize {
        match self {
            Self::PutMessage { queue, message, .. } => {
                let elements = message.keys_if_undelivered.len() + message.backoff_ms.len();
                let bytes = queue.as_str().len() + message.size();
                ENCODING_BYTES + bytes + elements * ELEMENT_ENCODING_BYTES
            }
            Self::PutDeadLetter { letter, .. } => {
                ENCODING_BYTES + letter.queue.as_str().len() + letter.payload.len()
            }
            Self::DeleteMessage { queue, .. } | Self::PutNamedTotals { queue, .. } => {
                ENCODING_BYTES + queue.as_str().len()
            }
            Self::DeleteDeadLetter { .. } | Self::PutTotals(_) => ENCODING_BYTES,
        }
    }
}

/// The outcome of a delivery, or an operator's order for a message. It is logged as part of a
/// transaction of the message's database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// That has the row. A dead letter is found without.
    pub queue: QueueName,
    pub id: MessageId,
    /// Of the row that was delivered. Where no such row is left, the message was settled before, or
    /// has moved, and the settlement does nothing; see [`Verdict::Acknowledged`] for the exception.
    /// A dead letter has none: 0.
    pub due_ms: u64,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The message is done.
    Delivered,
    /// The message is done by the transaction of its handler. It counts as a check of that
    /// transaction: where the message does not have the row, nothing of the transaction is done.
    Acknowledged,
    /// One attempt has failed. The message is due again at this time, if its schedule has an
    /// interval left, which it loses; else it is dead.
    Failed { retry_at_ms: u64 },
    /// It is removed without having been delivered.
    Cancelled,
    /// It is due at another time. No attempt is counted.
    Rescheduled { due_ms: u64 },
    /// The dead letter of this number, if it has that id, is a message again: due at once, with the
    /// usual schedule, and as if no delivery had failed.
    Redriven { number: u64 },
    /// The dead letter of this number, if it has that id, is removed.
    Discarded { number: u64 },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, Position};

    fn id(sequence: u64, order: u16, index: u16) -> MessageId {
        let enqueued = Versionstamp::new(Position::new(Epoch(1), sequence), order);
        MessageId { enqueued, index }
    }

    #[test]
    fn bytes_and_text_of_an_id_are_golden() {
        let id =
            MessageId { enqueued: Versionstamp([1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), index: 0xb0c };
        assert_eq!(id.to_bytes(), [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]);
        assert_eq!(MessageId::from_slice(&id.to_bytes()), Some(id));
        assert_eq!(id.to_string(), "0102030405060708090a0b0c");
        assert_eq!("0102030405060708090A0b0c".parse(), Ok(id));
        for length in [0, 10, 11, 13] {
            assert_eq!(MessageId::from_slice(&vec![0; length]), None);
        }
        let unfit = [
            "",
            "0102030405060708090a0b0",
            "0102030405060708090a0b0c0d",
            "+102030405060708090a0b0c",
            "0102030405060708090a0b0é",
        ];
        for text in unfit {
            assert_eq!(text.parse::<MessageId>(), Err(InvalidMessageId(text.to_owned())));
        }
    }

    #[test]
    fn ids_and_their_bytes_are_in_the_order_of_commits() {
        let ids = [id(1, 0, 0), id(1, 0, 1), id(1, 0, 256), id(1, 1, 0), id(2, 0, 0)];
        assert!(ids.is_sorted());
        assert!(ids.map(MessageId::to_bytes).is_sorted());
    }

    /// Batches end by these sizes. That the encoding takes no more is tested where it is made.
    #[test]
    fn sizes_of_effects_count_every_byte_that_they_carry() {
        let (id, payload) = (id(1, 2, 3), Bytes::from_static(b"payload"));
        let message = Message {
            payload: payload.clone(),
            keys_if_undelivered: vec![Bytes::from_static(b"a key"); 2],
            backoff_ms: vec![100, 1000, 5000],
            attempts: 1,
            enqueued_ms: 3,
        };
        let sizes = |queue: &str| {
            let queue: QueueName = queue.parse().unwrap();
            let (message, payload, of) = (message.clone(), payload.clone(), queue.clone());
            let letter =
                DeadLetter { queue: of, id, payload, attempts: 1, enqueued_ms: 3, died_ms: 4 };
            let effects = [
                QueueEffect::PutMessage { queue: queue.clone(), id, due_ms: 9, message },
                QueueEffect::DeleteMessage { queue: queue.clone(), id, due_ms: 9 },
                QueueEffect::PutDeadLetter { number: 5, letter },
                QueueEffect::DeleteDeadLetter { number: 5 },
                QueueEffect::PutTotals(QueueTotals::default()),
                QueueEffect::PutNamedTotals { queue, undelivered: 7 },
            ];
            effects.map(|effect| effect.size())
        };
        let put = 96 + 7 + 2 * (5 + 5) + 3 * 5;
        assert_eq!(sizes(""), [put, 96, 96 + 7, 96, 96, 96]);
        assert_eq!(sizes("name"), [put + 4, 96 + 4, 96 + 7 + 4, 96, 96, 96 + 4]);
    }

    #[test]
    fn an_enqueue_without_a_schedule_has_the_default_and_an_empty_one_is_kept() {
        let schedule = |backoff_ms| Message::new(&Enqueue { backoff_ms, ..Enqueue::default() }, 7);
        assert_eq!(schedule(None).backoff_ms, [100, 1000, 5000, 30_000, 60_000]);
        assert_eq!(schedule(Some(vec![])).backoff_ms, []);
        assert_eq!(schedule(Some(vec![3])).backoff_ms, [3]);
        assert_eq!(schedule(None).enqueued_ms, 7);
    }
}
