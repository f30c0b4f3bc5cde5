//! Duties of a node, on the directory of one voter and on a disk that fills.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

use futures::FutureExt;
use meridian_config::DevLayout;
use meridian_consensus::{LogCache, Peers, RaftGroup, RaftGroupOptions, RaftTiming, StateTransfer};
use meridian_directory::{Change, Token, TokenScope};
use meridian_failover::{ControllerConfig, ExecuteFailure, Lease};
use meridian_gateway::Access;
use meridian_memory::ByteBudget;
use meridian_proto::encode_batch;
use meridian_storage::{
    Engine, GroupId, HighWater, MemoryEngine, RaftApplied, ShardState, ShippedLog, StorageError,
    Syncer, decode_batch,
};
use meridian_types::{Batch, Epoch, EpochHistory, Permissions, Position, ShardId};
use parking_lot::Mutex;

use super::*;
use crate::background::disk_watch::FLUSHED_ON_A_LOW_DISK_BYTES;
use crate::background::purge::{DIRECTORY_KEEP_BATCHES, PURGE_AT_LEAST};
use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::cluster_view::view::Directory;
use crate::directory_group::leader::{DirectoryVoter, LeaderParts};
use crate::host::clocks::Clocks;
use crate::network::peers::PeerChannels;
use crate::replication::progress::{Followers, KEEP_BATCHES};
use crate::replication::snapshot_transfer::StateExchange;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;
use crate::time_budget::LEASE_LOW;

use crate::read::execution::Reads;
use crate::shard::replica::{Replica, ReplicaParts};
use crate::shard::voter::VoterParts;
use crate::write::division::WriteBytes;
use crate::write::proposer::AdmitAll;

/// The parts of the duties of a node that has no shards yet.
fn maintenance(folder: &std::path::Path) -> DutyParts {
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
    let peers = Arc::new(PeerChannels::new(&cluster, Arc::new(|_| None)).unwrap());
    let shards = Arc::new(ShardTable::default());
    let exchange = Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&peers)));
    DutyParts {
        node_id: NodeId(1),
        data_dir: folder.into(),
        engine: Arc::new(MemoryEngine::default()),
        shards,
        directory,
        peers,
        high_water: Arc::new(HighWater::open(folder.join("high-water")).unwrap()),
        exchange,
        directory_voter: Arc::default(),
        stop: CancellationToken::new(),
        disk: Arc::default(),
        clocks: Clocks::default(),
        log_retention_bytes: 1 << 30,
        change_retention_bytes: 0,
    }
}

/// A directory of one voter, and what looks after it.
async fn directory(
    engine: &Arc<MemoryEngine>,
    folder: &std::path::Path,
) -> (DutyParts, Arc<DirectoryVoter>) {
    let maintenance = maintenance(folder);
    let (shards, peers) = (&maintenance.shards, &maintenance.peers);
    let dynamic: Arc<dyn Engine> = engine.clone();
    let state = Arc::new(ShardState::open(Arc::clone(&dynamic), DIRECTORY_GROUP.shard).unwrap());
    shards.add(Arc::clone(&state), Followers::watch(&state));
    let voters = BTreeSet::from([NodeId(1)]);
    RaftGroup::form(&state, DIRECTORY_GROUP, &voters, Position::ZERO, None).unwrap();
    let group = RaftGroup::open(RaftGroupOptions {
        node_id: NodeId(1),
        group: DIRECTORY_GROUP,
        state,
        syncer: Arc::new(Syncer::start(Arc::clone(&dynamic)).unwrap()),
        high_water: None,
        peers: Arc::clone(peers) as Arc<dyn Peers>,
        transfer: maintenance.exchange.clone(),
        log_cache: LogCache::default(),
        timing: RaftTiming {
            heartbeat_ms: 20,
            election_timeout_min_ms: 60,
            election_timeout_max_ms: 90,
        },
    });
    let group = group.await.unwrap();
    group.take_part(&voters, &(Arc::clone(peers) as Arc<dyn Peers>), false).await.unwrap();
    let voter = Arc::new(Voter::start(VoterParts {
        group,
        history: EpochHistory::first(),
        shipped: ShippedLog::open(&dynamic, DIRECTORY_GROUP.shard).unwrap(),
        directory: Arc::clone(&maintenance.directory),
        peers: Arc::clone(peers),
        policy: Arc::new(AdmitAll),
        writes: WriteBytes::new("changes of the directory", 8 << 20),
        time: Arc::new(Clocks::default()),
        reads: Reads::new(ByteBudget::new("reads", 8 << 20)),
        founder: true,
    }));
    let parts = LeaderParts {
        voter,
        directory: Arc::clone(&maintenance.directory),
        peers: Arc::clone(peers),
        first: maintenance.directory.known().cluster.clone(),
        config: ControllerConfig::default(),
    };
    let leader = DirectoryVoter::start(parts, &maintenance.stop);
    *maintenance.directory_voter.write() = Some(Arc::clone(&leader));
    (maintenance, leader)
}

#[tokio::test]
async fn ids_are_forgotten_ten_minutes_after_they_were_applied_here_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let engine = Arc::new(MemoryEngine::default());
    let (maintenance, leader) = directory(&engine, folder.path()).await;
    let state = Arc::clone(&leader.voter.state);
    let ids = || {
        let family = meridian_storage::schema::state_family(DIRECTORY_GROUP.shard, 0);
        engine
            .compact_range(&family, &[], &[0xff; 20], &mut |_| std::ops::ControlFlow::Continue(()))
            .unwrap();
        let rows = state.snapshot().unwrap().rows(&[], usize::MAX).unwrap().rows;
        rows.iter().filter(|(key, _)| key.starts_with(b"mr")).count()
    };
    until("the first change", async || if ids() > 0 { Ok(()) } else { Err(ids()) }).await;
    let (start, early) = (Instant::now(), ids());
    let request_ids = RequestIds::new(&maintenance);
    request_ids.forget(start);
    let minutes = |minutes: u64| start + Duration::from_secs(minutes * 60);
    execute(&leader, &Change::AddRegion { name: "region-9".to_owned() }).await;
    let all = ids();
    assert!(all > early);
    request_ids.forget(minutes(5));
    assert_eq!(ids(), all, "too early");
    request_ids.forget(minutes(10) - Duration::from_millis(1));
    assert_eq!(ids(), all, "too early");
    request_ids.forget(minutes(10));
    assert_eq!(ids(), all - early);
    request_ids.forget(minutes(15));
    assert_eq!(ids(), 0);
}

async fn execute(leader: &DirectoryVoter, change: &Change) {
    // While it is not known yet that it leads.
    while leader.execute(change.clone(), "a test".to_owned()).await
        == Err(ExecuteFailure::NotLeader)
    {
        tokio::task::yield_now().await;
    }
}

async fn add_and_remove_regions(leader: &DirectoryVoter, numbers: std::ops::Range<u64>) {
    for number in numbers {
        execute(leader, &Change::AddRegion { name: format!("r{number}") }).await;
        execute(leader, &Change::RemoveRegion { name: format!("r{number}") }).await;
    }
}

async fn until<E: std::fmt::Debug>(what: &str, mut check: impl AsyncFnMut() -> Result<(), E>) {
    let started = Instant::now();
    while let Err(last) = check().await {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}; it was {last:?}"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_leader_is_to_hand_over_while_its_lease_is_low_and_not_else() {
    let folder = tempfile::tempdir().unwrap();
    let (maintenance, leader) = directory(&Arc::new(MemoryEngine::default()), folder.path()).await;
    let (shard, voter) = (DIRECTORY_GROUP.shard, Arc::clone(&leader.voter));
    maintenance.shards.set(shard, Some(LocalShard::Voter(Arc::clone(&voter))));
    until("it leads", async || voter.group.leadership().map(drop)).await;
    let (shards, directory) = (&maintenance.shards, &maintenance.directory);
    let leadership = Leadership::new(NodeId(1), Arc::clone(shards), Arc::clone(directory));
    let is_told = || {
        leadership.look_at_leases();
        leadership.lease_is_low().now_or_never().is_some()
    };
    assert!(is_told(), "it was granted none");
    let shards = vec![(shard, voter.group.id().epoch)];
    let grant = |ttl| {
        maintenance
            .directory
            .renewed(maintenance.directory.now(), &Lease { ttl, shards: shards.clone() })
    };
    grant(LEASE_LOW / 2);
    assert!(is_told());
    grant(LEASE_LOW * 100);
    assert!(!is_told());
}

#[tokio::test]
async fn the_record_of_changes_keeps_the_latest_thousand() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Arc::new(MemoryEngine::default()));
    let (_maintenance, leader) = directory(&engine, folder.path()).await;
    for id in 1..=1000u64 {
        let (label, sha256) = ("ci".to_owned(), format!("{id:064x}"));
        let token = Token::new(label, sha256, TokenScope::All, Permissions::ALL);
        execute(&leader, &Change::CreateToken { token }).await;
        execute(&leader, &Change::RevokeToken { id }).await;
    }
    let changes = leader.changes(5000);
    assert_eq!(changes.len(), 1000, "the record keeps the latest thousand");
    assert_eq!(changes[0].version, changes[999].version + 999);
}

#[tokio::test]
async fn the_log_is_not_purged_behind_a_snapshot_that_is_being_copied() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Arc::new(MemoryEngine::default()));
    let (maintenance, leader) = directory(&engine, folder.path()).await;
    let purge = async || {
        Purge::new(&maintenance).purge().await;
        leader.voter.group.first_sequence().unwrap().unwrap()
    };
    let regions = async |from: u64, to: u64| add_and_remove_regions(&leader, from..to).await;
    regions(0, 50).await;
    let snapshot = Arc::new(leader.voter.state.snapshot().unwrap());
    let copied = snapshot.applied().position.sequence;
    let id = maintenance.exchange.offer(DIRECTORY_GROUP, snapshot);
    regions(50, 300).await;
    purge().await;
    // Raft has come to it by now.
    regions(300, 320).await;
    assert!(purge().await <= copied + 1, "a copy could not go on");
    assert!(!id.is_empty());
    maintenance.exchange.forget_offers();
    until("no copy is under way", async || {
        let first = purge().await;
        if first > copied + 1 { Ok(()) } else { Err(first) }
    })
    .await;
}

/// Whatever the disk got to by itself, the log goes on from what it has of the state.
#[tokio::test]
async fn no_crash_after_a_groups_purge_loses_what_was_acknowledged() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Arc::new(MemoryEngine::default()));
    let (maintenance, leader) = directory(&engine, folder.path()).await;
    add_and_remove_regions(&leader, 0..150).await;
    until("the log is purged", async || {
        Purge::new(&maintenance).purge().await;
        let first = leader.voter.group.first_sequence().unwrap().unwrap();
        if first > DIRECTORY_KEEP_BATCHES { Ok(()) } else { Err(first) }
    })
    .await;
    // More comes, and is not flushed.
    add_and_remove_regions(&leader, 150..160).await;
    let acknowledged = leader.voter.state.position();
    for seed in 0..40 {
        let (folder, after) = (tempfile::tempdir().unwrap(), Arc::new(engine.crash(seed)));
        let (maintenance, leader) = directory(&after, folder.path()).await;
        until("the acknowledged batches are there", async || {
            let position = leader.voter.state.position();
            if position >= acknowledged { Ok(()) } else { Err((seed, position, acknowledged)) }
        })
        .await;
        maintenance.stop.cancel();
        leader.voter.group.shutdown().await;
    }
}

#[tokio::test]
async fn no_crash_after_a_replicas_purge_loses_what_was_acknowledged() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Arc::new(MemoryEngine::default()));
    let (dynamic, shard): (Arc<dyn Engine>, _) = (engine.clone(), ShardId(1));
    let state = Arc::new(ShardState::open(Arc::clone(&dynamic), shard).unwrap());
    let log = ShippedLog::open(&dynamic, shard).unwrap();
    let followers = Followers::watch(&state);
    let batches = KEEP_BATCHES + PURGE_AT_LEAST + 100;
    // As its thread does: durable, applied, and then reported.
    for sequence in 1..=batches {
        let batch = Batch {
            position: Position::new(Epoch(1), sequence),
            time_ms: 1,
            transactions: Vec::new(),
        };
        let stored = encode_batch(&batch);
        log.append([(sequence, stored.as_ref())]).unwrap();
        state.apply(&[decode_batch(stored).unwrap()], RaftApplied::default()).unwrap();
    }
    engine.sync().unwrap();
    let mut maintenance = maintenance(folder.path());
    let replica = Replica::start(ReplicaParts {
        node_id: NodeId(4),
        history: EpochHistory::first(),
        sealed: None,
        state: Arc::clone(&state),
        log: log.clone(),
        syncer: Arc::new(Syncer::start(Arc::clone(&dynamic)).unwrap()),
        directory: Arc::clone(&maintenance.directory),
        peers: Arc::clone(&maintenance.peers),
        transfer: maintenance.exchange.clone(),
        data_dir: folder.path().into(),
        disk: Arc::clone(&maintenance.disk),
        reads: Reads::new(ByteBudget::new("reads", 8 << 20)),
        streams: ByteBudget::new("streams", 1 << 20),
    });
    maintenance.shards.add(Arc::clone(&state), followers);
    maintenance.shards.set(shard, Some(LocalShard::Replica(Arc::new(replica.unwrap()))));
    let first = || log.first().unwrap().unwrap().sequence;
    maintenance.change_retention_bytes = 1 << 20;
    Purge::new(&maintenance).purge().await;
    assert_eq!(first(), 1, "change feeds that come back want all of it");
    maintenance.change_retention_bytes = 0;
    Purge::new(&maintenance).purge().await;
    assert_eq!(first(), batches - KEEP_BATCHES + 1, "the log is purged");
    for seed in 0..100 {
        let after: Arc<dyn Engine> = Arc::new(engine.crash(seed));
        let state = ShardState::open(Arc::clone(&after), shard).unwrap();
        ShippedLog::open(&after, shard).unwrap().replay(&state).unwrap();
        assert_eq!(state.position().sequence, batches, "seed {seed}");
    }
}

/// Memtables with more in them than the disk has room for, one more at each look, whose flush takes
/// as long as a test.
#[derive(Default)]
struct Flushing {
    unflushed: std::sync::atomic::AtomicU64,
    begun: std::sync::atomic::AtomicU64,
    goes_on: Mutex<Option<std::sync::mpsc::Receiver<()>>>,
}

impl meridian_storage::Hooks for Flushing {
    fn before(&self, _: &dyn Engine, call: meridian_storage::Call<'_>) -> Result<(), StorageError> {
        if let meridian_storage::Call::Flush(_) = call {
            self.begun.fetch_add(1, Ordering::SeqCst);
            // Where there is one, until the other end is dropped.
            let goes_on = self.goes_on.lock().take();
            let _ended = goes_on.map(|goes_on| goes_on.recv());
        }
        Ok(())
    }

    fn memtable_bytes(&self, _: &dyn Engine) -> u64 {
        self.unflushed.load(Ordering::SeqCst)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_is_looked_at_while_memtables_are_flushed_for_want_of_room() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(MemoryEngine::default());
    memory.create_family("a family").unwrap();
    let engine = Arc::new(meridian_storage::HookedEngine::new(memory, Flushing::default()));
    let maintenance = DutyParts { engine: engine.clone(), ..maintenance(folder.path()) };
    let (stop, disk) = (maintenance.stop.clone(), Arc::clone(&maintenance.disk));
    // The free space moves while other processes write.
    let leave = |bytes| {
        let free = crate::host::disk::free_bytes(folder.path()).unwrap();
        engine.unflushed.store(free - bytes, Ordering::SeqCst);
    };
    let (blocked, goes_on) = std::sync::mpsc::channel();
    *engine.goes_on.lock() = Some(goes_on);
    let tasks = start(&maintenance);
    drop(maintenance);
    until("a flush has begun", async || {
        leave(128 << 20);
        match engine.begun.load(Ordering::SeqCst) {
            0 => Err(format!("{:?}", disk.room())),
            _ => Ok(()),
        }
    })
    .await;
    engine.unflushed.store(u64::MAX, Ordering::SeqCst);
    until(
        "nothing is taken",
        async || if disk.takes_nothing() { Ok(()) } else { Err(disk.room()) },
    )
    .await;
    drop(blocked);
    stop.cancel();
    for task in tasks {
        task.await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn memtables_are_flushed_on_a_low_disk_and_not_where_they_may_find_no_room() {
    let folder = tempfile::tempdir().unwrap();
    let memory = Arc::new(MemoryEngine::default());
    memory.create_family("a family").unwrap();
    let engine = Arc::new(meridian_storage::HookedEngine::new(memory, Flushing::default()));
    let maintenance = DutyParts { engine: engine.clone(), ..maintenance(folder.path()) };
    let watch = Arc::new(DiskWatch::new(&maintenance));
    for (left, begun) in [(u64::MAX, 0), (128 << 20, 1), (0, 1)] {
        let free = crate::host::disk::free_bytes(folder.path()).unwrap();
        let unflushed = free.saturating_sub(left).max(FLUSHED_ON_A_LOW_DISK_BYTES + 1);
        engine.unflushed.store(unflushed, Ordering::SeqCst);
        Arc::clone(&watch).look().await;
        Arc::clone(&watch).flush_when_low().await;
        assert_eq!(
            engine.begun.load(Ordering::SeqCst),
            begun,
            "{unflushed} bytes: {:?}",
            maintenance.disk.room()
        );
    }
}

/// It may be fetched further, but not onto this disk.
#[tokio::test]
async fn what_has_come_of_a_state_goes_when_the_disk_is_full() {
    let (folder, engine) = (tempfile::tempdir().unwrap(), Arc::new(MemoryEngine::default()));
    let maintenance = maintenance(folder.path());
    let marks = Arc::new(Marks::new(&maintenance));
    let state = Arc::new(ShardState::open(engine.clone(), ShardId(1)).unwrap());
    let families = engine.families();
    let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
    maintenance.exchange.keep_begun(group, state.stage().unwrap());
    assert!(engine.families().len() > families.len());
    Arc::clone(&marks).persist().await;
    assert!(maintenance.exchange.is_fetching(group.shard), "the fetch goes on");
    maintenance.disk.set_takes_nothing(true);
    Arc::clone(&marks).persist().await;
    assert!(!maintenance.exchange.is_fetching(group.shard));
    assert_eq!(engine.families(), families);
}
