//! Which transaction may have written which value.

use std::collections::{HashMap, HashSet};

use crate::history::{History, Read, ReadOutcome, Txn, Write};

/// Two writes of the same element or register value to one key: a read that shows it no longer
/// identifies its writer.
pub(crate) struct Clash<'h> {
    pub(crate) key: &'h str,
    pub(crate) value: u64,
    pub(crate) records: [usize; 2],
}

#[derive(Default)]
struct KeyWriters {
    /// The transaction that writes the key, as long as there is only one.
    sole: Option<usize>,
    shared: bool,
    /// The key was also written by other means than appends: elements may vanish.
    forgets: bool,
}

/// For each value, the transaction that may have written it, whether or not it committed.
pub(crate) struct Writers<'h> {
    elements: HashMap<(&'h str, u64), usize>,
    registers: HashMap<(&'h str, u64), usize>,
    keys: HashMap<&'h str, KeyWriters>,
    final_keys: HashSet<&'h str>,
    pub(crate) clashes: Vec<Clash<'h>>,
}

impl<'h> Writers<'h> {
    pub(crate) fn of(history: &'h History) -> Self {
        let mut writers = Self {
            elements: HashMap::new(),
            registers: HashMap::new(),
            keys: HashMap::new(),
            final_keys: history.reads().flat_map(|(_, _, read)| final_keys(read)).collect(),
            clashes: Vec::new(),
        };
        for (record, _, txn) in history.txns() {
            for write in &txn.writes {
                writers.add(record, write);
            }
        }
        writers
    }

    fn add(&mut self, record: usize, write: &'h Write) {
        let known = self.keys.entry(write.key()).or_default();
        known.shared |= known.sole.is_some_and(|sole| sole != record);
        known.sole = Some(record);
        known.forgets |= !matches!(write, Write::Append { .. });
        let (key, value, previous) = match write {
            Write::Append { key, element } => {
                (key, *element, self.elements.insert((key, *element), record))
            }
            Write::SetRegister { key, value } => {
                (key, *value, self.registers.insert((key, *value), record))
            }
            Write::Delete { .. } | Write::Sum { .. } => return,
        };
        if let Some(previous) = previous {
            self.clashes.push(Clash { key, value, records: [previous, record] });
        }
    }

    pub(crate) fn of_element(&self, key: &str, element: u64) -> Option<usize> {
        self.elements.get(&(key, element)).copied()
    }

    pub(crate) fn of_register(&self, key: &str, value: u64) -> Option<usize> {
        self.registers.get(&(key, value)).copied()
    }

    pub(crate) fn key_count(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn in_final_read(&self, key: &str) -> bool {
        self.final_keys.contains(key)
    }

    /// Whether the final reads would surely have shown the transaction, had it committed.
    pub(crate) fn would_show(&self, txn: &Txn) -> bool {
        txn.writes.iter().any(|write| {
            let Some(known) = self.keys.get(write.key().as_str()) else { return false };
            self.in_final_read(write.key())
                && match write {
                    Write::Append { .. } => !known.forgets,
                    Write::SetRegister { .. } => !known.shared && writes_once(txn, write),
                    Write::Delete { .. } | Write::Sum { .. } => false,
                }
        })
    }
}

fn final_keys(read: &Read) -> impl Iterator<Item = &str> {
    let counts = read.is_final && matches!(read.outcome, ReadOutcome::Entries(_));
    read.keys.iter().filter(move |_| counts).map(String::as_str)
}

fn writes_once(txn: &Txn, write: &Write) -> bool {
    txn.writes.iter().filter(|other| other.key() == write.key()).count() == 1
}
