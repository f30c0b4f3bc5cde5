//! The order of commits, and the points between them.

use std::collections::{HashMap, HashSet};

use meridian_types::Versionstamp;

use crate::allowance::LostWindows;
use crate::commit::{Commit, Effect};
use crate::history::{History, Record, Txn, TxnOutcome};
use crate::lost_branch::{LostBranch, QueryKind};
use crate::observations::{Observation, Observations};
use crate::writers::Writers;

/// A bound on a point, and the operation it comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bound {
    pub(crate) point: usize,
    pub(crate) cause: Option<usize>,
}

/// The transaction of a failover, which has none.
static NO_TXN: Txn =
    Txn { id: 0, checks: Vec::new(), writes: Vec::new(), outcome: TxnOutcome::Unknown };

/// All commits in the order of their versionstamps.
///
/// *Point* `p` is the moment after the first `p` commits: there is one more point than there are
/// commits.
pub(crate) struct Commits<'h> {
    pub(crate) list: Vec<Commit<'h>>,
    /// Acknowledged commits by completion, each with the highest index up to it.
    by_completion: Vec<(u64, usize)>,
    /// Commits by invocation, each with the lowest index from it on.
    by_invocation: Vec<(u64, usize)>,
    /// Transactions that reads show without a versionstamp.
    pub(crate) unplaced: Vec<usize>,
    /// Transactions of unknown result that no read shows, and that no read would surely have shown.
    pub(crate) undecided: Vec<usize>,
    /// The branches that failovers ended, in order.
    pub(crate) lost_branches: Vec<LostBranch<'h>>,
}

impl<'h> Commits<'h> {
    /// A transaction committed if it was acknowledged, or if a read shows a value that only it
    /// wrote; then the read has its versionstamp. This includes transactions that were reported as
    /// not committed: that is a violation of its own ([`crate::Invariant::Outcomes`]), and should
    /// not turn every later read into another.
    ///
    /// A transaction that an epoch did not answer may have taken effect in it, been lost with its
    /// tail, and taken effect again in the next epoch: then it is two commits.
    pub(crate) fn of(
        history: &'h History,
        writers: &Writers<'h>,
        observations: &Observations<'h>,
        windows: &LostWindows,
    ) -> Self {
        let (mut list, mut unplaced, mut undecided) = (Vec::new(), Vec::new(), Vec::new());
        for (record, Record { invoked_ns, completed_ns, .. }, txn) in history.txns() {
            let commit = |versionstamp, completed_ns| Commit {
                record,
                effect: Effect::Writes,
                txn,
                versionstamp,
                invoked_ns: *invoked_ns,
                completed_ns,
            };
            let acknowledged = match txn.outcome {
                TxnOutcome::Committed { versionstamp } => Some(versionstamp),
                TxnOutcome::CheckFailed { .. }
                | TxnOutcome::NotCommitted { .. }
                | TxnOutcome::Unknown => None,
            };
            let lost = observations.lost_of_txn(record).map(|(_, versionstamp)| versionstamp);
            list.extend(
                lost.filter(|lost| Some(*lost) != acknowledged).map(|lost| commit(lost, None)),
            );
            match (acknowledged, observations.of_txn(record)) {
                (Some(versionstamp), _) => list.push(commit(versionstamp, *completed_ns)),
                (None, Some(Observation { versionstamp: Some(seen), .. })) => {
                    list.push(commit(seen, None))
                }
                (None, Some(Observation { versionstamp: None, .. })) => unplaced.push(record),
                (None, None) if txn.outcome == TxnOutcome::Unknown && !writers.would_show(txn) => {
                    undecided.push(record)
                }
                (None, None) => {}
            }
        }
        list.extend(windows.iter().enumerate().map(|(window, lost)| Commit {
            record: usize::MAX,
            effect: Effect::Undo { window },
            txn: &NO_TXN,
            versionstamp: lost.boundary(),
            invoked_ns: 0,
            completed_ns: None,
        }));
        list.sort_by_key(|commit| (commit.versionstamp, commit.invoked_ns, commit.record));
        let lost_branches = LostBranch::all(history, observations, windows, &list);
        let by_completion = by_completion(&list);
        let by_invocation = by_invocation(&list);
        Self { list, by_completion, by_invocation, unplaced, undecided, lost_branches }
    }

    /// The point after all commits up to and including `versionstamp`.
    pub(crate) fn as_of(&self, versionstamp: Versionstamp) -> usize {
        self.list.partition_point(|commit| commit.versionstamp <= versionstamp)
    }

    /// The least point that no later failover undoes.
    pub(crate) fn after_failovers(&self) -> usize {
        self.lost_branches.iter().map(|branch| branch.to + 1).max().unwrap_or(0)
    }

    /// Whether the state of `key` at `place` may differ from the known commits, for an operation
    /// that completed at `completed_ns`.
    pub(crate) fn is_ambiguous(
        &self,
        place: usize,
        key: &str,
        kind: QueryKind,
        completed_ns: Option<u64>,
    ) -> bool {
        let within = |branch: &&LostBranch<'_>| (branch.from..=branch.to).contains(&place);
        let completed_ns = completed_ns.unwrap_or(u64::MAX);
        self.lost_branches
            .iter()
            .filter(within)
            .any(|branch| branch.has_ambiguous(key, kind, completed_ns))
    }

    /// The point after all commits.
    pub(crate) fn end(&self) -> usize {
        self.list.len()
    }

    /// The least point that includes every commit acknowledged before `ns`.
    pub(crate) fn acknowledged_before(&self, ns: u64) -> Bound {
        let before = self.by_completion.partition_point(|(completed_ns, _)| *completed_ns < ns);
        match before.checked_sub(1).and_then(|last| self.by_completion.get(last)) {
            Some((_, place)) => Bound { point: place + 1, cause: self.record(*place) },
            None => Bound { point: 0, cause: None },
        }
    }

    /// The greatest point that includes no commit invoked after `ns`.
    pub(crate) fn invoked_by(&self, ns: u64) -> Bound {
        let after = self.by_invocation.partition_point(|(invoked_ns, _)| *invoked_ns <= ns);
        match self.by_invocation.get(after) {
            Some((_, place)) => Bound { point: *place, cause: self.record(*place) },
            None => Bound { point: self.end(), cause: None },
        }
    }

    /// For each key that undecided transactions write, the earliest invocation among them.
    pub(crate) fn undecided_writes(&self, history: &'h History) -> HashMap<&'h str, u64> {
        let mut first_ns: HashMap<&str, u64> = HashMap::new();
        let undecided: HashSet<usize> = self.undecided.iter().copied().collect();
        for (_, Record { invoked_ns, .. }, txn) in
            history.txns().filter(|(record, ..)| undecided.contains(record))
        {
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
    let mut sorted: Vec<(u64, usize)> = list
        .iter()
        .enumerate()
        .filter_map(|(place, commit)| Some((commit.completed_ns?, place)))
        .collect();
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
