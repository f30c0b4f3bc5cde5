//! Reports: violations, and statistics of the history.

use std::collections::BTreeMap;
use std::fmt;

use crate::history::History;

/// Violations kept for each invariant; further ones are counted.
const MAX_KEPT: usize = 20;

/// The invariants of a history, each a file under `invariants/`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Invariant {
    WellFormed,
    Versionstamps,
    StrictSerializability,
    Outcomes,
    AcknowledgedWrites,
    ExactlyOnce,
    EventualReads,
}

impl Invariant {
    pub const ALL: [Self; 7] = [
        Self::WellFormed,
        Self::Versionstamps,
        Self::StrictSerializability,
        Self::Outcomes,
        Self::AcknowledgedWrites,
        Self::ExactlyOnce,
        Self::EventualReads,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::WellFormed => "well-formed history",
            Self::Versionstamps => "versionstamps",
            Self::StrictSerializability => "strict serializability",
            Self::Outcomes => "outcomes",
            Self::AcknowledgedWrites => "acknowledged writes",
            Self::ExactlyOnce => "exactly once",
            Self::EventualReads => "eventual reads",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// An operation that is part of a violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offender {
    /// Its index in [`History::records`]; its line in a saved history is one more.
    pub record: usize,
    pub description: String,
}

/// Answers that no correct store gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    pub invariant: Invariant,
    pub message: String,
    pub offenders: Vec<Offender>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.message)?;
        for offender in &self.offenders {
            write!(f, "\n    line {}: {}", offender.record + 1, offender.description)?;
        }
        Ok(())
    }
}

/// The size of the history, which tells how much a clean report is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    pub operations: usize,
    /// From the first invocation to the last completion.
    pub span_ns: u64,
    /// Answered strong reads, final ones included.
    pub strong_reads: usize,
    pub final_reads: usize,
    pub eventual_reads: usize,
    /// Reads that failed or had no answer.
    pub failed_reads: usize,
    pub committed: usize,
    pub check_failed: usize,
    pub not_committed: usize,
    /// Transactions of unknown result, including the next two counts.
    pub unknown: usize,
    /// Of these, the ones that a read shows to have committed.
    pub unknown_committed: usize,
    /// Of these, the ones neither seen nor surely absent; they are treated as not committed.
    pub unknown_undecided: usize,
    pub keys_written: usize,
    /// Keys that committed transactions wrote and no final read covered.
    pub keys_not_in_final_reads: usize,
}

/// The result of [`crate::check`] or [`crate::check_with`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// At most 20 for each invariant, in the order of [`Invariant::ALL`].
    pub violations: Vec<Violation>,
    /// The number of violations of each invariant, including those not kept.
    pub counts: BTreeMap<Invariant, usize>,
    /// The acknowledged transactions that failovers lost within the allowance: indexes in
    /// [`History::records`]. They are no violations; promises about loss are judged elsewhere.
    pub lost: Vec<usize>,
    pub statistics: Statistics,
}

impl Report {
    pub fn is_clean(&self) -> bool {
        self.counts.is_empty()
    }

    /// How many violations of `invariant` there are.
    pub fn count(&self, invariant: Invariant) -> usize {
        self.counts.get(&invariant).copied().unwrap_or(0)
    }

    pub fn of(&self, invariant: Invariant) -> impl Iterator<Item = &Violation> {
        self.violations.iter().filter(move |violation| violation.invariant == invariant)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let s = &self.statistics;
        writeln!(
            f,
            "{} operations in {:.3} s",
            s.operations,
            std::time::Duration::from_nanos(s.span_ns).as_secs_f64()
        )?;
        writeln!(
            f,
            "transactions: {} committed, {} with failed checks, {} not committed, {} unknown ({} of them committed, {} undecided)",
            s.committed,
            s.check_failed,
            s.not_committed,
            s.unknown,
            s.unknown_committed,
            s.unknown_undecided
        )?;
        writeln!(
            f,
            "reads: {} strong ({} final), {} eventual, {} without an answer",
            s.strong_reads, s.final_reads, s.eventual_reads, s.failed_reads
        )?;
        writeln!(
            f,
            "keys: {} written, {} in no final read",
            s.keys_written, s.keys_not_in_final_reads
        )?;
        if !self.lost.is_empty() {
            writeln!(
                f,
                "lost by failovers, as they admit: {} acknowledged transactions",
                self.lost.len()
            )?;
        }
        for invariant in Invariant::ALL {
            match self.count(invariant) {
                0 => writeln!(f, "ok        {invariant}")?,
                count => writeln!(f, "VIOLATED  {invariant}: {count} times")?,
            }
        }
        for violation in &self.violations {
            writeln!(f, "\n{violation}")?;
        }
        for (invariant, count) in &self.counts {
            let left_out = count.saturating_sub(MAX_KEPT);
            if left_out > 0 {
                writeln!(f, "\n{invariant}: {left_out} more left out")?;
            }
        }
        Ok(())
    }
}

/// Collects violations while the invariants are checked.
pub(crate) struct Findings<'h> {
    history: &'h History,
    violations: Vec<Violation>,
    counts: BTreeMap<Invariant, usize>,
}

impl<'h> Findings<'h> {
    pub(crate) fn new(history: &'h History) -> Self {
        Self { history, violations: Vec::new(), counts: BTreeMap::new() }
    }

    /// `message` is made only if the violation is kept: a broken history has very many.
    pub(crate) fn add(
        &mut self,
        invariant: Invariant,
        records: impl IntoIterator<Item = usize>,
        message: impl FnOnce() -> String,
    ) {
        let count = self.counts.entry(invariant).or_default();
        *count += 1;
        if *count > MAX_KEPT {
            return;
        }
        let offenders = records
            .into_iter()
            .filter_map(|record| {
                let description = self.history.records.get(record)?.to_string();
                Some(Offender { record, description })
            })
            .collect();
        self.violations.push(Violation { invariant, message: message(), offenders });
    }

    pub(crate) fn into_report(mut self, statistics: Statistics, lost: Vec<usize>) -> Report {
        self.violations.sort_by_key(|violation| violation.invariant);
        Report { violations: self.violations, counts: self.counts, lost, statistics }
    }
}
