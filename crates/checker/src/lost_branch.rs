//! The branches of the order of commits that failovers ended, and the keys that are ambiguous on
//! them.

use std::collections::{HashMap, HashSet};

use crate::allowance::{LostWindow, LostWindows};
use crate::commit::{Commit, Effect};
use crate::history::{History, Record, Txn, TxnOutcome, Write};
use crate::observations::Observations;

/// The kind of operation that shows a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum QueryKind {
    Read,
    FailedCheck,
}

/// The branch of the order of commits that a failover ended: from before the first commit that it
/// lost to just before it undid them.
///
/// A transaction without a known effect may have taken effect on the branch without a trace: its
/// writes are gone, so that the final reads, which decide otherwise, say nothing. The keys that it
/// may have changed are *ambiguous*: on the branch, nothing is demanded of them from operations
/// that completed after the transaction was invoked.
///
/// For example: a client adds 5 to a counter in epoch 1 and gets no answer; the failover to epoch 2
/// loses the end of epoch 1. An eventual read of epoch 1 may show the counter with the 5 or without
/// it, and no later read can tell which was right.
pub(crate) struct LostBranch<'h> {
    /// The first point.
    pub(crate) from: usize,
    /// The last point: the index of the commit that undoes the others.
    pub(crate) to: usize,
    /// Keys that may have been changed by sums and deletes, which a read does not attribute to a
    /// transaction; each with the earliest invocation of such a transaction.
    unnamed: HashMap<&'h str, u64>,
    /// Keys that may have been changed in any way: a set or an append that was overwritten leaves
    /// no trace either.
    changed: HashMap<&'h str, u64>,
}

impl<'h> LostBranch<'h> {
    /// The lost branches of all windows. `list` holds all commits in order, including the undoing
    /// ones.
    pub(crate) fn all(
        history: &'h History,
        observations: &Observations<'h>,
        windows: &LostWindows,
        list: &[Commit<'h>],
    ) -> Vec<Self> {
        let places = windows.iter().enumerate();
        places
            .filter_map(|(place, window)| {
                let to = list
                    .iter()
                    .position(|commit| commit.effect == Effect::Undo { window: place })?;
                let lost = |commit: &Commit<'_>| windows.losing(commit.versionstamp) == Some(place);
                let from = list.iter().take(to).position(lost).unwrap_or(to);
                let mut branch =
                    Self { from, to, unnamed: HashMap::new(), changed: HashMap::new() };
                branch.note_ambiguous(history, observations, window, list);
                Some(branch)
            })
            .collect()
    }

    /// Whether `key` is ambiguous for an operation that completed at `completed_ns`.
    pub(crate) fn has_ambiguous(&self, key: &str, kind: QueryKind, completed_ns: u64) -> bool {
        let first_ns = match kind {
            QueryKind::Read => self.unnamed.get(key),
            QueryKind::FailedCheck => self.changed.get(key),
        };
        first_ns.is_some_and(|first_ns| *first_ns <= completed_ns)
    }

    fn note_ambiguous(
        &mut self,
        history: &'h History,
        observations: &Observations<'h>,
        window: &LostWindow,
        list: &[Commit<'h>],
    ) {
        let inside: HashSet<usize> =
            list.iter().take(self.to).skip(self.from).map(|commit| commit.record).collect();
        // The new epoch began between these two times.
        let begun_by_ns =
            list.iter().skip(self.to + 1).filter_map(|commit| commit.completed_ns).min();
        let begun_after_ns =
            list.iter().take(self.to).skip(self.from).map(|commit| commit.invoked_ns).max();
        for (index, record, txn) in history.txns().filter(|(index, ..)| !inside.contains(index)) {
            let too_late = begun_by_ns.is_some_and(|begun_by_ns| record.invoked_ns > begun_by_ns);
            if too_late
                || !may_have_had_an_effect(
                    index,
                    record,
                    txn,
                    observations,
                    window,
                    begun_after_ns.unwrap_or(0),
                )
            {
                continue;
            }
            for write in &txn.writes {
                let first = |first_ns: &mut u64| *first_ns = record.invoked_ns.min(*first_ns);
                self.changed.entry(write.key()).and_modify(first).or_insert(record.invoked_ns);
                if matches!(write, Write::Sum { .. } | Write::Delete { .. }) {
                    self.unnamed.entry(write.key()).and_modify(first).or_insert(record.invoked_ns);
                }
            }
        }
    }
}

/// Whether a transaction may have taken effect on the branch without a trace. The old epoch then
/// did not answer it: either it has no answer, or the new epoch answered, which did not know of the
/// effect.
fn may_have_had_an_effect(
    index: usize,
    record: &Record,
    txn: &Txn,
    observations: &Observations<'_>,
    window: &LostWindow,
    begun_after_ns: u64,
) -> bool {
    let survived = match &txn.outcome {
        TxnOutcome::Committed { versionstamp } => Some(*versionstamp),
        _ => observations.of_txn(index).and_then(|observation| observation.versionstamp),
    };
    match (survived, &txn.outcome) {
        (Some(versionstamp), _) => versionstamp.position().epoch >= window.epoch,
        (None, TxnOutcome::Unknown) => true,
        (None, _) => record.completed_ns.is_some_and(|completed_ns| completed_ns >= begun_after_ns),
    }
}
