//! The recovery point as clients measure it: the acknowledged writes that are lost, compared with
//! the cluster's own reports.

use std::collections::HashMap;

use meridian_checker::{
    Allowance, History, LostWindow, Operation, ReadOutcome, Txn, TxnOutcome, Write,
};
use meridian_directory::FailoverReport;
use meridian_types::Versionstamp;
use serde::Serialize;

use crate::workload::MARKER;

/// The workload's clock and the old leader's may differ by this much about one event.
const TOLERANCE_MS: f64 = 100.0;

/// An acknowledged write that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LostWrite {
    pub acknowledged_ns: u64,
    pub versionstamp: Versionstamp,
}

/// The loss of acknowledged writes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loss {
    /// The lost writes, by the time of their acknowledgement.
    pub writes: Vec<LostWrite>,
    pub acknowledged: usize,
    /// Acknowledged writes that the final reads do not cover.
    pub untold: usize,
}

/// The size of the loss, for reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct LossSummary {
    pub transactions: usize,
    /// From the first lost acknowledgement to the next fault, or to the last lost acknowledgement
    /// if that is later.
    pub window_ms: f64,
}

/// A failover as the cluster reports it, beside the clients' measurement.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Claim {
    pub report: FailoverReport,
    /// Lost acknowledged writes beyond the base.
    pub acknowledged_lost: usize,
    /// From the first to the last of their acknowledgements.
    pub acknowledged_span_ms: f64,
    /// Writes without an acknowledgement in the old epoch that may be lost with it: in flight at
    /// the time.
    pub unacknowledged: usize,
    pub verdict: Verdict,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    True,
    /// The report is not wrong, but says itself that more may be missing.
    Incomplete,
    False(String),
}

impl Loss {
    /// Looks for the marker of every acknowledged write in the final reads.
    pub fn of(history: &History) -> Self {
        let mut present: HashMap<&str, bool> = HashMap::new();
        for record in &history.records {
            if let Operation::Read(read) = &record.operation
                && let (true, ReadOutcome::Entries(entries)) = (read.is_final, &read.outcome)
            {
                present.extend(
                    read.keys.iter().map(String::as_str).zip(entries.iter().map(Option::is_some)),
                );
            }
        }
        let mut loss = Self::default();
        for record in &history.records {
            let Operation::Txn(txn) = &record.operation else { continue };
            let (TxnOutcome::Committed { versionstamp }, Some(acknowledged_ns)) =
                (&txn.outcome, record.completed_ns)
            else {
                continue;
            };
            loss.acknowledged += 1;
            match marker(txn).and_then(|marker| present.get(marker)) {
                Some(true) => {}
                Some(false) => {
                    loss.writes.push(LostWrite { acknowledged_ns, versionstamp: *versionstamp })
                }
                None => loss.untold += 1,
            }
        }
        loss.writes.sort_by_key(|write| write.acknowledged_ns);
        loss
    }

    /// `faults_ns`: the beginnings of all faults, ascending.
    pub fn summary(&self, faults_ns: &[u64]) -> LossSummary {
        let (Some(first), Some(last)) = (self.writes.first(), self.writes.last()) else {
            return LossSummary::default();
        };
        let fault_ns = faults_ns.iter().find(|fault_ns| **fault_ns >= first.acknowledged_ns);
        let until = last.acknowledged_ns.max(fault_ns.copied().unwrap_or(0));
        LossSummary {
            transactions: self.writes.len(),
            window_ms: span_ms(first.acknowledged_ns, until),
        }
    }
}

fn marker(txn: &Txn) -> Option<&str> {
    txn.writes.iter().map(Write::key).find(|key| key.starts_with(MARKER)).map(String::as_str)
}

fn span_ms(from_ns: u64, to_ns: u64) -> f64 {
    to_ns.saturating_sub(from_ns) as f64 / 1e6
}

/// The allowance of failovers for the checker. Planned changes, and failovers that report an exact
/// loss of zero, may have lost nothing.
pub fn allowance(reports: &[FailoverReport]) -> Allowance {
    let lost_nothing = |report: &FailoverReport| report.loss.exact && report.loss.transactions == 0;
    let window = |report: &FailoverReport| LostWindow::behind(report.epoch, report.base);
    Allowance {
        lost: reports
            .iter()
            .filter(|report| !report.planned && !lost_nothing(report))
            .map(window)
            .collect(),
    }
}

impl Claim {
    /// `fault_ns`: the beginning of the fault.
    pub fn judge(report: &FailoverReport, loss: &Loss, history: &History, fault_ns: u64) -> Self {
        let window = LostWindow::behind(report.epoch, report.base);
        let lost: Vec<_> =
            loss.writes.iter().filter(|write| window.covers(write.versionstamp)).collect();
        let acknowledged_span_ms = match (lost.first(), lost.last()) {
            (Some(first), Some(last)) => span_ms(first.acknowledged_ns, last.acknowledged_ns),
            _ => 0.0,
        };
        let mut claim = Self {
            report: report.clone(),
            acknowledged_lost: lost.len(),
            acknowledged_span_ms,
            unacknowledged: unacknowledged(history, report, fault_ns),
            verdict: Verdict::True,
        };
        claim.verdict = claim.verdict();
        claim
    }

    fn verdict(&self) -> Verdict {
        let loss = &self.report.loss;
        let least = u64::try_from(self.acknowledged_lost).unwrap_or(u64::MAX);
        let most = least.saturating_add(u64::try_from(self.unacknowledged).unwrap_or(u64::MAX));
        let span_ms = self.acknowledged_span_ms;
        let (at_least, at_most) = (loss.transactions, reported_at_most(&self.report));
        let wrong = if self.report.planned && least > 0 {
            Some(format!("{least} acknowledged writes are lost by a planned change"))
        } else if at_least > most {
            Some(format!("it says {at_least} transactions, and there were at most {most} to lose"))
        } else if at_most.is_some_and(|at_most| at_most < least) {
            Some(format!(
                "it says {} transactions, and {least} acknowledged ones are lost",
                at_most.unwrap_or(0)
            ))
        } else if loss.exact && (loss.window_ms as f64) + TOLERANCE_MS < span_ms {
            Some(format!(
                "it says {} ms, and acknowledgements of {span_ms:.0} ms are lost",
                loss.window_ms
            ))
        } else {
            None
        };
        match (wrong, at_most) {
            (Some(wrong), _) => Verdict::False(wrong),
            (None, Some(_)) => Verdict::True,
            (None, None) => Verdict::Incomplete,
        }
    }
}

/// The upper bound of the reported loss. `None`: there is none yet, since too few of the old voters
/// have reported.
pub fn reported_at_most(report: &FailoverReport) -> Option<u64> {
    let loss = &report.loss;
    report.is_bounded().then_some(if loss.exact {
        loss.transactions
    } else {
        loss.at_most.max(loss.transactions)
    })
}

/// Writes that may have been in flight when the old epoch ended: after the invocation of its last
/// acknowledged write and before the first answer of the new epoch, without an acknowledgement of
/// the old one.
fn unacknowledged(history: &History, report: &FailoverReport, fault_ns: u64) -> usize {
    let epoch = |txn: &Txn| match txn.outcome {
        TxnOutcome::Committed { versionstamp } => Some(versionstamp.position().epoch),
        TxnOutcome::CheckFailed { .. } | TxnOutcome::NotCommitted { .. } | TxnOutcome::Unknown => {
            None
        }
    };
    let txns = || {
        history.records.iter().filter_map(|record| match &record.operation {
            Operation::Txn(txn) => Some((record, txn)),
            Operation::Read(_) => None,
        })
    };
    let begun = txns()
        .filter(|(_, txn)| epoch(txn) >= Some(report.epoch))
        .filter_map(|(record, _)| record.completed_ns);
    let begun_ns = begun.min().unwrap_or(u64::MAX);
    let old = txns().filter(|(_, txn)| epoch(txn).is_some_and(|epoch| epoch < report.epoch));
    let ended_ns = old.map(|(record, _)| record.invoked_ns).max().unwrap_or(0);
    txns()
        .filter(|(record, txn)| {
            // A write whose client left without an answer may take effect later.
            let since_ns = if txn.outcome == TxnOutcome::Unknown { fault_ns } else { ended_ns };
            record.invoked_ns <= begun_ns
                && record.completed_ns.is_none_or(|completed_ns| completed_ns >= since_ns)
                && epoch(txn).is_none_or(|epoch| epoch >= report.epoch)
        })
        .count()
}

#[cfg(test)]
mod tests {
    use meridian_checker::{Entry, Read, Record, Value};
    use meridian_types::{Epoch, NodeId, Position};

    use super::*;

    const MS: u64 = 1_000_000;

    fn stamp(epoch: u16, sequence: u64) -> Versionstamp {
        Versionstamp::new(Position::new(Epoch(epoch), sequence), 0)
    }

    fn write(times_ms: (u64, u64), id: u64, outcome: TxnOutcome) -> Record {
        let marker = Write::SetRegister { key: format!("{MARKER}{id}"), value: id };
        let txn = Txn { outcome, ..Txn::new(id, vec![], vec![marker]) };
        let (invoked_ns, completed_ns) = (times_ms.0 * MS, Some(times_ms.1 * MS));
        Record { client: id, invoked_ns, completed_ns, operation: Operation::Txn(txn) }
    }

    fn committed(epoch: u16, sequence: u64) -> TxnOutcome {
        TxnOutcome::Committed { versionstamp: stamp(epoch, sequence) }
    }

    /// Writes 1 to 3 were acknowledged at 100, 200 and 1200 ms, 4 never, 5 by epoch 2; 1 and 5 are
    /// there in the end.
    fn history() -> History {
        let there = |id: u64| {
            matches!(id, 1 | 5)
                .then(|| Entry { value: Value::Register(id), versionstamp: stamp(1, id) })
        };
        let keys = (1..=5).map(|id| format!("{MARKER}{id}")).collect();
        let outcome = ReadOutcome::Entries((1..=5).map(there).collect());
        let read = Operation::Read(Read { outcome, ..Read::last("g", keys) });
        let records = vec![
            write((90, 100), 1, committed(1, 10)),
            write((190, 200), 2, committed(1, 11)),
            write((1190, 1200), 3, committed(1, 12)),
            write((1195, 5000), 4, TxnOutcome::Unknown),
            write((1300, 6000), 5, committed(2, 11)),
            Record {
                client: 0,
                invoked_ns: 9000 * MS,
                completed_ns: Some(9001 * MS),
                operation: read,
            },
        ];
        History { records }
    }

    fn report(transactions: u64, window_ms: u64, exact: bool) -> FailoverReport {
        // As the directory sends it: absent fields have defaults.
        let report = serde_json::json!({
            "epoch": 2, "from_region": "a", "to_region": "b", "planned": false, "cause": "lost",
            "base": { "epoch": 1, "sequence": 10 }, "base_transactions": 10, "base_time_ms": 0,
            "sealed_at_ms": 0, "promoted_at_ms": 0, "old_voters": [1, 2, 3],
            "loss": { "transactions": transactions, "window_ms": window_ms, "exact": exact },
        });
        serde_json::from_value(report).unwrap()
    }

    /// Two of three old voters have reported at most so many.
    fn bounded(transactions: u64, at_most: u64) -> FailoverReport {
        let mut report = report(transactions, 1000, false);
        report.loss.shown_by = [1, 3].map(NodeId).into();
        report.loss.at_most = at_most;
        report
    }

    #[test]
    fn missing_acknowledged_writes_are_lost() {
        let loss = Loss::of(&history());
        assert_eq!((loss.acknowledged, loss.untold), (4, 0));
        assert_eq!(
            loss.writes.iter().map(|write| write.acknowledged_ns / MS).collect::<Vec<_>>(),
            [200, 1200]
        );
        let window_ms = |faults_ms: &[u64]| {
            let summary =
                loss.summary(&faults_ms.iter().map(|at_ms| at_ms * MS).collect::<Vec<_>>());
            assert_eq!(summary.transactions, 2);
            summary.window_ms
        };
        assert_eq!(window_ms(&[1000]), 1000.0, "the last was acknowledged after the fault");
        assert_eq!(window_ms(&[1700]), 1500.0);
        assert_eq!(window_ms(&[100, 1700, 9000]), 1500.0, "an earlier fault did not lose them");
        assert_eq!(window_ms(&[]), 1000.0);
        assert_eq!(Loss::default().summary(&[0]), LossSummary::default());
    }

    #[test]
    fn writes_without_a_final_read_are_counted() {
        let mut history = history();
        history.records.pop();
        let loss = Loss::of(&history);
        assert_eq!((loss.writes.len(), loss.untold), (0, 4));
    }

    #[test]
    fn reports_of_the_cluster_are_judged() {
        let (history, loss) = (history(), Loss::of(&history()));
        let verdict =
            |report: &FailoverReport| Claim::judge(report, &loss, &history, 1000 * MS).verdict;
        // Two acknowledged writes are lost; the unanswered one and the one of the new epoch may be.
        assert_eq!(verdict(&report(2, 1000, true)), Verdict::True);
        assert_eq!(verdict(&report(4, 1000, true)), Verdict::True);
        assert!(matches!(verdict(&report(5, 1000, true)), Verdict::False(_)));
        assert!(matches!(verdict(&report(1, 1000, true)), Verdict::False(_)));
        assert!(matches!(verdict(&report(2, 10, true)), Verdict::False(_)));
        assert_eq!(verdict(&report(0, 0, false)), Verdict::Incomplete);
        assert_eq!(verdict(&bounded(1, 2)), Verdict::True);
        assert!(matches!(verdict(&bounded(0, 1)), Verdict::False(_)));
        assert!(matches!(
            verdict(&FailoverReport { planned: true, ..report(0, 0, true) }),
            Verdict::False(_)
        ));
        assert_eq!(
            Claim::judge(&report(2, 1000, true), &loss, &history, 1000 * MS).unacknowledged,
            2
        );
    }

    #[test]
    fn report_of_no_loss_is_false_if_a_write_is_lost() {
        assert_eq!(allowance(&[report(0, 0, true)]), Allowance::default());
        assert_eq!(
            allowance(&[FailoverReport { planned: true, ..report(0, 0, false) }]),
            Allowance::default()
        );
        let window = LostWindow { epoch: Epoch(2), base_sequence: 10 };
        assert_eq!(allowance(&[report(0, 0, false)]).lost, [window]);
        assert_eq!(allowance(&[report(3, 0, true)]).lost, [window]);
    }
}
