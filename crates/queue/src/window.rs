//! The keys that are known of a queue's messages: a bounded number of the lowest, and from where
//! on rows have not been read.
//!
//! No live row below `unread` is unknown, so that rows are never read from the head of the queue
//! over all that was deleted there: the next read begins at `unread`.

use std::collections::BTreeSet;

use crate::event::MessageKey;

/// Keys that are known of one queue, at most.
pub const WINDOW: usize = 1024;
/// Rows that were deleted while others were read, at most; beyond, what was read does not count.
const MAX_DELETED: usize = 4096;

/// The first read of a term begins at the first key of all.
#[derive(Debug)]
pub(crate) struct Window {
    /// Live rows below `unread`, without those that are leased.
    known: BTreeSet<MessageKey>,
    /// `None`: there is no row that is not known or leased.
    unread: Option<MessageKey>,
    reading: Option<Reading>,
}

/// Changes since a read began: its rows are from some time before.
#[derive(Debug, Default)]
struct Reading {
    /// Rows that came, from where the read began on.
    came: BTreeSet<MessageKey>,
    deleted: BTreeSet<MessageKey>,
    /// The lowest row that was let go, and has to be read again.
    lowest: Option<MessageKey>,
    does_not_count: bool,
}

impl Window {
    pub(crate) fn new() -> Self {
        Self { known: BTreeSet::new(), unread: Some(MessageKey::FIRST), reading: None }
    }

    /// The known rows, in order. None that is unknown comes before them.
    pub(crate) fn known(&self) -> impl Iterator<Item = MessageKey> {
        self.known.iter().copied()
    }

    /// From where on rows have not been read, unless they are being read.
    pub(crate) fn unread(&self) -> Option<MessageKey> {
        self.unread.filter(|_| self.reading.is_none())
    }

    /// Whether the rows of a read are to come.
    pub(crate) fn is_reading(&self) -> bool {
        self.reading.is_some()
    }

    /// A row came, or is not leased any more.
    pub(crate) fn put(&mut self, key: MessageKey) {
        if self.unread.is_none_or(|unread| key < unread) {
            self.known.insert(key);
            self.trim();
        } else if let Some(reading) = &mut self.reading {
            // The read may have passed it already.
            reading.came.insert(key);
            if reading.came.len() > WINDOW
                && let Some(highest) = reading.came.pop_last()
            {
                reading.lowest = lower(reading.lowest, highest);
            }
        }
    }

    /// A row is gone.
    pub(crate) fn delete(&mut self, key: MessageKey) {
        self.known.remove(&key);
        if let Some(reading) = &mut self.reading {
            reading.came.remove(&key);
            reading.deleted.insert(key);
            if reading.deleted.len() > MAX_DELETED {
                reading.deleted.clear();
                reading.does_not_count = true;
            }
        }
    }

    /// A row gets a lease.
    pub(crate) fn take(&mut self, key: MessageKey) {
        self.known.remove(&key);
    }

    /// A row came and need not be known.
    pub(crate) fn leave_unread(&mut self, key: MessageKey) {
        self.unread = lower(self.unread, key);
        if let Some(reading) = &mut self.reading {
            reading.lowest = lower(reading.lowest, key);
        }
    }

    /// Forgets what is known, but not from where on rows are.
    pub(crate) fn forget(&mut self) {
        if let Some(first) = self.known.pop_first() {
            self.known.clear();
            self.leave_unread(first);
        }
    }

    /// Whether a read that begins now could tell of rows that are due by then.
    pub(crate) fn wants_read(&self, time_ms: u64) -> bool {
        self.known.len() <= WINDOW / 2 && self.unread().is_some_and(|key| key.due_ms <= time_ms)
    }

    /// A read begins, of `wanted` rows if there is room for them: from where, and of how many.
    pub(crate) fn begin_read(&mut self, wanted: usize) -> Option<(MessageKey, usize)> {
        let from = self.unread()?;
        self.reading = Some(Reading::default());
        Some((from, wanted.min(WINDOW - self.known.len())))
    }

    /// The rows of the read that began last. `is_leased`: a row that is not known because of that.
    pub(crate) fn read(
        &mut self,
        rows: &[MessageKey],
        next: Option<MessageKey>,
        is_leased: impl Fn(&MessageKey) -> bool,
    ) {
        let Some(mut reading) = self.reading.take() else { return };
        if reading.does_not_count {
            return;
        }
        let live = |row: &&MessageKey| !reading.deleted.contains(*row) && !is_leased(row);
        self.known.extend(rows.iter().filter(live));
        reading.came.retain(|row| !is_leased(row));
        self.known.append(&mut reading.came);
        self.unread = reading.lowest.into_iter().chain(next).min();
        if let Some(unread) = self.unread {
            drop(self.known.split_off(&unread));
        }
        self.trim();
    }

    /// Lets the highest rows go that are too many.
    fn trim(&mut self) {
        while self.known.len() > WINDOW
            && let Some(highest) = self.known.pop_last()
        {
            self.leave_unread(highest);
        }
    }
}

fn lower(known: Option<MessageKey>, key: MessageKey) -> Option<MessageKey> {
    Some(known.map_or(key, |known| known.min(key)))
}
