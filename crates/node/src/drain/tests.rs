use std::pin::Pin;

use futures::{Stream, StreamExt};
use meridian_consensus::{StateTransfer, Transfer};
use meridian_gateway::Access;
use meridian_memory::ByteBudget;
use meridian_proto::directory::{self as wire, failover_server};
use meridian_proto::shipping::StateChunk;
use meridian_storage::{Engine, GroupId, MemoryEngine, StateSnapshot};
use meridian_types::{Batch, Epoch, ShardId};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Request, Response, Status};

use super::*;
use crate::directory::{Directory, first_cluster};
use crate::disk::DiskGuard;
use crate::failover_service::FailoverService;
use crate::followers::Followers;
use crate::reads::Reads;
use crate::replica::{Replica, ReplicaParts, shipped_log};
use crate::shard::LocalShard;
use crate::shard_table::ShardTable;
use crate::state_exchange::StateExchange;
use crate::topology::Topology;

const SHARD: ShardId = ShardId(1);

fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

fn batches(positions: &[(u16, u64)]) -> Vec<Position> {
    positions.iter().map(|(epoch, sequence)| at(*epoch, *sequence)).collect()
}

#[test]
fn only_what_follows_is_taken() {
    let (after, through) = (at(1, 5), at(2, 8));
    let history = History::new(vec![(Epoch(1), at(1, 0)), (Epoch(2), at(1, 6))]);
    let check = |previous, positions: &[(u16, u64)]| check(&history, after, previous, &batches(positions), through);
    check(after, &[(1, 6), (2, 7), (2, 8)]).unwrap();
    check(after, &[]).unwrap_err();
    check(at(2, 5), &[(1, 6)]).unwrap_err();
    check(after, &[(2, 7)]).unwrap_err();
    check(after, &[(1, 6), (1, 6)]).unwrap_err();
    // Of the old epoch, beyond where the new one left it.
    check(after, &[(1, 6), (1, 7)]).unwrap_err();
    check(after, &[(2, 6)]).unwrap_err();
    check(after, &[(1, 6), (2, 7), (2, 8), (2, 9)]).unwrap_err();
}

#[test]
fn only_a_state_that_lies_on_the_way_is_taken() {
    let history = History::new(vec![(Epoch(1), at(1, 0)), (Epoch(2), at(1, 6))]);
    let check = |position| check_state(&history, at(1, 5), position, at(2, 8));
    check(at(1, 6)).unwrap();
    check(at(2, 8)).unwrap();
    check(at(1, 5)).unwrap_err();
    check(at(1, 7)).unwrap_err();
    check(at(2, 9)).unwrap_err();
}

/// A replica has nobody to fetch snapshots from.
struct Nobody;

impl StateTransfer for Nobody {
    fn offer(&self, _: GroupId, _: Arc<StateSnapshot>) -> String {
        String::new()
    }

    fn fetch(
        self: Arc<Self>,
        _: GroupId,
        _: u64,
        _: String,
        _: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async { Err(StorageError::Refused("nobody".to_owned())) })
    }
}

/// What it serves of its state comes late, or comes to no end.
struct Slow {
    service: FailoverService,
    by: Duration,
    endless: bool,
}

#[tonic::async_trait]
impl failover_server::Failover for Slow {
    type ReadStateStream = Pin<Box<dyn Stream<Item = Result<StateChunk, Status>> + Send>>;

    async fn seal(&self, request: Request<wire::SealRequest>) -> Result<Response<wire::SealResponse>, Status> {
        self.service.seal(request).await
    }

    async fn drain(&self, request: Request<wire::DrainRequest>) -> Result<Response<wire::DrainResponse>, Status> {
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
            let Some(Ok(chunk)) = chunks.into_future().await.0 else { return Err(Status::internal("no state")) };
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
    log: GroupLog,
    replica: Arc<Replica>,
    directory: Arc<Directory>,
    disk: Arc<DiskGuard>,
    _folder: TempDir,
}

impl Node {
    /// `source`: the address that others are dialled at.
    fn start(node_id: NodeId, through: u64, purged: u64, source: String) -> Self {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let state = Arc::new(ShardState::open(Arc::clone(&engine), SHARD).unwrap());
        let log = shipped_log(&engine, SHARD).unwrap();
        for sequence in 1..=through {
            let batch = Batch { position: at(1, sequence), time_ms: sequence, transactions: Vec::new() };
            let bytes = meridian_proto::encode_batch(&batch);
            log.append([(sequence, bytes.as_ref())]).unwrap();
            state.apply(&[crate::replica::decode(bytes.to_vec().into()).unwrap()], RaftApplied::default()).unwrap();
        }
        if purged > 0 {
            log.purge_through(purged, Some((PURGED, &purged.to_be_bytes()))).unwrap();
        }
        let topology = Topology::dev(&[3, 2, 2], |node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let peers = PeerChannels::new(&topology, Arc::new(move |_| Some(source.clone())));
        let directory = Arc::new(Directory::new(first_cluster(&topology), Access::default(), None));
        let (folder, disk) = (tempfile::tempdir().unwrap(), Arc::<DiskGuard>::default());
        let replica = Replica::start(ReplicaParts {
            node_id,
            history: History::first(),
            sealed: None,
            state: Arc::clone(&state),
            log: log.clone(),
            syncer: Arc::new(Syncer::start(engine).unwrap()),
            directory: Arc::clone(&directory),
            peers: Arc::new(peers.unwrap()),
            transfer: Arc::new(Nobody),
            data_dir: folder.path().to_owned(),
            disk: Arc::clone(&disk),
            reads: Reads::new(ByteBudget::new("tests", 1 << 20)),
        });
        Self { state, log, replica: Arc::new(replica.unwrap()), directory, disk, _folder: folder }
    }
}

/// A sealed replica with 50 batches, of which its log has none.
async fn source_without_a_log(late_by: Duration, endless: bool) -> (Node, String) {
    sealed_source(Node::start(4, 50, 50, "127.0.0.1:1".to_owned()), late_by, endless).await
}

async fn sealed_source(node: Node, late_by: Duration, endless: bool) -> (Node, String) {
    node.replica.seal(Epoch(1)).await.unwrap();
    let shards = Arc::new(ShardTable::default());
    shards.add(Arc::clone(&node.state), Followers::watch(&node.state));
    shards.set(SHARD, Some(LocalShard::Replica(Arc::clone(&node.replica))));
    let topology = Topology::dev(&[3], |node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let peers = Arc::new(PeerChannels::new(&topology, Arc::new(|_| None)).unwrap());
    let service = FailoverService {
        directory: Arc::clone(&node.directory),
        exchange: Arc::new(StateExchange::new(Arc::clone(&shards), peers)),
        shards,
        engine: Arc::clone(node.state.engine()),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = tonic::transport::Server::builder().add_service(failover_server::FailoverServer::new(Slow {
        service,
        by: late_by,
        endless,
    }));
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
        while target.replica.drain(4, at(1, 50)).await.is_err() {
            failed += 1;
            assert!(failed < 3);
            assert_eq!(target.state.position(), at(1, 20), "nothing has changed");
        }
        assert_eq!(failed, usize::from(!late_by.is_zero()));
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
    let reason = target.replica.drain(4, at(1, 40)).await.unwrap_err();
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
        let mut draining = tokio::spawn(async move { replica.drain(4, at(1, 50)).await });
        until("it fetches the whole state", true).await;
        if !is_waited_for {
            let late = (&mut draining).await.unwrap().unwrap_err();
            assert!(late.contains("in time"), "{late}");
            // Whoever asks next learns what became of it.
            let replica = Arc::clone(&target.replica);
            draining = tokio::spawn(async move { replica.drain(4, at(1, 50)).await });
        }
        target.disk.set_takes_nothing(true);
        until("it goes on writing", false).await;
        let reason = draining.await.unwrap().unwrap_err();
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
    let reason = target.replica.drain(4, at(1, 50)).await.unwrap_err();
    assert!(reason.contains("no room"), "{reason}");
    assert_eq!(target.state.position(), at(1, 20));
    target.disk.set_takes_nothing(false);
    assert_eq!(target.replica.drain(4, at(1, 50)).await, Ok(at(1, 50)));
}
