//! The changes in batches for one database and prefix, as far as there is room for them.

use bytes::Bytes;
use meridian_gateway::{Change, Changed, ChangedTransaction, ChangesWanted};
use meridian_proto::DecodedBatch;
use meridian_types::{CommittedTransaction, DatabaseId, Effect, Versionstamp};

/// The bytes of a transaction beside its effects.
const BESIDE_BYTES: usize = 64;

pub(super) struct Gathering {
    database: DatabaseId,
    prefix: Bytes,
    max_bytes: usize,
    bytes: usize,
    /// Of the batches that were looked through.
    looked_through: usize,
    changed: Changed,
}

impl Gathering {
    pub(super) fn new(wanted: &ChangesWanted, after: Versionstamp) -> Self {
        Self {
            database: wanted.database,
            prefix: wanted.prefix.clone(),
            max_bytes: wanted.max_bytes,
            bytes: 0,
            looked_through: 0,
            changed: Changed { transactions: Vec::new(), reached: after, next_bytes: 0 },
        }
    }

    /// The sequence whose next batch is to be looked at: once more, if only a part of it was.
    pub(super) fn behind(&self) -> u64 {
        let reached = self.changed.reached;
        let sequence = reached.position().sequence;
        if reached.is_behind_its_batch() { sequence } else { sequence.saturating_sub(1) }
    }

    /// Whether there is something to be told, or more than so much was looked through in vain.
    pub(super) fn is_enough(&self, max_looked_through: usize) -> bool {
        let Changed { transactions, next_bytes, .. } = &self.changed;
        !transactions.is_empty() || *next_bytes > 0 || self.looked_through >= max_looked_through
    }

    pub(super) fn add(&mut self, batches: &[DecodedBatch]) {
        for DecodedBatch { batch, len, .. } in batches {
            for (stamp, transaction) in batch.iter() {
                let is_told = stamp <= self.changed.reached;
                if !is_told && !self.add_transaction(stamp, transaction) {
                    return;
                }
            }
            self.changed.reached = Versionstamp::behind(batch.position);
            self.looked_through += len;
        }
    }

    /// `false`: there is no room for it.
    fn add_transaction(&mut self, stamp: Versionstamp, transaction: &CommittedTransaction) -> bool {
        let (changes, bytes) = match transaction.database == self.database {
            true => changes(&transaction.effects, &self.prefix),
            false => (Vec::new(), 0),
        };
        if !changes.is_empty() {
            if self.bytes + bytes > self.max_bytes {
                self.changed.next_bytes = bytes;
                return false;
            }
            self.bytes += bytes;
            self.changed.transactions.push(ChangedTransaction { versionstamp: stamp, changes });
        }
        self.changed.reached = stamp;
        true
    }

    pub(super) fn finish(self) -> Changed {
        self.changed
    }
}

/// The changes of keys with the prefix, and what they take.
fn changes(effects: &[Effect], prefix: &[u8]) -> (Vec<Change>, usize) {
    let (mut changes, mut bytes) = (Vec::new(), BESIDE_BYTES);
    let mut before: Option<&Effect> = None;
    for effect in effects {
        // A value that has expired is removed together with the mark of its expiry.
        let has_expired = matches!(
            before.replace(effect),
            Some(Effect::Unindex { key, .. }) if key == effect.key()
        );
        let is_of_keys = match effect {
            Effect::DropDatabase => true,
            Effect::Queue(_) => false,
            _ => effect.key().starts_with(prefix),
        };
        if !is_of_keys {
            continue;
        }
        let change = match effect {
            Effect::Put { key, value, expire_at_ms } => {
                Change::Set { key: key.clone(), value: value.clone(), expire_at_ms: *expire_at_ms }
            }
            Effect::Delete { key } if has_expired => Change::Expired { key: key.clone() },
            Effect::Delete { key } => Change::Deleted { key: key.clone() },
            Effect::Unindex { .. } | Effect::Queue(_) => continue,
            Effect::DropDatabase => Change::DatabaseDropped,
        };
        bytes += effect.size();
        changes.push(change);
    }
    (changes, bytes)
}
