//! One program with one cron, and a row that others change.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::time::Duration;

use meridian_cron::{Event, LEASE, Now, Row, Schedule, Sight, State, Step, Ticker, Write};

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
}

impl One {
    fn new(backoff_ms: &[u64]) -> Self {
        let schedule = Schedule::parse("* * * * *").unwrap();
        let backoff = backoff_ms.iter().map(|ms| Duration::from_millis(*ms)).collect();
        let ticker = Ticker::new(schedule, backoff, "me".to_owned());
        Self { ticker, row: None, passed: Duration::ZERO, is_cut_off: false }
    }

    fn state(&self) -> State {
        self.row.as_ref().unwrap().0.state
    }

    /// Goes on until the handler is called, or the ticker ends (then `false`), or the time is over
    /// (`None`).
    fn goes_on(&mut self, mut event: Event, limit: Duration) -> Option<bool> {
        let until = self.passed + limit;
        loop {
            let passed_ms = u64::try_from(self.passed.as_millis()).unwrap();
            let now = Now { wall_ms: BEGIN_MS + passed_ms, monotonic: self.passed };
            event = match self.ticker.step(now, event) {
                Step::Read | Step::Write(_) if self.is_cut_off => Event::NoAnswer,
                Step::Read => {
                    let version = |(row, version): (Row, u64)| (row, stamp(version));
                    Event::Read(Sight { row: self.row.clone().map(version), is_due: true })
                }
                Step::Write(write) => self.write(write),
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
