//! Writes that wait for a slow disk, and those that do not. RocksDB's background work is held up by
//! its own log: it says each step there, on its own threads, without a lock.

use std::sync::mpsc::{Receiver, channel};

use parking_lot::Condvar;
use rocksdb::{InfoLogger, LogLevel};

use super::*;

const BOUND: usize = 16 << 20;
const FLUSH: &str = "] Flushing memtable";
const COMPACTION: &str = "] Compacting ";
const PATIENCE: Duration = Duration::from_secs(60);

/// Background work of one kind stops here.
struct Gate {
    step: &'static str,
    held: Mutex<bool>,
    released: Condvar,
}

impl Gate {
    fn pass(&self, line: &str) {
        if line.contains(self.step) {
            self.released.wait_while(&mut self.held.lock(), |held| *held);
        }
    }

    fn release(&self) {
        *self.held.lock() = false;
        self.released.notify_all();
    }
}

/// However a test ends: what is held up would keep the engine from closing.
struct Held {
    gate: Arc<Gate>,
    engine: Arc<RocksEngine>,
    state: Arc<str>,
    folder: tempfile::TempDir,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.gate.release();
    }
}

impl Held {
    /// An engine with a state's family, whose `step` stands still.
    fn at(step: &'static str) -> Self {
        let gate = Arc::new(Gate { step, held: Mutex::new(true), released: Condvar::new() });
        let (folder, mut options, logged) =
            (tempfile::tempdir().unwrap(), database_options(), Arc::clone(&gate));
        options.set_info_logger(InfoLogger::new_callback_logger(LogLevel::Info, move |_, line| {
            logged.pass(line)
        }));
        let memory =
            RocksOptions { block_cache_bytes: 8 << 20, memtable_bytes: BOUND, vault: None };
        let engine = Arc::new(RocksEngine::open_with(folder.path(), memory, &options).unwrap());
        let state: Arc<str> = schema::state_family(meridian_types::ShardId(1), 0).into();
        engine.create_family(&state).unwrap();
        Self { gate, engine, state, folder }
    }

    /// Writes so many megabytes, one after the other, on a thread of its own, which says what came
    /// of each.
    fn write(
        &self,
        family: &str,
        megabytes: u16,
        durability: Durability,
    ) -> Receiver<Result<(), StorageError>> {
        let (engine, family, (done, results)) =
            (Arc::clone(&self.engine), Arc::from(family), channel());
        std::thread::spawn(move || {
            for number in 0..megabytes {
                let mut batch = WriteBatch::default();
                batch.put(&family, number.to_be_bytes().to_vec(), vec![7; 1 << 20]);
                if done.send(engine.write(batch, durability)).is_err() {
                    return;
                }
            }
        });
        results
    }

    fn until_a_write_waits(&self) {
        let start = Instant::now();
        while !self.engine.memtables.are_awaited() {
            assert!(start.elapsed() < PATIENCE, "no write waits for a flush");
            std::thread::yield_now();
        }
    }
}

/// The log is written to on the threads that drive heartbeats and leases.
#[test]
fn a_state_that_waits_for_room_in_memtables_holds_up_no_log() {
    let held = Held::at(FLUSH);
    let state = held.write(&held.state, 32, Durability::Unlogged);
    held.until_a_write_waits();
    let written = state.try_iter().map(Result::unwrap).count();
    assert!(
        (8..15).contains(&written),
        "{written} MiB of state are written, of 14 that it may have"
    );
    // More than is left of the bound, and more memtables of one family than RocksDB lets wait by
    // itself.
    let log = held.write(LOG_FAMILY, 16, Durability::Logged);
    for number in 0..16 {
        log.recv_timeout(PATIENCE)
            .unwrap_or_else(|_| panic!("append {number} waits for a flush"))
            .unwrap();
    }
    assert_eq!(state.try_iter().count(), 0, "a write of state did not wait");
    held.gate.release();
    (written..32).for_each(|_| state.recv_timeout(PATIENCE).expect("there is room again").unwrap());
    assert!(held.engine.memtable_bytes() <= BOUND as u64);
    for number in 0..32u16 {
        assert!(held.engine.get(&held.state, &number.to_be_bytes()).unwrap().is_some());
    }
}

/// Appends do not wait for memory, so their acknowledgements do: else logs would take all there is.
#[test]
fn a_log_beyond_the_bound_of_memtables_is_acknowledged_once_it_was_flushed() {
    let held = Held::at(FLUSH);
    let log = held.write(LOG_FAMILY, 20, Durability::Logged);
    (0..20).for_each(|_| log.recv_timeout(PATIENCE).expect("an append waits for a flush").unwrap());
    let (engine, (done, synced)) = (Arc::clone(&held.engine), channel());
    std::thread::spawn(move || done.send(engine.sync()));
    let start = Instant::now();
    while !held.engine.memtables.are_awaited() {
        assert!(
            synced.try_recv().is_err(),
            "acknowledged with {} bytes in memtables",
            held.engine.memtable_bytes()
        );
        assert!(start.elapsed() < PATIENCE, "no write waits for a flush");
    }
    held.gate.release();
    synced.recv_timeout(PATIENCE).expect("there is room again").unwrap();
    assert!(held.engine.memtable_bytes() <= BOUND as u64);
}

#[test]
fn a_state_waits_no_longer_when_the_engine_has_failed() {
    let held = Held::at(FLUSH);
    let state = held.write(&held.state, 32, Durability::Unlogged);
    held.until_a_write_waits();
    // No file can be made here any more.
    std::fs::remove_dir_all(held.folder.path()).unwrap();
    held.gate.release();
    let end = Instant::now() + PATIENCE;
    let failed = std::iter::from_fn(|| {
        state.recv_timeout(end.saturating_duration_since(Instant::now())).ok()
    });
    assert!(
        failed.into_iter().any(|written| written.is_err()),
        "it waits for ever, or for nothing"
    );
}

#[test]
fn compactions_that_do_not_keep_up_hold_up_no_log_and_slow_the_state() {
    let held = Held::at(COMPACTION);
    for family in [LOG_FAMILY, &held.state] {
        let (engine, family, (done, flushed)) =
            (Arc::clone(&held.engine), Arc::from(family), channel());
        std::thread::spawn(move || {
            for number in 0..40u16 {
                let mut batch = WriteBatch::default();
                batch.put(&family, number.to_be_bytes().to_vec(), vec![7; 100]);
                batch.put(&family, b"z".to_vec(), vec![7; 100]);
                engine.write(batch, Durability::Logged).unwrap();
                done.send(engine.flush(&family)).unwrap();
            }
        });
        for number in 0..40 {
            flushed
                .recv_timeout(PATIENCE)
                .unwrap_or_else(|_| panic!("write {number} waits for a compaction"))
                .unwrap();
        }
    }
    let log = held.write(LOG_FAMILY, 1, Durability::Logged);
    log.recv_timeout(PATIENCE).expect("an append waits for a compaction").unwrap();
    let start = Instant::now();
    let state = held.write(&held.state, 1, Durability::Unlogged);
    state.recv_timeout(PATIENCE).expect("a state whose compactions stand still goes on").unwrap();
    assert!(start.elapsed() >= SLOW_WRITE, "the state is not slowed");
}

/// Another state may take its place while it is flushed.
#[test]
fn a_family_that_is_dropped_while_it_is_flushed_is_said_to_be_gone() {
    let held = Held::at(FLUSH);
    let state = held.write(&held.state, 1, Durability::Unlogged);
    state.recv_timeout(PATIENCE).unwrap().unwrap();
    let (engine, family, (done, flushed)) =
        (Arc::clone(&held.engine), Arc::clone(&held.state), channel());
    std::thread::spawn(move || done.send(engine.flush(&family)));
    let start = Instant::now();
    while held.engine.property(&held.state, NUM_IMMUTABLE_MEM_TABLE) == 0 {
        assert!(start.elapsed() < PATIENCE, "no flush began");
        std::thread::yield_now();
    }
    held.engine.drop_family(&held.state).unwrap();
    held.gate.release();
    let said = flushed.recv_timeout(PATIENCE).unwrap();
    assert!(matches!(said, Err(StorageError::NoFamily(_))), "{said:?}");
}
