//! The room on the disk of the data folder, and the measures when there is little.

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

use rustix::fs::{FallocateFlags, fallocate, statvfs};

/// Less free disk than this beyond what memtables will take when they are flushed, on the leader or
/// on so many voters that the others are no majority, and writes are refused while reads, and
/// writes that only delete, go on.
pub(crate) const MIN_FREE_BYTES: u64 = 256 << 20;
/// Less than this, and no log is kept for copies that take long, nor for change feeds.
pub(crate) const COPY_FREE_BYTES: u64 = 4 * MIN_FREE_BYTES;
/// So much stays free when files are written again that could stay as they are.
const OPTIONAL_FREE_BYTES: u64 = 2 * MIN_FREE_BYTES;
/// Less than this, and a leader takes no write any more.
const EXHAUSTED_BYTES: u64 = 96 << 20;
/// Less than this, and what other nodes send is not appended either: a write that finds no room
/// would stop the process, and at its next start again. Far below the bound for leaders, so that
/// what they took before they heard of it still commits, and so does what gives room back: a
/// database that is dropped, and what has expired.
const NOTHING_BYTES: u64 = 64 << 20;
/// Less than this, and not even of the directory's changes, which are few and small, and without
/// which no failover ends.
const NOT_EVEN_OF_THE_DIRECTORY_BYTES: u64 = 8 << 20;
/// Between two looks at the disk, while writes come or little is free. A fast disk writes far less
/// in this time than is kept free.
pub(crate) const LOOK: Duration = Duration::from_millis(100);
/// While this process hardly writes, and others could not fill the disk until then.
const IDLE_LOOK: Duration = Duration::from_millis(500);
/// So much more in memtables from one look to the next, and this process writes.
const WRITES_BYTES: u64 = 1 << 20;
/// No disk is written to faster, by all its writers together.
const FASTEST_BYTES_PER_SECOND: u64 = 16 << 30;
/// A file that holds nothing. It is given up when the disk is so full that the database, which
/// writes when it is opened, could not start.
const BALLAST: &str = "ballast";
const BALLAST_BYTES: u64 = 64 << 20;
/// The ballast is made, and made again, when so much is free: far from where it would itself be the
/// reason to refuse writes.
const BALLAST_AT_FREE_BYTES: u64 = 4 * MIN_FREE_BYTES;

/// The writes that the disk has room for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Room {
    /// Everything.
    #[default]
    Enough,
    /// Writes that only delete: they make room.
    Low,
    /// Nothing.
    Exhausted,
}

impl Room {
    /// As a node announces it: whether it refuses what does not only delete, and whether also that.
    pub(crate) fn announced(is_full: bool, is_exhausted: bool) -> Self {
        match (is_full, is_exhausted) {
            (_, true) => Self::Exhausted,
            (true, false) => Self::Low,
            (false, false) => Self::Enough,
        }
    }

    fn with(free_bytes: u64) -> Self {
        match free_bytes {
            ..EXHAUSTED_BYTES => Self::Exhausted,
            EXHAUSTED_BYTES..MIN_FREE_BYTES => Self::Low,
            MIN_FREE_BYTES.. => Self::Enough,
        }
    }
}

/// The room that the last check of the disk found.
#[derive(Default)]
pub(crate) struct DiskGuard {
    room: AtomicU8,
    takes_nothing: AtomicBool,
    takes_no_change: AtomicBool,
    /// The bytes in memtables at that check.
    unflushed_bytes: AtomicU64,
}

impl DiskGuard {
    pub(crate) fn room(&self) -> Room {
        match self.room.load(Ordering::Relaxed) {
            0 => Room::Enough,
            1 => Room::Low,
            _ => Room::Exhausted,
        }
    }

    /// Whether so many bytes may be written that need not be, to the disk of this file or folder:
    /// what else comes to the disk has room beside them. Looks at the disk now.
    pub(crate) fn has_room_for(&self, path: &Path, bytes: u64) -> bool {
        let taken = bytes
            .saturating_add(self.unflushed_bytes.load(Ordering::Relaxed))
            .saturating_add(OPTIONAL_FREE_BYTES);
        free_bytes(path).is_some_and(|free| free >= taken)
    }

    /// Whether nothing of a shard is appended any more, from any sender.
    pub(crate) fn takes_nothing(&self) -> bool {
        self.takes_nothing.load(Ordering::Relaxed)
    }

    /// Whether not even what the directory's leader sends is appended. Its batches are for longer:
    /// they are few, and without them no full node is taken out of a shard.
    pub(crate) fn takes_no_change(&self) -> bool {
        self.takes_no_change.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(crate) fn set_takes_nothing(&self, takes_nothing: bool) {
        self.takes_nothing.store(takes_nothing, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(crate) fn set_takes_no_change(&self, takes_no_change: bool) {
        self.takes_no_change.store(takes_no_change, Ordering::Relaxed);
    }

    /// The warning for operators when the disk has little room.
    pub(crate) fn warning(&self) -> Option<String> {
        let refused = match self.room() {
            Room::Enough => return None,
            Room::Low => "writes that only delete are taken, all others refused",
            Room::Exhausted if self.takes_nothing() => {
                "no write is taken, and nothing of other nodes either"
            }
            Room::Exhausted => "no write is taken",
        };
        let min = MIN_FREE_BYTES >> 20;
        Some(format!(
            "the disk of the data folder has less than {min} MiB free beyond what memory holds: {refused}"
        ))
    }

    /// Looks at the disk, and keeps the ballast. `unflushed_bytes` are in memtables, and come to
    /// the disk whatever is refused. It may wait for the disk. Returns how long the next look has
    /// time.
    pub(crate) fn check(&self, folder: &Path, unflushed_bytes: u64) -> Duration {
        let written =
            unflushed_bytes.abs_diff(self.unflushed_bytes.swap(unflushed_bytes, Ordering::Relaxed));
        let Some(free) = free_bytes(folder) else { return LOOK };
        metrics::gauge!("meridian_disk_free_bytes").set(free as f64);
        let free_then = free.saturating_sub(unflushed_bytes);
        let room = Room::with(free_then);
        if self.takes_nothing.swap(free_then < NOTHING_BYTES, Ordering::Relaxed)
            != (free_then < NOTHING_BYTES)
        {
            tracing::warn!(
                free_mib = free >> 20,
                "nothing of other nodes is taken, or is taken again"
            );
        }
        self.takes_no_change.store(free_then < NOT_EVEN_OF_THE_DIRECTORY_BYTES, Ordering::Relaxed);
        metrics::gauge!("meridian_disk_full").set(f64::from(room != Room::Enough));
        if self.room.swap(room as u8, Ordering::Relaxed) != room as u8 {
            tracing::warn!(?room, free_mib = free >> 20, "free disk space crossed its bound");
        }
        keep_ballast(folder, free);
        pause(free_then, written)
    }
}

/// Until the next look.
fn pause(free_bytes: u64, written_bytes: u64) -> Duration {
    let fills_in = Duration::from_secs_f64(
        free_bytes.saturating_sub(MIN_FREE_BYTES) as f64 / FASTEST_BYTES_PER_SECOND as f64,
    );
    if written_bytes >= WRITES_BYTES || fills_in < IDLE_LOOK { LOOK } else { IDLE_LOOK }
}

fn keep_ballast(folder: &Path, free: u64) {
    if free >= BALLAST_AT_FREE_BYTES
        && !folder.join(BALLAST).exists()
        && let Err(error) = make_ballast(folder)
    {
        tracing::debug!(%error, "there is no ballast");
    }
}

/// Bytes that this process may still write to the disk of a file or folder; `None`: unknown.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let space = statvfs(path).ok()?;
    Some(space.f_bavail.saturating_mul(space.f_frsize))
}

fn make_ballast(folder: &Path) -> io::Result<()> {
    let path = folder.join(BALLAST);
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    let made = fallocate(&file, FallocateFlags::empty(), 0, BALLAST_BYTES);
    if made.is_err() {
        // An empty one gives nothing back, and would not be made again.
        std::fs::remove_file(&path)?;
    }
    Ok(made?)
}

/// Gives up the ballast of a folder whose disk is full, so that the database in it can be opened.
/// Returns whether it did.
pub(crate) fn make_room(folder: &Path) -> bool {
    free_bytes(folder).is_some_and(|free| make_room_with(folder, free))
}

fn make_room_with(folder: &Path, free: u64) -> bool {
    let given_up =
        Room::with(free) == Room::Exhausted && std::fs::remove_file(folder.join(BALLAST)).is_ok();
    if given_up {
        tracing::warn!(
            free_mib = free >> 20,
            "the disk is full: its ballast was given up to start. Make room now"
        );
    }
    given_up
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deletions_are_taken_for_longer_than_all_else() {
        assert_eq!(Room::with(MIN_FREE_BYTES), Room::Enough);
        assert_eq!(Room::with(MIN_FREE_BYTES - 1), Room::Low);
        assert_eq!(Room::with(EXHAUSTED_BYTES), Room::Low);
        assert_eq!(Room::with(EXHAUSTED_BYTES - 1), Room::Exhausted);
        let guard = DiskGuard::default();
        assert_eq!((guard.room(), guard.warning()), (Room::Enough, None));
        for room in [Room::Low, Room::Exhausted] {
            guard.room.store(room as u8, Ordering::Relaxed);
            assert_eq!(guard.room(), room);
            assert!(guard.warning().is_some());
            assert_eq!(Room::announced(room != Room::Enough, room == Room::Exhausted), room);
        }
    }

    #[test]
    fn the_ballast_takes_room_and_gives_it_back() {
        let folder = tempfile::tempdir().unwrap();
        let ballast = || std::fs::metadata(folder.path().join(BALLAST)).map(|file| file.len()).ok();
        keep_ballast(folder.path(), BALLAST_AT_FREE_BYTES - 1);
        assert_eq!(ballast(), None, "it is not what fills a disk");
        keep_ballast(folder.path(), BALLAST_AT_FREE_BYTES);
        if make_ballast(tempfile::tempdir().unwrap().path()).is_err() {
            // A file system that cannot set room aside has no ballast.
            return;
        }
        assert_eq!(ballast(), Some(BALLAST_BYTES));
        assert!(!make_room_with(folder.path(), EXHAUSTED_BYTES), "the database can be opened");
        assert_eq!(ballast(), Some(BALLAST_BYTES));
        assert!(make_room_with(folder.path(), EXHAUSTED_BYTES - 1));
        assert_eq!(ballast(), None);
        assert!(!make_room_with(folder.path(), 0));
    }

    #[test]
    fn idle_disk_that_cannot_fill_soon_is_looked_at_seldom() {
        let plenty = MIN_FREE_BYTES + FASTEST_BYTES_PER_SECOND / 2;
        assert_eq!(pause(plenty, WRITES_BYTES - 1), IDLE_LOOK);
        assert_eq!(pause(plenty, WRITES_BYTES), LOOK);
        assert_eq!(pause(plenty - (1 << 20), 0), LOOK);
        assert_eq!(pause(0, 0), LOOK);
        // Writes are told from the bytes in memtables, also when these were flushed.
        let (folder, guard) = (tempfile::tempdir().unwrap(), DiskGuard::default());
        assert_eq!(guard.check(folder.path(), WRITES_BYTES), LOOK);
        assert_eq!(guard.check(folder.path(), 0), LOOK);
    }

    #[test]
    fn what_memtables_hold_is_counted_as_written() {
        let (folder, guard) = (tempfile::tempdir().unwrap(), DiskGuard::default());
        guard.check(folder.path(), 0);
        assert_eq!(
            (guard.room(), guard.takes_nothing()),
            (Room::Enough, false),
            "this disk has no room for a test"
        );
        assert!(guard.has_room_for(folder.path(), 1));
        assert!(!guard.has_room_for(folder.path(), u64::MAX));
        guard.check(folder.path(), u64::MAX);
        assert!(!guard.has_room_for(folder.path(), 1));
        assert_eq!((guard.room(), guard.takes_nothing()), (Room::Exhausted, true));
        // The free space of this disk moves while others use it.
        let leaving =
            |bytes| guard.check(folder.path(), free_bytes(folder.path()).unwrap() - bytes);
        let (mut takes, between) = (Vec::new(), |less: u64, more| less.midpoint(more));
        for left in [
            between(NOTHING_BYTES, EXHAUSTED_BYTES),
            between(NOT_EVEN_OF_THE_DIRECTORY_BYTES, NOTHING_BYTES),
            NOT_EVEN_OF_THE_DIRECTORY_BYTES / 8,
        ] {
            leaving(left);
            assert_eq!(guard.room(), Room::Exhausted);
            takes.push((!guard.takes_nothing(), !guard.takes_no_change()));
        }
        assert_eq!(
            takes,
            [(true, true), (false, true), (false, false)],
            "batches that leaders took still commit"
        );
    }
}
