use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// What a connection is doing, kept with a few relaxed atomics a request, and one timer a connection.
pub(super) struct Activity {
    opened: Instant,
    /// Requests in progress.
    busy: AtomicUsize,
    /// Milliseconds from `opened` to when a request last began or ended; 0: there was none.
    last_ms: AtomicU64,
}

impl Activity {
    pub(super) fn new(opened: Instant) -> Self {
        Self { opened, busy: AtomicUsize::new(0), last_ms: AtomicU64::new(0) }
    }

    /// Ready when the first request did not come in time, or no request was in progress for `idle`.
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
        match self.last_ms.load(Ordering::Relaxed) {
            0 => self.opened + first_request,
            _ if self.busy.load(Ordering::Relaxed) > 0 => now + idle,
            last_ms => self.opened + Duration::from_millis(last_ms) + idle,
        }
    }

    fn touch(&self, now: Instant) {
        let elapsed_ms = u64::try_from(now.saturating_duration_since(self.opened).as_millis()).unwrap_or(u64::MAX);
        self.last_ms.store(elapsed_ms.max(1), Ordering::Relaxed);
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
        let last = now + Duration::from_secs(5);
        activity.touch(last);
        assert_eq!(activity.idle_at(last + FIRST, FIRST, IDLE), last + IDLE);
    }

    #[test]
    fn a_connection_with_a_request_in_progress_is_not_idle() {
        let now = Instant::now();
        let activity = Arc::new(Activity::new(now));
        let busy = Busy::new(&activity);
        let later = now + Duration::from_secs(3600);
        assert_eq!(activity.idle_at(later, FIRST, IDLE), later + IDLE);
        drop(busy);
        assert!(activity.idle_at(later, FIRST, IDLE) < later);
    }
}
