use meridian_types::Consistency;

use crate::allowance::{Allowance, LostWindows};
use crate::commits::Commits;
use crate::history::{History, Operation, ReadOutcome, Txn, TxnOutcome};
use crate::invariants;
use crate::report::{Findings, Report, Statistics};
use crate::sightings::Sightings;
use crate::timeline::Timeline;
use crate::writers::Writers;

/// A history with what was found out about it.
pub(crate) struct Evidence<'h> {
    pub(crate) history: &'h History,
    pub(crate) windows: LostWindows,
    pub(crate) writers: Writers<'h>,
    pub(crate) sightings: Sightings<'h>,
    pub(crate) commits: Commits<'h>,
    pub(crate) timeline: Timeline<'h>,
}

/// Holds a history against every [`crate::Invariant`].
///
/// Never fails: a history that makes no sense is reported as not well-formed.
pub fn check(history: &History) -> Report {
    check_with(history, &Allowance::default())
}

/// As [`check`], where the system may have lost what `allowance` says. What was acknowledged and
/// lost is counted and named, [`Report::lost`]; what is missing besides it, or comes back, is a
/// violation.
pub fn check_with(history: &History, allowance: &Allowance) -> Report {
    let windows = LostWindows::of(allowance);
    let writers = Writers::of(history);
    let sightings = Sightings::of(history, &writers, &windows);
    let commits = Commits::of(history, &writers, &sightings, &windows);
    let timeline = Timeline::replay(&commits);
    let evidence = Evidence { history, windows, writers, sightings, commits, timeline };
    let mut findings = Findings::new(history);
    for invariant in invariants::ALL {
        invariant(&evidence, &mut findings);
    }
    findings.into_report(evidence.statistics(), evidence.lost())
}

impl Evidence<'_> {
    /// The acknowledged transactions that the allowance covers.
    fn lost(&self) -> Vec<usize> {
        let lost = |txn: &Txn| match txn.outcome {
            TxnOutcome::Committed { versionstamp } => self.windows.losing(versionstamp).is_some(),
            TxnOutcome::CheckFailed { .. }
            | TxnOutcome::NotCommitted { .. }
            | TxnOutcome::Unknown => false,
        };
        self.history.txns().filter(|(_, _, txn)| lost(txn)).map(|(record, ..)| record).collect()
    }

    fn statistics(&self) -> Statistics {
        let mut s = Statistics {
            operations: self.history.records.len(),
            span_ns: self.span_ns(),
            unknown_undecided: self.commits.undecided.len(),
            keys_written: self.writers.key_count(),
            keys_not_in_final_reads: self
                .timeline
                .keys()
                .filter(|key| !self.writers.in_final_read(key))
                .count(),
            ..Statistics::default()
        };
        for (index, record) in self.history.records.iter().enumerate() {
            match &record.operation {
                Operation::Read(read) => match (&read.outcome, read.consistency) {
                    (ReadOutcome::Failed { .. } | ReadOutcome::Unanswered, _) => {
                        s.failed_reads += 1
                    }
                    (ReadOutcome::Entries(_), Consistency::Eventual) => s.eventual_reads += 1,
                    (ReadOutcome::Entries(_), Consistency::Strong) => {
                        s.strong_reads += 1;
                        s.final_reads += usize::from(read.is_final);
                    }
                },
                Operation::Txn(txn) => match &txn.outcome {
                    TxnOutcome::Committed { .. } => s.committed += 1,
                    TxnOutcome::CheckFailed { .. } => s.check_failed += 1,
                    TxnOutcome::NotCommitted { .. } => s.not_committed += 1,
                    TxnOutcome::Unknown => {
                        s.unknown += 1;
                        s.unknown_committed += usize::from(self.sightings.of_txn(index).is_some());
                    }
                },
            }
        }
        s
    }

    fn span_ns(&self) -> u64 {
        let first = self.history.records.iter().map(|record| record.invoked_ns).min();
        let last = self
            .history
            .records
            .iter()
            .map(|record| record.completed_ns.unwrap_or(record.invoked_ns))
            .max();
        last.unwrap_or(0).saturating_sub(first.unwrap_or(0))
    }
}
