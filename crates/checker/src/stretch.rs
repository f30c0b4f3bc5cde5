use std::collections::{HashMap, HashSet};

use crate::allowance::{LostWindow, LostWindows};
use crate::commits::{Commit, Effect};
use crate::history::{History, Record, Txn, TxnOutcome, Write};
use crate::sightings::Sightings;

/// Who asks about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asker {
    Read,
    FailedCheck,
}

/// The branch of the order of commits that one failover ended: from before the first commit that it
/// lost to just before it undid them.
///
/// A transaction without a known effect may have had one here that nothing tells about: what it
/// wrote is gone, so that the final reads, which else would decide, say nothing. The keys that it
/// may have changed are *clouded*: within the branch nothing is demanded of them, by whoever
/// completed after it was invoked.
pub(crate) struct Stretch<'h> {
    /// The first point.
    pub(crate) from: usize,
    /// The last point: the place of the commit that undoes the others.
    pub(crate) to: usize,
    /// Changed in a way that a read does not show to be that transaction's: sums and deletes.
    /// Each key with when the first such transaction was invoked.
    unnamed: HashMap<&'h str, u64>,
    /// Changed in any way. Of a set or an append that was written over nothing tells either.
    changed: HashMap<&'h str, u64>,
}

impl<'h> Stretch<'h> {
    /// The stretches of all windows. `list` is all commits in order, those that undo included.
    pub(crate) fn all(
        history: &'h History,
        sightings: &Sightings<'h>,
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
                let mut stretch =
                    Self { from, to, unnamed: HashMap::new(), changed: HashMap::new() };
                stretch.cloud(history, sightings, window, list);
                Some(stretch)
            })
            .collect()
    }

    /// `completed_ns` is that of who asks.
    pub(crate) fn clouds(&self, key: &str, asker: Asker, completed_ns: u64) -> bool {
        let first_ns = match asker {
            Asker::Read => self.unnamed.get(key),
            Asker::FailedCheck => self.changed.get(key),
        };
        first_ns.is_some_and(|first_ns| *first_ns <= completed_ns)
    }

    fn cloud(
        &mut self,
        history: &'h History,
        sightings: &Sightings<'h>,
        window: &LostWindow,
        list: &[Commit<'h>],
    ) {
        let inside: HashSet<usize> =
            list.iter().take(self.to).skip(self.from).map(|commit| commit.record).collect();
        // The new epoch began between the two.
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
                    sightings,
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

/// Whether a transaction may have taken effect in the branch, unseen. It then was not answered by
/// the old epoch: either never, or by the new one, which knew nothing of it.
fn may_have_had_an_effect(
    index: usize,
    record: &Record,
    txn: &Txn,
    sightings: &Sightings<'_>,
    window: &LostWindow,
    begun_after_ns: u64,
) -> bool {
    let survived = match &txn.outcome {
        TxnOutcome::Committed { versionstamp } => Some(*versionstamp),
        _ => sightings.of_txn(index).and_then(|sighting| sighting.versionstamp),
    };
    match (survived, &txn.outcome) {
        (Some(versionstamp), _) => versionstamp.position().epoch >= window.epoch,
        (None, TxnOutcome::Unknown) => true,
        (None, _) => record.completed_ns.is_some_and(|completed_ns| completed_ns >= begun_after_ns),
    }
}
