//! A replica and a source that it cannot trust.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt};
use meridian_config::DevLayout;
use meridian_consensus::Transfer;
use meridian_consensus::testing::NoStates;
use meridian_gateway::{Access, Read};
use meridian_proto::log;
use meridian_proto::shard::{self as wire_shard, read_part::Part, shard_server::Shard};
use meridian_proto::shipping::{self as wire, shipment, shipping_server};
use meridian_storage::{
    Engine, GroupId, MemoryEngine, RaftApplied, StagedState, StateSnapshot, WatchedEngine,
    decode_batch,
};
use meridian_types::{Batch, Consistency, ReadRange, ShardId};
use prost::Message;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Streaming};

use super::*;
use crate::network::call_failure::Failed;
use crate::replication::compression::Compressor;
use crate::replication::progress::Followers;
use crate::replication::wire::position;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::nodes::Nodes;
use crate::routing::write_calls::WriteCalls;
use crate::rpc::shard::ShardService;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::testing::{no_changes, no_watches};

const SHARD: ShardId = ShardId(1);
const DEADLINE: Duration = Duration::from_secs(30);

fn at(sequence: u64) -> Position {
    Position::new(Epoch(1), sequence)
}

/// The stored bytes of the batch at a sequence.
fn stored(sequence: u64) -> Bytes {
    meridian_proto::encode_batch(&Batch {
        position: at(sequence),
        time_ms: sequence,
        transactions: Vec::new(),
    })
}

fn streams() -> ByteBudget {
    ByteBudget::new("streams", 1 << 20)
}

/// Has a state to fetch.
struct OneState(Arc<ShardState>);

impl StateTransfer for OneState {
    fn offer(&self, _: GroupId, _: Arc<StateSnapshot>) -> String {
        String::new()
    }

    fn fetch(
        self: Arc<Self>,
        _: GroupId,
        _: NodeId,
        _: String,
        state: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async move {
            let rows = self.0.snapshot()?.rows(&[], usize::MAX)?;
            crate::replication::staging::add(
                crate::replication::staging::stage(&state).await?,
                rows,
            )
            .await
        })
    }
}

/// Has a state to fetch, of which nothing more comes.
struct Stalls(Arc<()>);

impl StateTransfer for Stalls {
    fn offer(&self, _: GroupId, _: Arc<StateSnapshot>) -> String {
        String::new()
    }

    fn fetch(
        self: Arc<Self>,
        _: GroupId,
        _: NodeId,
        _: String,
        _: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async move {
            let _fetching = Arc::clone(&self.0);
            std::future::pending().await
        })
    }
}

/// Ships to each subscriber the next of these, from any position, and then nothing.
#[derive(Clone, Default)]
struct Source {
    shipments: Arc<Mutex<VecDeque<Vec<Bytes>>>>,
    /// Or these, as they are.
    parts: Arc<Mutex<VecDeque<Vec<wire::Batches>>>>,
    /// The position that each subscriber named.
    asked: Arc<Mutex<Vec<wire::Position>>>,
    /// The positions that they have acknowledged since.
    acknowledged: Arc<Mutex<Vec<wire::Position>>>,
}

#[tonic::async_trait]
impl shipping_server::Shipping for Source {
    type SubscribeStream =
        Pin<Box<dyn Stream<Item = Result<wire::Shipment, tonic::Status>> + Send>>;
    type FetchStateStream = ReceiverStream<Result<wire::StateChunk, tonic::Status>>;

    async fn subscribe(
        &self,
        request: Request<Streaming<wire::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, tonic::Status> {
        let mut requests = request.into_inner();
        let Some(wire::subscribe_request::Message::Start(start)) =
            requests.message().await?.unwrap().message
        else {
            return Err(tonic::Status::invalid_argument("no start"));
        };
        self.asked.lock().push(start.durable.unwrap());
        let (sender, stream) = mpsc::channel(4);
        let batches = self.shipments.lock().pop_front();
        let mut parts = self.parts.lock().pop_front().unwrap_or_default();
        if let Some(batches) = batches {
            let (stored, previous) =
                (wire::StoredBatches { batches }, position(start.durable.unwrap()).unwrap());
            parts.push(Compressor::new(None).compress(previous, &stored).unwrap());
        }
        let acknowledged = Arc::clone(&self.acknowledged);
        tokio::spawn(async move {
            let ship = async |message| {
                sender.send(Ok(wire::Shipment { message: Some(message) })).await.is_ok()
            };
            ship(shipment::Message::OpenedEpoch(1)).await;
            for part in parts {
                ship(shipment::Message::Batches(part)).await;
            }
            while let Ok(Some(request)) = requests.message().await {
                if let Some(wire::subscribe_request::Message::Durable(position)) = request.message {
                    acknowledged.lock().push(position);
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn fetch_state(
        &self,
        _: Request<wire::FetchStateRequest>,
    ) -> Result<Response<Self::FetchStateStream>, tonic::Status> {
        Err(tonic::Status::unavailable("no state"))
    }

    async fn announce(
        &self,
        _: Request<Streaming<wire::AnnounceRequest>>,
    ) -> Result<Response<wire::AnnounceResponse>, tonic::Status> {
        Ok(Response::new(wire::AnnounceResponse {}))
    }
}

struct Node {
    engine: Arc<MemoryEngine>,
    watched: Arc<WatchedEngine>,
    state: Arc<ShardState>,
    log: ShippedLog,
    replica: Replica,
    disk: Arc<DiskGuard>,
    folder: tempfile::TempDir,
}

impl Node {
    /// A replica of another region than the primary one, of a source that all others are dialled
    /// at.
    async fn following(source: &Source, transfer: Arc<dyn StateTransfer>) -> Self {
        let disk = Arc::<DiskGuard>::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let server = shipping_server::ShippingServer::new(source.clone());
        let server = tonic::transport::Server::builder().add_service(server);
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        let engine = Arc::new(MemoryEngine::default());
        let watched = Arc::new(WatchedEngine::watching(Arc::clone(&engine) as Arc<dyn Engine>));
        let dynamic = Arc::clone(&watched) as Arc<dyn Engine>;
        let state = Arc::new(ShardState::open(Arc::clone(&dynamic), SHARD).unwrap());
        let log = ShippedLog::open(&dynamic, SHARD).unwrap();
        let cluster =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let peers = PeerChannels::new(&cluster, Arc::new(move |_| Some(address.clone()))).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let replica = Replica::start(ReplicaParts {
            reads: Reads::new(meridian_memory::ByteBudget::new("tests", 1 << 20)),
            node_id: NodeId(4),
            history: EpochHistory::first(),
            sealed: None,
            state: Arc::clone(&state),
            log: log.clone(),
            syncer: Arc::new(Syncer::start(dynamic).unwrap()),
            directory: Arc::new(Directory::new(cluster.clone(), Access::default(), None)),
            peers: Arc::new(peers),
            transfer,
            data_dir: folder.path().into(),
            disk: Arc::clone(&disk),
            streams: streams(),
        });
        Self { engine, watched, state, log, replica: replica.unwrap(), disk, folder }
    }

    async fn until(&self, what: &str, mut condition: impl FnMut() -> bool) {
        let start = Instant::now();
        while !condition() {
            assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
            for voter in 1..=3 {
                self.replica.heard(Status::of_primary_member(
                    NodeId(voter),
                    Epoch(1),
                    at(9),
                    Duration::ZERO,
                ));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_or_cannot_be_read_is_in_no_log_and_the_replica_asks_again() {
    let mut damaged = stored(2).to_vec();
    damaged[5] ^= 1;
    let newer = log::Batch { epoch: 1, sequence: 1, format: 99, ..Default::default() };
    let mut unreadable = newer.encode_to_vec();
    let checksum = crc32c::crc32c(&unreadable).to_le_bytes();
    unreadable.push(15 << 3 | 5);
    unreadable.extend(checksum);
    let source = Source::default();
    *source.shipments.lock() =
        VecDeque::from([vec![stored(1), damaged.into()], vec![unreadable.into()]]);
    let node = Node::following(&source, Arc::new(NoStates)).await;
    node.until("it asks a third time", || source.asked.lock().len() >= 3).await;
    assert!(source.asked.lock().iter().all(|from| from.sequence == 0), "{:?}", source.asked.lock());
    assert_eq!((node.state.position(), node.log.last().unwrap()), (Position::ZERO, None));
    let why = node.state.refusals().recent().unwrap();
    assert!(why.contains("it is of format 99"), "{why}");
    // The process lives, and a start finds nothing that it cannot read.
    for seed in 0..20 {
        let next: Arc<dyn Engine> = Arc::new(node.engine.crash(seed));
        let state = ShardState::open(Arc::clone(&next), SHARD).unwrap();
        ShippedLog::open(&next, SHARD).unwrap().replay(&state).unwrap();
    }
    source.shipments.lock().extend([vec![stored(1), stored(2)]]);
    // It has a stream that is silent by now.
    node.until("it catches up", || node.state.position() == at(2)).await;
    assert_eq!(node.log.last().unwrap(), Some(StoredBatch { sequence: 2, bytes: stored(2) }));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_lacks_a_part_or_has_one_twice_is_left_and_what_follows_is_asked_for_again() {
    let parts = |sequences: std::ops::RangeInclusive<u64>| {
        let mut compressor = Compressor::new(Some(streams()));
        let part = |sequence: u64| {
            let stored = wire::StoredBatches { batches: vec![stored(sequence)] };
            compressor.compress(at(sequence - 1), &stored).unwrap()
        };
        sequences.map(part).collect::<Vec<_>>()
    };
    let mut lacks = parts(1..=4);
    lacks.remove(2);
    let mut twice = parts(3..=5);
    twice.insert(1, twice[0].clone());
    let mut damaged = parts(4..=6);
    let mut bytes = damaged[1].zstd.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    damaged[1].zstd = bytes.into();
    // As the log goes on, but nothing of the stream before them.
    let without_beginning = parts(4..=9).split_off(1);
    let source = Source::default();
    source.parts.lock().extend([lacks, twice, damaged, without_beginning]);
    let node = Node::following(&source, Arc::new(NoStates)).await;
    node.until("it has all", || {
        let mut streams = source.parts.lock();
        let next = node.state.position().sequence + 1;
        if streams.is_empty() && next <= 8 {
            streams.push_back(parts(next..=8));
        }
        next > 8
    })
    .await;
    let asked: Vec<_> = source.asked.lock().iter().map(|from| from.sequence).collect();
    // At the most: what was on its way to the disk is asked for again.
    let each_ends = asked.iter().zip([0, 2, 3, 4, 4]).all(|(from, behind)| *from <= behind);
    assert!(each_ends && asked.len() >= 5, "{asked:?}");
    let log = node.log.read(1..9, usize::MAX).unwrap();
    assert_eq!(
        log,
        (1..9)
            .map(|sequence| StoredBatch { sequence, bytes: stored(sequence) })
            .collect::<Vec<_>>()
    );
}

/// On one thread, which drives everything: what waits for a disk there holds up everything.
#[tokio::test]
async fn a_replica_waits_for_no_disk_on_the_runtime() {
    let source = Source::default();
    source.shipments.lock().extend([(1..=3).map(stored).collect()]);
    // The second epoch began behind the first batch: what the replica has beyond is kept, and a
    // state takes its place.
    let there: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
    let there = Arc::new(ShardState::open(there, SHARD).unwrap());
    let second =
        Batch { position: Position::new(Epoch(2), 2), time_ms: 2, transactions: Vec::new() };
    let batches = [decode_batch(stored(1)).unwrap(), second.into()];
    there.apply(&batches, RaftApplied::default()).unwrap();
    let node = Node::following(&source, Arc::new(OneState(Arc::clone(&there)))).await;
    node.watched.watch_this_thread(true);
    node.until("it follows", || node.state.position() == at(3)).await;
    node.replica.follow(EpochHistory::new(vec![(Epoch(1), at(0)), (Epoch(2), at(1))]));
    node.until("it was seeded", || node.state.position() == there.position()).await;
    node.replica.stop().await;
    assert_eq!(node.watched.found(), Vec::<&str>::new());
    let kept =
        crate::divergence::orphan_files::list_orphans(&node.folder.path().into()).unwrap().files;
    let batches: Vec<_> =
        kept.iter().map(|file| (file.epoch, file.base_sequence, file.batches)).collect();
    assert_eq!(batches, [(2, 1, 2)], "kept before the state took its place");
}

/// As a gateway in this process reads of these shards, and as one elsewhere does.
fn both_ways_to_read(shards: Arc<ShardTable>) -> (ClusterNodes, ShardService) {
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let peers = Arc::new(PeerChannels::new(&cluster, Arc::new(|_| None)).unwrap());
    let writes = Arc::new(WriteCalls::new(Arc::clone(&peers)));
    let reads = Reads::new(meridian_memory::ByteBudget::new("tests", 1 << 20));
    let (local, local_node) = (Arc::clone(&shards), Some(NodeId(4)));
    let directory = Arc::new(Directory::new(cluster, Access::default(), None));
    let watches = no_watches(&directory);
    let service = ShardService::new(shards, Arc::clone(&writes), Arc::clone(&watches));
    let changes = no_changes(&directory);
    (ClusterNodes { local, local_node, peers, writes, reads, changes, watches }, service)
}

/// Each read spans the beginning of the next epoch: its state was taken in the one before.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_eventual_read_says_where_its_state_was_and_not_where_the_shard_is_by_now() {
    let source = Source::default();
    source.shipments.lock().extend([(1..=5).map(stored).collect()]);
    let node = Node::following(&source, Arc::new(NoStates)).await;
    node.until("it has caught up", || {
        node.state.position() == at(5) && node.replica.has_caught_up()
    })
    .await;
    let Node { watched, state, replica, folder: _folder, .. } = node;
    let replica = Arc::new(replica);
    let shards = Arc::new(ShardTable::default());
    shards.add(Arc::clone(&state), Followers::watch(&state));
    shards.set(SHARD, Some(LocalShard::Replica(Arc::clone(&replica))));
    let next = Arc::new(Mutex::new(None::<EpochHistory>));
    let (comes, follower) = (Arc::clone(&next), Arc::clone(&replica));
    watched.after_snapshots(move || {
        let Some(history) = comes.lock().take() else { return };
        follower.follow(history.clone());
        let started = Instant::now();
        while follower.history() != history {
            assert!(started.elapsed() < DEADLINE, "the replica does not follow");
            std::thread::yield_now();
        }
    });
    let (nodes, service) = both_ways_to_read(shards);
    let database = meridian_config::DEV_DEFAULT_DATABASE;
    let range = ReadRange { start: Bytes::new(), end: "z".into(), limit: 1, reverse: false };
    let ranges = vec![range.clone(), range];
    let read =
        Arc::new(Read { database, consistency: Consistency::Eventual, ranges: ranges.clone() });
    let here = async |epoch| {
        nodes.read(NodeId(4), (SHARD, Epoch(epoch)), &read, 0, Arc::default(), None).await
    };
    let from_elsewhere = async |epoch| {
        let group = Some(wire_shard::ShardEpoch { shard: SHARD.0, epoch });
        let ranges = ranges.iter().map(meridian_proto::read_range_to_wire).collect();
        let database = Bytes::copy_from_slice(&database.0);
        let request =
            wire_shard::ReadRequest { group, database, strong: false, ranges, min_sequence: 0 };
        let parts = service.read(Request::new(request)).await.unwrap().into_inner();
        parts.map(|part| part.unwrap().part.unwrap()).collect::<Vec<_>>().await
    };
    let begins = |epochs: &[(u16, u64)]| {
        let base = |(epoch, base): &(u16, u64)| (Epoch(*epoch), at(*base));
        *next.lock() = Some(EpochHistory::new(epochs.iter().map(base).collect()));
    };
    begins(&[(1, 0), (2, 5)]);
    assert_eq!(here(1).await.ok().map(|answer| answer.position), Some(at(5)));
    begins(&[(1, 0), (2, 5), (3, 5)]);
    let parts = from_elsewhere(2).await;
    let Some(Part::Head(head)) = parts.first() else { panic!("no answer: {parts:?}") };
    assert_eq!((head.epoch, head.sequence), (1, 5));
    // The answer that it read has left the history meanwhile.
    begins(&[(1, 0), (2, 5), (3, 5), (4, 3)]);
    let refused = here(3).await.err();
    assert!(
        matches!(&refused, Some(Failed::NotDone(why)) if why.contains("present epoch")),
        "{refused:?}"
    );
    let parts = from_elsewhere(4).await;
    assert!(matches!(&parts[..], [Part::Unavailable(_)]), "{parts:?}");
    replica.stop().await;
}

/// The bound on what may be lost is counted by what replicas report.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_reports_and_serves_what_its_disk_has_and_nothing_else() {
    let source = Source::default();
    source.shipments.lock().extend([(1..=3).map(stored).collect()]);
    let node = Node::following(&source, Arc::new(NoStates)).await;
    node.engine.hold_syncs();
    node.until("it is in its log", || {
        node.log.last().unwrap().is_some_and(|last| last.sequence == 3)
    })
    .await;
    // Whatever it would report by now; heartbeats come in between.
    for _ in 0..10 {
        node.until("time passes", || true).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        let reported = source.acknowledged.lock().iter().map(|position| position.sequence).max();
        assert_eq!(
            (reported.unwrap_or(0), node.replica.status().status.durable),
            (0, Position::ZERO)
        );
        let shown = (*node.replica.applied().borrow(), node.replica.batches_after(0, 9).unwrap());
        assert_eq!(
            shown,
            (AppliedMark::default(), Some(Vec::new())),
            "served before it is durable"
        );
    }
    node.engine.release_syncs();
    node.until("it reports", || {
        source.acknowledged.lock().iter().any(|position| position.sequence == 3)
    })
    .await;
    let after: Arc<dyn Engine> = Arc::new(node.engine.crash_to_what_is_durable());
    assert_eq!(
        ShippedLog::open(&after, SHARD).unwrap().last().unwrap(),
        Some(StoredBatch { sequence: 3, bytes: stored(3) })
    );
}

#[tokio::test]
async fn a_replica_whose_disk_is_full_takes_nothing_until_there_is_room() {
    let source = Source::default();
    source.shipments.lock().push_back(vec![stored(1)]);
    let node = Node::following(&source, Arc::new(NoStates)).await;
    node.until("it follows", || node.state.position() == at(1)).await;
    node.disk.set_takes_nothing(true);
    // With room it asks again once its source is silent, and takes what comes.
    let begun = Instant::now();
    node.until("it has left its source", || node.replica.status().source.is_none()).await;
    source.shipments.lock().push_back(vec![stored(2)]);
    node.until("time for several tries", || begun.elapsed() > Duration::from_secs(3)).await;
    assert_eq!((node.state.position(), source.shipments.lock().len()), (at(1), 1));
    node.disk.set_takes_nothing(false);
    node.until("it goes on", || node.state.position() == at(2)).await;
}

#[tokio::test]
async fn a_state_that_is_being_copied_to_a_replica_stops_when_its_disk_is_full() {
    let (source, fetching) = (Source::default(), Arc::new(()));
    source.shipments.lock().extend([(1..=3).map(stored).collect()]);
    let node = Node::following(&source, Arc::new(Stalls(Arc::clone(&fetching)))).await;
    node.until("it follows", || node.state.position() == at(3)).await;
    // Its batches are not in the history of the second epoch.
    node.replica.follow(EpochHistory::new(vec![(Epoch(1), at(0)), (Epoch(2), at(1))]));
    let idle = 2;
    node.until("it fetches a state", || Arc::strong_count(&fetching) > idle).await;
    node.disk.set_takes_nothing(true);
    node.until("it takes no more of it", || Arc::strong_count(&fetching) == idle).await;
    let begun = Instant::now();
    node.until("time for several tries", || begun.elapsed() > Duration::from_secs(1)).await;
    assert_eq!(Arc::strong_count(&fetching), idle);
    node.disk.set_takes_nothing(false);
    node.until("it fetches again", || Arc::strong_count(&fetching) > idle).await;
}
