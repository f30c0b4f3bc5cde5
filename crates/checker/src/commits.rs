use std::collections::{HashMap, HashSet};

use meridian_types::Versionstamp;

use crate::history::{History, Record, Txn, TxnOutcome};
use crate::sightings::Sightings;
use crate::writers::Writers;

/// A transaction that took effect.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit<'h> {
    pub(crate) record: usize,
    pub(crate) txn: &'h Txn,
    pub(crate) versionstamp: Versionstamp,
    pub(crate) invoked_ns: u64,
    /// When it was acknowledged. `None`: it never was, and may take effect at any time.
    pub(crate) completed_ns: Option<u64>,
}

/// A bound on a point, and the operation it comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) point: usize,
    pub(crate) cause: Option<usize>,
}

/// All commits in the order of their versionstamps.
///
/// *Point* `p` is the moment after the first `p` commits: there is one more point than there are commits.
pub(crate) struct Commits<'h> {
    pub(crate) list: Vec<Commit<'h>>,
    /// Commits that were acknowledged, by completion; each with the highest place up to it.
    by_completion: Vec<(u64, usize)>,
    /// Commits by invocation; each with the lowest place from it on.
    by_invocation: Vec<(u64, usize)>,
    /// Transactions that were seen, but without a versionstamp.
    pub(crate) unplaced: Vec<usize>,
    /// Transactions of unknown result that were not seen, and could not surely have been seen.
    pub(crate) undecided: Vec<usize>,
}

impl<'h> Commits<'h> {
    /// A transaction committed if that was acknowledged, or if a read shows what only it wrote; then the
    /// read says its versionstamp. This includes those reported not to have committed: that is a violation
    /// of its own ([`crate::Invariant::Outcomes`]), and should not make every later read one too.
    pub(crate) fn of(history: &'h History, writers: &Writers<'h>, sightings: &Sightings<'h>) -> Self {
        let (mut list, mut unplaced, mut undecided) = (Vec::new(), Vec::new(), Vec::new());
        for (record, Record { invoked_ns, completed_ns, .. }, txn) in history.txns() {
            let sighting = sightings.of_txn(record);
            let (versionstamp, completed_ns) = match (&txn.outcome, sighting) {
                (TxnOutcome::Committed { versionstamp }, _) => (*versionstamp, *completed_ns),
                (_, Some(sighting)) => match sighting.versionstamp {
                    Some(versionstamp) => (versionstamp, None),
                    None => {
                        unplaced.push(record);
                        continue;
                    }
                },
                (TxnOutcome::Unknown, None) => {
                    if !writers.would_show(txn) {
                        undecided.push(record);
                    }
                    continue;
                }
                (TxnOutcome::CheckFailed { .. } | TxnOutcome::NotCommitted { .. }, None) => continue,
            };
            list.push(Commit { record, txn, versionstamp, invoked_ns: *invoked_ns, completed_ns });
        }
        list.sort_by_key(|commit| (commit.versionstamp, commit.invoked_ns, commit.record));
        let by_completion = by_completion(&list);
        let by_invocation = by_invocation(&list);
        Self { list, by_completion, by_invocation, unplaced, undecided }
    }

    /// The point after all commits.
    pub(crate) fn end(&self) -> usize {
        self.list.len()
    }

    /// The least point that has every commit acknowledged before `ns`.
    pub(crate) fn acknowledged_before(&self, ns: u64) -> Bound {
        let before = self.by_completion.partition_point(|(completed_ns, _)| *completed_ns < ns);
        match before.checked_sub(1).and_then(|last| self.by_completion.get(last)) {
            Some((_, place)) => Bound { point: place + 1, cause: self.record(*place) },
            None => Bound { point: 0, cause: None },
        }
    }

    /// The greatest point that has no commit invoked after `ns`.
    pub(crate) fn invoked_by(&self, ns: u64) -> Bound {
        let after = self.by_invocation.partition_point(|(invoked_ns, _)| *invoked_ns <= ns);
        match self.by_invocation.get(after) {
            Some((_, place)) => Bound { point: *place, cause: self.record(*place) },
            None => Bound { point: self.end(), cause: None },
        }
    }

    /// For each key that an undecided transaction writes, when the first of them was invoked.
    pub(crate) fn undecided_writes(&self, history: &'h History) -> HashMap<&'h str, u64> {
        let mut first_ns: HashMap<&str, u64> = HashMap::new();
        let undecided: HashSet<usize> = self.undecided.iter().copied().collect();
        for (_, Record { invoked_ns, .. }, txn) in history.txns().filter(|(record, ..)| undecided.contains(record)) {
            for write in &txn.writes {
                let first = first_ns.entry(write.key()).or_insert(*invoked_ns);
                *first = (*first).min(*invoked_ns);
            }
        }
        first_ns
    }

    fn record(&self, place: usize) -> Option<usize> {
        self.list.get(place).map(|commit| commit.record)
    }
}

fn by_completion(list: &[Commit<'_>]) -> Vec<(u64, usize)> {
    let mut sorted: Vec<(u64, usize)> =
        list.iter().enumerate().filter_map(|(place, commit)| Some((commit.completed_ns?, place))).collect();
    sorted.sort_unstable();
    let mut highest = 0;
    for (_, place) in &mut sorted {
        highest = highest.max(*place);
        *place = highest;
    }
    sorted
}

fn by_invocation(list: &[Commit<'_>]) -> Vec<(u64, usize)> {
    let mut sorted: Vec<(u64, usize)> =
        list.iter().enumerate().map(|(place, commit)| (commit.invoked_ns, place)).collect();
    sorted.sort_unstable();
    let mut lowest = list.len();
    for (_, place) in sorted.iter_mut().rev() {
        lowest = lowest.min(*place);
        *place = lowest;
    }
    sorted
}
