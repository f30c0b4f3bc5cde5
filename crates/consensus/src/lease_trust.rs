//! When a leader's lease on reads is not to be counted on, though openraft says that a quorum answered lately.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::boot_time;

/// Between the two clocks, read one after the other.
const CLOCK_SLACK: Duration = Duration::from_millis(5);

/// Says no for as long as followers grant their leases,
/// - after a follower took longer to answer than the lease leaves room for: openraft may have credited the leader
///   with the sending time of a later request than the one that was answered, ahead by as much;
/// - after the machine was suspended: the clock that leases are counted on stood still meanwhile, and others' did
///   not.
#[derive(Debug)]
pub(crate) struct LeaseTrust {
    /// How much shorter the lease is than what followers grant.
    slack: Duration,
    granted: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    distrusted_until: Option<Instant>,
    /// How far the clock that counts suspensions is ahead of the one that does not.
    suspended: Duration,
    started: (Instant, Duration),
}

impl LeaseTrust {
    pub(crate) fn new(granted: Duration, slack: Duration) -> Self {
        let started = (Instant::now(), boot_time());
        let state = State { distrusted_until: None, suspended: Duration::ZERO, started };
        Self { slack, granted, state: Mutex::new(state) }
    }

    /// To be called before openraft hears of the answer.
    pub(crate) fn answered(&self, after: Duration) {
        if after >= self.slack {
            self.state.lock().distrusted_until = Some(Instant::now() + self.granted);
        }
    }

    pub(crate) fn holds(&self) -> bool {
        let mut state = self.state.lock();
        let (now, boot_time) = (Instant::now(), boot_time());
        state.noticed(now, boot_time, self.granted);
        state.distrusted_until.is_none_or(|until| until <= now)
    }
}

impl State {
    fn noticed(&mut self, now: Instant, boot_time: Duration, granted: Duration) {
        let (instant, boot_time_then) = self.started;
        let suspended = boot_time.saturating_sub(boot_time_then).saturating_sub(now.duration_since(instant));
        if suspended > self.suspended + CLOCK_SLACK {
            self.distrusted_until = Some(now + granted);
        }
        self.suspended = suspended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANTED: Duration = Duration::from_secs(3600);

    #[test]
    fn an_answer_that_took_longer_than_there_is_room_for_is_not_counted_on() {
        let trust = LeaseTrust::new(GRANTED, Duration::from_millis(225));
        trust.answered(Duration::from_millis(224));
        assert!(trust.holds());
        trust.answered(Duration::from_millis(225));
        assert!(!trust.holds());
    }

    #[test]
    fn after_a_suspension_no_lease_is_trusted_that_could_be_from_before() {
        let (start, boot_time) = (Instant::now(), Duration::from_secs(1000));
        let mut state = State { distrusted_until: None, suspended: Duration::ZERO, started: (start, boot_time) };
        let at = |seconds| Duration::from_secs(seconds);
        state.noticed(start + at(10), boot_time + at(10), at(1));
        assert_eq!(state.distrusted_until, None);
        // Two seconds of sleep.
        state.noticed(start + at(11), boot_time + at(13), at(1));
        assert_eq!(state.distrusted_until, Some(start + at(12)));
        // And once is enough.
        state.noticed(start + at(20), boot_time + at(22), at(1));
        assert_eq!(state.distrusted_until, Some(start + at(12)));
    }
}
