//! Replica regions follow by themselves: after being down, after falling behind the retained log,
//! or without a relay.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use futures::future::join_all;
use meridian_proto::admin::ReplicaLag;
use meridian_proto::kv_connect as pb;
use meridian_tests::kv_connect::{DEFAULT_DATABASE, SECOND_DATABASE, range, set};
use meridian_tests::{Cluster, ClusterOptions, KvClient, poll};
use meridian_types::{Consistency, NodeId};

const DEADLINE: Duration = Duration::from_secs(60);
/// Sequential writers, so that batches are many and small.
const WRITERS: u64 = 4;

/// Writes `count` keys under `prefix`, each in a transaction of its own, through several gateways.
async fn write_many(cluster: &Cluster, through: &[NodeId], prefix: &str, count: u64, value: &[u8]) {
    let writer = async |number: u64| {
        let through = through[usize::try_from(number).unwrap() % through.len()];
        let client = cluster.client(through, DEFAULT_DATABASE);
        for at in (number..count).step_by(usize::try_from(WRITERS).unwrap()) {
            client.set(format!("{prefix}/{at:06}").as_bytes(), value).await.unwrap();
        }
    };
    join_all((0..WRITERS).map(writer)).await;
}

/// The keys under `prefix`, in one snapshot for each thousand.
async fn count(client: &KvClient, consistency: Consistency, prefix: &str) -> u64 {
    let (mut start, end) = (format!("{prefix}/").into_bytes(), format!("{prefix}0").into_bytes());
    let mut count = 0;
    loop {
        let read = client.read(consistency, vec![range(&start, &end, 1000)]).await.unwrap();
        let values = &read.ranges[0].values;
        let Some(last) = values.last() else { return count };
        count += values.len() as u64;
        start = [&last.key[..], &[0]].concat();
    }
}

/// Waits until this node has all keys under `prefix` in its own state.
async fn has_all(cluster: &Cluster, node: impl Into<NodeId>, prefix: &str, all: u64) {
    let node = node.into();
    let client = cluster.client(node, DEFAULT_DATABASE);
    poll::until(&format!("node {node} has {prefix}"), DEADLINE, async || {
        match count(&client, Consistency::Eventual, prefix).await {
            count if count == all => Ok(()),
            count => Err(count),
        }
    })
    .await;
}

/// The lag of `node`, as reported by the leader of shard 1.
async fn lag(cluster: &Cluster, node: impl Into<NodeId>) -> ReplicaLag {
    let NodeId(node) = node.into();
    let status = cluster.shard_status(cluster.leader(1).await, 1).await.unwrap();
    *status.subscribers.iter().find(|lag| lag.node_id == node).expect("every follower is listed")
}

async fn no_lag(cluster: &Cluster, node: impl Into<NodeId>) {
    let node = node.into();
    poll::until(&format!("node {node} does not lag"), DEADLINE, async || {
        let lag = lag(cluster, node).await;
        if lag.connected && lag.lag_batches == 0 { Ok(()) } else { Err(lag) }
    })
    .await;
}

#[tokio::test]
async fn replicas_that_were_down_catch_up() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    write_many(&cluster, &[1, 2, 3, 4].map(NodeId), "before", 200, b"v").await;
    for node in [4, 5, 6] {
        has_all(&cluster, node, "before", 200).await;
    }
    // One of two nodes in a region, and the only node of another. Node 4 votes in the directory, as
    // nodes 1 and 6 do: without two of them, leases would run out before all is written on a slow
    // machine.
    cluster.kill(5);
    cluster.kill(6);
    write_many(&cluster, &[1, 2, 3, 4].map(NodeId), "meanwhile", 2000, &[7; 500]).await;
    poll::until("the lag of node 6 is told", DEADLINE, async || {
        let lag = lag(&cluster, 6).await;
        let told =
            !lag.connected && lag.lag_batches > 100 && lag.lag_bytes > 100_000 && lag.lag_ms > 0;
        if told { Ok(()) } else { Err(lag) }
    })
    .await;
    let shown = cluster.status_text();
    assert!(shown.contains("region-3-a") && shown.contains("does not answer"), "{shown}");
    cluster.restart(5);
    cluster.restart(6);
    for node in [5, 6] {
        cluster.node_ready(node).await;
        has_all(&cluster, node, "before", 200).await;
        has_all(&cluster, node, "meanwhile", 2000).await;
        no_lag(&cluster, node).await;
    }
    cluster.assert_all_run();
}

#[tokio::test]
async fn node_behind_the_retained_log_takes_a_snapshot() {
    let options = ClusterOptions { log_retention_mb: Some(1), ..ClusterOptions::default() };
    let mut cluster = Cluster::start(options).await;
    write_many(&cluster, &[1, 2].map(NodeId), "before", 100, b"v").await;
    // Keys deleted while the nodes are away must disappear there, too.
    let second = cluster.client(2, SECOND_DATABASE);
    second.set(b"kept", b"v").await.unwrap();
    has_all(&cluster, 6, "before", 100).await;
    // A voter and a replica.
    let leader = cluster.leader(1).await;
    let voter = cluster.region(0).into_iter().find(|id| *id != leader).unwrap();
    let others: Vec<NodeId> =
        cluster.node_ids().into_iter().filter(|id| ![voter, NodeId(6)].contains(id)).collect();
    let durable = lag(&cluster, 6).await.durable_sequence;
    cluster.kill(voter);
    cluster.kill(6);
    cluster
        .client(4, DEFAULT_DATABASE)
        .write(pb::AtomicWrite {
            mutations: (0..50)
                .map(|at| meridian_tests::kv_connect::delete(format!("before/{at:06}").as_bytes()))
                .collect(),
            ..Default::default()
        })
        .await
        .unwrap();
    // More batches than are kept in any case, and more bytes than are retained.
    let mut written = 0;
    poll::until("the logs of the voters are purged", DEADLINE, async || {
        write_many(&cluster, &others, &format!("meanwhile-{written}"), 1000, &[7; 2000]).await;
        written += 1;
        // On every voter: the returning node may ask any of their logs first.
        let mut first = u64::MAX;
        for id in cluster.region(0).into_iter().filter(|id| *id != voter) {
            first = first.min(cluster.shard_status(id, 1).await.unwrap().first_sequence);
        }
        if first > durable + 1 { Ok(()) } else { Err(first) }
    })
    .await;
    cluster.restart(voter);
    cluster.restart(6);
    for node in [NodeId(6), voter] {
        cluster.node_ready(node).await;
        has_all(&cluster, node, "before", 50).await;
        for number in 0..written {
            has_all(&cluster, node, &format!("meanwhile-{number}"), 1000).await;
        }
        no_lag(&cluster, node).await;
        let status = cluster.shard_status(node, 1).await.unwrap();
        assert!(
            status.first_sequence == 0 || status.first_sequence > durable + 1,
            "it came by the log: {status:?}"
        );
        let kept = cluster
            .client(node, SECOND_DATABASE)
            .get_with(Consistency::Eventual, b"kept")
            .await
            .unwrap();
        assert_eq!(kept.unwrap().value, &b"v"[..]);
    }
    // The node votes again: with it and without the leader, the shard goes on.
    let leader = cluster.leader(1).await;
    let victim = if leader == voter {
        cluster.region(0).into_iter().find(|id| *id != voter).unwrap()
    } else {
        leader
    };
    cluster.kill(victim);
    write_many(&cluster, &[voter, NodeId(6)], "without", 100, b"v").await;
    has_all(&cluster, 6, "without", 100).await;
    cluster.restart(victim);
    cluster.ready().await;
    cluster.assert_all_run();
}

/// The node of the second region that is its relay.
async fn relay(cluster: &Cluster, among: &[NodeId]) -> NodeId {
    poll::until("one relay in the region", DEADLINE, async || {
        let mut relays = Vec::new();
        for id in among {
            let status = cluster.shard_status(*id, 1).await.map_err(|status| status.to_string())?;
            if status.role == "relay" {
                relays.push(*id);
            }
        }
        match relays[..] {
            [relay] => Ok(relay),
            _ => Err(format!("{relays:?}")),
        }
    })
    .await
}

#[tokio::test]
async fn node_takes_over_from_a_relay_that_dies_or_hangs() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for round in 0..2 {
        let first = relay(&cluster, &[4, 5].map(NodeId)).await;
        let other = NodeId(if first == NodeId(4) { 5 } else { 4 });
        // The node follows the relay, not a voter: each batch crosses the WAN once.
        poll::until("the other follows the relay", DEADLINE, async || {
            let source =
                cluster.shard_status(other, 1).await.map_err(|status| status.to_string())?.source;
            if source == first.0 { Ok(()) } else { Err(source.to_string()) }
        })
        .await;
        if round == 0 {
            cluster.kill(first)
        } else {
            cluster.pause(first)
        }
        let prefix = format!("relay-{round}");
        write_many(&cluster, &[NodeId(1), NodeId(2), NodeId(3), other], &prefix, 300, b"v").await;
        has_all(&cluster, other, &prefix, 300).await;
        assert_eq!(relay(&cluster, &[other]).await, other);
        if round == 0 {
            cluster.restart(first)
        } else {
            cluster.resume(first)
        }
        cluster.node_ready(first).await;
        has_all(&cluster, first, &prefix, 300).await;
        no_lag(&cluster, first).await;
        no_lag(&cluster, other).await;
    }
    cluster.assert_all_run();
}

#[tokio::test]
async fn paused_replica_lags_visibly_and_delays_no_write() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    write_many(&cluster, &[1].map(NodeId), "before", 20, b"v").await;
    no_lag(&cluster, 6).await;
    cluster.pause(6);
    write_many(&cluster, &[1, 4].map(NodeId), "meanwhile", 500, &[7; 100]).await;
    poll::until("the lag grows", DEADLINE, async || {
        let lag = lag(&cluster, 6).await;
        let grown =
            lag.lag_batches > 10 && lag.lag_bytes > 1000 && lag.lag_ms > 1000 && !lag.connected;
        if grown { Ok(()) } else { Err(lag) }
    })
    .await;
    cluster.resume(6);
    has_all(&cluster, 6, "meanwhile", 500).await;
    no_lag(&cluster, 6).await;
    cluster.assert_all_run();
}

#[tokio::test]
async fn a_stateless_gateway_serves_beside_an_application() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for region in 0..cluster.regions() {
        let url = cluster.start_gateway(region).await;
        for database in [DEFAULT_DATABASE, SECOND_DATABASE] {
            let client = meridian_tests::kv_connect::client(url.clone(), database);
            let stamp = client.set(b"k", url.as_bytes()).await.unwrap();
            let entry = client.get(b"k").await.unwrap().unwrap();
            assert_eq!((entry.value, entry.versionstamp), (url.clone().into(), stamp.clone()));
            poll::until("an eventual read", DEADLINE, async || {
                let entry = client.get_with(Consistency::Eventual, b"k").await.unwrap();
                entry.filter(|entry| entry.versionstamp == stamp).map(drop).ok_or("an older one")
            })
            .await;
        }
        // The gateway goes on without the leader, and without the node that it reads from.
        let client = meridian_tests::kv_connect::client(url, DEFAULT_DATABASE);
        let leader = cluster.leader(1).await;
        let nearest = cluster.region(region)[0];
        // Node 1 and the first node of each other region vote in the directory: without two of them
        // leases run out, and a voter that has just started is granted none.
        if region == 0 || leader != NodeId(1) {
            cluster.kill(leader);
        }
        if region > 0 {
            cluster.kill(nearest);
        }
        for number in 0..20 {
            client
                .write(pb::AtomicWrite {
                    mutations: vec![set(b"n", &[number])],
                    ..Default::default()
                })
                .await
                .unwrap();
            client.get_with(Consistency::Eventual, b"n").await.unwrap();
        }
        assert_eq!(client.get(b"n").await.unwrap().unwrap().value, &[19][..]);
        cluster.start_all();
        cluster.ready().await;
    }
    cluster.assert_all_run();
}
