use std::collections::BTreeMap;

use bytes::Bytes;
use meridian_types::{
    Check, DatabaseId, DeadLetter, Effect, Epoch, Message, MessageId, Mutation, MutationKind,
    Position, QueueId, QueueTotals, SumBounds, Transaction, Value, ValueEncoding, Versionstamp,
    limits::{MAX_TRANSACTION_BYTES, MAX_VALUE_BYTES, MAX_WRITE_KEY_BYTES},
};

use super::{Evaluation, evaluate};
use crate::number::{Number, le64_value};
use crate::view::{Stored, View};

const DATABASE: DatabaseId = DatabaseId([7; 16]);
const SUM_TEXT: &str = "Failed to perform 'sum' mutation on a non-U64 value in the database";

/// One database's state; reading the key `broken` fails.
#[derive(Default)]
struct State(BTreeMap<&'static [u8], Stored>);

impl View for State {
    type Error = &'static str;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, Self::Error> {
        assert_eq!(database, DATABASE);
        if key == b"broken" { Err("disk") } else { Ok(self.0.get(key).cloned()) }
    }

    fn message(&self, _: &QueueId, _: u64, _: MessageId) -> Result<Option<Message>, Self::Error> {
        Ok(None)
    }

    fn queue_totals(&self, _: DatabaseId) -> Result<QueueTotals, Self::Error> {
        Ok(QueueTotals::default())
    }

    fn named_undelivered(&self, _: &QueueId) -> Result<u64, Self::Error> {
        Ok(0)
    }

    fn dead_letter(&self, _: DatabaseId, _: u64) -> Result<Option<DeadLetter>, Self::Error> {
        Ok(None)
    }
}

fn stamp(sequence: u64) -> Versionstamp {
    Versionstamp::new(Position::new(Epoch::FIRST, sequence), 0)
}

fn state() -> State {
    let stored = |sequence, value| Stored { versionstamp: stamp(sequence), value };
    State(BTreeMap::from([
        (b"one".as_slice(), stored(1, le64_value(1))),
        (b"two".as_slice(), stored(2, le64_value(2))),
        (b"text".as_slice(), stored(3, text("text"))),
    ]))
}

fn text(text: &'static str) -> Value {
    Value { encoding: ValueEncoding::Bytes, data: Bytes::from_static(text.as_bytes()) }
}

fn check(key: &'static str, version: Option<u64>) -> Check {
    Check { key: Bytes::from_static(key.as_bytes()), versionstamp: version.map(stamp) }
}

fn mutation(key: &'static str, kind: MutationKind) -> Mutation {
    Mutation { key: Bytes::from_static(key.as_bytes()), kind, expire_at_ms: 0 }
}

fn sum(operand: u64) -> MutationKind {
    MutationKind::Sum { operand: le64_value(operand), bounds: SumBounds::default() }
}

fn put(key: &'static str, value: Value) -> Effect {
    Effect::Put { key: Bytes::from_static(key.as_bytes()), value, expire_at_ms: 0 }
}

fn evaluated(checks: Vec<Check>, mutations: Vec<Mutation>) -> Result<Evaluation, &'static str> {
    let transaction = Transaction { checks, mutations, ..Transaction::default() };
    evaluate(&state(), DATABASE, stamp(9), 0, &transaction)
}

fn commit(effects: Vec<Effect>) -> Result<Evaluation, &'static str> {
    Ok(Evaluation::Commit(effects))
}

#[test]
fn an_empty_transaction_commits_nothing() {
    assert_eq!(evaluated(vec![], vec![]), commit(vec![]));
}

#[test]
fn all_failed_checks_are_listed() {
    let checks = vec![
        check("one", Some(1)),
        check("one", Some(2)),
        check("two", None),
        check("absent", None),
        check("absent", Some(1)),
    ];
    assert_eq!(
        evaluated(checks, vec![mutation("one", MutationKind::Delete)]),
        Ok(Evaluation::CheckFailed(vec![1, 2, 4]))
    );
}

#[test]
fn checks_that_hold_let_the_mutations_through() {
    let checks = vec![check("one", Some(1)), check("absent", None)];
    assert_eq!(
        evaluated(checks, vec![mutation("one", MutationKind::Set(text("new")))]),
        commit(vec![put("one", text("new"))])
    );
}

/// A failed check comes before a mutation that could not be carried out.
#[test]
fn checks_come_first() {
    assert_eq!(
        evaluated(vec![check("one", None)], vec![mutation("text", sum(1))]),
        Ok(Evaluation::CheckFailed(vec![0]))
    );
}

#[test]
fn set_keeps_its_expiry_and_delete_needs_no_key() {
    let set = Mutation { expire_at_ms: 5, ..mutation("new", MutationKind::Set(text("v"))) };
    assert_eq!(
        evaluated(vec![], vec![set, mutation("absent", MutationKind::Delete)]),
        commit(vec![
            Effect::Put { key: Bytes::from_static(b"new"), value: text("v"), expire_at_ms: 5 },
            Effect::Delete { key: Bytes::from_static(b"absent") },
        ])
    );
}

#[test]
fn arithmetic_reads_the_state_and_clears_expiries() {
    let expiring = |key, kind| Mutation { expire_at_ms: 5, ..mutation(key, kind) };
    assert_eq!(
        evaluated(
            vec![],
            vec![
                expiring("one", sum(10)),
                expiring("two", MutationKind::Min(le64_value(1))),
                expiring("absent", MutationKind::Max(le64_value(3))),
            ]
        ),
        commit(vec![
            put("one", le64_value(11)),
            put("two", le64_value(1)),
            put("absent", le64_value(3))
        ])
    );
}

#[test]
fn mutations_see_the_earlier_ones() {
    let expiring =
        Mutation { expire_at_ms: 5, ..mutation("new", MutationKind::Set(le64_value(4))) };
    assert_eq!(
        evaluated(
            vec![],
            vec![
                expiring,
                mutation("new", sum(3)),
                mutation("one", MutationKind::Delete),
                mutation("one", sum(6)),
                mutation("two", sum(1)),
                mutation("two", MutationKind::Delete),
            ]
        ),
        commit(vec![
            put("new", le64_value(7)),
            put("one", le64_value(6)),
            Effect::Delete { key: Bytes::from_static(b"two") },
        ])
    );
}

#[test]
fn one_mutation_that_fails_undoes_all() {
    assert_eq!(
        evaluated(vec![], vec![mutation("one", MutationKind::Delete), mutation("text", sum(1))]),
        Ok(Evaluation::Rejected(SUM_TEXT.to_owned()))
    );
    // Also where the wrong type comes from the transaction itself.
    assert_eq!(
        evaluated(
            vec![],
            vec![mutation("one", MutationKind::Set(text("t"))), mutation("one", sum(1))]
        ),
        Ok(Evaluation::Rejected(SUM_TEXT.to_owned()))
    );
}

#[test]
fn v8_sums_go_through() {
    let number = |value| Number::Double(value).into_value();
    let bounds = SumBounds { min: Bytes::new(), max: number(3.0).data, clamp: true };
    let add = MutationKind::Sum { operand: number(2.0), bounds };
    assert_eq!(
        evaluated(vec![], vec![mutation("number", add.clone()), mutation("number", add)]),
        commit(vec![put("number", number(3.0))])
    );
}

#[test]
fn versionstamped_key_is_golden() {
    let set = mutation("k", MutationKind::SetSuffixVersionstampedKey(text("v")));
    let transaction = Transaction {
        mutations: vec![Mutation { expire_at_ms: 5, ..set }],
        ..Transaction::default()
    };
    let stamp = Versionstamp([1, 2, 3, 4, 5, 6, 7, 8, 9, 0xab]);
    let key = Bytes::from_static(b"k\x02010203040506070809ab\x00");
    assert_eq!(
        evaluate(&state(), DATABASE, stamp, 0, &transaction),
        commit(vec![Effect::Put { key, value: text("v"), expire_at_ms: 5 }])
    );
}

#[test]
fn errors_of_the_view_are_passed_on() {
    assert_eq!(evaluated(vec![check("broken", None)], vec![]), Err("disk"));
    assert_eq!(evaluated(vec![], vec![mutation("broken", sum(1))]), Err("disk"));
    // A set reads nothing.
    assert_eq!(
        evaluated(vec![], vec![mutation("broken", MutationKind::Set(text("v")))]),
        commit(vec![put("broken", text("v"))])
    );
}

/// A bigint that fills a value of the greatest size: `ff 0f 'Z'`, its length, its digits.
fn greatest_bigint() -> Value {
    let digits = MAX_VALUE_BYTES - 6;
    let length = [0x80 | ((digits << 1) & 0x7f), 0x80 | ((digits >> 6) & 0x7f), digits >> 13];
    let length = length.map(|byte| u8::try_from(byte).unwrap());
    let data = [&[0xff, 0x0f, b'Z'][..], &length, &vec![0x11; digits]].concat();
    assert_eq!(data.len(), MAX_VALUE_BYTES);
    Value { encoding: ValueEncoding::V8, data: data.into() }
}

/// Every key holds it.
struct Everywhere(Value);

impl View for Everywhere {
    type Error = std::convert::Infallible;

    fn get(&self, _: DatabaseId, _: &[u8]) -> Result<Option<Stored>, Self::Error> {
        Ok(Some(Stored { versionstamp: stamp(1), value: self.0.clone() }))
    }

    fn message(&self, _: &QueueId, _: u64, _: MessageId) -> Result<Option<Message>, Self::Error> {
        Ok(None)
    }

    fn queue_totals(&self, _: DatabaseId) -> Result<QueueTotals, Self::Error> {
        Ok(QueueTotals::default())
    }

    fn named_undelivered(&self, _: &QueueId) -> Result<u64, Self::Error> {
        Ok(0)
    }

    fn dead_letter(&self, _: DatabaseId, _: u64) -> Result<Option<DeadLetter>, Self::Error> {
        Ok(None)
    }
}

fn sums(count: usize, key: impl Fn(usize) -> String, bounds: &SumBounds) -> Transaction {
    let one = Value { encoding: ValueEncoding::V8, data: Bytes::from_static(b"\xff\x0fZ\x02\x01") };
    let kind = MutationKind::Sum { operand: one, bounds: bounds.clone() };
    let mutations =
        (0..count).map(|n| Mutation { key: key(n).into(), kind: kind.clone(), expire_at_ms: 0 });
    Transaction { mutations: mutations.collect(), ..Transaction::default() }
}

#[test]
fn a_small_request_does_not_come_to_a_large_one() {
    let view = Everywhere(greatest_bigint());
    let zero = Bytes::from_static(b"\xff\x0fZ\x02\x00");
    let clamped = SumBounds { min: Bytes::new(), max: zero, clamp: true };
    // Many large results; a result that is written over and over; large values that are read and
    // come to nothing.
    let requests = [
        sums(1000, |n| format!("k{n:04}"), &SumBounds::default()),
        sums(1000, |_| "k".to_owned(), &SumBounds::default()),
        sums(1000, |n| format!("k{n:04}"), &clamped),
    ];
    for request in requests {
        let result = evaluate(&view, DATABASE, stamp(9), 0, &request).unwrap();
        let Evaluation::Rejected(text) = result else { panic!("not refused") };
        assert!(
            text.contains("4194304 bytes of values") && text.contains("of this one come to 4"),
            "{text}"
        );
    }
    // Some are what bigints are for: here as many as read and write 4 MiB, and one more.
    let some = |count| {
        let request = sums(count, |n| format!("k{n:04}"), &SumBounds::default());
        evaluate(&view, DATABASE, stamp(9), 0, &request).unwrap()
    };
    assert!(matches!(some(32), Evaluation::Commit(effects) if effects.len() == 32));
    let Evaluation::Rejected(text) = some(33) else { panic!("not refused") };
    assert!(
        text.ends_with("those among the first 33 mutations of this one come to 4325376 bytes."),
        "{text}"
    );
}

#[test]
fn the_largest_request_that_carries_its_values_itself_is_taken() {
    let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; MAX_VALUE_BYTES].into() };
    let key = |n: usize| Bytes::from(vec![u8::try_from(n).unwrap(); MAX_WRITE_KEY_BYTES]);
    let set = |n, value: &Value| Mutation {
        key: key(n),
        kind: MutationKind::Set(value.clone()),
        expire_at_ms: 0,
    };
    let largest = MAX_TRANSACTION_BYTES / (MAX_VALUE_BYTES + MAX_WRITE_KEY_BYTES);
    let mut mutations: Vec<Mutation> = (0..largest).map(|n| set(n, &value)).collect();
    // And counters with the longest of keys.
    mutations.extend((0..7).map(|n| Mutation { key: key(100 + n), kind: sum(1), expire_at_ms: 0 }));
    let transaction = Transaction { mutations, ..Transaction::default() };
    let result = evaluate(&state(), DATABASE, stamp(9), 0, &transaction).unwrap();
    assert!(matches!(result, Evaluation::Commit(_)), "{result:?}");
}
