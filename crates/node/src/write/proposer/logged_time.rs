//! The time that a batch says it was made at: it follows the clocks and never goes back.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::host::clocks::Reading;

/// The lead of the clocks over the logged time that is believed at once: the logged time catches up
/// with it, a little faster than time passes.
const TOLERANCE: Duration = Duration::from_secs(1);
/// The part of the time that passes by which the logged time may catch up, from one look at the
/// clocks to the next.
const CATCHING_UP: u32 = 16;
/// The longest that counts for that. No look fell into the rest of the time, so that clocks which
/// happen to be wrong in this look gain nothing from how long it was.
const LOOK: Duration = Duration::from_millis(200);
/// Clocks that were not looked at for so long have to settle anew.
const UNSEEN: Duration = Duration::from_secs(1);
/// How long clocks have to say the same before they are believed against what has passed on this
/// node's monotonic clock, when there are other nodes whose clocks say it too.
const SETTLING: Duration = Duration::from_secs(10);
/// And when there is no clock but this node's: longer than a machine takes to set it after it has
/// started.
const SETTLING_ALONE: Duration = Duration::from_secs(5 * 60);

/// A shard whose time lies before this has never logged what a clock said: nothing in it can have
/// expired, and clocks are believed at once. (2020-01-01, in seconds since the Unix epoch.)
const EARLIEST: Duration = Duration::from_secs(1_577_836_800);
/// By a new shard, when there is no clock but this node's: others have not been heard yet.
const FOUNDING_ALONE: Duration = Duration::from_secs(1);
/// The first leader of a shard proposes nothing before it has a time to log, or so long has passed:
/// the clocks of all nodes may say that it is before [`EARLIEST`].
const FOUNDING: Duration = Duration::from_secs(3);

/// The shard's time as its leader would log it, for others at this node. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct ShardClock(Arc<Mutex<(Duration, Duration)>>);

impl ShardClock {
    /// In milliseconds since the Unix epoch. `now` on the monotonic clock; between two looks at the
    /// clocks time passes as it does there.
    pub(super) fn time_ms(&self, now: Duration) -> u64 {
        let (time, at) = *self.0.lock();
        let passed = now.saturating_sub(at).min(LOOK);
        u64::try_from(time.saturating_add(passed).as_millis()).unwrap_or(u64::MAX)
    }
}

/// The time that a leader logs. Values that expire by it are gone, everywhere and for good, so no
/// clock that is wrong for a while may move it much: see `docs/adr/0015-time-and-expiry.md`.
///
/// It does not go back. It follows the middle of the nodes' clocks, but moves only as far as time
/// has passed here since it was last known, on a clock that does not jump. Clocks that are ahead of
/// that are believed when they have been so, and agreed with themselves, for a while. Being late
/// does no harm: nothing expires too early.
#[derive(Debug)]
pub(super) struct LoggedTime {
    /// Since the Unix epoch.
    time: Duration,
    /// When it was that, on the monotonic clock.
    at: Duration,
    ahead: Option<Ahead>,
    /// The newest time that is in the log, and when that was known here.
    logged: (Duration, Duration),
    /// When this node began to lead, on the monotonic clock.
    began: Duration,
    clock: ShardClock,
}

/// Clocks that are further than time has passed.
#[derive(Debug)]
struct Ahead {
    since: Duration,
    /// Their time then.
    clock: Duration,
}

impl LoggedTime {
    pub(super) fn new(logged_ms: u64, now: Duration) -> Self {
        let logged = Duration::from_millis(logged_ms);
        let clock = ShardClock::default();
        Self { time: logged, at: now, ahead: None, logged: (logged, now), began: now, clock }
    }

    pub(super) fn clock(&self) -> ShardClock {
        self.clock.clone()
    }

    /// The log has this time. From when it is known, time passes here. To be called often,
    /// whichever node leads.
    pub(super) fn learn(&mut self, logged_ms: u64, now: Duration) {
        let logged = Duration::from_millis(logged_ms);
        if logged > self.logged.0 {
            self.logged = (logged, now);
        }
        if logged > self.time {
            (self.time, self.at, self.ahead) = (logged, now, None);
        }
    }

    /// This node begins to lead, and goes on from the log. A time that it reached before, and did
    /// not log, is none of the shard's: it may stem from looks without other clocks.
    pub(super) fn begin(&mut self, logged_ms: u64, now: Duration) {
        self.learn(logged_ms, now);
        (self.time, self.at) = self.logged;
        self.ahead = None;
        self.began = now;
        *self.clock.0.lock() = self.logged;
    }

    /// Whether there is a time to log. A new shard has none until clocks were heard: what it wrote
    /// would count as older than all that is ever compared with it.
    pub(super) fn is_known(&self, now: Duration) -> bool {
        self.time >= EARLIEST || now.saturating_sub(self.began) >= FOUNDING
    }

    /// The time to be logged now, in milliseconds since the Unix epoch. To be asked often while
    /// this node leads: clocks are believed for what they say over time.
    pub(super) fn advance(&mut self, reading: Reading, now: Duration) -> u64 {
        let passed = now.saturating_sub(self.at);
        let reached = self.time.saturating_add(passed);
        let allowed = reached.saturating_add(passed.min(LOOK) / CATCHING_UP);
        let clock = Duration::from_millis(reading.median_ms);
        if passed > UNSEEN {
            self.ahead = None;
        }
        if clock > allowed.saturating_add(TOLERANCE) {
            self.time = if self.is_settled(clock, reading, now) {
                tracing::info!(
                    behind_ms = u64::try_from((clock - allowed).as_millis()).unwrap_or(u64::MAX),
                    "the shard's time goes on to what the nodes' clocks say"
                );
                self.ahead = None;
                clock
            } else {
                reached
            };
        } else {
            self.ahead = None;
            self.time = self.time.max(clock.min(allowed));
        }
        self.at = now;
        *self.clock.0.lock() = (self.time, now);
        u64::try_from(self.time.as_millis()).unwrap_or(u64::MAX)
    }

    fn is_settled(&mut self, clock: Duration, reading: Reading, now: Duration) -> bool {
        let settling = match (self.time < EARLIEST, reading.others) {
            (true, 0) => FOUNDING_ALONE,
            (true, _) => return true,
            (false, 0) => SETTLING_ALONE,
            (false, _) => SETTLING,
        };
        match &self.ahead {
            Some(Ahead { since, clock: then }) => {
                let passed = now.saturating_sub(*since);
                if clock.abs_diff(then.saturating_add(passed)) <= TOLERANCE {
                    return passed >= settling;
                }
                // They say something else now.
                self.ahead = Some(Ahead { since: now, clock });
            }
            None => self.ahead = Some(Ahead { since: now, clock }),
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START_MS: u64 = 1_800_000_000_000;
    const HOUR_MS: u64 = 3_600_000;
    const DAY_MS: u64 = 24 * HOUR_MS;

    /// A leader's clocks: `passed` since the start on the monotonic one.
    struct Leader {
        time: LoggedTime,
        passed_ms: u64,
        others: usize,
    }

    impl Leader {
        fn new(logged_ms: u64, others: usize) -> Self {
            Self { time: LoggedTime::new(logged_ms, Duration::ZERO), passed_ms: 0, others }
        }

        /// A tick each 100 ms, with clocks that are away from what has passed since the start.
        fn run(&mut self, for_ms: u64, offset_ms: i64) -> u64 {
            let mut logged_ms = 0;
            let end_ms = self.passed_ms + for_ms;
            while self.passed_ms < end_ms {
                self.passed_ms += 100;
                logged_ms = self.once(offset_ms);
            }
            logged_ms
        }

        fn once(&mut self, offset_ms: i64) -> u64 {
            let median_ms = (START_MS + self.passed_ms).checked_add_signed(offset_ms).unwrap();
            let reading = Reading { median_ms, own_ms: median_ms, others: self.others };
            self.time.advance(reading, Duration::from_millis(self.passed_ms))
        }

        fn is_known(&self) -> bool {
            self.time.is_known(Duration::from_millis(self.passed_ms))
        }

        fn right_ms(&self) -> u64 {
            START_MS + self.passed_ms
        }
    }

    #[test]
    fn a_new_shard_takes_what_the_clocks_say() {
        let mut leader = Leader::new(0, 2);
        assert!(!leader.is_known());
        assert_eq!(leader.once(0), leader.right_ms());
        assert!(leader.is_known());
        let mut alone = Leader::new(0, 0);
        alone.run(900, 0);
        assert!(alone.once(0) < START_MS && !alone.is_known());
        alone.run(400, 0);
        assert_eq!(alone.once(0), alone.right_ms());
        assert!(alone.is_known());
    }

    #[test]
    fn a_new_shard_whose_clocks_all_begin_in_1970_waits_for_a_while_and_no_longer() {
        let since_1970 = -i64::try_from(START_MS).unwrap();
        let mut leader = Leader::new(0, 2);
        leader.run(2900, since_1970);
        assert!(!leader.is_known());
        leader.run(100, since_1970);
        assert!(leader.is_known());
        // The next leader waits anew, should its clock be right.
        leader.time.begin(3000, Duration::from_millis(leader.passed_ms));
        assert!(!leader.is_known());
    }

    #[test]
    fn it_follows_the_clocks_and_never_goes_back() {
        let mut leader = Leader::new(START_MS, 2);
        assert_eq!(leader.run(10_000, 0), leader.right_ms());
        // Set back by a second, and right again.
        let before = leader.right_ms();
        assert_eq!(leader.run(500, -1000), before);
        assert_eq!(leader.run(10_000, 0), leader.right_ms());
        // A drift that clocks have is followed; many looks in one millisecond lose nothing.
        for step in 1..=200_000u64 {
            let now = Duration::from_millis(leader.passed_ms) + Duration::from_micros(step * 50);
            let median_ms = START_MS + u64::try_from(now.as_millis()).unwrap() + step / 1000;
            leader.time.advance(Reading { median_ms, own_ms: median_ms, others: 2 }, now);
        }
        leader.passed_ms += 10_000;
        let logged_ms = leader.once(200);
        assert!(
            leader.right_ms() + 200 - logged_ms <= 2,
            "behind by {}",
            leader.right_ms() + 200 - logged_ms
        );
    }

    #[test]
    fn it_catches_up_with_clocks_that_are_a_little_ahead_by_a_part_of_the_time_that_passes() {
        let mut leader = Leader::new(START_MS, 2);
        leader.run(1000, 0);
        let gained_ms = leader.run(1600, 900) - leader.right_ms();
        assert!((95..=100).contains(&gained_ms), "{gained_ms}");
        assert_eq!(leader.run(20_000, 900), leader.right_ms() + 900);
    }

    #[test]
    fn a_clock_that_is_ahead_for_a_while_moves_nothing() {
        for (others, wrong_for_ms) in [(2, 9000), (0, 60_000)] {
            let mut leader = Leader::new(START_MS, others);
            leader.run(1000, 0);
            let day_ahead = i64::try_from(DAY_MS).unwrap();
            // One batch, or many.
            let logged_ms = leader.once(day_ahead);
            assert!(logged_ms <= leader.right_ms(), "ahead by {}", logged_ms - leader.right_ms());
            leader.run(1000, 0);
            let logged_ms = leader.run(wrong_for_ms, day_ahead);
            assert_eq!(logged_ms, leader.right_ms());
            // A clock that says something else each time is believed never.
            for jump in 1..200 {
                let logged_ms = leader.run(1000, day_ahead * jump);
                assert!(logged_ms <= leader.right_ms());
            }
            assert_eq!(leader.run(60_000, 0), leader.right_ms());
        }
    }

    #[test]
    fn after_an_outage_it_goes_on_from_what_the_clocks_agree_on() {
        for (others, settling_ms) in [(2, 10_000), (0, 300_000)] {
            // The log ends a day ago; no node has led since.
            let mut leader = Leader::new(START_MS - DAY_MS, others);
            let early_ms = leader.run(settling_ms - 1000, 0);
            assert!(early_ms < leader.right_ms() - 23 * HOUR_MS);
            assert_eq!(leader.run(2000, 0), leader.right_ms());
        }
        // A node that has known the end of the log for a day, and leads now, needs not wait.
        let mut heir = Leader::new(START_MS, 2);
        heir.passed_ms = DAY_MS;
        assert_eq!(heir.once(0), heir.right_ms());
        // And learns what others log meanwhile.
        heir.time.learn(heir.right_ms() + 500, Duration::from_millis(heir.passed_ms));
        assert_eq!(heir.once(0), heir.right_ms() + 500);
    }

    #[test]
    fn a_leader_goes_on_from_what_is_logged_and_not_from_what_it_had_come_to_before() {
        // Its clock is a day ahead, and it leads for long after it heard the last of the others. It
        // logs nothing.
        let mut leader = Leader::new(START_MS, 0);
        let day_ahead = i64::try_from(DAY_MS).unwrap();
        assert_eq!(leader.run(400_000, day_ahead), leader.right_ms() + DAY_MS);
        // It follows another, and leads again.
        leader.passed_ms += 60_000;
        leader.time.learn(leader.right_ms(), Duration::from_millis(leader.passed_ms));
        leader.passed_ms += HOUR_MS;
        leader.time.begin(START_MS, Duration::from_millis(leader.passed_ms));
        leader.others = 2;
        assert_eq!(leader.once(0), leader.right_ms());
        // A time that it logged itself is never taken back.
        leader.time.begin(leader.right_ms() + 500, Duration::from_millis(leader.passed_ms));
        assert_eq!(leader.once(0), leader.right_ms() + 500);
    }

    /// The logged time advances no further than time has passed, whatever the clocks said for a
    /// look or two.
    #[test]
    fn time_catches_up_by_one_look_at_most_however_long_no_look_was_taken() {
        for ahead_ms in [HOUR_MS / 2, DAY_MS] {
            let mut heir = Leader::new(START_MS, 2);
            heir.passed_ms = DAY_MS;
            let logged_ms = heir.once(i64::try_from(ahead_ms).unwrap());
            assert_eq!(logged_ms, heir.right_ms(), "ahead by {}", logged_ms - heir.right_ms());
        }
        // A leader whose clock is a day ahead stands still for an hour, hears no other clock in its
        // first look, and then all of them; or stands still twice.
        let mut leader = Leader::new(START_MS, 2);
        for _ in 0..3 {
            leader.run(2000, 0);
            leader.passed_ms += HOUR_MS;
            leader.others = 0;
            assert_eq!(leader.once(i64::try_from(DAY_MS).unwrap()), leader.right_ms());
            leader.passed_ms += HOUR_MS;
            assert_eq!(leader.once(i64::try_from(DAY_MS).unwrap()), leader.right_ms());
            leader.others = 2;
            assert_eq!(leader.run(2000, 0), leader.right_ms());
        }
    }
}
