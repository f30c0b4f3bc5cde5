use std::pin::Pin;

use futures::{Stream, StreamExt};
use meridian_config::DevLayout;
use meridian_consensus::testing::NoStates;
use meridian_gateway::Access;
use meridian_memory::ByteBudget;
use meridian_proto::CallingNode;
use meridian_proto::directory::failover_server::Failover as _;
use meridian_proto::directory::{self as wire, failover_server};
use meridian_proto::shipping::StateChunk;
use meridian_storage::{Engine, MemoryEngine, RaftApplied, decode_batch};
use meridian_types::{Batch, Epoch, ShardId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::cluster_view::view::Directory;
use crate::host::disk::DiskGuard;
use crate::read::execution::Reads;
use crate::replication::progress::Followers;
use crate::replication::snapshot_transfer::StateExchange;
use crate::rpc::failover::{FailoverService, LogReads};
use crate::shard::local::LocalShard;
use crate::shard::replica::{Replica, ReplicaParts};
use crate::shard::table::ShardTable;

const SHARD: ShardId = ShardId(1);

fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

/// A source whose state comes late, or without an end.
struct Slow {
    service: FailoverService,
    by: Duration,
    endless: bool,
}

#[tonic::async_trait]
impl failover_server::Failover for Slow {
    type ReadStateStream = Pin<Box<dyn Stream<Item = Result<StateChunk, Status>> + Send>>;

    async fn seal(
        &self,
        request: Request<wire::SealRequest>,
    ) -> Result<Response<wire::SealResponse>, Status> {
        self.service.seal(request).await
    }

    async fn drain(
        &self,
        request: Request<wire::DrainRequest>,
    ) -> Result<Response<wire::DrainResponse>, Status> {
        self.service.drain(request).await
    }

    async fn read_log(
        &self,
        request: Request<wire::ReadLogRequest>,
    ) -> Result<Response<wire::ReadLogResponse>, Status> {
        self.service.read_log(request).await
    }

    async fn read_state(
        &self,
        request: Request<wire::ReadStateRequest>,
    ) -> Result<Response<Self::ReadStateStream>, Status> {
        let (chunks, by) = (self.service.read_state(request).await?.into_inner(), self.by);
        if self.endless {
            let Some(Ok(chunk)) = chunks.into_future().await.0 else {
                return Err(Status::internal("no state"));
            };
            let chunk = StateChunk { last: false, ..chunk };
            let again = move |()| {
                let chunk = chunk.clone();
                async move {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Some((Ok(chunk), ()))
                }
            };
            return Ok(Response::new(Box::pin(futures::stream::unfold((), again))));
        }
        let late = async move {
            tokio::time::sleep(by).await;
            chunks
        };
        Ok(Response::new(Box::pin(futures::stream::once(late).flatten())))
    }
}

/// A replica with what was committed up to a sequence.
struct Node {
    state: Arc<ShardState>,
    log: ShippedLog,
    replica: Arc<Replica>,
    directory: Arc<Directory>,
    peers: Arc<PeerChannels>,
    syncer: Arc<Syncer>,
    disk: Arc<DiskGuard>,
    _folder: TempDir,
}

impl Node {
    /// `source`: the address that others are dialled at.
    fn start(node_id: u64, through: u64, purged: u64, source: String) -> Self {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let state = Arc::new(ShardState::open(Arc::clone(&engine), SHARD).unwrap());
        let log = ShippedLog::open(&engine, SHARD).unwrap();
        for sequence in 1..=through {
            let batch =
                Batch { position: at(1, sequence), time_ms: sequence, transactions: Vec::new() };
            let bytes = meridian_proto::encode_batch(&batch);
            log.append([(sequence, bytes.as_ref())]).unwrap();
            let batch = decode_batch(bytes.to_vec().into()).unwrap();
            state.apply(&[batch], RaftApplied::default()).unwrap();
        }
        if purged > 0 {
            log.purge_through(purged).unwrap();
        }
        let cluster =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let peers =
            Arc::new(PeerChannels::new(&cluster, Arc::new(move |_| Some(source.clone()))).unwrap());
        let syncer = Arc::new(Syncer::start(engine).unwrap());
        let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
        let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::<DiskGuard>::default());
        let replica = Replica::start(ReplicaParts {
            node_id: NodeId(node_id),
            history: EpochHistory::first(),
            sealed: None,
            state: Arc::clone(&state),
            log: log.clone(),
            syncer: Arc::clone(&syncer),
            directory: Arc::clone(&directory),
            peers: Arc::clone(&peers),
            transfer: Arc::new(NoStates),
            data_dir: folder.path().into(),
            disk: Arc::clone(&disk),
            reads: Reads::new(ByteBudget::new("tests", 1 << 20)),
            streams: ByteBudget::new("streams", 1 << 20),
        });
        Self {
            state,
            log,
            replica: Arc::new(replica.unwrap()),
            directory,
            peers,
            syncer,
            disk,
            _folder: folder,
        }
    }

    /// The calls that others make to this node.
    fn service(&self) -> FailoverService {
        let shards = Arc::new(ShardTable::default());
        shards.add(Arc::clone(&self.state), Followers::watch(&self.state));
        shards.set(SHARD, Some(LocalShard::Replica(Arc::clone(&self.replica))));
        FailoverService {
            log_reads: LogReads::default(),
            directory: Arc::clone(&self.directory),
            exchange: Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&self.peers))),
            shards,
            engine: Arc::clone(self.state.engine()),
            syncer: Arc::clone(&self.syncer),
        }
    }
}

/// A sealed replica with 50 batches, of which its log has none.
async fn source_without_a_log(late_by: Duration, endless: bool) -> (Node, String) {
    sealed_source(Node::start(4, 50, 50, "127.0.0.1:1".to_owned()), late_by, endless).await
}

async fn sealed_source(node: Node, late_by: Duration, endless: bool) -> (Node, String) {
    node.replica.seal(Epoch(1)).await.unwrap();
    let service = node.service();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder()
        .add_service(failover_server::FailoverServer::new(Slow { service, by: late_by, endless }));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    (node, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_log_begins_too_late_the_whole_state_is_taken_however_long_it_takes() {
    for late_by in [Duration::ZERO, Duration::from_millis(2500)] {
        let (_source, address) = source_without_a_log(late_by, false).await;
        let target = Node::start(5, 20, 0, address);
        target.replica.seal(Epoch(1)).await.unwrap();
        let mut failed = 0;
        // As the directory does: it asks again.
        while target.replica.drain(NodeId(4), at(1, 50)).await.is_err() {
            failed += 1;
            assert!(failed < 10);
            // The state may come a moment after the call has ended.
            let position = target.state.position();
            assert!([at(1, 20), at(1, 50)].contains(&position), "{position}");
        }
        assert!(failed > 0 || late_by.is_zero(), "it waits for longer than it may");
        assert_eq!((target.state.position(), target.log.last().unwrap()), (at(1, 50), None));
        assert_eq!(target.replica.batches_after(20, 1000).unwrap(), None);
        // Said a moment after it was answered.
        while target.replica.status().status.durable != at(1, 50) {
            tokio::task::yield_now().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_beyond_what_is_wanted_is_not_taken() {
    let (_source, address) = source_without_a_log(Duration::ZERO, false).await;
    let target = Node::start(5, 20, 0, address);
    target.replica.seal(Epoch(1)).await.unwrap();
    let reason = target.replica.drain(NodeId(4), at(1, 40)).await.unwrap_err();
    assert!(reason.contains("it stands at 1.50, between 1.20 and 1.40 it may be"), "{reason}");
    assert_eq!(target.state.position(), at(1, 20));
}

/// Also what goes on coming between one drain and the next.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_more_is_pulled_once_the_disk_is_full() {
    let (_source, address) = source_without_a_log(Duration::ZERO, true).await;
    let target = Node::start(5, 20, 0, address);
    target.replica.seal(Epoch(1)).await.unwrap();
    let engine = Arc::clone(target.state.engine());
    let before = engine.families();
    let until = async |what: &str, is_fetching: bool| {
        let started = std::time::Instant::now();
        while (engine.families() != before) != is_fetching {
            assert!(started.elapsed() < Duration::from_secs(20), "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    for is_waited_for in [true, false] {
        let replica = Arc::clone(&target.replica);
        let mut draining = tokio::spawn(async move { replica.drain(NodeId(4), at(1, 50)).await });
        until("it fetches the whole state", true).await;
        if !is_waited_for {
            let late = (&mut draining).await.unwrap().unwrap_err();
            assert!(late.contains("in time"), "{late}");
            // The next caller learns what became of it.
            let replica = Arc::clone(&target.replica);
            draining = tokio::spawn(async move { replica.drain(NodeId(4), at(1, 50)).await });
        }
        target.disk.set_takes_nothing(true);
        until("it goes on writing", false).await;
        let mut reason = draining.await.unwrap().unwrap_err();
        // The machine stood still meanwhile.
        if reason.contains("in time") {
            reason = target.replica.drain(NodeId(4), at(1, 50)).await.unwrap_err();
        }
        assert!(reason.contains("no room"), "{reason}");
        target.disk.set_takes_nothing(false);
    }
    assert_eq!(target.state.position(), at(1, 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn no_log_is_pulled_onto_a_full_disk() {
    let (_source, address) =
        sealed_source(Node::start(4, 50, 0, "127.0.0.1:1".to_owned()), Duration::ZERO, false).await;
    let target = Node::start(5, 20, 0, address);
    target.replica.seal(Epoch(1)).await.unwrap();
    target.disk.set_takes_nothing(true);
    let reason = target.replica.drain(NodeId(4), at(1, 50)).await.unwrap_err();
    assert!(reason.contains("no room"), "{reason}");
    assert_eq!(target.state.position(), at(1, 20));
    target.disk.set_takes_nothing(false);
    assert_eq!(target.replica.drain(NodeId(4), at(1, 50)).await, Ok(at(1, 50)));
}

/// The history of a second epoch that begins behind `sequence` of the first.
fn based_at(sequence: u64) -> EpochHistory {
    EpochHistory::new(vec![(Epoch(1), at(1, 0)), (Epoch(2), at(1, sequence))])
}

impl Node {
    /// Comes to a base as a founder of the next epoch's group does, with a state that nothing else
    /// writes to.
    async fn reach_base<U: Future<Output = ()>>(
        &self,
        base: u64,
        unwanted: impl Fn() -> U,
    ) -> Result<(), CatchUpFailure> {
        let Self { state, log, syncer, disk, peers, .. } = self;
        let target = Target { state, log, syncer, disk };
        let mut machine = CatchUp::to_base(based_at(base), [99, 4].map(NodeId).to_vec());
        let sources = || [99, 4].map(NodeId).to_vec();
        let surroundings = Surroundings { sources, unwanted, installed: |_| {} };
        run(&mut machine, &target, peers, &mut None, surroundings).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn founder_pulls_the_log_or_else_the_state_until_it_stands_at_the_base() {
    for purged in [0, 50] {
        let source = Node::start(4, 50, purged, "127.0.0.1:1".to_owned());
        let (_source, address) = sealed_source(source, Duration::ZERO, false).await;
        let node = Node::start(5, 20, 0, address);
        node.replica.stop().await;
        let base = if purged == 0 { 40 } else { 50 };
        assert_eq!(node.reach_base(base, std::future::pending).await, Ok(()));
        assert_eq!(node.state.position(), at(1, base));
        assert_eq!(node.log.last().unwrap().map(|last| last.sequence), (purged == 0).then_some(40));
        let beyond = node.reach_base(60, std::future::pending).await;
        assert_eq!(beyond, Err(CatchUpFailure::NoSource(at(1, 60))));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_that_is_not_wanted_any_more_is_not_taken() {
    let (_source, address) = source_without_a_log(Duration::ZERO, true).await;
    let node = Node::start(5, 20, 0, address);
    node.replica.stop().await;
    let outcome = node.reach_base(50, || std::future::ready(())).await;
    assert_eq!(outcome, Err(CatchUpFailure::NoSource(at(1, 50))));
    assert_eq!(node.state.position(), at(1, 20));
}

fn read_request(after: Position, through: Position) -> Request<wire::ReadLogRequest> {
    let (after, through) = (Some(position_to_wire(after)), Some(position_to_wire(through)));
    Request::new(wire::ReadLogRequest { shard: SHARD.0, after, through })
}

#[tokio::test]
async fn a_node_answers_with_the_stretch_of_its_log_that_it_is_asked_for() {
    let node = Node::start(4, 50, 10, "127.0.0.1:1".to_owned());
    let service = node.service();
    let read = async |after, through| {
        use failover_server::Failover;
        service.read_log(read_request(after, through)).await
    };
    let answer = read(at(1, 20), at(1, 40)).await.unwrap().into_inner();
    let (previous, batches) =
        unpack(&node.state, &mut Decompressor::new(None), &answer.batches.unwrap()).unwrap();
    assert_eq!(previous, at(1, 20));
    let sequences: Vec<_> = batches.iter().map(|batch| batch.position().sequence).collect();
    assert_eq!(sequences, Vec::from_iter(21..=40));
    assert_eq!(
        read(at(1, 9), at(1, 40)).await.unwrap().into_inner().batches,
        None,
        "its log begins behind"
    );
    for (after, why) in [
        (at(2, 20), "2.20 is not in this node's history of shard 1"),
        (at(1, 50), "this node has shard 1 up to 1.50 only"),
        (at(1, 51), "this node has shard 1 up to 1.50 only"),
    ] {
        let refused = read(after, at(1, 60)).await.unwrap_err();
        assert_eq!((refused.code(), refused.message()), (tonic::Code::FailedPrecondition, why));
    }
}

/// Batches beyond the base were lost, and those before it are read from a node that has no others.
#[tokio::test]
async fn a_node_that_has_left_the_shards_history_is_no_source() {
    use failover_server::Failover;
    let node = Node::start(4, 50, 0, "127.0.0.1:1".to_owned());
    let (service, history) =
        (node.service(), EpochHistory::new(vec![(Epoch(1), at(1, 0)), (Epoch(2), at(1, 40))]));
    node.replica.follow(history.clone());
    while node.replica.history() != history {
        tokio::task::yield_now().await;
    }
    let refused = service.read_log(read_request(at(1, 20), at(1, 40))).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    let refused = service
        .read_state(Request::new(wire::ReadStateRequest { shard: SHARD.0 }))
        .await
        .err()
        .unwrap();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    // The replica writes its divergence before the folder goes.
    node.replica.stop().await;
}

/// As of a node that was taken over, or whose connection is too narrow.
#[tokio::test(flavor = "multi_thread")]
async fn answers_that_a_node_does_not_take_are_bounded_and_others_go_on() {
    let service = Node::start(4, 50, 0, "127.0.0.1:1".to_owned()).service();
    let read = async |node| {
        let (after, through) = (Some(at(1, 0)), Some(at(1, 50)));
        let mut request = Request::new(wire::ReadLogRequest {
            shard: SHARD.0,
            after: after.map(position_to_wire),
            through: through.map(position_to_wire),
        });
        request.extensions_mut().insert(CallingNode(NodeId(node)));
        let answer = service.read_log(request);
        tokio::time::timeout(Duration::from_millis(500), answer).await.ok().map(Result::unwrap)
    };
    let mut held = Vec::new();
    while let Some(answer) = read(1).await {
        assert!(held.len() < 100, "there is no bound");
        held.push(answer);
    }
    assert!(read(2).await.is_some());
    held.pop();
    assert!(read(1).await.is_some());
}
