//! Requests without a valid token: counted by origin, and answered slowly when an origin sends
//! many.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use meridian_net::Origin;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::failed_authentication::FailedAuthentication;

/// The number of such requests in a [`WINDOW`] that are answered at once: a program with an
/// outdated token sends a few.
const FREE: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// Answers held back at a time. Further answers are given at once: a held answer takes memory, and
/// guessing a token takes more requests than any client can send.
const MAX_PAUSED: usize = 512;
/// Origins remembered at a time. Beyond, the oldest window is forgotten.
const MAX_ORIGINS: usize = 4096;

/// Failures of one origin that are logged in a [`WINDOW`].
const LOGGED_OF_ORIGIN: u32 = 3;
/// Failures of all origins together that are logged in a [`WINDOW`].
const LOGGED: u32 = 30;

pub(super) struct Strangers {
    failures: Mutex<HashMap<Origin, Window>>,
    logged: Mutex<Logged>,
    pauses: Semaphore,
}

impl Default for Strangers {
    fn default() -> Self {
        let (failures, logged) = Default::default();
        Self { failures, logged, pauses: Semaphore::new(MAX_PAUSED) }
    }
}

/// The bound on lines of the log.
#[derive(Default)]
struct Logged {
    began: Option<Instant>,
    lines: u32,
    left_out: u64,
}

impl Logged {
    /// Whether a line may be logged now, and how many were left out before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.began.is_none_or(|began| now.duration_since(began) >= WINDOW) {
            (self.began, self.lines) = (Some(now), 0);
        }
        if self.lines < LOGGED {
            self.lines += 1;
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out += 1;
        None
    }
}

struct Window {
    began: Instant,
    failures: u32,
}

impl Strangers {
    /// Counts a request of `origin` that had no valid token, for that reason. Returns when it may be
    /// answered.
    pub(super) async fn pause(&self, origin: Origin, failed: Option<FailedAuthentication>) {
        let now = Instant::now();
        let failures = self.failed(origin, now);
        if failures == FREE + 1 {
            warn!(%origin, failures, "many requests without a valid access token: they are answered slowly");
        }
        if let Some(failed) = failed
            && failures <= LOGGED_OF_ORIGIN
            && let Some(left_out) =
                self.logged.lock().unwrap_or_else(PoisonError::into_inner).take(now)
        {
            let FailedAuthentication { reason, fingerprint } = failed;
            let fingerprint = fingerprint.map(tracing::field::display);
            warn!(%origin, reason = reason.label(), fingerprint, left_out, "a request had no access token that opens its database");
        }
        if let Some(pause) = pause_after(failures)
            && let Ok(_paused) = self.pauses.try_acquire()
        {
            sleep(pause).await;
        }
    }

    /// Counts a failure of `origin`, and returns the number of failures in its window.
    fn failed(&self, origin: Origin, now: Instant) -> u32 {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        if failures.len() >= MAX_ORIGINS && !failures.contains_key(&origin) {
            let oldest =
                failures.iter().min_by_key(|(_, window)| window.began).map(|(origin, _)| *origin);
            oldest.and_then(|oldest| failures.remove(&oldest));
        }
        let window = failures.entry(origin).or_insert(Window { began: now, failures: 0 });
        if now.duration_since(window.began) >= WINDOW {
            *window = Window { began: now, failures: 0 };
        }
        window.failures = window.failures.saturating_add(1);
        window.failures
    }
}

fn pause_after(failures: u32) -> Option<Duration> {
    (failures > FREE).then_some(PAUSE)
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn failures_are_counted_by_origin_and_forgotten_after_a_minute() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let [one, other] = [1, 2].map(|last| Origin::of([10, 0, 0, last].into()));
        assert_eq!(
            (strangers.failed(one, now), strangers.failed(one, now), strangers.failed(other, now)),
            (1, 2, 1)
        );
        assert_eq!(strangers.failed(one, now + WINDOW), 1);
    }

    #[test]
    fn number_of_remembered_origins_is_bounded() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        for n in 0..u16::MAX {
            let [high, low] = n.to_be_bytes();
            strangers.failed(
                Origin::of([10, 0, high, low].into()),
                now + Duration::from_millis(n.into()),
            );
        }
        assert_eq!(strangers.failures.lock().unwrap().len(), MAX_ORIGINS);
    }

    #[tokio::test]
    async fn number_of_answers_held_back_is_bounded() {
        let (strangers, origin) = (Strangers::default(), Origin::of([10, 0, 0, 1].into()));
        (0..FREE).for_each(|_| assert!(strangers.failed(origin, Instant::now()) <= FREE));
        let paused: Vec<_> = (0..=MAX_PAUSED)
            .map(|_| Box::pin(strangers.pause(origin, None)))
            .filter_map(|mut pause| pause.as_mut().now_or_never().is_none().then_some(pause))
            .collect();
        assert_eq!(paused.len(), MAX_PAUSED);
        drop(paused);
        assert!(strangers.pause(origin, None).now_or_never().is_none());
    }

    #[test]
    fn lines_of_the_log_are_bounded_and_the_next_one_says_how_many_were_left_out() {
        let (mut logged, now) = (Logged::default(), Instant::now());
        for _ in 0..LOGGED {
            assert_eq!(logged.take(now), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(logged.take(now + WINDOW / 2), None);
        }
        assert_eq!(logged.take(now + WINDOW), Some(7));
        assert_eq!(logged.take(now + WINDOW), Some(0));
    }

    #[test]
    fn failures_beyond_the_free_ones_are_answered_slowly() {
        assert_eq!(pause_after(FREE), None);
        assert_eq!(pause_after(FREE + 1), Some(PAUSE));
    }
}
