//! A leader of a group of one: exactly-once, admission, and the end under a seal.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use bytes::Bytes;
use meridian_config::DevLayout;
use meridian_consensus::testing::{NoPeers, NoStates};
use meridian_consensus::{LogCache, Peers, RaftGroupOptions, RaftTiming};
use meridian_failover::Lease;
use meridian_gateway::{Access, new_request_id};
use meridian_storage::{GroupId, MemoryEngine, Syncer};
use meridian_types::{
    Check, Epoch, Mutation, MutationKind, Position, ReadRange, ShardId, SumBounds, Transaction,
    Value, ValueEncoding, Versionstamp,
};

use super::*;
use crate::cluster_view::view::Directory;
use crate::host::clock::wall_ms;
use crate::host::clocks::Reading;
use crate::write::division::WriteBytes;

mod dropped;

const DATABASE: DatabaseId = meridian_config::DEV_DEFAULT_DATABASE;

/// Says what the test says of replication, and of the disk.
struct Pressed {
    lag_ms: Arc<AtomicU64>,
    disk_is_low: Arc<AtomicBool>,
    is_full: Arc<AtomicBool>,
    proposed: Arc<AtomicU64>,
    evaluations: Arc<AtomicU64>,
}

impl AdmissionPolicy for Pressed {
    fn reject(&self, _: DatabaseId) -> Option<String> {
        self.is_full.load(Ordering::Relaxed).then(|| "the quota is used up".to_owned())
    }
    fn proposed(&self, sequence: u64) {
        self.proposed.store(sequence, Ordering::Relaxed);
    }

    fn refusal(&self, only_deletes: bool) -> Option<WriteRefusal> {
        (self.disk_is_low.load(Ordering::Relaxed) && !only_deletes)
            .then_some(WriteRefusal::LeaderDiskLow { min_free_bytes: 1 << 20 })
    }

    fn replication_lag_ms(&self) -> Option<u64> {
        self.evaluations.fetch_add(1, Ordering::Relaxed);
        Some(self.lag_ms.load(Ordering::Relaxed))
    }
}

struct Leader {
    proposer: Proposer,
    parts: ProposerParts,
    state: Arc<ShardState>,
    group: RaftGroup,
    directory: Arc<Directory>,
    lag_ms: Arc<AtomicU64>,
    disk_is_low: Arc<AtomicBool>,
    /// The database's quota is used up.
    is_full: Arc<AtomicBool>,
    /// The newest batch that was made.
    proposed: Arc<AtomicU64>,
    /// How often requests were evaluated, all that waited together counted once.
    evaluations: Arc<AtomicU64>,
    writes: WriteBytes,
    time: Arc<TestTime>,
}

/// Time as it passes, and more of it, by clocks that a test sets.
#[derive(Default)]
struct TestTime {
    skipped_ms: AtomicU64,
    /// How far wall clocks are ahead.
    ahead_ms: AtomicI64,
    /// No clock of another node is heard.
    alone: bool,
}

impl TimeSource for TestTime {
    fn now(&self) -> Duration {
        crate::host::clock::boot_time()
            + Duration::from_millis(self.skipped_ms.load(Ordering::Relaxed))
    }

    fn reading(&self) -> Reading {
        let ms = wall_ms() + self.skipped_ms.load(Ordering::Relaxed);
        let ms = ms.checked_add_signed(self.ahead_ms.load(Ordering::Relaxed)).unwrap();
        Reading { median_ms: ms, own_ms: ms, others: if self.alone { 0 } else { 2 } }
    }
}

impl Leader {
    async fn start(engine: Arc<MemoryEngine>) -> Self {
        Self::start_at(engine, TestTime::default()).await
    }

    async fn start_at(engine: Arc<MemoryEngine>, time: TestTime) -> Self {
        let syncer = Arc::new(Syncer::start(engine.clone()).unwrap());
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let state = Arc::new(ShardState::open(engine, group.shard).unwrap());
        let voters = BTreeSet::from([NodeId(1)]);
        if state.applied().raft.epoch.is_none() {
            RaftGroup::form(&state, group, &voters, Position::ZERO, None).unwrap();
        }
        let timing = RaftTiming {
            heartbeat_ms: 20,
            election_timeout_min_ms: 60,
            election_timeout_max_ms: 90,
        };
        let group = RaftGroup::open(RaftGroupOptions {
            node_id: NodeId(1),
            group,
            state: Arc::clone(&state),
            syncer,
            high_water: None,
            peers: Arc::new(NoPeers),
            transfer: Arc::new(NoStates),
            timing,
            log_cache: LogCache::default(),
        });
        let group = group.await.unwrap();
        let peers: Arc<dyn Peers> = Arc::new(NoPeers);
        group.take_part(&voters, &peers, false).await.unwrap();
        let cluster =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
        let lease = Lease { ttl: Duration::from_secs(3600), shards: vec![(ShardId(1), Epoch(1))] };
        directory.renewed(directory.now(), &lease);
        let lag_ms = Arc::new(AtomicU64::new(0));
        let disk_is_low = Arc::new(AtomicBool::new(false));
        let is_full = Arc::new(AtomicBool::new(false));
        let (proposed, evaluations) = (Arc::default(), Arc::default());
        let writes = WriteBytes::new("writes that wait", 8 << 20);
        let time = Arc::new(time);
        let parts = ProposerParts {
            group: group.clone(),
            state: Arc::clone(&state),
            directory: Arc::clone(&directory),
            gate: Arc::new(ReadGate::start(group.clone())),
            policy: Arc::new(Pressed {
                lag_ms: Arc::clone(&lag_ms),
                disk_is_low: Arc::clone(&disk_is_low),
                is_full: Arc::clone(&is_full),
                proposed: Arc::clone(&proposed),
                evaluations: Arc::clone(&evaluations),
            }),
            writes: writes.clone(),
            time: Arc::clone(&time) as Arc<dyn TimeSource>,
        };
        let proposer = Proposer::start(parts.clone());
        group.leadership_changed(None).await;
        Self {
            proposer,
            parts,
            state,
            group,
            directory,
            lag_ms,
            disk_is_low,
            is_full,
            proposed,
            evaluations,
            writes,
            time,
        }
    }

    /// Asks again while the proposer has not yet heard that it leads.
    async fn write(
        &self,
        request_id: RequestId,
        retry: bool,
        transaction: Transaction,
    ) -> WriteReply {
        self.write_to(DATABASE, request_id, retry, transaction).await
    }

    async fn write_to(
        &self,
        database: DatabaseId,
        request_id: RequestId,
        retry: bool,
        transaction: Transaction,
    ) -> WriteReply {
        loop {
            let transaction = transaction.clone();
            let request = WriteRequest { database, request_id, transaction, retry };
            let reserved = match self.proposer.reserve(&request) {
                // However long it takes here.
                Ok(reserved) => {
                    Reserved { until: Instant::now() + Duration::from_secs(60), ..reserved }
                }
                Err(refusal) => return refusal,
            };
            match self.proposer.write(request, reserved).await {
                WriteReply::NotLeader(_) => tokio::task::yield_now().await,
                reply => return reply,
            }
        }
    }

    async fn commit(&self, transaction: Transaction) -> Versionstamp {
        let reply = self.write(new_request_id(), false, transaction).await;
        match reply.outcome() {
            Some(WriteOutcome::Committed(stamp)) => *stamp,
            _ => panic!("not committed: {reply:?}"),
        }
    }

    /// Waits until no row of an expiry is left, and with them no value that has expired.
    async fn swept(&self) {
        let mut applied = self.group.applied();
        while !self.state.expired(u64::MAX - 1, 1).unwrap().is_empty() {
            applied.changed().await.unwrap();
        }
    }

    /// A request that waits to be evaluated, and where its answer comes.
    fn queued(&self, transaction: Transaction) -> (Queued, oneshot::Receiver<WriteReply>) {
        self.queued_for(DATABASE, transaction)
    }

    fn queued_for(
        &self,
        database: DatabaseId,
        transaction: Transaction,
    ) -> (Queued, oneshot::Receiver<WriteReply>) {
        let request =
            WriteRequest { database, request_id: new_request_id(), transaction, retry: false };
        let Reserved { held, .. } = self.proposer.reserve(&request).unwrap();
        // However long it takes here.
        let until = Instant::now() + Duration::from_secs(60);
        let (reply, answer) = oneshot::channel();
        (
            Queued {
                request,
                since: Instant::now(),
                until,
                departure: Arc::default(),
                reply,
                held,
                _place: self.proposer.places.take(database, 1).unwrap(),
            },
            answer,
        )
    }

    /// Ends the proposer's own task: sessions are made by the test. The term in which this node
    /// leads.
    async fn leave_to_the_test(&self) -> u64 {
        self.proposer.seal();
        self.proposer.drained().await
    }

    fn skip(&self, ms: u64) {
        self.time.skipped_ms.fetch_add(ms, Ordering::Relaxed);
    }

    fn set_clocks_ahead(&self, ms: i64) {
        self.time.ahead_ms.store(ms, Ordering::Relaxed);
    }

    fn value(&self, key: &'static str) -> Option<Bytes> {
        let range = ReadRange {
            start: key.into(),
            end: [key.as_bytes(), &[0]].concat().into(),
            limit: 1,
            reverse: false,
        };
        let view = self.state.read(DATABASE, &[range], 0).unwrap();
        view.ranges[0].first().map(|entry| entry.value.data.clone())
    }
}

fn mutation(key: &'static str, kind: MutationKind) -> Transaction {
    let mutations = vec![Mutation { key: key.into(), kind, expire_at_ms: 0 }];
    Transaction { mutations, ..Transaction::default() }
}

fn set(key: &'static str, text: &'static str) -> Transaction {
    mutation(key, MutationKind::Set(Value { encoding: ValueEncoding::Bytes, data: text.into() }))
}

fn expiring(key: &'static str, in_ms: u64) -> Transaction {
    let mut transaction = set(key, "expiring");
    transaction.mutations[0].expire_at_ms = wall_ms() + in_ms;
    transaction
}

fn add(key: &'static str, amount: u64) -> Transaction {
    let operand =
        Value { encoding: ValueEncoding::Le64, data: amount.to_le_bytes().to_vec().into() };
    mutation(key, MutationKind::Sum { operand, bounds: SumBounds::default() })
}

fn only_if_absent(key: &'static str, then: Transaction) -> Transaction {
    Transaction { checks: vec![Check { key: key.into(), versionstamp: None }], ..then }
}

#[tokio::test]
async fn a_request_sent_twice_is_applied_once_and_answered_alike() {
    let leader = Leader::start(Arc::default()).await;
    let id = new_request_id();
    let (first, twin) =
        tokio::join!(leader.write(id, false, add("n", 1)), leader.write(id, true, add("n", 1)));
    let later = leader.write(id, true, add("n", 1)).await;
    assert_eq!(first, later);
    // The twin of the same round is answered with its batch, one of a later round waits for it.
    assert_eq!(twin, first);
    assert_eq!(leader.value("n").unwrap(), 1u64.to_le_bytes().as_slice());
}

#[tokio::test]
async fn exactly_once_holds_over_a_crash_that_loses_unflushed_state() {
    for seed in 0..6 {
        let engine = Arc::new(MemoryEngine::default());
        let leader = Leader::start(Arc::clone(&engine)).await;
        let id = new_request_id();
        let first = leader.write(id, false, add("n", 1)).await;
        // The power goes, while it runs: nothing is synced that no answer waited for.
        let crashed = match seed {
            0 => engine.crash_to_what_is_durable(),
            seed => engine.crash(seed),
        };
        leader.group.shutdown().await;
        let leader = Leader::start(Arc::new(crashed)).await;
        // Else a batch that was lost would be made again, alike.
        leader.commit(set("other", "since")).await;
        assert_eq!(leader.write(id, true, add("n", 1)).await, first);
        assert_eq!(leader.value("n").unwrap(), 1u64.to_le_bytes().as_slice());
    }
}

#[tokio::test]
async fn a_first_try_that_arrives_after_its_retry_failed_does_nothing() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("k", "taken")).await;
    let id = new_request_id();
    let failed = WriteReply::Done(Fenced::for_test(WriteOutcome::CheckFailed(vec![0])));
    assert_eq!(leader.write(id, true, only_if_absent("k", set("k", "late"))).await, failed);
    leader.commit(mutation("k", MutationKind::Delete)).await;
    // Now the check would hold; but its client was told that it had failed.
    assert_eq!(leader.write(id, false, only_if_absent("k", set("k", "late"))).await, failed);
    assert_eq!(leader.value("k"), None);
}

#[tokio::test]
async fn a_failing_transaction_changes_nothing_and_costs_no_versionstamp() {
    let leader = Leader::start(Arc::default()).await;
    let before = leader.commit(set("text", "no number")).await;
    let mut bad = set("other", "undone");
    bad.mutations.extend(add("text", 1).mutations);
    let rejected = leader.write(new_request_id(), false, bad).await;
    assert!(
        matches!(rejected.outcome(), Some(WriteOutcome::Rejected(text)) if text.contains("'sum'")),
        "{rejected:?}"
    );
    let failed =
        leader.write(new_request_id(), false, only_if_absent("text", set("text", "x"))).await;
    assert_eq!(failed, WriteReply::Done(Fenced::for_test(WriteOutcome::CheckFailed(vec![0]))));
    let after = leader.commit(Transaction::default()).await;
    assert_eq!(
        after.position(),
        before.position().next(),
        "an empty write has a versionstamp of its own"
    );
    assert_eq!(leader.value("other"), None);
}

#[tokio::test]
async fn many_at_once_each_get_a_version_of_their_own_and_sums_add_up() {
    let leader = Arc::new(Leader::start(Arc::default()).await);
    let writes = (0..500).map(|_| {
        let leader = Arc::clone(&leader);
        tokio::spawn(async move { leader.commit(add("n", 2)).await })
    });
    let mut stamps = BTreeSet::new();
    for write in futures::future::join_all(writes).await {
        assert!(stamps.insert(write.unwrap()));
    }
    assert_eq!(leader.value("n").unwrap(), 1000u64.to_le_bytes().as_slice());
}

#[tokio::test]
async fn writes_are_refused_while_more_would_be_lost_than_may_be() {
    let leader = Leader::start(Arc::default()).await;
    let before = leader.commit(set("k", "1")).await;
    // Between the bounds it is slow, and done.
    leader.lag_ms.store(700, Ordering::Relaxed);
    leader.commit(set("k", "2")).await;
    leader.lag_ms.store(1001, Ordering::Relaxed);
    let refused = leader.write(new_request_id(), false, set("k", "3")).await;
    assert!(
        matches!(
            &refused,
            WriteReply::NotCommitted(WriteRefusal::ReplicationLags { lag_ms: 1001, .. })
        ),
        "{refused:?}"
    );
    assert_eq!(leader.value("k").unwrap(), "2");
    // Writes are taken again once the lag is gone.
    leader.lag_ms.store(0, Ordering::Relaxed);
    assert!(leader.commit(set("k", "3")).await > before);
}

#[tokio::test]
async fn what_only_deletes_is_taken_while_the_disk_is_full() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("k", "1")).await;
    leader.disk_is_low.store(true, Ordering::Relaxed);
    let refused = leader.write(new_request_id(), false, set("k", "2")).await;
    assert!(
        matches!(&refused, WriteReply::NotCommitted(WriteRefusal::LeaderDiskLow { .. })),
        "{refused:?}"
    );
    let delete =
        Mutation { key: Bytes::from_static(b"k"), kind: MutationKind::Delete, expire_at_ms: 0 };
    let mut both = set("other", "1");
    both.mutations.push(delete.clone());
    let refused = leader.write(new_request_id(), false, both).await;
    assert!(matches!(&refused, WriteReply::NotCommitted(_)), "{refused:?}");
    leader.commit(Transaction { mutations: vec![delete], ..Transaction::default() }).await;
    assert_eq!(leader.value("k"), None);
}

#[tokio::test]
async fn a_sealed_leader_finishes_and_then_does_nothing_more() {
    let leader = Leader::start(Arc::default()).await;
    let id = new_request_id();
    let (last, ()) =
        tokio::join!(leader.write(id, false, add("n", 1)), async { leader.proposer.seal() });
    let drained = leader.proposer.drained().await;
    assert_eq!(drained, leader.group.leadership().unwrap().term);
    let position = leader.state.position();
    match last {
        WriteReply::Done(_) => {
            assert_eq!(leader.value("n").unwrap(), 1u64.to_le_bytes().as_slice())
        }
        WriteReply::NotCommitted(_) => assert_eq!(leader.value("n"), None),
        other => panic!("{other:?}"),
    }
    let refused = leader.write(new_request_id(), false, set("k", "late")).await;
    assert!(matches!(refused, WriteReply::NotCommitted(_)), "{refused:?}");
    assert_eq!(leader.state.position(), position);
}

/// The next epoch begins behind what this leader has logged.
#[tokio::test]
async fn a_sealed_leader_is_not_drained_before_what_it_has_in_flight_is_applied() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Arc::new(Leader::start(Arc::clone(&engine)).await);
    let before = leader.commit(set("k", "before")).await.position();
    engine.hold_syncs();
    let last = Arc::clone(&leader);
    let last =
        tokio::spawn(async move { last.write(new_request_id(), false, set("k", "last")).await });
    while leader.proposed.load(Ordering::Relaxed) <= before.sequence {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leader.proposer.seal();
    let mut drained = std::pin::pin!(leader.proposer.drained());
    // Time enough for it to see that it is sealed.
    for _ in 0..100 {
        assert!(futures::poll!(drained.as_mut()).is_pending());
        tokio::task::yield_now().await;
    }
    engine.release_syncs();
    assert_eq!(drained.await, leader.group.leadership().unwrap().term);
    assert_eq!(
        (leader.state.position(), leader.value("k").unwrap()),
        (before.next(), "last".into())
    );
    assert!(matches!(last.await.unwrap().outcome(), Some(WriteOutcome::Committed(_))));
}

#[tokio::test]
async fn nothing_is_written_or_told_under_an_epoch_that_was_sealed() {
    let leader = Leader::start(Arc::default()).await;
    let id = new_request_id();
    leader.write(id, false, set("k", "1")).await;
    let position = leader.state.position();
    leader.directory.seal(ShardId(1), Epoch(1));
    let refused = leader.write(new_request_id(), false, set("k", "2")).await;
    assert!(matches!(refused, WriteReply::NotCommitted(_)), "{refused:?}");
    // Known, but not this node's to tell.
    assert_eq!(leader.write(id, true, set("k", "1")).await, WriteReply::Unknown);
    assert_eq!(leader.state.position(), position);
}

mod batches;
mod bounds;
mod expiry;
mod queues;
mod quotas;
mod terms;
