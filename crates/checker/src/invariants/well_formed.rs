//! The history can be judged: a workload can have recorded it, and every read names its keys.
//!
//! Source: the rules of [`crate::Txn`] and [`crate::Write`]. A violation is a mistake of the
//! workload or of the recorder, not of the store.

use std::collections::HashMap;

use crate::evidence::Evidence;
use crate::history::{Operation, ReadOutcome, Record, TxnOutcome, Write};
use crate::report::{Findings, Invariant};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    for (index, record) in evidence.history.records.iter().enumerate() {
        if let Some(fault) = fault(record) {
            findings.add(Invariant::WellFormed, [index], || fault.to_owned());
        }
    }
    ids(evidence, findings);
    for clash in &evidence.writers.clashes {
        findings.add(Invariant::WellFormed, clash.records, || {
            format!(
                "{} was written to `{}` twice, so that reads do not name its writer",
                clash.value, clash.key
            )
        });
    }
    for record in &evidence.commits.unplaced {
        let seen = evidence.observations.of_txn(*record).map(|observation| observation.read);
        findings.add(Invariant::WellFormed, [*record].into_iter().chain(seen), || {
            "it was seen, but no read and no check tells its versionstamp".to_owned()
        });
    }
    for index in &evidence.commits.undecided {
        let Some(Record { operation: Operation::Txn(txn), .. }) =
            evidence.history.records.get(*index)
        else {
            continue;
        };
        if txn.writes.iter().any(|write| matches!(write, Write::Sum { .. } | Write::Delete { .. }))
        {
            findings.add(Invariant::WellFormed, [*index], || {
                "its result is unknown, and it sums or deletes without a marker in the final reads".to_owned()
            });
        }
    }
}

fn fault(record: &Record) -> Option<&'static str> {
    let answered = match &record.operation {
        Operation::Read(read) => match &read.outcome {
            ReadOutcome::Entries(entries) if entries.len() != read.keys.len() => {
                return Some("the answer has not one entry for each key");
            }
            ReadOutcome::Entries(_) | ReadOutcome::Failed { .. } => true,
            ReadOutcome::Unanswered => false,
        },
        Operation::Txn(txn) => txn.outcome != TxnOutcome::Unknown,
    };
    match record.completed_ns {
        Some(completed_ns) if completed_ns < record.invoked_ns => {
            Some("it completed before it was invoked")
        }
        None if answered => Some("it has an answer and never completed"),
        _ => None,
    }
}

fn ids(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    let mut ids = HashMap::new();
    for (index, _, txn) in evidence.history.txns() {
        if let Some(first) = ids.insert(txn.id, index) {
            findings.add(Invariant::WellFormed, [first, index], || {
                format!("two transactions have the id {}", txn.id)
            });
        }
    }
}
