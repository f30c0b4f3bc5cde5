//! Lines on their way from requests to the file, and room that requests have taken for theirs.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::shares::{Holder, Share, Shares};

/// All lines that wait, and the room that was taken for others. Part of the headroom of a process.
const TOTAL_BYTES: usize = 16 << 20;
/// Lines of requests without a token that opens their database stay below.
const STRANGERS_BYTES: usize = TOTAL_BYTES / 2;
/// The longest line, but for keys and values.
pub(super) const LINE_BYTES: usize = 2048;
/// Written at a time, at most.
const BATCH_BYTES: usize = 256 << 10;
/// So much does not wait for company.
const URGENT_BYTES: usize = TOTAL_BYTES / 4;

/// The one whose line it is. Each token has its share of the room, and strangers one together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// A token's, by its hash.
    Token(u64),
    /// A request's without a token that opens its database.
    Stranger,
    /// The log's own.
    Log,
}

impl Whose {
    fn holder(self) -> Holder {
        let token = match self {
            Self::Log => 0,
            Self::Stranger => 1,
            Self::Token(hash) => hash.max(2),
        };
        Holder { token, shard: None }
    }
}

pub(super) struct Queue {
    /// Of `lines`, of the batch that is being written, and of places.
    room: Shares,
    state: Mutex<State>,
    /// For the writer.
    work: Condvar,
    /// For those that wait for a flush.
    flushed: Condvar,
}

#[derive(Default)]
struct State {
    lines: VecDeque<(Vec<u8>, Share)>,
    /// Of `lines`.
    queued: usize,
    /// Lines that were dropped since the file was last told.
    dropped: u64,
    /// Lines of the batch that is being written.
    writing: u64,
    /// Why the file cannot be written at present.
    failure: Option<Arc<str>>,
    is_flushing: bool,
    is_over: bool,
}

/// Lines to be written together.
#[derive(Default)]
pub(super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) lines: u64,
    /// Lines that were dropped behind these.
    pub(super) dropped: u64,
    /// The room of its lines.
    shares: Vec<Share>,
}

pub(super) enum Work {
    Write(Batch),
    /// All is written, and is to be on the disk.
    Sync,
    End,
}

impl Queue {
    pub(super) fn new() -> Self {
        let room = Shares::new(TOTAL_BYTES as u64);
        Self { room, state: Mutex::default(), work: Condvar::new(), flushed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics halfway with the lock held.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Room for a line of so many bytes.
    pub(super) fn take(queue: &Arc<Self>, whose: Whose, bytes: usize) -> Option<Place> {
        let bytes = bytes as u64;
        if whose == Whose::Stranger && queue.room.used() + bytes > STRANGERS_BYTES as u64 {
            return None;
        }
        let share = queue.room.take(whose.holder(), bytes)?;
        Some(Place { queue: Arc::clone(queue), share })
    }

    /// A line had no room.
    pub(super) fn dropped(&self) {
        self.state().dropped += 1;
        self.work.notify_one();
    }

    pub(super) fn failure(&self) -> Option<Arc<str>> {
        self.state().failure.clone()
    }

    pub(super) fn end(&self) {
        self.state().is_over = true;
        self.work.notify_one();
    }

    /// Waits until all lines are on the disk. Returns how many are not, by the end of the time, or
    /// because the file cannot be written.
    pub(super) fn flush(&self, limit: Duration) -> u64 {
        let until = Instant::now() + limit;
        let mut state = self.state();
        state.is_flushing = true;
        self.work.notify_one();
        while state.is_flushing && state.failure.is_none() {
            let Some(left) = until.checked_duration_since(Instant::now()) else { break };
            let waited = self.flushed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        if state.is_flushing { state.lines.len() as u64 + state.writing } else { 0 }
    }

    /// For the writer: waits for something to do.
    pub(super) fn next(&self) -> Work {
        let mut state = self.state();
        loop {
            if !state.lines.is_empty() || state.dropped > 0 {
                return Work::Write(state.batch());
            }
            if state.is_flushing {
                return Work::Sync;
            }
            if state.is_over {
                return Work::End;
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// For the writer: a batch is in the file, or was given up.
    pub(super) fn wrote(&self, batch: Batch) {
        drop(batch);
        let mut state = self.state();
        state.writing = 0;
        state.failure = None;
    }

    pub(super) fn synced(&self) {
        self.state().is_flushing = false;
        self.flushed.notify_all();
    }

    /// The file cannot be written.
    pub(super) fn fails(&self, why: &str) {
        self.state().failure = Some(why.into());
        self.flushed.notify_all();
    }

    /// For the writer: lets lines come together for that long, unless there is a reason to go on.
    pub(super) fn gather(&self, pace: Duration) {
        let has_time =
            |state: &mut State| !state.is_flushing && !state.is_over && state.queued < URGENT_BYTES;
        drop(self.work.wait_timeout_while(self.state(), pace, has_time));
    }

    /// For the writer: waits before the next try. `false`: there is none, since the log is over.
    pub(super) fn may_try_again_after(&self, pause: Duration) -> bool {
        let waited = self.work.wait_timeout_while(self.state(), pause, |state| !state.is_over);
        !waited.unwrap_or_else(PoisonError::into_inner).0.is_over
    }
}

impl State {
    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        while batch.bytes.len() < BATCH_BYTES
            && let Some((line, share)) = self.lines.pop_front()
        {
            batch.bytes.extend_from_slice(&line);
            batch.shares.push(share);
            batch.lines += 1;
        }
        self.queued -= batch.bytes.len();
        self.writing = batch.lines;
        // They were dropped while these lines waited.
        batch.dropped = std::mem::take(&mut self.dropped);
        batch
    }
}

/// Room for a line, until it is dropped.
pub(super) struct Place {
    queue: Arc<Queue>,
    share: Share,
}

impl Place {
    pub(super) fn bytes(&self) -> usize {
        // No more than was taken, in bytes of memory.
        usize::try_from(self.share.amount()).unwrap_or(usize::MAX)
    }

    /// Takes room for so many bytes more.
    pub(super) fn grow(&mut self, bytes: usize) -> bool {
        self.share.grow(bytes as u64)
    }

    /// Has the line written, if it has room: it has, where it is as long as was taken for it.
    pub(super) fn fill(self, line: Vec<u8>) -> bool {
        let Self { queue, mut share } = self;
        if !share.resize(line.len() as u64) {
            return false;
        }
        let mut state = queue.state();
        let wakes = state.lines.is_empty() || state.queued >= URGENT_BYTES;
        state.queued += line.len();
        state.lines.push_back((line, share));
        drop(state);
        if wakes {
            queue.work.notify_one();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue() -> Arc<Queue> {
        Arc::new(Queue::new())
    }

    const TOKEN: Whose = Whose::Token(7);
    const OTHER: Whose = Whose::Token(8);

    fn all_of(queue: &Arc<Queue>, whose: Whose) -> Vec<Place> {
        std::iter::from_fn(|| Queue::take(queue, whose, LINE_BYTES)).take(100_000).collect()
    }

    #[test]
    fn lines_and_places_share_one_bound_and_give_it_back() {
        let queue = queue();
        let mut places = all_of(&queue, TOKEN);
        assert_eq!(places.len(), TOTAL_BYTES / LINE_BYTES / 4 * 3);
        // A line that fits into its place has room, and a longer one has none.
        assert!(places.pop().unwrap().fill(vec![b'x'; LINE_BYTES]));
        assert!(!places.pop().unwrap().fill(vec![b'x'; 2 * LINE_BYTES + 1]));
        let mut last = places.pop().unwrap();
        assert!(last.grow(LINE_BYTES) && !last.grow(1));
        drop((places, last));
        let Work::Write(batch) = queue.next() else { panic!("there is a line") };
        assert_eq!((batch.lines, queue.room.used()), (1, LINE_BYTES as u64));
        queue.wrote(batch);
        assert_eq!((queue.room.used(), queue.state().queued), (0, 0));
    }

    #[test]
    fn token_that_has_its_part_leaves_room_to_others_until_its_lines_are_written() {
        let queue = queue();
        let flood = all_of(&queue, TOKEN);
        assert!(Queue::take(&queue, TOKEN, LINE_BYTES).is_none());
        assert!(all_of(&queue, OTHER).len() >= 1000);
        flood.into_iter().for_each(|place| assert!(place.fill(vec![b'x'; LINE_BYTES])));
        assert!(Queue::take(&queue, TOKEN, LINE_BYTES).is_none());
        assert!(all_of(&queue, OTHER).len() >= 1000);
        let Work::Write(batch) = queue.next() else { panic!("there are lines") };
        assert!(Queue::take(&queue, TOKEN, LINE_BYTES).is_none());
        queue.wrote(batch);
        assert!(Queue::take(&queue, TOKEN, LINE_BYTES).is_some());
    }

    #[test]
    fn lines_of_strangers_leave_half_of_the_room_to_others() {
        let queue = queue();
        let mut lines = 0;
        while let Some(place) = Queue::take(&queue, Whose::Stranger, LINE_BYTES) {
            assert!(place.fill(vec![b'x'; LINE_BYTES]));
            lines += 1;
        }
        assert_eq!(lines, STRANGERS_BYTES / LINE_BYTES);
        assert!(Queue::take(&queue, TOKEN, STRANGERS_BYTES / 2).is_some());
    }

    #[test]
    fn flush_ends_once_all_is_synced_or_with_its_time_or_at_a_file_that_fails() {
        let queue = queue();
        assert!(Queue::take(&queue, TOKEN, 10).unwrap().fill(b"a line\n".to_vec()));
        assert_eq!(queue.flush(Duration::from_millis(1)), 1);
        queue.fails("full");
        assert_eq!(queue.flush(Duration::from_secs(600)), 1);
        let Work::Write(batch) = queue.next() else { panic!("there is a line") };
        queue.wrote(batch);
        let flushing = Arc::clone(&queue);
        let flushed = std::thread::spawn(move || flushing.flush(Duration::from_secs(600)));
        assert!(matches!(queue.next(), Work::Sync));
        queue.synced();
        // The flush may have begun behind that.
        while !flushed.is_finished() {
            if queue.state().is_flushing {
                queue.synced();
            }
            std::thread::yield_now();
        }
        assert_eq!(flushed.join().unwrap(), 0);
    }
}
