//! A gateway without a node, fed over links that are cut.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::time::Duration;

use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
use meridian_consensus::Peers;
use meridian_failover::Lease;
use meridian_gateway::{Access, Database, Room, Watch, WatchNews, Watching, new_request_id};
use meridian_memory::ByteBudget;
use meridian_storage::{Engine, GroupId, MemoryEngine};
use meridian_types::{
    Consistency, Mutation, MutationKind, NodeId, ShardId, Transaction, Value, ValueEncoding,
};
use meridian_wan::{Direction, Link, LinkProfile};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;

use super::*;
use crate::cluster_view::view::Directory;
use crate::host::clock::BootClock;
use crate::network::peers::PeerChannels;
use crate::read::execution::Reads;
use crate::replication::progress::Followers;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::router::{RoutedWatch, Router};
use crate::routing::write_calls::WriteCalls;
use crate::rpc::shard::ShardService;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::testing::{OnlyVoter, no_changes, no_watches, until};
use crate::write::proposer::{WriteReply, WriteRequest};

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };
const LONG: Duration = Duration::from_secs(20);

/// One voter, which a gateway takes for three: it reaches each over a link of its own.
struct Stage {
    only: OnlyVoter,
    links: BTreeMap<NodeId, Link>,
    router: Arc<Router>,
}

impl Stage {
    async fn start() -> Self {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let only = OnlyVoter::start(&engine, GROUP).await;
        let lease = Lease { ttl: LONG * 100, shards: vec![(GROUP.shard, GROUP.epoch)] };
        only.directory.renewed(only.directory.now(), &lease);
        let peers: Arc<dyn Peers> = only.peers.clone();
        only.voter.group.take_part(&BTreeSet::from([NodeId(1)]), &peers, true).await.unwrap();
        let shards = Arc::new(ShardTable::default());
        shards.add(Arc::clone(&only.voter.state), Followers::watch(&only.voter.state));
        shards.set(GROUP.shard, Some(LocalShard::Voter(Arc::clone(&only.voter))));
        let writes = Arc::new(WriteCalls::new(Arc::clone(&only.peers)));
        let service = ShardService::new(shards, writes, no_watches(&only.directory));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tonic::transport::Server::builder().add_service(service.into_server());
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        let (mut links, mut dialled) = (BTreeMap::new(), BTreeMap::new());
        for node in 1..=3 {
            let profile = LinkProfile::default();
            let link = Link::start("127.0.0.1:0".parse().unwrap(), address, profile, node).await;
            let link = link.unwrap();
            dialled.insert(NodeId(node), link.address().to_string());
            links.insert(NodeId(node), link);
        }
        let router = Arc::new(Self::router(dialled));
        Self { only, links, router }
    }

    fn router(dialled: BTreeMap<NodeId, String>) -> Router {
        let cluster =
            DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let dial = Arc::new(move |node| dialled.get(&node).cloned());
        let peers = Arc::new(PeerChannels::new(&cluster, dial).unwrap());
        let directory = Arc::new(Directory::new(cluster, Access::default(), None));
        let nodes = ClusterNodes {
            local: Arc::default(),
            local_node: None,
            peers: Arc::clone(&peers),
            writes: Arc::new(WriteCalls::new(peers)),
            reads: Reads::new(ByteBudget::new("reads", 8 << 20)),
            changes: no_changes(&directory),
            watches: no_watches(&directory),
        };
        Router::new(nodes, BootClock, None, "region-1".to_owned(), directory, LONG)
    }

    async fn set(&self, key: &'static str, value: &'static str) {
        let value = Value { encoding: ValueEncoding::Bytes, data: value.into() };
        let mutations =
            vec![Mutation { key: key.into(), kind: MutationKind::Set(value), expire_at_ms: 0 }];
        let write = async || {
            let request = WriteRequest {
                database: DEV_DEFAULT_DATABASE,
                request_id: new_request_id(),
                transaction: Transaction { mutations: mutations.clone(), ..Transaction::default() },
                retry: false,
            };
            let reply = self.only.voter.write_when_led(request, None, Duration::MAX).await;
            matches!(reply, WriteReply::Done(_))
        };
        until("the write is done", write).await;
    }

    async fn watch(&self, consistency: Consistency) -> RoutedWatch<ClusterNodes, BootClock> {
        let keys = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        let room = Room::alone(1 << 20);
        let watch = Watch { database: DEV_DEFAULT_DATABASE, consistency, keys, room };
        self.router.watch(watch).await.unwrap()
    }
}

/// `-` where a key has not changed, nothing where it is absent.
fn text(news: &WatchNews) -> Vec<String> {
    let text = |value: &Option<WatchedValue>| {
        let output = WatchedValue::to_wire(value.as_ref());
        let data = output.entry_if_changed.map(|entry| entry.value).unwrap_or_default();
        if output.changed { String::from_utf8(data.to_vec()).unwrap() } else { "-".to_owned() }
    };
    news.iter().map(text).collect()
}

async fn told(watch: &mut RoutedWatch<ClusterNodes, BootClock>) -> Vec<String> {
    let told = poll_fn(|context| watch.poll_news(context));
    let told = tokio::time::timeout(LONG, told).await.expect("news in time");
    text(&told.expect("no end").expect("room for news"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watch_over_the_network_outlives_a_broken_and_a_silent_connection() {
    let mut stage = Stage::start().await;
    stage.set("a", "before").await;
    let mut watch = stage.watch(Consistency::Strong).await;
    assert_eq!(told(&mut watch).await, ["before", ""]);
    stage.set("b", "first").await;
    assert_eq!(told(&mut watch).await, ["-", "first"]);
    // The nearest in order feeds it: it is gone, and then the next falls silent.
    drop(stage.links.remove(&NodeId(1)));
    stage.set("a", "of a broken connection").await;
    assert_eq!(told(&mut watch).await, ["of a broken connection", "-"]);
    stage.links[&NodeId(2)].cut(Direction::Forward);
    stage.links[&NodeId(2)].cut(Direction::Backward);
    stage.set("b", "of a silent one").await;
    assert_eq!(told(&mut watch).await, ["-", "of a silent one"]);
}

#[tokio::test]
async fn what_is_wanted_arrives_as_it_was_asked_for_and_is_refused_where_malformed() {
    let stamp = Versionstamp([7; 10]);
    let wanted = Wanted {
        database: DEV_DEFAULT_DATABASE,
        keys: vec![Bytes::from_static(b"a"), Bytes::from_static(b"b"), Bytes::new()].into(),
        shown: vec![None, Some(None), Some(Some(stamp))],
        min_sequence: 9,
    };
    let group = wire::ShardEpoch { shard: 1, epoch: 1 };
    let sent = super::request(group, &wanted);
    let came = super::wanted(sent.clone()).unwrap();
    assert_eq!((came.database, &came.keys), (wanted.database, &wanted.keys));
    assert_eq!((came.shown, came.min_sequence), (wanted.shown, 9));
    let malformed = |change: fn(&mut wire::WatchRequest)| {
        let mut sent = sent.clone();
        change(&mut sent);
        super::wanted(sent).err()
    };
    assert_eq!(malformed(|sent| sent.database = Bytes::new()), Some("database"));
    let many = malformed(|sent| sent.keys = vec![wire::ShownKey::default(); 11]);
    assert_eq!(many, Some("keys"));
    let short = malformed(|sent| sent.keys[0].shown = Some(Bytes::from_static(b"short")));
    assert_eq!(short, Some("shown"));
}
