//! Histories of enqueues and settlements, evaluated through an overlay whose batches are applied
//! late, against a model in which every transaction takes effect at once and a message has one due
//! time.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test, also outside its #[test] functions"
)]

mod applied;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use meridian_txn::{Evaluation, Overlaid, Overlay, View, evaluate};
use meridian_types::limits::DEFAULT_BACKOFF_MS;
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, DeadLetter, Enqueue, Message, MessageId, Mutation,
    MutationKind, Position, QueueId, QueueName, RequestId, Settlement, SumBounds, Transaction,
    Value, ValueEncoding, Verdict, Versionstamp,
};
use proptest::collection::vec;
use proptest::prelude::{
    Just, ProptestConfig, Strategy, TestCaseError, any, prop_assert_eq, prop_oneof, proptest,
};

use applied::Applied;

const DATABASES: u8 = 2;
const KEYS: u8 = 3;
/// The names of queues.
const NAMES: [&str; 3] = ["", "a", "ab"];

#[derive(Debug, Clone)]
struct Write {
    database: u8,
    /// In which queue, due in how long, keys if undelivered, and the schedule.
    enqueues: Vec<(usize, i64, Vec<u8>, Vec<u32>)>,
    /// Which message (of all that ever were), whether it is named with another due time, or another
    /// queue, than it has, and the verdict, whose time is relative.
    settlements: Vec<(usize, bool, bool, Verdict)>,
    /// The number of a dead letter, whether it is named with the id that it has, and whether it is
    /// to be a message again.
    letters: Vec<(u64, bool, bool)>,
    /// Ends in a mutation that cannot be carried out.
    fails: bool,
}

#[derive(Debug, Clone)]
enum Step {
    Write(Write),
    Propose,
    Apply,
    Wait(u64),
    LoseLeadership,
}

/// A message has one place, and the dead of a database have numbers.
#[derive(Debug, Clone, Default, PartialEq)]
struct Model {
    messages: BTreeMap<(DatabaseId, MessageId), (QueueName, u64, Message)>,
    dead: BTreeMap<(DatabaseId, u64), DeadLetter>,
    next_dead: BTreeMap<DatabaseId, u64>,
    keys: BTreeMap<(DatabaseId, Bytes), Bytes>,
}

fn database(number: u8) -> DatabaseId {
    DatabaseId([number; 16])
}

fn names() -> [QueueName; 3] {
    NAMES.map(|name| name.parse().unwrap())
}

fn name(number: usize) -> QueueName {
    names()[number % NAMES.len()].clone()
}

fn key(number: u8) -> Bytes {
    Bytes::copy_from_slice(&[0x15, number])
}

fn relative(verdict: Verdict, now_ms: u64) -> Verdict {
    match verdict {
        Verdict::Failed { retry_at_ms } => {
            Verdict::Failed { retry_at_ms: now_ms + retry_at_ms - 5 }
        }
        Verdict::Rescheduled { due_ms } => Verdict::Rescheduled { due_ms: now_ms + due_ms - 5 },
        other => other,
    }
}

impl Model {
    fn take_out(&mut self, database: DatabaseId, settlement: &Settlement, now_ms: u64) {
        let (Verdict::Redriven { number } | Verdict::Discarded { number }) = settlement.verdict
        else {
            return;
        };
        let at = (database, number);
        let has_id = self.dead.get(&at).is_some_and(|letter| letter.id == settlement.id);
        let Some(letter) = has_id.then(|| self.dead.remove(&at)).flatten() else { return };
        if matches!(settlement.verdict, Verdict::Redriven { .. }) {
            let message = Message {
                payload: letter.payload,
                keys_if_undelivered: vec![],
                backoff_ms: DEFAULT_BACKOFF_MS.to_vec(),
                attempts: 0,
                enqueued_ms: letter.enqueued_ms,
            };
            let due_ms = now_ms.max(letter.died_ms + 1);
            self.messages.insert((database, letter.id), (letter.queue, due_ms, message));
        }
    }

    /// Which acknowledgements name no row.
    fn missing(&self, database: DatabaseId, transaction: &Transaction) -> Vec<u32> {
        let is_acknowledged = |it: &&Settlement| it.verdict == Verdict::Acknowledged;
        let acknowledged = (0..).zip(transaction.settlements.iter().filter(is_acknowledged));
        let has_row = |it: &Settlement| {
            let message = self.messages.get(&(database, it.id));
            message.is_some_and(|(queue, due_ms, _)| (queue, *due_ms) == (&it.queue, it.due_ms))
        };
        let missing = acknowledged.filter(|(_, it)| !has_row(it));
        missing.map(|(index, _)| index).collect()
    }

    fn settle(&mut self, database: DatabaseId, settlement: &Settlement, now_ms: u64) {
        self.take_out(database, settlement, now_ms);
        let at = (database, settlement.id);
        let Some((queue, due_ms, mut message)) = self.messages.remove(&at) else { return };
        if (&queue, due_ms) != (&settlement.queue, settlement.due_ms) {
            self.messages.insert(at, (queue, due_ms, message));
            return;
        }
        match settlement.verdict {
            Verdict::Redriven { .. } | Verdict::Discarded { .. } => {
                self.messages.insert(at, (queue, due_ms, message));
            }
            Verdict::Delivered | Verdict::Acknowledged | Verdict::Cancelled => {}
            Verdict::Rescheduled { due_ms } => {
                self.messages.insert(at, (queue, due_ms.max(now_ms), message));
            }
            Verdict::Failed { retry_at_ms } => {
                message.attempts += 1;
                if !message.backoff_ms.is_empty() {
                    message.backoff_ms.remove(0);
                    let due_ms = retry_at_ms.max(now_ms).max(due_ms + 1);
                    self.messages.insert(at, (queue, due_ms, message));
                } else if message.keys_if_undelivered.is_empty() {
                    let next = self.next_dead.entry(database).or_default();
                    let letter = DeadLetter {
                        queue,
                        id: settlement.id,
                        payload: message.payload,
                        attempts: message.attempts,
                        enqueued_ms: message.enqueued_ms,
                        died_ms: now_ms,
                    };
                    self.dead.insert((database, *next), letter);
                    *next += 1;
                } else {
                    for key in message.keys_if_undelivered {
                        self.keys.insert((database, key), message.payload.clone());
                    }
                }
            }
        }
    }

    fn enqueue(&mut self, database: DatabaseId, id: MessageId, enqueue: &Enqueue, now_ms: u64) {
        let message = Message {
            payload: enqueue.payload.clone(),
            keys_if_undelivered: enqueue.keys_if_undelivered.clone(),
            backoff_ms: enqueue.backoff_ms.clone().unwrap(),
            attempts: 0,
            enqueued_ms: now_ms,
        };
        let row = (enqueue.queue.clone(), enqueue.due_ms.max(now_ms), message);
        self.messages.insert((database, id), row);
    }
}

/// The proposer: its overlay, the batch it fills, and those in flight.
struct Proposer {
    applied: Applied,
    overlay: Overlay,
    filling: Batch,
    in_flight: Vec<(Batch, Model)>,
    now_ms: u64,
    model: Model,
    applied_model: Model,
    /// All that ever were, with their queues, and a due time that each had.
    known: Vec<(MessageId, QueueName, u64)>,
}

fn batch(position: Position) -> Batch {
    Batch { position, time_ms: 0, transactions: vec![] }
}

impl Proposer {
    fn new() -> Self {
        Self {
            applied: Applied::default(),
            overlay: Overlay::new(),
            filling: batch(Position::ZERO.next()),
            in_flight: vec![],
            now_ms: 1000,
            model: Model::default(),
            applied_model: Model::default(),
            known: vec![],
        }
    }

    fn transaction(&self, write: &Write) -> Transaction {
        let enqueue = |(index, enqueue): (usize, &(_, _, Vec<u8>, Vec<u32>))| {
            let (queue, due_in, keys, backoff) = enqueue;
            Enqueue {
                queue: name(*queue),
                payload: Bytes::from(format!("payload {index} of {}", self.known.len())),
                due_ms: self.now_ms.saturating_add_signed(*due_in),
                keys_if_undelivered: keys.iter().map(|number| key(*number)).collect(),
                backoff_ms: Some(backoff.clone()),
            }
        };
        let enqueues = write.enqueues.iter().enumerate().map(enqueue);
        let settlements = write.settlements.iter().filter_map(|settlement| {
            let (which, other_time, other_queue, verdict) = *settlement;
            let which = which.checked_rem(self.known.len()).unwrap_or(0);
            let (id, queue, once_due_ms) = self.known.get(which)?;
            let present = self.model.messages.get(&(database(write.database), *id));
            let due_ms = match present {
                Some((_, due_ms, _)) if !other_time => *due_ms,
                _ => *once_due_ms,
            };
            let queue = if other_queue { name(which) } else { queue.clone() };
            let verdict = relative(verdict, self.now_ms);
            Some(Settlement { queue, id: *id, due_ms, verdict })
        });
        let letters = write.letters.iter().filter_map(|(number, is_named, redriven)| {
            let number = *number;
            let letter = self.model.dead.get(&(database(write.database), number));
            let other = || self.known.first().map(|(id, ..)| *id);
            let named = letter.filter(|_| *is_named).map(|letter| letter.id);
            let verdict = match redriven {
                true => Verdict::Redriven { number },
                false => Verdict::Discarded { number },
            };
            let (queue, id) = (QueueName::default(), named.or_else(other)?);
            Some(Settlement { queue, id, due_ms: 0, verdict })
        });
        let one = Value { encoding: ValueEncoding::Le64, data: vec![1, 0, 0, 0, 0, 0, 0].into() };
        let sum = MutationKind::Sum { operand: one, bounds: SumBounds::default() };
        let fails = Mutation { key: key(99), kind: sum, expire_at_ms: 0 };
        Transaction {
            mutations: write.fails.then_some(fails).into_iter().collect(),
            enqueues: enqueues.collect(),
            settlements: settlements.chain(letters).collect(),
            ..Transaction::default()
        }
    }

    fn write(&mut self, write: &Write) -> Result<(), TestCaseError> {
        let database = database(write.database);
        let order = self.filling.transactions.len().try_into().unwrap();
        let stamp = Versionstamp::new(self.filling.position, order);
        let transaction = self.transaction(write);
        let view = Overlaid { overlay: &self.overlay, applied: &self.applied, now_ms: 0 };
        let Ok(evaluation) = evaluate(&view, database, stamp, self.now_ms, &transaction);
        let missing = self.model.missing(database, &transaction);
        if !missing.is_empty() {
            prop_assert_eq!(evaluation, Evaluation::CheckFailed(missing));
            return Ok(());
        }
        if write.fails {
            prop_assert_eq!(matches!(evaluation, Evaluation::Rejected(_)), true);
            return Ok(());
        }
        let Evaluation::Commit(effects) = evaluation else {
            return Err(TestCaseError::fail(format!("{evaluation:?}")));
        };
        transaction.settlements.iter().for_each(|it| self.model.settle(database, it, self.now_ms));
        for (index, enqueue) in (0..).zip(&transaction.enqueues) {
            let id = MessageId { enqueued: stamp, index };
            self.model.enqueue(database, id, enqueue, self.now_ms);
            let due_ms = enqueue.due_ms.max(self.now_ms);
            self.known.push((id, enqueue.queue.clone(), due_ms));
        }
        self.overlay.push(stamp, database, &effects);
        let request_id = RequestId([0; 16]);
        let committed = CommittedTransaction { request_id, database, effects, refusal: None };
        self.filling.transactions.push(committed);
        Ok(())
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Write(write) => self.write(write)?,
            Step::Propose => {
                let next = batch(self.filling.position.next());
                let proposed = std::mem::replace(&mut self.filling, next);
                self.in_flight.push((proposed, self.model.clone()));
            }
            Step::Apply => self.apply_oldest(),
            Step::Wait(duration_ms) => self.now_ms += duration_ms,
            Step::LoseLeadership => {
                self.overlay.clear();
                self.in_flight.clear();
                self.filling.transactions.clear();
                self.model = self.applied_model.clone();
            }
        }
        self.compare()
    }

    fn apply_oldest(&mut self) {
        if !self.in_flight.is_empty() {
            let (batch, model) = self.in_flight.remove(0);
            self.applied.apply(&batch);
            self.overlay.release(batch.position);
            self.applied_model = model;
        }
    }

    /// The next transaction sees the model, and the applied rows are the model of then.
    fn compare(&self) -> Result<(), TestCaseError> {
        let view = Overlaid { overlay: &self.overlay, applied: &self.applied, now_ms: 0 };
        for (id, _, once_due_ms) in &self.known {
            for number in 0..DATABASES {
                let present = self.model.messages.get(&(database(number), *id));
                let times = present.map(|(_, due_ms, _)| *due_ms).into_iter().chain([*once_due_ms]);
                for (due_ms, name) in times.flat_map(|at| names().map(|name| (at, name))) {
                    let expected = present.filter(|(of, at, _)| (of, *at) == (&name, due_ms));
                    let queue = QueueId { database: database(number), name };
                    let Ok(message) = view.message(&queue, due_ms, *id);
                    prop_assert_eq!(message.as_ref(), expected.map(|(_, _, message)| message));
                }
            }
        }
        for database in (0..DATABASES).map(database) {
            let Ok(totals) = view.queue_totals(database);
            let of_database = self.model.messages.iter().filter(|((of, _), _)| *of == database);
            let counts = names().map(|name| {
                of_database.clone().filter(|(_, (queue, ..))| *queue == name).count() as u64
            });
            for (name, count) in names().into_iter().zip(counts).skip(1) {
                let Ok(undelivered) = view.named_undelivered(&QueueId { database, name });
                prop_assert_eq!(undelivered, count);
            }
            let [messages, a, ab] = counts;
            prop_assert_eq!(totals.named_undelivered, a + ab);
            prop_assert_eq!(totals.names, u64::from(a > 0) + u64::from(ab > 0));
            let dead = self.model.dead.keys().filter(|(of, _)| *of == database);
            let first_dead = dead.clone().map(|(_, number)| *number).next();
            let (first_dead, dead) = (first_dead.unwrap_or(totals.next_dead), dead.count());
            prop_assert_eq!((totals.undelivered, totals.dead()), (messages, dead as u64));
            prop_assert_eq!(totals.first_dead, first_dead, "nothing is looked at in vain");
            for key in (0..KEYS).map(key) {
                let Ok(stored) = view.get(database, &key);
                let expected = self.model.keys.get(&(database, key));
                prop_assert_eq!(stored.as_ref().map(|stored| &stored.value.data), expected);
            }
        }
        let rows: BTreeMap<_, _> = (self.applied.messages.iter())
            .map(|((queue, due_ms, id), message)| {
                ((queue.database, *id), (queue.name.clone(), *due_ms, message.clone()))
            })
            .collect();
        prop_assert_eq!(rows.len(), self.applied.messages.len(), "a message with two rows");
        prop_assert_eq!(&rows, &self.applied_model.messages);
        prop_assert_eq!(&self.applied.dead, &self.applied_model.dead);
        let of_names = self.applied.messages.keys().map(|(queue, ..)| queue);
        let of_names: BTreeSet<_> = of_names.filter(|queue| !queue.name.is_default()).collect();
        let named: BTreeSet<_> = self.applied.named.keys().collect();
        prop_assert_eq!(named, of_names, "names leave no trace");
        Ok(())
    }
}

fn write() -> impl Strategy<Value = Write> {
    let enqueue = (0..NAMES.len(), -5_i64..30, vec(0..KEYS, 0..3), vec(any::<u32>(), 0..3));
    let verdict = prop_oneof![
        2 => Just(Verdict::Delivered),
        5 => (0_u64..30).prop_map(|retry_at_ms| Verdict::Failed { retry_at_ms }),
        1 => Just(Verdict::Cancelled),
        1 => Just(Verdict::Acknowledged),
        2 => (0_u64..30).prop_map(|due_ms| Verdict::Rescheduled { due_ms }),
    ];
    let is_other = || prop_oneof![4 => Just(false), 1 => Just(true)];
    let settlement = (any::<usize>(), is_other(), is_other(), verdict);
    let letter = (0_u64..8, prop_oneof![9 => Just(true), 1 => Just(false)], any::<bool>());
    let fails = prop_oneof![9 => Just(false), 1 => Just(true)];
    (0..DATABASES, vec(enqueue, 0..3), vec(settlement, 0..5), vec(letter, 0..2), fails).prop_map(
        |(database, enqueues, settlements, letters, fails)| Write {
            database,
            enqueues,
            settlements,
            letters,
            fails,
        },
    )
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
    fn messages_have_one_row_and_are_settled_once_however_late_batches_are_applied(
        steps in vec(step(), 1..60),
    ) {
        let mut proposer = Proposer::new();
        steps.iter().try_for_each(|step| proposer.step(step))?;
    }
}
