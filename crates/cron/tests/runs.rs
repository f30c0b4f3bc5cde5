//! One program with one cron, and a row that others change.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::time::Duration;

use meridian_cron::{Event, LEASE, Now, Row, Schedule, Sight, State, Step, Ticker, Warning, Write};

/// The begin of a minute.
const BEGIN_MS: u64 = 29_000_000 * 60_000;
const HOUR: Duration = Duration::from_secs(3600);

/// A ticker, with its row and its clock.
struct One {
    ticker: Ticker,
    row: Option<(Row, u64)>,
    passed: Duration,
    /// Reads and writes have no answer.
    is_cut_off: bool,
    /// Of the wall clock, to the cluster's time.
    ahead: Duration,
    /// The process stands still for so long behind its next write, and another takes the run over.
    stands_still: Option<Duration>,
}

impl One {
    fn new(backoff_ms: &[u64]) -> Self {
        let schedule = Schedule::parse("* * * * *").unwrap();
        let backoff = backoff_ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        let ticker = Ticker::new(schedule, backoff, "me".to_owned());
        Self {
            ticker,
            row: None,
            passed: Duration::ZERO,
            is_cut_off: false,
            ahead: Duration::ZERO,
            stands_still: None,
        }
    }

    fn time_ms(&self) -> u64 {
        BEGIN_MS + u64::try_from(self.passed.as_millis()).unwrap()
    }

    fn state(&self) -> State {
        self.row.as_ref().unwrap().0.state
    }

    /// Goes on until the handler is called, or the ticker ends (then `false`), or the time is over
    /// (`None`).
    fn goes_on(&mut self, mut event: Event, limit: Duration) -> Option<bool> {
        let until = self.passed + limit;
        loop {
            let ahead_ms = u64::try_from(self.ahead.as_millis()).unwrap();
            let now = Now { wall_ms: self.time_ms() + ahead_ms, monotonic: self.passed };
            event = match self.ticker.step(now, event) {
                Step::Read | Step::Write(_) if self.is_cut_off => Event::NoAnswer,
                Step::Read => {
                    let version = |(row, version): (Row, u64)| (row, stamp(version));
                    let is_due =
                        self.row.as_ref().is_none_or(|(row, _)| row.next <= self.time_ms());
                    Event::Read(Sight { row: self.row.clone().map(version), is_due })
                }
                Step::Write(write) => {
                    let is_claim = write.row.state == State::Running;
                    let event = self.write(write);
                    if is_claim && let Some(wait) = self.stands_still.take() {
                        self.passed += wait;
                        self.set(State::Running, 1);
                    }
                    event
                }
                Step::Wait(wait) => {
                    self.passed += wait;
                    Event::Woken
                }
                Step::Invoke => return Some(true),
                Step::End => return Some(false),
            };
            if self.passed >= until {
                return None;
            }
        }
    }

    fn write(&mut self, write: Write) -> Event {
        let version = self.row.as_ref().map(|(_, version)| *version);
        if write.check != version.map(stamp) {
            return Event::Conflict;
        }
        let version = version.unwrap_or_default() + 1;
        self.row = Some((write.row, version));
        Event::Written(stamp(version))
    }

    /// Another program writes the row.
    fn set(&mut self, state: State, failures: u32) {
        let (row, version) = self.row.clone().unwrap();
        let row = Row { state, failures, holder: Some("other".to_owned()), ..row };
        self.row = Some((row, version + 1));
    }
}

fn stamp(version: u64) -> meridian_cron::Version {
    version.to_be_bytes().to_vec().into()
}

#[test]
fn handler_that_never_ends_keeps_ticks_from_others_for_an_hour_and_is_not_called_again() {
    let mut one = One::new(&[]);
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
    assert_eq!(one.goes_on(Event::Woken, HOUR - Duration::from_secs(30)), None);
    assert_eq!(one.state(), State::Running);
    assert_eq!(one.goes_on(Event::Woken, 3 * HOUR), None);
    assert_eq!(one.state(), State::Done);
    // It is free for the next tick when it has ended after all.
    assert_eq!(one.goes_on(Event::Ended { success: true }, HOUR), Some(true));
}

#[test]
fn handler_is_called_as_often_as_its_schedule_says_and_after_its_pauses() {
    let mut one = One::new(&[100, 7000]);
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
    let failed = Event::Ended { success: false };
    for (pause, failures) in [(100, 1), (7000, 2)] {
        let since = one.passed;
        assert_eq!(one.goes_on(failed.clone(), HOUR), Some(true));
        assert_eq!(one.passed - since, Duration::from_millis(pause));
        let (row, _) = one.row.clone().unwrap();
        assert_eq!((row.state, row.failures), (State::Running, failures));
    }
    let since = one.passed;
    assert_eq!(one.goes_on(failed, HOUR), Some(true), "the next tick");
    assert!(one.passed - since > Duration::from_secs(40));
    assert_eq!(one.row.unwrap().0.failures, 0);
}

#[test]
fn program_that_leaves_gives_its_tick_away_and_one_without_further_attempts_ends_it() {
    for (backoff, state) in [(&[100][..], State::Left), (&[], State::Done)] {
        let mut one = One::new(backoff);
        assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
        assert_eq!(one.goes_on(Event::Left, HOUR), Some(false));
        let (row, _) = one.row.unwrap();
        assert_eq!((row.state, row.failures, row.holder), (state, 1, None));
    }
}

#[test]
fn run_of_another_is_taken_over_when_its_row_has_not_changed_for_a_lease() {
    let mut one = One::new(&[100]);
    // The row is made, and then another program has the tick.
    assert_eq!(one.goes_on(Event::Woken, Duration::from_secs(1)), None);
    one.row.as_mut().unwrap().0.tick = BEGIN_MS;
    one.set(State::Running, 0);
    for _ in 0..9 {
        assert_eq!(one.goes_on(Event::Woken, LEASE - Duration::from_secs(11)), None);
        one.set(State::Running, 0);
    }
    let since = one.passed;
    assert_eq!(one.goes_on(Event::Woken, 4 * LEASE), Some(true));
    assert!(one.passed - since >= LEASE, "{:?}", one.passed - since);
    assert_eq!(one.row.as_ref().unwrap().0.failures, 1);
    // A tick that has failed as often as it may is over.
    one.set(State::Running, 1);
    let tick = one.row.as_ref().unwrap().0.tick;
    assert_eq!(one.goes_on(Event::Ended { success: true }, 4 * LEASE), Some(true));
    let (row, _) = one.row.unwrap();
    assert!(row.tick > tick && row.failures == 0, "{row:?}");
}

#[test]
fn handler_whose_claim_was_lost_is_not_called_again_for_the_tick() {
    let mut one = One::new(&[100, 100]);
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
    one.is_cut_off = true;
    assert_eq!(one.goes_on(Event::Woken, 2 * LEASE), None);
    one.is_cut_off = false;
    one.set(State::Running, 1);
    assert_eq!(one.goes_on(Event::Ended { success: false }, LEASE - Duration::from_secs(1)), None);
    assert_eq!(one.row.as_ref().unwrap().0.holder.as_deref(), Some("other"));
}

#[test]
fn outcome_that_was_not_answered_is_written_and_the_handler_not_called_again() {
    let mut one = One::new(&[100]);
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
    one.is_cut_off = true;
    let ended = Event::Ended { success: true };
    assert_eq!(one.goes_on(ended, Duration::from_secs(5)), None);
    one.is_cut_off = false;
    assert_eq!(one.goes_on(Event::Woken, Duration::from_secs(20)), None);
    assert_eq!(one.state(), State::Done);
}

#[test]
fn clock_that_is_ahead_runs_each_tick_when_the_clusters_time_has_reached_it_and_warns() {
    for ahead in [50, 90, 300] {
        let mut one = One::new(&[]);
        one.ahead = Duration::from_secs(ahead);
        let mut event = Event::Woken;
        let mut last = None;
        for _ in 0..10 {
            assert_eq!(one.goes_on(event, HOUR), Some(true), "{ahead}");
            let tick = one.row.as_ref().unwrap().0.tick;
            assert!(last.is_none_or(|last| tick == last + 60_000), "{last:?} and then {tick}");
            assert!(tick <= one.time_ms() && one.time_ms() < tick + 15_000, "{tick}");
            last = Some(tick);
            event = Event::Ended { success: true };
        }
        assert_eq!(one.ticker.warning(), (ahead > 60).then_some(Warning::ClockAhead));
    }
}

#[test]
fn process_that_ends_renews_its_run_until_the_handler_has_ended_and_begins_nothing() {
    for (success, state, failures) in [(true, State::Done, 0), (false, State::Left, 1)] {
        let mut one = One::new(&[100]);
        assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
        let (_, version) = one.row.clone().unwrap();
        one.ticker.stop();
        assert_eq!(one.goes_on(Event::Woken, 2 * LEASE), None);
        let (row, renewed) = one.row.clone().unwrap();
        assert!(row.state == State::Running && renewed >= version + 6, "{renewed}");
        assert_eq!(one.goes_on(Event::Ended { success }, HOUR), Some(false));
        let (row, _) = one.row.unwrap();
        assert_eq!((row.state, row.failures, row.holder), (state, failures, None));
    }
    let mut one = One::new(&[100]);
    assert_eq!(one.goes_on(Event::Woken, Duration::from_secs(30)), None);
    one.ticker.stop();
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(false), "it has nothing to wait for");
}

#[test]
fn program_that_leaves_between_two_attempts_has_failed_once() {
    let mut one = One::new(&[20_000, 20_000]);
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
    assert_eq!(one.goes_on(Event::Ended { success: false }, Duration::from_secs(1)), None);
    assert_eq!(one.goes_on(Event::Left, HOUR), Some(false));
    let (row, _) = one.row.unwrap();
    assert_eq!((row.state, row.failures), (State::Left, 1));
}

#[test]
fn claim_that_was_lost_while_the_process_stood_still_is_not_begun_on() {
    let mut one = One::new(&[100]);
    one.stands_still = Some(LEASE + Duration::from_secs(5));
    assert_eq!(one.goes_on(Event::Woken, LEASE + Duration::from_secs(80)), None);
    let (row, _) = one.row.unwrap();
    assert_eq!((row.holder.as_deref(), row.failures), (Some("other"), 1));
}

#[test]
fn end_of_an_earlier_handler_between_two_attempts_changes_nothing() {
    let mut one = One::new(&[7000]);
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
    let since = one.passed;
    assert_eq!(one.goes_on(Event::Ended { success: false }, Duration::from_millis(1)), None);
    assert_eq!(one.goes_on(Event::Ended { success: true }, HOUR), Some(true));
    assert_eq!(one.passed - since, Duration::from_secs(7));
    assert_eq!(one.row.unwrap().0.failures, 1);
}

#[test]
fn cron_that_is_registered_anew_is_not_called_while_its_call_is_open() {
    let mut one = One::new(&[]);
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
    one.ticker.change(Schedule::parse("*/5 * * * *").unwrap(), Vec::new());
    assert_eq!(one.goes_on(Event::Woken, Duration::from_secs(1200)), None);
    assert_eq!(one.state(), State::Running);
    assert_eq!(one.goes_on(Event::Ended { success: true }, HOUR), Some(true));
    assert_eq!(one.row.unwrap().0.tick % 300_000, 0);
}

#[test]
fn tick_that_was_left_long_ago_is_not_run_again() {
    for (ago, is_run) in [(3 * 24 * HOUR, false), (HOUR / 2, true)] {
        for state in [State::Left, State::Running] {
            let mut one = One::new(&[100, 100]);
            let tick = BEGIN_MS - u64::try_from(ago.as_millis()).unwrap();
            let holder = Some("gone".to_owned());
            one.row = Some((Row { tick, next: tick + 60_000, failures: 1, state, holder }, 7));
            assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
            let (row, _) = one.row.unwrap();
            assert_eq!(row.tick == tick, is_run, "{state:?} {row:?}");
        }
    }
}

#[test]
fn tick_far_ahead_of_the_clock_is_told_of_and_gone_with_its_row() {
    let mut one = One::new(&[]);
    let tick = BEGIN_MS + 24 * 3_600_000;
    let row = Row { tick, next: tick + 60_000, ..Row::default() };
    one.row = Some((row, 7));
    assert_eq!(one.goes_on(Event::Woken, HOUR / 2), None);
    assert_eq!(one.ticker.warning(), Some(Warning::TickAhead));
    one.row = None;
    assert_eq!(one.goes_on(Event::Woken, HOUR), Some(true));
}
