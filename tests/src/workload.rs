//! Clients that append to lists, set and delete registers, and add to counters, and record what they were
//! answered, for `meridian-checker`.
//!
//! What the checker demands of them: each element of a list and each value of a register is written once in
//! a history, an append stands under a check of the version that was read, and what sums or deletes also
//! sets a marker, a register of its own. Lists are followed by new ones when they get long.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use meridian_checker::{
    Check, Entry, History, Key, Operation, Read, ReadOutcome, Recorder, Txn, TxnOutcome, Value, Write,
};
use meridian_proto::kv_connect as pb;
use meridian_types::{Consistency, DatabaseId, ValueEncoding, Versionstamp};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use crate::kv_connect::{CallError, KvClient, delete, point, range, set, sum};
use crate::poll;

const LISTS: u64 = 3;
/// A longer list is left to be, and its name's next number begins.
const LIST_ELEMENTS: usize = 60;
const REGISTERS: u64 = 5;
const COUNTERS: u64 = 3;
/// Shorter than most pauses of a node: what its gateway holds meanwhile stays unknown to the client.
const TIMEOUT: Duration = Duration::from_secs(2);
/// A client thinks at most so long between two operations.
const MAX_THINK_MS: u64 = 8;
/// Keys of one final read: all in one range, in one answer.
const FINAL_KEYS: usize = 500;
const FINAL_DEADLINE: Duration = Duration::from_secs(30);

/// A gateway that clients use. A restarted one is another: it need not know what the one before has shown.
#[derive(Debug)]
pub struct Gateway {
    pub url: String,
    name: String,
    incarnation: AtomicU64,
}

impl Gateway {
    pub fn new(name: impl Into<String>, url: String) -> Arc<Self> {
        Arc::new(Self { url, name: name.into(), incarnation: AtomicU64::new(1) })
    }

    /// Call this while the gateway is down.
    pub fn restarted(&self) {
        self.incarnation.fetch_add(1, Ordering::Relaxed);
    }

    fn name(&self) -> String {
        format!("{}#{}", self.name, self.incarnation.load(Ordering::Relaxed))
    }
}

/// The history of one database in the making.
pub struct Workload {
    recorder: Recorder,
    database: DatabaseId,
    gateways: Vec<Arc<Gateway>>,
    /// For each list, which of that name is appended to.
    generations: Vec<AtomicU64>,
    stop: AtomicBool,
}

/// One client at a time does one operation at a time.
struct Client {
    number: u64,
    workload: Arc<Workload>,
    connections: Vec<(Arc<Gateway>, KvClient)>,
    at: usize,
    rng: StdRng,
}

impl Workload {
    pub fn new(database: DatabaseId, gateways: Vec<Arc<Gateway>>) -> Arc<Self> {
        let generations = (0..LISTS).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { recorder: Recorder::new(), database, gateways, generations, stop: AtomicBool::new(false) })
    }

    /// Runs a client until [`Workload::stop`]. It begins with the gateway of its number.
    pub async fn run_client(self: Arc<Self>, number: u64, seed: u64) {
        let connections: Vec<_> =
            self.gateways.iter().map(|gateway| (Arc::clone(gateway), self.connect(gateway))).collect();
        let at = usize::try_from(number).unwrap_or(0) % connections.len();
        let rng = StdRng::seed_from_u64(seed.wrapping_mul(31).wrapping_add(number));
        let mut client = Client { number, workload: Arc::clone(&self), connections, at, rng };
        while !self.stop.load(Ordering::Relaxed) {
            client.step().await;
            let think = client.rng.random_range(0..=MAX_THINK_MS);
            tokio::time::sleep(Duration::from_millis(think)).await;
        }
    }

    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    pub fn operations(&self) -> usize {
        self.recorder.history().records.len()
    }

    /// Reads everything that was ever written, through `gateway`, and gives the history. Call this when the
    /// clients have ended and what they left behind has too.
    pub async fn finish(&self, gateway: &Gateway) -> History {
        let mut keys = BTreeSet::new();
        for record in self.recorder.history().records {
            if let Operation::Txn(txn) = record.operation {
                keys.extend(txn.writes.iter().map(|write| write.key().clone()));
            }
        }
        let keys: Vec<Key> = keys.into_iter().collect();
        let client = self.connect(gateway);
        for keys in keys.chunks(FINAL_KEYS) {
            let (Some(first), Some(last)) = (keys.first(), keys.last()) else { continue };
            let end = [last.as_bytes(), &[0]].concat();
            poll::until("a final read", FINAL_DEADLINE, async || {
                let token = self.recorder.invoke_read(0, Read::last(gateway.name(), keys.to_vec()));
                let output = client.read(Consistency::Strong, vec![range(first.as_bytes(), &end, 1000)]).await?;
                let found: BTreeMap<_, _> = entries(output).collect();
                let found = keys.iter().map(|key| found.get(key.as_bytes()).cloned()).collect();
                self.recorder.complete_read(token, ReadOutcome::Entries(found));
                Ok::<_, CallError>(())
            })
            .await;
        }
        self.recorder.history()
    }

    fn connect(&self, gateway: &Gateway) -> KvClient {
        KvClient::new(gateway.url.clone(), self.database).with_timeout(TIMEOUT)
    }
}

impl Client {
    async fn step(&mut self) {
        match self.rng.random_range(0..100) {
            0..40 => self.append().await,
            40..50 => self.set_registers().await,
            50..58 => self.swap_register().await,
            58..68 => self.sum().await,
            68..72 => self.delete_register().await,
            72..86 => self.look(Consistency::Strong).await,
            _ => self.look(Consistency::Eventual).await,
        }
    }

    /// Reads one or two lists in one snapshot and appends to each; at times sets a register along with it.
    async fn append(&mut self) {
        let count = self.rng.random_range(1..=2);
        let lists = (0..LISTS).choose_multiple(&mut self.rng, count);
        let keys: Vec<Key> = lists.iter().map(|list| self.list(*list)).collect();
        let Some(found) = self.read(Consistency::Strong, keys.clone()).await else { return };
        let (mut checks, mut writes, mut mutations) = (Vec::new(), Vec::new(), Vec::new());
        for ((list, key), entry) in lists.into_iter().zip(keys).zip(found) {
            let (mut elements, versionstamp) = match entry {
                Some(Entry { value: Value::List(elements), versionstamp }) => (elements, Some(versionstamp)),
                Some(other) => panic!("a list is {other:?}"),
                None => (Vec::new(), None),
            };
            let element = self.workload.recorder.next_id();
            elements.push(element);
            if elements.len() >= LIST_ELEMENTS {
                self.next_list(list, &key);
            }
            let (_, data) = Value::List(elements).encode();
            mutations.push(set(key.as_bytes(), &data));
            checks.push(Check { key: key.clone(), versionstamp });
            writes.push(Write::Append { key, element });
        }
        if self.rng.random_bool(0.2) {
            let register = self.register();
            self.push_register(register, &mut writes, &mut mutations);
        }
        self.commit(checks, writes, mutations).await;
    }

    async fn set_registers(&mut self) {
        let count = self.rng.random_range(1..=3);
        let (mut writes, mut mutations) = (Vec::new(), Vec::new());
        for register in (0..REGISTERS).choose_multiple(&mut self.rng, count) {
            self.push_register(format!("register/{register}"), &mut writes, &mut mutations);
        }
        self.commit(Vec::new(), writes, mutations).await;
    }

    /// Sets a register under a check of what an eventual or a strong read has shown.
    async fn swap_register(&mut self) {
        let key = self.register();
        let consistency = if self.rng.random_bool(0.3) { Consistency::Eventual } else { Consistency::Strong };
        let Some(found) = self.read(consistency, vec![key.clone()]).await else { return };
        let versionstamp = found.into_iter().flatten().next().map(|entry| entry.versionstamp);
        let (mut writes, mut mutations) = (Vec::new(), Vec::new());
        self.push_register(key.clone(), &mut writes, &mut mutations);
        self.commit(vec![Check { key, versionstamp }], writes, mutations).await;
    }

    async fn sum(&mut self) {
        let count = self.rng.random_range(1..=2);
        let (mut writes, mut mutations) = (Vec::new(), Vec::new());
        for counter in (0..COUNTERS).choose_multiple(&mut self.rng, count) {
            let (key, amount) = (format!("counter/{counter}"), self.rng.random_range(1..1000));
            mutations.push(sum(key.as_bytes(), amount));
            writes.push(Write::Sum { key, amount });
        }
        self.push_marker(&mut writes, &mut mutations);
        self.commit(Vec::new(), writes, mutations).await;
    }

    async fn delete_register(&mut self) {
        let key = self.register();
        let (mut writes, mut mutations) = (vec![Write::Delete { key: key.clone() }], vec![delete(key.as_bytes())]);
        self.push_marker(&mut writes, &mut mutations);
        self.commit(Vec::new(), writes, mutations).await;
    }

    async fn look(&mut self, consistency: Consistency) {
        let mut keys: Vec<Key> = (0..LISTS).map(|list| self.list(list)).collect();
        keys.extend((0..REGISTERS).map(|register| format!("register/{register}")));
        keys.extend((0..COUNTERS).map(|counter| format!("counter/{counter}")));
        let count = self.rng.random_range(1..=6);
        let keys = keys.into_iter().choose_multiple(&mut self.rng, count);
        self.read(consistency, keys).await;
    }

    fn list(&self, list: u64) -> Key {
        let generations = &self.workload.generations;
        let generation = usize::try_from(list).ok().and_then(|list| generations.get(list));
        format!("list/{list}/{}", generation.map_or(0, |generation| generation.load(Ordering::Relaxed)))
    }

    /// The list `key` is long enough.
    fn next_list(&self, list: u64, key: &str) {
        let generation = usize::try_from(list).ok().and_then(|list| self.workload.generations.get(list));
        let current = key.rsplit('/').next().and_then(|number| number.parse::<u64>().ok());
        if let (Some(generation), Some(current)) = (generation, current) {
            generation.fetch_max(current + 1, Ordering::Relaxed);
        }
    }

    fn register(&mut self) -> Key {
        format!("register/{}", self.rng.random_range(0..REGISTERS))
    }

    fn push_register(&self, key: Key, writes: &mut Vec<Write>, mutations: &mut Vec<pb::Mutation>) {
        let value = self.workload.recorder.next_id();
        mutations.push(set(key.as_bytes(), &Value::Register(value).encode().1));
        writes.push(Write::SetRegister { key, value });
    }

    fn push_marker(&self, writes: &mut Vec<Write>, mutations: &mut Vec<pb::Mutation>) {
        let key = format!("marker/{:08}", self.workload.recorder.next_id());
        self.push_register(key, writes, mutations);
    }

    async fn read(&mut self, consistency: Consistency, keys: Vec<Key>) -> Option<Vec<Option<Entry>>> {
        let (gateway, client) = self.connection();
        let read = match consistency {
            Consistency::Strong => Read::strong(gateway.name(), keys.clone()),
            Consistency::Eventual => Read::eventual(gateway.name(), keys.clone()),
        };
        let token = self.workload.recorder.invoke_read(self.number, read);
        match client.read(consistency, keys.iter().map(|key| point(key.as_bytes())).collect()).await {
            Ok(output) => {
                let found = output.ranges.into_iter().map(|range| range.values.into_iter().next().map(|e| entry(e).1));
                let found: Vec<_> = found.collect();
                self.workload.recorder.complete_read(token, ReadOutcome::Entries(found.clone()));
                Some(found)
            }
            Err(error) => {
                self.workload.recorder.complete_read(token, ReadOutcome::Failed { reason: error.to_string() });
                self.turn_away().await;
                None
            }
        }
    }

    async fn commit(&mut self, checks: Vec<Check>, writes: Vec<Write>, mutations: Vec<pb::Mutation>) {
        let (_, client) = self.connection();
        let wire = |check: &Check| pb::Check {
            key: Bytes::copy_from_slice(check.key.as_bytes()),
            versionstamp: check.versionstamp.map_or_else(Bytes::new, |stamp| Bytes::copy_from_slice(&stamp.0)),
        };
        let write = pb::AtomicWrite { checks: checks.iter().map(wire).collect(), mutations, enqueues: Vec::new() };
        let recorder = &self.workload.recorder;
        let token = recorder.invoke_txn(self.number, Txn::new(recorder.next_id(), checks, writes));
        let result = client.write(write).await;
        let failed = result.is_err();
        recorder.complete_txn(token, outcome(result));
        if failed {
            self.turn_away().await;
        }
    }

    fn connection(&self) -> (Arc<Gateway>, KvClient) {
        self.connections.get(self.at).cloned().expect("a gateway")
    }

    /// From a gateway that did not serve to the next.
    async fn turn_away(&mut self) {
        self.at = (self.at + 1) % self.connections.len();
        // Where none serves, none is to be stormed.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn outcome(result: Result<pb::AtomicWriteOutput, CallError>) -> TxnOutcome {
    match result {
        Ok(output) => match pb::AtomicWriteStatus::try_from(output.status) {
            Ok(pb::AtomicWriteStatus::AwSuccess) => {
                let versionstamp = Versionstamp::from_slice(&output.versionstamp).expect("ten bytes");
                TxnOutcome::Committed { versionstamp }
            }
            Ok(pb::AtomicWriteStatus::AwCheckFailure) => TxnOutcome::CheckFailed { failed: output.failed_checks },
            status => panic!("a write was answered with {status:?}"),
        },
        // The only refusal of a well-formed write, and it says that nothing was done.
        Err(CallError::Refused { status, text }) if status.as_u16() == 503 => TxnOutcome::NotCommitted { reason: text },
        Err(CallError::Refused { status, text }) => panic!("a write was refused with {status}: {text}"),
        Err(CallError::NotSent) => TxnOutcome::NotCommitted { reason: "no connection".to_owned() },
        Err(CallError::NoAnswer(_)) => TxnOutcome::Unknown,
    }
}

fn entries(output: pb::SnapshotReadOutput) -> impl Iterator<Item = (Vec<u8>, Entry)> {
    output.ranges.into_iter().flat_map(|range| range.values).map(entry)
}

fn entry(found: pb::KvEntry) -> (Vec<u8>, Entry) {
    let encoding = ValueEncoding::from_number(found.encoding).expect("a known encoding");
    let value = Value::decode(encoding, &found.value).expect("a value of this workload");
    let versionstamp = Versionstamp::from_slice(&found.versionstamp).expect("ten bytes");
    (found.key.to_vec(), Entry { value, versionstamp })
}
