//! Measures the cost of encryption at rest: the same work on a plain and on an encrypted database,
//! in turn, and the medians of both and of the ratios of pairs.
//!
//! `scripts/bench --encryption` runs it, as it is shipped; the folder that it is given decides which
//! disk is measured.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::cast_possible_truncation,
    clippy::print_stdout,
    reason = "a measuring program ends at its first error, and prints"
)]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use meridian_storage::schema::{LOG_FAMILY, state_family};
use meridian_storage::{Durability, Engine, RocksEngine, RocksOptions, WriteBatch};
use meridian_types::ShardId;
use meridian_vault::{EncryptionSettings, Folder, KeySource};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 7;
const SYNCED: Duration = Duration::from_secs(2);
const READ: Duration = Duration::from_secs(1);
const ROWS: u64 = 200_000;
const VALUE_BYTES: usize = 250;

/// Numbers that look random, the same in each run.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        self.0 >> 20
    }

    /// Half of it can be compressed.
    fn value(&mut self) -> Vec<u8> {
        let mut value = vec![0; VALUE_BYTES];
        value.iter_mut().step_by(2).for_each(|byte| *byte = self.next() as u8);
        value
    }
}

struct Database {
    engine: RocksEngine,
    folder: PathBuf,
}

fn open(base: &Path, encrypted: bool, block_cache_bytes: usize) -> Database {
    let folder = base.join(if encrypted { "encrypted" } else { "plain" });
    fs::create_dir_all(folder.join("db")).unwrap();
    let key = KeySource::File(base.join("key"));
    let settings = EncryptionSettings { seals: true, key, previous: None };
    let vault = Folder::open(&folder, encrypted.then_some(&settings)).unwrap().vault().cloned();
    let options = RocksOptions { block_cache_bytes, memtable_bytes: 128 << 20, vault };
    let engine = RocksEngine::open(&folder.join("db"), options).unwrap();
    engine.create_family(&state()).unwrap();
    Database { engine, folder }
}

fn state() -> String {
    state_family(ShardId(1), 1)
}

fn key(number: u64) -> Vec<u8> {
    [b"row".as_slice(), &number.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()].concat()
}

/// Writes of the log, each with its fsync.
fn synced(database: &Database, bytes: usize) -> f64 {
    let (began, mut count) = (Instant::now(), 0u64);
    while began.elapsed() < SYNCED {
        let mut batch = WriteBatch::default();
        batch.put(&LOG_FAMILY.into(), count.to_be_bytes().to_vec(), vec![7; bytes]);
        database.engine.write(batch, Durability::Logged).unwrap();
        database.engine.sync().unwrap();
        count += 1;
    }
    count as f64
}

/// Rows into a family, flushed.
fn fill(database: &Database, family: &str, salt: u64) -> f64 {
    let mut noise = Noise(salt);
    for from in (0..ROWS).step_by(1000) {
        let mut batch = WriteBatch::default();
        (from..from + 1000).for_each(|row| batch.put(&family.into(), key(row), noise.value()));
        database.engine.write(batch, Durability::Unlogged).unwrap();
    }
    database.engine.flush(family).unwrap();
    ROWS as f64
}

/// MiB of rows that a compaction of the whole family reads.
fn compact(database: &Database, family: &str) -> f64 {
    database.engine.compact(family).unwrap();
    ((ROWS as usize * VALUE_BYTES) >> 20) as f64
}

/// Reads of single rows.
fn read(database: &Database) -> f64 {
    let (began, mut noise, mut count) = (Instant::now(), Noise(3), 0u64);
    while began.elapsed() < READ {
        let row = noise.next() % ROWS;
        assert!(database.engine.get(&state(), &key(row)).unwrap().is_some(), "row {row} is there");
        count += 1;
    }
    count as f64
}

/// Has the system forget the pages of a database's files.
fn forget_pages(database: &Database) {
    for entry in fs::read_dir(database.folder.join("db")).unwrap() {
        let path = entry.unwrap().path();
        let input = format!("if={}", path.display());
        let mut forget = Command::new("dd");
        forget.args([input.as_str(), "iflag=nocache", "count=0", "status=none"]);
        assert!(forget.status().unwrap().success(), "dd forgets the pages of {path:?}");
    }
}

/// Of one kind of work.
struct Measured {
    name: &'static str,
    per_second: f64,
    /// CPU of all threads, for each.
    cpu_us: f64,
}

fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 * 1e6 + time.tv_nsec as f64 / 1e3
}

fn measured(name: &'static str, work: impl FnOnce() -> f64) -> Measured {
    let (began, before) = (Instant::now(), cpu());
    let count = work();
    let (elapsed, used) = (began.elapsed().as_secs_f64(), cpu() - before);
    Measured { name, per_second: count / elapsed, cpu_us: used / count }
}

/// All work on one database, in order.
fn measure(base: &Path, encrypted: bool, salt: u64) -> Vec<Measured> {
    let database = open(base, encrypted, 256 << 20);
    let mut all = vec![
        measured("write of 200 bytes with its fsync", || synced(&database, 200)),
        measured("write of 64 KiB with its fsync", || synced(&database, 64 << 10)),
        measured("row written and flushed", || fill(&database, &state(), salt)),
        measured("MiB compacted, with compression", || compact(&database, &state())),
    ];
    fill(&database, "default", salt);
    all.push(measured("MiB compacted, without compression", || compact(&database, "default")));
    // Into the cache first.
    read(&database);
    all.push(measured("row read, in the block cache", || read(&database)));
    drop(database);
    let database = open(base, encrypted, 1 << 20);
    read(&database);
    all.push(measured("row read, in the page cache", || read(&database)));
    forget_pages(&database);
    all.push(measured("row read, on the disk at first", || read(&database)));
    all
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    // `cargo bench` adds `--bench`.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let folder = match folder {
        Some(folder) => tempfile::tempdir_in(folder),
        None => tempfile::tempdir(),
    };
    let folder = folder.unwrap();
    fs::write(folder.path().join("key"), (0..32).collect::<Vec<u8>>()).unwrap();
    let private = fs::Permissions::from_mode(0o600);
    fs::set_permissions(folder.path().join("key"), private).unwrap();
    let mut rounds = Vec::new();
    for round in 0..ROUNDS {
        let mut pair = [Vec::new(), Vec::new()];
        // Which comes first alternates: the disk and the machine are never twice the same.
        for which in [round % 2, 1 - round % 2] {
            pair[which] = measure(folder.path(), which == 1, round as u64);
        }
        rounds.push(pair);
    }
    println!("| work | a second, plain | encrypted | ratio | CPU us, plain | encrypted | ratio |");
    println!("|---|---:|---:|---:|---:|---:|---:|");
    for (at, first) in rounds[0][0].iter().enumerate() {
        let figures = |figure: fn(&Measured) -> f64| {
            let of = |which: usize| rounds.iter().map(move |pair| figure(&pair[which][at]));
            let ratios = of(0).zip(of(1)).map(|(plain, encrypted)| encrypted / plain).collect();
            (median(of(0).collect()), median(of(1).collect()), median(ratios))
        };
        let (plain, encrypted, ratio) = figures(|measured| measured.per_second);
        let (plain_us, encrypted_us, cpu_ratio) = figures(|measured| measured.cpu_us);
        println!(
            "| {} | {plain:.0} | {encrypted:.0} | {ratio:.2} | {plain_us:.1} | {encrypted_us:.1} | {cpu_ratio:.2} |",
            first.name
        );
    }
}
