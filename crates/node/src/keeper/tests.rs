use meridian_failover::Change;
use meridian_gateway::Access;
use meridian_proto::directory::{SealRequest, SealResponse, failover_server::Failover};
use meridian_proto::raft::{self, raft_server::Raft};
use meridian_storage::{Call, Durability, HookedEngine, Hooks, MemoryEngine};
use meridian_types::Position;
use tonic::{Code, Request};

use super::*;
use crate::directory::first_cluster;
use crate::failover_service::FailoverService;
use crate::proposer::Limits;
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
    async fn start(node_id: NodeId, engine: Arc<impl Engine>) -> Self {
        let process = Self::open(node_id, engine);
        process.settle().await;
        process
    }

    /// It has no part in the shard yet.
    fn open(node_id: NodeId, engine: Arc<impl Engine>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let engine: Arc<dyn Engine> = engine;
        let topology = Topology::dev(&[3, 2, 2], |node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let peers = Arc::new(PeerChannels::new(&topology, Arc::new(|_| None)).unwrap());
        let directory = Arc::new(Directory::new(first_cluster(&topology), Access::default(), None));
        let shards = Arc::new(ShardTable::default());
        let exchange = Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&peers)));
        let transfer: Arc<dyn StateTransfer> = Arc::clone(&exchange) as _;
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
        let failover = FailoverService { directory, shards, engine, exchange };
        Self { parts, keeper, failover, _folder: folder }
    }

    async fn settle(&self) {
        self.keeper.settle(&self.parts.directory.shard(SHARD).unwrap()).await;
    }

    async fn seal(&self, planned: bool) -> SealResponse {
        let request = SealRequest { shard: SHARD.0, epoch: 1, planned };
        self.failover.seal(Request::new(request)).await.unwrap().into_inner()
    }

    /// Whether a leader that has not heard of a seal is answered, once the member knows that it is not a wiped one.
    async fn answers_appends(&self) -> bool {
        self.refuses_appends().await.is_none()
    }

    async fn refuses_appends(&self) -> Option<Code> {
        let target = raft::Group { shard: SHARD.0, epoch: 1, target: self.parts.node_id };
        let vote = meridian_proto::log::Vote { term: 9, node_id: 2, committed: true };
        let leader_commit = Some(meridian_proto::log::LogId::default());
        let request =
            raft::AppendRequest { group: Some(target), vote: Some(vote), leader_commit, ..Default::default() };
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

    /// Whether the member elects nobody any more; that it has no vote yet looks alike otherwise.
    async fn is_sealed_voter(&self) -> bool {
        let refused = self.voter().group.transfer_leadership(2).await.err();
        refused.is_some_and(|why| why.to_string().contains("this member is sealed"))
    }

    fn holds_a_lease_that_it_is_granted(&self) -> bool {
        let directory = &self.parts.directory;
        let lease = meridian_failover::Lease { ttl: Duration::from_secs(3600), shards: vec![(SHARD, Epoch(1))] };
        directory.renewed(directory.now(), &lease);
        directory.holds_lease(SHARD, Epoch(1))
    }

    async fn is_sealed_replica(&self) -> bool {
        Self::takes_nothing(&self.local()).await
    }

    /// Whether a replica takes nothing by itself: then it pulls from whom it is told to, and this one is nobody.
    async fn takes_nothing(local: &LocalShard) -> bool {
        let LocalShard::Replica(replica) = local else { panic!("not a replica") };
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

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(20), "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// What the directory does not know may be a wiped folder, or of a node whose promises are over.
#[tokio::test]
async fn a_voter_of_a_shard_that_has_started_votes_when_the_directory_has_granted_it_a_lease() {
    let engine = Arc::new(MemoryEngine::default());
    let founding = Process::start(1, Arc::clone(&engine)).await;
    until("a founder votes", || founding.voter().group.votes()).await;
    let again = Process::start(1, Arc::new(engine.crash(1))).await;
    let started = std::time::Instant::now();
    // Longer than one that is vouched for waits for others.
    while started.elapsed() < Duration::from_millis(700) {
        assert!(!again.voter().group.votes(), "it votes, and nobody knows its folder");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let lease = meridian_failover::Lease { ttl: Duration::from_secs(3600), shards: vec![(SHARD, Epoch(1))] };
    again.parts.directory.renewed(again.parts.directory.now(), &lease);
    until("it votes", || again.voter().group.votes()).await;
}

/// What nodes say of themselves becomes the number that writes are refused by: that of the best node elsewhere.
#[tokio::test]
async fn the_lag_that_the_proposer_is_told_is_of_what_other_regions_say_that_they_have() {
    let process = Process::start(1, Arc::<MemoryEngine>::default()).await;
    let parts = &process.parts;
    let limits = ShardLimits {
        node_id: 1,
        shard: SHARD,
        directory: Arc::clone(&parts.directory),
        shards: Arc::clone(&parts.shards),
        disk: Arc::default(),
    };
    let shipping = crate::shipping_service::ShippingService {
        node_id: 1,
        shards: Arc::clone(&parts.shards),
        exchange: Arc::new(StateExchange::new(Arc::clone(&parts.shards), Arc::clone(&parts.peers))),
        clocks: Clocks::default(),
        subscriptions: Arc::default(),
    };
    let says = async |node: NodeId, position: Position| {
        let status = meridian_shipping::Status::of_primary_member(node, Epoch(1), position, Duration::ZERO);
        let statuses = vec![crate::shipping_wire::status_to_wire(SHARD, &status)];
        let request = meridian_proto::shipping::AnnounceRequest { statuses, node_id: node, ..Default::default() };
        meridian_proto::shipping::shipping_server::Shipping::announce(&shipping, Request::new(request)).await.unwrap();
    };
    let at = |sequence| Position::new(Epoch(1), sequence);
    parts.shards.followers(&SHARD).unwrap().set_nodes(2..=7);
    for node in 2..=7 {
        says(node, Position::ZERO).await;
    }
    assert_eq!(limits.replication_lag_ms(), Some(0));
    let batch = meridian_types::Batch { position: at(1), time_ms: 1, transactions: Vec::new() };
    process.local().state().apply(&[batch.into()], meridian_storage::RaftApplied::default()).unwrap();
    // Voters of the primary region are lost with it.
    says(2, at(1)).await;
    says(3, at(1)).await;
    until("it lags", || limits.replication_lag_ms() > Some(20)).await;
    says(7, at(1)).await;
    assert_eq!(limits.replication_lag_ms(), Some(0));
    let batch = meridian_types::Batch { position: at(2), time_ms: 2, transactions: Vec::new() };
    process.local().state().apply(&[batch.into()], meridian_storage::RaftApplied::default()).unwrap();
    until("it lags again", || limits.replication_lag_ms() > Some(20)).await;
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
        // Nor was there a moment at which it would have been: it is not even found.
        assert_eq!(after.refuses_appends().await, Some(Code::NotFound), "what it said was final");
        assert!(after.is_sealed_voter().await);
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
    assert!(before.answers_appends().await);
    until("it is known as a member", || before.voter().group.votes()).await;
    before.seal(true).await;
    let after = Process::start(1, Arc::new(engine.crash(1))).await;
    // The leader may finish what it began, and nobody else leads.
    assert!(after.answers_appends().await);
    assert!(after.is_sealed_voter().await);
    assert!(!after.holds_a_lease_that_it_is_granted(), "granted before the directory sealed the epoch");
}

/// A lease that was granted before, or another that pulls or votes, may be there before this node has a part.
#[tokio::test]
async fn a_sealed_shard_is_never_taken_up_as_if_it_were_not() {
    let engine = Arc::new(MemoryEngine::default());
    let unsealed = Process::open(1, Arc::clone(&engine));
    assert!(unsealed.holds_a_lease_that_it_is_granted());
    Process::start(1, Arc::clone(&engine)).await.seal(false).await;
    let opened = Process::open(1, Arc::new(engine.crash(1)));
    assert!(!opened.holds_a_lease_that_it_is_granted());
    let opened = Process::open(4, Arc::new(MemoryEngine::default()));
    let history = History::new(opened.parts.directory.shard(SHARD).unwrap().bases);
    for sealed in [false, true] {
        let seal = sealed.then_some(Seal { epoch: Epoch(1), planned: false });
        let replica = opened.keeper.follow(history.clone(), seal).await.unwrap();
        assert_eq!(Process::takes_nothing(&replica).await, sealed);
    }
}

/// Whoever was down when the directory sealed the epoch will be asked, and has no seal of its own until then.
#[tokio::test]
async fn a_shard_that_the_directory_seals_is_taken_up_sealed() {
    for (node_id, planned) in [(1, false), (1, true), (4, false), (4, true)] {
        let process = Process::open(node_id, Arc::new(MemoryEngine::default()));
        let directory = &process.parts.directory;
        let to = Some("region-2".to_owned());
        let seal = Change::Seal {
            shard: SHARD,
            epoch: Epoch(1),
            to: to.clone().filter(|_| planned),
            planned,
            since_ms: 1,
            cause: "a test".to_owned(),
        };
        let active = Change::Activate { shard: SHARD, epoch: Epoch(1) };
        let switchover = to.filter(|_| planned).map(|to| Change::BeginSwitchover { shard: SHARD, to });
        for change in [Some(active), switchover, Some(seal)].into_iter().flatten() {
            directory.learn(directory.known().cluster.after(&change).unwrap()).unwrap();
        }
        process.settle().await;
        assert!(!process.holds_a_lease_that_it_is_granted());
        match process.local() {
            LocalShard::Voter(_) => assert!(process.is_sealed_voter().await),
            // For a switchover it goes on taking what the leader finishes.
            LocalShard::Replica(_) => assert_eq!(process.is_sealed_replica().await, !planned),
        }
    }
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
const CHILD: &str = "MERIDIAN_TEST_FAILING_DISK";

/// What a child process says before it is aborted; `test` is this test's name.
fn last_words_of_child(test: &str, how: &str) -> String {
    let child = std::process::Command::new(std::env::current_exe().unwrap())
        .args([&format!("keeper::tests::{test}"), "--exact", "--nocapture"])
        .env(CHILD, how)
        .output()
        .unwrap();
    let (out, error) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
    let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
    assert_eq!(signal, Some(6), "{how}: it was not aborted: {:?}\n{out}\n{error}", child.status);
    assert!(!out.contains("it goes on"), "{how}: {out}");
    error.into_owned()
}

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
    let error = last_words_of_child("corrupt_bytes_in_the_log_stop_the_process", "corrupt");
    assert!(error.contains("meridian: fatal: corruption in Entry record 1 of shard 1 epoch 1"), "{error}");
}

/// Calls of one kind fail, from a moment on.
#[derive(Default)]
struct Failing(Mutex<Option<Call<'static>>>);

impl Hooks for Failing {
    fn before(&self, _: &dyn Engine, call: Call<'_>) -> Result<(), StorageError> {
        match self.0.lock().is_some_and(|failing| failing == call) {
            true => Err(StorageError::Engine(format!("IO error: {call:?}"))),
            false => Ok(()),
        }
    }
}

/// A member that has restarted and waits for the directory's word: it follows already.
#[tokio::test]
async fn a_disk_that_fails_under_a_member_stops_the_process() {
    if let Ok(how) = std::env::var(CHILD) {
        let memory = Arc::new(MemoryEngine::default());
        let founding = Process::start(1, Arc::clone(&memory)).await;
        until("a founder votes", || founding.voter().group.votes()).await;
        let engine = Arc::new(HookedEngine::new(Arc::new(memory.crash(1)), Failing::default()));
        let process = Process::start(1, Arc::clone(&engine)).await;
        let call = if how == "sync" { Call::Sync } else { Call::Write(Durability::Logged) };
        *engine.0.lock() = Some(call);
        // A leader of a later term.
        let asking = tokio::spawn(async move { process.answers_appends().await });
        tokio::time::sleep(Duration::from_secs(20)).await;
        println!("it goes on; did it answer? {}", asking.is_finished());
        return;
    }
    let test = "a_disk_that_fails_under_a_member_stops_the_process";
    let error = last_words_of_child(test, "sync");
    assert!(error.contains("meridian: fatal: storage engine: IO error: Sync"), "{error}");
    let error = last_words_of_child(test, "write");
    assert!(error.contains("meridian: fatal: raft of shard 1 epoch 1 stopped: "), "{error}");
}
