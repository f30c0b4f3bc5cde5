//! One client: its operations, its retries, and its choice of a gateway.

use std::sync::Arc;
use std::time::Duration;

use meridian_checker::{Check, Entry, Key, Read, ReadOutcome, Txn, TxnOutcome, Value};
use meridian_proto::kv_connect as pb;
use meridian_types::{Consistency, Versionstamp};
use rand::rngs::StdRng;
use rand::seq::IteratorRandom;
use rand::{Rng, SeedableRng};

use super::entries::points;
use super::intent::{Change, Intent};
use super::sample::{Kind, Outcome, Sample};
use super::{COUNTERS, Gateway, LIST_ELEMENTS, LISTS, REGISTERS, Workload};
use crate::kv_connect::{CallError, KvClient, point};

/// The pause between two attempts of an impatient client.
const TURN_AWAY: Duration = Duration::from_millis(50);
/// The pause of Deno's own client before it retries.
const RETRY_MS: std::ops::Range<u64> = 200..300;
/// The pause between two searches for a gateway, while none serves.
const LOOK: Duration = Duration::from_millis(20);

/// The operations of a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// All of it.
    Mixed,
    Writer,
    StrongReader,
    EventualReader,
}

/// The reaction of a client to a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Gives up, and goes to the next gateway with another operation.
    Impatient,
    /// Retries until it has an answer, as Deno's own client does, at the same gateway as long as
    /// that is up.
    Patient,
}

/// The description of a client.
#[derive(Debug, Clone)]
pub struct Profile {
    /// From 1.
    pub number: u64,
    /// The region of the client, which counts from 0.
    pub region: usize,
    pub role: Role,
    pub manner: Manner,
    /// The gateways that the client may use, the preferred one first. At least one.
    pub gateways: Vec<Arc<Gateway>>,
    /// The time-out of a request.
    pub timeout: Duration,
    /// The longest pause between two operations.
    pub max_think: Duration,
    /// Whether every write sets a marker, not only the writes that need one.
    pub mark_all: bool,
    pub seed: u64,
}

/// A client does one operation at a time.
pub(super) struct Client {
    workload: Arc<Workload>,
    profile: Profile,
    connections: Vec<(Arc<Gateway>, KvClient)>,
    at: usize,
    /// Whether the present operation had to move to another gateway.
    moved: bool,
    rng: StdRng,
}

/// The continuation after an attempt without an answer.
enum Next {
    Again,
    GiveUp,
}

impl Client {
    pub(super) fn new(workload: Arc<Workload>, profile: Profile) -> Self {
        let connect = |gateway: &Arc<Gateway>| {
            let client = crate::kv_connect::client(gateway.url.clone(), workload.database)
                .with_timeout(profile.timeout);
            (Arc::clone(gateway), client)
        };
        let connections = profile.gateways.iter().map(connect).collect();
        let rng = StdRng::seed_from_u64(profile.seed.wrapping_mul(31).wrapping_add(profile.number));
        Self { workload, connections, at: 0, moved: false, rng, profile }
    }

    pub(super) async fn run(mut self) {
        let max_think_us = u64::try_from(self.profile.max_think.as_micros()).unwrap_or(u64::MAX);
        while !self.workload.is_stopped() {
            self.step().await;
            let think = self.rng.random_range(0..=max_think_us);
            tokio::time::sleep(Duration::from_micros(think)).await;
        }
    }

    async fn step(&mut self) {
        let choice = match self.profile.role {
            Role::Mixed => self.rng.random_range(0..100),
            Role::Writer => self.rng.random_range(0..72),
            Role::StrongReader => 72,
            Role::EventualReader => 99,
        };
        match choice {
            0..40 => self.append().await,
            40..50 => self.set_registers().await,
            50..58 => self.swap_register().await,
            58..68 => self.sum().await,
            68..72 => self.delete_register().await,
            72..86 => self.look(Consistency::Strong).await,
            _ => self.look(Consistency::Eventual).await,
        }
    }

    /// Reads one or two lists in one snapshot and appends to each; at times sets a register along
    /// with it.
    async fn append(&mut self) {
        let count = self.rng.random_range(1..=2);
        let lists = (0..LISTS).choose_multiple(&mut self.rng, count);
        let keys: Vec<Key> = lists.iter().map(|list| self.workload.list(*list)).collect();
        let Some(found) = self.read(Consistency::Strong, keys.clone()).await else { return };
        let (mut checks, mut changes) = (Vec::new(), Vec::new());
        for ((list, key), entry) in lists.into_iter().zip(keys).zip(found) {
            let (elements, versionstamp) = match entry {
                Some(Entry { value: Value::List(elements), versionstamp }) => {
                    (elements, Some(versionstamp))
                }
                Some(other) => return self.workload.odd(format!("a list is {other}")),
                None => (Vec::new(), None),
            };
            if elements.len() + 1 >= LIST_ELEMENTS {
                self.workload.next_list(list, &key);
            }
            checks.push(Check { key: key.clone(), versionstamp });
            changes.push(Change::Append { key, elements });
        }
        if self.rng.random_bool(0.2) {
            changes.push(Change::SetRegister { key: self.register() });
        }
        self.commit(Intent { checks, ..Intent::new(changes) }).await;
    }

    async fn set_registers(&mut self) {
        let count = self.rng.random_range(1..=3);
        let registers = (0..REGISTERS).choose_multiple(&mut self.rng, count).into_iter();
        let set = |register| Change::SetRegister { key: format!("register/{register}") };
        self.commit(Intent::new(registers.map(set).collect())).await;
    }

    /// Sets a register under a check of the version that an eventual or a strong read has shown.
    async fn swap_register(&mut self) {
        let key = self.register();
        let consistency =
            if self.rng.random_bool(0.3) { Consistency::Eventual } else { Consistency::Strong };
        let Some(found) = self.read(consistency, vec![key.clone()]).await else { return };
        let versionstamp = found.into_iter().flatten().next().map(|entry| entry.versionstamp);
        let checks = vec![Check { key: key.clone(), versionstamp }];
        self.commit(Intent { checks, ..Intent::new(vec![Change::SetRegister { key }]) }).await;
    }

    async fn sum(&mut self) {
        let count = self.rng.random_range(1..=2);
        let counters = (0..COUNTERS).choose_multiple(&mut self.rng, count);
        let mut add = |counter| Change::Sum {
            key: format!("counter/{counter}"),
            amount: self.rng.random_range(1..1000),
        };
        let changes = counters.into_iter().map(&mut add).collect();
        self.commit(Intent::new(changes)).await;
    }

    async fn delete_register(&mut self) {
        let key = self.register();
        self.commit(Intent::new(vec![Change::Delete { key }])).await;
    }

    async fn look(&mut self, consistency: Consistency) {
        let mut keys: Vec<Key> = (0..LISTS).map(|list| self.workload.list(list)).collect();
        keys.extend((0..REGISTERS).map(|register| format!("register/{register}")));
        keys.extend((0..COUNTERS).map(|counter| format!("counter/{counter}")));
        let count = self.rng.random_range(1..=6);
        let keys = keys.into_iter().choose_multiple(&mut self.rng, count);
        self.read(consistency, keys).await;
    }

    fn register(&mut self) -> Key {
        format!("register/{}", self.rng.random_range(0..REGISTERS))
    }

    async fn read(
        &mut self,
        consistency: Consistency,
        keys: Vec<Key>,
    ) -> Option<Vec<Option<Entry>>> {
        let kind = match consistency {
            Consistency::Strong => Kind::StrongRead,
            Consistency::Eventual => Kind::EventualRead,
        };
        let workload = Arc::clone(&self.workload);
        let started = workload.elapsed();
        loop {
            let Some((gateway, client)) = self.connection().await else {
                self.sampled(kind, started, Outcome::CutOff);
                return None;
            };
            let read = match consistency {
                Consistency::Strong => Read::strong(gateway.name(), keys.clone()),
                Consistency::Eventual => Read::eventual(gateway.name(), keys.clone()),
            };
            let token = workload.recorder.invoke_read(self.profile.number, read);
            let ranges = keys.iter().map(|key| point(key.as_bytes())).collect();
            let answer = until_lost(&gateway, client.read(consistency, ranges)).await;
            match answer.and_then(|output| points(output).map_err(CallError::NoAnswer)) {
                Ok(found) => {
                    workload.recorder.complete_read(token, ReadOutcome::Entries(found.clone()));
                    self.sampled(kind, started, Outcome::Answered);
                    return Some(found);
                }
                Err(error) => {
                    workload
                        .recorder
                        .complete_read(token, ReadOutcome::Failed { reason: error.to_string() });
                    if let Next::GiveUp = self.after_failure(&gateway, &error).await {
                        self.sampled(kind, started, Outcome::Failed);
                        return None;
                    }
                }
            }
        }
    }

    async fn commit(&mut self, mut intent: Intent) {
        intent.marked |= self.profile.mark_all;
        let workload = Arc::clone(&self.workload);
        let started = workload.elapsed();
        loop {
            let Some((gateway, client)) = self.connection().await else {
                self.sampled(Kind::Write, started, Outcome::CutOff);
                return;
            };
            let recorder = &workload.recorder;
            let (writes, write) = intent.attempt(recorder);
            let txn = Txn::new(recorder.next_id(), intent.checks.clone(), writes);
            let token = recorder.invoke_txn(self.profile.number, txn);
            let result = until_lost(&gateway, client.write(write)).await;
            let (outcome, odd) = outcome(&result);
            if let Some(odd) = odd {
                workload.odd(odd);
            }
            recorder.complete_txn(token, outcome);
            match result {
                Ok(_) => return self.sampled(Kind::Write, started, Outcome::Answered),
                Err(error) => {
                    if let Next::GiveUp = self.after_failure(&gateway, &error).await {
                        return self.sampled(Kind::Write, started, Outcome::Failed);
                    }
                }
            }
        }
    }

    fn sampled(&mut self, kind: Kind, started: Duration, outcome: Outcome) {
        let ended = self.workload.elapsed();
        let moved = std::mem::take(&mut self.moved);
        self.workload.sampled(Sample {
            kind,
            region: self.profile.region,
            started,
            ended,
            outcome,
            moved,
        });
    }

    /// The client's present gateway, or the next gateway that is up. If there is none, waits for one
    /// and returns `None`: the operation is over.
    async fn connection(&mut self) -> Option<(Arc<Gateway>, KvClient)> {
        let count = self.connections.len();
        let up = |client: &Self| {
            (0..count)
                .map(|step| (client.at + step) % count)
                .find(|at| client.connections.get(*at).is_some_and(|(gateway, _)| gateway.is_up()))
        };
        if let Some(at) = up(self) {
            self.at = at;
            return self.connections.get(at).cloned();
        }
        while up(self).is_none() && !self.workload.is_stopped() {
            tokio::time::sleep(LOOK).await;
        }
        None
    }

    async fn after_failure(&mut self, gateway: &Gateway, error: &CallError) -> Next {
        let cut_off = gateway.is_lost();
        self.moved |= cut_off;
        self.workload.failed(self.profile.region, cut_off, error);
        match self.profile.manner {
            Manner::Impatient => {
                // Moves from a gateway that did not serve to the next; waits if none serves, so as
                // not to flood any.
                self.at = (self.at + 1) % self.connections.len().max(1);
                tokio::time::sleep(TURN_AWAY).await;
                Next::GiveUp
            }
            Manner::Patient => {
                tokio::time::sleep(Duration::from_millis(self.rng.random_range(RETRY_MS))).await;
                if self.workload.is_stopped() { Next::GiveUp } else { Next::Again }
            }
        }
    }
}

/// The answer, unless the gateway is lost first.
async fn until_lost<T>(
    gateway: &Gateway,
    answer: impl Future<Output = Result<T, CallError>>,
) -> Result<T, CallError> {
    tokio::select! {
        biased;
        answer = answer => answer,
        () = gateway.lost() => Err(CallError::NoAnswer("the gateway is lost".to_owned())),
    }
}

/// The outcome in the answer to a write, and the text of an answer that no server should give.
fn outcome(result: &Result<pb::AtomicWriteOutput, CallError>) -> (TxnOutcome, Option<String>) {
    match result {
        Ok(output) => match (output.status(), Versionstamp::from_slice(&output.versionstamp)) {
            (pb::AtomicWriteStatus::AwSuccess, Some(versionstamp)) => {
                (TxnOutcome::Committed { versionstamp }, None)
            }
            (pb::AtomicWriteStatus::AwCheckFailure, _) => {
                (TxnOutcome::CheckFailed { failed: output.failed_checks.clone() }, None)
            }
            (status, _) => {
                (TxnOutcome::Unknown, Some(format!("a write was answered with {status:?}")))
            }
        },
        // The only refusal of a well-formed write; it says that nothing was done.
        Err(CallError::Refused { status, text }) if status.as_u16() == 503 => {
            (TxnOutcome::NotCommitted { reason: text.clone() }, None)
        }
        Err(CallError::Refused { status, text }) => {
            (TxnOutcome::Unknown, Some(format!("a write was refused with {status}: {text}")))
        }
        Err(CallError::NotSent) => {
            (TxnOutcome::NotCommitted { reason: "no connection".to_owned() }, None)
        }
        Err(CallError::NoAnswer(_)) => (TxnOutcome::Unknown, None),
    }
}

#[cfg(test)]
mod tests {
    use hyper::StatusCode;

    use super::*;

    fn refused(status: u16) -> Result<pb::AtomicWriteOutput, CallError> {
        Err(CallError::Refused {
            status: StatusCode::from_u16(status).unwrap(),
            text: "why".to_owned(),
        })
    }

    fn answered(
        status: pb::AtomicWriteStatus,
        versionstamp: &[u8],
    ) -> Result<pb::AtomicWriteOutput, CallError> {
        let versionstamp = bytes::Bytes::copy_from_slice(versionstamp);
        Ok(pb::AtomicWriteOutput { status: status.into(), versionstamp, ..Default::default() })
    }

    #[test]
    fn answers_map_to_outcomes_of_writes() {
        use pb::AtomicWriteStatus::{AwCheckFailure, AwSuccess, AwWriteDisabled};
        let is_odd = |result| outcome(&result).1.is_some();
        assert!(matches!(outcome(&answered(AwSuccess, &[0; 10])).0, TxnOutcome::Committed { .. }));
        assert!(matches!(
            outcome(&answered(AwCheckFailure, &[])).0,
            TxnOutcome::CheckFailed { .. }
        ));
        assert!(matches!(outcome(&refused(503)).0, TxnOutcome::NotCommitted { .. }));
        assert!(matches!(outcome(&Err(CallError::NotSent)).0, TxnOutcome::NotCommitted { .. }));
        assert_eq!(outcome(&Err(CallError::NoAnswer(String::new()))).0, TxnOutcome::Unknown);
        assert!(!is_odd(refused(503)) && is_odd(refused(500)) && is_odd(refused(400)));
        // No fault of the cluster leads to such answers.
        assert!(is_odd(answered(AwSuccess, &[0; 9])) && is_odd(answered(AwWriteDisabled, &[])));
    }

    #[tokio::test]
    async fn request_at_a_lost_gateway_gets_no_answer() {
        let gateway = Gateway::new("g", "http://127.0.0.1:1".to_owned());
        let never = until_lost(&gateway, std::future::pending::<Result<(), CallError>>());
        gateway.lose();
        assert!(matches!(never.await, Err(CallError::NoAnswer(_))));
        gateway.put_up();
        gateway.drain();
        assert!(!gateway.is_up() && !gateway.is_lost());
        assert!(until_lost(&gateway, async { Ok(()) }).await.is_ok());
    }
}
