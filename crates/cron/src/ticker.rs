//! The decisions for one cron of one program: when to look at its row, when to claim a tick, when to
//! call the handler.
//!
//! Time is an argument. The wall clock says when to look; whether a tick has come is decided by the
//! database, where a key expires at that time. The lease of a claim is measured by the observers,
//! each by its own monotonic clock: a row that runs and does not change for [`LEASE`] has lost its
//! program.

use std::time::Duration;

use crate::row::{Row, State};
use crate::schedule::Schedule;
use crate::step::{Event, Now, Sight, Step, Version, Write};

/// A row that runs and does not change for so long has lost its program.
pub const LEASE: Duration = Duration::from_secs(30);
/// The row of another program's run is looked at so often, to hear soon that the program has left.
const LOOK: Duration = Duration::from_secs(5);
/// The holder of a row changes it so often. Two changes may fail within a lease.
const RENEW: Duration = Duration::from_secs(9);
/// A handler that does not end for so long does not keep the ticks from the other programs any
/// longer.
const LONGEST_RUN: Duration = Duration::from_secs(3600);
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

const _: () = assert!(RENEW.as_millis() * 3 < LEASE.as_millis());

/// A tick that this program runs.
#[derive(Debug, Clone)]
struct Run {
    /// The row as it was written last. `None`: another program may have the tick by now.
    claim: Option<(Row, Version)>,
    handler: Handler,
    /// The row is written anew then.
    renew: Duration,
    asked: Asked,
}

#[derive(Debug, Clone, Copy)]
enum Handler {
    RunsSince(Duration),
    /// It has failed, and is called again then.
    CalledAgain(Duration),
}

/// The question to the database that is open in the middle of a run.
#[derive(Debug, Clone)]
enum Asked {
    Nothing,
    Row,
    Write(Row),
}

/// A run of another program, as an observer has it.
#[derive(Debug)]
struct Watched {
    version: Version,
    /// It may be taken over then, if the row has not changed.
    until: Duration,
    /// The row is looked at then.
    look: Duration,
}

#[derive(Debug, Clone)]
enum Phase {
    /// Until the next tick, or the lease of another program has run out.
    Idle,
    /// The row is read.
    Looking,
    /// The row is written, such that another tick comes next. Then it is read again.
    Aiming,
    /// The row is written, such that the handler may be called.
    Claiming(Row),
    Running(Run),
    /// The outcome of the tick is written.
    Settling,
}

/// One cron of one program.
#[derive(Debug)]
pub struct Ticker {
    schedule: Schedule,
    /// The pauses before further attempts.
    backoff: Vec<Duration>,
    /// The name of this cron of this program, in the fleet.
    holder: String,
    phase: Phase,
    /// The next tick by the wall clock, once the ticker has begun.
    target: Option<u64>,
    /// A tick that has come.
    pending: Option<u64>,
    /// The run of another program.
    watched: Option<Watched>,
    /// The row is not looked at before then.
    paused_until: Option<Duration>,
    pause: Duration,
    /// The outcome of a tick, which may not be in the row yet.
    unsettled: Option<Row>,
    /// The program is gone.
    has_left: bool,
}

impl Ticker {
    /// `holder` is unique in the fleet. The first event is [`Event::Woken`].
    pub fn new(schedule: Schedule, backoff: Vec<Duration>, holder: String) -> Self {
        Self {
            schedule,
            backoff,
            holder,
            phase: Phase::Idle,
            target: None,
            pending: None,
            watched: None,
            paused_until: None,
            pause: FIRST_PAUSE,
            unsettled: None,
            has_left: false,
        }
    }

    /// The next thing to do. Each has one event as its outcome, and no other comes meanwhile, but
    /// that a wait may end by any.
    pub fn step(&mut self, now: Now, event: Event) -> Step {
        if matches!(event, Event::Left) {
            self.has_left = true;
        }
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

    /// The tick that has come, and the next one.
    fn note_time(&mut self, now: Now) {
        let next = self.schedule.next_after(now.wall_ms);
        // The clock may have been set back.
        self.pending = self.pending.filter(|tick| *tick <= now.wall_ms);
        if let Some(target) = self.target {
            // It is the latest of several, where the clock has jumped.
            self.pending = self.schedule.latest(target, now.wall_ms).or(self.pending);
        }
        self.target = Some(next);
    }

    fn idle(&mut self, now: Now) -> Step {
        let begins = self.target.is_none();
        self.note_time(now);
        if self.has_left {
            // A claim without an answer may still become one.
            return if self.paused_until.is_some() { self.look() } else { Step::End };
        }
        let paused_until = self.paused_until.unwrap_or_default();
        let watches = self.watched.as_ref().is_some_and(|run| run.look <= now.monotonic);
        let wants_to_look = begins || self.pending.is_some() || watches;
        if (wants_to_look || self.paused_until.is_some()) && paused_until <= now.monotonic {
            return self.look();
        }
        let wait = match (&self.watched, paused_until.checked_sub(now.monotonic)) {
            (_, Some(pause)) => pause,
            (Some(run), None) => self.until_tick(now).min(run.look.saturating_sub(now.monotonic)),
            (None, None) => self.until_tick(now),
        };
        Step::Wait(wait.clamp(Duration::from_millis(1), LONGEST_WAIT))
    }

    fn until_tick(&self, now: Now) -> Duration {
        Duration::from_millis(self.target.unwrap_or(u64::MAX).saturating_sub(now.wall_ms))
    }

    fn look(&mut self) -> Step {
        self.paused_until = None;
        self.phase = Phase::Looking;
        Step::Read
    }

    /// Looks again after a pause, which is longer each time.
    fn pause(&mut self, now: Now) -> Step {
        self.paused_until = Some(now.monotonic + self.pause);
        self.pause = (self.pause * 2).min(LONGEST_PAUSE);
        if self.has_left {
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
        let is_mine = row.holder.as_deref() == Some(&*self.holder);
        if let (State::Running, true, Some(version)) = (row.state, is_mine, &version) {
            // The answer to a write was lost.
            return match self.unsettled.take() {
                Some(settled) => self.settle(settled, Some(version.clone())),
                None => self.begin(now, row, version.clone()),
            };
        }
        self.unsettled = None;
        if self.has_left {
            return Step::End;
        }
        if row.state != State::Done {
            return self.watch(now, row, version);
        }
        self.watched = None;
        let tick = self.pending.filter(|tick| *tick > row.tick);
        self.pending = tick;
        let Some(tick) = tick else {
            // The first program to have the cron says when it is due, by the cluster's time.
            return match version {
                Some(_) => self.rest(now),
                None => self.aim(row, None, self.target.unwrap_or(u64::MAX)),
            };
        };
        if row.next != tick || version.is_none() {
            return self.aim(row, version, tick);
        }
        if !sight.is_due {
            return self.pause(now);
        }
        let next = self.schedule.next_after(tick.max(now.wall_ms));
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
    fn pass_over(&mut self, now: Now, row: &Row) {
        let is_fresh = |tick: &u64| *tick > row.tick && tick + OVERLAP_MS > now.wall_ms;
        self.pending = self.pending.filter(is_fresh);
    }

    /// A tick is in progress elsewhere. Until it is over or taken over, no other begins.
    fn watch(&mut self, now: Now, row: Row, version: Option<Version>) -> Step {
        self.pass_over(now, &row);
        let Some(version) = version else { return self.pause(now) };
        let until = match &self.watched {
            Some(watched) if watched.version == version => watched.until,
            _ if row.state == State::Left => now.monotonic + self.pause_before(row.failures),
            _ => now.monotonic + LEASE,
        };
        if now.monotonic < until {
            let look = until.min(now.monotonic + LOOK);
            self.watched = Some(Watched { version, until, look });
            return if self.pending.is_some() { self.pause(now) } else { self.rest(now) };
        }
        self.watched = None;
        // A program that is gone has failed.
        let failures = row.failures + u32::from(row.state == State::Running);
        if self.has_attempt(failures) {
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
        self.pass_over(now, &row);
        self.watched = None;
        self.paused_until = None;
        self.pause = FIRST_PAUSE;
        if self.has_left {
            return self.leave(row, version);
        }
        self.phase = Phase::Running(Run {
            claim: Some((row, version)),
            handler: Handler::RunsSince(now.monotonic),
            renew: now.monotonic + RENEW,
            asked: Asked::Nothing,
        });
        Step::Invoke
    }

    /// Another program may run the tick again, as if it had failed here.
    fn leave(&mut self, row: Row, version: Version) -> Step {
        let failures = row.failures + 1;
        let state = if self.has_attempt(failures) { State::Left } else { State::Done };
        self.settle(Row { failures, state, ..row }, Some(version))
    }

    /// Goes on with a run.
    fn run(&mut self, now: Now, mut run: Run, event: Event) -> Step {
        self.note_time(now);
        if let Some((row, _)) = &run.claim {
            self.pass_over(now, row);
        }
        match (std::mem::replace(&mut run.asked, Asked::Nothing), event) {
            (Asked::Write(row), Event::Written(version)) => {
                run.renew = now.monotonic + RENEW;
                run.claim = (row.state == State::Running).then_some((row, version));
                if let (Handler::CalledAgain(when), true) = (run.handler, run.claim.is_some())
                    && when <= now.monotonic
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
        let (Some((row, version)), Handler::RunsSince(_)) = (run.claim, run.handler) else {
            return self.look();
        };
        if success {
            return self.settle(Row { state: State::Done, ..row }, Some(version));
        }
        let failures = row.failures + 1;
        if !self.has_attempt(failures) {
            return self.settle(Row { failures, state: State::Done, ..row }, Some(version));
        }
        let handler = Handler::CalledAgain(now.monotonic + self.pause_before(failures));
        let claim = Some((Row { failures, ..row }, version));
        self.go_on(now, Run { claim, handler, ..run })
    }

    /// The next step of a run of which no question is open.
    fn go_on(&mut self, now: Now, mut run: Run) -> Step {
        let Some((row, version)) = run.claim.clone() else {
            // It is not called again before it has ended.
            if self.has_left || matches!(run.handler, Handler::CalledAgain(_)) {
                return self.look();
            }
            self.phase = Phase::Running(run);
            return Step::Wait(LONGEST_WAIT);
        };
        if self.has_left {
            return self.leave(row, version);
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
