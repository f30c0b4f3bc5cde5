use std::collections::BTreeMap;
use std::fmt;

use crate::history::History;

/// Violations of one invariant that are kept; the rest are counted.
const MAX_KEPT: usize = 20;

/// What must hold. Each is a file under `invariants/`.
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

/// An operation that takes part in a violation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offender {
    /// Its place in [`History::records`]; its line in a saved history is one more.
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

/// How much the history holds, and so what a clean report is worth.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Statistics {
    pub operations: usize,
    /// From the first invocation to the last completion.
    pub span_ns: u64,
    /// Strong reads that were answered, final ones included.
    pub strong_reads: usize,
    pub final_reads: usize,
    pub eventual_reads: usize,
    /// Reads that failed or had no answer.
    pub failed_reads: usize,
    pub committed: usize,
    pub check_failed: usize,
    pub not_committed: usize,
    /// Transactions without a known result, the next two included.
    pub unknown: usize,
    /// Of these, seen to have committed.
    pub unknown_committed: usize,
    /// Of these, neither seen nor surely absent: treated as not committed.
    pub unknown_undecided: usize,
    pub keys_written: usize,
    /// Keys that committed transactions wrote and no final read looked at.
    pub keys_not_in_final_reads: usize,
}

/// What [`crate::check`] or [`crate::check_with`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// At most 20 of one invariant, in the order of [`Invariant::ALL`].
    pub violations: Vec<Violation>,
    /// All violations of each invariant, those left out above included.
    pub counts: BTreeMap<Invariant, usize>,
    /// The acknowledged transactions that failovers lost, as the allowance lets them: places in
    /// [`History::records`]. No violations; a promise about loss is judged by whoever made it.
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

/// Collects violations while the invariants are looked at.
pub(crate) struct Findings<'h> {
    history: &'h History,
    violations: Vec<Violation>,
    counts: BTreeMap<Invariant, usize>,
}

impl<'h> Findings<'h> {
    pub(crate) fn new(history: &'h History) -> Self {
        Self { history, violations: Vec::new(), counts: BTreeMap::new() }
    }

    /// `message` is made only when the violation is kept: a broken history has very many.
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
