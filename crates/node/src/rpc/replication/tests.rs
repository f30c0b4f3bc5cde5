use std::sync::atomic::{AtomicUsize, Ordering};

use futures::stream;
use meridian_failover::Lease;
use meridian_proto::CallingNode;
use meridian_proto::shipping::shipping_client::ShippingClient;
use meridian_proto::shipping::shipping_server::Shipping as _;
use meridian_storage::{Engine, MemoryEngine};
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::Code;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};

use super::*;
use crate::replication::progress::Followers;
use crate::testing::{OnlyVoter, from_node, until};

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };
/// More than any task does before it lets others go on.
const MANY: usize = 100_000;

/// On a node that leads the shard alone, in a cluster of nodes 1 to 7.
async fn service() -> ShippingService {
    let engine: Arc<dyn Engine> = Arc::<MemoryEngine>::default();
    let OnlyVoter { directory, peers, voter } = OnlyVoter::start(&engine, GROUP).await;
    let lease = Lease { ttl: Duration::from_secs(3600), shards: vec![(GROUP.shard, GROUP.epoch)] };
    directory.renewed(directory.now(), &lease);
    let shards = Arc::new(ShardTable::default());
    shards.add(Arc::clone(&voter.state), Followers::watch(&voter.state));
    let local = LocalShard::Voter(voter);
    shards.set(GROUP.shard, Some(local.clone()));
    until("the shard is served", async || local.may_ship().is_ok()).await;
    ShippingService {
        node_id: NodeId(1),
        directory,
        shards: Arc::clone(&shards),
        exchange: Arc::new(StateExchange::new(shards, peers)),
        clocks: Clocks::default(),
        subscriptions: Arc::default(),
        streams: ByteBudget::new("streams", 1 << 20),
    }
}

fn start(node_id: u64) -> wire::Start {
    let durable = Some(wire::Position { epoch: 1, sequence: 0 });
    wire::Start { shard: 1, epoch: 1, node_id, durable, keeps_window: true }
}

/// So many, each of which is there when it is asked for, and how many were asked for.
fn flood<T>(
    one: impl Fn(u64) -> T,
) -> (impl Stream<Item = Result<T, Status>> + Unpin, Arc<AtomicUsize>) {
    let taken = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&taken);
    let next = move |number| {
        counted.fetch_add(1, Ordering::Relaxed);
        Ok(one(number))
    };
    (stream::iter((0..MANY as u64).map(next)), taken)
}

async fn lets_others_go_on(taken: &AtomicUsize) {
    for _ in 0..1000 {
        tokio::task::yield_now().await;
        if taken.load(Ordering::Relaxed) > 0 {
            break;
        }
    }
    let taken = taken.load(Ordering::Relaxed);
    assert!((1..MANY).contains(&taken), "{taken} were taken before anything else ran");
}

#[tokio::test]
async fn announcements_without_a_pause_keep_no_other_task_waiting() {
    let service = service().await;
    let (requests, taken) = flood(|_| wire::AnnounceRequest::default());
    tokio::spawn(async move { service.hear(Default::default(), requests).await });
    lets_others_go_on(&taken).await;
}

#[tokio::test]
async fn acknowledgements_without_a_pause_keep_no_other_task_waiting() {
    let service = service().await;
    let (subscription, _shipments) = service.open(start(4)).unwrap();
    let (requests, taken) = flood(|sequence| {
        let durable = subscribe_request::Message::Durable(wire::Position { epoch: 1, sequence });
        wire::SubscribeRequest { message: Some(durable) }
    });
    tokio::spawn(subscription.run(requests));
    lets_others_go_on(&taken).await;
}

#[tokio::test]
async fn only_nodes_of_the_cluster_have_subscriptions() {
    let service = service().await;
    let refused = |node| service.open(start(node)).err().map(|status| status.code());
    assert_eq!(
        [7, 8, u64::MAX].map(refused),
        [None, Some(Code::FailedPrecondition), Some(Code::FailedPrecondition)]
    );
    assert_eq!(service.subscriptions.lock().len(), 1);
}

/// One of which nothing is taken, and which has filled what there is for that.
async fn stuck(
    service: &ShippingService,
    patience: Duration,
) -> (tokio::task::JoinHandle<()>, ReceiverStream<Shipped>) {
    let (mut subscription, shipments) = service.open(start(4)).unwrap();
    subscription.patience = patience;
    while subscription.shipments.capacity() > 0 {
        assert!(subscription.ship(shipment::Message::OpenedEpoch(1)).await.is_ok());
    }
    (tokio::spawn(subscription.run(stream::pending())), shipments)
}

#[tokio::test]
async fn a_subscription_of_which_nothing_is_taken_ends_when_another_takes_its_place() {
    let service = service().await;
    let (subscription, _shipments) = stuck(&service, Duration::from_secs(3600)).await;
    let (_newer, _their_shipments) = service.open(start(4)).unwrap();
    until("it has ended", async || subscription.is_finished()).await;
}

#[tokio::test]
async fn a_subscription_of_which_nothing_is_taken_ends_by_itself() {
    let service = service().await;
    let (subscription, _shipments) = stuck(&service, Duration::from_millis(1)).await;
    until("it has ended", async || subscription.is_finished()).await;
}

/// Calls come from this node, as their connection proves; `None`: it proves nothing.
async fn client(service: ShippingService, caller: Option<u64>) -> ShippingClient<Channel> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let proves = move |mut request: Request<()>| {
        if let Some(node) = caller {
            request.extensions_mut().insert(CallingNode(NodeId(node)));
        }
        Ok::<_, Status>(request)
    };
    let server = InterceptedService::new(service.into_server(), proves);
    let server = Server::builder().add_service(server);
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    ShippingClient::new(Endpoint::from_shared(address).unwrap().connect_lazy())
}

#[tokio::test]
async fn an_announcement_that_is_larger_than_any_is_not_decoded() {
    let mut client = client(service().await, None).await;
    let mut announces = async |statuses| {
        let request = wire::AnnounceRequest {
            statuses: vec![wire::Status::default(); statuses],
            ..Default::default()
        };
        client.announce(stream::iter([request])).await.is_ok()
    };
    // Two bytes each on the wire.
    assert!(announces(MAX_REQUEST_BYTES / 4).await);
    assert!(!announces(MAX_REQUEST_BYTES / 2 + 1).await);
}

#[tokio::test]
async fn node_neither_subscribes_nor_announces_in_the_name_of_another() {
    let mut client = client(service().await, Some(1)).await;
    for (node, refused) in [(1, None), (2, Some(Code::PermissionDenied))] {
        let message = Some(subscribe_request::Message::Start(start(node)));
        let request = wire::SubscribeRequest { message };
        let subscribed = client.subscribe(stream::iter([request])).await;
        assert_eq!(subscribed.err().map(|status| status.code()), refused, "of node {node}");
    }
    for nodes in [[1, 1, 1], [2, 1, 1], [1, 2, 1], [1, 1, 2]] {
        let [node_id, of_status, of_checkpoint] = nodes;
        let statuses = vec![wire::Status { node_id: of_status, ..Default::default() }];
        let checkpoints = vec![wire::Checkpoint { node_id: of_checkpoint, ..Default::default() }];
        let request =
            wire::AnnounceRequest { node_id, statuses, checkpoints, ..Default::default() };
        let announced = client.announce(stream::iter([request])).await;
        let refused = nodes.contains(&2).then_some(Code::PermissionDenied);
        assert_eq!(announced.err().map(|status| status.code()), refused, "of nodes {nodes:?}");
    }
}

#[tokio::test]
async fn node_that_does_not_vote_in_the_directory_gets_no_state_of_it() {
    let service = service().await;
    let shard = DIRECTORY_GROUP.shard.0;
    // It is not here: a fetch that is let through fails of that.
    for (node, code) in [(1, Code::NotFound), (7, Code::PermissionDenied)] {
        let request = wire::FetchStateRequest { shard, epoch: 1, ..Default::default() };
        let refused = service.fetch_state(from_node(node, request)).await.err().unwrap();
        assert_eq!(refused.code(), code, "node {node}: {refused}");
    }
}
