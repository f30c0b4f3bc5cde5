//! A history with all that is derived from it: the input of every invariant.

use meridian_types::Consistency;

use crate::allowance::{Allowance, LostWindows};
use crate::commits::Commits;
use crate::history::{History, Operation, ReadOutcome, Txn, TxnOutcome};
use crate::observations::Observations;
use crate::report::Statistics;
use crate::timeline::Timeline;
use crate::writers::Writers;

pub(crate) struct Evidence<'h> {
    pub(crate) history: &'h History,
    pub(crate) windows: LostWindows,
    pub(crate) writers: Writers<'h>,
    pub(crate) observations: Observations<'h>,
    pub(crate) commits: Commits<'h>,
    pub(crate) timeline: Timeline<'h>,
}

impl<'h> Evidence<'h> {
    pub(crate) fn new(history: &'h History, allowance: &Allowance) -> Self {
        let windows = LostWindows::of(allowance);
        let writers = Writers::of(history);
        let observations = Observations::of(history, &writers, &windows);
        let commits = Commits::of(history, &writers, &observations, &windows);
        let timeline = Timeline::replay(&commits);
        Self { history, windows, writers, observations, commits, timeline }
    }

    /// The acknowledged transactions that the allowance covers.
    pub(crate) fn lost(&self) -> Vec<usize> {
        let lost = |txn: &Txn| match txn.outcome {
            TxnOutcome::Committed { versionstamp } => self.windows.losing(versionstamp).is_some(),
            TxnOutcome::CheckFailed { .. }
            | TxnOutcome::NotCommitted { .. }
            | TxnOutcome::Unknown => false,
        };
        self.history.txns().filter(|(_, _, txn)| lost(txn)).map(|(record, ..)| record).collect()
    }

    pub(crate) fn statistics(&self) -> Statistics {
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
                        s.unknown_committed +=
                            usize::from(self.observations.of_txn(index).is_some());
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
