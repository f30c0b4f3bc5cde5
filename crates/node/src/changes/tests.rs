//! Changes of a real group's log, and of batches that are made up.

use std::time::Duration;

use bytes::Bytes;
use meridian_config::DEV_DEFAULT_DATABASE;
use meridian_gateway::{Change, ChangedTransaction};
use meridian_proto::DecodedBatch;
use meridian_storage::{Engine, MemoryEngine};
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Mutation, MutationKind, Position,
    QueueEffect, RequestId, Value, ValueEncoding,
};

use super::*;
use crate::testing::{OnlyVoter, no_changes};

const DATABASE: DatabaseId = DEV_DEFAULT_DATABASE;
const OTHER: DatabaseId = DatabaseId([9; 16]);
const LONG: Duration = Duration::from_secs(20);
const START: Versionstamp = Versionstamp([0, 1, 0, 0, 0, 0, 0, 0, 0xff, 0xff]);

fn value(data: &str) -> Value {
    Value { encoding: ValueEncoding::Bytes, data: Bytes::copy_from_slice(data.as_bytes()) }
}

fn set(key: &str, data: &str) -> Mutation {
    let kind = MutationKind::Set(value(data));
    Mutation { key: Bytes::copy_from_slice(key.as_bytes()), kind, expire_at_ms: 0 }
}

fn behind(after: Versionstamp) -> ChangesWanted {
    ChangesWanted {
        database: DATABASE,
        prefix: Bytes::new(),
        after: Some(after),
        max_bytes: 1 << 20,
        wait: Duration::ZERO,
    }
}

struct Stage {
    only: OnlyVoter,
    logs: Arc<ChangeLogs>,
}

impl Stage {
    async fn start() -> Self {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let only = OnlyVoter::lead(&engine).await;
        let logs = no_changes(&only.directory);
        Self { only, logs }
    }

    async fn write(&self, key: &str, data: &str) -> Versionstamp {
        self.only.write(DATABASE, vec![set(key, data)]).await
    }

    async fn next(&self, wanted: &ChangesWanted) -> Result<Changed, NotGiven> {
        self.logs.next(&self.only.local(), wanted, 0).await
    }

    /// The values of all changes behind `after`, asked for in pieces of so many bytes.
    async fn values(&self, after: Versionstamp, max_bytes: usize) -> Vec<String> {
        let (mut wanted, mut values) = (behind(after), Vec::new());
        wanted.max_bytes = max_bytes;
        loop {
            let changed = self.next(&wanted).await.unwrap();
            for transaction in &changed.transactions {
                values.extend(transaction.changes.iter().map(text));
            }
            if changed.transactions.is_empty() && changed.next_bytes == 0 {
                let end = Versionstamp::behind(self.only.local().state().position());
                if changed.reached >= end {
                    return values;
                }
                // The machine stood still for as long as one question is looked into.
                continue;
            }
            assert!(changed.reached > wanted.after.unwrap() || changed.next_bytes > max_bytes);
            wanted.max_bytes = max_bytes.max(changed.next_bytes);
            wanted.after = Some(changed.reached);
        }
    }

    fn learns(&self, epoch: u16, base: Position) {
        let mut cluster = self.only.directory.known().cluster.clone();
        let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
        shard.epoch = Epoch(epoch);
        shard.bases.push((Epoch(epoch), base));
        cluster.version += 1;
        self.only.directory.learn(cluster).unwrap();
    }
}

fn text(change: &Change) -> String {
    match change {
        Change::Set { value, .. } => String::from_utf8(value.data.to_vec()).unwrap(),
        Change::Deleted { key } => format!("-{}", String::from_utf8_lossy(key)),
        Change::Expired { key } => format!("~{}", String::from_utf8_lossy(key)),
        Change::DatabaseDropped => "dropped".to_owned(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_change_is_told_once_and_in_order_in_pieces_of_whatever_size() {
    let stage = Stage::start().await;
    let writes = (0..200).map(|number| {
        let only = &stage.only;
        async move {
            let data = number.to_string().repeat(number % 7 + 1);
            let stamp = only.write(DATABASE, vec![set("key", &data)]).await;
            (stamp, data)
        }
    });
    let mut written = futures::future::join_all(writes).await;
    written.sort();
    let expected: Vec<String> = written.iter().map(|(_, data)| data.clone()).collect();
    for max_bytes in [1, 150, 1000, 1 << 20] {
        assert_eq!(stage.values(START, max_bytes).await, expected, "{max_bytes}");
    }
    // Behind each of them, also where others are of the same batch.
    for (at, (stamp, _)) in written.iter().enumerate().step_by(17) {
        assert_eq!(stage.values(*stamp, 1000).await, expected[at + 1..], "{stamp}");
    }
}

#[tokio::test]
async fn question_waits_for_a_change_and_for_none_longer_than_it_says() {
    let stage = Stage::start().await;
    let first = stage.write("a", "1").await;
    let mut wanted = behind(first);
    let nothing = stage.next(&wanted).await.unwrap();
    assert_eq!((nothing.transactions.len(), nothing.reached.position()), (0, first.position()));
    wanted.wait = LONG;
    wanted.prefix = "b".into();
    let writes = async {
        stage.write("a", "2").await;
        stage.write("b", "3").await
    };
    let (changed, last) = futures::join!(stage.next(&wanted), writes);
    let changed = changed.unwrap();
    assert_eq!(changed.transactions[0].versionstamp, last);
    assert_eq!(changed.reached, Versionstamp::behind(last.position()));
    // A batch without changes for the question is passed all the same.
    stage.write("a", "4").await;
    wanted.after = Some(changed.reached);
    wanted.wait = Duration::from_millis(1);
    let passes = async || stage.next(&wanted).await.unwrap().reached > changed.reached;
    crate::testing::until("the batch is passed", passes).await;
}

#[tokio::test]
async fn question_at_a_voter_that_retires_is_answered_at_once() {
    let stage = Stage::start().await;
    let first = stage.write("a", "1").await;
    let after = Versionstamp::behind(first.position());
    let wanted = ChangesWanted { wait: LONG, ..behind(after) };
    let mut asked = std::pin::pin!(stage.next(&wanted));
    let waits = async {
        while stage.logs.reads.shards.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = &mut asked => panic!("{answer:?}"),
        () = waits => {}
    }
    stage.only.voter.retire().await;
    let answer = tokio::time::timeout(LONG / 4, asked).await.expect("an answer").unwrap();
    assert_eq!((answer.transactions.len(), answer.reached), (0, after));
}

#[tokio::test]
async fn question_without_a_start_is_told_where_the_state_stands() {
    let stage = Stage::start().await;
    let last = stage.write("a", "1").await;
    let mut wanted = behind(START);
    wanted.after = None;
    let changed = stage.next(&wanted).await.unwrap();
    assert_eq!(changed.reached, Versionstamp::behind(last.position()));
    assert!(changed.transactions.is_empty());
    // Nor is it told an older place than the gateway has shown.
    let later = last.position().sequence + 1;
    let behind = stage.logs.next(&stage.only.local(), &wanted, later).await;
    assert_eq!(behind, Err(NotGiven::Ahead));
}

#[tokio::test]
async fn reader_further_on_shares_the_read_of_a_reader_behind_it() {
    let stage = Stage::start().await;
    let first = stage.write("a", "1").await;
    let second = stage.write("a", "2").await;
    assert_eq!(stage.values(Versionstamp::behind(first.position()), 1000).await, ["2"]);
    let last = Arc::clone(&stage.logs.reads.shards.lock()[&ShardId(1)]);
    let (history, local) = (EpochHistory::first(), stage.only.local());
    let read = async |sequence| {
        let read = stage.logs.reads.behind(&local, &history, sequence).await;
        read.unwrap().unwrap().iter().map(|read| read.batch.position).collect::<Vec<_>>()
    };
    let behind = first.position().sequence;
    assert_eq!(read(behind - 1).await, [first.position(), second.position()]);
    let kept = Arc::clone(&last.lock().await.batches);
    assert_eq!(read(behind).await, [second.position()]);
    assert!(Arc::ptr_eq(&kept, &last.lock().await.batches), "the log was read again");
    assert_eq!(read(second.position().sequence).await, []);
    assert_eq!(read(behind - 1).await.len(), 2);
}

#[tokio::test]
async fn log_that_begins_behind_a_versionstamp_is_gone_and_says_where_it_begins() {
    let stage = Stage::start().await;
    let mut stamps = Vec::new();
    for number in 0..9 {
        stamps.push(stage.write("a", &number.to_string()).await);
    }
    let purged = stamps[4].position().sequence;
    let begins = async || {
        stage.only.voter.group.purge_through(purged).await.unwrap();
        stage.only.local().purged().unwrap() == purged
    };
    crate::testing::until("the log is purged", begins).await;
    let floor = Versionstamp::behind(stamps[4].position());
    for gone in [START, stamps[3], stamps[4]] {
        assert_eq!(stage.next(&behind(gone)).await, Err(NotGiven::Gone(floor)), "{gone}");
    }
    assert_eq!(stage.values(floor, 1000).await, ["5", "6", "7", "8"]);
}

#[tokio::test]
async fn versionstamp_of_no_present_history_is_refused_and_what_was_lost_is_not_told() {
    let stage = Stage::start().await;
    let mut stamps = Vec::new();
    for number in 0..9 {
        stamps.push(stage.write("a", &number.to_string()).await);
    }
    let at = |epoch, sequence| Versionstamp::behind(Position::new(Epoch(epoch), sequence));
    let last = stamps[8].position().sequence;
    assert_eq!(stage.next(&behind(at(2, 3))).await, Err(NotGiven::Ahead));
    assert_eq!(stage.next(&behind(at(1, last + 1))).await, Err(NotGiven::Ahead));
    // Kept for the next reader, and to be told to none.
    assert_eq!(stage.values(stamps[3], 1000).await, ["4", "5", "6", "7", "8"]);
    // A later epoch began behind the fifth: this node's log goes on in the one before.
    let base = stamps[4].position();
    stage.learns(2, base);
    for lost in [stamps[5], at(1, last), at(2, base.sequence), at(0, 0)] {
        assert_eq!(stage.next(&behind(lost)).await, Err(NotGiven::NotOfHistory), "{lost}");
    }
    let told = stage.next(&behind(stamps[3])).await;
    assert!(matches!(told, Err(NotGiven::Refused(_))), "{told:?}");
    let mut now = behind(START);
    now.after = None;
    assert!(matches!(stage.next(&now).await, Err(NotGiven::Refused(_))));
}

#[test]
fn batches_with_a_gap_or_of_another_history_are_not_those_behind_a_place() {
    let at = |epoch, sequence| Position::new(Epoch(epoch), sequence);
    let history = EpochHistory::new(vec![(Epoch(1), at(1, 0)), (Epoch(2), at(1, 5))]);
    let follow = |behind, positions: &[(u16, u64)]| {
        let batches: Vec<DecodedBatch> = positions
            .iter()
            .map(|(epoch, sequence)| Batch {
                position: at(*epoch, *sequence),
                time_ms: 1,
                transactions: Vec::new(),
            })
            .map(DecodedBatch::from)
            .collect();
        log_reads::follow(&history, behind, &batches)
    };
    assert!(follow(3, &[(1, 4), (1, 5), (2, 6), (2, 7)]) && follow(9, &[]));
    assert!(!follow(3, &[(1, 5)]) && !follow(3, &[(1, 4), (2, 6)]), "a gap");
    assert!(!follow(3, &[(1, 4), (1, 4)]) && !follow(3, &[(1, 3), (1, 4)]), "told before");
    assert!(!follow(4, &[(1, 5), (1, 6)]) && !follow(4, &[(2, 5)]), "of another history");
}

#[tokio::test]
async fn question_whose_turn_does_not_come_is_answered_in_time_and_reads_go_on_without_readers() {
    let stage = Stage::start().await;
    let first = stage.write("a", "1").await;
    let asked = behind(Versionstamp::behind(first.position()));
    let shard = Arc::clone(stage.logs.reads.shards.lock().entry(ShardId(1)).or_default());
    let turn_of_others = shard.lock().await;
    stage.write("a", "2").await;
    let answer = tokio::time::timeout(LONG, stage.next(&asked)).await.expect("an answer").unwrap();
    assert_eq!((answer.transactions.len(), Some(answer.reached)), (0, asked.after));
    drop(turn_of_others);
    // A reader that leaves at once.
    drop(futures::FutureExt::now_or_never(stage.next(&asked)));
    let kept = async || shard.lock().await.batches.len() == 1;
    crate::testing::until("its read is there for the next", kept).await;
    assert_eq!(stage.values(asked.after.unwrap(), 1000).await, ["2"]);
}

#[test]
fn answer_for_another_node_counts_until_it_is_encoded() {
    let budget = meridian_memory::ByteBudget::new("tests", 100);
    let changed = Changed { transactions: Vec::new(), reached: START, next_bytes: 0 };
    let response = wire::response(Ok(changed.clone()));
    let response = wire::held_with(response, budget.try_take(100).ok());
    assert_eq!((budget.used_bytes(), wire::answer(response.clone())), (100, Ok(Ok(changed))));
    drop(response);
    assert_eq!(budget.used_bytes(), 0);
}

fn transaction(database: DatabaseId, effects: Vec<Effect>) -> CommittedTransaction {
    CommittedTransaction { request_id: RequestId([1; 16]), database, effects, refusal: None }
}

fn batch(sequence: u64, transactions: Vec<CommittedTransaction>) -> DecodedBatch {
    Batch { position: Position::new(Epoch(1), sequence), time_ms: 1, transactions }.into()
}

fn put(key: &'static str, data: &str) -> Effect {
    Effect::Put { key: key.into(), value: value(data), expire_at_ms: 7 }
}

fn of_a_queue() -> Effect {
    Effect::Queue(QueueEffect::DeleteDeadLetter { number: 1 })
}

/// The changes in `batches` behind `after`.
fn gathered(batches: &[DecodedBatch], prefix: &'static str, after: Versionstamp) -> Changed {
    let wanted = ChangesWanted { prefix: prefix.into(), ..behind(after) };
    let mut gathering = Gathering::new(&wanted, after);
    gathering.add(batches);
    gathering.finish()
}

fn texts(changed: &Changed) -> Vec<(u16, Vec<String>)> {
    let texts = |transaction: &ChangedTransaction| {
        (transaction.versionstamp.order(), transaction.changes.iter().map(text).collect())
    };
    changed.transactions.iter().map(texts).collect()
}

#[test]
fn effects_are_told_by_what_they_are_and_by_their_prefix() {
    let delete = |key: &'static str| Effect::Delete { key: key.into() };
    let unindex = |key: &'static str| Effect::Unindex { key: key.into(), expire_at_ms: 7 };
    let transactions = vec![
        transaction(DATABASE, vec![put("a1", "one"), put("b", "other"), delete("a2")]),
        transaction(OTHER, vec![put("a1", "of another database")]),
        transaction(DATABASE, vec![put("b", "of another prefix")]),
        transaction(DATABASE, vec![]),
        transaction(DATABASE, vec![of_a_queue()]),
        // As values that have expired are removed: the last was set again meanwhile.
        transaction(DATABASE, vec![unindex("a3"), delete("a3"), unindex("a4"), delete("a5")]),
        transaction(DATABASE, vec![Effect::DropDatabase]),
    ];
    let batches = [batch(1, transactions)];
    let expected = [(0, vec!["one", "-a2"]), (5, vec!["~a3", "-a5"]), (6, vec!["dropped"])]
        .map(|(order, texts)| (order, texts.into_iter().map(str::to_owned).collect()));
    let changed = gathered(&batches, "a", START);
    assert_eq!(texts(&changed), expected);
    assert_eq!(changed.reached, Versionstamp::behind(Position::new(Epoch(1), 1)));
    let first = Versionstamp::new(Position::new(Epoch(1), 1), 0);
    assert_eq!(texts(&gathered(&batches, "a", first)), expected[1..]);
    assert_eq!(texts(&gathered(&batches, "", changed.reached)), []);
    let orders = texts(&gathered(&batches, "", START)).into_iter().map(|(order, _)| order);
    assert_eq!(orders.collect::<Vec<_>>(), [0, 2, 5, 6], "a queue is of no keys");
}

#[test]
fn transaction_without_room_is_left_whole_and_its_size_said() {
    let large = || transaction(DATABASE, vec![put("a", "1"), put("b", &"2".repeat(500))]);
    let small = || transaction(DATABASE, vec![put("a", "3")]);
    let batches = [batch(1, vec![small(), large(), small()])];
    let mut wanted = behind(START);
    wanted.max_bytes = 400;
    let ask = |wanted: &ChangesWanted| {
        let mut gathering = Gathering::new(wanted, wanted.after.unwrap());
        assert_eq!(gathering.behind(), 0);
        gathering.add(&batches);
        gathering.finish()
    };
    let first = ask(&wanted);
    assert_eq!((texts(&first).len(), first.reached.order()), (1, 0));
    wanted.after = Some(first.reached);
    let none = ask(&wanted);
    assert_eq!((texts(&none), none.reached), (vec![], first.reached));
    assert_eq!(none.next_bytes, first.next_bytes);
    wanted.max_bytes = none.next_bytes;
    let second = ask(&wanted);
    assert_eq!((texts(&second).len(), second.reached.order()), (1, 1));
    assert!(second.next_bytes > 0 && second.next_bytes < 400);
}

#[test]
fn question_and_answer_arrive_as_they_were_sent_and_what_is_malformed_is_refused() {
    let wanted = ChangesWanted { prefix: "p".into(), wait: LONG, ..behind(START) };
    let sent = wire::request(ShardId(3), &wanted, 9);
    let (shard, came, min_sequence) = wire::wanted(sent.clone()).unwrap();
    assert_eq!((shard, came.after, min_sequence), (ShardId(3), Some(START), 9));
    assert_eq!((came.prefix, came.wait), (wanted.prefix, Duration::from_secs(10)));
    let malformed = |change: fn(&mut meridian_proto::changes::NextRequest)| {
        let mut sent = sent.clone();
        change(&mut sent);
        wire::wanted(sent).unwrap_err()
    };
    assert_eq!(malformed(|sent| sent.database = Bytes::new()), "database");
    assert_eq!(malformed(|sent| sent.after = "short".into()), "after");
    assert_eq!(malformed(|sent| sent.prefix = vec![0; 3000].into()), "prefix");
    let changes = vec![
        Change::Set { key: "a".into(), value: value("x"), expire_at_ms: 7 },
        Change::Deleted { key: "b".into() },
        Change::Expired { key: "c".into() },
        Change::DatabaseDropped,
    ];
    let transactions = vec![ChangedTransaction { versionstamp: START, changes }];
    for answer in [
        Ok(Changed { transactions, reached: START, next_bytes: 5 }),
        Err(NotGiven::Gone(START)),
        Err(NotGiven::NotOfHistory),
        Err(NotGiven::Ahead),
        Err(NotGiven::Refused("why".to_owned())),
    ] {
        assert_eq!(wire::answer(wire::response(answer.clone())), Ok(answer));
    }
}
