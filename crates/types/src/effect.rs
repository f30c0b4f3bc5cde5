use bytes::Bytes;

use crate::{DatabaseId, Position, RequestId, Value, Versionstamp, WriteOutcome};

/// Tags, lengths, expiries, ids: what the encoding adds to the bytes of an effect, or of a transaction, at most.
const ENCODING_BYTES: usize = 64;

/// What a transaction does to one key, with its final value. Applied blindly by every replica.
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
    /// Deletes everything that the transaction's database holds, for good: nothing of that database is behind it
    /// in the log.
    DropDatabase,
}

impl Effect {
    /// Empty where the effect is on all keys.
    pub fn key(&self) -> &Bytes {
        static ALL: Bytes = Bytes::new();
        match self {
            Self::Put { key, .. } | Self::Delete { key } | Self::Unindex { key, .. } => key,
            Self::DropDatabase => &ALL,
        }
    }

    /// Bytes that it takes in an encoded batch, at most.
    pub fn size(&self) -> usize {
        let data = match self {
            Self::Put { value, .. } => value.data.len(),
            Self::Delete { .. } | Self::Unindex { .. } | Self::DropDatabase => 0,
        };
        ENCODING_BYTES + self.key().len() + data
    }
}

/// A transaction that was evaluated and takes effect when its batch commits. One that did nothing is in a
/// batch only where that must be remembered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommittedTransaction {
    pub request_id: RequestId,
    pub database: DatabaseId,
    /// At most one put or delete a key: the last.
    pub effects: Vec<Effect>,
    /// Set where the request did nothing and that must be remembered: an earlier try of it may arrive yet.
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

    /// What its client is told.
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
    /// The shard's time, as its leader logs it, in milliseconds since the Unix epoch. It never goes back from one
    /// batch to the next. What expires at or before it is gone in every state that has applied the batch.
    pub time_ms: u64,
    pub transactions: Vec<CommittedTransaction>,
}

impl Batch {
    /// Transactions of one batch at most: their order has 16 bits.
    pub const MAX_TRANSACTIONS: usize = u16::MAX as usize;

    /// Every transaction with its versionstamp, in order.
    pub fn iter(&self) -> impl Iterator<Item = (Versionstamp, &CommittedTransaction)> {
        (0..=u16::MAX).zip(&self.transactions).map(|(order, txn)| (Versionstamp::new(self.position, order), txn))
    }
}
