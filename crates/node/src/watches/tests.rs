//! Watches of a state on the engine in memory.

use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::{Stream, StreamExt};
use meridian_config::DevLayout;
use meridian_gateway::{Access, WatchedValue};
use meridian_memory::ByteBudget;
use meridian_proto::DecodedBatch;
use meridian_storage::{MemoryEngine, RaftApplied, Replace};
use meridian_types::{Batch, CommittedTransaction, Effect, Epoch, RequestId, Value, ValueEncoding};

use super::*;

mod expiry;
mod reads;

const DATABASE: DatabaseId = DatabaseId([1; 16]);
const OTHER: DatabaseId = DatabaseId([2; 16]);
const LONG: Duration = Duration::from_secs(20);

fn put_until(key: &'static str, data: &str, expire_at_ms: u64) -> Effect {
    let data = Bytes::copy_from_slice(data.as_bytes());
    let value = Value { encoding: ValueEncoding::Bytes, data };
    Effect::Put { key: key.into(), value, expire_at_ms }
}

fn put(key: &'static str, data: &str) -> Effect {
    put_until(key, data, 0)
}

fn delete(key: &'static str) -> Effect {
    Effect::Delete { key: key.into() }
}

fn batch(
    position: Position,
    time_ms: u64,
    database: DatabaseId,
    effects: Vec<Effect>,
) -> DecodedBatch {
    let request_id = RequestId(u128::from(position.sequence).to_be_bytes());
    let transaction = CommittedTransaction { request_id, database, effects, refusal: None };
    Batch { position, time_ms, transactions: vec![transaction] }.into()
}

struct Stage {
    state: Arc<ShardState>,
    directory: Arc<Directory>,
    hub: Hub,
}

impl Stage {
    /// Within a runtime.
    fn new() -> Self {
        let engine = Arc::new(MemoryEngine::default());
        let state = Arc::new(ShardState::open(engine, ShardId(1)).unwrap());
        let cluster =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let directory = Arc::new(Directory::new(cluster, Access::default(), None));
        let reads = Reads::new(ByteBudget::new("tests", 64 << 20));
        let hub = Hub::start(&state, Arc::clone(&directory), reads);
        Self { state, directory, hub }
    }

    /// Applies the next batch, at the next millisecond.
    fn write(&self, effects: Vec<Effect>) -> Position {
        let next = self.state.position().sequence + 1;
        self.write_at(Epoch(1), next, DATABASE, effects)
    }

    fn write_at(
        &self,
        epoch: Epoch,
        time_ms: u64,
        database: DatabaseId,
        effects: Vec<Effect>,
    ) -> Position {
        let position = Position::new(epoch, self.state.position().sequence + 1);
        let batch = batch(position, time_ms, database, effects);
        self.state.apply(&[batch], RaftApplied::default()).unwrap();
        position
    }

    fn watch(&self, keys: &[&'static str]) -> Watcher {
        let keys: Vec<Bytes> = keys.iter().map(|key| Bytes::from_static(key.as_bytes())).collect();
        self.hub.watch(DATABASE, &keys, &vec![None; keys.len()])
    }

    /// The node hears of an epoch, and the sequence that it begins behind.
    fn learns(&self, epoch: u16, base: u64) {
        let mut cluster = self.directory.known().cluster.clone();
        cluster.version += 1;
        let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
        shard.epoch = Epoch(epoch);
        shard.bases.push((Epoch(epoch), Position::new(Epoch(1), base)));
        self.directory.learn(cluster).unwrap();
    }

    /// The rows of another state take the place of this one's.
    fn install(&self, source: &ShardState, replace: Replace) {
        let snapshot = source.snapshot().unwrap();
        let mut staged = self.state.stage().unwrap();
        staged.add(snapshot.rows(&[], usize::MAX).unwrap()).unwrap();
        self.state.install(staged, RaftApplied::default(), replace).unwrap();
    }
}

async fn next(watcher: &mut Watcher) -> Result<News, ReadRefusal> {
    let next = tokio::time::timeout(LONG, watcher.next()).await;
    next.expect("news in time").expect("the watch goes on")
}

/// The news of each key: `-` where it has not changed, nothing where it is absent.
fn texts(news: &News) -> Vec<String> {
    let text = |value: &Option<WatchedValue>| {
        let output = WatchedValue::to_wire(value.as_ref());
        let data = output.entry_if_changed.map(|entry| entry.value).unwrap_or_default();
        if output.changed { String::from_utf8(data.to_vec()).unwrap() } else { "-".to_owned() }
    };
    news.values.iter().map(text).collect()
}

async fn told(watcher: &mut Watcher) -> (u64, Vec<String>) {
    let news = next(watcher).await.unwrap();
    (news.position.sequence, texts(&news))
}

/// Whether there is no news, once all that was applied was told of.
async fn is_quiet(stage: &Stage, watcher: &mut Watcher) -> bool {
    // The tasks of the hub have come to rest once a watch that begins later was told.
    told(&mut stage.watch(&["a key that is never written"])).await;
    tokio::task::yield_now().await;
    Pin::new(watcher).poll_next(&mut Context::from_waker(Waker::noop())) == Poll::Pending
}

#[tokio::test]
async fn watch_tells_of_all_keys_first_and_then_of_those_that_change() {
    let stage = Stage::new();
    stage.write(vec![put("a", "first"), put("b", "kept")]);
    let mut watcher = stage.watch(&["a", "b", "c", "a"]);
    let first = ["first", "kept", "", "first"].map(str::to_owned);
    assert_eq!(told(&mut watcher).await, (1, first.to_vec()));
    stage.write(vec![put("z", "of a key that is not watched")]);
    stage.write_at(Epoch(1), 9, OTHER, vec![put("a", "of another database")]);
    assert!(is_quiet(&stage, &mut watcher).await);
    stage.write(vec![put("a", "second"), delete("b")]);
    let second = ["second", "", "-", "second"].map(str::to_owned);
    assert_eq!(told(&mut watcher).await, (4, second.to_vec()));
    // The deletion of a key that was not there is no news.
    stage.write(vec![delete("c")]);
    assert!(is_quiet(&stage, &mut watcher).await);
}

#[tokio::test]
async fn states_between_collapse_and_the_last_is_told() {
    let stage = Stage::new();
    let mut watcher = stage.watch(&["a", "b"]);
    told(&mut watcher).await;
    for number in 0..100 {
        stage.write(vec![put("a", &number.to_string()), put("b", &number.to_string())]);
    }
    let (mut last, mut messages) = (String::new(), 0);
    while last != "99" {
        let (_, values) = told(&mut watcher).await;
        assert_eq!(values[0], values[1], "of one transaction");
        (last, messages) = (values[0].clone(), messages + 1);
    }
    assert!(messages <= 100);
    assert!(is_quiet(&stage, &mut watcher).await);
}

/// The removal of what has expired comes in slices, some batches later.
#[tokio::test]
async fn keys_that_expire_together_are_gone_with_the_batch_whose_time_says_so() {
    let stage = Stage::new();
    stage.write_at(Epoch(1), 10, DATABASE, vec![put_until("a", "1", 50), put_until("b", "2", 50)]);
    let mut early = stage.watch(&["a", "b"]);
    told(&mut early).await;
    stage.write_at(Epoch(1), 20, DATABASE, vec![put_until("c", "3", 50)]);
    stage.write_at(Epoch(1), 49, DATABASE, vec![]);
    assert!(is_quiet(&stage, &mut early).await);
    stage.write_at(Epoch(1), 50, DATABASE, vec![]);
    assert_eq!(told(&mut early).await, (4, vec![String::new(); 2]));
    // Its row is still stored.
    assert_eq!(told(&mut stage.watch(&["c"])).await.1, [""]);
    stage.write_at(Epoch(1), 51, DATABASE, vec![delete("a"), delete("b")]);
    assert!(is_quiet(&stage, &mut early).await);
    stage.write_at(Epoch(1), 52, DATABASE, vec![put("a", "again")]);
    assert_eq!(told(&mut early).await.1, ["again", "-"]);
}

#[tokio::test]
async fn value_that_is_set_again_does_not_expire_by_the_time_of_the_one_before() {
    let stage = Stage::new();
    let mut watcher = stage.watch(&["a"]);
    told(&mut watcher).await;
    stage.write_at(Epoch(1), 10, DATABASE, vec![put_until("a", "1", 50)]);
    stage.write_at(Epoch(1), 20, DATABASE, vec![put("a", "2")]);
    while told(&mut watcher).await.1 != ["2"] {}
    stage.write_at(Epoch(1), 60, DATABASE, vec![]);
    assert!(is_quiet(&stage, &mut watcher).await);
}

#[tokio::test]
async fn keys_of_a_dropped_database_are_absent() {
    let stage = Stage::new();
    stage.write(vec![put("a", "1"), put("b", "2")]);
    let mut watcher = stage.watch(&["a", "b", "c"]);
    told(&mut watcher).await;
    stage.write(vec![Effect::DropDatabase]);
    assert_eq!(told(&mut watcher).await.1, ["", "", "-"]);
}

#[tokio::test]
async fn state_that_takes_the_place_of_another_is_told_of_as_it_is() {
    let (stage, source) = (Stage::new(), Stage::new());
    stage.write(vec![put("a", "lost"), put("b", "1")]);
    let mut watcher = stage.watch(&["a", "b", "c"]);
    told(&mut watcher).await;
    source.write(vec![]);
    source.write(vec![put("b", "2")]);
    stage.write(vec![]);
    stage.write(vec![put("a", "lost, too")]);
    assert_eq!(told(&mut watcher).await.1, ["lost, too", "-", "-"]);
    // It is behind the other, as after a failover with loss.
    stage.install(&source.state, Replace::Any);
    assert_eq!(told(&mut watcher).await, (2, vec!["".into(), "2".into(), "-".into()]));
    stage.write(vec![put("c", "behind it")]);
    assert_eq!(told(&mut watcher).await, (3, vec!["-".into(), "-".into(), "behind it".into()]));
}

#[tokio::test]
async fn watch_of_a_state_that_left_the_history_ends_and_one_within_it_goes_on() {
    let stage = Stage::new();
    for _ in 0..9 {
        stage.write(vec![]);
    }
    let mut watcher = stage.watch(&["a"]);
    told(&mut watcher).await;
    stage.learns(2, 9);
    stage.write_at(Epoch(2), 9, DATABASE, vec![put("a", "in the next epoch")]);
    assert_eq!(told(&mut watcher).await.1, ["in the next epoch"]);
    stage.learns(3, 8);
    assert_eq!(next(&mut watcher).await, Err(ReadRefusal::OtherEpoch));
}

/// The node has heard of the next epoch, and its shard goes on with the one before for a while.
#[test]
fn keys_that_other_processes_watch_take_no_room_of_news() {
    let reads = Reads::new(ByteBudget::new("reads", 68 << 20));
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let watches = Watches::new(Arc::new(Directory::new(cluster, Access::default(), None)), reads);
    let keys = vec![Bytes::from(vec![7; 2048]); 10];
    let mut kept = Vec::new();
    while let Ok(held) = watches.keep_keys(&keys) {
        kept.push(held);
    }
    assert!(kept.len() > 100, "{}", kept.len());
    assert!(watches.elsewhere().try_take(watches.elsewhere().total_bytes()).is_ok());
}

#[tokio::test]
async fn what_is_applied_behind_the_base_of_a_known_epoch_is_not_told() {
    let stage = Stage::new();
    stage.write(vec![put("a", "kept")]);
    let mut watcher = stage.watch(&["a"]);
    told(&mut watcher).await;
    stage.learns(2, 2);
    stage.write(vec![put("a", "up to the base")]);
    assert_eq!(told(&mut watcher).await, (2, vec!["up to the base".to_owned()]));
    stage.write(vec![put("a", "lost")]);
    assert_eq!(next(&mut watcher).await, Err(ReadRefusal::OtherEpoch));
    // A state that is lost as well takes its place, and then a state of the history.
    let (lost, source) = (Stage::new(), Stage::new());
    for _ in 0..4 {
        lost.write(vec![put("a", "lost, too")]);
    }
    stage.install(&lost.state, Replace::Any);
    assert_eq!(next(&mut stage.watch(&["a"])).await, Err(ReadRefusal::OtherEpoch));
    for _ in 0..2 {
        source.write(vec![put("a", "up to the base")]);
    }
    stage.install(&source.state, Replace::Any);
    stage.write_at(Epoch(2), 9, DATABASE, vec![put("a", "in the next epoch")]);
    assert_eq!(told(&mut stage.watch(&["a"])).await, (3, vec!["in the next epoch".to_owned()]));
}

#[tokio::test]
async fn watch_that_goes_on_is_told_what_is_other_than_it_was_shown() {
    let stage = Stage::new();
    let kept = stage.write(vec![put("a", "kept")]);
    stage.write(vec![put("b", "changed"), put("d", "new")]);
    let stamp = |position| Some(Some(Versionstamp::new(position, 0)));
    let shown = [stamp(kept), stamp(kept), Some(None), Some(None), None];
    let keys = ["a", "b", "c", "d", "c"].map(|key| Bytes::from_static(key.as_bytes()));
    let mut watcher = stage.hub.watch(DATABASE, &keys, &shown);
    assert_eq!(told(&mut watcher).await.1, ["-", "changed", "-", "new", ""]);
    // The first news come also where there are none.
    let shown = [stamp(kept)];
    let mut watcher = stage.hub.watch(DATABASE, &keys[..1], &shown);
    assert_eq!(told(&mut watcher).await.1, ["-"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_falls_between_what_is_read_first_and_what_is_applied_meanwhile() {
    let stage = Stage::new();
    for round in 0..200 {
        let number = round.to_string();
        let writes = async {
            tokio::task::yield_now().await;
            stage.write(vec![put("a", &number), put("b", &number)]);
        };
        let mut watcher = stage.watch(&["a", "b"]);
        let watches = async {
            loop {
                let (_, values) = told(&mut watcher).await;
                assert_eq!(values[0], values[1], "round {round}");
                if values[0] == number {
                    return;
                }
            }
        };
        tokio::join!(writes, watches);
    }
}

#[tokio::test]
async fn value_that_a_slow_watch_has_not_taken_is_read_again() {
    let stage = Stage::new();
    let (mut slow, mut other) = (stage.watch(&["a"]), stage.watch(&["b"]));
    told(&mut slow).await;
    told(&mut other).await;
    stage.write(vec![put("a", "not taken")]);
    // More than is kept.
    let large = "x".repeat(60_000);
    for _ in 0..200 {
        stage.write(vec![put("b", &large)]);
    }
    assert_eq!(told(&mut slow).await.1, ["not taken"]);
    assert_eq!(told(&mut other).await.1, [large]);
}

#[tokio::test]
async fn nothing_is_kept_of_watches_that_have_left() {
    let stage = Stage::new();
    stage.write(vec![put_until("a", "1", 1 << 40), put("b", "2")]);
    let mut watchers: Vec<_> = (0..9).map(|_| stage.watch(&["a", "b", "a"])).collect();
    told(&mut watchers[0]).await;
    drop(watchers);
    assert!(stage.hub.is_empty());
    stage.write(vec![put("a", "3")]);
    assert_eq!(told(&mut stage.watch(&["a"])).await.1, ["3"]);
}

/// Every watch of a hot key hears of its versions, and shares the bytes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_version_of_a_hot_key_is_encoded_once_for_all_its_watches() {
    let stage = Stage::new();
    stage.write(vec![put("hot", "0")]);
    let mut watchers: Vec<_> = (0..2000).map(|_| stage.watch(&["hot"])).collect();
    for watcher in &mut watchers {
        told(watcher).await;
    }
    stage.write(vec![put("hot", &"1".repeat(10_000))]);
    let mut shared = None;
    for watcher in &mut watchers {
        let value = next(watcher).await.unwrap().values[0].clone().unwrap();
        let at = WatchedValue::to_wire(Some(&value)).entry_if_changed.unwrap().value.as_ptr();
        assert_eq!(*shared.get_or_insert(at), at, "encoded twice");
    }
}
