//! Changes of a group's voters.

use std::sync::Arc;
use std::time::Duration;

use meridian_consensus::{ChangeVotersFailure, Formed, RaftGroup, Role, leave_group};
use meridian_proto::log::LogId;
use meridian_storage::Engine;
use meridian_types::NodeId;

use crate::between::{Control, three_between};
use crate::support::{Node, at, equal, group, leader, role, set, until, write};
use crate::wire::Wire;

/// Nodes 1 to 3 vote; 4 and 5 only have the group open.
async fn five(wire: &Arc<Wire>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let voters = set(1..=3);
    for id in 1..=5 {
        let mut node = Node::new(id, wire).await;
        if id <= 3 {
            assert_eq!(node.form(1, &voters, at(1, 0)), Formed::Founder);
        }
        node.open(1, &voters).await;
        nodes.push(node);
    }
    write(&nodes, 3, "before").await;
    nodes
}

async fn change(nodes: &[Node], voters: &std::collections::BTreeSet<NodeId>) {
    until("the voters are changed", async || {
        leader(nodes).await.group().change_voters(voters).await.is_ok()
    })
    .await;
}

#[tokio::test]
async fn voters_are_added_replaced_and_removed_and_the_leader_may_be_one() {
    let wire = Arc::new(Wire::default());
    let mut nodes = five(&wire).await;
    assert!(matches!(role(&nodes[3]), Role::Learner));
    assert_eq!(nodes[3].group().voters(), set([]));
    let all = set(1..=5);
    change(&nodes, &all).await;
    change(&nodes, &all).await;
    write(&nodes, 2, "five").await;
    equal(&nodes, at(1, 5)).await;
    assert!(nodes.iter().all(|node| node.group().voters() == all));
    // Without the leader, and one more.
    let first = leader(&nodes).await;
    let other = NodeId(if first.id == NodeId(1) { 2 } else { 1 });
    let goal: std::collections::BTreeSet<NodeId> =
        all.iter().copied().filter(|id| ![first.id, other].contains(id)).collect();
    let removed = [first.id, other];
    first.group().change_voters(&goal).await.unwrap();
    until("another leads", async || goal.contains(&leader(&nodes).await.id)).await;
    let mut left = Vec::new();
    let mut out = Vec::new();
    for node in nodes.drain(..) {
        if removed.contains(&node.id) { out.push(node) } else { left.push(node) }
    }
    write(&left, 2, "three").await;
    equal(&left, at(1, 7)).await;
    // Former voters go on for a while, and disturb no other member.
    let term = left[0].group().term().await;
    for node in &out {
        until("it does not lead", async || node.group().leadership().is_err()).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(left[0].group().term().await, term);
    let follower = left.iter().find(|node| node.group().leadership().is_err()).unwrap();
    let refused = follower.group().change_voters(&all).await.unwrap_err();
    assert!(matches!(refused, ChangeVotersFailure::NotLeading(_)), "{refused}");
    follower.group().change_voters(&goal).await.unwrap();
    let none = follower.group().change_voters(&set([])).await.unwrap_err();
    assert!(matches!(none, ChangeVotersFailure::NoVoters), "{none}");
    // A member that left, and whose state went other ways since, comes back and votes.
    let mut back = out.remove(0);
    back.close().await;
    let engine: Arc<dyn Engine> = back.engine.clone();
    leave_group(&engine, group(1), Some(&back.marks)).unwrap();
    back.state.apply(&[], Default::default()).unwrap();
    back.open(1, &goal).await;
    left.push(back);
    let four = set(left.iter().map(|node| node.id.0));
    change(&left, &four).await;
    write(&left, 1, "four").await;
    equal(&left, at(1, 8)).await;
    until("it votes", async || left[3].group().votes()).await;
}

#[tokio::test]
async fn a_member_that_left_votes_again_only_when_it_holds_what_it_held() {
    let wire = Arc::new(Wire::default());
    let mut nodes = five(&wire).await;
    let mut late = nodes.remove(2);
    late.close().await;
    // Node 2 is replaced by node 4. Node 3 does not hear of it.
    let mut back = nodes.remove(1);
    nodes.truncate(2);
    until("node 2 is replaced", async || {
        let leading = if nodes[0].group().leadership().is_ok() { &nodes[0] } else { &back };
        leading.group().change_voters(&set([1, 3, 4])).await.is_ok()
            && leader(&nodes).await.id != NodeId(2)
    })
    .await;
    write(&nodes, 2, "without it").await;
    back.close().await;
    let engine: Arc<dyn Engine> = back.engine.clone();
    for _ in 0..2 {
        leave_group(&engine, group(1), Some(&back.marks)).unwrap();
    }
    back.state.apply(&[], Default::default()).unwrap();
    for node in &mut nodes {
        node.close().await;
    }
    // Two of the three voters that node 3 knows. The one has less than was committed, and the other
    // deleted it.
    late.open(1, &set([2, 3])).await;
    back.open(1, &set([2, 3])).await;
    until("node 3 may stand", async || late.group().votes()).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(late.group().leadership().is_err() && back.group().leadership().is_err());
    assert!(!back.group().votes());
    back.close().await;
    back.open(1, &set(1..=4)).await;
    for node in &mut nodes {
        node.open(1, &set([1, 3, 4])).await;
    }
    nodes.extend([back, late]);
    change(&nodes, &set(1..=4)).await;
    write(&nodes, 1, "together").await;
    equal(&nodes, at(1, 6)).await;
    until("it votes", async || nodes[2].group().votes()).await;
}

#[tokio::test]
async fn a_change_that_was_dropped_half_way_is_finished_or_turned_round() {
    let wire = Arc::new(Wire::default());
    let mut nodes = five(&wire).await;
    let stopped = nodes.remove(4);
    // Node 5 does not answer: it was never opened.
    let mut absent = stopped;
    absent.close().await;
    let goal = set([1, 2, 5]);
    let settled = async |nodes: &[Node]| leader(nodes).await.group().stable_voters();
    until("the first voters decide", async || settled(&nodes).await == Some(set(1..=3))).await;
    for _ in 0..3 {
        let leading = leader(&nodes).await;
        let change = leading.group().change_voters(&goal);
        // Under load it may lead no more, and say so.
        let changed = tokio::time::timeout(Duration::from_millis(300), change).await;
        assert!(!matches!(changed, Ok(Ok(()))), "node 5 has nothing");
        assert_eq!(leading.group().stable_voters(), None, "Raft may still do what it was asked");
    }
    assert_eq!(leader(&nodes).await.group().voters(), set([1, 2, 3]));
    // Another way: what was begun is cleaned up.
    let goal = set([2, 3, 4]);
    change(&nodes, &goal).await;
    let nodes: Vec<Node> = nodes.into_iter().filter(|node| node.id != NodeId(1)).collect();
    write(&nodes, 1, "after").await;
    equal(&nodes, at(1, 4)).await;
    until("the last ones decide", async || settled(&nodes).await == Some(set(2..=4))).await;
}

/// Until then another leader, which has not got it, could go on with the voters before.
#[tokio::test]
async fn voters_are_settled_for_a_follower_once_it_knows_that_their_change_is_committed() {
    let control = Arc::new(Control::default());
    let nodes = three_between(&control, 20_000).await;
    let [leading, follower] = [&nodes[0], &nodes[1]].map(Node::group);
    leading.elect_now().await;
    write(&nodes, 1, "before").await;
    until("the first voters decide", async || follower.stable_voters() == Some(set(1..=3))).await;
    let status = leading.status();
    *control.newest_commit.lock() =
        Some(LogId { term: status.term, index: status.committed_index });
    let goal = set([1, 2]);
    leading.change_voters(&goal).await.unwrap();
    until("node 2 has the change", async || follower.voters() == goal).await;
    assert_eq!(follower.stable_voters(), None);
    *control.newest_commit.lock() = None;
    until("node 2 knows that it is committed", async || {
        follower.stable_voters() == Some(goal.clone())
    })
    .await;
}

/// The call that waits for it would change the voters no more when it leads again.
#[tokio::test]
async fn a_change_ends_with_the_leadership_whatever_it_waits_for() {
    let wire = Arc::new(Wire::default());
    let nodes = five(&wire).await;
    let leading = leader(&nodes).await;
    // Node 5 has left the wire, and keeps node 4 a copy that does not vote yet.
    let nowhere = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    wire.listens(NodeId(5), nowhere);
    let begun = tokio::time::timeout(
        Duration::from_millis(300),
        leading.group().change_voters(&set(1..=5)),
    )
    .await;
    assert!(!matches!(begun, Ok(Ok(()))));
    let caught_up =
        || nodes[3].group().status().committed_index == leading.group().status().committed_index;
    until("node 4 has caught up", async || caught_up() && role(&nodes[3]) == Role::Learner).await;
    // Then it cannot be told of the other voters.
    wire.listens(NodeId(4), nowhere);
    let (group, goal) = (leading.group().clone(), set(1..=4));
    let changing = tokio::spawn(async move { group.change_voters(&goal).await });
    let other = nodes[..3].iter().find(|node| node.id != leading.id).unwrap();
    until("another leads", async || {
        leading.group().transfer_leadership(other.id).await.unwrap();
        leading.group().leadership().is_err()
    })
    .await;
    let ended = tokio::time::timeout(crate::support::DEADLINE, changing)
        .await
        .expect("it waits for ever")
        .unwrap();
    assert!(matches!(ended, Err(ChangeVotersFailure::NotLeading(_))), "{ended:?}");
}

#[tokio::test]
async fn a_newcomer_remembers_the_voters_before_it() {
    let wire = Arc::new(Wire::default());
    let mut nodes = five(&wire).await;
    drop(nodes.pop());
    change(&nodes, &set(1..=4)).await;
    write(&nodes, 1, "four").await;
    equal(&nodes, at(1, 4)).await;
    // Two of the first lose their folders at once. Only the newcomer and one more know them.
    let keep = leader(&nodes).await.id;
    let lost: Vec<usize> = (0..3).filter(|index| nodes[*index].id != keep).take(2).collect();
    for index in &lost {
        nodes[*index].wipe().await;
    }
    // The third is away: they ask the newcomer alone.
    for index in &lost {
        let ask = set([nodes[*index].id.0, 4]);
        nodes[*index].open(1, &ask).await;
    }
    write(&nodes, 1, "after").await;
    equal(&nodes, at(1, 5)).await;
    for index in &lost {
        assert!(!nodes[*index].group().votes(), "node {} votes", nodes[*index].id);
    }
}

/// How often a leader was seen that was no voter any more, and led on.
async fn removals_of_a_leader() -> usize {
    let wire = Arc::new(Wire::default());
    let nodes = five(&wire).await;
    let first = leader(&nodes).await;
    until("a lease", async || {
        first.group().leadership().is_ok_and(|leads| leads.lease_until.is_some())
    })
    .await;
    let goal: std::collections::BTreeSet<NodeId> =
        (1..=4).map(NodeId).filter(|id| *id != first.id).collect();
    let (removed, id) = (first.group().clone(), first.id);
    let (stop, stopped) = std::sync::mpsc::channel();
    let watching = tokio::task::spawn_blocking(move || {
        let mut seen = 0;
        while let Err(std::sync::mpsc::TryRecvError::Empty) = stopped.try_recv() {
            let is_out = !removed.voters().contains(&id);
            // Looked at later: once it is out it stays out.
            if let (true, Ok(leads)) = (is_out, removed.leadership()) {
                assert_eq!(leads.lease_until, None);
                seen += 1;
            }
        }
        seen
    });
    let changed = first.group().change_voters(&goal).await;
    let rest: Vec<&RaftGroup> =
        nodes.iter().filter(|node| goal.contains(&node.id)).map(Node::group).collect();
    until("another leads", async || rest.iter().any(|group| group.leadership().is_ok())).await;
    stop.send(()).unwrap();
    let seen = watching.await.unwrap();
    if changed.is_ok() { seen } else { 0 }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_removed_leader_trusts_no_lease() {
    for _ in 0..10 {
        if removals_of_a_leader().await > 0 {
            return;
        }
    }
    panic!("it was never seen to lead after it was removed");
}
