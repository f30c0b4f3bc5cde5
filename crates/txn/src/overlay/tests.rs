use bytes::Bytes;
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, DeadLetter, Effect, Epoch, Message, MessageId,
    Position, QueueEffect, QueueId, QueueName, QueueTotals, RequestId, Versionstamp,
};

use super::{Overlaid, Overlay};
use crate::number::le64_value;
use crate::view::{Stored, View};

const DATABASE: DatabaseId = DatabaseId([7; 16]);
const OTHER: DatabaseId = DatabaseId([8; 16]);

/// Every key of every database holds 0, since the first batch.
struct Zeros;

impl View for Zeros {
    type Error = std::convert::Infallible;

    fn get(&self, _: DatabaseId, _: &[u8]) -> Result<Option<Stored>, Self::Error> {
        Ok(Some(Stored { versionstamp: stamp(1), value: le64_value(0) }))
    }

    /// It was applied with the first batch, under whatever id.
    fn message(
        &self,
        _: &QueueId,
        due_ms: u64,
        _: MessageId,
    ) -> Result<Option<Message>, Self::Error> {
        Ok((due_ms == APPLIED_DUE_MS).then(|| message(1)))
    }

    fn queue_totals(&self, _: DatabaseId) -> Result<QueueTotals, Self::Error> {
        Ok(totals(1))
    }

    fn named_undelivered(&self, _: &QueueId) -> Result<u64, Self::Error> {
        Ok(1)
    }

    /// It died at ten times its number.
    fn dead_letter(&self, _: DatabaseId, number: u64) -> Result<Option<DeadLetter>, Self::Error> {
        Ok(Some(letter(number * 10)))
    }
}

const APPLIED_DUE_MS: u64 = 100;
const ID: MessageId = MessageId { enqueued: Versionstamp([7; 10]), index: 3 };

fn message(attempts: u32) -> Message {
    Message { attempts, ..Message::default() }
}

fn letter(died_ms: u64) -> DeadLetter {
    let queue = QueueName::default();
    DeadLetter { queue, id: ID, payload: Bytes::new(), attempts: 1, enqueued_ms: 1, died_ms }
}

fn totals(undelivered: u64) -> QueueTotals {
    QueueTotals { undelivered, ..QueueTotals::default() }
}

fn put_message(due_ms: u64, attempts: u32) -> Effect {
    let (queue, message) = (QueueName::default(), message(attempts));
    Effect::Queue(QueueEffect::PutMessage { queue, id: ID, due_ms, message })
}

fn delete_message(due_ms: u64) -> Effect {
    let queue = QueueName::default();
    Effect::Queue(QueueEffect::DeleteMessage { queue, id: ID, due_ms })
}

fn put_totals(undelivered: u64) -> Effect {
    Effect::Queue(QueueEffect::PutTotals(totals(undelivered)))
}

/// The attempts of the message under a due time, and how many are undelivered.
fn queue(overlay: &Overlay, database: DatabaseId, due_ms: u64) -> (Option<u32>, u64) {
    let view = Overlaid { overlay, applied: &Zeros, now_ms: 0 };
    let (Ok(message), Ok(totals)) =
        (view.message(&database.into(), due_ms, ID), view.queue_totals(database));
    (message.map(|message| message.attempts), totals.undelivered)
}

fn at(sequence: u64) -> Position {
    Position::new(Epoch::FIRST, sequence)
}

fn stamp(sequence: u64) -> Versionstamp {
    Versionstamp::new(at(sequence), 0)
}

fn put(key: &'static str, value: u64) -> Effect {
    expiring(key, value, 0)
}

fn expiring(key: &'static str, value: u64, expire_at_ms: u64) -> Effect {
    Effect::Put { key: Bytes::from_static(key.as_bytes()), value: le64_value(value), expire_at_ms }
}

fn delete(key: &'static str) -> Effect {
    Effect::Delete { key: Bytes::from_static(key.as_bytes()) }
}

/// Sequence and value of a key as seen through the overlay.
fn seen(overlay: &Overlay, database: DatabaseId, key: &str, now_ms: u64) -> Option<(u64, u64)> {
    let view = Overlaid { overlay, applied: &Zeros, now_ms };
    let stored = view.get(database, key.as_bytes()).unwrap();
    assert_eq!(
        view.version(database, key.as_bytes()).unwrap(),
        stored.as_ref().map(|stored| stored.versionstamp)
    );
    stored.map(|stored| {
        (stored.versionstamp.position().sequence, crate::number::le64(&stored.value).unwrap())
    })
}

#[test]
fn the_newest_effect_wins_and_a_delete_hides() {
    let mut overlay = Overlay::new();
    overlay.push(stamp(2), DATABASE, &[put("a", 2), put("b", 2)]);
    overlay.push(stamp(3), DATABASE, &[put("a", 3), delete("b")]);
    assert_eq!(seen(&overlay, DATABASE, "a", 0), Some((3, 3)));
    assert_eq!(seen(&overlay, DATABASE, "b", 0), None);
    assert_eq!(seen(&overlay, DATABASE, "c", 0), Some((1, 0)));
    // Databases do not see each other.
    assert_eq!(seen(&overlay, OTHER, "a", 0), Some((1, 0)));
}

#[test]
fn release_drops_only_what_is_still_the_newest() {
    let mut overlay = Overlay::new();
    overlay.push(stamp(2), DATABASE, &[put("a", 2), put("b", 2)]);
    overlay.push(stamp(2), OTHER, &[put("a", 2)]);
    overlay.push(stamp(3), DATABASE, &[put("a", 3)]);
    overlay.release(at(1));
    assert_eq!((overlay.len(), overlay.is_empty()), (4, false));
    overlay.release(at(2));
    assert_eq!(seen(&overlay, DATABASE, "a", 0), Some((3, 3)));
    assert_eq!(seen(&overlay, DATABASE, "b", 0), Some((1, 0)));
    assert_eq!(seen(&overlay, OTHER, "a", 0), Some((1, 0)));
    assert_eq!(overlay.len(), 1);
    overlay.release(at(9));
    assert!(overlay.is_empty() && overlay.newest.is_empty());
}

#[test]
fn release_goes_by_epoch_before_sequence() {
    let mut overlay = Overlay::new();
    overlay.push(Versionstamp::new(Position::new(Epoch(2), 1), 0), DATABASE, &[put("a", 2)]);
    overlay.release(Position::new(Epoch(1), 9));
    assert_eq!(overlay.len(), 1);
    overlay.release(Position::new(Epoch(2), 1));
    assert!(overlay.is_empty());
}

#[test]
fn effects_expire() {
    let mut overlay = Overlay::new();
    overlay.push(stamp(2), DATABASE, &[expiring("a", 2, 10), put("b", 2)]);
    assert_eq!(seen(&overlay, DATABASE, "a", 9), Some((2, 2)));
    // Absent, not what was applied before.
    assert_eq!(seen(&overlay, DATABASE, "a", 10), None);
    assert_eq!(seen(&overlay, DATABASE, "b", u64::MAX), Some((2, 2)));
}

#[test]
fn a_batch_is_its_transactions_in_order() {
    let transaction = |effects| CommittedTransaction {
        request_id: RequestId([0; 16]),
        database: DATABASE,
        effects,
        refusal: None,
    };
    let transactions = vec![
        transaction(vec![put("a", 1), put("b", 1)]),
        transaction(vec![]),
        transaction(vec![put("a", 2)]),
    ];
    let mut overlay = Overlay::new();
    overlay.insert(&Batch { position: at(2), time_ms: 0, transactions });
    assert_eq!(overlay.get(DATABASE, b"a").unwrap().versionstamp(), Versionstamp::new(at(2), 2));
    assert_eq!(overlay.get(DATABASE, b"b").unwrap().versionstamp(), Versionstamp::new(at(2), 0));
    overlay.release(at(2));
    assert!(overlay.is_empty());
}

#[test]
fn clear_drops_everything_and_any_order_may_follow() {
    let mut overlay = Overlay::new();
    overlay.push(stamp(3), DATABASE, &[put("a", 3)]);
    overlay.clear();
    assert_eq!(seen(&overlay, DATABASE, "a", 0), Some((1, 0)));
    overlay.push(stamp(2), DATABASE, &[put("a", 2)]);
    assert_eq!(seen(&overlay, DATABASE, "a", 0), Some((2, 2)));
}

#[test]
#[should_panic(expected = "out of order")]
fn pushes_come_in_order() {
    let mut overlay = Overlay::new();
    overlay.push(stamp(3), DATABASE, &[put("a", 3)]);
    overlay.push(stamp(2), DATABASE, &[put("b", 2)]);
}

#[test]
fn messages_in_flight_are_seen_moved_and_removed_before_they_are_applied() {
    let mut overlay = Overlay::new();
    assert_eq!(queue(&overlay, DATABASE, APPLIED_DUE_MS), (Some(1), 1));
    overlay.push(
        stamp(2),
        DATABASE,
        &[delete_message(APPLIED_DUE_MS), put_message(200, 2), put_totals(2)],
    );
    assert_eq!(queue(&overlay, DATABASE, APPLIED_DUE_MS), (None, 2));
    assert_eq!(queue(&overlay, DATABASE, 200), (Some(2), 2));
    assert_eq!(queue(&overlay, DATABASE, 300), (None, 2));
    // Databases do not see each other.
    assert_eq!(queue(&overlay, OTHER, APPLIED_DUE_MS), (Some(1), 1));
    overlay.push(stamp(3), DATABASE, &[delete_message(200), put_totals(1)]);
    assert_eq!(queue(&overlay, DATABASE, 200), (None, 1));
    // A later batch's rows stay.
    overlay.release(at(2));
    assert_eq!(queue(&overlay, DATABASE, 200), (None, 1));
    assert_eq!(queue(&overlay, DATABASE, APPLIED_DUE_MS), (Some(1), 1), "the applied view again");
    overlay.release(at(3));
    assert!(overlay.is_empty() && overlay.newest.is_empty());
}

#[test]
fn named_queues_in_flight_see_neither_each_other_nor_the_unnamed_one() {
    let name = |name: &str| -> QueueName { name.parse().unwrap() };
    let put = |queue: &str, attempts, undelivered| {
        let (queue, message) = (name(queue), message(attempts));
        let put = QueueEffect::PutMessage { queue: queue.clone(), id: ID, due_ms: 200, message };
        [put, QueueEffect::PutNamedTotals { queue, undelivered }].map(Effect::Queue)
    };
    let seen = |overlay: &Overlay, queue: &str| {
        let view = Overlaid { overlay, applied: &Zeros, now_ms: 0 };
        let queue = QueueId { database: DATABASE, name: name(queue) };
        let (Ok(message), Ok(undelivered)) =
            (view.message(&queue, 200, ID), view.named_undelivered(&queue));
        (message.map(|message| message.attempts), undelivered)
    };
    let mut overlay = Overlay::new();
    overlay.push(stamp(2), DATABASE, &put("a", 2, 5));
    overlay.push(stamp(3), DATABASE, &put("b", 3, 6));
    overlay.push(stamp(4), DATABASE, &put("b", 4, 7));
    let of_each = |overlay: &Overlay| ["a", "b", "c"].map(|queue| seen(overlay, queue));
    assert_eq!(of_each(&overlay), [(Some(2), 5), (Some(4), 7), (None, 1)]);
    assert_eq!(queue(&overlay, DATABASE, 200), (None, 1), "of the unnamed queue");
    overlay.release(at(3));
    assert_eq!(
        of_each(&overlay),
        [(None, 1), (Some(4), 7), (None, 1)],
        "a later batch's rows stay"
    );
    overlay.release(at(4));
    assert!(overlay.is_empty() && overlay.newest.is_empty());
}

#[test]
fn dead_letters_in_flight_are_seen_and_removed_before_they_are_applied() {
    let put = |number, died_ms| {
        Effect::Queue(QueueEffect::PutDeadLetter { number, letter: letter(died_ms) })
    };
    let delete = |number| Effect::Queue(QueueEffect::DeleteDeadLetter { number });
    let mut overlay = Overlay::new();
    overlay.push(stamp(2), DATABASE, &[put(7, 2), delete(6)]);
    overlay.push(stamp(3), DATABASE, &[delete(7)]);
    let died_ms = |overlay: &Overlay, database, number| {
        let view = Overlaid { overlay, applied: &Zeros, now_ms: 0 };
        let Ok(letter) = view.dead_letter(database, number);
        letter.map(|letter| letter.died_ms)
    };
    let of_each = |overlay: &Overlay| [5, 6, 7].map(|number| died_ms(overlay, DATABASE, number));
    assert_eq!(of_each(&overlay), [Some(50), None, None]);
    assert_eq!(died_ms(&overlay, OTHER, 6), Some(60));
    overlay.release(at(2));
    assert_eq!(of_each(&overlay), [Some(50), Some(60), None], "the applied view again, of one");
    overlay.push(stamp(4), DATABASE, &[put(7, 2)]);
    overlay.release(at(3));
    assert_eq!(of_each(&overlay), [Some(50), Some(60), Some(2)]);
    overlay.release(at(4));
    assert!(overlay.is_empty() && overlay.newest.is_empty());
}
