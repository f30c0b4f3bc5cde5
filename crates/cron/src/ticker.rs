//! The decisions for one cron of one program: when to look at its row, when to claim a tick, when to
//! call the handler.
//!
//! Time is an argument. The wall clock says when to look, unless the cluster's time is known to be
//! behind it; whether a tick has come is decided by the database, where a key expires at that time.
//! The lease of a claim is measured by the observers, each by its own monotonic clock: a row that runs
//! and does not change for [`LEASE`] has lost its program.

use std::time::Duration;

use crate::phase::{Asked, Handler, Phase, Run, Watched};
use crate::row::{Row, State};
use crate::schedule::Schedule;
use crate::step::{Event, Now, Sight, Step, Version, Warning, Write};
use crate::ticks::Ticks;

/// A row that runs and does not change for so long has lost its program.
pub const LEASE: Duration = Duration::from_secs(45);
/// A database that is not reached for so long costs no holder its lease.
const CUT_OFF: Duration = Duration::from_secs(30);
/// A question that was not answered within this time has no answer.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(5);
/// A write that was answered later says nothing of now: this process stood still.
const FRESH: Duration = Duration::from_secs(15);
/// The row of another program's run is looked at so often, to hear soon that the program has left.
const LOOK: Duration = Duration::from_secs(5);
/// The holder of a row changes it so often.
const RENEW: Duration = Duration::from_secs(9);
/// A handler that does not end for so long does not keep the ticks from the other programs any
/// longer.
const LONGEST_RUN: Duration = Duration::from_secs(3600);
/// A tick that a program has left is not run again so long after it, and after its pauses.
const LATE: Duration = Duration::from_secs(3600);
/// The pauses before the row is looked at again, when the tick had not come by the cluster's time or
/// the database did not answer.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// A renewal that was not answered is tried again after so long.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(10);
/// A clock that was set is noticed after so long.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// A tick that comes so short before the end of a run is run after it. Clocks differ by less.
const OVERLAP_MS: u64 = 5000;

/// A clock that is so far ahead is told of.
const AHEAD_MS: u64 = 60_000;
/// A tick that is so far ahead of a clock is told of.
const FUTURE_MS: u64 = 3_600_000;
/// Programs do not look at the same moment.
const JITTER_MS: u64 = 200;

// The last question before the database is cut off, and the first one after it.
const _: () = assert!(
    RENEW.as_millis() + CUT_OFF.as_millis() + TIMEOUT.as_millis() + ASK_AGAIN.as_millis()
        <= LEASE.as_millis()
);
const _: () = assert!(TIMEOUT.as_millis() < FRESH.as_millis());
const _: () = assert!(FRESH.as_millis() * 3 <= LEASE.as_millis());

/// One cron of one program.
#[derive(Debug)]
pub struct Ticker {
    ticks: Ticks,
    /// The pauses before further attempts.
    backoff: Vec<Duration>,
    /// The name of this cron of this program, in the fleet.
    holder: String,
    phase: Phase,
    /// The question to the database that is open was sent then.
    asked_at: Duration,
    /// The run of another program.
    watched: Option<Watched>,
    /// The row is not looked at before then.
    paused_until: Option<Duration>,
    pause: Duration,
    /// The outcome of a tick, which may not be in the row yet.
    unsettled: Option<Row>,
    /// The program is gone.
    has_left: bool,
    /// This process is about to end.
    stops: bool,
    warning: Option<Warning>,
}

impl Ticker {
    /// `holder` is unique in the fleet. The first event is [`Event::Woken`].
    pub fn new(schedule: Schedule, backoff: Vec<Duration>, holder: String) -> Self {
        Self {
            ticks: Ticks::new(schedule),
            backoff,
            holder,
            phase: Phase::Idle,
            asked_at: Duration::ZERO,
            watched: None,
            paused_until: None,
            pause: FIRST_PAUSE,
            unsettled: None,
            has_left: false,
            stops: false,
            warning: None,
        }
    }

    /// The program has registered the cron anew. A call that is open stays so.
    pub fn change(&mut self, schedule: Schedule, backoff: Vec<Duration>) {
        self.ticks.change(schedule);
        self.backoff = backoff;
    }

    /// This process is about to end: nothing is begun. A handler that runs may end before.
    pub fn stop(&mut self) {
        self.stops = true;
    }

    /// A reason why ticks do not come, for the operator.
    pub fn warning(&self) -> Option<Warning> {
        self.warning
    }

    /// The next thing to do. Each has one event as its outcome, and no other comes meanwhile, but
    /// that a wait may end by any.
    pub fn step(&mut self, now: Now, event: Event) -> Step {
        if matches!(event, Event::Left) {
            self.has_left = true;
        }
        let step = self.take(now, event);
        if matches!(step, Step::Read | Step::Write(_)) {
            self.asked_at = now.monotonic;
        }
        step
    }

    fn take(&mut self, now: Now, event: Event) -> Step {
        // The row tells the outcome of a write that was not answered.
        match (std::mem::replace(&mut self.phase, Phase::Idle), event) {
            (Phase::Looking, Event::Read(sight)) => self.decide(now, sight),
            (Phase::Aiming, Event::Written(_)) => self.look(),
            (Phase::Claiming(row), Event::Written(version)) => self.begin(now, row, version),
            (Phase::Settling, Event::Written(_)) => {
                self.unsettled = None;
                self.rest(now)
            }
            (Phase::Aiming | Phase::Claiming(_) | Phase::Settling, Event::Conflict) => self.look(),
            (Phase::Running(run), event) => self.run(now, run, event),
            (Phase::Idle, _) => self.idle(now),
            _ => self.pause(now),
        }
    }

    fn is_ending(&self) -> bool {
        self.has_left || self.stops
    }

    /// Whether an answer came so late that the row may have changed since.
    fn is_stale(&self, now: Now) -> bool {
        now.monotonic.saturating_sub(self.asked_at) > FRESH
    }

    fn idle(&mut self, now: Now) -> Step {
        let begins = self.ticks.begin();
        self.ticks.note(now);
        if self.is_ending() {
            // A claim without an answer may still become one.
            return if self.paused_until.is_some() { self.look() } else { Step::End };
        }
        let paused_until = self.paused_until.unwrap_or_default();
        let watches = self.watched.as_ref().is_some_and(|run| run.look <= now.monotonic);
        let wants_to_look = begins || self.ticks.has_pending() || watches;
        if (wants_to_look || self.paused_until.is_some()) && paused_until <= now.monotonic {
            return self.look();
        }
        let until_tick = self.ticks.until_next(now) + self.jitter();
        let wait = match (&self.watched, paused_until.checked_sub(now.monotonic)) {
            (_, Some(pause)) => pause,
            (Some(run), None) => until_tick.min(run.look.saturating_sub(now.monotonic)),
            (None, None) => until_tick,
        };
        Step::Wait(wait.clamp(Duration::from_millis(1), LONGEST_WAIT))
    }

    /// The same for each question of this program, and another for others.
    fn jitter(&self) -> Duration {
        let mix = |sum: u64, byte: u8| sum.wrapping_mul(31).wrapping_add(byte.into());
        Duration::from_millis(self.holder.bytes().fold(0, mix) % JITTER_MS)
    }

    fn look(&mut self) -> Step {
        self.paused_until = None;
        self.phase = Phase::Looking;
        Step::Read
    }

    /// Looks again after a pause, which is longer each time.
    fn pause(&mut self, now: Now) -> Step {
        self.paused_until = Some(now.monotonic + self.pause + self.jitter());
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if self.is_ending() {
            self.phase = Phase::Idle;
            return Step::Wait(self.pause);
        }
        self.idle(now)
    }

    /// The row is as it should be.
    fn rest(&mut self, now: Now) -> Step {
        self.pause = FIRST_PAUSE;
        self.paused_until = None;
        self.idle(now)
    }

    /// Decides by the row.
    fn decide(&mut self, now: Now, sight: Sight) -> Step {
        let (row, version) = match sight.row {
            Some((row, version)) => (row, Some(version)),
            None => (Row::default(), None),
        };
        if version.is_some() && !sight.is_due {
            self.ticks.not_due(now, row.next);
        }
        let is_mine = row.holder.as_deref() == Some(&*self.holder);
        if let (State::Running, true, Some(version)) = (row.state, is_mine, &version) {
            // The answer to a write was lost. The claim may be old, and the handler was not called.
            let version = Some(version.clone());
            return match self.unsettled.take() {
                Some(settled) => self.settle(settled, version),
                None if self.is_ending() => self.give_away(row, version),
                None => self.claim(row, version, false),
            };
        }
        self.unsettled = None;
        if self.is_ending() {
            return Step::End;
        }
        if row.state != State::Done {
            return self.watch(now, row, version);
        }
        self.watched = None;
        if row.tick.saturating_sub(FUTURE_MS) > now.wall_ms {
            self.warning = Some(Warning::TickAhead);
        }
        let Some(tick) = self.ticks.behind(row.tick) else {
            return match version {
                // This clock is ahead of the cluster's time.
                Some(_) if !sight.is_due && row.next <= now.wall_ms => {
                    if row.next.saturating_add(AHEAD_MS) < now.wall_ms {
                        self.warning = Some(Warning::ClockAhead);
                    }
                    self.pause(now)
                }
                Some(_) => self.rest(now),
                // The first program to have the cron says when it is due, by the cluster's time.
                None => self.aim(row, None, self.ticks.next()),
            };
        };
        if row.next != tick || version.is_none() {
            return self.aim(row, version, tick);
        }
        if !sight.is_due {
            return self.pause(now);
        }
        let next = self.ticks.after(tick);
        let row = Row { tick, next, failures: 0, state: State::Running, holder: None };
        self.claim(row, version, true)
    }

    fn aim(&mut self, row: Row, check: Option<Version>, next: u64) -> Step {
        self.phase = Phase::Aiming;
        // The tick is claimed behind it.
        self.paused_until = None;
        let row = Row { next, ..row };
        Step::Write(Write { check, check_due: false, row, sets_due: true })
    }

    /// A tick that comes during a run is not run, unless the run is about to end.
    fn pass_over(&mut self, now: Now) {
        let time = self.ticks.heard_time(now);
        // A time that is heard of may be ahead by the pause between two looks.
        let looks = u64::try_from(LONGEST_PAUSE.as_millis()).unwrap_or(u64::MAX);
        let overlap = OVERLAP_MS + now.wall_ms.saturating_sub(time).min(looks);
        self.ticks.pass_over(time.saturating_sub(overlap).saturating_add(1));
    }

    /// A tick is in progress elsewhere. Until it is over or taken over, no other begins.
    fn watch(&mut self, now: Now, row: Row, version: Option<Version>) -> Step {
        self.pass_over(now);
        self.ticks.behind(row.tick);
        let Some(version) = version else { return self.pause(now) };
        let until = match &self.watched {
            Some(watched) if watched.version == version => watched.until,
            _ if row.state == State::Left => now.monotonic + self.pause_before(row.failures),
            _ => now.monotonic + LEASE,
        };
        if now.monotonic < until {
            let look = until.min(now.monotonic + LOOK);
            self.watched = Some(Watched { version, until, look });
            return if self.ticks.has_pending() { self.pause(now) } else { self.rest(now) };
        }
        self.watched = None;
        // A program that is gone has failed.
        let failures = row.failures.saturating_add(u32::from(row.state == State::Running));
        if self.has_attempt(failures) && !self.is_late(now, row.tick) {
            let row = Row { failures, state: State::Running, holder: None, ..row };
            self.claim(row, Some(version), false)
        } else {
            self.settle(Row { failures, state: State::Done, ..row }, Some(version))
        }
    }

    /// Before the attempt that follows so many failures.
    fn pause_before(&self, failures: u32) -> Duration {
        let index = usize::try_from(failures).unwrap_or(usize::MAX).saturating_sub(1);
        self.backoff.get(index).copied().unwrap_or_default()
    }

    /// After so many failures there is another attempt.
    fn has_attempt(&self, failures: u32) -> bool {
        usize::try_from(failures).is_ok_and(|failures| failures <= self.backoff.len())
    }

    /// Whether a tick that was left has been missed.
    fn is_late(&self, now: Now, tick: u64) -> bool {
        let pauses = self.backoff.iter().fold(LATE, |sum, pause| sum.saturating_add(*pause));
        let pauses = u64::try_from(pauses.as_millis()).unwrap_or(u64::MAX);
        self.ticks.heard_time(now) > tick.saturating_add(pauses)
    }

    fn claim(&mut self, row: Row, check: Option<Version>, is_new: bool) -> Step {
        let row = Row { holder: Some(self.holder.clone()), ..row };
        self.phase = Phase::Claiming(row.clone());
        Step::Write(Write { check, check_due: is_new, row, sets_due: is_new })
    }

    fn settle(&mut self, row: Row, check: Option<Version>) -> Step {
        let row = Row { holder: None, ..row };
        self.unsettled = Some(row.clone());
        self.phase = Phase::Settling;
        Step::Write(Write { check, check_due: false, row, sets_due: false })
    }

    /// The row says that the handler may be called.
    fn begin(&mut self, now: Now, row: Row, version: Version) -> Step {
        if self.is_ending() {
            return self.give_away(row, Some(version));
        }
        if self.is_stale(now) {
            return self.claim(row, Some(version), false);
        }
        self.pass_over(now);
        self.ticks.behind(row.tick);
        self.watched = None;
        self.paused_until = None;
        self.pause = FIRST_PAUSE;
        self.phase = Phase::Running(Run {
            claim: Some((row, version)),
            handler: Handler::RunsSince(now.monotonic),
            renew: self.asked_at + RENEW,
            asked: Asked::Nothing,
        });
        Step::Invoke
    }

    /// Another program may run the tick again, after so many failures.
    fn give_away(&mut self, row: Row, version: Option<Version>) -> Step {
        let state = if self.has_attempt(row.failures) { State::Left } else { State::Done };
        self.settle(Row { state, ..row }, version)
    }

    /// Goes on with a run.
    fn run(&mut self, now: Now, mut run: Run, event: Event) -> Step {
        self.ticks.note(now);
        if let Some((row, _)) = &run.claim {
            let tick = row.tick;
            self.pass_over(now);
            self.ticks.behind(tick);
        }
        match (std::mem::replace(&mut run.asked, Asked::Nothing), event) {
            (Asked::Write(row), Event::Written(version)) => {
                // A stale answer is asked for again at once.
                let is_stale = self.is_stale(now);
                run.renew = if is_stale { now.monotonic } else { self.asked_at + RENEW };
                run.claim = (row.state == State::Running).then_some((row, version));
                if let (Handler::CalledAgain(when), true) = (run.handler, run.claim.is_some())
                    && when <= now.monotonic
                    && !is_stale
                    && !self.is_ending()
                {
                    run.handler = Handler::RunsSince(now.monotonic);
                    self.phase = Phase::Running(run);
                    return Step::Invoke;
                }
            }
            (Asked::Write(_), Event::Conflict) => {
                run.asked = Asked::Row;
                self.phase = Phase::Running(run);
                return Step::Read;
            }
            (Asked::Row, Event::Read(sight)) => {
                let mine = sight.row.filter(|(row, _)| {
                    row.state == State::Running && row.holder.as_deref() == Some(&*self.holder)
                });
                run.claim = match (run.claim, mine) {
                    (Some((row, _)), Some((_, version))) => Some((row, version)),
                    _ => None,
                };
            }
            (Asked::Write(_) | Asked::Row, _) => {
                run.renew = now.monotonic + ASK_AGAIN;
                if let Handler::CalledAgain(when) = &mut run.handler {
                    *when = run.renew.max(*when);
                }
            }
            (Asked::Nothing, Event::Ended { success }) => return self.ended(now, run, success),
            (Asked::Nothing, _) => {}
        }
        self.go_on(now, run)
    }

    fn ended(&mut self, now: Now, run: Run, success: bool) -> Step {
        if matches!(run.handler, Handler::CalledAgain(_)) {
            // No call is open. It is the end of a handler that was registered before.
            return self.go_on(now, run);
        }
        let Some((row, version)) = run.claim else { return self.look() };
        if success {
            return self.settle(Row { state: State::Done, ..row }, Some(version));
        }
        let failures = row.failures.saturating_add(1);
        if !self.has_attempt(failures) {
            return self.settle(Row { failures, state: State::Done, ..row }, Some(version));
        }
        let handler = Handler::CalledAgain(now.monotonic + self.pause_before(failures));
        let claim = Some((Row { failures, ..row }, version));
        self.go_on(now, Run { claim, handler, ..run })
    }

    /// The next step of a run of which no question is open.
    fn go_on(&mut self, now: Now, mut run: Run) -> Step {
        let has_failed = matches!(run.handler, Handler::CalledAgain(_));
        let Some((row, version)) = run.claim.clone() else {
            // It is not called again before it has ended.
            if self.is_ending() || has_failed {
                return self.look();
            }
            self.phase = Phase::Running(run);
            return Step::Wait(LONGEST_WAIT);
        };
        // The handler ends with its program, and not with this process.
        if has_failed && self.is_ending() {
            return self.give_away(row, Some(version));
        }
        if self.has_left {
            let failures = row.failures.saturating_add(1);
            return self.give_away(Row { failures, ..row }, Some(version));
        }
        let (until, row) = match run.handler {
            Handler::CalledAgain(when) => (when, row),
            Handler::RunsSince(since) if since + LONGEST_RUN <= now.monotonic => {
                // Others may have the ticks that follow.
                (run.renew, Row { state: State::Done, holder: None, ..row })
            }
            Handler::RunsSince(_) => (run.renew, row),
        };
        let until = until.min(run.renew);
        if until <= now.monotonic {
            run.asked = Asked::Write(row.clone());
            self.phase = Phase::Running(run);
            return Step::Write(Write {
                check: Some(version),
                check_due: false,
                row,
                sets_due: false,
            });
        }
        self.phase = Phase::Running(run);
        Step::Wait((until - now.monotonic).max(Duration::from_millis(1)))
    }
}
