//! Requests without a valid token, for unknown paths and for files: counted by origin, and answered
//! slowly when an origin sends many.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use meridian_net::Origin;
use meridian_types::LineLimit;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use tracing::warn;

use crate::answer::ToStranger;
use crate::failed_authentication::FailedAuthentication;

/// The number of requests without a valid token in a [`WINDOW`] that are answered at once: a program
/// with an outdated token sends a few.
const FREE: u32 = 10;
/// The same of requests for unknown paths: a proxy may look each second whether a gateway answers.
const FREE_PATHS: u32 = 100;
/// The same of requests for files: each program asks for some when it starts, and many have one
/// address.
const FREE_FILES: u32 = 3000;
const WINDOW: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(500);
/// Answers held back at a time. Further answers are given at once: a held answer takes memory, and
/// guessing a token takes more requests than any client can send.
const MAX_PAUSED: usize = 512;
/// Windows of origins remembered at a time. Beyond, the oldest is forgotten.
const MAX_WINDOWS: usize = 4096;

/// Failures of one origin that are logged in a [`WINDOW`].
const LOGGED_OF_ORIGIN: u32 = 3;
/// Failures of all origins together that are logged in a minute, and as many origins that come to be
/// slowed.
const LOGGED: u32 = 30;

pub(super) struct Strangers {
    windows: Mutex<HashMap<(Origin, ToStranger), Window>>,
    failures_logged: Mutex<LineLimit<Instant>>,
    slowed_logged: Mutex<LineLimit<Instant>>,
    pauses: Semaphore,
}

impl Default for Strangers {
    fn default() -> Self {
        let [failures_logged, slowed_logged] =
            [LOGGED; 2].map(|lines| Mutex::new(LineLimit::new(lines)));
        let (windows, pauses) = (Mutex::default(), Semaphore::new(MAX_PAUSED));
        Self { windows, failures_logged, slowed_logged, pauses }
    }
}

/// As [`LineLimit::take`].
fn take_line(lines: &Mutex<LineLimit<Instant>>, now: Instant) -> Option<u64> {
    lines.lock().unwrap_or_else(PoisonError::into_inner).take(now)
}

struct Window {
    began: Instant,
    requests: u32,
}

/// How many such requests of an origin are answered at once. `None`: all.
fn free(asked: ToStranger) -> Option<u32> {
    match asked {
        ToStranger::Refused => Some(FREE),
        ToStranger::UnknownPath => Some(FREE_PATHS),
        ToStranger::File => Some(FREE_FILES),
        ToStranger::NoDatabase => None,
    }
}

impl Strangers {
    /// Counts a request of `origin`; `failed`: the reason for which its token does not count. Returns
    /// when it may be answered.
    pub(super) async fn pause(
        &self,
        origin: Origin,
        asked: ToStranger,
        failed: Option<FailedAuthentication>,
    ) {
        let Some(free) = free(asked) else { return };
        let now = Instant::now();
        let requests = self.count((origin, asked), now);
        if requests == free + 1
            && let Some(left_out) = take_line(&self.slowed_logged, now)
        {
            warn!(%origin, requests, ?asked, left_out, "many requests without a valid access token: they are answered slowly");
        }
        if let Some(failed) = failed
            && requests <= LOGGED_OF_ORIGIN
            && let Some(left_out) = take_line(&self.failures_logged, now)
        {
            let FailedAuthentication { reason, fingerprint } = failed;
            let fingerprint = fingerprint.map(tracing::field::display);
            warn!(%origin, reason = reason.label(), fingerprint, left_out, "a request had no access token that opens its database");
        }
        if requests > free
            && let Ok(_paused) = self.pauses.try_acquire()
        {
            sleep(PAUSE).await;
        }
    }

    /// Counts such a request of an origin, and returns their number in its window.
    fn count(&self, of: (Origin, ToStranger), now: Instant) -> u32 {
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        if windows.len() >= MAX_WINDOWS && !windows.contains_key(&of) {
            let oldest = windows.iter().min_by_key(|(_, window)| window.began).map(|(of, _)| *of);
            oldest.and_then(|oldest| windows.remove(&oldest));
        }
        let window = windows.entry(of).or_insert(Window { began: now, requests: 0 });
        if now.duration_since(window.began) >= WINDOW {
            *window = Window { began: now, requests: 0 };
        }
        window.requests = window.requests.saturating_add(1);
        window.requests
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::ToStranger::{File, NoDatabase, Refused, UnknownPath};
    use super::*;

    #[test]
    fn requests_are_counted_by_origin_and_kind_and_forgotten_after_a_minute() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        let [one, other] = [1, 2].map(|last| Origin::of([10, 0, 0, last].into()));
        let count = |origin, asked| strangers.count((origin, asked), now);
        assert_eq!((count(one, Refused), count(one, Refused), count(other, Refused)), (1, 2, 1));
        assert_eq!((count(one, File), count(one, UnknownPath), count(one, Refused)), (1, 1, 3));
        assert_eq!(strangers.count((one, Refused), now + WINDOW), 1);
    }

    #[test]
    fn number_of_remembered_origins_is_bounded() {
        let (strangers, now) = (Strangers::default(), Instant::now());
        for n in 0..u16::MAX {
            let [high, low] = n.to_be_bytes();
            let origin = Origin::of([10, 0, high, low].into());
            strangers.count((origin, Refused), now + Duration::from_millis(n.into()));
        }
        assert_eq!(strangers.windows.lock().unwrap().len(), MAX_WINDOWS);
    }

    #[tokio::test]
    async fn number_of_answers_held_back_is_bounded() {
        let (strangers, origin) = (Strangers::default(), Origin::of([10, 0, 0, 1].into()));
        let now = Instant::now();
        (0..FREE).for_each(|_| assert!(strangers.count((origin, Refused), now) <= FREE));
        let paused: Vec<_> = (0..=MAX_PAUSED)
            .map(|_| Box::pin(strangers.pause(origin, Refused, None)))
            .filter_map(|mut pause| pause.as_mut().now_or_never().is_none().then_some(pause))
            .collect();
        assert_eq!(paused.len(), MAX_PAUSED);
        drop(paused);
        assert!(strangers.pause(origin, Refused, None).now_or_never().is_none());
    }

    #[tokio::test]
    async fn requests_beyond_the_free_ones_are_answered_slowly() {
        let (strangers, origin) = (Strangers::default(), Origin::of([10, 0, 0, 1].into()));
        let is_held = |asked| strangers.pause(origin, asked, None).now_or_never().is_none();
        for (asked, free) in [(Refused, FREE), (UnknownPath, FREE_PATHS), (File, FREE_FILES)] {
            for number in 0..free {
                assert!(!is_held(asked), "{asked:?} {number}");
            }
            assert!(is_held(asked), "{asked:?}");
        }
        assert!((0..2 * FREE_FILES).all(|_| !is_held(NoDatabase)));
    }
}
