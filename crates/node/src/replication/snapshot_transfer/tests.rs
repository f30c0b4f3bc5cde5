use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{Stream, StreamExt};
use meridian_config::DevLayout;
use meridian_gateway::new_request_id;
use meridian_proto::DecodedBatch;
use meridian_proto::shipping::shipping_server::{self, ShippingServer};
use meridian_storage::{MemoryEngine, RaftApplied, Replace};
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Position, Value, ValueEncoding,
};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Streaming};

use super::*;
use crate::replication::progress::Followers;
use crate::shard::table::ShardTable;

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };
const SOURCE: NodeId = NodeId(1);
/// Of a few rows each.
const CHUNKS: usize = 40;

/// A source whose connections break after each chunk.
struct Breaking {
    exchange: Arc<StateExchange>,
    streams: Arc<AtomicUsize>,
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl shipping_server::Shipping for Breaking {
    type SubscribeStream = Answers<wire::Shipment>;
    type FetchStateStream = Answers<wire::StateChunk>;

    async fn subscribe(
        &self,
        _: Request<Streaming<wire::SubscribeRequest>>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn fetch_state(
        &self,
        request: Request<wire::FetchStateRequest>,
    ) -> Result<Response<Self::FetchStateStream>, Status> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let chunks = ReceiverStream::new(self.exchange.serve(GROUP, request.into_inner())?).take(1);
        let broken =
            futures::stream::once(async { Err(Status::unavailable("the connection broke")) });
        Ok(Response::new(Box::pin(chunks.chain(broken))))
    }

    async fn announce(
        &self,
        _: Request<Streaming<wire::AnnounceRequest>>,
    ) -> Result<Response<wire::AnnounceResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }
}

fn batch(sequence: u64, effects: Vec<Effect>) -> DecodedBatch {
    let (request_id, database) = (new_request_id(), DatabaseId([1; 16]));
    let transactions = vec![CommittedTransaction { request_id, database, effects, refusal: None }];
    Batch { position: Position::new(Epoch(1), sequence), time_ms: 1, transactions }.into()
}

fn put(number: usize) -> Effect {
    let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; CHUNK_BYTES / 16].into() };
    Effect::Put { key: Bytes::from(format!("{number:06}")), value, expire_at_ms: 0 }
}

struct Nodes {
    source: Arc<ShardState>,
    offering: Arc<StateExchange>,
    target: Arc<ShardState>,
    fetching: Arc<StateExchange>,
    streams: Arc<AtomicUsize>,
}

/// A source with a state of many chunks, and a node that has nothing.
async fn nodes() -> Nodes {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let cluster = DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let exchange = |shards| {
        let address = address.clone();
        let peers = PeerChannels::new(&cluster, Arc::new(move |_| Some(address.clone()))).unwrap();
        Arc::new(StateExchange::new(shards, Arc::new(peers)))
    };
    let state =
        || Arc::new(ShardState::open(Arc::new(MemoryEngine::default()), GROUP.shard).unwrap());
    let (source, target, shards) = (state(), state(), Arc::new(ShardTable::default()));
    shards.add(Arc::clone(&source), Followers::watch(&source));
    source.apply(&[batch(1, (0..CHUNKS * 16).map(put).collect())], RaftApplied::default()).unwrap();
    let (offering, fetching) = (exchange(shards), exchange(Arc::default()));
    let streams = Arc::new(AtomicUsize::new(0));
    let service = Breaking { exchange: Arc::clone(&offering), streams: Arc::clone(&streams) };
    let service = ShippingServer::new(service).max_encoding_message_size(MAX_MESSAGE_BYTES);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    Nodes { source, offering, target, fetching, streams }
}

impl Nodes {
    fn fetch(&self, id: &str) -> Transfer<Result<StagedState, StorageError>> {
        Arc::clone(&self.fetching).fetch(GROUP, SOURCE, id.to_owned(), Arc::clone(&self.target))
    }

    fn rows(state: &ShardState) -> usize {
        let range = meridian_types::ReadRange {
            start: Bytes::new(),
            end: "z".into(),
            limit: 10_000,
            reverse: false,
        };
        state.read(DatabaseId([1; 16]), &[range], 0).unwrap().ranges[0].len()
    }
}

#[tokio::test]
async fn a_copy_goes_on_where_it_broke_off_however_often() {
    let nodes = nodes().await;
    let staged = nodes.fetch("").await.unwrap();
    assert!(
        nodes.streams.load(Ordering::SeqCst) > 2 * RESUMES,
        "it broke more often than it is tried in vain"
    );
    nodes.target.install(staged, RaftApplied::default(), Replace::Older).unwrap();
    assert_eq!(Nodes::rows(&nodes.target), CHUNKS * 16);
    assert_eq!(nodes.offering.offers.lock().len(), 1, "of one snapshot");
}

#[tokio::test]
async fn a_copy_that_was_given_up_goes_on_with_the_same_snapshot() {
    let nodes = nodes().await;
    let id = nodes.offering.offer(GROUP, Arc::new(nodes.source.snapshot().unwrap()));
    // The leader's call is lost with its connection, again and again.
    let mut calls = 0;
    let staged = loop {
        calls += 1;
        let before = nodes.streams.load(Ordering::SeqCst);
        tokio::select! {
            staged = nodes.fetch(&id) => break staged.unwrap(),
            () = async { while nodes.streams.load(Ordering::SeqCst) < before + 10 { tokio::task::yield_now().await } } => {}
        }
        assert!(nodes.fetching.is_fetching(GROUP.shard), "it says that it copies");
    };
    assert!(calls >= 3, "{calls}");
    let streams = nodes.streams.load(Ordering::SeqCst);
    assert!(streams <= CHUNKS + calls + 5, "{streams} streams for {CHUNKS} chunks: it began anew");
    nodes.target.install(staged, RaftApplied::default(), Replace::Older).unwrap();
    assert_eq!(Nodes::rows(&nodes.target), CHUNKS * 16);
}

#[tokio::test]
async fn a_copy_that_is_given_up_while_rows_are_written_keeps_them() {
    let nodes = nodes().await;
    let staged = nodes.target.stage().unwrap();
    let begun = Begun {
        source: SOURCE,
        snapshot_id: String::new(),
        after: Bytes::new(),
        staged,
        since: Instant::now(),
    };
    let lock = Arc::new(tokio::sync::Mutex::new(()));
    let turn = Arc::clone(&lock).lock_owned().await;
    let exchange = Arc::clone(&nodes.fetching);
    let fetch = Fetch { exchange, group: GROUP, begun: Some(begun), _one_at_a_time: turn };
    let rows = nodes.source.snapshot().unwrap().rows(&[], CHUNK_BYTES).unwrap();
    let last = rows.rows.last().unwrap().0.clone();
    {
        let mut adding = Box::pin(fetch.add(rows, "one".to_owned()));
        drop(futures::poll!(&mut adding));
    }
    let _whoever_is_next = lock.lock().await;
    let kept =
        nodes.fetching.begun.lock().remove(&GROUP).expect("nothing is kept: the copy begins anew");
    assert_eq!((kept.snapshot_id.as_str(), kept.after), ("one", last));
}

#[tokio::test]
async fn the_log_is_kept_behind_a_snapshot_that_is_offered_and_offers_are_bounded() {
    let nodes = nodes().await;
    assert_eq!(nodes.offering.needs_log_after(GROUP.shard), None);
    let snapshot = Arc::new(nodes.source.snapshot().unwrap());
    let id = nodes.offering.offer(GROUP, Arc::clone(&snapshot));
    assert_eq!(nodes.offering.offer(GROUP, snapshot), id, "offered twice, it is one");
    nodes.source.apply(&[batch(2, vec![put(1)])], RaftApplied::default()).unwrap();
    for _ in 1..MAX_OFFERS {
        nodes.offering.offer(GROUP, Arc::new(nodes.source.snapshot().unwrap()));
    }
    assert_eq!(nodes.offering.needs_log_after(GROUP.shard), Some(1));
    assert_eq!(nodes.offering.needs_log_after(ShardId(2)), None);
    let request = wire::FetchStateRequest { shard: 1, epoch: 1, ..Default::default() };
    let refused = nodes.offering.serve(GROUP, request).unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted);
    assert_eq!(nodes.offering.offers.lock().len(), MAX_OFFERS);
}

#[tokio::test]
async fn states_without_readers_take_a_bounded_number_of_threads() {
    let nodes = nodes().await;
    let id = nodes.offering.offer(GROUP, Arc::new(nodes.source.snapshot().unwrap()));
    let request = || wire::FetchStateRequest {
        shard: 1,
        epoch: 1,
        snapshot_id: id.clone(),
        ..Default::default()
    };
    let mut streams: Vec<_> =
        (0..MAX_STREAMS - 1).map(|_| nodes.offering.serve(GROUP, request()).unwrap()).collect();
    streams.push(nodes.offering.read(&nodes.source).unwrap());
    assert_eq!(
        nodes.offering.serve(GROUP, request()).unwrap_err().code(),
        tonic::Code::ResourceExhausted
    );
    assert_eq!(
        nodes.offering.read(&nodes.source).unwrap_err().code(),
        tonic::Code::ResourceExhausted
    );
    // One reader leaves.
    drop(streams.pop());
    while nodes.offering.serve(GROUP, request()).is_err() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn what_is_offered_to_a_node_that_is_away_does_not_hold_the_log_for_ever() {
    let nodes = nodes().await;
    let snapshot = Arc::new(nodes.source.snapshot().unwrap());
    let id = nodes.offering.offer(GROUP, Arc::clone(&snapshot));
    assert_eq!(
        nodes.offering.needs_log_after(GROUP.shard),
        Some(1),
        "it may begin to read any moment"
    );
    for offer in nodes.offering.offers.lock().values_mut() {
        offer.used = offer.used.checked_sub(SNAPSHOT_IDLE).unwrap();
    }
    assert_eq!(nodes.offering.offer(GROUP, Arc::clone(&snapshot)), id);
    assert_eq!(
        nodes.offering.needs_log_after(GROUP.shard),
        None,
        "offered again and again, and never read"
    );
    drop(nodes.offering.find(&id, GROUP).unwrap());
    assert_eq!(nodes.offering.needs_log_after(GROUP.shard), Some(1), "it is read");
}

#[test]
fn a_state_of_one_large_row_can_be_sent() {
    let state =
        ShardState::open(Arc::new(MemoryEngine::default()), meridian_types::ShardId(0)).unwrap();
    let value = Bytes::from("{\"version\":1234567,\"name\":\"a cluster\"}".repeat(1_000_000));
    assert!(value.len() > 32 << 20);
    let rows = StateRows { rows: vec![(Bytes::from_static(b"k"), value)], last: true };
    let chunk = encode_chunk("id", &state.snapshot().unwrap(), rows.clone()).unwrap();
    assert!(chunk.zstd.len() < MAX_MESSAGE_BYTES);
    assert_eq!(decode_chunk(&chunk).unwrap(), rows);
}

#[test]
fn a_damaged_chunk_is_refused() {
    let state =
        ShardState::open(Arc::new(MemoryEngine::default()), meridian_types::ShardId(1)).unwrap();
    let rows =
        StateRows { rows: vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))], last: true };
    let chunk = encode_chunk("id", &state.snapshot().unwrap(), rows.clone()).unwrap();
    assert_eq!(decode_chunk(&chunk).unwrap(), rows);
    let mut damaged = chunk.zstd.to_vec();
    damaged[3] ^= 1;
    let damaged = wire::StateChunk { zstd: damaged.into(), ..chunk };
    assert_eq!(decode_chunk(&damaged).unwrap_err(), "a chunk's checksum does not match");
}
