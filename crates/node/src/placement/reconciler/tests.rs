use std::collections::HashMap;

use futures::FutureExt;
use meridian_config::DevLayout;
use meridian_consensus::{LogCache, RaftService, RaftTiming, StateTransfer};
use meridian_directory::{Change, Plan, VoterChange};
use meridian_gateway::Access;
use meridian_memory::ByteBudget;
use meridian_proto::directory::{
    DrainRequest, SealRequest, SealResponse, failover_server::Failover,
};
use meridian_proto::raft::{self, raft_server::Raft};
use meridian_storage::{
    Call, Durability, Engine, GroupLog, HighWater, HookedEngine, Hooks, MemoryEngine, RaftApplied,
    RecordKind, Syncer,
};
use meridian_types::{Batch, NodeId};
use parking_lot::Mutex;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use super::*;
use crate::cluster_view::epoch_lease::EpochLease;
use crate::cluster_view::store::load_cluster;
use crate::cluster_view::view::Directory;
use crate::host::clocks::Clocks;
use crate::network::peers::{Dial, PeerChannels};
use crate::read::execution::Reads;
use crate::replication::snapshot_transfer::StateExchange;
use crate::replication::wire::position_to_wire;
use crate::rpc::failover::{FailoverService, LogReads};
use crate::shard::table::ShardTable;
use crate::testing::until;
use crate::write::division::WriteBytes;
use crate::write::proposer::AdmissionPolicy;

mod failing_disk;
mod founding;
mod logs;
mod seals;

const SHARD: ShardId = ShardId(1);

fn batch(epoch: u16, sequence: u64) -> Batch {
    Batch {
        position: Position::new(Epoch(epoch), sequence),
        time_ms: sequence,
        transactions: Vec::new(),
    }
}

fn parts(
    node_id: NodeId,
    engine: Arc<impl Engine>,
    dial: Dial,
    folder: &std::path::Path,
) -> (PlacementParts, Arc<StateExchange>) {
    let engine: Arc<dyn Engine> = engine;
    let founded =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let peers = Arc::new(PeerChannels::new(&founded, dial).unwrap());
    let shards = Arc::new(ShardTable::default());
    let exchange = Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&peers)));
    let transfer: Arc<dyn StateTransfer> = Arc::clone(&exchange) as _;
    let parts = PlacementParts {
        node_id,
        data_dir: folder.into(),
        change_retention_bytes: 64 << 20,
        engine: Arc::clone(&engine),
        syncer: Arc::new(Syncer::start(Arc::clone(&engine)).unwrap()),
        high_water: Arc::new(HighWater::open(folder.join("high-water")).unwrap()),
        directory: Arc::new(Directory::new(founded.clone(), Access::default(), None)),
        peers,
        transfer: Arc::clone(&transfer),
        raft: RaftService::new(node_id, transfer, engine),
        shards,
        disk: Arc::default(),
        clocks: Clocks::default(),
        writes: WriteBytes::new("writes that wait", 1 << 20),
        reads: Reads::new(ByteBudget::new("reads", 1 << 20)),
        streams: ByteBudget::new("streams", 1 << 20),
        log_cache: LogCache::default(),
        timing: RaftTiming::default(),
        examined: Mutex::default(),
        stop: CancellationToken::new(),
    };
    (parts, exchange)
}

/// A process of a node whose neighbours do not answer.
struct Process {
    parts: Arc<PlacementParts>,
    reconciler: Reconciler,
    failover: FailoverService,
    _folder: tempfile::TempDir,
}

impl Process {
    /// Nodes 1 to 3 vote in the shard, the others are replicas. The cluster is as it was before
    /// anything was sealed.
    async fn start(node_id: u64, engine: Arc<impl Engine>) -> Self {
        let process = Self::open(node_id, engine);
        process.reconcile().await;
        process
    }

    /// It has no part in the shard yet.
    fn open(node_id: u64, engine: Arc<impl Engine>) -> Self {
        Self::dialling(node_id, engine, Arc::new(|_| None))
    }

    /// Nodes that have an address answer there.
    fn dialling(node_id: u64, engine: Arc<impl Engine>, dial: Dial) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (parts, exchange) = parts(NodeId(node_id), engine, dial, folder.path());
        let parts = Arc::new(parts);
        let reconciler = Reconciler::open(Arc::clone(&parts), SHARD).unwrap();
        let failover = FailoverService {
            log_reads: LogReads::default(),
            directory: Arc::clone(&parts.directory),
            shards: Arc::clone(&parts.shards),
            engine: Arc::clone(&parts.engine),
            syncer: Arc::clone(&parts.syncer),
            exchange,
        };
        Self { parts, reconciler, failover, _folder: folder }
    }

    /// The cluster changes so, and this process has heard of it.
    fn learn(&self, change: impl FnOnce(&mut Shard)) {
        let directory = &self.parts.directory;
        let mut cluster = directory.known().cluster.clone();
        cluster.version += 1;
        change(cluster.shards.get_mut(&SHARD).unwrap());
        directory.learn(cluster).unwrap();
    }

    /// The next epoch has begun behind `sequence` of the first.
    fn learn_next_epoch(&self, sequence: u64, phase: Phase) {
        self.learn(|shard| {
            (shard.epoch, shard.phase) = (Epoch(2), phase);
            shard.bases.push((Epoch(2), Position::new(Epoch(1), sequence)));
        });
    }

    /// It has taken these as a replica, and applied them.
    fn takes(&self, epoch: u16, sequences: std::ops::RangeInclusive<u64>) {
        for sequence in sequences.clone() {
            let stored = meridian_proto::encode_batch(&batch(epoch, sequence));
            self.reconciler.log.append([(sequence, stored.as_ref())]).unwrap();
        }
        self.applies(epoch, sequences);
    }

    /// It has them in its state, and in no log.
    fn applies(&self, epoch: u16, sequences: std::ops::RangeInclusive<u64>) {
        for sequence in sequences {
            self.reconciler
                .state
                .apply(&[batch(epoch, sequence).into()], RaftApplied::default())
                .unwrap();
        }
    }

    /// The ends of a replica's log, and the sequence up to which it was purged.
    fn shipped(&self) -> (Option<(u64, u64)>, Option<u64>) {
        let log = &self.reconciler.log;
        let ends = log.first().unwrap().zip(log.last().unwrap());
        (ends.map(|(first, last)| (first.sequence, last.sequence)), log.purged().unwrap())
    }

    /// Where it answers what others ask about the end of epochs.
    async fn serve(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server =
            tonic::transport::Server::builder().add_service(self.failover.clone().into_server());
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    async fn reconcile(&self) {
        let shard = self.parts.directory.shard(SHARD).unwrap();
        assert!(self.reconciler.reconcile(&shard).await.is_ok());
    }

    async fn seal(&self, planned: bool) -> SealResponse {
        let request = SealRequest { shard: SHARD.0, epoch: 1, planned };
        self.failover.seal(Request::new(request)).await.unwrap().into_inner()
    }

    /// Whether a leader that has not heard of a seal is answered, once the member knows that it is
    /// not a wiped one.
    async fn answers_appends(&self) -> bool {
        self.refuses_appends().await.is_none()
    }

    async fn refuses_appends(&self) -> Option<Code> {
        let target = raft::Group { shard: SHARD.0, epoch: 1, target: self.parts.node_id.0 };
        let vote = meridian_proto::log::Vote { term: 9, node_id: 2, committed: true };
        let leader_commit = Some(meridian_proto::log::LogId::default());
        let request = raft::AppendRequest {
            group: Some(target),
            vote: Some(vote),
            leader_commit,
            ..Default::default()
        };
        let started = std::time::Instant::now();
        loop {
            let refusal = self.parts.raft.append(Request::new(request.clone())).await.err()?;
            if !refusal.message().contains("may have forgotten") {
                assert!(matches!(refusal.code(), Code::NotFound | Code::Unavailable), "{refusal}");
                return Some(refusal.code());
            }
            assert!(started.elapsed() < Duration::from_secs(20), "{refusal}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn voter(&self) -> Arc<Voter> {
        let LocalShard::Voter(voter) = self.local() else { panic!("not a voter") };
        voter
    }

    fn local(&self) -> LocalShard {
        self.parts.shards.get(&SHARD).unwrap()
    }

    /// Whether the member gives no vote any more; a member without a vote yet looks alike otherwise.
    async fn is_sealed_voter(&self) -> bool {
        let refused = self.voter().group.transfer_leadership(NodeId(2)).await.err();
        refused.is_some_and(|why| why.to_string().contains("this member is sealed"))
    }

    fn holds_a_lease_that_it_is_granted(&self) -> bool {
        let directory = &self.parts.directory;
        let lease = meridian_failover::Lease {
            ttl: Duration::from_secs(3600),
            shards: vec![(SHARD, Epoch(1))],
        };
        directory.renewed(directory.now(), &lease);
        let group = GroupId { shard: SHARD, epoch: Epoch(1) };
        EpochLease::new(Arc::clone(directory), group).is_held()
    }

    async fn is_sealed_replica(&self) -> bool {
        Self::takes_nothing(&self.local()).await
    }

    /// Whether a replica takes nothing by itself: then it pulls from the source of an order, and this
    /// order names none.
    async fn takes_nothing(local: &LocalShard) -> bool {
        let LocalShard::Replica(replica) = local else { panic!("not a replica") };
        let pulled = replica.drain(NodeId(99), Position::new(Epoch(1), 5));
        match tokio::time::timeout(Duration::from_millis(500), pulled).await {
            Ok(answer) => {
                assert_eq!(answer.unwrap_err(), "node 99 is not known");
                true
            }
            Err(_) => false,
        }
    }
}

/// A folder that the directory does not know may be wiped, or its node's promises may be over.
#[tokio::test]
async fn a_voter_of_a_shard_that_has_started_votes_when_the_directory_has_granted_it_a_lease() {
    let engine = Arc::new(MemoryEngine::default());
    let founding = Process::start(1, Arc::clone(&engine)).await;
    until("a founder votes", async || founding.voter().group.votes()).await;
    let again = Process::start(1, Arc::new(engine.crash(1))).await;
    let started = std::time::Instant::now();
    // Longer than a vouched member waits for others.
    while started.elapsed() < Duration::from_millis(700) {
        assert!(!again.voter().group.votes(), "it votes, and its folder is not known");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let lease = meridian_failover::Lease {
        ttl: Duration::from_secs(3600),
        shards: vec![(SHARD, Epoch(1))],
    };
    again.parts.directory.renewed(again.parts.directory.now(), &lease);
    until("it votes", async || again.voter().group.votes()).await;
}

/// Announcements become the number that writes are refused by: the lag of the best node elsewhere.
#[tokio::test]
async fn the_lag_that_the_proposer_is_told_is_of_what_other_regions_say_that_they_have() {
    let process = Process::start(1, Arc::<MemoryEngine>::default()).await;
    let parts = &process.parts;
    let limits = ShardLimits {
        node_id: NodeId(1),
        shard: SHARD,
        directory: Arc::clone(&parts.directory),
        followers: parts.shards.followers(&SHARD).unwrap(),
        disk: Arc::default(),
        stored: Arc::default(),
    };
    let shipping = crate::rpc::replication::ShippingService {
        node_id: NodeId(1),
        directory: Arc::clone(&parts.directory),
        shards: Arc::clone(&parts.shards),
        exchange: Arc::new(StateExchange::new(Arc::clone(&parts.shards), Arc::clone(&parts.peers))),
        clocks: Clocks::default(),
        subscriptions: Arc::default(),
        streams: parts.streams.clone(),
    };
    let says = async |node: NodeId, position: Position| {
        let status =
            meridian_shipping::Status::of_primary_member(node, Epoch(1), position, Duration::ZERO);
        let statuses = vec![crate::replication::wire::status_to_wire(SHARD, &status)];
        let request = meridian_proto::shipping::AnnounceRequest {
            statuses,
            node_id: node.0,
            ..Default::default()
        };
        shipping.heard(request);
    };
    let at = |sequence| Position::new(Epoch(1), sequence);
    parts.shards.followers(&SHARD).unwrap().set_nodes((2..=7).map(NodeId));
    for node in (2..=7).map(NodeId) {
        says(node, Position::ZERO).await;
    }
    assert_eq!(limits.replication_lag_ms(), Some(0));
    let batch = meridian_types::Batch { position: at(1), time_ms: 1, transactions: Vec::new() };
    process
        .local()
        .state()
        .apply(&[batch.into()], meridian_storage::RaftApplied::default())
        .unwrap();
    // Voters of the primary region are lost with it.
    says(NodeId(2), at(1)).await;
    says(NodeId(3), at(1)).await;
    until("it lags", async || limits.replication_lag_ms() > Some(20)).await;
    says(NodeId(7), at(1)).await;
    assert_eq!(limits.replication_lag_ms(), Some(0));
    let batch = meridian_types::Batch { position: at(2), time_ms: 2, transactions: Vec::new() };
    process
        .local()
        .state()
        .apply(&[batch.into()], meridian_storage::RaftApplied::default())
        .unwrap();
    until("it lags again", async || limits.replication_lag_ms() > Some(20)).await;
}

/// No node founds a shard of its own configuration: another cluster may be there.
#[tokio::test]
async fn shards_are_kept_from_when_a_cluster_was_committed() {
    let folder = tempfile::tempdir().unwrap();
    let (parts, _) =
        parts(NodeId(1), Arc::<MemoryEngine>::default(), Arc::new(|_| None), folder.path());
    let parts = Arc::new(parts);
    parts.engine.create_family(meridian_storage::schema::META_FAMILY).unwrap();
    // It looks at what there is, and ends.
    parts.stop.cancel();
    reconcile_all(Arc::clone(&parts)).await;
    assert!(
        load_cluster(&parts.engine).unwrap().is_none() && parts.shards.followers(&SHARD).is_none()
    );
    let cluster =
        meridian_directory::Cluster { version: 1, ..parts.directory.known().cluster.clone() };
    parts.directory.learn(cluster.clone()).unwrap();
    reconcile_all(Arc::clone(&parts)).await;
    assert_eq!(
        load_cluster(&parts.engine).unwrap(),
        Some(cluster),
        "it begins with that after a restart"
    );
    let followers = parts.shards.followers(&SHARD).unwrap().lags();
    assert_eq!(
        followers.iter().map(|follower| follower.node).collect::<Vec<_>>(),
        [2, 3, 4, 5, 6, 7].map(NodeId)
    );
    until("it has its part", async || {
        matches!(parts.shards.get(&SHARD), Some(LocalShard::Voter(_)))
    })
    .await;
}

#[tokio::test]
async fn a_voter_stays_what_it_is_until_the_directory_says_otherwise() {
    let process = Process::start(1, Arc::<MemoryEngine>::default()).await;
    let first = process.voter();
    assert_eq!(process.parts.examined.lock().get(&SHARD), Some(&Epoch(1)));
    process.reconcile().await;
    process.learn(|shard| shard.phase = Phase::Active);
    process.reconcile().await;
    assert!(Arc::ptr_eq(&process.voter(), &first));
    // Another epoch: another group, even where its end is near already.
    let plan = Plan { to: None, planned: false, since_ms: 1, cause: "a test".to_owned() };
    process.learn_next_epoch(0, Phase::Sealing(plan));
    process.reconcile().await;
    assert_eq!(process.voter().group.id().epoch, Epoch(2));
    assert_eq!(process.parts.examined.lock().get(&SHARD), Some(&Epoch(2)));
}

#[tokio::test]
async fn a_voter_that_is_taken_out_leaves_when_the_group_goes_on_without_it() {
    let others: std::collections::BTreeSet<_> = [2, 3].map(NodeId).into();
    let process = Process::start(1, Arc::<MemoryEngine>::default()).await;
    let first = process.voter();
    until("it knows the members", async || first.group.voters() == [1, 2, 3].map(NodeId).into())
        .await;
    // The change is not known to be through, and its own log says that it votes.
    process.learn(|shard| {
        shard.phase = Phase::Active;
        let former = vec![std::mem::replace(&mut shard.voters, others.clone())];
        shard.changing = Some(VoterChange { former, version: 2 });
    });
    process.reconcile().await;
    assert!(Arc::ptr_eq(&process.voter(), &first), "it may be needed yet");
    // Nor while the epoch ends: then it is among the nodes that are asked.
    let plan = Plan { to: None, planned: true, since_ms: 1, cause: "a test".to_owned() };
    process.learn(|shard| (shard.changing, shard.phase) = (None, Phase::Sealing(plan)));
    process.reconcile().await;
    assert!(Arc::ptr_eq(&process.voter(), &first), "it is asked at the end of the epoch");
    process.learn(|shard| shard.phase = Phase::Active);
    process.reconcile().await;
    assert!(matches!(process.local(), LocalShard::Replica(_)));
    assert!(first.stop.is_cancelled());
}

#[tokio::test]
async fn a_replica_follows_from_epoch_to_epoch_until_it_is_to_vote() {
    let process = Process::start(4, Arc::<MemoryEngine>::default()).await;
    let replica = || match process.local() {
        LocalShard::Replica(replica) => replica,
        LocalShard::Voter(_) => panic!("it votes"),
    };
    let first = replica();
    process.learn_next_epoch(0, Phase::Active);
    process.reconcile().await;
    assert!(Arc::ptr_eq(&replica(), &first));
    until("it follows the next epoch", async || first.history().epoch() == Epoch(2)).await;
    assert_eq!(process.parts.examined.lock().get(&SHARD), Some(&Epoch(2)));
    process.learn(|shard| {
        (shard.primary_region, shard.voters) = ("region-2".to_owned(), [4, 5].map(NodeId).into());
        (shard.preferred_leader, shard.phase) = (Some(NodeId(4)), Phase::Forming);
        (shard.epoch, shard.bases) =
            (Epoch(3), [&shard.bases[..], &[(Epoch(3), Position::ZERO)]].concat());
    });
    process.reconcile().await;
    assert_eq!(process.voter().group.id().epoch, Epoch(3));
}

/// Commits recorded before may be others than those that follow now.
#[tokio::test]
async fn node_with_a_new_role_counts_the_lag_of_others_anew() {
    let process = Process::open(4, Arc::<MemoryEngine>::default());
    let followers = process.parts.shards.followers(&SHARD).unwrap();
    followers.set_nodes([NodeId(5)]);
    process.takes(1, 1..=5);
    let lag = || followers.lags()[0].lag;
    assert!((lag().batches, lag().bytes > 0) == (5, true), "{:?}", lag());
    process.reconcile().await;
    assert_eq!((lag().batches, lag().bytes), (5, 0));
}

#[tokio::test]
async fn a_voter_says_that_it_has_come_to_a_position_only_while_its_group_goes_on() {
    let process = Process::start(1, Arc::<MemoryEngine>::default()).await;
    let drain = async || {
        let through = Some(position_to_wire(Position::new(Epoch(1), 0)));
        let request = DrainRequest { shard: SHARD.0, epoch: 1, source: 2, through };
        process.failover.drain(Request::new(request)).await
    };
    let at = process.reconciler.state.position();
    assert_eq!(drain().await.unwrap().into_inner().position, Some(position_to_wire(at)));
    process.seal(false).await;
    let refused = drain().await.unwrap_err();
    assert!(
        refused.code() == Code::Unavailable && refused.message().contains("has stopped"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_node_that_hears_of_a_later_epoch_asks_the_directory() {
    let process = Process::start(4, Arc::<MemoryEngine>::default()).await;
    let directory = &process.parts.directory;
    let is_asked = || directory.renewal_is_wanted().now_or_never().is_some();
    assert!(is_asked(), "it has told the directory of its part");
    for (epoch, asks) in [(0, false), (1, false), (2, true), (0x1_0001, true)] {
        let through = Some(position_to_wire(Position::new(Epoch(1), 0)));
        let request = DrainRequest { shard: SHARD.0, epoch, source: 99, through };
        let answer = process.failover.drain(Request::new(request)).await;
        let other_epoch =
            answer.err().is_some_and(|refused| refused.code() == Code::FailedPrecondition);
        assert_eq!((other_epoch, is_asked()), (epoch != 1, asks), "epoch {epoch}");
    }
}
