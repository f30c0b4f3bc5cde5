//! Which transactions the reads show to have committed, and with which versionstamps.

use std::collections::{HashMap, HashSet};

use meridian_types::Versionstamp;

use crate::allowance::LostWindows;
use crate::history::{Entry, History, Operation, Value};
use crate::writers::Writers;

/// A read that shows a transaction's own value.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Observation {
    pub(crate) read: usize,
    /// `None`: the read shows its element only in a list after which other elements were appended,
    /// by transactions that did not check the list's version.
    pub(crate) versionstamp: Option<Versionstamp>,
}

/// A value in a read that no transaction wrote.
pub(crate) struct Phantom<'h> {
    pub(crate) read: usize,
    pub(crate) key: &'h str,
    pub(crate) value: u64,
}

/// An element that a list holds twice.
pub(crate) struct Repeat<'h> {
    pub(crate) read: usize,
    pub(crate) key: &'h str,
    pub(crate) element: u64,
}

/// The transactions that reads show to have committed, with their versionstamps.
#[derive(Default)]
pub(crate) struct Observations<'h> {
    by_txn: HashMap<usize, Observation>,
    /// Observations with a versionstamp that a failover lost: one for each transaction and window.
    lost: HashMap<usize, Vec<Observation>>,
    /// Observations of a transaction with another versionstamp than the first.
    pub(crate) conflicts: Vec<(usize, Observation)>,
    pub(crate) phantoms: Vec<Phantom<'h>>,
    pub(crate) repeats: Vec<Repeat<'h>>,
}

/// The last list seen of a key: most lists continue it, or are a prefix of it.
#[derive(Default)]
struct Scanned<'h> {
    list: &'h [u64],
    elements: HashSet<u64>,
}

impl<'h> Observations<'h> {
    /// Examines all reads, eventual ones too: any value that a replica shows must have committed.
    pub(crate) fn of(history: &'h History, writers: &Writers<'h>, windows: &LostWindows) -> Self {
        let mut observations = Self::default();
        let mut scanned: HashMap<&'h str, Scanned<'h>> = HashMap::new();
        for (record, _, read) in history.reads() {
            for (key, entry) in read.entries() {
                let Some(Entry { value, versionstamp }) = entry else { continue };
                match value {
                    Value::Register(value) => match writers.of_register(key, *value) {
                        Some(txn) => observations.see(windows, txn, record, Some(*versionstamp)),
                        None => {
                            observations.phantoms.push(Phantom { read: record, key, value: *value })
                        }
                    },
                    Value::List(list) => {
                        // The list has the version of the transaction that appended its last
                        // element.
                        if let Some(txn) =
                            list.last().and_then(|last| writers.of_element(key, *last))
                        {
                            observations.see(windows, txn, record, Some(*versionstamp));
                        }
                        let scanned = scanned.entry(key).or_default();
                        let unseen =
                            observations.scan(history, writers, record, key, list, scanned);
                        unseen.into_iter().for_each(|(txn, version)| {
                            observations.see(windows, txn, record, version)
                        });
                    }
                    Value::Counter(_) => {}
                }
            }
        }
        observations.finish(windows);
        observations
    }

    /// The first observation of the transaction, with its versionstamp if any observation has one.
    /// Observations on lost branches do not count.
    pub(crate) fn of_txn(&self, txn: usize) -> Option<Observation> {
        self.by_txn.get(&txn).copied()
    }

    /// The observations of the transaction on lost branches, each with its versionstamp.
    pub(crate) fn lost_of_txn(
        &self,
        txn: usize,
    ) -> impl Iterator<Item = (Observation, Versionstamp)> {
        let lost = self.lost.get(&txn).map_or(&[][..], Vec::as_slice);
        lost.iter().filter_map(|observation| Some((*observation, observation.versionstamp?)))
    }

    /// Derives the conflicts, once all reads have been examined.
    fn finish(&mut self, windows: &LostWindows) {
        for (txn, lost) in &self.lost {
            let Some(known) = self.by_txn.get(txn).copied() else { continue };
            match known.versionstamp {
                // Observed before other elements on a lost branch, and nowhere else.
                None => drop(self.by_txn.remove(txn)),
                Some(versionstamp) => {
                    let twice = lost.iter().filter(|observation| {
                        observation
                            .versionstamp
                            .is_some_and(|lost| !windows.may_repeat(lost, versionstamp))
                    });
                    self.conflicts.extend(twice.map(|observation| (*txn, *observation)));
                }
            }
        }
    }

    fn see(
        &mut self,
        windows: &LostWindows,
        txn: usize,
        read: usize,
        versionstamp: Option<Versionstamp>,
    ) {
        if let Some(stamp) = versionstamp
            && let Some(window) = windows.losing(stamp)
        {
            let lost = self.lost.entry(txn).or_default();
            let known = lost.iter().filter_map(|observation| observation.versionstamp);
            match known.clone().find(|known| windows.losing(*known) == Some(window)) {
                Some(first) if first != stamp => {
                    self.conflicts.push((txn, Observation { read, versionstamp }))
                }
                Some(_) => {}
                None => lost.push(Observation { read, versionstamp }),
            }
            return;
        }
        let known = self.by_txn.entry(txn).or_insert(Observation { read, versionstamp });
        match (known.versionstamp, versionstamp) {
            (None, Some(_)) => *known = Observation { read, versionstamp },
            (Some(first), Some(now)) if first != now => {
                self.conflicts.push((txn, Observation { read, versionstamp }))
            }
            _ => {}
        }
    }

    /// Examines the part of `list` that was not seen before. Returns its transactions, each with
    /// its versionstamp if the element appended next reveals it.
    fn scan(
        &mut self,
        history: &'h History,
        writers: &Writers<'h>,
        read: usize,
        key: &'h str,
        list: &'h [u64],
        scanned: &mut Scanned<'h>,
    ) -> Vec<(usize, Option<Versionstamp>)> {
        let common = list.iter().zip(scanned.list).take_while(|(a, b)| a == b).count();
        let mut seen = Vec::new();
        if common == list.len() {
            return seen;
        }
        if common < scanned.list.len() {
            scanned.elements = list.iter().take(common).copied().collect();
        }
        scanned.list = list;
        for (index, element) in list.iter().enumerate().skip(common) {
            if !scanned.elements.insert(*element) {
                self.repeats.push(Repeat { read, key, element: *element });
            }
            let Some(txn) = writers.of_element(key, *element) else {
                self.phantoms.push(Phantom { read, key, value: *element });
                continue;
            };
            if let Some(next) = list.get(index + 1) {
                let versionstamp = writers
                    .of_element(key, *next)
                    .filter(|next| *next != txn)
                    .and_then(|next| checked_version(history, next, key));
                seen.push((txn, versionstamp));
            }
        }
        seen
    }
}

/// The version of `key` that the transaction demanded: that of the list to which it appended.
fn checked_version(history: &History, txn: usize, key: &str) -> Option<Versionstamp> {
    match &history.records.get(txn)?.operation {
        Operation::Txn(txn) => txn.checks.iter().find(|check| check.key == key)?.versionstamp,
        Operation::Read(_) => None,
    }
}
