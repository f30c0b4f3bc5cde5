//! A group over the longest distances, as the directory is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::RaftTiming;
use meridian_types::NodeId;

use crate::support::{Node, at, equal, leader, set, until, write};
use crate::wire::Wire;

#[tokio::test(flavor = "multi_thread")]
async fn a_round_trip_may_take_longer_than_heartbeats_are_apart() {
    let wire = Arc::new(Wire::default());
    let voters = set(1..=3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        // 190 ms for the way around half the world, and 20 for what lies at its ends.
        let mut node = Node::far(id, &wire, Duration::from_millis(105)).await;
        node.timing = RaftTiming {
            heartbeat_ms: 200,
            election_timeout_min_ms: 1000,
            election_timeout_max_ms: 2000,
        };
        node.form(1, &voters, at(1, 0));
        nodes.push(node);
    }
    for node in &mut nodes {
        node.open(1, &voters).await;
    }
    nodes[0].group().elect_now().await;
    let first = leader(&nodes).await;
    assert_eq!(first.id, NodeId(1));
    // Idle for longer than any timeout: the same leader, and a lease that is always renewed in
    // time.
    until("a lease", async || first.group().leadership().unwrap().lease_until.is_some()).await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        let leads = first.group().leadership().unwrap();
        assert_eq!(leads.term, 1);
        let left = leads.lease_until.unwrap().saturating_duration_since(Instant::now());
        assert!(left > Duration::from_millis(100), "{left:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A quorum's word takes two round trips at most.
    for _ in 0..5 {
        let start = Instant::now();
        first.group().read_index().await.unwrap();
        assert!(start.elapsed() < Duration::from_millis(800), "{:?}", start.elapsed());
    }
    write(&nodes, 3, "far").await;
    equal(&nodes, at(1, 3)).await;
    // A new leader is found.
    nodes[0].close().await;
    write(&nodes[1..], 1, "far").await;
}
