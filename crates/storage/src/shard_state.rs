//! The state of one shard on one node.
//!
//! Invariants: the rows and the applied position change in one write; sequences are contiguous; a
//! read shows one moment, and waits for no writer's disk.
//!
//! | file | what it holds |
//! |---|---|
//! | `applied` | what a state reflects, and how it goes on |
//! | `reading` | reads of one moment |
//! | `queues` | messages, dead letters, and how many they are |
//! | `replacing` | snapshots, and another state in the place of this one |
//! | `shipped` | batches that are applied outside of any Raft group |
//! | `log_readers` | readers of what is applied |
//! | `dropped` | databases that were dropped |
//! | `mark` | what is waited for |

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use meridian_proto::{DecodedBatch, decode_request, encode_request};
use meridian_types::{
    DatabaseId, Effect, Position, Refusal, RequestId, ShardId, Versionstamp, WriteOutcome,
};
use parking_lot::{Mutex, MutexGuard, RwLock};

use crate::digest::RecentDigests;
use crate::schema::{self, APPLIED_KEY, META_FAMILY, StoredValue};
use crate::{Digest, Durability, Engine, Refusals, StorageError, WriteBatch};

mod applied;
mod dropped;
mod log_readers;
mod mark;
mod measuring;
mod queues;
mod reading;
mod replacing;
mod shipped;

pub use applied::{Applied, RaftApplied};
use log_readers::{LogReaders, Reader};
pub use log_readers::{LogSubscription, StateChange};
pub use mark::AppliedMark;
pub use measuring::StoredSize;
pub use queues::QueuedMessage;
pub use reading::{Expired, StateAt};
pub use replacing::Replace;

/// The state of one shard on one node: what all batches up to [`Applied::position`] have written.
pub struct ShardState {
    engine: Arc<dyn Engine>,
    shard: ShardId,
    /// Changed in a moment, when the engine has what it says. It is not held while the engine is
    /// asked for anything that may need the disk.
    current: RwLock<Current>,
    /// Held while the state changes: what is applied and what takes its place keep out of each
    /// other's way, and readers wait for neither's disk.
    changing: Mutex<()>,
    /// Of the next staged state: no two share a family.
    next_generation: AtomicU64,
    in_place: Mutex<()>,
    log_readers: LogReaders,
    refusals: Refusals,
}

/// The requests that a state had at a moment, see [`ShardState::requests_so_far`].
#[derive(Debug, Clone)]
pub struct RequestsSoFar {
    family: Arc<str>,
    sequence: u64,
}

struct Current {
    family: Arc<str>,
    applied: Applied,
    /// The newest sequence that the engine may show: it is raised before the engine has it, and
    /// `applied` after.
    writing: u64,
    digests: RecentDigests,
}

impl Current {
    fn new(family: Arc<str>, applied: Applied) -> Self {
        let digests = RecentDigests::starting_at(applied.position, applied.digest);
        Self { family, writing: applied.position.sequence, applied, digests }
    }
}

impl ShardState {
    /// Opens the state in use; state families that a crash left half installed are dropped.
    ///
    /// # Errors
    /// When the engine fails or the applied position is corrupt.
    pub fn open(engine: Arc<dyn Engine>, shard: ShardId) -> Result<Self, StorageError> {
        engine.create_family(META_FAMILY)?;
        let generation = current_generation(&*engine, shard)?;
        for family in engine.families() {
            if schema::parse_state_family(&family)
                .is_some_and(|(of, other)| of == shard && other != generation)
            {
                engine.drop_family(&family)?;
            }
        }
        let family: Arc<str> = schema::state_family(shard, generation).into();
        engine.create_family(&family)?;
        let applied = applied_in(&*engine, &family)?;
        dropped::forget(&*engine, &family)?;
        Ok(Self {
            engine,
            shard,
            current: RwLock::new(Current::new(family, applied)),
            changing: Mutex::default(),
            next_generation: AtomicU64::new(generation + 1),
            in_place: Mutex::default(),
            log_readers: LogReaders::default(),
            refusals: Refusals::default(),
        })
    }

    /// The position and marks of the state in use, read without opening it: it may be open already.
    pub fn read_applied(engine: &dyn Engine, shard: ShardId) -> Result<Applied, StorageError> {
        engine.create_family(META_FAMILY)?;
        match applied_in(engine, &schema::state_family(shard, current_generation(engine, shard)?)) {
            // Never opened.
            Err(StorageError::NoFamily(_)) => Ok(Applied::nothing()),
            applied => applied,
        }
    }

    pub fn shard(&self) -> ShardId {
        self.shard
    }

    pub fn engine(&self) -> &Arc<dyn Engine> {
        &self.engine
    }

    pub fn applied(&self) -> Applied {
        self.current.read().applied.clone()
    }

    pub fn position(&self) -> Position {
        self.current.read().applied.position
    }

    /// The leader's time of the last batch that was applied, see [`Applied::time_ms`].
    pub fn time_ms(&self) -> u64 {
        self.current.read().applied.time_ms
    }

    /// The newest sequence that a read may have shown by now. While a batch takes effect that is a
    /// sequence which [`ShardState::position`] does not say yet: a reader that is to see no less
    /// than others have seen waits for it.
    pub fn max_served(&self) -> u64 {
        self.current.read().writing
    }

    /// Where the state stands, and what all batches up to there come to.
    pub fn checkpoint(&self) -> (Position, Digest) {
        let current = self.current.read();
        (current.applied.position, current.applied.digest)
    }

    /// The digest of all batches up to `position`, if that was applied not long ago.
    pub fn digest_at(&self, position: Position) -> Option<Digest> {
        self.current.read().digests.at(position)
    }

    /// The batches of this shard that other nodes sent and this node refused to store.
    pub fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Applies batches, and takes over Raft's position, in one write.
    /// Readable on return; durable after [`ShardState::flush`].
    ///
    /// # Panics
    /// When sequences are not contiguous, see [`Applied::advance`].
    pub fn apply(&self, batches: &[DecodedBatch], raft: RaftApplied) -> Result<(), StorageError> {
        let changing = self.changing.lock();
        let (family, mut applied) = {
            let current = self.current.read();
            (Arc::clone(&current.family), current.applied.clone())
        };
        applied.raft = raft;
        let (mut writes, mut dropped) = (WriteBatch::default(), Vec::new());
        let mut digests = Vec::with_capacity(batches.len());
        for decoded in batches {
            applied.advance(decoded);
            digests.push((applied.position, applied.digest));
            for (versionstamp, transaction) in decoded.batch.iter() {
                let request = encode_request(versionstamp, transaction.refusal.as_ref());
                writes.put(&family, schema::request_key(transaction.request_id), request);
                for effect in &transaction.effects {
                    if *effect == Effect::DropDatabase {
                        dropped.push(transaction.database);
                    }
                    write_effect(&mut writes, &family, transaction.database, versionstamp, effect);
                }
            }
        }
        writes.put(&family, APPLIED_KEY.to_vec(), applied.encode());
        writes.sort();
        self.current.write().writing = applied.position.sequence;
        self.engine.write(writes, Durability::Unlogged)?;
        if !dropped.is_empty() {
            self.engine.forgotten(&family).databases(dropped);
        }
        let mut current = self.current.write();
        current.applied = applied;
        for (position, digest) in digests {
            current.digests.push(position, digest);
        }
        let readers = self.log_readers.present();
        drop(current);
        if !batches.is_empty() {
            self.tell(changing, readers, StateChange::Applied(batches));
        }
        Ok(())
    }

    /// Calls the readers that were present when the state changed, in the order of changes.
    fn tell(
        &self,
        changing: MutexGuard<'_, ()>,
        readers: Vec<Arc<Reader>>,
        change: StateChange<'_>,
    ) {
        let _in_order = self.log_readers.in_order();
        drop(changing);
        for reader in readers {
            reader(change);
        }
    }

    /// To be held while the log that this state is made from is cut by what is flushed of it, and
    /// while another state is put in place together with its log. The holders block, on disks.
    pub(crate) fn hold_in_place(&self) -> MutexGuard<'_, ()> {
        self.in_place.lock()
    }

    /// Makes the state durable and returns what it reflected before: a log may be purged up to
    /// there.
    pub fn flush(&self) -> Result<Applied, StorageError> {
        loop {
            let (family, applied) = {
                let current = self.current.read();
                (Arc::clone(&current.family), current.applied.clone())
            };
            match self.engine.flush(&family) {
                Ok(()) => return Ok(applied),
                // Replaced meanwhile, by a state that is durable.
                Err(StorageError::NoFamily(_))
                    if !Arc::ptr_eq(&self.current.read().family, &family) => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Reads the state in use. `current` is not held meanwhile: a read may wait for the disk, and a
    /// question for the position would wait for it behind an applier, leases among them.
    fn in_family<T>(
        &self,
        read: impl Fn(&Arc<str>) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        loop {
            let family = Arc::clone(&self.current.read().family);
            match read(&family) {
                // Replaced meanwhile.
                Err(StorageError::NoFamily(_))
                    if !Arc::ptr_eq(&self.current.read().family, &family) => {}
                result => return result,
            }
        }
    }

    /// The outcome of the write with this id, if it is remembered.
    pub fn request(&self, id: RequestId) -> Result<Option<WriteOutcome>, StorageError> {
        let row = self.in_family(|family| self.engine.get(family, &schema::request_key(id)))?;
        let Some(row) = row else { return Ok(None) };
        let (versionstamp, refusal) = decode_request(&row)
            .map_err(|error| StorageError::corruption("a request's row", error))?;
        Ok(Some(match refusal {
            None => WriteOutcome::Committed(versionstamp),
            Some(Refusal::CheckFailed(indexes)) => WriteOutcome::CheckFailed(indexes),
            Some(Refusal::Rejected(text)) => WriteOutcome::Rejected(text),
        }))
    }

    /// The requests that are in the state at present, to be forgotten at another time.
    pub fn requests_so_far(&self) -> RequestsSoFar {
        let current = self.current.read();
        RequestsSoFar {
            family: Arc::clone(&current.family),
            sequence: current.applied.position.sequence,
        }
    }

    /// The engine may forget the ids of these requests. Not where another state has taken the place
    /// of the state that had them: its sequences may be those of newer requests.
    pub fn forget_requests(&self, so_far: &RequestsSoFar) {
        let current = self.current.read();
        if Arc::ptr_eq(&current.family, &so_far.family) {
            self.engine.forgotten(&current.family).requests_through(so_far.sequence);
        }
    }
}

fn current_generation(engine: &dyn Engine, shard: ShardId) -> Result<u64, StorageError> {
    let Some(name) = engine.get(META_FAMILY, &schema::current_family_key(shard))? else {
        return Ok(0);
    };
    let parsed = std::str::from_utf8(&name).ok().and_then(schema::parse_state_family);
    let malformed = || StorageError::corruption("the name of a state family", format!("{name:?}"));
    parsed.map(|(_, generation)| generation).ok_or_else(malformed)
}

fn applied_in(engine: &dyn Engine, family: &str) -> Result<Applied, StorageError> {
    engine.get(family, APPLIED_KEY)?.map_or_else(|| Ok(Applied::nothing()), Applied::decode)
}

fn write_effect(
    writes: &mut WriteBatch,
    family: &Arc<str>,
    database: DatabaseId,
    versionstamp: Versionstamp,
    effect: &Effect,
) {
    match effect {
        Effect::Put { key, value, expire_at_ms } => {
            let stored = StoredValue::encode(versionstamp, *expire_at_ms, value);
            writes.put(family, schema::data_key(database, key), stored);
            if *expire_at_ms != 0 {
                let row = schema::expiry_key(*expire_at_ms, database, key);
                writes.put(family, row, Bytes::copy_from_slice(&versionstamp.0));
            }
        }
        Effect::Delete { key } => writes.delete(family, schema::data_key(database, key)),
        Effect::Unindex { key, expire_at_ms } => {
            writes.delete(family, schema::expiry_key(*expire_at_ms, database, key));
        }
        Effect::DropDatabase => {
            for (start, end) in dropped::ranges(database) {
                writes.delete_range(family, start, end);
            }
            writes.delete(family, schema::queue_totals_key(database));
            writes.put(family, schema::dropped_key(database), versionstamp.0.to_vec());
        }
        Effect::Queue(effect) => queues::write_effect(writes, family, database, effect),
    }
}

#[cfg(test)]
mod tests;
