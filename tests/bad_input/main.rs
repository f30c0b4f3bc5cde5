//! To any input, a node answers as `docs/kv-connect.md` says or closes the connection, and serves
//! on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use meridian_tests::kv_connect::{DEFAULT_DATABASE, SECOND_DATABASE};
use meridian_tests::{Cluster, ClusterOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use gateway::Gateway;

mod gateway;
mod peers;

/// The term of malformed votes, which no group comes to by itself.
const CLAIMED_TERM: u64 = 1_000_000;

/// The time for a connection to be answered or closed.
const DEADLINE: Duration = Duration::from_secs(40);

/// Every node answers, reads its earlier write, and takes a new one.
async fn all_serve(cluster: &mut Cluster) {
    cluster.assert_all_run();
    for id in cluster.node_ids() {
        for database in [DEFAULT_DATABASE, SECOND_DATABASE] {
            let client = cluster.client(id, database);
            let value = format!("by node {id}");
            client.set(b"alive", value.as_bytes()).await.unwrap();
            assert_eq!(client.get(b"alive").await.unwrap().unwrap().value, value);
        }
    }
    cluster.assert_all_run();
}

/// Sends `bytes`, then reads until the server closes; the answer does not matter.
async fn converse(name: &str, address: &str, bytes: &[u8]) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    // The server may close before it has read all.
    drop(stream.write_all(bytes).await);
    drop(stream.shutdown().await);
    let mut answer = Vec::new();
    let closed = tokio::time::timeout(DEADLINE, stream.read_to_end(&mut answer)).await;
    assert!(closed.is_ok(), "{name}: the connection stays open");
}

#[tokio::test]
async fn every_bad_request_is_answered_as_documented() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    // A voter, and a node that forwards.
    for id in [1, 6] {
        let gateway = Gateway { client: cluster.client(id, DEFAULT_DATABASE) };
        gateway.metadata().await;
        gateway.heads().await;
        gateway.limits().await;
        gateway.mutations().await;
        gateway.type_errors().await;
        gateway.sockets().await;
        cluster.assert_all_run();
    }
    all_serve(&mut cluster).await;
}

#[tokio::test]
async fn malformed_rpc_takes_no_node_down() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    cluster.client(1, DEFAULT_DATABASE).set(b"before", b"v").await.unwrap();
    let terms = async |cluster: &Cluster| {
        cluster.shard_status(cluster.leader(1).await, 1).await.unwrap().term
    };
    let before = terms(&cluster).await;
    assert!(before < CLAIMED_TERM);
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let noise: Vec<u8> =
        (0..65_536u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let oversized = [&preface[..], b"\xff\xff\xff\0\0\0\0\0\x01", &[0; 4096]].concat();
    for id in cluster.node_ids() {
        let address = cluster.rpc_address(id).to_owned();
        for (name, bytes) in [
            ("noise", &noise[..]),
            ("HTTP/1.1", b"GET / HTTP/1.1\r\nHost: k\r\n\r\n"),
            ("bad HTTP/2", &[&preface[..], &noise[..1024]].concat()),
            ("an oversized frame", &oversized),
        ] {
            converse(name, &address, bytes).await;
        }
        peers::malformed_calls(&cluster, id).await;
        peers::calls_of_another_cluster(&cluster, id).await;
    }
    let client = cluster.client(6, DEFAULT_DATABASE);
    assert_eq!(client.get(b"by rpc").await.unwrap(), None);
    assert_eq!(client.get(b"before").await.unwrap().unwrap().value, &b"v"[..]);
    // Nodes that stand still for some time stand for election by themselves.
    let after = terms(&cluster).await;
    assert!(after < CLAIMED_TERM, "term {before} became {after}");
    all_serve(&mut cluster).await;
}
