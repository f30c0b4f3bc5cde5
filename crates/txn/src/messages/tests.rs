mod acknowledgements;
mod letters;
mod names;

use std::collections::BTreeMap;
use std::convert::Infallible;

use bytes::Bytes;
use meridian_types::{
    Check, Epoch, Mutation, MutationKind, Position, SumBounds, Transaction, limits,
};

use super::*;
use crate::view::Stored;
use crate::{Evaluation, evaluate};

const DATABASE: DatabaseId = DatabaseId([7; 16]);
const NOW_MS: u64 = 10_000_000_000;
const UNNAMED: QueueName = QueueName::UNNAMED;
const ID: MessageId = MessageId { enqueued: Versionstamp([1; 10]), index: 3 };
const DUE_MS: u64 = NOW_MS - 5;

/// The queues of one database, and a key with text.
#[derive(Default)]
struct State {
    messages: BTreeMap<(u64, MessageId), Message>,
    named: BTreeMap<(QueueName, u64, MessageId), Message>,
    undelivered: BTreeMap<QueueName, u64>,
    totals: QueueTotals,
    letters: BTreeMap<u64, DeadLetter>,
}

impl View for State {
    type Error = Infallible;

    fn get(&self, _: DatabaseId, key: &[u8]) -> Result<Option<Stored>, Infallible> {
        let value =
            Value { encoding: ValueEncoding::Bytes, data: Bytes::from_static(b"no number") };
        Ok((key == b"text").then(|| Stored { versionstamp: Versionstamp([1; 10]), value }))
    }

    fn message(
        &self,
        queue: &QueueId,
        due_ms: u64,
        id: MessageId,
    ) -> Result<Option<Message>, Infallible> {
        let name = queue.name.clone();
        let message = match name.is_default() {
            true => self.messages.get(&(due_ms, id)),
            false => self.named.get(&(name, due_ms, id)),
        };
        Ok(message.cloned())
    }

    fn named_undelivered(&self, queue: &QueueId) -> Result<u64, Infallible> {
        Ok(self.undelivered.get(&queue.name).copied().unwrap_or_default())
    }

    fn queue_totals(&self, _: DatabaseId) -> Result<QueueTotals, Infallible> {
        Ok(self.totals)
    }

    fn dead_letter(&self, _: DatabaseId, number: u64) -> Result<Option<DeadLetter>, Infallible> {
        Ok(self.letters.get(&number).cloned())
    }
}

fn message() -> Message {
    Message {
        payload: Bytes::from_static(b"payload"),
        keys_if_undelivered: vec![],
        backoff_ms: vec![100, 1000],
        attempts: 1,
        enqueued_ms: 77,
    }
}

fn dying() -> Message {
    Message { backoff_ms: vec![], ..message() }
}

/// With one message, due at [`DUE_MS`].
fn state(message: Message) -> State {
    let none = QueueTotals::default();
    let totals = QueueTotals { undelivered: 5, first_dead: 3, next_dead: 4, ..none };
    let messages = BTreeMap::from([((DUE_MS, ID), message)]);
    State { messages, totals, ..State::default() }
}

fn stamp() -> Versionstamp {
    Versionstamp::new(Position::new(Epoch::FIRST, 9), 1)
}

fn evaluated(state: &State, transaction: &Transaction) -> Evaluation {
    let Ok(evaluation) = evaluate(state, DATABASE, stamp(), NOW_MS, transaction);
    evaluation
}

fn settlement(due_ms: u64, verdict: Verdict) -> Settlement {
    Settlement { queue: UNNAMED, id: ID, due_ms, verdict }
}

fn settled(state: &State, settlements: Vec<Settlement>) -> Evaluation {
    evaluated(state, &Transaction { settlements, ..Transaction::default() })
}

fn commit(effects: Vec<QueueEffect>) -> Evaluation {
    Evaluation::Commit(effects.into_iter().map(Effect::Queue).collect())
}

fn delete(due_ms: u64) -> QueueEffect {
    QueueEffect::DeleteMessage { queue: UNNAMED, id: ID, due_ms }
}

fn put(due_ms: u64, message: Message) -> QueueEffect {
    QueueEffect::PutMessage { queue: UNNAMED, id: ID, due_ms, message }
}

fn totals(undelivered: u64, first_dead: u64, next_dead: u64) -> QueueEffect {
    let none = QueueTotals::default();
    QueueEffect::PutTotals(QueueTotals { undelivered, first_dead, next_dead, ..none })
}

const FAILED: Verdict = Verdict::Failed { retry_at_ms: NOW_MS + 100 };

#[test]
fn enqueues_become_rows_under_the_transactions_stamp_and_their_index() {
    let first = Enqueue {
        queue: UNNAMED,
        payload: Bytes::from_static(b"first"),
        due_ms: NOW_MS + 1,
        keys_if_undelivered: vec![Bytes::from_static(b"k")],
        backoff_ms: Some(vec![5]),
    };
    // Due in the past: with its batch, and not before messages that are due already.
    let second = Enqueue { due_ms: 3, ..Enqueue::default() };
    let enqueues = vec![first, second];
    let transaction = Transaction { enqueues, ..Transaction::default() };
    let id = |index| MessageId { enqueued: stamp(), index };
    let first = Message {
        payload: Bytes::from_static(b"first"),
        keys_if_undelivered: vec![Bytes::from_static(b"k")],
        backoff_ms: vec![5],
        attempts: 0,
        enqueued_ms: NOW_MS,
    };
    let second = Message {
        backoff_ms: limits::DEFAULT_BACKOFF_MS.to_vec(),
        enqueued_ms: NOW_MS,
        ..Message::default()
    };
    let expected = commit(vec![
        QueueEffect::PutMessage { queue: UNNAMED, id: id(0), due_ms: NOW_MS + 1, message: first },
        QueueEffect::PutMessage { queue: UNNAMED, id: id(1), due_ms: NOW_MS, message: second },
        totals(7, 3, 4),
    ]);
    assert_eq!(evaluated(&state(message()), &transaction), expected);
}

#[test]
fn delivered_and_cancelled_messages_are_removed() {
    for verdict in [Verdict::Delivered, Verdict::Acknowledged, Verdict::Cancelled] {
        let result = settled(&state(message()), vec![settlement(DUE_MS, verdict)]);
        assert_eq!(result, commit(vec![delete(DUE_MS), totals(4, 3, 4)]));
    }
}

/// A repeated acknowledgement is answered as done, and what comes with it commits.
#[test]
fn settling_a_message_that_has_no_such_row_does_nothing_and_commits() {
    let verdicts =
        [Verdict::Delivered, FAILED, Verdict::Cancelled, Verdict::Rescheduled { due_ms: 1 }];
    for verdict in verdicts {
        let elsewhere = settlement(DUE_MS + 1, verdict);
        assert_eq!(settled(&state(message()), vec![elsewhere.clone()]), commit(vec![]));
        let mutation =
            Mutation { key: Bytes::from_static(b"k"), kind: MutationKind::Delete, expire_at_ms: 0 };
        let transaction = Transaction {
            mutations: vec![mutation],
            settlements: vec![elsewhere],
            ..Transaction::default()
        };
        let expected = Evaluation::Commit(vec![Effect::Delete { key: Bytes::from_static(b"k") }]);
        assert_eq!(evaluated(&state(dying()), &transaction), expected);
    }
}

#[test]
fn failed_message_moves_to_its_retry_with_the_rest_of_its_schedule() {
    let result = settled(&state(message()), vec![settlement(DUE_MS, FAILED)]);
    let retried = Message { backoff_ms: vec![1000], attempts: 2, ..message() };
    assert_eq!(result, commit(vec![delete(DUE_MS), put(NOW_MS + 100, retried.clone())]));
    // A retry in the past is due now.
    let now = Verdict::Failed { retry_at_ms: 4 };
    let result = settled(&state(message()), vec![settlement(DUE_MS, now)]);
    assert_eq!(result, commit(vec![delete(DUE_MS), put(NOW_MS, retried)]));
}

/// Logged time may stand still between an attempt and the next.
#[test]
fn settlement_of_a_failed_attempt_that_comes_again_does_not_settle_the_next_attempt() {
    let mut state = state(message());
    state.messages = BTreeMap::from([((NOW_MS, ID), message())]);
    let fails = settlement(NOW_MS, Verdict::Failed { retry_at_ms: NOW_MS });
    let retried = Message { backoff_ms: vec![1000], attempts: 2, ..message() };
    let moved = commit(vec![delete(NOW_MS), put(NOW_MS + 1, retried.clone())]);
    let again = vec![
        vec![fails.clone()],
        vec![fails.clone(), fails.clone()],
        vec![fails.clone(), settlement(NOW_MS, Verdict::Delivered)],
    ];
    for settlements in again {
        assert_eq!(settled(&state, settlements), moved);
    }
    state.messages = BTreeMap::from([((NOW_MS + 1, ID), retried)]);
    assert_eq!(settled(&state, vec![fails]), commit(vec![]));
}

#[test]
fn rescheduled_message_keeps_its_schedule_and_its_attempts() {
    let to = |due_ms| settlement(DUE_MS, Verdict::Rescheduled { due_ms });
    let result = settled(&state(message()), vec![to(NOW_MS + 7)]);
    assert_eq!(result, commit(vec![delete(DUE_MS), put(NOW_MS + 7, message())]));
    // To where it is: one row, one effect.
    let mut state = state(message());
    state.messages = BTreeMap::from([((NOW_MS + 7, ID), message())]);
    let stays = settlement(NOW_MS + 7, Verdict::Rescheduled { due_ms: NOW_MS + 7 });
    assert_eq!(settled(&state, vec![stays]), commit(vec![put(NOW_MS + 7, message())]));
}

#[test]
fn later_settlements_of_a_transaction_see_the_earlier_ones() {
    let twice = vec![settlement(DUE_MS, Verdict::Delivered), settlement(DUE_MS, FAILED)];
    assert_eq!(settled(&state(message()), twice), commit(vec![delete(DUE_MS), totals(4, 3, 4)]));
    let moved = vec![
        settlement(DUE_MS, Verdict::Rescheduled { due_ms: NOW_MS + 7 }),
        settlement(NOW_MS + 7, Verdict::Delivered),
    ];
    let expected = commit(vec![delete(DUE_MS), delete(NOW_MS + 7), totals(4, 3, 4)]);
    assert_eq!(settled(&state(message()), moved), expected);
}

fn key(key: &'static str) -> Bytes {
    Bytes::from_static(key.as_bytes())
}

fn v8(key: &'static str) -> Effect {
    let value = Value { encoding: ValueEncoding::V8, data: message().payload };
    Effect::Put { key: self::key(key), value, expire_at_ms: 0 }
}

#[test]
fn dead_message_sets_its_keys_to_its_payload_as_it_is_removed() {
    let state = state(Message { keys_if_undelivered: vec![key("b"), key("a")], ..dying() });
    let set = Mutation {
        key: key("a"),
        kind: MutationKind::Set(Value { encoding: ValueEncoding::Bytes, data: Bytes::new() }),
        expire_at_ms: 9,
    };
    let transaction = Transaction {
        mutations: vec![set],
        settlements: vec![settlement(DUE_MS, FAILED)],
        ..Transaction::default()
    };
    let queue = [delete(DUE_MS), totals(4, 3, 4)].map(Effect::Queue);
    // Behind all mutations, and so the last of its key.
    let expected = [vec![v8("a"), v8("b")], queue.to_vec()].concat();
    assert_eq!(evaluated(&state, &transaction), Evaluation::Commit(expected));
}

fn letter(attempts: u32) -> DeadLetter {
    let (queue, payload) = (UNNAMED, message().payload);
    DeadLetter { queue, id: ID, payload, attempts, enqueued_ms: 77, died_ms: NOW_MS }
}

#[test]
fn dead_message_without_keys_is_kept_as_a_dead_letter() {
    let result = settled(&state(dying()), vec![settlement(DUE_MS, FAILED)]);
    let expected = vec![
        delete(DUE_MS),
        QueueEffect::PutDeadLetter { number: 4, letter: letter(2) },
        totals(4, 3, 5),
    ];
    assert_eq!(result, commit(expected));
}

#[test]
fn as_many_dead_letters_as_may_be_are_kept_and_no_more() {
    let with = |dead: u64| {
        let mut state = state(dying());
        state.totals.first_dead = 50;
        state.totals.next_dead = 50 + dead;
        settled(&state, vec![settlement(DUE_MS, FAILED)])
    };
    let put = |number| QueueEffect::PutDeadLetter { number, letter: letter(2) };
    let within = vec![delete(DUE_MS), put(1049), totals(4, 50, 1050)];
    assert_eq!(with(999), commit(within));
    let beyond = vec![
        delete(DUE_MS),
        QueueEffect::DeleteDeadLetter { number: 50 },
        put(1050),
        totals(4, 51, 1051),
    ];
    assert_eq!(with(1000), commit(beyond));
}

#[test]
fn dead_letters_that_are_too_old_go_two_with_each_that_comes() {
    let week = limits::DEAD_LETTER_RETENTION_MS;
    let old = NOW_MS - week - 1;
    let mut state = state(dying());
    (state.totals.first_dead, state.totals.next_dead) = (1, 5);
    let mut removed_with = |died_ms: [u64; 4]| {
        let letters = died_ms.map(|died_ms| DeadLetter { died_ms, ..letter(1) });
        state.letters = (1..).zip(letters).collect();
        let result = settled(&state, vec![settlement(DUE_MS, FAILED)]);
        let Evaluation::Commit(effects) = result else { panic!("{result:?}") };
        let removed = effects.iter().filter_map(|effect| match effect {
            Effect::Queue(QueueEffect::DeleteDeadLetter { number }) => Some(*number),
            _ => None,
        });
        removed.collect::<Vec<_>>()
    };
    assert_eq!(removed_with([old, old, old, old]), [1, 2]);
    assert_eq!(removed_with([old, old + 1, old + 1, old + 1]), [1]);
    assert_eq!(removed_with([old + 1, old + 1, old + 1, old + 1]), []);
}

#[test]
fn a_full_queue_takes_no_message_and_its_transaction_does_nothing() {
    let mut state = state(message());
    state.totals.undelivered = limits::MAX_UNDELIVERED_MESSAGES - 1;
    let enqueues = |count, settlements| Transaction {
        enqueues: vec![Enqueue::default(); count],
        settlements,
        ..Transaction::default()
    };
    assert!(matches!(evaluated(&state, &enqueues(1, vec![])), Evaluation::Commit(_)));
    let text = "Queue backlog limit exceeded: a database may have 2000000 undelivered messages.";
    let full = Evaluation::Rejected(text.to_owned());
    assert_eq!(evaluated(&state, &enqueues(2, vec![])), full);
    // A message that the same transaction settles makes room.
    let delivered = vec![settlement(DUE_MS, Verdict::Delivered)];
    assert!(matches!(evaluated(&state, &enqueues(2, delivered)), Evaluation::Commit(_)));
    // And settling goes on, whatever the queue holds.
    state.totals.undelivered = u64::MAX;
    let delivered = vec![settlement(DUE_MS, Verdict::Delivered)];
    assert!(matches!(settled(&state, delivered), Evaluation::Commit(_)));
}

#[test]
fn failing_mutation_or_check_undoes_enqueues_and_settlements() {
    let sum =
        MutationKind::Sum { operand: crate::number::le64_value(1), bounds: SumBounds::default() };
    let mutations = vec![Mutation { key: key("text"), kind: sum, expire_at_ms: 0 }];
    let all = Transaction {
        enqueues: vec![Enqueue::default()],
        settlements: vec![settlement(DUE_MS, Verdict::Delivered)],
        ..Transaction::default()
    };
    let rejected = evaluated(&state(message()), &Transaction { mutations, ..all.clone() });
    assert!(matches!(rejected, Evaluation::Rejected(_)), "{rejected:?}");
    let checks = vec![Check { key: key("text"), versionstamp: None }];
    let failed = evaluated(&state(message()), &Transaction { checks, ..all });
    assert_eq!(failed, Evaluation::CheckFailed(vec![0]));
}

/// A settlement of some bytes comes to 600 KiB, where a large message has ten keys.
#[test]
fn settlements_that_come_to_too_much_are_refused() {
    let large = Message {
        payload: vec![7; limits::MAX_VALUE_BYTES].into(),
        keys_if_undelivered: (0..10_u8).map(|n| vec![n; 2048].into()).collect(),
        ..dying()
    };
    let mut state = State::default();
    let settlements =
        |count| (0..count).map(|due_ms| settlement(due_ms, FAILED)).collect::<Vec<_>>();
    for due_ms in 0..10 {
        state.messages.insert((due_ms, ID), large.clone());
    }
    // Each is 675,840 bytes.
    assert!(matches!(settled(&state, settlements(6)), Evaluation::Commit(_)));
    let Evaluation::Rejected(text) = settled(&state, settlements(7)) else { panic!("not refused") };
    assert!(text.contains("4194304 bytes"), "{text}");
    // To be delivered they need no room.
    let delivered = (0..10).map(|due_ms| settlement(due_ms, Verdict::Delivered)).collect();
    assert!(matches!(settled(&state, delivered), Evaluation::Commit(_)));
}
