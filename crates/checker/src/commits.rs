use std::collections::{HashMap, HashSet};

use meridian_types::Versionstamp;

use crate::allowance::LostWindows;
use crate::history::{History, Record, Txn, TxnOutcome};
use crate::sightings::{Sighting, Sightings};
use crate::stretch::{Asker, Stretch};
use crate::writers::Writers;

/// What a commit does to the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// The writes of its transaction.
    Writes,
    /// It undoes the commits that the window's failover lost. Nobody asked for it, so it bounds
    /// nothing.
    Undo { window: usize },
}

/// A transaction that took effect, or a failover that undid some.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Commit<'h> {
    /// Of a failover: no record.
    pub(crate) record: usize,
    pub(crate) effect: Effect,
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

/// The transaction of a failover.
static NO_TXN: Txn =
    Txn { id: 0, checks: Vec::new(), writes: Vec::new(), outcome: TxnOutcome::Unknown };

/// All commits in the order of their versionstamps.
///
/// *Point* `p` is the moment after the first `p` commits: there is one more point than there are
/// commits.
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
    /// What failovers lost, in order.
    pub(crate) stretches: Vec<Stretch<'h>>,
}

impl<'h> Commits<'h> {
    /// A transaction committed if that was acknowledged, or if a read shows what only it wrote;
    /// then the read says its versionstamp. This includes those reported not to have committed:
    /// that is a violation of its own ([`crate::Invariant::Outcomes`]), and should not make every
    /// later read one too.
    ///
    /// A transaction that was not answered by an epoch may have taken effect in it, been lost with
    /// its tail, and taken effect again in the next: then it is two commits.
    pub(crate) fn of(
        history: &'h History,
        writers: &Writers<'h>,
        sightings: &Sightings<'h>,
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
            let lost = sightings.lost_of_txn(record).map(|(_, versionstamp)| versionstamp);
            list.extend(
                lost.filter(|lost| Some(*lost) != acknowledged).map(|lost| commit(lost, None)),
            );
            match (acknowledged, sightings.of_txn(record)) {
                (Some(versionstamp), _) => list.push(commit(versionstamp, *completed_ns)),
                (None, Some(Sighting { versionstamp: Some(seen), .. })) => {
                    list.push(commit(seen, None))
                }
                (None, Some(Sighting { versionstamp: None, .. })) => unplaced.push(record),
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
        let stretches = Stretch::all(history, sightings, windows, &list);
        let by_completion = by_completion(&list);
        let by_invocation = by_invocation(&list);
        Self { list, by_completion, by_invocation, unplaced, undecided, stretches }
    }

    /// The point after everything up to and including `versionstamp`.
    pub(crate) fn as_of(&self, versionstamp: Versionstamp) -> usize {
        self.list.partition_point(|commit| commit.versionstamp <= versionstamp)
    }

    /// The least point that no later failover undoes.
    pub(crate) fn settled(&self) -> usize {
        self.stretches.iter().map(|stretch| stretch.to + 1).max().unwrap_or(0)
    }

    /// Whether the state under `key` at `place` may be other than the known commits make it, to one
    /// who completed at `completed_ns`.
    pub(crate) fn is_clouded(
        &self,
        place: usize,
        key: &str,
        asker: Asker,
        completed_ns: Option<u64>,
    ) -> bool {
        let within = |stretch: &&Stretch<'_>| (stretch.from..=stretch.to).contains(&place);
        let completed_ns = completed_ns.unwrap_or(u64::MAX);
        self.stretches.iter().filter(within).any(|stretch| stretch.clouds(key, asker, completed_ns))
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
