//! All drills that the promises need, one after the other.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::cluster::with_causes;
use crate::drill::Drill;
use crate::promise::{DRILLS, Runs, rows};
use crate::stage::{Stage, StageOptions};
use crate::verdict::Row;

/// The drill that is repeated.
const REPEATED: &str = "dc-loss";

/// The results of a suite.
#[derive(Debug, Clone, Serialize)]
pub struct SuiteReport {
    pub rows: Vec<Row>,
    pub runs: Runs,
    /// Drills that did not come to their end, with the reason.
    pub failed: BTreeMap<String, String>,
}

impl SuiteReport {
    /// All missed promises and failed checks: empty in a good suite.
    pub fn complaints(&self) -> Vec<String> {
        let missed = self.rows.iter().filter(|row| row.is_missed());
        let mut complaints: Vec<String> =
            missed.map(|row| format!("{}: {}", row.promise, row.measured)).collect();
        complaints.extend(self.failed.iter().map(|(drill, why)| format!("{drill}: {why}")));
        for run in self.runs.values().flatten() {
            let faults = run.faults().into_iter();
            complaints
                .extend(faults.map(|fault| format!("{} (run {}): {fault}", run.drill, run.run)));
        }
        complaints
    }
}

/// Runs the suite; the loss of one data center `runs` times. A failed drill does not end it.
pub async fn run_suite(
    options: &StageOptions,
    runs: usize,
    say: &(dyn Fn(&str) + Sync),
) -> SuiteReport {
    let (mut done, mut failed) = (Runs::new(), BTreeMap::new());
    for drill in DRILLS.iter().filter_map(|name| Drill::named(name)) {
        let times = if drill.name == REPEATED { runs } else { 1 };
        for run in 1..=times {
            say(&format!("{} ({run} of {times})", drill.name));
            let seed = options.seed.wrapping_add(u64::try_from(run).unwrap_or(0));
            match Stage::run(&drill, run, &StageOptions { seed, ..options.clone() }, say).await {
                Ok(report) => done.entry(drill.name.clone()).or_default().push(report),
                Err(error) => {
                    let error = with_causes(&error);
                    say(&format!("{}: {error}", drill.name));
                    failed.insert(drill.name.clone(), error);
                }
            }
        }
    }
    SuiteReport { rows: rows(&done), runs: done, failed }
}
