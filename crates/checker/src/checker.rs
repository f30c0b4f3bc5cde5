//! The two entry points: a history against all invariants.

use crate::allowance::Allowance;
use crate::evidence::Evidence;
use crate::history::History;
use crate::invariants;
use crate::report::{Findings, Report};

/// Checks a history against every [`crate::Invariant`].
///
/// Never fails: a history that makes no sense is reported as not well-formed.
pub fn check(history: &History) -> Report {
    check_with(history, &Allowance::default())
}

/// Like [`check`], for a system that may have lost the commits that `allowance` covers.
/// Acknowledged commits that were lost are listed in [`Report::lost`]; a commit that is missing
/// besides them, or a lost commit that comes back, is a violation.
pub fn check_with(history: &History, allowance: &Allowance) -> Report {
    let evidence = Evidence::new(history, allowance);
    let mut findings = Findings::new(history);
    for invariant in invariants::ALL {
        invariant(&evidence, &mut findings);
    }
    findings.into_report(evidence.statistics(), evidence.lost())
}
