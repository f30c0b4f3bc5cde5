use std::collections::{BTreeMap, HashMap};
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::engine::{Operation, Visit};
use crate::{Durability, Engine, EngineSnapshot, Forgotten, Scan, StorageError, WriteBatch};

type Family = BTreeMap<Vec<u8>, Bytes>;
/// Family, key and value, or none where the key was deleted.
type Written = (String, Vec<u8>, Option<Bytes>);
type Families = BTreeMap<String, Arc<Family>>;

/// The in-memory twin of [`crate::RocksEngine`]: the same answers, and after [`MemoryEngine::crash`] only
/// what was durable. For tests and simulations.
#[derive(Debug, Default)]
pub struct MemoryEngine {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: Families,
    durable: Families,
    /// Logged writes since the last sync, oldest first.
    unsynced: Vec<Vec<Written>>,
    forgotten: HashMap<String, Arc<Forgotten>>,
}

impl MemoryEngine {
    /// What a process finds that starts after this one lost power: everything durable, and of the logged
    /// writes that were not synced the oldest `kept` (the disk may have got to them by itself).
    pub fn crash(&self, kept: usize) -> Self {
        let inner = self.inner.lock();
        let mut durable = inner.durable.clone();
        for write in inner.unsynced.iter().take(kept) {
            for (family, key, value) in write {
                put(&mut durable, family, key, value.as_ref());
            }
        }
        Self { inner: Mutex::new(Inner { live: durable.clone(), durable, ..Inner::default() }) }
    }

    /// How many logged writes a crash could still lose.
    pub fn unsynced_writes(&self) -> usize {
        self.inner.lock().unsynced.len()
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

fn scan(families: &Families, family: &str, scan: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
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
        Ok(())
    }

    fn families(&self) -> Vec<String> {
        self.inner.lock().live.keys().cloned().collect()
    }

    fn get(&self, family: &str, key: &[u8]) -> Result<Option<Bytes>, StorageError> {
        get(&self.inner.lock().live, family, key)
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
                    let keys: Vec<_> =
                        keys.into_iter().flat_map(|keys| keys.range(start.clone()..end.clone())).collect();
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
        if durability == Durability::Logged {
            inner.unsynced.push(written);
        }
        Ok(())
    }

    fn sync(&self) -> Result<(), StorageError> {
        let mut inner = self.inner.lock();
        for write in std::mem::take(&mut inner.unsynced) {
            for (family, key, value) in write {
                put(&mut inner.durable, &family, &key, value.as_ref());
            }
        }
        Ok(())
    }

    fn flush(&self, family: &str) -> Result<(), StorageError> {
        let mut inner = self.inner.lock();
        let live = inner.live.get(family).cloned().ok_or_else(|| StorageError::NoFamily(family.to_owned()))?;
        inner.durable.insert(family.to_owned(), live);
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

    fn scan(&self, family: &str, range: Scan<'_>, visit: Visit<'_>) -> Result<(), StorageError> {
        scan(&self.families, family, range, visit)
    }
}
