//! Effects: what a transaction comes to, and what is logged and applied.

use bytes::Bytes;

use crate::{DatabaseId, Position, QueueEffect, RequestId, Value, Versionstamp, WriteOutcome};

/// Tags, lengths, expiries, ids: what the encoding adds to the bytes of an effect, or of a
/// transaction, at most.
const ENCODING_BYTES: usize = 64;

/// A change of one row by a transaction, with its final value. Applied blindly by every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    Put {
        key: Bytes,
        value: Value,
        /// Milliseconds since the Unix epoch; 0: never.
        expire_at_ms: u64,
    },
    Delete {
        key: Bytes,
    },
    /// Forgets that something at `key` was to expire at this time; leaves the value alone.
    Unindex {
        key: Bytes,
        expire_at_ms: u64,
    },
    /// Deletes everything that the transaction's database holds, for good: nothing of that database
    /// is behind it in the log.
    DropDatabase,
    /// On a queue of the transaction's database, and on none of its keys.
    Queue(QueueEffect),
}

impl Effect {
    /// Empty where the effect is on all keys, or on none.
    pub fn key(&self) -> &Bytes {
        static ALL: Bytes = Bytes::new();
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Unindex { key, .. } => key,
            Self::DropDatabase | Self::Queue(_) => &ALL,
        }
    }

    /// Bytes that it takes in an encoded batch, at most.
    pub fn size(&self) -> usize {
        match self {
            Self::Put { key, value, .. } => ENCODING_BYTES + key.len() + value.data.len(),
            Self::Delete { key } | Self::Unindex { key, .. } => ENCODING_BYTES + key.len(),
            Self::DropDatabase => ENCODING_BYTES,
            Self::Queue(effect) => effect.size(),
        }
    }
}

/// A transaction that was evaluated and takes effect when its batch commits. A transaction that did
/// nothing is in a batch only where that must be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedTransaction {
    pub request_id: RequestId,
    pub database: DatabaseId,
    /// At most one put or delete a row: the last.
    pub effects: Vec<Effect>,
    /// Set where the request did nothing and that must be remembered: an earlier try of it may
    /// arrive yet.
    pub refusal: Option<Refusal>,
}

/// Why a transaction did nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// Indexes of all failed checks.
    CheckFailed(Vec<u32>),
    /// See [`WriteOutcome::Rejected`].
    Rejected(String),
}

impl CommittedTransaction {
    /// Bytes that it takes in an encoded batch, at most.
    pub fn size(&self) -> usize {
        let refusal = match &self.refusal {
            None => 0,
            Some(Refusal::CheckFailed(indexes)) => indexes.len() * 5,
            Some(Refusal::Rejected(text)) => text.len(),
        };
        ENCODING_BYTES + self.effects.iter().map(Effect::size).sum::<usize>() + refusal
    }

    /// The outcome that the client is told.
    pub fn outcome(&self, versionstamp: Versionstamp) -> WriteOutcome {
        match &self.refusal {
            None => WriteOutcome::Committed(versionstamp),
            Some(Refusal::CheckFailed(indexes)) => WriteOutcome::CheckFailed(indexes.clone()),
            Some(Refusal::Rejected(text)) => WriteOutcome::Rejected(text.clone()),
        }
    }
}

/// The unit of the log: what is replicated, stored, shipped and archived. The versionstamp of the
/// transaction at index `i` is [`Versionstamp::new`]`(position, i)`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    pub position: Position,
    /// The shard's time, as its leader logs it, in milliseconds since the Unix epoch. It never goes
    /// back from one batch to the next. Values that expire at or before it are gone in every state
    /// that has applied the batch.
    pub time_ms: u64,
    pub transactions: Vec<CommittedTransaction>,
}

impl Batch {
    /// Transactions of one batch at most: their order has 16 bits.
    pub const MAX_TRANSACTIONS: usize = u16::MAX as usize;

    /// Every transaction with its versionstamp, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Versionstamp, &CommittedTransaction)> {
        (0..=u16::MAX)
            .zip(&self.transactions)
            .map(|(order, txn)| (Versionstamp::new(self.position, order), txn))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, ValueEncoding};

    const KEY: Bytes = Bytes::from_static(b"a key");

    fn put(data: &'static [u8]) -> Effect {
        let value = Value { encoding: ValueEncoding::Bytes, data: Bytes::from_static(data) };
        Effect::Put { key: KEY, value, expire_at_ms: 7 }
    }

    fn transaction(effects: Vec<Effect>, refusal: Option<Refusal>) -> CommittedTransaction {
        CommittedTransaction {
            request_id: RequestId([1; 16]),
            database: DatabaseId([2; 16]),
            effects,
            refusal,
        }
    }

    fn refusals() -> [(Refusal, WriteOutcome); 2] {
        let (checks, text) = (vec![0, 3, 9], "no number".to_owned());
        [
            (Refusal::CheckFailed(checks.clone()), WriteOutcome::CheckFailed(checks)),
            (Refusal::Rejected(text.clone()), WriteOutcome::Rejected(text)),
        ]
    }

    #[test]
    fn an_effect_is_on_its_key_and_a_drop_on_none() {
        let unindex = Effect::Unindex { key: KEY, expire_at_ms: 7 };
        for effect in [put(b""), Effect::Delete { key: KEY }, unindex] {
            assert_eq!(effect.key(), &KEY);
        }
        let queue = Effect::Queue(QueueEffect::DeleteDeadLetter { number: 1 });
        assert!(Effect::DropDatabase.key().is_empty() && queue.key().is_empty());
    }

    /// Batches end by these sizes, so that none is too large to be sent.
    #[test]
    fn sizes_count_every_byte_that_a_transaction_carries_and_what_the_encoding_adds() {
        assert_eq!(put(b"a value").size(), 64 + 5 + 7);
        assert_eq!(Effect::Delete { key: KEY }.size(), 64 + 5);
        assert_eq!(Effect::Unindex { key: KEY, expire_at_ms: 7 }.size(), 64 + 5);
        assert_eq!(Effect::DropDatabase.size(), 64);
        let effects = vec![put(b"a value"), put(b""), Effect::Delete { key: KEY }];
        assert_eq!(transaction(effects, None).size(), 64 + 76 + 69 + 69);
        // Three indexes of up to five bytes, and nine bytes of text.
        assert_eq!(
            refusals().map(|(refusal, _)| transaction(vec![], Some(refusal)).size()),
            [64 + 15, 64 + 9]
        );
    }

    #[test]
    fn a_client_is_told_what_was_logged_of_its_write() {
        let stamp = Versionstamp::new(Position::new(Epoch(3), 4), 5);
        assert_eq!(
            transaction(vec![put(b"")], None).outcome(stamp),
            WriteOutcome::Committed(stamp)
        );
        for (refusal, outcome) in refusals() {
            assert_eq!(transaction(vec![], Some(refusal)).outcome(stamp), outcome);
        }
    }

    #[test]
    fn the_transactions_of_a_batch_have_its_position_and_their_order_as_versionstamps() {
        let transactions = (0..3).map(|n| CommittedTransaction {
            request_id: RequestId([n; 16]),
            ..transaction(vec![], None)
        });
        let batch = Batch {
            position: Position::new(Epoch(3), 4),
            time_ms: 9,
            transactions: transactions.collect(),
        };
        let seen: Vec<_> =
            batch.iter().map(|(stamp, of)| (stamp.to_hex(), of.request_id)).collect();
        let expected =
            [(0, "00030000000000040000"), (1, "00030000000000040001"), (2, "00030000000000040002")];
        assert_eq!(seen, expected.map(|(n, stamp)| (stamp.to_owned(), RequestId([n; 16]))));
    }

    #[test]
    fn as_many_transactions_as_a_batch_may_have_differ_in_their_versionstamps() {
        let transactions = vec![transaction(vec![], None); Batch::MAX_TRANSACTIONS];
        let batch = Batch { position: Position::new(Epoch(3), 4), time_ms: 9, transactions };
        let stamps: std::collections::BTreeSet<_> = batch.iter().map(|(stamp, _)| stamp).collect();
        assert_eq!(stamps.len(), Batch::MAX_TRANSACTIONS);
    }
}
