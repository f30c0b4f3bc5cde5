use meridian_proto::DecodedBatch;
use meridian_txn::View;
use meridian_types::{
    Batch, CommittedTransaction, Effect, Epoch, Position, RequestId, ShardId, Versionstamp,
};

use super::*;
use crate::{MemoryEngine, RaftApplied, Replace, RocksEngine, RocksOptions};

const SHARD: ShardId = ShardId(1);
const ONE: DatabaseId = DatabaseId([3; 16]);
/// Its rows lie right behind those of the first.
const NEXT: DatabaseId = DatabaseId([3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 4]);
const WEEK_MS: u64 = DEAD_LETTER_RETENTION_MS;

fn id(number: u16) -> MessageId {
    MessageId { enqueued: Versionstamp::new(Position::new(Epoch(1), 1), 0), index: number }
}

fn message_of(bytes: usize) -> Message {
    Message {
        payload: vec![7; bytes].into(),
        keys_if_undelivered: vec![Bytes::from_static(b"k")],
        backoff_ms: vec![1, 2],
        attempts: 3,
        enqueued_ms: 4,
    }
}

fn named(database: DatabaseId, name: &str) -> QueueId {
    QueueId { database, name: name.parse().unwrap() }
}

fn put(due_ms: u64, number: u16) -> QueueEffect {
    put_into("", due_ms, number)
}

fn put_into(queue: &str, due_ms: u64, number: u16) -> QueueEffect {
    let (queue, message) = (queue.parse().unwrap(), message_of(9));
    QueueEffect::PutMessage { queue, id: id(number), due_ms, message }
}

fn letter(died_ms: u64) -> DeadLetter {
    let (queue, payload) = (QueueName::UNNAMED, vec![7; 9].into());
    DeadLetter { queue, id: id(1), payload, attempts: 1, enqueued_ms: 2, died_ms }
}

fn bury(number: u64, died_ms: u64) -> QueueEffect {
    QueueEffect::PutDeadLetter { number, letter: letter(died_ms) }
}

fn totals_of(undelivered: u64, first_dead: u64, next_dead: u64) -> QueueTotals {
    QueueTotals { undelivered, first_dead, next_dead, ..QueueTotals::default() }
}

fn apply_all(state: &ShardState, time_ms: u64, transactions: Vec<(DatabaseId, Vec<Effect>)>) {
    let position = state.position().next();
    let transaction = |(database, effects)| CommittedTransaction {
        request_id: RequestId([u8::try_from(position.sequence).unwrap(); 16]),
        database,
        effects,
        refusal: None,
    };
    let transactions = transactions.into_iter().map(transaction).collect();
    let batch: DecodedBatch = Batch { position, time_ms, transactions }.into();
    state.apply(&[batch], RaftApplied::default()).unwrap();
}

fn apply(state: &ShardState, database: DatabaseId, effects: Vec<QueueEffect>) {
    let effects = effects.into_iter().map(Effect::Queue).collect();
    apply_all(state, 1, vec![(database, effects)]);
}

/// Both engines, for the tests that must hold on each.
fn states() -> Vec<(ShardState, Option<tempfile::TempDir>)> {
    let folder = tempfile::tempdir().unwrap();
    let rocks = RocksEngine::open(folder.path(), RocksOptions::default()).unwrap();
    let open = |engine| ShardState::open(engine, SHARD).unwrap();
    vec![(open(Arc::new(MemoryEngine::default())), None), (open(Arc::new(rocks)), Some(folder))]
}

/// Due time and number of what is due by then behind a place.
fn due(state: &ShardState, after: Option<(u64, u16)>, until_ms: u64) -> Vec<(u64, u16)> {
    let after = after.map(|(due_ms, number)| (due_ms, id(number)));
    let messages = state.messages_due(&ONE.into(), after, until_ms, 99, usize::MAX).unwrap();
    messages.iter().map(|queued| (queued.due_ms, queued.id.index)).collect()
}

#[test]
fn messages_are_read_by_due_time_from_a_place_on() {
    for (state, _folder) in states() {
        apply(&state, ONE, vec![put(300, 1), put(100, 4), put(100, 2), put(200, 3)]);
        apply(&state, NEXT, vec![put(1, 9)]);
        let all = [(100, 2), (100, 4), (200, 3), (300, 1)];
        assert_eq!(due(&state, None, u64::MAX), all);
        assert_eq!(due(&state, None, 200), all[..3]);
        assert_eq!(due(&state, None, 199), all[..2]);
        assert_eq!(due(&state, Some((100, 2)), 200), all[1..3]);
        // Also behind a place where nothing is any more, or was.
        assert_eq!(due(&state, Some((100, 3)), 200), all[1..3]);
        assert_eq!(due(&state, Some((300, 1)), u64::MAX), []);
        assert_eq!(due(&state, Some((400, 1)), 5), []);
        let queue = QueueName::UNNAMED;
        apply(&state, ONE, vec![QueueEffect::DeleteMessage { queue, id: id(4), due_ms: 100 }]);
        assert_eq!(due(&state, None, 200), [(100, 2), (200, 3)]);
        let first = state.messages_due(&ONE.into(), None, u64::MAX, 1, usize::MAX).unwrap();
        assert_eq!(first, [QueuedMessage { due_ms: 100, id: id(2), message: message_of(9) }]);
    }
}

#[test]
fn read_of_messages_ends_at_its_bounds_and_has_one_at_least() {
    for (state, _folder) in states() {
        let large = |number| QueueEffect::PutMessage {
            queue: QueueName::UNNAMED,
            id: id(number),
            due_ms: 1,
            message: message_of(60_000),
        };
        apply(&state, ONE, (0..10).map(large).collect());
        let read =
            |limit, bytes| state.messages_due(&ONE.into(), None, 9, limit, bytes).unwrap().len();
        assert_eq!([read(0, 1), read(1, 1), read(3, usize::MAX), read(99, 1)], [0, 1, 3, 1]);
        assert_eq!(read(99, 150_000), 3);
        assert_eq!(read(99, usize::MAX), 10);
    }
}

#[test]
fn a_message_is_found_under_its_due_time_and_no_other() {
    for (state, _folder) in states() {
        apply(&state, ONE, vec![put(100, 1)]);
        let found = |database: DatabaseId, due_ms, number| {
            let queue = database.into();
            let found = state.message(&queue, due_ms, id(number)).unwrap();
            // Transactions see the same.
            assert_eq!(state.at(0).message(&queue, due_ms, id(number)).unwrap(), found);
            found
        };
        assert_eq!(found(ONE, 100, 1), Some(message_of(9)));
        for (database, due_ms, number) in [(ONE, 101, 1), (ONE, 100, 2), (NEXT, 100, 1)] {
            assert_eq!(found(database, due_ms, number), None);
        }
    }
}

#[test]
fn totals_are_those_written_last_and_queues_are_listed_by_them() {
    for (state, _folder) in states() {
        let of = |database| state.at(0).queue_totals(database).unwrap();
        assert_eq!(of(ONE), QueueTotals::default());
        assert_eq!(state.queues(None, 9).unwrap(), []);
        apply(&state, NEXT, vec![QueueEffect::PutTotals(totals_of(7, 0, 0))]);
        apply(&state, ONE, vec![QueueEffect::PutTotals(totals_of(5, 1, 3))]);
        apply(&state, ONE, vec![QueueEffect::PutTotals(totals_of(6, 1, 3))]);
        assert_eq!((of(ONE), of(NEXT)), (totals_of(6, 1, 3), totals_of(7, 0, 0)));
        let all = [(ONE, totals_of(6, 1, 3)), (NEXT, totals_of(7, 0, 0))];
        assert_eq!(state.queues(None, 9).unwrap(), all);
        assert_eq!(state.queues(None, 1).unwrap(), all[..1]);
        assert_eq!(state.queues(Some(ONE), 9).unwrap(), all[1..]);
        assert_eq!(state.queues(Some(NEXT), 9).unwrap(), []);
    }
}

#[test]
fn dead_letters_are_listed_until_they_have_been_kept_for_long_enough() {
    for (state, _folder) in states() {
        apply(&state, NEXT, vec![bury(0, 10), QueueEffect::PutTotals(totals_of(0, 0, 1))]);
        let effects = vec![bury(2, 10), bury(3, 20), bury(4, 30)];
        apply(&state, ONE, effects);
        apply(&state, ONE, vec![QueueEffect::PutTotals(totals_of(0, 2, 5))]);
        let listed = |first, limit| {
            let letters = state.dead_letters(&ONE.into(), first, limit, usize::MAX).unwrap();
            letters.into_iter().map(|(number, letter)| (number, letter.died_ms)).collect::<Vec<_>>()
        };
        assert_eq!(listed(0, 9), [(2, 10), (3, 20), (4, 30)]);
        assert_eq!(listed(0, 2), [(2, 10), (3, 20)]);
        assert_eq!(listed(3, 9), [(3, 20), (4, 30)]);
        assert_eq!(state.dead_letters(&ONE.into(), 0, 9, 1).unwrap(), [(2, letter(10))]);
        let one = |number| state.at(0).dead_letter(ONE, number).unwrap();
        assert_eq!([one(1), one(2), one(5)], [None, Some(letter(10)), None]);
        // By the logged time, so that every node lists the same.
        apply_all(&state, WEEK_MS + 20, vec![]);
        assert_eq!(listed(0, 9), [(3, 20), (4, 30)]);
        assert_eq!(listed(0, 1), [(3, 20)], "a page without letters is the end");
        apply(&state, ONE, vec![QueueEffect::DeleteDeadLetter { number: 3 }]);
        assert_eq!(listed(0, 9), [(4, 30)]);
    }
}

#[test]
fn named_queues_have_rows_and_totals_of_their_own_and_leave_no_trace() {
    for (state, _folder) in states() {
        let total = |name: &str, undelivered| QueueEffect::PutNamedTotals {
            queue: name.parse().unwrap(),
            undelivered,
        };
        let effects = vec![put_into("b", 7, 1), total("b", 1), put(5, 2), total("ab", 9)];
        apply(&state, ONE, effects);
        apply(&state, NEXT, vec![put_into("b", 8, 3), total("b", 3)]);
        let due = |queue: &QueueId| {
            let messages = state.messages_due(queue, None, u64::MAX, 99, usize::MAX).unwrap();
            messages.iter().map(|queued| (queued.due_ms, queued.id.index)).collect::<Vec<_>>()
        };
        assert_eq!(due(&named(ONE, "b")), [(7, 1)]);
        assert_eq!((due(&ONE.into()), due(&named(NEXT, "b"))), (vec![(5, 2)], vec![(8, 3)]));
        assert_eq!((due(&named(ONE, "bb")), due(&named(ONE, "ab"))), (vec![], vec![]));
        let message = |queue: &QueueId| state.at(0).message(queue, 7, id(1)).unwrap();
        assert_eq!(message(&named(ONE, "b")), Some(message_of(9)));
        assert_eq!((message(&ONE.into()), message(&named(NEXT, "b"))), (None, None));
        let queues = |database| -> Vec<(String, u64)> {
            let queues = state.named_queues(database).unwrap();
            queues.into_iter().map(|(name, undelivered)| (name.to_string(), undelivered)).collect()
        };
        assert_eq!(queues(ONE), [("ab".to_owned(), 9), ("b".to_owned(), 1)]);
        assert_eq!(state.at(0).named_undelivered(&named(ONE, "ab")).unwrap(), 9);
        assert_eq!(state.at(0).named_undelivered(&named(ONE, "a")).unwrap(), 0);
        let queue: QueueName = "b".parse().unwrap();
        let deleted = QueueEffect::DeleteMessage { queue, id: id(1), due_ms: 7 };
        apply(&state, ONE, vec![deleted, total("b", 0), total("ab", 0)]);
        assert_eq!((due(&named(ONE, "b")), queues(ONE)), (vec![], vec![]));
        assert_eq!(queues(NEXT), [("b".to_owned(), 3)]);
        let rows = state.snapshot().unwrap().rows(&[], usize::MAX).unwrap().rows;
        let named = |key: &[u8]| key.starts_with(b"n") || key.starts_with(b"mn");
        assert_eq!(rows.iter().filter(|(key, _)| named(key)).count(), 2, "the other database's");
    }
}

#[test]
fn dead_letters_of_one_queue_are_found_among_all() {
    for (state, _folder) in states() {
        let bury = |number, queue: &str| {
            let letter = DeadLetter { queue: queue.parse().unwrap(), ..letter(10) };
            QueueEffect::PutDeadLetter { number, letter }
        };
        let effects = [bury(0, "a"), bury(1, ""), bury(2, "b"), bury(3, "a")];
        apply(&state, ONE, effects.into());
        let listed = |name, first, limit| {
            let letters = state.dead_letters(&named(ONE, name), first, limit, usize::MAX).unwrap();
            letters.iter().map(|(number, _)| *number).collect::<Vec<_>>()
        };
        assert_eq!(listed("", 0, 9), [0, 1, 2, 3]);
        assert_eq!(
            (listed("a", 0, 9), listed("b", 0, 1), listed("c", 0, 1)),
            (vec![0, 3], vec![2], vec![])
        );
        assert_eq!(listed("a", 1, 1), [3], "a page without letters is the end");
    }
}

fn fill(database: DatabaseId) -> (DatabaseId, Vec<Effect>) {
    let totals = QueueEffect::PutTotals(totals_of(2, 0, 1));
    let named = QueueEffect::PutNamedTotals { queue: "a".parse().unwrap(), undelivered: 1 };
    let messages = [put(5, 1), put(u64::MAX, 2), put_into("a", 5, 3)];
    let effects = messages.into_iter().chain([bury(0, 1), totals, named]);
    (database, effects.map(Effect::Queue).collect())
}

/// Messages, dead letters, and totals.
fn counts(state: &ShardState, database: DatabaseId) -> (usize, usize, u64) {
    let of_name = state.messages_due(&named(database, "a"), None, u64::MAX, 99, usize::MAX);
    let names = state.named_queues(database).unwrap();
    // They come and go together.
    assert_eq!(of_name.unwrap().len(), names.len());
    assert_eq!(names.len(), usize::from(state.queue_totals(database).unwrap().undelivered > 0));
    let messages = state.messages_due(&database.into(), None, u64::MAX, 99, usize::MAX).unwrap();
    let dead = state.dead_letters(&database.into(), 0, 99, usize::MAX).unwrap();
    (messages.len(), dead.len(), state.queue_totals(database).unwrap().undelivered)
}

#[test]
fn a_dropped_database_takes_its_queue_along_and_no_other() {
    for (state, _folder) in states() {
        apply_all(&state, 1, vec![fill(ONE), fill(NEXT)]);
        assert_eq!(counts(&state, ONE), (2, 1, 2));
        apply_all(&state, 1, vec![(ONE, vec![Effect::DropDatabase])]);
        assert_eq!((counts(&state, ONE), counts(&state, NEXT)), ((0, 0, 0), (2, 1, 2)));
        assert_eq!(state.queues(None, 9).unwrap(), [(NEXT, totals_of(2, 0, 1))]);
    }
}

#[test]
fn a_copy_of_a_state_has_its_queues() {
    for (state, _folder) in states() {
        apply_all(&state, 1, vec![fill(ONE), fill(NEXT)]);
        let copy = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
        let mut staged = copy.stage().unwrap();
        staged.add(state.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
        copy.install(staged, RaftApplied::default(), Replace::Older).unwrap();
        for database in [ONE, NEXT] {
            assert_eq!(counts(&copy, database), (2, 1, 2));
        }
    }
}
