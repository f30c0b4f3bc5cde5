//! Disks that are slow, and disks that are full.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meridian_consensus::RaftTiming;

use crate::seal::three;
use crate::support::{Node, at, equal, leader, set, until, write};
use crate::wire::Wire;

/// On one thread, which drives all members and is to wait for no disk.
#[tokio::test]
async fn no_member_waits_for_its_disk_on_the_runtime() {
    let wire = Arc::new(Wire::default());
    let (mut nodes, voters) = (Vec::new(), set(1..=3));
    for id in 1..=3 {
        let mut node = Node::new(id, &wire).await;
        if id < 3 {
            // The third is seeded: it joins by a snapshot.
            node.replicate(4, "before");
            node.form(1, &voters, at(1, 4));
        }
        node.watched.watch_this_thread(false);
        node.open(1, &voters).await;
        nodes.push(node);
    }
    let last = write(&nodes, 3, "here").await;
    until("all have it", async || nodes.iter().all(|node| node.state.position() == at(1, last)))
        .await;
    assert!(wire.fetched(crate::support::group(1)) > 0, "the third was seeded");
    // Another leader: votes are saved.
    let first = leader(&nodes).await.id;
    let next = nodes.iter().find(|node| node.id != first).unwrap().id;
    until("another leads", async || {
        let leading = leader(&nodes).await;
        if leading.id == first {
            drop(leading.group().transfer_leadership(next).await);
        }
        leading.id != first
    })
    .await;
    let last = write(&nodes, 2, "there").await;
    equal(&nodes, at(1, last)).await;
    for node in &nodes {
        node.group().purge_through(last).await.unwrap();
        assert_eq!(node.watched.found(), Vec::<&str>::new(), "node {}", node.id);
    }
}

/// A vote is answered once it is durable.
#[tokio::test(flavor = "multi_thread")]
async fn members_whose_disks_take_most_of_a_lease_to_save_a_vote_elect_a_leader() {
    let (wire, voters) = (Arc::new(Wire::default()), set(1..=3));
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let mut node = Node::new(id, &wire).await;
        node.timing = RaftTiming {
            heartbeat_ms: 150,
            election_timeout_min_ms: 600,
            election_timeout_max_ms: 900,
        };
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
        nodes.push(node);
    }
    write(&nodes, 1, "before").await;
    let lost = leader(&nodes).await.id;
    nodes.iter().for_each(|node| node.watched.syncs_take(Duration::from_millis(650)));
    let mut lost = nodes.remove(usize::try_from(lost.0).unwrap() - 1);
    lost.close().await;
    write(&nodes, 1, "after").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_whose_disk_is_full_appends_nothing_follows_its_leader_and_catches_up_later() {
    let nodes = three(&Arc::new(Wire::default())).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await;
    let term = leading.group().leadership().unwrap().term;
    let full = nodes.iter().find(|node| node.id != leading.id).unwrap();
    full.full.store(true, Ordering::Relaxed);
    let more = write(&nodes, 20, "while it is full").await;
    // Several election timeouts: it hears its leader all the while.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        write(&nodes, 1, "while it is full").await;
    }
    assert_eq!(full.state.position(), at(1, last), "it was to append nothing");
    assert_eq!(
        leader(&nodes).await.group().leadership().unwrap().term,
        term,
        "it stood for election"
    );
    full.full.store(false, Ordering::Relaxed);
    equal(&nodes, at(1, more + 10)).await;
}

#[tokio::test]
async fn a_state_that_is_being_copied_to_a_voter_stops_when_its_disk_is_full() {
    let wire = Arc::new(Wire::default());
    let (mut nodes, voters) = (Vec::new(), set(1..=3));
    wire.hold_fetches(true);
    for id in 1..=3 {
        let mut node = Node::new(id, &wire).await;
        if id < 3 {
            node.replicate(4, "before");
            node.form(1, &voters, at(1, 4));
        }
        node.open(1, &voters).await;
        nodes.push(node);
    }
    until("the third is sent a state", async || wire.is_fetching()).await;
    nodes[2].full.store(true, Ordering::Relaxed);
    until("it takes no more of it", async || !wire.is_fetching()).await;
    // Nor of what it is offered next.
    for _ in 0..20 {
        write(&nodes, 1, "while it is full").await;
        assert!(!wire.is_fetching());
    }
    nodes[2].full.store(false, Ordering::Relaxed);
    wire.hold_fetches(false);
    let last = write(&nodes, 1, "with room").await;
    equal(&nodes, at(1, last)).await;
}
