//! Through real connections: a gateway's router, an emulated link, and a node that has no shard but
//! answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use bytes::Bytes;
use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
use meridian_gateway::{Access, Database, Read};
use meridian_memory::{ByteBudget, Shares};
use meridian_proto::shard::shard_client::ShardClient;
use meridian_proto::shard::shard_server::{Shard, ShardServer};
use meridian_types::{Consistency, ReadRange, Value, ValueEncoding, Versionstamp};
use tokio::net::TcpListener;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};

use super::*;
use crate::cluster_view::view::Directory;
use crate::host::clock::BootClock;
use crate::network::peers::PeerChannels;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::router::Router;
use crate::routing::write_calls::WriteCalls;
use crate::testing::{no_changes, no_watches};
use meridian_wan::{Link, LinkProfile};

/// Answers each read with so many entries.
struct Answers {
    entries: usize,
    key_bytes: usize,
    /// Answers never.
    hangs: bool,
    reads: Arc<AtomicUsize>,
    at_work: Arc<AtomicUsize>,
}

struct AtWork(Arc<AtomicUsize>);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Shard for Answers {
    type ReadStream = BoxStream<'static, Result<wire::ReadPart, Status>>;
    type WatchStream = BoxStream<'static, Result<wire::WatchNews, Status>>;

    async fn watch(
        &self,
        _: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("only reads"))
    }

    async fn write(
        &self,
        _: Request<wire::WriteRequest>,
    ) -> Result<Response<wire::WriteResponse>, Status> {
        Err(Status::unimplemented("only reads"))
    }

    async fn read(
        &self,
        request: Request<wire::ReadRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.at_work.fetch_add(1, Ordering::SeqCst);
        let at_work = AtWork(Arc::clone(&self.at_work));
        let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; 64 << 10].into() };
        let entry = |number: usize| Entry {
            key: format!("{number:0width$}", width = self.key_bytes).into(),
            value: value.clone(),
            versionstamp: Versionstamp([1; 10]),
        };
        let limit = request.into_inner().ranges[0].limit.try_into().unwrap();
        let ranges = vec![(0..self.entries.min(limit)).map(entry).collect()];
        let view = ReadView { ranges, position: Position::new(Epoch(1), 5) };
        let hangs = self.hangs;
        let reply = async move {
            let _at_work = at_work;
            if hangs {
                std::future::pending::<()>().await;
            }
            (Ok(view), Some(NodeId(1)))
        };
        Ok(Response::new(parts(reply)))
    }

    async fn read_position(
        &self,
        _: Request<wire::ReadPositionRequest>,
    ) -> Result<Response<wire::ReadPositionResponse>, Status> {
        Err(Status::unimplemented("only reads"))
    }
}

/// A gateway that reaches all voters through one link to one server.
struct Stage {
    router: Router,
    reads: Arc<AtomicUsize>,
    at_work: Arc<AtomicUsize>,
    memory: ByteBudget,
    peers: Arc<PeerChannels>,
    _link: Link,
}

async fn stage(entries: usize, key_bytes: usize, hangs: bool, profile: LinkProfile) -> Stage {
    let (reads, at_work) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let answers = Answers {
        entries,
        key_bytes,
        hangs,
        reads: Arc::clone(&reads),
        at_work: Arc::clone(&at_work),
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = tonic::transport::Server::builder().add_service(ShardServer::new(answers));
    tokio::spawn(server.serve_with_incoming(incoming));
    let link = Link::start("127.0.0.1:0".parse().unwrap(), address, profile, 1).await.unwrap();
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let dialled = link.address().to_string();
    let peers =
        Arc::new(PeerChannels::new(&cluster, Arc::new(move |_| Some(dialled.clone()))).unwrap());
    let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
    let memory = ByteBudget::new("reads", Shares::of_gateway(0).reads);
    let nodes = ClusterNodes {
        local: Arc::default(),
        local_node: None,
        peers: Arc::clone(&peers),
        writes: Arc::new(WriteCalls::new(Arc::clone(&peers))),
        reads: Reads::new(memory.clone()),
        changes: no_changes(&directory),
        watches: no_watches(&directory),
    };
    let router = Router::new(
        nodes,
        BootClock,
        None,
        "region-2".to_owned(),
        directory,
        Duration::from_secs(10),
    );
    Stage { router, reads, at_work, memory, peers, _link: link }
}

fn read() -> Read {
    let ranges =
        vec![ReadRange { start: Bytes::new(), end: "~".into(), limit: 1000, reverse: false }];
    Read { database: DEV_DEFAULT_DATABASE, consistency: Consistency::Strong, ranges }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_largest_legal_answer_arrives() {
    let stage = stage(1000, 2048, false, LinkProfile::default()).await;
    let output = stage.router.read(read()).await.unwrap();
    let bytes: usize =
        output.ranges[0].iter().map(|entry| entry.key.len() + entry.value.data.len()).sum();
    assert_eq!((output.ranges[0].len(), bytes), (1000, 1000 * (2048 + (64 << 10))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_waited_for_while_it_comes_over_a_slow_and_long_link() {
    let mut profile = LinkProfile::of_round_trip(Duration::from_millis(190));
    profile.bytes_per_second = Some(50_000_000 / 8);
    // 24 MB: four seconds, far more than one try may take to its first byte.
    let stage = stage(384, 60, false, profile).await;
    let began = Instant::now();
    let output = stage.router.read(read()).await.unwrap();
    assert_eq!(output.ranges[0].len(), 384);
    assert!(
        began.elapsed() > Duration::from_secs(3),
        "the link is not slow: {:?}",
        began.elapsed()
    );
    // A read that is given up for its slow bytes begins again each 800 ms, some ten times. A machine at
    // work on much else may be late with a first byte, and is asked again for it.
    let reads = stage.reads.load(Ordering::SeqCst);
    assert!(reads <= 3, "{reads} reads for one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_without_a_waiting_caller_ends_at_the_node() {
    let stage = stage(1, 60, true, LinkProfile::default()).await;
    let router = Arc::new(stage.router);
    let reading = tokio::spawn(async move { router.read(read()).await.map(drop) });
    let long = Instant::now() + Duration::from_secs(20);
    while stage.at_work.load(Ordering::SeqCst) == 0 {
        assert!(Instant::now() < long, "no read began");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    reading.abort();
    while stage.at_work.load(Ordering::SeqCst) > 0 {
        assert!(Instant::now() < long, "the read goes on");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_other_nodes_stay_within_the_budget_and_in_nobodys_way() {
    // 25 MB each, of 84 in all.
    let stage = stage(384, 60, false, LinkProfile::default()).await;
    let (router, memory) = (Arc::new(stage.router), stage.memory);
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(router.read(read()).await.unwrap());
    }
    assert!(memory.used_bytes() > 3 * 384 * (64 << 10), "what is held is not counted: {memory:?}");
    let waiting: Vec<_> = (0..4)
        .map(|_| {
            tokio::spawn({
                let router = Arc::clone(&router);
                async move { router.read(read()).await }
            })
        })
        .collect();
    // While they wait, other answers come over the same connection.
    let long = Instant::now() + Duration::from_secs(20);
    while stage.reads.load(Ordering::SeqCst) < 7 {
        assert!(Instant::now() < long, "they are not asked for");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let one = wire::ReadRequest {
        ranges: vec![meridian_proto::read_range_to_wire(&ReadRange {
            limit: 1,
            ..read().ranges[0].clone()
        })],
        ..wire::ReadRequest::default()
    };
    let other = async {
        let mut client = ShardClient::new(stage.peers.requests(NodeId(1)).unwrap());
        let mut parts = client.read(one).await.unwrap().into_inner();
        let mut count = 0;
        while parts.message().await.unwrap().is_some() {
            count += 1;
        }
        count
    };
    assert_eq!(
        tokio::time::timeout(Duration::from_secs(20), other).await,
        Ok(2),
        "an answer is in the way of others"
    );
    for reading in waiting {
        let refused = reading.await.unwrap().map(drop).unwrap_err();
        assert!(refused.reason.contains("short of memory for reads"), "{refused}");
    }
    // Then there is room for one more, which was asked for twice.
    let before = stage.reads.load(Ordering::SeqCst);
    let waiting = tokio::spawn({
        let router = Arc::clone(&router);
        async move { router.read(read()).await }
    });
    while stage.reads.load(Ordering::SeqCst) == before {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    held.pop();
    held.push(waiting.await.unwrap().unwrap());
    assert_eq!(held.iter().map(|output| output.ranges[0].len()).sum::<usize>(), 3 * 384);
    drop(held);
    assert_eq!(memory.used_bytes(), 0, "all is given back");
}

#[test]
fn parts_are_bounded_and_hold_everything_in_order() {
    let entry = |number: usize, bytes: usize| Entry {
        key: number.to_string().into(),
        value: Value { encoding: ValueEncoding::Bytes, data: vec![0; bytes].into() },
        versionstamp: Versionstamp([1; 10]),
    };
    let large: Vec<_> = (0..10).map(|number| entry(number, 64 << 10)).collect();
    let small: Vec<_> = (0..5000).map(|number| entry(number, 20)).collect();
    let view =
        ReadView { ranges: vec![large, Vec::new(), small], position: Position::new(Epoch(2), 9) };
    let mut counts = [0; 3];
    for part in view_parts(view, None) {
        let bytes = prost::Message::encoded_len(&wire::ReadPart { part: Some(part.clone()) });
        assert!(bytes < PART_BYTES + (68 << 10), "{bytes}");
        if let Part::Entries(entries) = part {
            for value in &entries.values {
                assert_eq!(value.key, counts[entries.range as usize].to_string());
                counts[entries.range as usize] += 1;
            }
        }
    }
    assert_eq!(counts, [10, 0, 5000]);
}
