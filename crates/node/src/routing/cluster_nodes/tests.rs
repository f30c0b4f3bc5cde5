//! Nodes that are there: one of this process, and addresses where nothing answers.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::future::join_all;
use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
use meridian_consensus::{LogCache, Peers, RaftGroup, RaftGroupOptions, RaftTiming};
use meridian_gateway::{Access, Database, WriteFailure, new_request_id};
use meridian_memory::ByteBudget;
use meridian_storage::{Engine, GroupId, ShardState, ShippedLog, Syncer};
use meridian_types::{EpochHistory, Position, ReadRange, Transaction};
use tokio::net::{TcpSocket, TcpStream};

use super::*;
use crate::cluster_view::view::Directory;
use crate::host::clock::BootClock;
use crate::host::clocks::Clocks;
use crate::read::execution::Reads;
use crate::read::execution::tests::Endless;
use crate::replication::progress::Followers;
use crate::replication::snapshot_transfer::StateExchange;
use crate::routing::router::Router;
use crate::shard::voter::{Voter, VoterParts};
use crate::testing::no_changes;
use crate::write::division::WriteBytes;
use crate::write::proposer::AdmitAll;

fn router(
    address: &str,
    local: Arc<ShardTable>,
    local_node: Option<NodeId>,
    deadline: Duration,
) -> (Router, Arc<PeerChannels>, Arc<Directory>) {
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let address = address.to_owned();
    let peers =
        Arc::new(PeerChannels::new(&cluster, Arc::new(move |_| Some(address.clone()))).unwrap());
    let directory = Arc::new(Directory::new(cluster.clone(), Access::default(), None));
    let writes = Arc::new(WriteCalls::new(Arc::clone(&peers)));
    let reads = Reads::new(ByteBudget::new("reads", 8 << 20));
    let watches = Arc::new(Watches::new(Arc::clone(&directory), reads.clone()));
    let changes = no_changes(&directory);
    let nodes = {
        let peers = Arc::clone(&peers);
        ClusterNodes { local, local_node, peers, writes, reads, changes, watches }
    };
    let router = Router::new(
        nodes,
        BootClock,
        local_node,
        "region-1".to_owned(),
        Arc::clone(&directory),
        deadline,
    );
    (router, peers, directory)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_at_the_local_node_is_waited_for_while_it_is_at_work_and_made_once() {
    let endless = Endless::ending();
    let (held, scans) = (Arc::clone(&endless.held), Arc::clone(&endless.scans));
    *held.0.lock().unwrap() = true;
    let engine: Arc<dyn Engine> = endless;
    let shards = Arc::new(ShardTable::default());
    // Nothing is at the port of discarding: the other nodes are out of reach.
    let (router, peers, directory) =
        router("127.0.0.1:9", Arc::clone(&shards), Some(NodeId(1)), Duration::from_secs(10));
    let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
    let state = Arc::new(ShardState::open(Arc::clone(&engine), group.shard).unwrap());
    shards.add(Arc::clone(&state), Followers::watch(&state));
    let voters = BTreeSet::from([NodeId(1)]);
    RaftGroup::form(&state, group, &voters, Position::ZERO, None).unwrap();
    let raft_peers = Arc::clone(&peers) as Arc<dyn Peers>;
    let group = RaftGroup::open(RaftGroupOptions {
        node_id: NodeId(1),
        group,
        state,
        syncer: Arc::new(Syncer::start(Arc::clone(&engine)).unwrap()),
        high_water: None,
        peers: raft_peers,
        transfer: Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&peers))),
        log_cache: LogCache::default(),
        timing: RaftTiming {
            heartbeat_ms: 20,
            election_timeout_min_ms: 60,
            election_timeout_max_ms: 90,
        },
    });
    let voter = Voter::start(VoterParts {
        group: group.await.unwrap(),
        history: EpochHistory::first(),
        shipped: ShippedLog::open(&engine, ShardId(1)).unwrap(),
        directory,
        peers,
        policy: Arc::new(AdmitAll),
        writes: WriteBytes::new("writes", 8 << 20),
        time: Arc::new(Clocks::default()),
        reads: Reads::new(ByteBudget::new("reads", 8 << 20)),
        founder: true,
    });
    shards.set(ShardId(1), Some(LocalShard::Voter(Arc::new(voter))));
    let ranges = vec![ReadRange { start: Bytes::new(), end: "z".into(), limit: 9, reverse: false }];
    let read = Read { database: DEV_DEFAULT_DATABASE, consistency: Consistency::Eventual, ranges };
    let reading = tokio::spawn(async move { router.read(read).await });
    // Longer than a try takes to its first sign of life.
    tokio::time::sleep(Duration::from_secs(2)).await;
    *held.0.lock().unwrap() = false;
    held.1.notify_all();
    assert_eq!(reading.await.unwrap().unwrap().ranges.len(), 1);
    assert_eq!(scans.load(Ordering::SeqCst), 1, "its work was thrown away");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writes_to_an_address_that_drops_what_comes_have_not_committed() {
    // A listener whose backlog is full answers no connection.
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(1).unwrap();
    let address = listener.local_addr().unwrap();
    let mut filling = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
    {
        filling.push(connected.unwrap());
    }
    let (router, ..) = router(&address.to_string(), Arc::default(), None, Duration::from_secs(3));
    let began = Instant::now();
    let write = || {
        let (database, request_id) = (DEV_DEFAULT_DATABASE, new_request_id());
        let transaction = Transaction::default();
        router.write(Write { database, request_id, may_come_again: false, transaction })
    };
    for outcome in join_all((0..200).map(|_| write())).await {
        let failed = outcome.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}
