//! Runs each mutant against the tests that reach it, until one of them notices.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::journal::Journal;
use crate::mutant::Mutant;
use crate::say;
use crate::suite::{Mode, Outcome, Seat, Test};

/// How often progress is told.
const PROGRESS_EVERY: Duration = Duration::from_secs(30);

/// The run of a test without a mutant.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Base {
    pub test: String,
    pub passed: bool,
    pub seconds: f64,
    /// The indices of the mutants that it reaches.
    pub reached: Vec<usize>,
}

/// The fate of a mutant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Fate {
    /// A test fails, twice.
    Caught,
    /// A test does not end in its time.
    TimedOut,
    /// All tests that reach it pass.
    Survived,
    /// The tests pass that were run until the time of the mutant was over; others reach it too.
    OutOfTime,
    /// No test reaches it.
    Unreached,
}

/// The line of a mutant in the journal.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    pub mutant: String,
    pub fate: Fate,
    /// The test that noticed.
    pub by: Option<String>,
    /// How many tests reach it, of those that were there to be run.
    pub reaching: usize,
    /// The tests that passed, where not all of them were run.
    pub passed: Vec<String>,
    /// Tests that failed with it once, and passed when they were run again.
    pub once: Vec<String>,
    pub seconds: f64,
}

/// The inputs that all trials share.
#[derive(Debug)]
pub struct Trials<'a> {
    pub mutants: &'a [Mutant],
    pub tests: &'a [Test],
    pub jobs: usize,
    /// The time of the tests of one mutant, after which no other test is begun.
    pub budget: Duration,
    /// For temporary files.
    pub folder: &'a Path,
}

impl Trials<'_> {
    /// Runs every test without a mutant, but those that `known` says pass.
    pub fn trace(&self, journal: &Journal, known: Vec<Base>) -> Result<BTreeMap<String, Base>> {
        let passed = known.into_iter().filter(|base| base.passed);
        let mut bases: BTreeMap<String, Base> =
            passed.map(|base| (base.test.clone(), base)).collect();
        let missing: Vec<&Test> =
            self.tests.iter().filter(|test| !bases.contains_key(&test.name)).collect();
        let found = Mutex::new(Vec::new());
        let progress = Progress::new(missing.len(), "tests without a mutant");
        self.each(&missing, |test, seat| {
            let (outcome, took, reached) = seat.trace(test)?;
            let passed = outcome == Outcome::Passed;
            if !passed {
                let log = self
                    .folder
                    .join(format!("failed-{}.log", test.name.replace([' ', ':', '/'], "_")));
                std::fs::copy(seat.output(), &log)?;
                say(&format!(
                    "without a mutant, this test fails: {} (see {})",
                    test.name,
                    log.display()
                ));
            }
            let base =
                Base { test: test.name.clone(), passed, seconds: took.as_secs_f64(), reached };
            journal.push(&base)?;
            locked(&found).push(base);
            progress.step(if passed { "passed" } else { "failed" });
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        bases.extend(found.into_iter().map(|base| (base.test.clone(), base)));
        Ok(bases)
    }

    /// Tries the mutants at `indices`; `known` are verdicts of an earlier run.
    pub fn run(
        &self,
        indices: &[usize],
        bases: &BTreeMap<String, Base>,
        journal: &Journal,
        known: Vec<Verdict>,
    ) -> Result<BTreeMap<String, Verdict>> {
        let mut verdicts: BTreeMap<String, Verdict> =
            known.into_iter().map(|verdict| (verdict.mutant.clone(), verdict)).collect();
        let mut reaching: HashMap<usize, Vec<(&Test, f64)>> = HashMap::new();
        for test in self.tests {
            let Some(base) = bases.get(&test.name).filter(|base| base.passed) else { continue };
            for index in &base.reached {
                reaching.entry(*index).or_default().push((test, base.seconds));
            }
        }
        for tests in reaching.values_mut() {
            // Clusters are only for what nothing else reaches.
            if tests.iter().any(|(test, _)| !test.is_of_clusters()) {
                tests.retain(|(test, _)| !test.is_of_clusters());
            }
        }
        let none = Vec::new();
        let tests_of = |mutant: &Mutant| reaching.get(&mutant.index).unwrap_or(&none);
        let is_open = |mutant: &&Mutant| match verdicts.get(&mutant.name) {
            None => true,
            Some(verdict) => match verdict.fate {
                Fate::Caught | Fate::TimedOut => false,
                Fate::Survived | Fate::Unreached => verdict.reaching < tests_of(mutant).len(),
                Fate::OutOfTime => verdict.seconds < self.budget.as_secs_f64(),
            },
        };
        let open: Vec<&Mutant> =
            indices.iter().filter_map(|index| self.mutants.get(*index)).filter(is_open).collect();
        let found = Mutex::new(Vec::new());
        let kills = Mutex::new(Kills::default());
        let progress = Progress::new(open.len(), "mutants");
        self.each(&open, |mutant, seat| {
            let verdict =
                self.try_one(mutant, tests_of(mutant), verdicts.get(&mutant.name), &kills, seat)?;
            journal.push(&verdict)?;
            progress.step(match verdict.fate {
                Fate::Caught => "caught",
                Fate::TimedOut => "by the time limit",
                Fate::Survived => "survived",
                Fate::OutOfTime => "survived as long as tried",
                Fate::Unreached => "reached by no test",
            });
            locked(&found).push(verdict);
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        verdicts.extend(found.into_iter().map(|verdict| (verdict.mutant.clone(), verdict)));
        Ok(verdicts)
    }

    fn try_one(
        &self,
        mutant: &Mutant,
        tests: &[(&Test, f64)],
        earlier: Option<&Verdict>,
        kills: &Mutex<Kills>,
        seat: &Seat,
    ) -> Result<Verdict> {
        let mut verdict = Verdict {
            mutant: mutant.name.clone(),
            fate: if tests.is_empty() { Fate::Unreached } else { Fate::Survived },
            by: None,
            reaching: tests.len(),
            passed: earlier.map(|earlier| earlier.passed.clone()).unwrap_or_default(),
            once: earlier.map(|earlier| earlier.once.clone()).unwrap_or_default(),
            seconds: earlier.map_or(0.0, |earlier| earlier.seconds),
        };
        let mut ordered: Vec<&(&Test, f64)> =
            tests.iter().filter(|(test, _)| !verdict.passed.contains(&test.name)).collect();
        {
            let kills = locked(kills);
            let key = |(test, seconds): &(&Test, f64)| kills.rank(mutant, test, *seconds);
            ordered.sort_by(|one, other| {
                let ((one, one_cost), (other, other_cost)) = (key(one), key(other));
                one.cmp(&other).then(one_cost.total_cmp(&other_cost))
            });
        }
        for (test, seconds) in ordered {
            if verdict.seconds > self.budget.as_secs_f64() {
                verdict.fate = Fate::OutOfTime;
                return Ok(verdict);
            }
            let limit = Duration::from_secs_f64((6.0 * seconds + 8.0).max(15.0));
            let mut run = || -> Result<Outcome> {
                let (outcome, took) = seat.run(test, Mode::Mutant(mutant.index), limit)?;
                verdict.seconds += took.as_secs_f64();
                Ok(outcome)
            };
            let outcome = run()?;
            let again = if outcome == Outcome::Failed { run()? } else { outcome };
            if again == Outcome::Passed {
                if outcome == Outcome::Failed {
                    verdict.once.push(test.name.clone());
                }
                verdict.passed.push(test.name.clone());
                continue;
            }
            verdict.fate = if again == Outcome::Failed { Fate::Caught } else { Fate::TimedOut };
            verdict.by = Some(test.name.clone());
            break;
        }
        // Only a run that goes on has to know them.
        verdict.passed.clear();
        if let Some(test) = &verdict.by {
            locked(kills).note(mutant, test);
        }
        Ok(verdict)
    }

    /// Does `work` for each of `items`, as many at a time as there are jobs. Stops at the first
    /// error.
    fn each<T: Sync>(
        &self,
        items: &[T],
        work: impl Fn(&T, &Seat) -> Result<()> + Sync,
    ) -> Result<()> {
        let rest = Mutex::new(items.iter());
        let failure = Mutex::new(None);
        std::thread::scope(|scope| {
            for job in 0..self.jobs.max(1) {
                let (rest, failure, work) = (&rest, &failure, &work);
                scope.spawn(move || {
                    let seat = Seat::new(self.folder.join(format!("job-{job}")));
                    while locked(failure).is_none() {
                        let Some(item) = locked(rest).next() else { break };
                        if let Err(error) = work(item, &seat) {
                            *locked(failure) = Some(error);
                        }
                    }
                });
            }
        });
        failure.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

/// Which tests have noticed mutants in which functions and files.
#[derive(Debug, Default)]
struct Kills {
    by_function: HashMap<(String, String, String), u32>,
    by_file: HashMap<(String, String), u32>,
}

impl Kills {
    fn note(&mut self, mutant: &Mutant, test: &str) {
        let test = test.to_owned();
        *self
            .by_function
            .entry((mutant.file.clone(), mutant.function.clone(), test.clone()))
            .or_default() += 1;
        *self.by_file.entry((mutant.file.clone(), test)).or_default() += 1;
    }

    /// By which tests are ordered: what noticed a neighbour, what is quick, what is of the same
    /// package.
    fn rank(&self, mutant: &Mutant, test: &Test, seconds: f64) -> ((u32, u32), f64) {
        let function = (mutant.file.clone(), mutant.function.clone(), test.name.clone());
        let in_function = self.by_function.get(&function).copied().unwrap_or_default().min(3);
        let in_file = self
            .by_file
            .get(&(mutant.file.clone(), test.name.clone()))
            .copied()
            .unwrap_or_default()
            .min(3);
        let in_file = if seconds < 1.0 { in_file } else { 0 };
        let is_own = test.artifact.package == mutant.package;
        ((3 - in_function, 3 - in_file), if is_own { seconds } else { 2.0 * seconds })
    }
}

/// Tells how far it is, now and then.
struct Progress {
    all: usize,
    what: &'static str,
    state: Mutex<(BTreeMap<&'static str, usize>, Instant)>,
    began: Instant,
}

impl Progress {
    fn new(all: usize, what: &'static str) -> Self {
        say(&format!("{all} {what} to be run"));
        Self {
            all,
            what,
            state: Mutex::new((BTreeMap::new(), Instant::now())),
            began: Instant::now(),
        }
    }

    fn step(&self, outcome: &'static str) {
        let mut state = locked(&self.state);
        let (counts, told) = &mut *state;
        *counts.entry(outcome).or_default() += 1;
        let done: usize = counts.values().sum();
        if told.elapsed() >= PROGRESS_EVERY || done == self.all {
            *told = Instant::now();
            let counts: Vec<String> =
                counts.iter().map(|(outcome, count)| format!("{count} {outcome}")).collect();
            let seconds = self.began.elapsed().as_secs();
            say(&format!(
                "{done} of {} {} in {seconds} s: {}",
                self.all,
                self.what,
                counts.join(", ")
            ));
        }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
