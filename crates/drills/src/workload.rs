//! Clients that append to lists, set and delete registers, and add to counters. Their operations
//! and answers are recorded: as a history for `meridian-checker`, and as samples on a time line.
//!
//! The checker demands of them: each element of a list and each value of a register is written once
//! in a history; an append stands under a check of the version that was read; a transaction with a
//! sum or a delete also sets a marker, a register of its own. Long lists are followed by new ones.

mod client;
mod entries;
mod gateway;
mod intent;
mod pressure;
mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian_checker::{History, Key, Operation, Read, ReadOutcome};
use meridian_types::{Consistency, DatabaseId};

use crate::kv_connect::{CallError, range};
use crate::poll::{self, Timeout};
use crate::recorder::Recorder;

pub use client::{Manner, Profile, Role};
pub use gateway::Gateway;
pub use intent::MARKER;
pub use pressure::{Pressure, Probe};
pub use sample::{Attempts, Kind, Outcome, Sample};

use client::Client;
use entries::entries;

const LISTS: u64 = 3;
/// A longer list gets no more elements, and the next number of its name begins.
const LIST_ELEMENTS: usize = 60;
const REGISTERS: u64 = 5;
const COUNTERS: u64 = 3;
/// Keys of one final read, all in one range and one answer.
const FINAL_KEYS: usize = 500;
const FINAL_DEADLINE: Duration = Duration::from_secs(30);
/// The time-out of an attempt at a final read, from any region.
const FINAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Impossible answers whose texts are kept.
const MAX_ODDITIES: usize = 20;

/// The history of one database, while it is recorded.
pub struct Workload {
    recorder: Recorder,
    origin: Instant,
    database: DatabaseId,
    /// For each list name, the number of the list that gets the appends.
    generations: Vec<AtomicU64>,
    stop: AtomicBool,
    samples: Mutex<Vec<Sample>>,
    attempts: Mutex<Attempts>,
    oddities: Mutex<Vec<String>>,
}

impl Workload {
    pub fn new(database: DatabaseId) -> Arc<Self> {
        let origin = Instant::now();
        Arc::new(Self {
            recorder: Recorder::starting_at(origin),
            origin,
            database,
            generations: (0..LISTS).map(|_| AtomicU64::new(0)).collect(),
            stop: AtomicBool::new(false),
            samples: Mutex::default(),
            attempts: Mutex::default(),
            oddities: Mutex::default(),
        })
    }

    /// Runs a client until [`Workload::stop`]. May be dropped at any await; operations in flight
    /// then have no result.
    pub async fn run_client(self: Arc<Self>, profile: Profile) {
        Client::new(self, profile).run().await;
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The origin of all times.
    pub fn origin(&self) -> Instant {
        self.origin
    }

    pub fn operations(&self) -> usize {
        self.recorder.history().records.len()
    }

    /// The samples so far, by the end of their operations.
    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The requests that failed so far.
    pub fn attempts(&self) -> Attempts {
        self.attempts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Answers that no server should give under any fault; a few of them.
    pub fn oddities(&self) -> Vec<String> {
        self.oddities.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads all keys that were ever written, through `gateway`, and returns the history. Call this
    /// when the clients have ended and their abandoned writes have too.
    ///
    /// # Errors
    /// When the gateway does not serve.
    pub async fn finish(&self, gateway: &Gateway) -> Result<History, Timeout> {
        let mut keys = BTreeSet::new();
        for record in self.recorder.history().records {
            if let Operation::Txn(txn) = record.operation {
                keys.extend(txn.writes.iter().map(|write| write.key().clone()));
            }
        }
        let keys: Vec<Key> = keys.into_iter().collect();
        let client = crate::kv_connect::client(gateway.url.clone(), self.database)
            .with_timeout(FINAL_TIMEOUT);
        for keys in keys.chunks(FINAL_KEYS) {
            let (Some(first), Some(last)) = (keys.first(), keys.last()) else { continue };
            let end = [last.as_bytes(), &[0]].concat();
            poll::until("a final read", FINAL_DEADLINE, async || {
                let token = self.recorder.invoke_read(0, Read::last(gateway.name(), keys.to_vec()));
                let ranges = vec![range(first.as_bytes(), &end, 1000)];
                let output = client.read(Consistency::Strong, ranges).await?;
                let found = entries(output).map_err(CallError::NoAnswer)?;
                let found: BTreeMap<_, _> = found.into_iter().collect();
                let found = keys.iter().map(|key| found.get(key.as_bytes()).cloned()).collect();
                self.recorder.complete_read(token, ReadOutcome::Entries(found));
                Ok::<_, CallError>(())
            })
            .await?;
        }
        Ok(self.recorder.history())
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    fn elapsed(&self) -> Duration {
        self.origin.elapsed()
    }

    fn sampled(&self, sample: Sample) {
        self.samples.lock().unwrap_or_else(PoisonError::into_inner).push(sample);
    }

    fn failed(&self, region: usize, cut_off: bool, what: &CallError) {
        let at = self.elapsed();
        self.attempts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .count(at, region, cut_off, what);
    }

    fn odd(&self, what: String) {
        let mut oddities = self.oddities.lock().unwrap_or_else(PoisonError::into_inner);
        if oddities.len() < MAX_ODDITIES {
            oddities.push(what);
        }
    }

    /// The list that gets the appends at present.
    fn list(&self, list: u64) -> Key {
        let generations = usize::try_from(list).ok().and_then(|list| self.generations.get(list));
        format!(
            "list/{list}/{}",
            generations.map_or(0, |generation| generation.load(Ordering::Relaxed))
        )
    }

    /// Ends the list `key`, which is long enough.
    fn next_list(&self, list: u64, key: &str) {
        let generation = usize::try_from(list).ok().and_then(|list| self.generations.get(list));
        let current = key.rsplit('/').next().and_then(|number| number.parse::<u64>().ok());
        if let (Some(generation), Some(current)) = (generation, current) {
            generation.fetch_max(current + 1, Ordering::Relaxed);
        }
    }
}
