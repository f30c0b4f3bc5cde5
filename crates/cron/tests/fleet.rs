//! Fleets of programs with one cron, from a seed: clocks that are wrong, answers that are lost,
//! programs and gateways that die, handlers that fail or take long. Every tick runs once.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, reason = "a test")]

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use meridian_cron::{Event, Now, Row, Schedule, Sight, State, Step, Ticker, Write};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

const MINUTE: u64 = 60_000;
const YEAR: i64 = 365 * 24 * 60 * 60_000;
/// The begin of a minute.
const BEGIN: u64 = 29_000_000 * MINUTE;
const RUNS_FOR: u64 = 40 * MINUTE;

/// A protection that is taken out of the database.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Bug {
    None,
    /// A write does not look at the version of the row.
    Unchecked,
    /// Each tick counts as come.
    Early,
}

/// The clocks of a fleet.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Clocks {
    /// One is right, and the others may be a year off.
    OneIsRight,
    /// All are ahead, by as much as five minutes.
    Ahead,
}

enum Happening {
    /// For this holder, whether or not it is there by then.
    Perform(Step, String),
    Deliver(Event, String),
    Wakes(u64),
    HandlerEnds {
        run: u64,
        success: bool,
    },
    Dies {
        with_gateway: bool,
    },
    /// Its clock is set, forward or back.
    ClockIsSet,
    /// Its gateway ends in order, and the program with it.
    Stops,
    Starts,
}

struct Program {
    ticker: Option<Ticker>,
    holder: String,
    clock_ahead_ms: i64,
    /// The number of the wait that is under way.
    waits: Option<u64>,
    run: Option<u64>,
    /// For the next wait.
    news: VecDeque<Event>,
    is_connected: bool,
    stops: bool,
}

struct World {
    random: SmallRng,
    bug: Bug,
    clocks: Clocks,
    now: u64,
    row: Option<(Row, u64)>,
    due_at: Option<u64>,
    versions: u64,
    numbers: u64,
    programs: Vec<Program>,
    /// By time and order; the program, which life of it, and the event's number.
    queue: BinaryHeap<Reverse<(u64, u64, usize)>>,
    happenings: BTreeMap<u64, Happening>,
    outage: (u64, u64),
    waits: u64,
    /// Ticks and the attempts of them.
    begun: BTreeSet<(u64, u32)>,
    ran: BTreeSet<u64>,
    /// Ticks at which another was in progress.
    busy: BTreeSet<u64>,
    violations: Vec<String>,
}

impl World {
    fn new(seed: u64, bug: Bug, clocks: Clocks) -> Self {
        let mut random = SmallRng::seed_from_u64(seed);
        let begins = BEGIN + random.random_range(0..RUNS_FOR);
        let outage = (begins, begins + random.random_range(0..12_000));
        let mut world = Self {
            random,
            bug,
            clocks,
            now: BEGIN,
            row: None,
            due_at: None,
            versions: 0,
            numbers: 0,
            programs: Vec::new(),
            queue: BinaryHeap::new(),
            happenings: BTreeMap::new(),
            outage,
            waits: 0,
            begun: BTreeSet::new(),
            ran: BTreeSet::new(),
            busy: BTreeSet::new(),
            violations: Vec::new(),
        };
        // The first is never killed, and its clock is nearly right. Others may be a year off.
        let others = world.random.random_range(0..5);
        for number in 0..=others {
            let clock_ahead_ms = world.clock(number > 0);
            world.programs.push(Program {
                ticker: None,
                holder: String::new(),
                clock_ahead_ms,
                waits: None,
                run: None,
                news: VecDeque::new(),
                is_connected: false,
                stops: false,
            });
            world.after(1 + number as u64, number, Happening::Starts);
            for _ in 0..3 * u64::from(number > 0) {
                let at = world.random.random_range(0..RUNS_FOR);
                let with_gateway = world.random.random_bool(0.5);
                world.after(at, number, Happening::Dies { with_gateway });
                let at = world.random.random_range(0..RUNS_FOR);
                world.after(at, number, Happening::ClockIsSet);
                let at = world.random.random_range(0..RUNS_FOR);
                world.after(at, number, Happening::Stops);
            }
        }
        world
    }

    fn clock(&mut self, may_be_wrong: bool) -> i64 {
        if self.clocks == Clocks::Ahead {
            return self.random.random_range(50_000..300_000);
        }
        match (may_be_wrong && self.random.random_bool(0.3), self.random.random_bool(0.5)) {
            (true, true) => YEAR,
            (true, false) => -YEAR,
            _ => self.random.random_range(-2000..2000),
        }
    }

    fn after(&mut self, ms: u64, program: usize, happening: Happening) {
        self.numbers += 1;
        self.queue.push(Reverse((self.now + ms, self.numbers, program)));
        self.happenings.insert(self.numbers, happening);
    }

    fn latency(&mut self) -> u64 {
        if self.random.random_bool(0.1) {
            self.random.random_range(0..800)
        } else {
            self.random.random_range(1..60)
        }
    }

    fn run(mut self) -> Vec<String> {
        while let Some(Reverse((at, number, program))) = self.queue.pop() {
            if at > BEGIN + RUNS_FOR {
                break;
            }
            let tick = at / MINUTE * MINUTE;
            if at < tick + 10_000
                && self.row.as_ref().is_some_and(|(row, _)| row.state != State::Done)
            {
                self.busy.insert(tick);
            }
            self.now = at;
            let Some(happening) = self.happenings.remove(&number) else { continue };
            self.happens(program, happening);
        }
        // The first tick may come before the row does, and the last ones may still run.
        let first = if self.clocks == Clocks::Ahead { 7 } else { 2 };
        for tick in (BEGIN + first * MINUTE..BEGIN + RUNS_FOR - 2 * MINUTE).step_by(60_000) {
            if !self.ran.contains(&tick) && !self.busy.contains(&tick) {
                self.violations.push(format!("tick {} did not run", (tick - BEGIN) / MINUTE));
            }
        }
        if self.waits > 5000 {
            self.violations.push(format!("programs woke {} times", self.waits));
        }
        self.violations
    }

    fn happens(&mut self, program: usize, happening: Happening) {
        match happening {
            // It has died twice.
            Happening::Starts if self.programs[program].is_connected => {}
            Happening::Starts => {
                let schedule = Schedule::parse("* * * * *").unwrap();
                let backoff = vec![Duration::from_millis(100), Duration::from_secs(3)];
                self.numbers += 1;
                let holder = format!("{program}-{}", self.numbers);
                let one = &mut self.programs[program];
                one.holder.clone_from(&holder);
                one.is_connected = true;
                one.stops = false;
                one.news.clear();
                one.ticker = Some(Ticker::new(schedule, backoff, holder));
                self.step(program, Event::Woken);
            }
            Happening::Dies { with_gateway } => {
                let one = &mut self.programs[program];
                one.run = None;
                one.is_connected = false;
                if with_gateway {
                    one.ticker = None;
                    self.numbers += 1;
                } else if one.waits.is_some() {
                    self.step(program, Event::Left);
                } else {
                    one.news = VecDeque::from([Event::Left]);
                }
                let back = self.random.random_range(30_000..3 * MINUTE);
                self.after(back, program, Happening::Starts);
            }
            Happening::Stops => {
                let one = &mut self.programs[program];
                let (true, false, Some(ticker)) = (one.is_connected, one.stops, &mut one.ticker)
                else {
                    return;
                };
                ticker.stop();
                one.stops = true;
                if one.waits.is_some() {
                    self.step(program, Event::Woken);
                }
                self.after(10_000, program, Happening::Dies { with_gateway: true });
            }
            Happening::ClockIsSet => self.programs[program].clock_ahead_ms = self.clock(true),
            Happening::Wakes(wait) if self.programs[program].waits == Some(wait) => {
                self.step(program, Event::Woken);
            }
            Happening::Wakes(_) => {}
            Happening::HandlerEnds { run, success } if self.programs[program].run == Some(run) => {
                let one = &mut self.programs[program];
                one.run = None;
                if one.waits.is_some() {
                    self.step(program, Event::Ended { success });
                } else {
                    one.news.push_back(Event::Ended { success });
                }
            }
            Happening::HandlerEnds { .. } => {}
            Happening::Deliver(event, holder) if self.programs[program].holder == holder => {
                self.step(program, event);
            }
            Happening::Deliver(..) => {}
            Happening::Perform(step, holder) => {
                let event = self.perform(step);
                let latency = self.latency();
                self.after(latency, program, Happening::Deliver(event, holder));
            }
        }
    }

    fn perform(&mut self, step: Step) -> Event {
        let is_out = (self.outage.0..self.outage.1).contains(&self.now);
        if is_out || self.random.random_bool(0.02) {
            return Event::NoAnswer;
        }
        let is_due = self.bug == Bug::Early || self.due_at.is_none_or(|due| due <= self.now);
        let event = match step {
            Step::Write(write) => self.write(write, is_due),
            _ => {
                let row = self.row.clone().map(|(row, version)| (row, stamp(version)));
                Event::Read(Sight { row, is_due })
            }
        };
        if self.random.random_bool(0.03) { Event::NoAnswer } else { event }
    }

    fn write(&mut self, write: Write, is_due: bool) -> Event {
        let version = self.row.as_ref().map(|(_, version)| stamp(*version));
        if self.bug != Bug::Unchecked && version != write.check || write.check_due && !is_due {
            return Event::Conflict;
        }
        self.versions += 1;
        if write.sets_due {
            self.due_at = Some(write.row.next);
        }
        self.row = Some((write.row, self.versions));
        Event::Written(stamp(self.versions))
    }

    fn step(&mut self, program: usize, event: Event) {
        let wall = self.now.checked_add_signed(self.programs[program].clock_ahead_ms).unwrap();
        let now = Now { wall_ms: wall, monotonic: Duration::from_millis(self.now - BEGIN) };
        let one = &mut self.programs[program];
        one.waits = None;
        let Some(ticker) = &mut one.ticker else { return };
        match ticker.step(now, event) {
            Step::Wait(wait) => {
                self.waits += 1;
                if let Some(event) = one.news.pop_front() {
                    return self.step(program, event);
                }
                self.numbers += 1;
                let number = self.numbers;
                self.programs[program].waits = Some(number);
                let wait = u64::try_from(wait.as_millis()).unwrap();
                self.after(wait, program, Happening::Wakes(number));
            }
            Step::Invoke => {
                self.invoke(program);
                self.step(program, Event::Woken);
            }
            Step::End => one.ticker = None,
            step => {
                let holder = one.holder.clone();
                let latency = self.latency();
                self.after(latency, program, Happening::Perform(step, holder));
            }
        }
    }

    fn invoke(&mut self, program: usize) {
        let (row, _) = self.row.clone().unwrap();
        // A clock that is behind lets its program run old ticks, where it is the first of all.
        let tick = row.tick.cast_signed() - BEGIN.cast_signed();
        let name = format!("tick {} at {}", tick / 60_000, self.now - BEGIN);
        let one = &self.programs[program];
        if !one.is_connected {
            return;
        }
        if one.stops {
            self.violations.push(format!("{name}: {program} runs it as its gateway ends"));
        }
        if row.holder.as_deref() != Some(&*one.holder) {
            self.violations.push(format!("{name}: {program} runs it without a claim"));
        }
        if row.tick > self.now {
            self.violations.push(format!("{name} is early"));
        }
        if !self.begun.insert((row.tick, row.failures)) {
            self.violations.push(format!("{name} runs twice"));
        }
        if self.programs.iter().any(|other| other.run.is_some()) {
            self.violations.push(format!("{name} runs beside another run"));
        }
        self.ran.insert(row.tick);
        self.numbers += 1;
        let run = self.numbers;
        self.programs[program].run = Some(run);
        let takes = match self.random.random_range(0..10) {
            0 => self.random.random_range(20_000..200_000),
            _ => self.random.random_range(1..2000),
        };
        let success = self.random.random_bool(0.8);
        self.after(takes, program, Happening::HandlerEnds { run, success });
    }
}

fn stamp(version: u64) -> Bytes {
    version.to_be_bytes().to_vec().into()
}

/// The seeds with violations, and the violations of the first.
fn violated(seeds: u64, bug: Bug, clocks: Clocks) -> (usize, Vec<String>) {
    let runs = (0..seeds).map(|seed| (seed, World::new(seed, bug, clocks).run()));
    let bad: Vec<_> = runs.filter(|(_, violations)| !violations.is_empty()).collect();
    let first = bad.first().map(|(seed, violations)| {
        std::iter::once(format!("seed {seed}")).chain(violations.iter().cloned()).collect()
    });
    (bad.len(), first.unwrap_or_default())
}

#[test]
fn each_tick_runs_once_in_fleets_with_wrong_clocks_deaths_and_lost_answers() {
    let (bad, first) = violated(400, Bug::None, Clocks::OneIsRight);
    assert_eq!(bad, 0, "{first:#?}");
}

#[test]
fn each_tick_runs_once_in_fleets_whose_clocks_are_all_ahead_of_the_clusters_time() {
    let (bad, first) = violated(600, Bug::None, Clocks::Ahead);
    assert_eq!(bad, 0, "{first:#?}");
}

#[test]
fn claim_without_its_check_runs_ticks_twice() {
    let (bad, first) = violated(40, Bug::Unchecked, Clocks::OneIsRight);
    assert!(bad > 5, "only {bad} seeds: {first:?}");
}

#[test]
fn claim_without_the_look_at_the_clusters_time_runs_ticks_early() {
    let (bad, first) = violated(40, Bug::Early, Clocks::OneIsRight);
    assert!(bad > 10 && first.iter().any(|one| one.contains("is early")), "{bad}: {first:?}");
}
