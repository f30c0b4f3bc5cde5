//! A versionstamp names one transaction, and the order of versionstamps keeps real time: a
//! transaction that was acknowledged before another was invoked has the lower one.
//!
//! Source: `docs/consistency.md`, "Versionstamps": they order commits and are never given twice;
//! FoundationDB's versionstamps, which KV Connect takes over.

use crate::evidence::Evidence;
use crate::report::{Findings, Invariant};

pub(super) fn check(evidence: &Evidence<'_>, findings: &mut Findings<'_>) {
    let commits = &evidence.commits.list;
    for (a, b) in commits.iter().zip(commits.iter().skip(1)) {
        if a.versionstamp == b.versionstamp {
            findings.add(Invariant::Versionstamps, [a.record, b.record], || {
                format!("two transactions have the versionstamp {}", a.versionstamp)
            });
        }
    }
    // The earliest acknowledgement among all later commits, going from the last to the first.
    let mut earliest: Option<(u64, usize)> = None;
    for commit in commits.iter().rev() {
        if let Some((completed_ns, record)) = earliest
            && completed_ns < commit.invoked_ns
        {
            findings.add(Invariant::Versionstamps, [record, commit.record], || {
                "versionstamps went back: what was acknowledged before the other was invoked has the higher one"
                    .to_owned()
            });
        }
        if let Some(completed_ns) = commit.completed_ns
            && earliest.is_none_or(|(earliest_ns, _)| completed_ns < earliest_ns)
        {
            earliest = Some((completed_ns, commit.record));
        }
    }
}
