//! When a leader's lease on reads is not to be counted on, though openraft says that a quorum
//! answered lately.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::clock::boot_time;

/// Between the two clocks, read one after the other.
const CLOCK_SLACK: Duration = Duration::from_millis(5);

/// The clock that leases run on, and the clock that also runs while the machine is suspended.
#[derive(Debug, Clone, Copy)]
struct Clocks {
    now: Instant,
    boot_time: Duration,
}

impl Clocks {
    fn read() -> Self {
        Self { now: Instant::now(), boot_time: boot_time() }
    }
}

/// Says no for as long as followers grant their leases,
/// - after a follower took longer to answer than the lease leaves room for: openraft may have
///   credited the leader with the sending time of a later request than the answered one, ahead by
///   as much;
/// - after the machine was suspended: the clock that leases are counted on stood still meanwhile,
///   and others' did not.
pub(crate) struct LeaseTrust {
    /// How much shorter the lease is than what followers grant.
    slack: Duration,
    granted: Duration,
    clocks: Box<dyn Fn() -> Clocks + Send + Sync>,
    state: Mutex<State>,
}

struct State {
    distrusted_until: Option<Instant>,
    /// How far the clock that counts suspensions is ahead of the other clock, which does not.
    suspended: Duration,
    started: Clocks,
    /// When the requests were sent whose answers openraft is being told.
    being_told: BTreeMap<u64, Instant>,
    next: u64,
}

impl LeaseTrust {
    pub(crate) fn new(granted: Duration, slack: Duration) -> Self {
        Self::on(granted, slack, Clocks::read)
    }

    fn on(
        granted: Duration,
        slack: Duration,
        clocks: impl Fn() -> Clocks + Send + Sync + 'static,
    ) -> Self {
        let (started, being_told) = (clocks(), BTreeMap::new());
        let state = State {
            distrusted_until: None,
            suspended: Duration::ZERO,
            started,
            being_told,
            next: 0,
        };
        Self { slack, granted, clocks: Box::new(clocks), state: Mutex::new(state) }
    }

    /// To be called before openraft hears of the answer to what was sent then, and the result kept
    /// until openraft has noted it. This thread may stand still at any instant in between, while
    /// others go on: what openraft notes then may be as far ahead as the whole of that took.
    pub(crate) fn answered(self: &Arc<Self>, sent: Instant) -> Telling {
        let mut state = self.state.lock();
        state.next += 1;
        let answer = state.next;
        state.being_told.insert(answer, sent);
        Telling { trust: Arc::clone(self), answer }
    }

    /// To be asked after openraft was asked when each member answered.
    pub(crate) fn holds(&self) -> bool {
        let mut state = self.state.lock();
        let clocks = (self.clocks)();
        state.noticed(clocks, self.granted);
        let is_late = |sent: &Instant| clocks.now.saturating_duration_since(*sent) >= self.slack;
        state.distrusted_until.is_none_or(|until| until <= clocks.now)
            && !state.being_told.values().any(is_late)
    }
}

/// That openraft is being told of an answer.
pub(crate) struct Telling {
    trust: Arc<LeaseTrust>,
    answer: u64,
}

impl Drop for Telling {
    fn drop(&mut self) {
        let LeaseTrust { slack, granted, clocks, state } = &*self.trust;
        let mut state = state.lock();
        let now = clocks().now;
        let sent = state.being_told.remove(&self.answer);
        if sent.is_some_and(|sent| now.saturating_duration_since(sent) >= *slack) {
            state.distrusted_until = Some(now + *granted);
        }
    }
}

impl State {
    fn noticed(&mut self, clocks: Clocks, granted: Duration) {
        let elapsed = clocks.now.saturating_duration_since(self.started.now);
        let suspended =
            clocks.boot_time.saturating_sub(self.started.boot_time).saturating_sub(elapsed);
        if suspended > self.suspended + CLOCK_SLACK {
            self.distrusted_until = Some(clocks.now + granted);
        }
        self.suspended = suspended;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANTED: Duration = Duration::from_millis(450);
    const SLACK: Duration = Duration::from_millis(225);

    /// A machine whose clocks are moved by hand.
    struct Machine {
        clocks: Arc<Mutex<Clocks>>,
        trust: Arc<LeaseTrust>,
    }

    impl Machine {
        fn new() -> Self {
            let clocks = Arc::new(Mutex::new(Clocks {
                now: Instant::now(),
                boot_time: Duration::from_secs(1000),
            }));
            let read = Arc::clone(&clocks);
            Self { clocks, trust: Arc::new(LeaseTrust::on(GRANTED, SLACK, move || *read.lock())) }
        }

        fn now(&self) -> Instant {
            self.clocks.lock().now
        }

        fn runs(&self, ms: u64) {
            self.clocks.lock().now += Duration::from_millis(ms);
            self.sleeps(ms);
        }

        fn sleeps(&self, ms: u64) {
            self.clocks.lock().boot_time += Duration::from_millis(ms);
        }

        fn assert_distrusts_for(&self, granted: Duration) {
            assert!(!self.trust.holds());
            let ms = u64::try_from(granted.as_millis()).unwrap();
            self.runs(ms - 1);
            assert!(!self.trust.holds(), "too early: followers' leases have not run out yet");
            self.runs(1);
            assert!(self.trust.holds());
        }
    }

    #[test]
    fn an_answer_that_took_longer_than_there_is_room_for_is_not_counted_on() {
        let machine = Machine::new();
        let sent = machine.now();
        machine.runs(224);
        drop(machine.trust.answered(sent));
        assert!(machine.trust.holds());
        machine.runs(1);
        drop(machine.trust.answered(sent));
        machine.assert_distrusts_for(GRANTED);
    }

    #[test]
    fn the_latest_slow_answer_counts() {
        let machine = Machine::new();
        let sent = machine.now();
        machine.runs(300);
        drop(machine.trust.answered(sent));
        machine.runs(400);
        drop(machine.trust.answered(sent));
        // An answer that came in time takes nothing back.
        drop(machine.trust.answered(machine.now()));
        machine.assert_distrusts_for(GRANTED);
    }

    /// A thread that stands still right after it was seen that the answer came in time.
    #[test]
    fn an_answer_counts_from_when_openraft_has_noted_it() {
        let machine = Machine::new();
        let telling = machine.trust.answered(machine.now());
        let other = machine.trust.answered(machine.now());
        machine.runs(224);
        assert!(machine.trust.holds());
        machine.runs(1);
        assert!(!machine.trust.holds());
        machine.runs(1000);
        assert!(!machine.trust.holds());
        drop(other);
        machine.runs(100);
        drop(telling);
        machine.assert_distrusts_for(GRANTED);
    }

    #[test]
    fn after_a_suspension_no_lease_is_trusted_that_could_be_from_before() {
        let machine = Machine::new();
        machine.runs(10_000);
        assert!(machine.trust.holds());
        machine.sleeps(5);
        assert!(machine.trust.holds(), "the clocks are read one after the other");
        machine.runs(1);
        machine.sleeps(300);
        machine.assert_distrusts_for(GRANTED);
        // Once is enough; and again for the next one.
        machine.runs(10_000);
        assert!(machine.trust.holds());
        machine.sleeps(6);
        machine.assert_distrusts_for(GRANTED);
    }
}
