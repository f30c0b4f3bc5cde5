use bytes::Bytes;
use meridian_proto::DecodedBatch;
use meridian_types::{
    Batch, CommittedTransaction, Effect, Epoch, Message, MessageId, Position, QueueEffect,
    ReadRange, RequestId, ShardId, Value, ValueEncoding, Versionstamp,
};

use super::*;
use crate::{MemoryEngine, RaftApplied, Replace, RocksEngine, RocksOptions};

const SHARD: ShardId = ShardId(1);
const GONE: DatabaseId = DatabaseId([0xff; 16]);
const KEPT: DatabaseId = DatabaseId([0xfe; 16]);
const ROWS: u32 = 2000;

fn batch(sequence: u64, transactions: Vec<(DatabaseId, Vec<Effect>)>) -> DecodedBatch {
    let transaction = |(order, (database, effects))| {
        let request_id = RequestId((u128::from(sequence) << 64 | order as u128).to_be_bytes());
        CommittedTransaction { request_id, database, effects, refusal: None }
    };
    let transactions = transactions.into_iter().enumerate().map(transaction).collect();
    Batch { position: Position::new(Epoch(1), sequence), time_ms: sequence, transactions }.into()
}

/// Rows that do not compress, each of which is to expire, and as many messages.
fn fill(database: DatabaseId) -> (DatabaseId, Vec<Effect>) {
    let mut noise = u64::from(database.0[0]);
    let mut data = || -> Vec<u8> {
        let next = || {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            noise.to_le_bytes()[5]
        };
        std::iter::repeat_with(next).take(2000).collect()
    };
    let rows = (0..ROWS).flat_map(|n| {
        let id = MessageId { enqueued: Versionstamp([1; 10]), index: n.try_into().unwrap() };
        let message = Message { payload: data().into(), ..Message::default() };
        let queue = if n % 2 == 0 { "" } else { "named" };
        let queue = queue.parse().unwrap();
        let message = QueueEffect::PutMessage { queue, id, due_ms: 7, message };
        let value = Value { encoding: ValueEncoding::Bytes, data: data().into() };
        let put = Effect::Put {
            key: Bytes::from(format!("k{n:06}")),
            value,
            expire_at_ms: 1_000_000 + u64::from(n),
        };
        [put, Effect::Queue(message)]
    });
    (database, rows.collect())
}

/// Values, expiries, and messages.
fn rows(engine: &dyn Engine, family: &str, database: DatabaseId) -> [usize; 3] {
    let [mut data, mut expiry, mut messages] = [0; 3];
    engine
        .scan(family, Scan { start: b"", end: b"\xff", reverse: false }, &mut |key, _| {
            data += usize::from(key.first() == Some(&b'd') && key[1..17] == database.0);
            expiry += usize::from(schema::expiry_database(key) == Some(database));
            let message = schema::parse_message_key(key);
            messages += usize::from(message.is_some_and(|(of, ..)| of.database == database));
            ControlFlow::Continue(())
        })
        .unwrap();
    [data, expiry, messages]
}

fn visible(state: &ShardState, database: DatabaseId) -> usize {
    let all = ReadRange {
        start: Bytes::new(),
        end: Bytes::from_static(b"\xff"),
        limit: ROWS,
        reverse: false,
    };
    state.read(database, &[all], 0).unwrap().ranges[0].len()
}

fn folder_bytes(folder: &std::path::Path) -> u64 {
    let tables = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
    let tables =
        tables.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "sst"));
    tables.map(|entry| entry.metadata().unwrap().len()).sum()
}

fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// Applies a database that is kept and another that is dropped.
fn filled_and_dropped(state: &ShardState) {
    state.apply(&[batch(1, vec![fill(GONE), fill(KEPT)])], RaftApplied::default()).unwrap();
    state.flush().unwrap();
    state
        .apply(&[batch(2, vec![(GONE, vec![Effect::DropDatabase])])], RaftApplied::default())
        .unwrap();
}

#[test]
fn a_dropped_database_leaves_no_row_and_its_neighbour_all() {
    let folder = tempfile::tempdir().unwrap();
    let rocks: Arc<dyn Engine> =
        Arc::new(RocksEngine::open(folder.path(), RocksOptions::default()).unwrap());
    for engine in [rocks, Arc::new(MemoryEngine::default())] {
        let state = ShardState::open(Arc::clone(&engine), SHARD).unwrap();
        filled_and_dropped(&state);
        assert_eq!((visible(&state, GONE), visible(&state, KEPT)), (0, ROWS as usize), "at once");
        assert!(state.is_dropped(GONE).unwrap() && !state.is_dropped(KEPT).unwrap());
        assert!(state.reclaim_dropped(&mut go_on).unwrap());
        assert!(!state.reclaim_dropped(&mut go_on).unwrap(), "once is enough");
        let family = schema::state_family(SHARD, 0);
        assert_eq!(rows(&*engine, &family, GONE), [0; 3]);
        assert_eq!(rows(&*engine, &family, KEPT), [ROWS as usize; 3]);
    }
}

#[test]
fn the_disk_gets_back_what_a_dropped_database_took_once_no_snapshot_shows_it() {
    let folder = tempfile::tempdir().unwrap();
    let engine: Arc<dyn Engine> =
        Arc::new(RocksEngine::open(folder.path(), RocksOptions::default()).unwrap());
    let state = ShardState::open(Arc::clone(&engine), SHARD).unwrap();
    state.apply(&[batch(1, vec![fill(GONE), fill(KEPT)])], RaftApplied::default()).unwrap();
    state.flush().unwrap();
    let full = folder_bytes(folder.path());
    let snapshot = state.snapshot().unwrap();
    state
        .apply(&[batch(2, vec![(GONE, vec![Effect::DropDatabase])])], RaftApplied::default())
        .unwrap();
    assert!(!state.reclaim_dropped(&mut go_on).unwrap(), "a snapshot still needs the rows");
    drop(snapshot);
    let mut read = 0;
    let mut paced = |bytes| {
        read += bytes;
        ControlFlow::Continue(())
    };
    assert!(state.reclaim_dropped(&mut paced).unwrap());
    assert!(read > 0, "the pacing caller learns how much was read");
    let left = folder_bytes(folder.path());
    assert!(left < full * 6 / 10, "{left} of {full} bytes are left");
    // Found anew by a process that starts: what a crash left unfinished is finished.
    drop(state);
    let state = ShardState::open(engine, SHARD).unwrap();
    assert!(state.is_dropped(GONE).unwrap());
    assert_eq!((visible(&state, GONE), visible(&state, KEPT)), (0, ROWS as usize));
}

#[test]
fn a_snapshot_brings_the_drop_to_a_node_that_was_away() {
    for order in [[1, 2], [2, 1]] {
        let source = ShardState::open(Arc::new(MemoryEngine::default()), SHARD).unwrap();
        filled_and_dropped(&source);
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let away = ShardState::open(Arc::clone(&engine), SHARD).unwrap();
        if order[0] == 1 {
            away.apply(&[batch(1, vec![fill(GONE), fill(KEPT)])], RaftApplied::default()).unwrap();
        }
        let mut staged = away.stage().unwrap();
        staged.add(source.snapshot().unwrap().rows(&[], usize::MAX).unwrap()).unwrap();
        away.install(staged, RaftApplied::default(), Replace::Older).unwrap();
        assert!(away.is_dropped(GONE).unwrap());
        assert_eq!((visible(&away, GONE), visible(&away, KEPT)), (0, ROWS as usize));
        assert!(away.reclaim_dropped(&mut go_on).unwrap(), "expiry rows came with the snapshot");
        assert_eq!(rows(&*engine, &schema::state_family(SHARD, 1), GONE), [0; 3]);
    }
}

#[test]
fn a_drop_that_a_crash_takes_back_is_applied_again_from_the_log() {
    let engine = Arc::new(MemoryEngine::default());
    let state = ShardState::open(engine.clone(), SHARD).unwrap();
    filled_and_dropped(&state);
    let after = ShardState::open(Arc::new(engine.crash_to_what_is_durable()), SHARD).unwrap();
    assert_eq!((after.position().sequence, visible(&after, GONE)), (1, ROWS as usize));
    after
        .apply(&[batch(2, vec![(GONE, vec![Effect::DropDatabase])])], RaftApplied::default())
        .unwrap();
    assert_eq!(visible(&after, GONE), 0);
    after.flush().unwrap();
    assert_eq!(after.dropped_databases().unwrap(), [GONE]);
}

#[test]
fn what_was_dropped_before_a_process_ended_is_reclaimed_by_the_next() {
    let engine = Arc::new(MemoryEngine::default());
    let state = ShardState::open(engine.clone(), SHARD).unwrap();
    filled_and_dropped(&state);
    state.flush().unwrap();
    let engine: Arc<dyn Engine> = Arc::new(engine.crash_to_what_is_durable());
    let after = ShardState::open(Arc::clone(&engine), SHARD).unwrap();
    assert!(after.reclaim_dropped(&mut go_on).unwrap());
    let family = schema::state_family(SHARD, 0);
    // Its rows of expiries among them, which no range deletes.
    assert_eq!(rows(&*engine, &family, GONE), [0; 3]);
    assert_eq!(rows(&*engine, &family, KEPT), [ROWS as usize; 3]);
}
