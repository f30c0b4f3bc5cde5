//! A transaction takes effect once, however often it was retried: a counter is the sum of the
//! committed amounts, a list holds an element once, and all writes of a transaction have one
//! versionstamp.
//!
//! Source: `docs/adr/0003-exactly-once.md`: a request retried with its id across leader change,
//! restart, snapshot and failover is applied once and answered with the original result.

use std::collections::HashSet;
use std::iter;

use meridian_types::Versionstamp;

use crate::evidence::Evidence;
use crate::history::{Entry, Record, Txn, TxnOutcome, Value, Write};
use crate::lost_branch::QueryKind;
use crate::report::{Findings, Invariant};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    for repeat in &evidence.observations.repeats {
        let writer = evidence.writers.of_element(repeat.key, repeat.element);
        findings.add(Invariant::ExactlyOnce, writer.into_iter().chain([repeat.read]), || {
            format!("the list `{}` holds {} twice", repeat.key, repeat.element)
        });
    }
    versions(evidence, findings);
    counters(evidence, findings);
}

/// Each transaction has one versionstamp, the same in its answer and in all reads.
fn versions(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    for (txn, again) in &evidence.observations.conflicts {
        let first = evidence.observations.of_txn(*txn).map(|observation| observation.read);
        findings.add(
            Invariant::ExactlyOnce,
            [*txn].into_iter().chain(first).chain([again.read]),
            || {
                "what the transaction wrote was seen with two versionstamps: it took effect twice"
                    .to_owned()
            },
        );
    }
    for (record, _, txn) in evidence.history.txns() {
        let TxnOutcome::Committed { versionstamp } = txn.outcome else { continue };
        for (observation, seen) in evidence.observations.lost_of_txn(record) {
            if seen != versionstamp && !evidence.windows.may_repeat(seen, versionstamp) {
                findings.add(Invariant::ExactlyOnce, [record, observation.read], || {
                    format!("acknowledged as {versionstamp}, and seen as {seen}, which no failover between them lost")
                });
            }
        }
        if let Some(observation) = evidence.observations.of_txn(record)
            && let Some(seen) = observation.versionstamp
            && seen != versionstamp
        {
            findings.add(Invariant::ExactlyOnce, [record, observation.read], || {
                format!("the transaction was acknowledged as {versionstamp}, and what it wrote was seen as {seen}")
            });
        }
    }
}

/// Each counter in a read is the sum of the amounts committed up to its versionstamp.
fn counters(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    let mut reported: HashSet<(&str, Versionstamp, u64)> = HashSet::new();
    for (record, Record { completed_ns, .. }, read) in evidence.history.reads() {
        for (key, entry) in read.entries() {
            let Some(Entry { value: Value::Counter(seen), versionstamp }) = entry else { continue };
            let point = evidence.commits.as_of(*versionstamp);
            let lost = evidence.windows.losing(*versionstamp).is_some();
            if lost && evidence.commits.is_ambiguous(point, key, QueryKind::Read, *completed_ns) {
                continue;
            }
            let expected = match evidence.timeline.entry(key, point).map(|entry| entry.value) {
                Some(Value::Counter(expected)) => expected,
                // Absent, according to the commits.
                _ => 0,
            };
            if *seen == expected || !reported.insert((key, *versionstamp, *seen)) {
                continue;
            }
            let (amount, guess) = match seen.wrapping_sub(expected) {
                more if more <= u64::MAX / 2 => {
                    (more, "too much, a sum was applied twice or was not committed")
                }
                less => (less.wrapping_neg(), "too little, a sum was lost"),
            };
            let suspect =
                iter::once_with(|| suspect(evidence, key, *versionstamp, amount)).flatten();
            findings.add(Invariant::ExactlyOnce, [record].into_iter().chain(suspect), || {
                format!(
                    "the counter `{key}` is {seen} at {versionstamp}, and the amounts committed by then make {expected}: {amount} {guess}"
                )
            });
        }
    }
}

/// A transaction that adds exactly this amount: preferably the last to commit by then.
fn suspect(evidence: &Evidence<'_>, key: &str, by: Versionstamp, amount: u64) -> Option<usize> {
    let adds = |txn: &Txn| {
        txn.writes.iter().any(
            |write| matches!(write, Write::Sum { key: k, amount: a } if k == key && *a == amount),
        )
    };
    let committed = evidence
        .commits
        .list
        .iter()
        .rev()
        .find(|commit| commit.versionstamp <= by && adds(commit.txn))
        .map(|commit| commit.record);
    committed.or_else(|| {
        evidence.history.txns().find(|(_, _, txn)| adds(txn)).map(|(record, ..)| record)
    })
}
