//! The ticks of a schedule that have come, as far as a program can tell.
//!
//! The program's clock may be ahead of the cluster's time, and the next tick of the row tells by how
//! much: while it has not come, the cluster's time is before it, and goes on from there as time passes
//! here. Without that, each tick of a clock that is ahead would be replaced by the next one before the
//! cluster's time reaches it.

use std::time::Duration;

use crate::schedule::Schedule;
use crate::step::Now;

/// The time that is heard of comes back to this machine's clock by one part in so many of the time that
/// passes: the cluster's time may have caught up with clocks that were right all along.
const CATCHES_UP: u32 = 16;

#[derive(Debug)]
pub(crate) struct Ticks {
    schedule: Schedule,
    /// The cluster's time was this at most, at that monotonic time.
    bound: Option<(u64, Duration)>,
    /// Earlier ticks are not run.
    from: u64,
    /// The latest time that was noted. `None`: the schedule is new.
    noted: Option<u64>,
    /// The next tick after the time that was noted.
    next: u64,
    /// The latest tick that has come.
    pending: Option<u64>,
}

impl Ticks {
    pub(crate) fn new(schedule: Schedule) -> Self {
        Self { schedule, bound: None, from: u64::MAX, noted: None, next: 0, pending: None }
    }

    /// Ticks of the new schedule count from now on.
    pub(crate) fn change(&mut self, schedule: Schedule) {
        *self = Self { bound: self.bound, ..Self::new(schedule) };
    }

    /// Whether the schedule is new.
    pub(crate) fn begin(&self) -> bool {
        self.noted.is_none()
    }

    /// The bound goes on as `passed` gives it, and is below this machine's clock.
    fn at_most(&self, now: Now, passed: impl Fn(Duration) -> Duration) -> u64 {
        let Some((bound, at)) = self.bound else { return now.wall_ms };
        let passed = passed(now.monotonic.saturating_sub(at)).as_millis();
        now.wall_ms.min(bound.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX)))
    }

    /// The cluster's time, or a time ahead of it, as far as that is known.
    pub(crate) fn time(&self, now: Now) -> u64 {
        self.at_most(now, |passed| passed + passed / CATCHES_UP)
    }

    /// The same, if the cluster's time has gone on as time passed here since it was heard of.
    pub(crate) fn heard_time(&self, now: Now) -> u64 {
        self.at_most(now, |passed| passed)
    }

    /// Notes which ticks have come. The schedule is searched when one has, or a clock was set back.
    pub(crate) fn note(&mut self, now: Now) {
        let time = self.time(now);
        let is_known = self.noted.is_some_and(|noted| noted <= time) && time < self.next;
        self.noted = Some(time);
        if !is_known {
            self.next = self.schedule.next_after(time);
            self.from = self.from.min(self.next);
            // It is the latest of several, where the clock has jumped.
            self.pending = self.schedule.latest(self.from, time);
        }
    }

    /// The cluster's time has not reached this one.
    pub(crate) fn not_due(&mut self, now: Now, next: u64) {
        let before = next.saturating_sub(1);
        if before < self.time(now) {
            self.bound = Some((before, now.monotonic));
        }
        self.note(now);
    }

    /// The latest tick that has come, if it is behind another one.
    pub(crate) fn behind(&mut self, tick: u64) -> Option<u64> {
        self.pending = self.pending.filter(|pending| *pending > tick);
        self.pending
    }

    /// Ticks before this time are not run.
    pub(crate) fn pass_over(&mut self, before: u64) {
        self.from = self.from.max(before);
        self.pending = self.pending.filter(|tick| *tick >= before);
    }

    pub(crate) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    pub(crate) fn after(&self, tick: u64) -> u64 {
        self.schedule.next_after(tick)
    }

    pub(crate) fn until_next(&self, now: Now) -> Duration {
        Duration::from_millis(self.next.saturating_sub(self.time(now)))
    }
}
