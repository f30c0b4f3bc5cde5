//! An acknowledged write is there in the end: a final read shows the state after all commits.
//!
//! Source: `docs/consistency.md`: a commit is durable in at least two data centers before it is
//! acknowledged, and the loss of a data center loses none (RPO 0). Commits that a failover reports
//! as lost are not there, and do not come back.

use std::collections::HashSet;
use std::iter;

use crate::commits::Bound;
use crate::evidence::Evidence;
use crate::history::{Entry, Operation, Record, TxnOutcome, Value};
use crate::report::{Findings, Invariant};
use crate::timeline::{Condition, Expected};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    for (index, Record { invoked_ns, .. }, read) in
        evidence.history.reads().filter(|(_, _, read)| read.is_final)
    {
        // A transaction of unknown result may commit even now; an acknowledged one may not be
        // missing.
        let Bound { point, .. } = evidence.commits.acknowledged_before(*invoked_ns);
        // No failover comes later.
        let point = point.max(evidence.commits.after_failovers());
        for (key, entry) in read.entries() {
            let expected = entry.map_or(Expected::Version(None), Expected::Entry);
            if evidence.timeline.next(&Condition { key, expected }, point).is_some() {
                continue;
            }
            let modelled = evidence.timeline.entry(key, evidence.commits.end());
            // Computed only if the violation is kept.
            let lost =
                iter::once_with(|| lost_writers(evidence, key, modelled.as_ref(), entry)).flatten();
            findings.add(Invariant::AcknowledgedWrites, [index].into_iter().chain(lost), || {
                let text =
                    |entry: Option<&Entry>| entry.map_or("absent".to_owned(), ToString::to_string);
                let (seen, modelled) = (text(entry), text(modelled.as_ref()));
                format!("in the end `{key}` is {seen}, and all commits together make it {modelled}")
            });
        }
    }
}

/// The acknowledged transactions whose writes to `key` should show and do not; at most a few.
fn lost_writers(
    evidence: &Evidence<'_>,
    key: &str,
    modelled: Option<&Entry>,
    seen: Option<&Entry>,
) -> Vec<usize> {
    const SHOWN: usize = 5;
    let acknowledged = |record: &usize| match evidence
        .history
        .records
        .get(*record)
        .map(|record| &record.operation)
    {
        Some(Operation::Txn(txn)) => matches!(txn.outcome, TxnOutcome::Committed { .. }),
        Some(Operation::Read(_)) | None => false,
    };
    let mut lost = Vec::new();
    if let Some(Value::List(modelled)) = modelled.map(|entry| &entry.value) {
        let seen: HashSet<u64> = match seen.map(|entry| &entry.value) {
            Some(Value::List(seen)) => seen.iter().copied().collect(),
            _ => HashSet::new(),
        };
        let missing = modelled.iter().filter(|element| !seen.contains(element));
        lost.extend(
            missing
                .filter_map(|element| evidence.writers.of_element(key, *element))
                .filter(acknowledged),
        );
    }
    if lost.is_empty() {
        let last = modelled.map(|entry| entry.versionstamp);
        let writers =
            evidence.commits.list.iter().filter(|commit| Some(commit.versionstamp) == last);
        lost.extend(writers.map(|commit| commit.record).filter(acknowledged));
    }
    lost.truncate(SHOWN);
    lost
}
