use std::collections::{HashMap, HashSet};

use meridian_types::Versionstamp;

use crate::allowance::LostWindows;
use crate::history::{Entry, History, Operation, Value};
use crate::writers::Writers;

/// A transaction's own value in a read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sighting {
    pub(crate) read: usize,
    /// `None`: its element was seen in a list only behind which others had been appended, by
    /// transactions that did not check the list's version.
    pub(crate) versionstamp: Option<Versionstamp>,
}

/// What was read that no transaction wrote.
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

/// Which transactions the reads show to have committed, and with which versionstamps.
#[derive(Default)]
pub(crate) struct Sightings<'h> {
    by_txn: HashMap<usize, Sighting>,
    /// Sightings with a versionstamp that a failover lost: one for each transaction and window.
    lost: HashMap<usize, Vec<Sighting>>,
    /// Sightings of a transaction with another versionstamp than the first.
    pub(crate) conflicts: Vec<(usize, Sighting)>,
    pub(crate) phantoms: Vec<Phantom<'h>>,
    pub(crate) repeats: Vec<Repeat<'h>>,
}

/// The list of a key that was looked at last: most lists only continue it, or are a beginning of
/// it.
#[derive(Default)]
struct Scanned<'h> {
    list: &'h [u64],
    elements: HashSet<u64>,
}

impl<'h> Sightings<'h> {
    /// Looks at all reads, eventual ones too: what any replica shows must have committed.
    pub(crate) fn of(history: &'h History, writers: &Writers<'h>, windows: &LostWindows) -> Self {
        let mut sightings = Self::default();
        let mut scanned: HashMap<&'h str, Scanned<'h>> = HashMap::new();
        for (record, _, read) in history.reads() {
            for (key, entry) in read.entries() {
                let Some(Entry { value, versionstamp }) = entry else { continue };
                match value {
                    Value::Register(value) => match writers.of_register(key, *value) {
                        Some(txn) => sightings.see(windows, txn, record, Some(*versionstamp)),
                        None => {
                            sightings.phantoms.push(Phantom { read: record, key, value: *value })
                        }
                    },
                    Value::List(list) => {
                        // The list has the version of the transaction that appended its last
                        // element.
                        if let Some(txn) =
                            list.last().and_then(|last| writers.of_element(key, *last))
                        {
                            sightings.see(windows, txn, record, Some(*versionstamp));
                        }
                        let scanned = scanned.entry(key).or_default();
                        let unseen = sightings.scan(history, writers, record, key, list, scanned);
                        unseen.into_iter().for_each(|(txn, version)| {
                            sightings.see(windows, txn, record, version)
                        });
                    }
                    Value::Counter(_) => {}
                }
            }
        }
        sightings.settle(windows);
        sightings
    }

    /// Where the transaction was seen first, with its versionstamp if any sighting has one. Not in
    /// what a failover lost.
    pub(crate) fn of_txn(&self, txn: usize) -> Option<Sighting> {
        self.by_txn.get(&txn).copied()
    }

    /// Where it was seen, each with a versionstamp that a failover lost.
    pub(crate) fn lost_of_txn(&self, txn: usize) -> impl Iterator<Item = (Sighting, Versionstamp)> {
        let lost = self.lost.get(&txn).map_or(&[][..], Vec::as_slice);
        lost.iter().filter_map(|sighting| Some((*sighting, sighting.versionstamp?)))
    }

    /// What is known when all reads have been looked at.
    fn settle(&mut self, windows: &LostWindows) {
        for (txn, lost) in &self.lost {
            let Some(known) = self.by_txn.get(txn).copied() else { continue };
            match known.versionstamp {
                // Seen behind others in what was lost, and nowhere else.
                None => drop(self.by_txn.remove(txn)),
                Some(versionstamp) => {
                    let twice = lost.iter().filter(|sighting| {
                        sighting
                            .versionstamp
                            .is_some_and(|lost| !windows.may_repeat(lost, versionstamp))
                    });
                    self.conflicts.extend(twice.map(|sighting| (*txn, *sighting)));
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
            let known = lost.iter().filter_map(|sighting| sighting.versionstamp);
            match known.clone().find(|known| windows.losing(*known) == Some(window)) {
                Some(first) if first != stamp => {
                    self.conflicts.push((txn, Sighting { read, versionstamp }))
                }
                Some(_) => {}
                None => lost.push(Sighting { read, versionstamp }),
            }
            return;
        }
        let known = self.by_txn.entry(txn).or_insert(Sighting { read, versionstamp });
        match (known.versionstamp, versionstamp) {
            (None, Some(_)) => *known = Sighting { read, versionstamp },
            (Some(first), Some(now)) if first != now => {
                self.conflicts.push((txn, Sighting { read, versionstamp }))
            }
            _ => {}
        }
    }

    /// Looks at the part of `list` that was not looked at before: transactions, each with its
    /// versionstamp if what was appended behind it tells.
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

/// The version of `key` that the transaction demanded: that of the list it appended to.
fn checked_version(history: &History, txn: usize, key: &str) -> Option<Versionstamp> {
    match &history.records.get(txn)?.operation {
        Operation::Txn(txn) => txn.checks.iter().find(|check| check.key == key)?.versionstamp,
        Operation::Read(_) => None,
    }
}
