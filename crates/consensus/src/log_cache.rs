//! The newest entries of all logs of this node in memory, within one bound.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use openraft::EntryPayload;
use parking_lot::{Mutex, RwLock};

use crate::type_config::Entry;

/// The newest entries of all groups of a node, kept so that replication and apply need not read
/// what was just written: together no more than a bound. Cheap to clone; clones share it.
#[derive(Clone)]
pub struct LogCache {
    shared: Arc<Shared>,
}

impl Default for LogCache {
    fn default() -> Self {
        Self::new(32 << 20)
    }
}

struct Shared {
    max_bytes: usize,
    used: AtomicUsize,
    tails: Mutex<Vec<Weak<Tail>>>,
}

impl LogCache {
    pub fn new(max_bytes: usize) -> Self {
        Self {
            shared: Arc::new(Shared {
                max_bytes,
                used: AtomicUsize::new(0),
                tails: Mutex::default(),
            }),
        }
    }

    /// The bytes of all cached batches.
    pub fn used_bytes(&self) -> usize {
        self.shared.used.load(Ordering::Relaxed)
    }

    /// An empty tail, for one log.
    pub(crate) fn tail(&self) -> Arc<Tail> {
        let tail = Arc::new(Tail {
            shared: Arc::clone(&self.shared),
            bytes: AtomicUsize::new(0),
            entries: RwLock::default(),
        });
        let mut tails = self.shared.tails.lock();
        tails.retain(|tail| tail.strong_count() > 0);
        tails.push(Arc::downgrade(&tail));
        tail
    }
}

impl Shared {
    /// Drops entries of whichever log has most, down to a little less than the bound, so that not
    /// every append does this.
    fn make_room(&self) {
        if self.used.load(Ordering::Relaxed) <= self.max_bytes {
            return;
        }
        let tails: Vec<Arc<Tail>> = self.tails.lock().iter().filter_map(Weak::upgrade).collect();
        let enough = self.max_bytes - self.max_bytes / 16;
        while self.used.load(Ordering::Relaxed) > enough
            && let Some(largest) =
                tails.iter().max_by_key(|tail| tail.bytes.load(Ordering::Relaxed))
        {
            let mut entries = largest.entries.write();
            if entries.is_empty() {
                return;
            }
            // Half of it at most: another may be the largest then.
            let keep = largest.bytes.load(Ordering::Relaxed) / 2;
            while self.used.load(Ordering::Relaxed) > enough
                && largest.bytes.load(Ordering::Relaxed) > keep
                && let Some(entry) = entries.pop_front()
            {
                largest.less(&entry);
            }
        }
    }
}

/// The newest entries of one log, contiguous.
pub(crate) struct Tail {
    shared: Arc<Shared>,
    bytes: AtomicUsize,
    entries: RwLock<VecDeque<Entry>>,
}

impl Tail {
    pub(crate) fn push(&self, new: impl IntoIterator<Item = Entry>) {
        let mut entries = self.entries.write();
        for entry in new {
            if entries.back().is_some_and(|last| last.log_id.index + 1 != entry.log_id.index) {
                self.drop_all(&mut entries);
            }
            let weight = weight(&entry);
            self.bytes.fetch_add(weight, Ordering::Relaxed);
            self.shared.used.fetch_add(weight, Ordering::Relaxed);
            entries.push_back(entry);
        }
        drop(entries);
        self.shared.make_room();
    }

    /// Keeps what comes behind `index`.
    pub(crate) fn purge_through(&self, index: u64) {
        let mut entries = self.entries.write();
        while entries.front().is_some_and(|first| first.log_id.index <= index)
            && let Some(first) = entries.pop_front()
        {
            self.less(&first);
        }
    }

    /// Keeps what comes up to `index`.
    pub(crate) fn truncate_after(&self, index: u64) {
        let mut entries = self.entries.write();
        while entries.back().is_some_and(|last| last.log_id.index > index)
            && let Some(last) = entries.pop_back()
        {
            self.less(&last);
        }
    }

    pub(crate) fn clear(&self) {
        self.drop_all(&mut self.entries.write());
    }

    /// Entries of `start..end` up to `max_bytes`, at least one, if all of them from `start` on are
    /// here.
    pub(crate) fn read(&self, start: u64, end: u64, max_bytes: usize) -> Option<Vec<Entry>> {
        let cached = self.entries.read();
        let first =
            cached.front().map(|entry| entry.log_id.index).filter(|first| *first <= start)?;
        let skip = usize::try_from(start - first).ok()?;
        let count = usize::try_from(end.saturating_sub(start)).ok()?;
        let mut bytes = 0;
        let mut entries = Vec::new();
        for entry in cached.iter().skip(skip).take(count) {
            bytes += weight(entry);
            if bytes > max_bytes && !entries.is_empty() {
                break;
            }
            entries.push(entry.clone());
        }
        Some(entries)
    }

    fn drop_all(&self, entries: &mut VecDeque<Entry>) {
        entries.drain(..).for_each(|entry| self.less(&entry));
    }

    fn less(&self, entry: &Entry) {
        let weight = weight(entry);
        self.bytes.fetch_sub(weight, Ordering::Relaxed);
        self.shared.used.fetch_sub(weight, Ordering::Relaxed);
    }
}

impl Drop for Tail {
    fn drop(&mut self) {
        self.shared.used.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

fn weight(entry: &Entry) -> usize {
    let payload = match &entry.payload {
        EntryPayload::Normal(batch) => batch.bytes.len(),
        _ => 0,
    };
    64 + payload
}

#[cfg(test)]
mod tests {
    use meridian_proto::log;

    use super::*;
    use crate::type_config::EncodedBatch;
    use crate::wire;

    fn entry(index: u64, bytes: usize) -> Entry {
        let batch = EncodedBatch::stored(vec![0; bytes].into());
        Entry {
            log_id: wire::log_id(log::LogId { term: 1, index }),
            payload: EntryPayload::Normal(batch),
        }
    }

    #[test]
    fn all_logs_together_stay_within_the_bound_and_the_largest_gives_way() {
        let cache = LogCache::new(1 << 20);
        let (quiet, busy) = (cache.tail(), cache.tail());
        quiet.push((1..=10).map(|index| entry(index, 1000)));
        for index in 1..=5000 {
            busy.push([entry(index, 1000)]);
            assert!(cache.used_bytes() <= 1 << 20);
        }
        assert_eq!(
            quiet.read(1, 11, usize::MAX).unwrap().len(),
            10,
            "a quiet log keeps what little it has"
        );
        assert!(busy.read(1, 2, usize::MAX).is_none());
        assert!(busy.read(4600, 5001, usize::MAX).unwrap().len() == 401, "the newest are kept");
        // One entry that is larger than all there is goes at once.
        busy.push([entry(5001, 2 << 20)]);
        assert!(cache.used_bytes() <= 1 << 20);
        assert!(busy.read(5001, 5002, usize::MAX).is_none());
        busy.push([entry(5002, 10)]);
        quiet.truncate_after(5);
        quiet.purge_through(2);
        let indexes = |tail: &Tail, start| -> Option<Vec<u64>> {
            Some(tail.read(start, 9, usize::MAX)?.iter().map(|entry| entry.log_id.index).collect())
        };
        assert_eq!((indexes(&quiet, 3), indexes(&quiet, 2)), (Some(vec![3, 4, 5]), None));
        quiet.push([entry(9, 1)]);
        assert_eq!(indexes(&quiet, 3), None, "entries before a gap are not kept");
        drop(busy);
        quiet.clear();
        assert_eq!(cache.used_bytes(), 0);
    }

    #[test]
    fn the_largest_logs_make_room_one_after_the_other_and_no_more_than_is_needed() {
        let cache = LogCache::new(1_600_000);
        let of_1000 =
            |indexes: std::ops::RangeInclusive<u64>| indexes.map(|index| entry(index, 1000 - 64));
        (0..3).for_each(|_| drop(cache.tail()));
        let (first, second, third) = (cache.tail(), cache.tail(), cache.tail());
        assert_eq!(cache.shared.tails.lock().len(), 3, "tails that are gone are forgotten");
        first.push(of_1000(1..=750));
        second.push(of_1000(1..=740));
        assert_eq!(cache.used_bytes(), 1_490_000);
        third.push([entry(1, 500_000 - 64)]);
        // A sixteenth below the bound. The largest gave half of what it had, and then another was.
        assert_eq!(cache.used_bytes(), 1_500_000);
        let kept = |tail: &Tail| (tail.entries.read().len(), tail.bytes.load(Ordering::Relaxed));
        assert_eq!(
            [kept(&first), kept(&second), kept(&third)],
            [(375, 375_000), (625, 625_000), (1, 500_000)]
        );
        assert!(
            first.read(375, 751, usize::MAX).is_none()
                && first.read(376, 751, usize::MAX).is_some()
        );
    }

    #[test]
    fn a_read_is_as_long_as_its_bound_allows_and_at_least_one_entry() {
        let cache = LogCache::default();
        let tail = cache.tail();
        tail.push((1..=10).map(|index| entry(index, 1000 - 64)));
        let read = |max_bytes| tail.read(3, 9, max_bytes).unwrap().len();
        assert_eq!([0, 999, 1000, 1999, 2000, 2001, 1 << 20].map(read), [1, 1, 1, 1, 2, 2, 6]);
    }
}
