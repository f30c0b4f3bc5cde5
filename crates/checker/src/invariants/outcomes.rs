//! A transaction that was reported not to have committed is never seen, nor a value that no client
//! wrote.
//!
//! Source: `docs/consistency.md`: a write that is answered with 503 never commits, and an outcome
//! that cannot be known is not answered; `docs/kv-connect.md` has the rules of the protocol. A
//! transaction whose checks failed writes nothing.

use crate::evidence::Evidence;
use crate::history::TxnOutcome;
use crate::report::{Findings, Invariant};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    for (record, _, txn) in evidence.history.txns() {
        let reported = match &txn.outcome {
            TxnOutcome::CheckFailed { .. } => "refused by its checks",
            TxnOutcome::NotCommitted { .. } => "not committed",
            TxnOutcome::Committed { .. } | TxnOutcome::Unknown => continue,
        };
        if let Some(observation) = evidence.observations.of_txn(record) {
            findings.add(Invariant::Outcomes, [record, observation.read], || {
                format!(
                    "transaction {} was reported as {reported}, and a read shows what it wrote",
                    txn.id
                )
            });
        }
    }
    for phantom in &evidence.observations.phantoms {
        findings.add(Invariant::Outcomes, [phantom.read], || {
            format!(
                "a read of `{}` shows {}, which no transaction wrote there",
                phantom.key, phantom.value
            )
        });
    }
}
