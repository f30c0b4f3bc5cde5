//! The engine in memory, with crashes that keep what a disk would have kept.

use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::{Condvar, Mutex};

use crate::engine::{Operation, Visit};
use crate::{
    Durability, Effort, Engine, EngineSnapshot, Forgotten, Scan, Scanned, StorageError, WriteBatch,
};

type Family = BTreeMap<Vec<u8>, Bytes>;
/// Family, key and value, or none where the key was deleted.
type Written = (String, Vec<u8>, Option<Bytes>);
type Families = BTreeMap<String, Arc<Family>>;

/// The in-memory twin of [`crate::RocksEngine`]: the same answers, and after
/// [`MemoryEngine::crash`] only what a disk kept. For tests and simulations.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    inner: Mutex<Inner>,
    syncs: Mutex<Syncs>,
    released: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    live: Families,
    durable: Families,
    /// Logged writes since the last sync, oldest first.
    unsynced: Vec<Vec<Written>>,
    /// Unlogged writes to each family since it was last flushed, oldest first.
    unflushed: BTreeMap<String, Vec<Vec<Written>>>,
    forgotten: HashMap<String, Arc<Forgotten>>,
}

/// The faults that tests put into [`Engine::sync`].
#[derive(Debug, Default)]
struct Syncs {
    held: bool,
    /// How many wait meanwhile.
    waiting: usize,
    broken: bool,
}

impl MemoryEngine {
    /// The engine that the next process finds after this one lost power: everything durable, and of
    /// the rest the part that had reached the disk by itself, drawn from `seed`:
    /// - Logged writes lie in files of RocksDB's write-ahead log, which reach the disk
    ///   independently: each file keeps a beginning, and a later one may have kept what comes after
    ///   a hole. A record that was torn fails its checksum and is gone whole
    ///   (`a_torn_end_of_the_log_is_cut_off_wherever_it_was_torn`), so a write batch is there or
    ///   not.
    /// - Families of state may have been flushed at any time, each for itself: state may be ahead
    ///   of the log that it was made from.
    pub fn crash(&self, seed: u64) -> Self {
        let inner = self.inner.lock();
        let (mut durable, mut draw) = (inner.durable.clone(), Draw(seed));
        let mut files = inner.unsynced.as_slice();
        while !files.is_empty() {
            let (file, rest) = files.split_at(1 + draw.below(files.len()));
            redo(&mut durable, file.iter().take(draw.up_to(file.len())));
            files = rest;
        }
        for writes in inner.unflushed.values() {
            redo(&mut durable, writes.iter().take(draw.up_to(writes.len())));
        }
        Self::after_crash(durable)
    }

    /// As [`MemoryEngine::crash`], where the disk had got to nothing by itself.
    pub fn crash_to_what_is_durable(&self) -> Self {
        Self::after_crash(self.inner.lock().durable.clone())
    }

    fn after_crash(durable: Families) -> Self {
        let inner = Inner { live: durable.clone(), durable, ..Inner::default() };
        Self { inner: Mutex::new(inner), ..Self::default() }
    }

    /// How many logged writes a crash could still lose.
    pub fn unsynced_writes(&self) -> usize {
        self.inner.lock().unsynced.len()
    }

    /// From now on a sync does not end, as on a disk that stalls, until
    /// [`MemoryEngine::release_syncs`].
    pub fn hold_syncs(&self) {
        self.syncs.lock().held = true;
    }

    /// How many syncs wait for [`MemoryEngine::release_syncs`]: what is written from now on is no
    /// part of them.
    pub fn held_syncs(&self) -> usize {
        self.syncs.lock().waiting
    }

    pub fn release_syncs(&self) {
        self.syncs.lock().held = false;
        self.released.notify_all();
    }

    /// From now on every sync fails.
    pub fn break_syncs(&self) {
        self.syncs.lock().broken = true;
    }
}

/// Numbers from a seed (splitmix64).
struct Draw(u64);

impl Draw {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `bound`, exclusive.
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % (bound.max(1) as u64)).unwrap_or(0)
    }

    /// From 0 to `bound`; one time in four each: nothing, and all.
    fn up_to(&mut self, bound: usize) -> usize {
        match self.below(4) {
            0 => 0,
            1 => bound,
            _ => self.below(bound + 1),
        }
    }
}

fn redo<'a>(families: &mut Families, writes: impl Iterator<Item = &'a Vec<Written>>) {
    for (family, key, value) in writes.flatten() {
        put(families, family, key, value.as_ref());
    }
}

fn put(families: &mut Families, family: &str, key: &[u8], value: Option<&Bytes>) {
    let Some(family) = families.get_mut(family) else { return };
    let family = Arc::make_mut(family);
    match value {
        Some(value) => drop(family.insert(key.to_vec(), value.clone())),
        None => drop(family.remove(key)),
    }
}

fn get(families: &Families, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
    let family = families.get(family).ok_or_else(|| StorageError::NoFamily(family.to_owned()))?;
    Ok(family.get(key).cloned())
}

fn scan(
    families: &Families,
    family: &str,
    scan: Scan<'_>,
    visit: Visit<'_>,
) -> Result<(), StorageError> {
    let family = families.get(family).ok_or_else(|| StorageError::NoFamily(family.to_owned()))?;
    if scan.start >= scan.end {
        return Ok(());
    }
    let range = family.range::<[u8], _>((Bound::Included(scan.start), Bound::Excluded(scan.end)));
    let step = |(key, value): (&Vec<u8>, &Bytes)| match visit(key, value) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(()),
    };
    // An `Err` only says that the visitor had enough.
    let _stopped: Result<(), ()> =
        if scan.reverse { range.rev().try_for_each(step) } else { { range }.try_for_each(step) };
    Ok(())
}

impl Engine for MemoryEngine {
    fn create_family(&self, family: &str) -> Result<(), StorageError> {
        let mut inner = self.inner.lock();
        inner.live.entry(family.to_owned()).or_default();
        inner.durable.entry(family.to_owned()).or_default();
        Ok(())
    }

    fn drop_family(&self, family: &str) -> Result<(), StorageError> {
        let mut inner = self.inner.lock();
        inner.live.remove(family);
        inner.durable.remove(family);
        inner.unflushed.remove(family);
        Ok(())
    }

    fn families(&self) -> Vec<String> {
        self.inner.lock().live.keys().cloned().collect()
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        get(&self.inner.lock().live, family, key)
    }

    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        self.get(family, key).map(Some)
    }

    fn scan(&self, family: &str, range: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        let families = self.inner.lock().live.clone();
        scan(&families, family, range, visit)
    }

    fn write(&self, batch: WriteBatch, durability: Durability) -> Result<(), StorageError> {
        let mut inner = self.inner.lock();
        let mut written = Vec::new();
        for operation in batch.operations {
            let (family, key, value) = match operation {
                Operation::Put { family, key, value } => (family, key, Some(value)),
                Operation::Delete { family, key } => (family, key, None),
                Operation::DeleteRange { family, start, end } => {
                    let keys = inner.live.get(family.as_ref());
                    let keys: Vec<_> = keys
                        .into_iter()
                        .flat_map(|keys| keys.range(start.clone()..end.clone()))
                        .collect();
                    let keys: Vec<_> = keys.into_iter().map(|(key, _)| key.clone()).collect();
                    for key in keys {
                        put(&mut inner.live, &family, &key, None);
                        written.push((family.to_string(), key, None));
                    }
                    continue;
                }
            };
            if !inner.live.contains_key(family.as_ref()) {
                return Err(StorageError::NoFamily(family.to_string()));
            }
            put(&mut inner.live, &family, &key, value.as_ref());
            written.push((family.to_string(), key, value));
        }
        match durability {
            Durability::Logged => inner.unsynced.push(written),
            Durability::Unlogged => {
                // A family is flushed by itself, so what was written together to several is not
                // kept together.
                let mut by_family: BTreeMap<String, Vec<Written>> = BTreeMap::new();
                for write in written {
                    by_family.entry(write.0.clone()).or_default().push(write);
                }
                for (family, writes) in by_family {
                    inner.unflushed.entry(family).or_default().push(writes);
                }
            }
        }
        Ok(())
    }

    /// A crash may keep what was not synced, or lose it.
    fn write_out(&self) -> Result<(), StorageError> {
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        // Later writes are not part of this sync.
        let written = self.inner.lock().unsynced.len();
        {
            let mut syncs = self.syncs.lock();
            syncs.waiting += 1;
            while syncs.held {
                self.released.wait(&mut syncs);
            }
            syncs.waiting -= 1;
            if syncs.broken {
                return Err(StorageError::Engine("IO error: fsync: Input/output error".to_owned()));
            }
        }
        let mut inner = self.inner.lock();
        let written = written.min(inner.unsynced.len());
        let synced: Vec<_> = inner.unsynced.drain(..written).collect();
        redo(&mut inner.durable, synced.iter());
        Ok(())
    }

    fn flush(&self, family: &str) -> Result<(), StorageError> {
        let mut inner = self.inner.lock();
        let live = inner
            .live
            .get(family)
            .cloned()
            .ok_or_else(|| StorageError::NoFamily(family.to_owned()))?;
        inner.durable.insert(family.to_owned(), live);
        inner.unflushed.remove(family);
        Ok(())
    }

    fn snapshot(&self) -> Arc<dyn EngineSnapshot> {
        Arc::new(MemorySnapshot { families: self.inner.lock().live.clone() })
    }

    fn open_snapshots(&self) -> u64 {
        // They keep what they show, and nothing of the engine's.
        0
    }

    fn forgotten(&self, family: &str) -> Arc<Forgotten> {
        Arc::clone(self.inner.lock().forgotten.entry(family.to_owned()).or_default())
    }

    fn compact_range(
        &self,
        family: &str,
        start: &[u8],
        end: &[u8],
        _paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        // As RocksDB does, which writes its memtables out before.
        self.flush(family)?;
        let filter = self.forgotten(family).filter();
        let mut inner = self.inner.lock();
        let Inner { live, durable, .. } = &mut *inner;
        for families in [live, durable] {
            let Some(rows) = families.get_mut(family) else { continue };
            Arc::make_mut(rows).retain(|key, value| {
                let is_inside = start <= key.as_slice() && key.as_slice() < end;
                !(is_inside && filter.drops(key, value))
            });
        }
        Ok(())
    }
}

struct MemorySnapshot {
    families: Families,
}

impl EngineSnapshot for MemorySnapshot {
    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        get(&self.families, family, key)
    }

    fn get_cached(&self, family: &str, key: &[u8]) -> Result<Option<Option<Bytes>>, StorageError> {
        self.get(family, key).map(Some)
    }

    fn scan_some(
        &self,
        family: &str,
        range: Scan<'_>,
        _effort: Effort,
        visit: Visit<'_>,
    ) -> Result<Scanned, StorageError> {
        scan(&self.families, family, range, visit)?;
        Ok(Scanned::All)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Two logged writes are durable, eight are not; four unlogged ones lie in a family of their
    /// own.
    fn engine() -> MemoryEngine {
        let engine = MemoryEngine::default();
        let (log, state): (Arc<str>, Arc<str>) = ("log".into(), "state".into());
        engine.create_family(&log).unwrap();
        engine.create_family(&state).unwrap();
        for number in 0..10u8 {
            let mut batch = WriteBatch::default();
            batch.put(&log, vec![number], vec![number]);
            batch.put(&log, vec![100 + number], vec![number]);
            engine.write(batch, Durability::Logged).unwrap();
            if number == 1 {
                engine.sync().unwrap();
            }
        }
        for number in 0..4u8 {
            let mut batch = WriteBatch::default();
            batch.put(&state, b"last".to_vec(), vec![number]);
            engine.write(batch, Durability::Unlogged).unwrap();
        }
        engine
    }

    fn kept(engine: &MemoryEngine) -> Vec<u8> {
        (0..10u8).filter(|number| engine.get("log", &[*number]).unwrap().is_some()).collect()
    }

    #[test]
    fn a_crash_loses_what_a_disk_may_lose_and_nothing_else() {
        let engine = engine();
        let (mut logs, mut states) = (BTreeSet::new(), BTreeSet::new());
        for seed in 0..500 {
            let after = engine.crash(seed);
            let log = kept(&after);
            assert!(log.starts_with(&[0, 1]), "synced writes are gone: {log:?}");
            let twins =
                (0..10u8).filter(|number| after.get("log", &[100 + number]).unwrap().is_some());
            assert_eq!(log, twins.collect::<Vec<_>>(), "half of a batch");
            assert_eq!(log, kept(&engine.crash(seed)), "not what the seed says");
            states.insert(after.get("state", b"last").unwrap().map(|value| value[0]));
            logs.insert(log);
        }
        assert!(
            logs.contains([0, 1].as_slice())
                && logs.contains((0..10).collect::<Vec<u8>>().as_slice())
        );
        assert!(
            logs.iter().any(|log| log.windows(2).any(|pair| pair[0] + 1 != pair[1])),
            "no hole was drawn"
        );
        assert_eq!(states.len(), 5, "state is flushed at any time, or never: {states:?}");
    }
}
