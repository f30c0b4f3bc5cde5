//! The end of an epoch, and the first leader of the next.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::{Peers, Role};
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_types::NodeId;
use tonic::Code;

use crate::support::{Node, SHARD, at, equal, group, leader, role, set, until, write};
use crate::wire::Wire;

pub(crate) async fn three(wire: &Arc<Wire>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let voters = set(1..=3);
    for id in 1..=3 {
        let mut node = Node::new(id, wire).await;
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
        nodes.push(node);
    }
    nodes
}

#[tokio::test]
async fn a_sealed_group_goes_on_under_its_leader_and_elects_no_other() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    write(&nodes, 2, "before").await;
    let first = leader(&nodes).await.id;
    let mut terms = Vec::new();
    for node in &nodes {
        node.group().seal();
        terms.push(node.group().term().await);
    }
    assert!(terms.iter().all(|term| *term == terms[0]), "{terms:?}");
    write(&nodes, 2, "under way").await;
    equal(&nodes, at(1, 4)).await;
    // No member may take over, by the leader's will or without it.
    let index = usize::try_from(first.0 - 1).unwrap();
    let follower = &nodes[(index + 1) % 3];
    assert!(nodes[index].group().transfer_leadership(follower.id).await.is_err());
    assert!(!follower.group().votes());
    follower.group().elect_now().await;
    nodes[index].close().await;
    let left: Vec<&Node> = nodes.iter().filter(|node| node.id != first).collect();
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(1500) {
        for node in &left {
            assert!(matches!(role(node), Role::Follower), "{:?}", role(node));
            assert_eq!(node.group().term().await, terms[0]);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// The call that seals a voter may be cancelled.
#[tokio::test]
async fn a_shutdown_that_is_no_longer_waited_for_comes_to_its_end() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    let leading = leader(&nodes).await;
    let mut given_up = Box::pin(leading.group().shutdown());
    assert!(futures::poll!(given_up.as_mut()).is_pending());
    drop(given_up);
    // Others call the group while it ends, and after.
    assert!(leading.write("late").await.is_err());
    leading.group().shutdown().await;
    assert_eq!(role(leading), Role::Stopped);
    assert!(leading.group().read_index().await.is_err());
}

#[tokio::test]
async fn one_sealed_member_does_not_keep_the_others_from_electing() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    write(&nodes, 1, "before").await;
    let first = usize::try_from(leader(&nodes).await.id.0 - 1).unwrap();
    let sealed = (first + 1) % 3;
    nodes[sealed].group().seal();
    // Asked to take over, it does not; the leader leads on, or another is elected.
    drop(nodes[first].group().transfer_leadership(nodes[sealed].id).await);
    write(&nodes, 1, "after").await;
    assert_ne!(leader(&nodes).await.id, nodes[sealed].id);
    // Opened again, it is one like the others.
    nodes[sealed].close().await;
    let voters = set(1..=3);
    nodes[sealed].open(1, &voters).await;
    until("it votes again", async || nodes[sealed].group().votes()).await;
    write(&nodes, 1, "and on").await;
    equal(&nodes, at(1, 3)).await;
}

/// Three members that elect no leader by themselves while a test runs.
pub(crate) async fn three_that_wait(wire: &Arc<Wire>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let voters = set(1..=3);
    for id in 1..=3 {
        let mut node = Node::new(id, wire).await;
        node.timing.election_timeout_min_ms = 20_000;
        node.timing.election_timeout_max_ms = 30_000;
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
        nodes.push(node);
    }
    nodes
}

/// Why the node refuses to be asked for its vote; `None` if it does not.
async fn refused_vote(wire: &Arc<Wire>, node: NodeId) -> Option<String> {
    let target = raft::Group { shard: SHARD.0, epoch: group(1).epoch.0.into(), target: node.0 };
    let request = raft::VoteRequest {
        group: Some(target),
        vote: Some(Default::default()),
        ..Default::default()
    };
    let answer = RaftClient::new(wire.channel(node).unwrap()).pre_vote(request).await;
    answer.err().map(|status| status.message().to_owned())
}

#[tokio::test]
async fn a_former_follower_keeps_quiet_after_a_restart_and_a_newcomer_does_not() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three_that_wait(&wire).await;
    until("the new ones may vote", async || refused_vote(&wire, NodeId(2)).await.is_none()).await;
    nodes[0].group().elect_now().await;
    write(&nodes, 1, "first").await;
    equal(&nodes, at(1, 1)).await;
    // The lease that it granted is forgotten, and may hold; whatever others say of its folder.
    for is_vouched_for in [false, true] {
        nodes[1].is_vouched_for = is_vouched_for;
        nodes[1].crash().await;
        nodes[1].open(1, &set(1..=3)).await;
        until("its restart is why", async || {
            refused_vote(&wire, NodeId(2)).await.is_some_and(|why| why.contains("has just started"))
        })
        .await;
    }
}

#[tokio::test]
async fn the_preferred_leader_leads_at_once_and_a_leader_that_is_well_is_left_alone() {
    let wire = Arc::new(Wire::default());
    let nodes = three_that_wait(&wire).await;
    let start = Instant::now();
    nodes[1].group().elect_now().await;
    let took = start.elapsed();
    assert_eq!(nodes[1].group().leadership().unwrap().term, 1);
    assert!(took < Duration::from_secs(1), "{took:?}");
    write(&nodes, 1, "first").await;
    nodes[2].group().elect_now().await;
    write(&nodes, 1, "second").await;
    assert_eq!(nodes[1].group().leadership().unwrap().term, 1);
    equal(&nodes, at(1, 2)).await;
}

#[tokio::test]
async fn a_restarted_leader_does_not_take_itself_for_one() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    write(&nodes, 1, "before").await;
    let first = usize::try_from(leader(&nodes).await.id.0 - 1).unwrap();
    for node in &mut nodes {
        node.crash().await;
    }
    // Alone it cannot lead, whatever vote it saved.
    let voters = set(1..=3);
    nodes[first].open(1, &voters).await;
    for _ in 0..50 {
        assert!(nodes[first].group().leadership().is_err());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_group_that_is_not_here_is_not_found() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    write(&nodes, 1, "before").await;
    nodes[0].close().await;
    let mut client = RaftClient::new(wire.channel(NodeId(1)).unwrap());
    let target = raft::Group { shard: SHARD.0, epoch: group(1).epoch.0.into(), target: 1 };
    let request = raft::AppendRequest { group: Some(target), ..Default::default() };
    assert_eq!(client.append(request).await.unwrap_err().code(), Code::NotFound);
    let request = raft::VoteRequest { group: Some(target), ..Default::default() };
    assert_eq!(client.vote(request).await.unwrap_err().code(), Code::NotFound);
}
