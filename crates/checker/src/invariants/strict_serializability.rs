//! The answers are those of one store that did one operation after the other, in the order of the
//! versionstamps and in keeping with real time: every commit's checks held just before it, and
//! every strong read and every failed check tells the state at one point within its own interval.
//!
//! A failover that loses a tail is in that order too, behind what it loses: what saw the tail lies
//! before it, and so may not begin after the new epoch has answered anything.
//!
//! Source: `docs/consistency.md`, "Strong reads", and `docs/protocol/write.md`: a failed check is
//! answered after the batches that it may have seen have committed, and names *all* failed checks.
//! That one pass decides it: see `placement`.

use std::collections::HashMap;

use meridian_types::Consistency;

use crate::checker::Evidence;
use crate::history::{Record, Txn, TxnOutcome};
use crate::placement::{Freshness, Observation, place};
use crate::report::{Findings, Invariant};
use crate::stretch::Asker;
use crate::timeline::{Condition, Expected, Fault};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    for fault in &evidence.timeline.faults {
        report_fault(evidence, fault, findings);
    }
    let mut observations = reads(evidence, Consistency::Strong);
    observations.extend(failed_checks(evidence, findings));
    for misfit in
        place(observations, Freshness::Acknowledged, &evidence.commits, &evidence.timeline)
    {
        findings.add(Invariant::StrictSerializability, misfit.records(), || {
            misfit.reason(&evidence.commits, &evidence.timeline)
        });
    }
}

/// The reads of one consistency that were answered.
pub(super) fn reads<'h>(evidence: &Evidence<'h>, consistency: Consistency) -> Vec<Observation<'h>> {
    evidence
        .history
        .reads()
        .filter(|(_, _, read)| read.consistency == consistency)
        .filter_map(|(record, Record { invoked_ns, completed_ns, .. }, read)| {
            let expected = |entry| match entry {
                Some(entry) => Expected::Entry(entry),
                None => Expected::Version(None),
            };
            let conditions = read
                .entries()
                .map(|(key, entry)| Condition { key, expected: expected(entry) })
                .collect();
            Some(Observation {
                record,
                invoked_ns: *invoked_ns,
                completed_ns: (*completed_ns)?,
                asker: Asker::Read,
                conditions,
            })
        })
        .collect()
}

/// What the transactions with failed checks say about the state.
fn failed_checks<'h>(evidence: &Evidence<'h>, findings: &mut Findings<'_>) -> Vec<Observation<'h>> {
    let undecided = evidence.commits.undecided_writes(evidence.history);
    let mut observations = Vec::new();
    for (record, Record { invoked_ns, completed_ns, .. }, txn) in evidence.history.txns() {
        let (TxnOutcome::CheckFailed { failed }, Some(completed_ns)) =
            (&txn.outcome, *completed_ns)
        else {
            continue;
        };
        let named =
            |index: usize| failed.iter().any(|failed| usize::try_from(*failed) == Ok(index));
        let exists =
            |failed: &u32| usize::try_from(*failed).is_ok_and(|failed| failed < txn.checks.len());
        if failed.is_empty() || !failed.iter().all(exists) {
            findings.add(Invariant::StrictSerializability, [record], || {
                "the answer says that checks failed, and names none, or one that it has not"
                    .to_owned()
            });
            continue;
        }
        let conditions = conditions(txn, named, completed_ns, &undecided);
        let asker = Asker::FailedCheck;
        observations.push(Observation {
            record,
            invoked_ns: *invoked_ns,
            completed_ns,
            asker,
            conditions,
        });
    }
    observations
}

/// A check may also have failed because of a transaction that nothing tells about: one of unknown
/// result whose write was written over before a read could see it. Its keys are given the benefit
/// of the doubt.
fn conditions<'h>(
    txn: &'h Txn,
    failed: impl Fn(usize) -> bool,
    completed_ns: u64,
    undecided: &HashMap<&'h str, u64>,
) -> Vec<Condition<'h>> {
    let mut conditions = Vec::new();
    for (index, check) in txn.checks.iter().enumerate() {
        let excused =
            undecided.get(check.key.as_str()).is_some_and(|invoked_ns| *invoked_ns <= completed_ns);
        let expected = match (failed(index), excused) {
            (true, true) => continue,
            (true, false) => Expected::NotVersion(check.versionstamp),
            (false, _) => Expected::Version(check.versionstamp),
        };
        conditions.push(Condition { key: &check.key, expected });
    }
    conditions
}

fn report_fault(evidence: &Evidence<'_>, fault: &Fault, findings: &mut Findings<'_>) {
    let (Fault::Check { commit, .. } | Fault::Write { commit, .. }) = fault;
    let Some(commit) = evidence.commits.list.get(*commit) else { return };
    let found = match fault {
        Fault::Check { found, .. } => *found,
        Fault::Write { .. } => None,
    };
    let others = evidence.commits.list.iter().filter(|other| Some(other.versionstamp) == found);
    let writer = others.map(|other| other.record).take(1);
    findings.add(
        Invariant::StrictSerializability,
        [commit.record].into_iter().chain(writer),
        || match fault {
            Fault::Check { check, found, .. } => {
                let demanded =
                    commit.txn.checks.get(*check).map(ToString::to_string).unwrap_or_default();
                let found = found.map_or("the key was absent".to_owned(), |found| {
                    format!("the key had version {found}")
                });
                format!(
                    "it committed although its check {check} ({demanded}) did not hold: {found}"
                )
            }
            Fault::Write { write, .. } => {
                let write =
                    commit.txn.writes.get(*write).map(ToString::to_string).unwrap_or_default();
                format!("it committed although its key holds another kind of value: {write}")
            }
        },
    );
}
