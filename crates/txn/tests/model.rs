//! Histories of transactions on keys, evaluated through an overlay whose batches are applied late,
//! against a model in which every transaction takes effect at once.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test, also outside its #[test] functions"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use meridian_txn::{Evaluation, Overlaid, Overlay, Stored, View, evaluate};
use meridian_types::{
    Batch, Check, CommittedTransaction, DatabaseId, DeadLetter, Effect, Message, MessageId,
    Mutation, MutationKind, Position, QueueId, QueueTotals, RequestId, SumBounds, Transaction,
    Value, ValueEncoding, Versionstamp,
};
use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, TestCaseError, any, prop_assert, prop_assert_eq, prop_oneof,
    proptest,
};

/// More than the number of effects that a transaction scans without an index.
const KEYS: u8 = 24;
const DATABASES: u8 = 2;

type Rows = BTreeMap<(DatabaseId, Bytes), Row>;

#[derive(Debug, Clone, PartialEq)]
struct Row {
    versionstamp: Versionstamp,
    value: Value,
    expire_at_ms: u64,
}

impl Row {
    fn is_present(&self, now_ms: u64) -> bool {
        self.expire_at_ms == 0 || self.expire_at_ms > now_ms
    }
}

/// A model of the storage, which applies effects blindly.
#[derive(Default)]
struct Applied {
    rows: Rows,
    now_ms: u64,
}

impl Applied {
    fn apply(&mut self, batch: &Batch) {
        for (versionstamp, transaction) in batch.iter() {
            for effect in &transaction.effects {
                let at = (transaction.database, effect.key().clone());
                match effect.clone() {
                    Effect::Put { value, expire_at_ms, .. } => {
                        self.rows.insert(at, Row { versionstamp, value, expire_at_ms });
                    }
                    Effect::Delete { .. } => {
                        self.rows.remove(&at);
                    }
                    Effect::Unindex { .. } | Effect::DropDatabase | Effect::Queue(_) => {}
                }
            }
        }
    }
}

impl View for Applied {
    type Error = Infallible;

    fn get(&self, database: DatabaseId, key: &[u8]) -> Result<Option<Stored>, Infallible> {
        let row = self
            .rows
            .get(&(database, Bytes::copy_from_slice(key)))
            .filter(|row| row.is_present(self.now_ms));
        Ok(row.map(|row| Stored { versionstamp: row.versionstamp, value: row.value.clone() }))
    }

    fn message(&self, _: &QueueId, _: u64, _: MessageId) -> Result<Option<Message>, Infallible> {
        Ok(None)
    }

    fn queue_totals(&self, _: DatabaseId) -> Result<QueueTotals, Infallible> {
        Ok(QueueTotals::default())
    }

    fn named_undelivered(&self, _: &QueueId) -> Result<u64, Infallible> {
        Ok(0)
    }

    fn dead_letter(&self, _: DatabaseId, _: u64) -> Result<Option<DeadLetter>, Infallible> {
        Ok(None)
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Set(Value),
    Delete,
    Sum(u64),
    Min(u64),
    Max(u64),
    Versionstamped(Value),
}

#[derive(Debug, Clone)]
struct Write {
    database: u8,
    /// A key, and whether the check expects its version of now, or another.
    checks: Vec<(u8, bool)>,
    mutations: Vec<(u8, Operation, u64)>,
}

#[derive(Debug, Clone)]
enum Step {
    Write(Write),
    /// The batch being filled is proposed.
    Propose,
    /// The oldest batch in flight commits and is applied.
    Apply,
    Wait(u64),
    /// Everything in flight is lost.
    LoseLeadership,
}

fn le64(value: u64) -> Value {
    Value { encoding: ValueEncoding::Le64, data: Bytes::copy_from_slice(&value.to_le_bytes()) }
}

fn as_u64(value: &Value) -> Option<u64> {
    (value.encoding == ValueEncoding::Le64)
        .then(|| u64::from_le_bytes(value.data.as_ref().try_into().unwrap()))
}

fn database(number: u8) -> DatabaseId {
    DatabaseId([number; 16])
}

fn key(number: u8) -> Bytes {
    Bytes::copy_from_slice(&[0x15, number])
}

/// The model of one transaction: `None` if it changes nothing because a mutation fails.
fn model(rows: &Rows, now_ms: u64, stamp: Versionstamp, write: &Write) -> Option<Rows> {
    let mut next = rows.clone();
    let mut written = Vec::new();
    for (number, operation, expire_at_ms) in &write.mutations {
        let mut at = (database(write.database), key(*number));
        // Its own writes a transaction sees even if they are born expired.
        let stored = next.get(&at).filter(|row| written.contains(&at) || row.is_present(now_ms));
        let stored = stored.map(|row| row.value.clone());
        let with = |operand: u64, combine: fn(u64, u64) -> u64| match &stored {
            None => Some(le64(operand)),
            Some(value) => as_u64(value).map(|value| le64(combine(value, operand))),
        };
        let (value, expire_at_ms) = match operation {
            Operation::Delete => {
                next.remove(&at);
                continue;
            }
            Operation::Set(value) => (value.clone(), *expire_at_ms),
            Operation::Versionstamped(value) => {
                at.1 = [at.1.as_ref(), format!("\x02{}\x00", stamp.to_hex()).as_bytes()]
                    .concat()
                    .into();
                (value.clone(), *expire_at_ms)
            }
            Operation::Sum(operand) => (with(*operand, u64::wrapping_add)?, 0),
            Operation::Min(operand) => (with(*operand, u64::min)?, 0),
            Operation::Max(operand) => (with(*operand, u64::max)?, 0),
        };
        written.push(at.clone());
        next.insert(at, Row { versionstamp: stamp, value, expire_at_ms });
    }
    Some(next)
}

fn transaction(rows: &Rows, now_ms: u64, write: &Write) -> (Transaction, Vec<u32>) {
    let mut failing = Vec::new();
    let mut checks = Vec::new();
    for (index, (number, holds)) in (0..).zip(&write.checks) {
        let row = rows
            .get(&(database(write.database), key(*number)))
            .filter(|row| row.is_present(now_ms));
        let mut versionstamp = row.map(|row| row.versionstamp);
        if !holds {
            failing.push(index);
            versionstamp = if versionstamp.is_some() { None } else { Some(Versionstamp([0; 10])) };
        }
        checks.push(Check { key: key(*number), versionstamp });
    }
    let mutations = write.mutations.iter().map(|(number, operation, expire_at_ms)| Mutation {
        key: key(*number),
        kind: match operation.clone() {
            Operation::Set(value) => MutationKind::Set(value),
            Operation::Delete => MutationKind::Delete,
            Operation::Sum(operand) => {
                MutationKind::Sum { operand: le64(operand), bounds: SumBounds::default() }
            }
            Operation::Min(operand) => MutationKind::Min(le64(operand)),
            Operation::Max(operand) => MutationKind::Max(le64(operand)),
            Operation::Versionstamped(value) => MutationKind::SetSuffixVersionstampedKey(value),
        },
        expire_at_ms: *expire_at_ms,
    });
    let mutations = mutations.collect();
    (Transaction { checks, mutations, ..Transaction::default() }, failing)
}

/// The proposer: its overlay, the batch it fills, and those in flight.
struct Proposer {
    applied: Applied,
    overlay: Overlay,
    filling: Batch,
    in_flight: Vec<Batch>,
    model: Rows,
}

impl Proposer {
    fn new() -> Self {
        Self {
            applied: Applied::default(),
            overlay: Overlay::new(),
            filling: Batch { position: Position::ZERO.next(), time_ms: 0, transactions: vec![] },
            in_flight: vec![],
            model: Rows::new(),
        }
    }

    fn write(&mut self, write: &Write) -> Result<(), TestCaseError> {
        let now_ms = self.applied.now_ms;
        let order = self.filling.transactions.len().try_into().unwrap();
        let stamp = Versionstamp::new(self.filling.position, order);
        let (transaction, failing) = transaction(&self.model, now_ms, write);
        let view = Overlaid { overlay: &self.overlay, applied: &self.applied, now_ms };
        let Ok(evaluation) = evaluate(&view, database(write.database), stamp, 0, &transaction);
        if !failing.is_empty() {
            prop_assert_eq!(evaluation, Evaluation::CheckFailed(failing));
            return Ok(());
        }
        match (evaluation, model(&self.model, now_ms, stamp, write)) {
            (Evaluation::Commit(effects), Some(next)) => {
                let mut keys: Vec<_> = effects.iter().map(Effect::key).collect();
                keys.sort();
                prop_assert!(
                    keys.windows(2).all(|pair| pair[0] != pair[1]),
                    "two effects of one key"
                );
                self.overlay.push(stamp, database(write.database), &effects);
                let request_id = RequestId([0; 16]);
                let committed = CommittedTransaction {
                    request_id,
                    database: database(write.database),
                    effects,
                    refusal: None,
                };
                self.filling.transactions.push(committed);
                self.model = next;
            }
            (Evaluation::Rejected(_), None) => {}
            (evaluation, _) => prop_assert!(false, "the model does not expect {evaluation:?}"),
        }
        Ok(())
    }

    fn propose(&mut self) {
        let next =
            Batch { position: self.filling.position.next(), time_ms: 0, transactions: vec![] };
        self.in_flight.push(std::mem::replace(&mut self.filling, next));
    }

    fn apply_oldest(&mut self) {
        if !self.in_flight.is_empty() {
            let batch = self.in_flight.remove(0);
            self.applied.apply(&batch);
            self.overlay.release(batch.position);
        }
    }

    fn lose_leadership(&mut self) {
        self.overlay.clear();
        self.in_flight.clear();
        self.filling.transactions.clear();
        self.model = self.applied.rows.clone();
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Write(write) => self.write(write)?,
            Step::Propose => self.propose(),
            Step::Apply => self.apply_oldest(),
            Step::Wait(duration_ms) => self.applied.now_ms += duration_ms,
            Step::LoseLeadership => self.lose_leadership(),
        }
        self.compare()
    }

    fn compare(&self) -> Result<(), TestCaseError> {
        let now_ms = self.applied.now_ms;
        let view = Overlaid { overlay: &self.overlay, applied: &self.applied, now_ms };
        let all =
            (0..DATABASES).flat_map(|number| (0..KEYS).map(move |at| (database(number), key(at))));
        for at in all.chain(self.model.keys().cloned()) {
            let row = self.model.get(&at).filter(|row| row.is_present(now_ms));
            let expected =
                row.map(|row| Stored { versionstamp: row.versionstamp, value: row.value.clone() });
            let Ok(version) = view.version(at.0, &at.1);
            prop_assert_eq!(version, expected.as_ref().map(|stored| stored.versionstamp));
            let Ok(seen) = view.get(at.0, &at.1);
            prop_assert_eq!(seen, expected);
        }
        Ok(())
    }
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        20 => any::<u64>().prop_map(le64),
        1 => Just(Value { encoding: ValueEncoding::Bytes, data: Bytes::from_static(b"text") }),
    ]
}

fn operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => value().prop_map(Operation::Set),
        2 => Just(Operation::Delete),
        2 => any::<u64>().prop_map(Operation::Sum),
        1 => any::<u64>().prop_map(Operation::Min),
        1 => any::<u64>().prop_map(Operation::Max),
        1 => value().prop_map(Operation::Versionstamped),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let expiry = prop_oneof![3 => Just(0), 1 => 1_u64..100];
    let check = (0..KEYS, prop_oneof![9 => Just(true), 1 => Just(false)]);
    let mutations = prop_oneof![
        3 => vec((0..KEYS, operation(), expiry.clone()), 0..4),
        1 => vec((0..KEYS, operation(), expiry), 0..60),
    ];
    (0..DATABASES, vec(check, 0..3), mutations).prop_map(|(database, checks, mutations)| Write {
        database,
        checks,
        mutations,
    })
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        10 => write().prop_map(Step::Write),
        4 => Just(Step::Propose),
        3 => Just(Step::Apply),
        2 => (1_u64..20).prop_map(Step::Wait),
        1 => Just(Step::LoseLeadership),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn late_application_is_not_seen(steps in vec(step(), 1..40)) {
        let mut proposer = Proposer::new();
        for step in &steps {
            proposer.step(step)?;
        }
    }

    /// The gateway lets any bytes through as a V8 value: whatever is stored, operand or bound, a
    /// sum ends in effects or a rejection.
    #[test]
    fn malformed_numbers_never_panic(stored in number_bytes(), operand in number_bytes(), min in number_bytes(), max in number_bytes(), clamp: bool, encoding in 1..=3) {
        let mut applied = Applied::default();
        let encoding = ValueEncoding::from_number(encoding).unwrap();
        let row = Row { versionstamp: Versionstamp([0; 10]), value: Value { encoding, data: stored }, expire_at_ms: 0 };
        applied.rows.insert((database(0), key(0)), row);
        for kind in [
            MutationKind::Sum { operand: Value { encoding: ValueEncoding::V8, data: operand.clone() }, bounds: SumBounds { min, max, clamp } },
            MutationKind::Min(Value { encoding: ValueEncoding::Le64, data: operand.clone() }),
            MutationKind::Max(Value { encoding, data: operand }),
        ] {
            let transaction = Transaction { mutations: vec![Mutation { key: key(0), kind, expire_at_ms: 0 }], ..Transaction::default() };
            let Ok(evaluation) = evaluate(&applied, database(0), Versionstamp([1; 10]), 0, &transaction);
            prop_assert!(!matches!(evaluation, Evaluation::CheckFailed(_)));
        }
    }
}

/// Arbitrary bytes, and bytes that begin as a number of V8's.
fn number_bytes() -> impl Strategy<Value = Bytes> {
    let tagged = (
        prop_oneof![Just(b'I'), Just(b'U'), Just(b'N'), Just(b'Z'), any::<u8>()],
        vec(any::<u8>(), 0..20),
    );
    prop_oneof![
        1 => Just(Bytes::new()),
        2 => vec(any::<u8>(), 0..40).prop_map(Bytes::from),
        6 => tagged.prop_map(|(tag, rest)| [&[0xff, 0x0f, tag], rest.as_slice()].concat().into()),
    ]
}
