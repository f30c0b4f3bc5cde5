use meridian_gateway::Access;
use meridian_proto::directory::{SealRequest, SealResponse, failover_server::Failover};
use meridian_proto::raft::{self, raft_server::Raft};
use meridian_storage::MemoryEngine;
use meridian_types::Position;
use tonic::{Code, Request};

use super::*;
use crate::directory::first_cluster;
use crate::failover_service::FailoverService;
use crate::state_exchange::StateExchange;
use crate::topology::Topology;

const SHARD: ShardId = ShardId(1);

/// A process of a node whose neighbours do not answer.
struct Process {
    parts: Arc<KeeperParts>,
    keeper: Keeper,
    failover: FailoverService,
    _folder: tempfile::TempDir,
}

impl Process {
    /// Nodes 1 to 3 vote in the shard, the others are replicas. The cluster is as it was before anything was sealed.
    async fn start(node_id: NodeId, engine: Arc<MemoryEngine>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = engine;
        let topology = Topology::dev(&[3, 2, 2], |node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let peers = Arc::new(PeerChannels::new(&topology, Arc::new(|_| None)).unwrap());
        let directory = Arc::new(Directory::new(first_cluster(&topology), Access::default(), None));
        let shards = Arc::new(ShardTable::default());
        let transfer: Arc<dyn StateTransfer> = Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&peers)));
        let parts = Arc::new(KeeperParts {
            node_id,
            data_dir: folder.path().to_owned(),
            engine: Arc::clone(&engine),
            syncer: Arc::new(Syncer::start(Arc::clone(&engine)).unwrap()),
            high_water: Arc::new(HighWater::open(folder.path().join("high-water")).unwrap()),
            directory: Arc::clone(&directory),
            peers,
            transfer: Arc::clone(&transfer),
            raft: RaftService::new(node_id, transfer, Arc::clone(&engine)),
            shards: Arc::clone(&shards),
            disk: Arc::default(),
            clocks: Clocks::default(),
            writes: ByteBudget::new("writes that wait", 1 << 20),
            reads: Reads::new(ByteBudget::new("reads", 1 << 20)),
            log_cache: LogCache::default(),
            timing: RaftTiming::default(),
            settled: Mutex::default(),
            stop: CancellationToken::new(),
        });
        let keeper = Keeper::open(Arc::clone(&parts), SHARD).unwrap();
        let failover = FailoverService { directory, shards, engine };
        let process = Self { parts, keeper, failover, _folder: folder };
        let shard = process.parts.directory.shard(SHARD).unwrap();
        process.keeper.settle(&shard).await;
        process
    }

    async fn seal(&self, planned: bool) -> SealResponse {
        let request = SealRequest { shard: SHARD.0, epoch: 1, planned };
        self.failover.seal(Request::new(request)).await.unwrap().into_inner()
    }

    /// Whether a leader that has not heard of a seal is answered.
    async fn answers_appends(&self) -> bool {
        let target = raft::Group { shard: SHARD.0, epoch: 1, target: self.parts.node_id };
        let vote = meridian_proto::log::Vote { term: 9, node_id: 2, committed: true };
        let request = raft::AppendRequest { group: Some(target), vote: Some(vote), ..Default::default() };
        match self.parts.raft.append(Request::new(request)).await {
            Ok(_) => true,
            Err(status) => {
                assert!(matches!(status.code(), Code::NotFound | Code::Unavailable), "{status}");
                false
            }
        }
    }

    fn local(&self) -> LocalShard {
        self.parts.shards.get(&SHARD).unwrap()
    }

    /// Whether the replica takes nothing by itself: then it pulls from whom it is told to, and this one is nobody.
    async fn is_sealed_replica(&self) -> bool {
        let LocalShard::Replica(replica) = self.local() else { panic!("not a replica") };
        let pulled = replica.drain(99, Position::new(Epoch(1), 5));
        match tokio::time::timeout(Duration::from_millis(500), pulled).await {
            Ok(answer) => {
                assert_eq!(answer.unwrap_err(), "node 99 is not known");
                true
            }
            Err(_) => false,
        }
    }
}

#[tokio::test]
async fn a_seal_of_a_voter_holds_over_a_restart() {
    for seed in 0..4 {
        let engine = Arc::new(MemoryEngine::default());
        let before = Process::start(1, Arc::clone(&engine)).await;
        assert!(before.answers_appends().await);
        let said = before.seal(false).await;
        assert!(!before.answers_appends().await);
        // It has saved the cluster from before it was sealed, and so would be a member like others.
        let after = Process::start(1, Arc::new(engine.crash(seed))).await;
        assert!(!after.answers_appends().await, "what it said was final");
        let LocalShard::Voter(voter) = after.local() else { panic!("not a voter") };
        assert!(!voter.group.votes());
        let again = after.seal(false).await;
        assert_eq!((again.position, again.term), (said.position, said.term));
        // Also if it is asked again to stop as for a switchover.
        after.seal(true).await;
        let after = Process::start(1, Arc::new(engine.crash(seed))).await;
        assert!(!after.answers_appends().await);
    }
}

#[tokio::test]
async fn a_planned_seal_of_a_voter_holds_over_a_restart() {
    let engine = Arc::new(MemoryEngine::default());
    let before = Process::start(1, Arc::clone(&engine)).await;
    before.seal(true).await;
    let after = Process::start(1, Arc::new(engine.crash(1))).await;
    // The leader may finish what it began, and nobody else leads.
    assert!(after.answers_appends().await);
    let LocalShard::Voter(voter) = after.local() else { panic!("not a voter") };
    assert!(!voter.group.votes());
    let lease = meridian_failover::Lease { ttl: Duration::from_secs(3600), shards: vec![(SHARD, Epoch(1))] };
    after.parts.directory.renewed(after.parts.directory.now(), &lease);
    assert!(!after.parts.directory.holds_lease(SHARD, Epoch(1)), "granted before the directory sealed the epoch");
}

#[tokio::test]
async fn a_seal_of_a_replica_holds_over_a_restart() {
    let engine = Arc::new(MemoryEngine::default());
    let before = Process::start(4, Arc::clone(&engine)).await;
    assert!(!before.is_sealed_replica().await);
    let said = before.seal(false).await;
    assert!(before.is_sealed_replica().await);
    let after = Process::start(4, Arc::new(engine.crash(1))).await;
    assert!(after.is_sealed_replica().await, "it follows on");
    assert_eq!(after.seal(false).await.position, said.position);
}

/// Set for the process that is to die.
const CHILD: &str = "MERIDIAN_TEST_CORRUPT_LOG";

#[tokio::test]
async fn corrupt_bytes_in_the_log_stop_the_process() {
    if std::env::var_os(CHILD).is_some() {
        let engine = Arc::new(MemoryEngine::default());
        let before = Process::start(1, Arc::clone(&engine)).await;
        assert!(before.answers_appends().await);
        let mut writes = meridian_storage::WriteBatch::default();
        let key = [&SHARD.0.to_be_bytes()[..], &[0, 1], b"e", &1u64.to_be_bytes()].concat();
        writes.put(&meridian_storage::schema::LOG_FAMILY.into(), key, b"not what was written".to_vec());
        engine.write(writes, meridian_storage::Durability::Logged).unwrap();
        engine.sync().unwrap();
        Process::start(1, Arc::new(engine.crash(1))).await;
        println!("it goes on");
        return;
    }
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["keeper::tests::corrupt_bytes_in_the_log_stop_the_process", "--exact", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .unwrap();
    let (out, error) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(signal, Some(6), "it was not aborted: {:?}\n{out}\n{error}", child.status);
    assert!(error.contains("meridian: fatal: corruption in Entry record 1 of shard 1 epoch 1"), "{error}");
    assert!(!out.contains("it goes on"), "{out}");
}
