//! The writes of a transaction before its attempts: each attempt gets its own unique numbers.

use bytes::Bytes;
use meridian_checker::{Check, Key, Value, Write};
use meridian_proto::kv_connect as pb;

use crate::kv_connect::{delete, set, sum};
use crate::recorder::Recorder;

/// The common beginning of markers' keys. The marker of a transaction is a register that no other
/// transaction writes: the transaction committed exactly if the marker exists.
pub const MARKER: &str = "marker/";

/// The content of a transaction, without the numbers that are used once: attempts must be told
/// apart if an answer is missing.
#[derive(Debug, Clone, Default)]
pub(super) struct Intent {
    pub(super) checks: Vec<Check>,
    pub(super) changes: Vec<Change>,
    /// Whether the transaction sets a marker.
    pub(super) marked: bool,
}

#[derive(Debug, Clone)]
pub(super) enum Change {
    /// Appends to the list that was read.
    Append {
        key: Key,
        elements: Vec<u64>,
    },
    SetRegister {
        key: Key,
    },
    Sum {
        key: Key,
        amount: u64,
    },
    Delete {
        key: Key,
    },
}

impl Intent {
    pub(super) fn new(changes: Vec<Change>) -> Self {
        // Only a marker reveals a sum or a delete.
        let marked = changes
            .iter()
            .any(|change| matches!(change, Change::Sum { .. } | Change::Delete { .. }));
        Self { checks: Vec::new(), changes, marked }
    }

    /// An attempt: in the checker's terms, and as it is sent.
    pub(super) fn attempt(&self, recorder: &Recorder) -> (Vec<Write>, pb::AtomicWrite) {
        let (mut writes, mut mutations) = (Vec::new(), Vec::new());
        for change in &self.changes {
            match change {
                Change::Append { key, elements } => {
                    let element = recorder.next_id();
                    let list = elements.iter().copied().chain([element]).collect();
                    mutations.push(set(key.as_bytes(), &Value::List(list).encode().1));
                    writes.push(Write::Append { key: key.clone(), element });
                }
                Change::SetRegister { key } => {
                    push_register(recorder, key.clone(), &mut writes, &mut mutations)
                }
                Change::Sum { key, amount } => {
                    mutations.push(sum(key.as_bytes(), *amount));
                    writes.push(Write::Sum { key: key.clone(), amount: *amount });
                }
                Change::Delete { key } => {
                    mutations.push(delete(key.as_bytes()));
                    writes.push(Write::Delete { key: key.clone() });
                }
            }
        }
        if self.marked {
            let key = format!("{MARKER}{:08}", recorder.next_id());
            push_register(recorder, key, &mut writes, &mut mutations);
        }
        let checks = self.checks.iter().map(|check| pb::Check {
            key: Bytes::copy_from_slice(check.key.as_bytes()),
            versionstamp: check
                .versionstamp
                .map_or_else(Bytes::new, |stamp| Bytes::copy_from_slice(&stamp.0)),
        });
        (writes, pb::AtomicWrite { checks: checks.collect(), mutations, enqueues: Vec::new() })
    }
}

fn push_register(
    recorder: &Recorder,
    key: Key,
    writes: &mut Vec<Write>,
    mutations: &mut Vec<pb::Mutation>,
) {
    let value = recorder.next_id();
    mutations.push(set(key.as_bytes(), &Value::Register(value).encode().1));
    writes.push(Write::SetRegister { key, value });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_attempt_is_a_transaction_of_its_own() {
        let recorder = Recorder::new();
        let intent = Intent::new(vec![
            Change::Append { key: "l".into(), elements: vec![70, 80] },
            Change::SetRegister { key: "r".into() },
        ]);
        assert!(!intent.marked);
        let (first, sent) = intent.attempt(&recorder);
        let (second, _) = intent.attempt(&recorder);
        assert_eq!(
            first.iter().zip(&second).filter(|(a, b)| a == b).count(),
            0,
            "{first:?} {second:?}"
        );
        let Some(Write::Append { element, .. }) = first.first() else { panic!("{first:?}") };
        let value = sent.mutations[0].value.clone().unwrap();
        assert_eq!(value.data, Value::List(vec![70, 80, *element]).encode().1);
    }

    #[test]
    fn sums_and_deletes_are_marked() {
        let recorder = Recorder::new();
        for change in
            [Change::Sum { key: "c".into(), amount: 1 }, Change::Delete { key: "r".into() }]
        {
            let (writes, sent) = Intent::new(vec![change]).attempt(&recorder);
            assert!(writes[1].key().starts_with(MARKER));
            assert_eq!(sent.mutations.len(), 2);
        }
    }
}
