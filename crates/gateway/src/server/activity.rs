use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, sleep_until};

/// Smaller answers are gone from this process, or as good as gone, when they are handed to the socket.
const LARGE_ANSWER_BYTES: usize = 64 * 1024;
/// The slowest client for whom a large answer is kept, beside the idle timeout.
const SLOWEST_BYTES_PER_SECOND: usize = 256 * 1024;

/// What a connection is doing, kept with a few relaxed atomics a request, and one timer a connection.
pub(super) struct Activity {
    opened: Instant,
    /// Requests in progress.
    busy: AtomicUsize,
    /// Milliseconds from `opened` to when a request last began or ended; 0: there was none.
    last_ms: AtomicU64,
    authorized: AtomicBool,
    unsent: Mutex<Unsent>,
}

/// Large answers that the client has not taken yet, by number, and until when each is kept.
#[derive(Default)]
struct Unsent {
    next: u64,
    until: BTreeMap<u64, Instant>,
}

impl Activity {
    pub(super) fn new(opened: Instant) -> Self {
        let (busy, last_ms) = (AtomicUsize::new(0), AtomicU64::new(0));
        Self { opened, busy, last_ms, authorized: AtomicBool::new(false), unsent: Mutex::default() }
    }

    /// A request on this connection carried a valid token.
    pub(super) fn authorized(&self) {
        self.authorized.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_authorized(&self) -> bool {
        self.authorized.load(Ordering::Relaxed)
    }

    /// Whether a request is in progress, or an answer on its way.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0 || !self.unsent().until.is_empty()
    }

    /// Ready when the first request did not come in time, when no request was in progress for `idle`, or when the
    /// client did not take an answer.
    pub(super) async fn idle(&self, first_request: Duration, idle: Duration) {
        loop {
            let now = Instant::now();
            let idle_at = self.idle_at(now, first_request, idle);
            if idle_at <= now {
                return;
            }
            sleep_until(idle_at).await;
        }
    }

    /// When this connection will have been idle for too long, if nothing happens on it until then.
    fn idle_at(&self, now: Instant, first_request: Duration, idle: Duration) -> Instant {
        let unsent = self.unsent().until.values().min().copied();
        let since_last = |patience| match self.last_ms.load(Ordering::Relaxed) {
            0 => self.opened + first_request,
            _ if self.busy.load(Ordering::Relaxed) > 0 => now + patience,
            last_ms => self.opened + Duration::from_millis(last_ms) + patience,
        };
        match unsent {
            // What was answered later may take its time; looked at again when the first should be gone.
            Some(until) => until,
            // Whoever never showed a token is not waited for as one who did.
            None if !self.is_authorized() => since_last(first_request),
            None => since_last(idle),
        }
    }

    /// The bytes of an answer, watched if they are many: a client that does not read them loses its connection.
    pub(super) fn sending(self: &Arc<Self>, answer: Bytes, idle: Duration) -> Bytes {
        if answer.len() < LARGE_ANSWER_BYTES {
            return answer;
        }
        let patience = idle + Duration::from_secs((answer.len() / SLOWEST_BYTES_PER_SECOND) as u64);
        let number = {
            let mut unsent = self.unsent();
            let number = unsent.next;
            unsent.next += 1;
            unsent.until.insert(number, Instant::now() + patience);
            number
        };
        Bytes::from_owner(Sending { answer, activity: Arc::clone(self), number })
    }

    fn unsent(&self) -> MutexGuard<'_, Unsent> {
        self.unsent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self, now: Instant) {
        let elapsed_ms = u64::try_from(now.saturating_duration_since(self.opened).as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed_ms.max(1), Ordering::Relaxed);
    }
}

/// A large answer, until its last byte has left.
struct Sending {
    answer: Bytes,
    activity: Arc<Activity>,
    number: u64,
}

impl AsRef<[u8]> for Sending {
    fn as_ref(&self) -> &[u8] {
        &self.answer
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        self.activity.unsent().until.remove(&self.number);
        self.activity.touch(Instant::now());
    }
}

/// A request in progress, until it is dropped.
pub(super) struct Busy(Arc<Activity>);

impl Busy {
    pub(super) fn new(activity: &Arc<Activity>) -> Self {
        activity.busy.fetch_add(1, Ordering::Relaxed);
        activity.touch(Instant::now());
        Self(Arc::clone(activity))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.touch(Instant::now());
        self.0.busy.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Duration = Duration::from_secs(10);
    const IDLE: Duration = Duration::from_secs(120);

    #[test]
    fn a_connection_without_a_request_is_idle_soon() {
        let now = Instant::now();
        let activity = Activity::new(now);
        assert_eq!(activity.idle_at(now, FIRST, IDLE), now + FIRST);
        assert_eq!(activity.idle_at(now + FIRST, FIRST, IDLE), now + FIRST);
    }

    #[test]
    fn idleness_counts_from_the_last_request() {
        let now = Instant::now();
        let activity = Activity::new(now);
        activity.authorized();
        let last = now + Duration::from_secs(5);
        activity.touch(last);
        assert_eq!(activity.idle_at(last + FIRST, FIRST, IDLE), last + IDLE);
    }

    #[test]
    fn a_connection_with_a_request_in_progress_is_not_idle() {
        let now = Instant::now();
        let activity = Arc::new(Activity::new(now));
        activity.authorized();
        let busy = Busy::new(&activity);
        let later = now + Duration::from_secs(3600);
        assert_eq!(activity.idle_at(later, FIRST, IDLE), later + IDLE);
        drop(busy);
        assert!(activity.idle_at(later, FIRST, IDLE) < later);
    }

    #[test]
    fn a_connection_without_a_valid_token_is_idle_soon_after_each_request() {
        let now = Instant::now();
        let activity = Activity::new(now);
        let last = now + Duration::from_secs(5);
        activity.touch(last);
        assert_eq!(activity.idle_at(last, FIRST, IDLE), last + FIRST);
    }

    #[tokio::test]
    async fn a_large_answer_that_nobody_takes_ends_its_connection_whatever_else_goes_on() {
        let now = Instant::now();
        let activity = Arc::new(Activity::new(now));
        activity.authorized();
        assert_eq!(activity.sending(Bytes::from_static(b"small"), IDLE), "small");
        assert!(!activity.is_busy());
        let answer = activity.sending(Bytes::from(vec![7; 1 << 20]), IDLE);
        assert!(activity.is_busy());
        let _others = Busy::new(&activity);
        let later = now + Duration::from_secs(3600);
        let cut = activity.idle_at(later, FIRST, IDLE);
        assert!(cut > now + IDLE && cut <= Instant::now() + IDLE + Duration::from_secs(4));
        // A part of it is as good as the whole.
        let rest = answer.slice(5..);
        drop(answer);
        assert_eq!(activity.idle_at(later, FIRST, IDLE), cut);
        drop(rest);
        assert_eq!(activity.idle_at(later, FIRST, IDLE), later + IDLE);
    }
}
