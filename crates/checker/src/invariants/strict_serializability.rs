//! The answers are those of a store that does one operation after the other, in the order of the
//! versionstamps and in keeping with real time: every commit's checks held just before it, and
//! every strong read and every failed check shows the state at one point within its own interval.
//!
//! A failover that loses a tail is in that order too, after the commits that it loses: operations
//! that saw the tail lie before it, and so may not begin after the new epoch has answered any
//! operation.
//!
//! Source: `docs/consistency.md`, "Strong reads", and `docs/protocol/write.md`: a failed check is
//! answered after the batches that it may have seen have committed, and names *all* failed checks.
//! `placement` shows that one pass decides it.

use std::collections::HashMap;

use meridian_types::Consistency;

use crate::evidence::Evidence;
use crate::history::{Record, Txn, TxnOutcome};
use crate::lost_branch::QueryKind;
use crate::placement::{Freshness, Query, find_points};
use crate::report::{Findings, Invariant};
use crate::timeline::{Condition, Expected, Fault};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    for fault in &evidence.timeline.faults {
        report_fault(evidence, fault, findings);
    }
    let mut queries = reads(evidence, Consistency::Strong);
    queries.extend(failed_checks(evidence, findings));
    for unplaceable in
        find_points(queries, Freshness::Acknowledged, &evidence.commits, &evidence.timeline)
    {
        findings.add(Invariant::StrictSerializability, unplaceable.records(), || {
            unplaceable.reason(&evidence.commits, &evidence.timeline)
        });
    }
}

/// The answered reads of one consistency.
pub(super) fn reads<'h>(evidence: &Evidence<'h>, consistency: Consistency) -> Vec<Query<'h>> {
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
            Some(Query {
                record,
                invoked_ns: *invoked_ns,
                completed_ns: (*completed_ns)?,
                kind: QueryKind::Read,
                conditions,
            })
        })
        .collect()
}

/// The claims of transactions with failed checks about the state.
fn failed_checks<'h>(evidence: &Evidence<'h>, findings: &mut Findings<'_>) -> Vec<Query<'h>> {
    let undecided = evidence.commits.undecided_writes(evidence.history);
    let mut queries = Vec::new();
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
                "the answer says that checks failed, and names none, or a check that the transaction does not have"
                    .to_owned()
            });
            continue;
        }
        let conditions = conditions(txn, named, completed_ns, &undecided);
        let kind = QueryKind::FailedCheck;
        queries.push(Query { record, invoked_ns: *invoked_ns, completed_ns, kind, conditions });
    }
    queries
}

/// A check may also have failed because of a transaction without a trace: its result is unknown,
/// and its write was overwritten before a read could see it. Its keys are given the benefit of the
/// doubt.
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
