//! The effects that are evaluated and not yet applied, laid over the applied state.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;
use meridian_types::{Batch, DatabaseId, Effect, Position, Value, Versionstamp};

use crate::view::{Stored, View};

/// The newest effect of a key that is evaluated but not yet applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum InFlight {
    Put {
        versionstamp: Versionstamp,
        value: Value,
        /// Milliseconds since the Unix epoch; 0: never.
        expire_at_ms: u64,
    },
    /// Hides what is applied.
    Delete { versionstamp: Versionstamp },
}

impl InFlight {
    /// That of the transaction that wrote it.
    pub fn versionstamp(&self) -> Versionstamp {
        match self {
            Self::Put { versionstamp, .. } | Self::Delete { versionstamp } => *versionstamp,
        }
    }

    /// The value that a transaction reads at `now_ms`: `None` if the key is deleted or has expired.
    fn present(&self, now_ms: u64) -> Option<(Versionstamp, &Value)> {
        match self {
            Self::Put { expire_at_ms, .. } if (1..=now_ms).contains(expire_at_ms) => None,
            Self::Put { versionstamp, value, .. } => Some((*versionstamp, value)),
            Self::Delete { .. } => None,
        }
    }
}

/// The writes of transactions that are evaluated but not yet applied. The proposer's own: it pushes
/// each transaction once evaluated, releases what was applied, and clears it all when it stops
/// being the leader, since then nothing says that these batches commit.
///
/// It is as large as the batches in flight; bounding those bounds it.
#[derive(Debug, Default)]
pub struct Overlay {
    /// By database and key. The inner maps are not empty.
    newest: HashMap<DatabaseId, HashMap<Bytes, InFlight>>,
    /// Every effect pushed and not yet released, in order, superseded ones too: what makes
    /// [`Overlay::release`] cost no more than the pushes did.
    pushed: VecDeque<Pushed>,
}

#[derive(Debug)]
struct Pushed {
    versionstamp: Versionstamp,
    database: DatabaseId,
    key: Bytes,
}

impl Overlay {
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one evaluated transaction.
    ///
    /// # Panics
    /// When `versionstamp` is older than what was pushed before: the proposer would evaluate
    /// against something that never was.
    pub fn push(&mut self, versionstamp: Versionstamp, database: DatabaseId, effects: &[Effect]) {
        if effects.is_empty() {
            return;
        }
        assert!(
            self.pushed.back().is_none_or(|last| last.versionstamp <= versionstamp),
            "versionstamp {versionstamp} pushed out of order"
        );
        let newest = self.newest.entry(database).or_default();
        for effect in effects {
            let in_flight = match effect {
                Effect::Put { value, expire_at_ms, .. } => InFlight::Put {
                    versionstamp,
                    value: value.clone(),
                    expire_at_ms: *expire_at_ms,
                },
                Effect::Delete { .. } => InFlight::Delete { versionstamp },
                // Of a dropped database nothing is evaluated any more.
                Effect::Unindex { .. } | Effect::DropDatabase => continue,
            };
            newest.insert(effect.key().clone(), in_flight);
            self.pushed.push_back(Pushed { versionstamp, database, key: effect.key().clone() });
        }
    }

    /// Adds every transaction of a batch.
    ///
    /// # Panics
    /// As [`Overlay::push`].
    pub fn insert(&mut self, batch: &Batch) {
        for (versionstamp, transaction) in batch.iter() {
            self.push(versionstamp, transaction.database, &transaction.effects);
        }
    }

    /// Drops what batches up to and including `upto` wrote, unless a later one has written the key
    /// again. To be called only once they can be read from the applied view. Its cost is that of
    /// the effects dropped.
    pub fn release(&mut self, upto: Position) {
        while self.pushed.front().is_some_and(|oldest| oldest.versionstamp.position() <= upto) {
            let Some(pushed) = self.pushed.pop_front() else { break };
            let Some(newest) = self.newest.get_mut(&pushed.database) else { continue };
            if newest
                .get(&pushed.key)
                .is_some_and(|in_flight| in_flight.versionstamp() == pushed.versionstamp)
            {
                newest.remove(&pushed.key);
            }
            if newest.is_empty() {
                self.newest.remove(&pushed.database);
            }
        }
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.newest.clear();
        self.pushed.clear();
    }

    /// The newest effect of a key, if any is in flight.
    pub fn get(&self, database: DatabaseId, key: &[u8]) -> Option<&InFlight> {
        self.newest.get(&database)?.get(key)
    }

    /// Whether nothing is in flight.
    pub fn is_empty(&self) -> bool {
        self.pushed.is_empty()
    }

    /// How many effects are held, superseded ones included.
    pub fn len(&self) -> usize {
        self.pushed.len()
    }
}

/// Applied state with the batches in flight laid over it: what the next transaction sees.
#[derive(Debug)]
pub struct Overlaid<'a, V> {
    pub overlay: &'a Overlay,
    pub applied: &'a V,
    /// Effects in flight that expire at this time or before are seen as absent. Milliseconds since
    /// the Unix epoch. The applied view does the same for its own.
    pub now_ms: u64,
}

impl<V: View> View for Overlaid<'_, V> {
    type Error = V::Error;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, V::Error> {
        match self.overlay.get(database, key) {
            Some(in_flight) => Ok(in_flight
                .present(self.now_ms)
                .map(|(versionstamp, value)| Stored { versionstamp, value: value.clone() })),
            None => self.applied.get(database, key),
        }
    }

    fn version(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Versionstamp>, V::Error> {
        match self.overlay.get(database, key) {
            Some(in_flight) => {
                Ok(in_flight.present(self.now_ms).map(|(versionstamp, _)| versionstamp))
            }
            None => self.applied.version(database, key),
        }
    }
}

#[cfg(test)]
mod tests;
