//! The state of one shard on one node.
//!
//! What must hold: the rows and the applied position change in one write; sequences are contiguous;
//! a read shows one moment, and waits for no writer's disk.
//!
//! | file | what it holds |
//! |---|---|
//! | `applied` | what a state reflects, and how it goes on |
//! | `reading` | reads of one moment |
//! | `replacing` | snapshots, and another state in the place of this one |
//! | `shipped` | batches that are applied outside of any Raft group |
//! | `log_readers` | readers of what is applied |
//! | `dropped` | databases that were dropped |
//! | `mark` | what is waited for |

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use meridian_proto::{DecodedBatch, decode_request, encode_request, log};
use meridian_txn::{Stored, View};
use meridian_types::{
    DatabaseId, Effect, Entry, Epoch, Position, ReadRange, Refusal, RequestId, ShardId,
    Versionstamp, WriteOutcome,
};
use parking_lot::{Mutex, MutexGuard, RwLock};
use prost::Message;

use crate::digest::RecentDigests;
use crate::schema::{self, APPLIED_KEY, META_FAMILY, StoredValue};
use crate::state_read::{ReadView, StateRead, Turn, first_key, is_point};
use crate::{
    Digest, Durability, Engine, EngineSnapshot, Refusals, Scan, StagedState, StateSnapshot,
    StorageError, WriteBatch,
};

mod dropped;
mod log_readers;
mod mark;
mod shipped;

use log_readers::LogReaders;
pub use log_readers::LogSubscription;
pub use mark::AppliedMark;

/// A snapshot, the state's family, and the row of what exactly the snapshot reflects.
type Moment = (Arc<dyn EngineSnapshot>, Arc<str>, Option<Bytes>);

/// What a shard's state on one node reflects.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    pub position: Position,
    /// The leader's time of the last batch, in milliseconds since the Unix epoch.
    pub time_ms: u64,
    /// Encoded batches since the shard was made, in bytes.
    pub total_bytes: u64,
    /// Transactions since the shard was made.
    pub total_transactions: u64,
    /// Of all batches up to the position: the same on every node that applied the same.
    pub digest: Digest,
    pub raft: RaftApplied,
}

/// Raft's part of [`Applied`]: empty on a follower in a replica region.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RaftApplied {
    /// Of the Raft group that the rest belongs to. To the group of another epoch it means nothing.
    pub epoch: Option<Epoch>,
    pub log_id: Option<log::LogId>,
    pub membership: Option<log::StoredMembership>,
}

impl Applied {
    fn nothing() -> Self {
        Self {
            position: Position::ZERO,
            time_ms: 0,
            total_bytes: 0,
            total_transactions: 0,
            digest: Digest::default(),
            raft: RaftApplied::default(),
        }
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        log::Applied {
            epoch: self.position.epoch.0.into(),
            sequence: self.position.sequence,
            time_ms: self.time_ms,
            log_id: self.raft.log_id,
            membership: self.raft.membership.clone(),
            total_bytes: self.total_bytes,
            raft_epoch: self.raft.epoch.map_or(0, |epoch| epoch.0.into()),
            total_transactions: self.total_transactions,
            digest: self.digest.0,
        }
        .encode_to_vec()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, StorageError> {
        let corrupt = |detail: &dyn ToString| {
            StorageError::corruption("an applied position", detail.to_string())
        };
        let wire = log::Applied::decode(bytes).map_err(|error| corrupt(&error))?;
        let epoch = |number| u16::try_from(number).map(Epoch).map_err(|error| corrupt(&error));
        let position = Position::new(epoch(wire.epoch)?, wire.sequence);
        let raft_epoch = match wire.raft_epoch {
            // Written before epochs changed, when a group had the epoch of its batches.
            0 => wire.log_id.map(|_| position.epoch),
            number => Some(epoch(number)?),
        };
        Ok(Self {
            position,
            time_ms: wire.time_ms,
            total_bytes: wire.total_bytes,
            total_transactions: wire.total_transactions,
            digest: Digest(wire.digest),
            raft: RaftApplied {
                epoch: raft_epoch,
                log_id: wire.log_id,
                membership: wire.membership,
            },
        })
    }

    /// Adds the next batch. It may be the first of a later epoch.
    ///
    /// # Panics
    /// When the batch is not the next: going on would lose or reorder commits, so the process
    /// stops.
    pub fn advance(&mut self, DecodedBatch { batch, len, checksum }: &DecodedBatch) {
        assert!(
            batch.position.sequence == self.position.sequence + 1
                && batch.position.epoch >= self.position.epoch,
            "batch {} cannot follow {}: sequences are contiguous, epochs do not go back",
            batch.position,
            self.position
        );
        self.position = batch.position;
        self.digest = self.digest.with(batch.position, *checksum);
        self.time_ms = self.time_ms.max(batch.time_ms);
        self.total_bytes += *len as u64;
        self.total_transactions += batch.transactions.len() as u64;
    }
}

/// What a snapshot may take the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// A state that is not newer.
    Older,
    /// Any state: the one in use has left the shard's history, beyond the base of a later epoch.
    Any,
}

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

/// A value that was to expire at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expired {
    pub expire_at_ms: u64,
    pub database: DatabaseId,
    pub key: Bytes,
    /// Whether that value is still the one stored.
    pub is_current: bool,
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

    /// What the state in use reflects, without opening it: it may be open already.
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
    pub fn shown(&self) -> u64 {
        self.current.read().writing
    }

    /// Where the state stands, and what all batches up to there come to.
    pub fn checkpoint(&self) -> (Position, Digest) {
        let current = self.current.read();
        (current.applied.position, current.applied.digest)
    }

    /// What all batches up to `position` come to, if it was applied not long ago.
    pub fn digest_at(&self, position: Position) -> Option<Digest> {
        self.current.read().digests.at(position)
    }

    /// What others sent of this shard, and this node did not store.
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
        if readers.is_empty() || batches.is_empty() {
            return Ok(());
        }
        let _in_order = self.log_readers.in_order();
        drop(changing);
        for reader in readers {
            reader(batches);
        }
        Ok(())
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

    /// What became of a write with this id, if that is remembered.
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

    /// Begins a read of all ranges from one state. What has expired at `now_ms` (or at the time of
    /// the state's last batch, if that is later) is left out. It delays no writer, and no writer
    /// delays it.
    pub fn begin_read(
        &self,
        database: DatabaseId,
        ranges: Vec<ReadRange>,
        now_ms: u64,
    ) -> Result<StateRead, StorageError> {
        let (snapshot, family, applied) = self.at_one_moment()?;
        Self::read_of(snapshot, family, applied, database, ranges, now_ms)
    }

    fn read_of(
        snapshot: Arc<dyn EngineSnapshot>,
        family: Arc<str>,
        applied: Option<Bytes>,
        database: DatabaseId,
        ranges: Vec<ReadRange>,
        now_ms: u64,
    ) -> Result<StateRead, StorageError> {
        let applied = applied.map_or_else(|| Ok(Applied::nothing()), Applied::decode)?;
        let now_ms = now_ms.max(applied.time_ms);
        Ok(StateRead::new((snapshot, family), applied.position, database, ranges, now_ms))
    }

    /// The same in one go, whatever it takes: for states that are known to be small.
    pub fn read(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
        now_ms: u64,
    ) -> Result<ReadView, StorageError> {
        loop {
            let mut read = self.begin_read(database, ranges.to_vec(), now_ms)?;
            let done = loop {
                match read.turn(usize::MAX) {
                    Ok(Turn::Done) => break true,
                    Ok(Turn::More | Turn::Full) => {}
                    Err(StorageError::NoFamily(_)) => break false,
                    Err(error) => return Err(error),
                }
            };
            if done {
                return Ok(read.into_view(()));
            }
        }
    }

    /// A read that takes some microseconds, since it is small and needs no disk. `None` says
    /// nothing about the state.
    pub fn read_cached(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
        now_ms: u64,
    ) -> Result<Option<ReadView>, StorageError> {
        if let [range] = ranges
            && let Some(key) = first_key(range)
            && let Some(view) = self.read_key(database, range, key, now_ms)?
        {
            return Ok(Some(view));
        }
        let family = Arc::clone(&self.current.read().family);
        let snapshot = self.engine.snapshot();
        let read = snapshot.get_cached(&family, APPLIED_KEY).and_then(|applied| match applied {
            None => Ok(None),
            Some(applied) => {
                Self::read_of(snapshot, family, applied, database, ranges.to_vec(), now_ms)?
                    .at_once()
            }
        });
        match read {
            Err(StorageError::NoFamily(_)) => Ok(None),
            read => read,
        }
    }

    /// Answers a range by its first key, without a snapshot, if that key is enough and can be had
    /// without a disk.
    fn read_key(
        &self,
        database: DatabaseId,
        range: &ReadRange,
        key: &Bytes,
        now_ms: u64,
    ) -> Result<Option<ReadView>, StorageError> {
        let (family, position, time_ms) = {
            let current = self.current.read();
            (Arc::clone(&current.family), current.applied.position, current.applied.time_ms)
        };
        let value = match self.engine.get_cached(&family, &schema::data_key(database, key)) {
            Ok(Some(value)) => value,
            Ok(None) | Err(StorageError::NoFamily(_)) => return Ok(None),
            Err(error) => return Err(error),
        };
        let view = |entries| Ok(Some(ReadView { ranges: vec![entries], position }));
        // The applier may have written since, and the engine shows that before `current` does. What
        // was written by `position` is the newest of that one; anything else is of a moment whose
        // time is not known here. So is what is not there, unless nothing was being written: a
        // later batch may have deleted it.
        let entry = match value {
            None if self.shown() != position.sequence => return Ok(None),
            None => None,
            Some(value) => {
                let StoredValue { versionstamp, expire_at_ms, value } = StoredValue::decode(value)?;
                if versionstamp.position().sequence > position.sequence {
                    return Ok(None);
                }
                let is_live = !schema::is_expired(expire_at_ms, now_ms.max(time_ms));
                is_live.then(|| Entry { key: key.clone(), value, versionstamp })
            }
        };
        match entry {
            Some(entry) => view(vec![entry]),
            None if is_point(range) => view(Vec::new()),
            None => Ok(None),
        }
    }

    /// The present state, of one moment: its rows and what was applied change in one write.
    fn at_one_moment(&self) -> Result<Moment, StorageError> {
        self.in_family(|family| {
            let snapshot = self.engine.snapshot();
            let applied = snapshot.get(family, APPLIED_KEY)?;
            Ok((snapshot, Arc::clone(family), applied))
        })
    }

    /// What expires at or before `now_ms`, oldest first, at most `limit`.
    pub fn expired(&self, now_ms: u64, limit: usize) -> Result<Vec<Expired>, StorageError> {
        let (snapshot, family, _) = self.at_one_moment()?;
        let mut rows = Vec::new();
        let (start, end) = (schema::expiry_range().0, schema::expiry_bound(now_ms));
        snapshot.scan(
            &family,
            Scan { start: &start, end: &end, reverse: false },
            &mut |key, value| {
                rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
                if rows.len() >= limit { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            },
        )?;
        let resolve = |(key, value): (Bytes, Bytes)| {
            let corrupt = || StorageError::corruption("an expiry row", format!("{key:?}"));
            let (expire_at_ms, database, user_key) =
                schema::parse_expiry_key(&key).ok_or_else(corrupt)?;
            let stored = snapshot.get(&family, &schema::data_key(database, &user_key))?;
            let stamp = stored
                .map(|bytes| StoredValue::header(&bytes).map(|(stamp, _, _)| stamp))
                .transpose()?;
            let is_current = stamp.is_some_and(|stamp| stamp.0 == value.as_ref());
            Ok(Expired { expire_at_ms, database, key: user_key, is_current })
        };
        rows.into_iter().map(resolve).collect()
    }

    /// The whole state at one moment, to be sent to another node. It waits for no change of the
    /// state.
    pub fn snapshot(&self) -> Result<StateSnapshot, StorageError> {
        let (snapshot, family, applied) = self.at_one_moment()?;
        let applied = applied.map_or_else(|| Ok(Applied::nothing()), Applied::decode)?;
        Ok(StateSnapshot::new(snapshot, family, applied))
    }

    /// An empty state beside the one in use, to be filled with the rows of a snapshot.
    pub fn stage(&self) -> Result<StagedState, StorageError> {
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        StagedState::new(
            Arc::clone(&self.engine),
            schema::state_family(self.shard, generation).into(),
        )
    }

    /// Replaces the state by a staged one, atomically and durably: after a crash it is the old or
    /// the new. `raft` is the position in this node's own Raft group, if it is in one: that of the
    /// snapshot's sender means nothing here. Blocks while the new state is flushed and named;
    /// readers see the old one until then.
    ///
    /// # Errors
    /// [`StorageError::Incomplete`], or [`StorageError::Stale`] if it may not replace the one in
    /// use.
    pub fn install(
        &self,
        staged: StagedState,
        raft: RaftApplied,
        replace: Replace,
    ) -> Result<Applied, StorageError> {
        let _changing = self.changing.lock();
        let applied = Applied { raft, ..staged.applied()? };
        let mut writes = WriteBatch::default();
        writes.put(staged.family()?, APPLIED_KEY.to_vec(), applied.encode());
        self.engine.write(writes, Durability::Unlogged)?;
        self.engine.flush(staged.family()?)?;
        let here = self.position();
        if replace == Replace::Older && applied.position < here {
            return Err(StorageError::Stale { snapshot: applied.position, state: here });
        }
        let family = staged.take()?;
        dropped::forget(&*self.engine, &family)?;
        let mut name = WriteBatch::default();
        name.put(
            &META_FAMILY.into(),
            schema::current_family_key(self.shard),
            family.as_bytes().to_vec(),
        );
        self.engine.write(name, Durability::Logged)?;
        // Until it is durable the old state is read: a crash may bring that back.
        self.engine.sync()?;
        let old =
            std::mem::replace(&mut *self.current.write(), Current::new(family, applied.clone()));
        self.engine.drop_family(&old.family)?;
        Ok(applied)
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
            let (start, end) = schema::data_range(database);
            writes.delete_range(family, start, end);
            writes.put(family, schema::dropped_key(database), versionstamp.0.to_vec());
        }
    }
}

/// The state as transactions see it at a moment: what has expired by then is absent.
pub struct StateAt<'a> {
    state: &'a ShardState,
    now_ms: u64,
}

impl ShardState {
    pub fn at(&self, now_ms: u64) -> StateAt<'_> {
        StateAt { state: self, now_ms }
    }
}

impl View for StateAt<'_> {
    type Error = StorageError;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, StorageError> {
        let key = schema::data_key(database, key);
        let bytes = self.state.in_family(|family| self.state.engine.get(family, &key))?;
        let Some(stored) = bytes.map(StoredValue::decode).transpose()? else { return Ok(None) };
        if schema::is_expired(stored.expire_at_ms, self.now_ms) {
            return Ok(None);
        }
        Ok(Some(Stored { versionstamp: stored.versionstamp, value: stored.value }))
    }
}

#[cfg(test)]
mod tests;
