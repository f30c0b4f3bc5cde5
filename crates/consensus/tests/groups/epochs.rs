//! A new epoch: founders at the base, and members that lag behind it or went beyond it.

use std::sync::Arc;

use meridian_consensus::{Formed, RaftGroup, ReadLogFailure};
use meridian_storage::{AppliedMark, GroupId};
use meridian_types::ShardId;

use crate::support::{Node, at, equal, group, leader, set, until, write};
use crate::wire::Wire;

/// Nodes from 1 on, as replicas at these sequences of epoch 1. Those beyond 5 have another history
/// there.
async fn replicas(wire: &Arc<Wire>, sequences: &[u64]) -> Vec<Node> {
    let mut nodes = Vec::new();
    for (id, sequence) in (1..).zip(sequences) {
        let node = Node::new(id, wire).await;
        node.replicate(*sequence.min(&5), "shipped");
        node.replicate(*sequence, "never shipped");
        node.state.flush().unwrap();
        nodes.push(node);
    }
    nodes
}

/// Forms epoch 2 behind the fifth batch of epoch 1 where that is possible, and opens it everywhere.
async fn second_epoch(nodes: &mut [Node]) {
    let voters = set(nodes.iter().map(|node| node.id.0));
    for node in nodes {
        let formed = node.form(2, &voters, at(1, 5));
        let position = node.state.position();
        assert_eq!(
            formed,
            if position == at(1, 5) { Formed::Founder } else { Formed::NotAtBase(position) }
        );
        node.open(2, &voters).await;
    }
}

#[tokio::test]
async fn founders_go_on_behind_the_base_and_others_are_seeded() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[5, 5, 5, 3, 8]).await;
    second_epoch(&mut nodes).await;
    let last = write(&nodes, 3, "second").await;
    assert_eq!(last, 8, "sequences go on");
    equal(&nodes, at(2, 8)).await;
    assert_eq!(wire.fetched(group(2)), 2, "only those without the base");
    let applied = nodes[4].state.applied();
    assert_eq!((applied.total_transactions, applied.raft.epoch), (8, Some(group(2).epoch)));
    assert_eq!(leader(&nodes).await.group().committed_batches(6, 1 << 20).unwrap().len(), 3);
    // The base and what lies before it is not in this group's log.
    assert!(matches!(nodes[0].group().committed_batches(5, 1 << 20), Err(ReadLogFailure::Purged)));
    // Everything at once, with what the engines lose.
    for node in &mut nodes {
        node.crash().await;
    }
    let voters = set(1..=5);
    for node in &mut nodes {
        assert_eq!(node.form(2, &voters, at(1, 5)), Formed::Already);
        node.open(2, &voters).await;
    }
    write(&nodes, 2, "second").await;
    equal(&nodes, at(2, 10)).await;
    assert_eq!(wire.fetched(group(2)), 2);
}

#[tokio::test]
async fn one_founder_is_enough_and_its_first_snapshot_is_the_base() {
    // The founder cannot commit anything before the other, whose state is older or newer, has the
    // base.
    for other in [3, 8] {
        let wire = Arc::new(Wire::default());
        let mut nodes = replicas(&wire, &[5, other]).await;
        second_epoch(&mut nodes).await;
        write(&nodes, 1, "second").await;
        equal(&nodes, at(2, 6)).await;
        assert_eq!(role_of_leader(&nodes).await, 1, "a node without the state does not lead first");
        // A crash right after it was seeded.
        nodes[1].crash().await;
        let voters = set([1, 2]);
        nodes[1].open(2, &voters).await;
        write(&nodes, 1, "second").await;
        equal(&nodes, at(2, 7)).await;
    }
}

async fn role_of_leader(nodes: &[Node]) -> u64 {
    leader(nodes).await.id.0
}

#[tokio::test]
async fn before_it_is_seeded_a_member_announces_nothing_of_another_history() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[5, 8]).await;
    let voters = set([1, 2]);
    nodes[1].open(2, &voters).await;
    assert_eq!(*nodes[1].group().applied().borrow(), AppliedMark::default());
    assert_eq!(nodes[1].group().committed_batches(1, 100).unwrap(), []);
    assert_eq!(nodes[1].group().first_sequence().unwrap(), None);
    // Also where it has voted, and starts again before it is seeded.
    nodes[1].crash().await;
    nodes[1].open(2, &voters).await;
    assert_eq!(*nodes[1].group().applied().borrow(), AppliedMark::default());
    assert_eq!(nodes[0].form(2, &voters, at(1, 5)), Formed::Founder);
    assert_eq!(nodes[1].state.position(), at(1, 8));
    nodes[0].open(2, &voters).await;
    write(&nodes, 1, "second").await;
    equal(&nodes, at(2, 6)).await;
}

#[tokio::test]
async fn no_group_is_formed_without_voters_or_from_the_state_of_another_shard() {
    let node = Node::new(1, &Arc::new(Wire::default())).await;
    let (voters, of_another) = (set([1]), GroupId { shard: ShardId(8), ..group(1) });
    for (id, voters) in [(of_another, &voters), (group(1), &set([]))] {
        let refused = RaftGroup::form(&node.state, id, voters, at(1, 0), None).unwrap_err();
        assert!(refused.to_string().contains("cannot be formed"), "{refused}");
    }
    assert_eq!(node.form(1, &voters, at(1, 0)), Formed::Founder);
}

#[tokio::test]
async fn forming_can_be_repeated_after_a_crash_at_any_point() {
    let wire = Arc::new(Wire::default());
    let voters = set([1, 2, 3]);
    // Everything but the mark in the log, which is not durable.
    let mut nodes = replicas(&wire, &[5, 5, 5]).await;
    for node in &mut nodes {
        assert_eq!(node.form(2, &voters, at(1, 5)), Formed::Founder);
        let formed = node.state.applied();
        // The log family as it was before: only the state is left of the call.
        let mut writes = meridian_storage::WriteBatch::default();
        writes.delete_range(&meridian_storage::schema::LOG_FAMILY.into(), vec![0], vec![0xff; 16]);
        node.engine.write(writes, meridian_storage::Durability::Logged).unwrap();
        node.engine.sync().unwrap();
        node.crash().await;
        assert_eq!(node.state.applied(), formed);
    }
    // One goes on without, two call it again.
    for node in &mut nodes[1..] {
        assert_eq!(node.form(2, &voters, at(1, 5)), Formed::Founder);
        assert_eq!(node.form(2, &voters, at(1, 5)), Formed::Already);
    }
    for node in &mut nodes {
        node.open(2, &voters).await;
    }
    write(&nodes, 2, "second").await;
    equal(&nodes, at(2, 7)).await;
    assert_eq!(wire.fetched(group(2)), 0);
}

#[tokio::test]
async fn a_founder_that_restarts_before_anything_happened_is_still_one() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[5, 5, 5]).await;
    let voters = set([1, 2, 3]);
    for node in &mut nodes {
        node.form(2, &voters, at(1, 5));
        node.crash().await;
        // Alone it cannot do anything; then its process ends again.
        node.open(2, &voters).await;
        node.crash().await;
        assert_eq!(node.form(2, &voters, at(1, 5)), Formed::Already);
    }
    for node in &mut nodes {
        node.open(2, &voters).await;
        assert_eq!(*node.group().applied().borrow(), AppliedMark { sequence: 5, term: 0 });
    }
    write(&nodes, 1, "second").await;
    equal(&nodes, at(2, 6)).await;
    assert_eq!(wire.fetched(group(2)), 0);
}

#[tokio::test]
async fn a_third_epoch_takes_over_from_the_second_in_the_same_processes() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[5, 5, 5]).await;
    second_epoch(&mut nodes).await;
    write(&nodes, 4, "second").await;
    equal(&nodes, at(2, 9)).await;
    let voters = set([1, 2, 3]);
    let mut closed = Vec::new();
    for node in &mut nodes {
        closed.push(node.close().await);
        assert_eq!(node.form(3, &voters, at(2, 9)), Formed::Founder);
        node.open(3, &voters).await;
    }
    write(&nodes, 2, "third").await;
    equal(&nodes, at(3, 11)).await;
    for old in &closed {
        // The batches that the second epoch had committed, and none of the third.
        let batches = old.committed_batches(7, 1 << 20).unwrap();
        assert_eq!(batches.iter().map(|batch| batch.sequence).collect::<Vec<_>>(), [7, 8, 9]);
        assert_eq!(
            (old.first_sequence().unwrap(), old.committed_batches(10, 100).unwrap()),
            (Some(6), vec![])
        );
    }
    // The state has gone on: the old group's log does not fit it any more.
    let refusal = RaftGroup::open(nodes[0].options(2)).await.err().unwrap().to_string();
    assert!(refusal.contains("the state has nothing of it"), "{refusal}");
}

#[tokio::test]
async fn a_group_is_opened_again_in_the_same_process() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[5, 5, 5]).await;
    second_epoch(&mut nodes).await;
    let voters = set([1, 2, 3]);
    for round in 0..3 {
        let last = write(&nodes, 5, "second").await;
        assert_eq!(last, 10 + 5 * round);
        for node in &mut nodes {
            // Not waiting for anything to be applied.
            node.close().await;
        }
        for node in &mut nodes {
            node.open(2, &voters).await;
        }
    }
    write(&nodes, 1, "second").await;
    equal(&nodes, at(2, 21)).await;
}

#[tokio::test]
async fn a_group_begins_at_nothing_too_and_purges_its_log() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[0, 0, 0]).await;
    let voters = set([1, 2, 3]);
    for node in &mut nodes {
        assert_eq!(node.form(1, &voters, at(1, 0)), Formed::Founder);
        node.open(1, &voters).await;
    }
    write(&nodes, 6, "first").await;
    equal(&nodes, at(1, 6)).await;
    for node in &nodes {
        node.group().purge_through(4).await.unwrap();
        until("purged", async || node.group().first_sequence().unwrap() == Some(5)).await;
        // Batches that are not there yet, or were purged before, are no error.
        node.group().purge_through(3).await.unwrap();
        node.group().purge_through(0).await.unwrap();
    }
    for node in &mut nodes {
        node.crash().await;
        node.open(1, &voters).await;
    }
    write(&nodes, 1, "first").await;
    equal(&nodes, at(1, 7)).await;
}

#[tokio::test]
async fn a_log_that_is_gone_is_not_formed_again() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[5]).await;
    second_epoch(&mut nodes).await;
    write(&nodes, 2, "second").await;
    let node = &mut nodes[0];
    node.state.flush().unwrap();
    let voters = set([1]);
    until("a mark", async || node.marks.mark(group(2)) == 3).await;
    node.close().await;
    let mut writes = meridian_storage::WriteBatch::default();
    writes.delete_range(&meridian_storage::schema::LOG_FAMILY.into(), vec![0], vec![0xff; 16]);
    node.engine.write(writes, meridian_storage::Durability::Logged).unwrap();
    let form = |marks| RaftGroup::form(&node.state, group(2), &voters, at(1, 5), marks);
    assert_eq!(form(Some(&*node.marks)).unwrap(), Formed::Already);
    let refusal = form(None).unwrap_err().to_string();
    assert!(refusal.contains("is gone, and the state has applied entries of it"), "{refusal}");
    // Its votes are gone as well: it starts, and is a copy.
    node.open(2, &voters).await;
    node.group().elect_now().await;
    assert!(!node.group().votes() && node.group().leadership().is_err());
}

#[tokio::test]
async fn a_wiped_founder_is_sent_everything_by_the_same_leader_and_does_not_vote() {
    let wire = Arc::new(Wire::default());
    let mut nodes = replicas(&wire, &[5, 5, 5]).await;
    second_epoch(&mut nodes).await;
    write(&nodes, 4, "second").await;
    equal(&nodes, at(2, 9)).await;
    let (term, leader) = {
        let leader = leader(&nodes).await;
        (leader.group().status().term, leader.id)
    };
    let victim = usize::try_from(leader.0 % 3).unwrap();
    nodes[victim].wipe().await;
    // Even if it happens to have the base's state again: it is another folder.
    nodes[victim].replicate(5, "shipped");
    let voters = set([1, 2, 3]);
    assert_eq!(nodes[victim].form(2, &voters, at(1, 5)), Formed::Founder);
    nodes[victim].open(2, &voters).await;
    write(&nodes, 2, "second").await;
    equal(&nodes, at(2, 11)).await;
    assert!(!nodes[victim].group().votes());
    let status = nodes[victim].group().status();
    assert_eq!((status.term, status.leader), (term, Some(leader)));
}
