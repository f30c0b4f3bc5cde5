//! How many requests an endpoint gets at a time: pure.
//!
//! An endpoint in trouble is left alone for a while, twice as long each time, and then gets one
//! request: an endpoint that is down for an hour costs about seventy attempts in all, of whatever
//! messages are due, and not all attempts of all of them. When a request fares well, the number
//! doubles with each further one, up to the concurrency.

use std::time::Duration;

const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A pause that is no shorter has messages go back to the queue, for other listeners.
pub(super) const LONG: Duration = Duration::from_secs(1);

/// All times are of one monotonic clock.
#[derive(Debug)]
pub(super) struct Pace {
    concurrency: u32,
    /// Requests at a time, beyond a pause.
    limit: u32,
    /// Troubles one after the other.
    troubles: u32,
    /// The fate of requests that had begun by then is no further news.
    since: Duration,
    paused_until: Duration,
    /// The last pause was long, and no request has fared well since.
    is_on_trial: bool,
}

impl Pace {
    pub(super) fn new(concurrency: u32) -> Self {
        let (since, paused_until) = (Duration::ZERO, Duration::ZERO);
        Self {
            concurrency,
            limit: concurrency,
            troubles: 0,
            since,
            paused_until,
            is_on_trial: false,
        }
    }

    /// Requests that may be under way now.
    pub(super) fn limit(&self, now: Duration) -> u32 {
        if now < self.paused_until { 0 } else { self.limit }
    }

    /// Messages that may be held now.
    pub(super) fn credits(&self, now: Duration) -> u32 {
        match (now < self.paused_until, self.is_on_trial) {
            (true, true) => 0,
            (false, true) => 1,
            // The next ones of a limit that grows are held already, and no more than that: what waits
            // is memory of the leader's.
            (_, false) => self.limit.saturating_mul(2).min(self.concurrency),
        }
    }

    /// When a pause ends, if there is one.
    pub(super) fn pause_ends(&self, now: Duration) -> Option<Duration> {
        (now < self.paused_until).then_some(self.paused_until)
    }

    /// The endpoint has judged a request that began then.
    pub(super) fn well(&mut self, begun: Duration) {
        if begun >= self.since {
            self.troubles = 0;
            self.is_on_trial = false;
            self.limit = self.limit.saturating_mul(2).min(self.concurrency);
        }
    }

    /// The endpoint could not judge a request that began then, or wants none until `retry_after`.
    pub(super) fn in_trouble(
        &mut self,
        now: Duration,
        begun: Duration,
        retry_after: Option<Duration>,
    ) {
        // Requests that were under way together are one trouble.
        let pause = if begun >= self.since {
            let doublings = self.troubles.min(16);
            self.troubles = self.troubles.saturating_add(1);
            self.limit = 1;
            FIRST_PAUSE.saturating_mul(1 << doublings)
        } else {
            Duration::ZERO
        };
        let pause = pause.max(retry_after.unwrap_or_default()).min(LONGEST_PAUSE);
        if pause.is_zero() {
            return;
        }
        self.since = now;
        self.is_on_trial |= pause >= LONG;
        self.paused_until = self.paused_until.max(now + pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: f64) -> Duration {
        Duration::from_secs_f64(seconds)
    }

    #[test]
    fn endpoint_that_is_down_for_an_hour_costs_few_attempts() {
        let (mut pace, mut now, mut attempts) = (Pace::new(10), s(0.0), 0);
        while now < s(3600.0) {
            let begun = now;
            for _ in 0..pace.limit(now) {
                pace.in_trouble(now + s(0.01), begun, None);
                attempts += 1;
            }
            now = pace.pause_ends(now).unwrap_or(now) + s(0.02);
        }
        assert!((60..90).contains(&attempts), "{attempts}");
        assert_eq!(pace.credits(now), u32::from(pace.limit(now) > 0));
    }

    #[test]
    fn endpoint_that_is_back_gets_one_request_and_then_more_and_more() {
        let mut pace = Pace::new(5);
        assert_eq!((pace.limit(s(1.0)), pace.credits(s(1.0))), (5, 5));
        for _ in 0..9 {
            let now = pace.pause_ends(s(0.0)).unwrap_or(s(1.0));
            pace.in_trouble(now, now, None);
        }
        let now = pace.pause_ends(s(0.0)).unwrap();
        assert_eq!((pace.limit(now - s(0.1)), pace.credits(now - s(0.1))), (0, 0));
        assert_eq!((pace.limit(now), pace.credits(now)), (1, 1));
        // Of a request from before.
        pace.well(s(1.0));
        assert_eq!(pace.limit(now), 1);
        let mut limits = Vec::new();
        for _ in 0..4 {
            pace.well(now);
            limits.push(pace.limit(now));
        }
        assert_eq!((limits, pace.credits(now)), (vec![2, 4, 5, 5], 5));
        pace.in_trouble(now, now, None);
        assert_eq!(pace.pause_ends(now), Some(now + FIRST_PAUSE), "troubles are counted anew");
        assert_eq!(pace.credits(now), 2, "a short pause gives nothing back");
    }

    #[test]
    fn requests_that_fail_together_are_one_trouble() {
        let mut pace = Pace::new(100);
        for at in 0..100 {
            pace.in_trouble(s(1.0 + f64::from(at) / 1000.0), s(0.5), None);
        }
        assert_eq!(pace.pause_ends(s(1.0)), Some(s(1.0) + FIRST_PAUSE));
        assert_eq!(pace.limit(s(2.0)), 1);
    }

    #[test]
    fn endpoint_that_wants_requests_later_gets_none_until_then_or_for_a_minute() {
        let mut pace = Pace::new(2);
        pace.in_trouble(s(1.0), s(0.0), Some(s(20.0)));
        assert_eq!((pace.limit(s(20.9)), pace.limit(s(21.0))), (0, 1));
        // The other one of that time says so too.
        pace.in_trouble(s(1.5), s(0.0), Some(s(30.0)));
        assert_eq!((pace.limit(s(31.4)), pace.limit(s(31.5))), (0, 1));
        pace.in_trouble(s(40.0), s(40.0), Some(s(3600.0)));
        assert_eq!((pace.limit(s(99.9)), pace.limit(s(100.0))), (0, 1));
    }
}
