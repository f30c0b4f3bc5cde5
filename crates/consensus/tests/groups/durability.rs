//! Members whose disk has less than it had.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::{Peers, Role};
use meridian_proto::log::LogId;
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_storage::schema::LOG_FAMILY;
use meridian_storage::{Durability, Engine, MemberMark, WriteBatch};
use meridian_types::NodeId;

use crate::seal::three;
use crate::support::{Node, SHARD, at, crash_seed, equal, group, leader, role, set, until, write};
use crate::wire::Wire;

/// The key of an entry of the group of epoch 1.
fn entry_key(index: u64) -> Vec<u8> {
    let id = group(1);
    [&id.shard.0.to_be_bytes()[..], &id.epoch.0.to_be_bytes(), b"e", &index.to_be_bytes()].concat()
}

fn lose_entries(node: &Node, indexes: impl Iterator<Item = u64>) {
    let mut writes = WriteBatch::default();
    indexes.for_each(|index| writes.delete(&LOG_FAMILY.into(), entry_key(index)));
    node.engine.write(writes, Durability::Logged).unwrap();
    node.engine.sync().unwrap();
}

fn follower(nodes: &[Node]) -> usize {
    nodes.iter().position(|node| node.group().leadership().is_err()).unwrap()
}

async fn level(nodes: &[Node]) {
    until("all have applied the same", async || {
        let first = nodes[0].state.position();
        nodes.iter().all(|node| node.state.position() == first)
    })
    .await;
}

/// Entry 4 was in a file of the write-ahead log that lost its end; what came after it, and the mark
/// of what was committed by the others, in the next.
#[tokio::test]
async fn a_node_with_a_hole_in_its_log_starts_and_is_brought_level() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    let last = write(&nodes, 6, "before").await;
    equal(&nodes, at(1, last)).await;
    let victim = follower(&nodes);
    nodes[victim].close().await;
    lose_entries(&nodes[victim], 4..=4);
    nodes[victim].marks.lower(group(1), 3).unwrap();
    // Its state was not flushed, so it is made from the log.
    let image = nodes[victim].image();
    nodes[victim].roll_back(image).await;
    assert_eq!(nodes[victim].state.position(), at(1, 0));
    nodes[victim].open(1, &set(1..=3)).await;
    let last = write(&nodes, 1, "after").await;
    equal(&nodes, at(1, last)).await;
    until("it votes", async || nodes[victim].group().votes()).await;
}

/// The disk lost entries that had been durable: the node starts, as a copy, and votes when it was
/// sent as much again.
#[tokio::test]
async fn a_log_that_lost_an_end_that_was_durable_does_not_vote_until_it_has_as_much_again() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    let last = write(&nodes, 6, "before").await;
    equal(&nodes, at(1, last)).await;
    let victim = follower(&nodes);
    nodes[victim].close().await;
    lose_entries(&nodes[victim], 4..=20);
    nodes[victim].marks.persist().unwrap();
    let image = nodes[victim].image();
    nodes[victim].roll_back(image).await;
    let (mut left, mut victim) = split(nodes, victim);
    for node in &mut left {
        node.close().await;
    }
    victim.open(1, &set(1..=3)).await;
    let refused = refused_vote(&wire, victim.id, None).await;
    assert!(
        refused.contains("does not know yet") || refused.contains("shorter than it was"),
        "{refused}"
    );
    until("it says why", async || {
        refused_vote(&wire, victim.id, None).await.contains("shorter than it was")
    })
    .await;
    assert!(!victim.group().votes());
    // And over a restart, although the mark beside the log is that of the log again.
    victim.crash().await;
    victim.open(1, &set(1..=3)).await;
    until("it says why", async || {
        refused_vote(&wire, victim.id, None).await.contains("shorter than it was")
    })
    .await;
    for node in &mut left {
        node.open(1, &set(1..=3)).await;
    }
    write(&left, 1, "after").await;
    until("it votes", async || victim.group().votes()).await;
    left.push(victim);
    level(&left).await;
}

/// The disk went back behind a vote of which no entry came: no member sends that again.
#[tokio::test]
async fn a_member_that_lost_a_vote_goes_on_as_a_copy_that_does_not_vote() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    let last = write(&nodes, 3, "before").await;
    equal(&nodes, at(1, last)).await;
    let victim = follower(&nodes);
    let term = nodes[victim].group().term().await;
    nodes[victim].close().await;
    assert_eq!(nodes[victim].marks.voted(group(1)), term);
    nodes[victim].marks.vote(group(1), term + 1).unwrap();
    nodes[victim].open(1, &set(1..=3)).await;
    let id = nodes[victim].id;
    until("it says why", async || refused_vote(&wire, id, None).await.contains("does not vote"))
        .await;
    let last = write(&nodes, 1, "after").await;
    equal(&nodes, at(1, last)).await;
    assert!(!nodes[victim].group().votes());
}

fn split(mut nodes: Vec<Node>, index: usize) -> (Vec<Node>, Node) {
    let one = nodes.remove(index);
    (nodes, one)
}

/// Why the node refuses to be asked for its vote by a candidate that remembers this of it; empty if
/// it does not.
async fn refused_vote(wire: &Arc<Wire>, node: NodeId, remembered: Option<LogId>) -> String {
    let target = raft::Group { shard: SHARD.0, epoch: group(1).epoch.0.into(), target: node.0 };
    let vote = Some(Default::default());
    let request = raft::VoteRequest { group: Some(target), vote, remembered, ..Default::default() };
    let answer = RaftClient::new(wire.channel(node).unwrap()).pre_vote(request).await;
    answer.err().map(|status| status.message().to_owned()).unwrap_or_default()
}

/// A leads; X is committed by A and B, whose machine is set back to what it was some writes ago; A
/// burns. B and C are a majority, and neither has X.
async fn a_folder_that_was_rolled_back(mut nodes: Vec<Node>, wire: Arc<Wire>) {
    let voters = set(1..=3);
    for node in &mut nodes {
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
    }
    write(&nodes, 3, "before").await;
    level(&nodes).await;
    let a = nodes.iter().position(|node| node.group().leadership().is_ok()).unwrap();
    let mut a = nodes.remove(a);
    let (mut c, mut b) = split(nodes, 0);
    let mut c = c.remove(0);
    b.marks.persist().unwrap();
    let image = b.image();
    // B acknowledges more, and C hears of it.
    let then = c.marks.remembered(group(1), b.id);
    for _ in 0..3 {
        a.write("since").await.unwrap();
    }
    until("C knows what B holds", async || {
        let known = c.marks.remembered(group(1), b.id);
        known > then && known.is_some_and(|mark| mark.index >= 6)
    })
    .await;
    // C restarts, and is away while X is committed.
    c.marks.persist().unwrap();
    c.close().await;
    let x = a.write("X").await.unwrap();
    a.close().await;
    b.roll_back(image).await;
    b.open(1, &voters).await;
    c.open(1, &voters).await;
    until("both would vote", async || b.group().votes() && c.group().votes()).await;
    // Many elections could have been won by now.
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        for node in [&b, &c] {
            assert!(
                node.group().leadership().is_err(),
                "node {} leads without what was acknowledged",
                node.id
            );
            assert!(!matches!(role(node), Role::Leader));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let held = c.marks.remembered(group(1), b.id).unwrap();
    let said = refused_vote(&wire, b.id, Some(LogId { term: held.term, index: held.index })).await;
    assert!(said.contains("its data folder was rolled back"), "{said}");
    // With the member that has it, it goes on; and B, once it was sent what it lacks, is a member
    // like the others.
    a.open(1, &voters).await;
    let mut nodes = vec![a, b, c];
    let last = write(&nodes, 1, "after").await;
    assert!(last > x);
    equal(&nodes, at(1, last)).await;
    let mut away = nodes.remove(2);
    away.close().await;
    let last = write(&nodes, 1, "A and B").await;
    equal(&nodes, at(1, last)).await;
    assert_eq!(leader(&nodes).await.group().voters(), voters);
}

/// The member that is asked knows more of the candidate than its own log shows: it was told, and
/// lost the entries, or they are still on their way.
#[tokio::test]
async fn a_candidate_gets_no_vote_whose_log_ends_before_what_the_other_knows_that_it_held() {
    let wire = Arc::new(Wire::default());
    let nodes = crate::seal::three_that_wait(&wire).await;
    nodes[0].group().elect_now().await;
    let last = write(&nodes, 3, "before").await;
    equal(&nodes, at(1, last)).await;
    let log_id = nodes[1].state.applied().raft.log_id.unwrap();
    let ask = async |ends: u64| {
        let group = raft::Group { shard: SHARD.0, epoch: group(1).epoch.0.into(), target: 2 };
        let vote =
            meridian_proto::log::Vote { term: log_id.term + 1, node_id: 3, committed: false };
        let last_log_id = Some(LogId { index: ends, ..log_id });
        let request = raft::VoteRequest {
            group: Some(group),
            vote: Some(vote),
            last_log_id,
            leadership_transfer: true,
            remembered: None,
        };
        RaftClient::new(wire.channel(NodeId(2)).unwrap()).pre_vote(request).await
    };
    assert!(ask(log_id.index).await.is_ok());
    let held = MemberMark { term: log_id.term, index: log_id.index + 2 };
    nodes[1].marks.remember(group(1), NodeId(3), held);
    let refused = ask(log_id.index + 1).await.unwrap_err();
    assert!(refused.message().contains("its data folder was rolled back"), "{refused}");
    assert!(ask(held.index).await.is_ok());
}

#[tokio::test]
async fn a_folder_that_was_rolled_back_as_a_whole_does_not_vote() {
    let wire = Arc::new(Wire::default());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::new(id, &wire).await);
    }
    a_folder_that_was_rolled_back(nodes, wire).await;
}

/// The same with folders of RocksDB that are copied and put back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_rocksdb_that_was_put_back_does_not_vote() {
    let wire = Arc::new(Wire::default());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::on_disk(id, &wire).await);
    }
    a_folder_that_was_rolled_back(nodes, wire).await;
}

/// No write is acknowledged that one disk alone has for certain.
#[tokio::test]
async fn a_commit_waits_for_the_disks_of_a_majority() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await;
    let slow: Vec<_> =
        nodes.iter().filter(|node| node.id != leading.id).map(Node::memory).collect();
    slow.iter().for_each(|engine| engine.hold_syncs());
    let mut writing = Box::pin(leading.write("held"));
    until("it is in the logs of the others", async || {
        assert!(
            futures::poll!(writing.as_mut()).is_pending(),
            "acknowledged before a majority has it"
        );
        slow.iter().all(|engine| engine.get(LOG_FAMILY, &entry_key(last + 2)).unwrap().is_some())
    })
    .await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(100) {
        assert!(
            futures::poll!(writing.as_mut()).is_pending(),
            "acknowledged before a majority has it"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    slow[0].release_syncs();
    writing.await.unwrap();
    slow[1].release_syncs();
}

/// The leader's disk counts as one, and only once it has the entry.
#[tokio::test]
async fn a_commit_waits_for_the_leaders_disk_where_it_is_one_of_the_majority() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await;
    let others: Vec<_> = nodes.iter().filter(|node| node.id != leading.id).collect();
    let (slow, fast) = (others[0], others[1]);
    let key = entry_key(last + 2);
    let has = |node: &Node, engine: &dyn Engine| {
        assert!(
            node.state.position() == at(1, last),
            "node {} was told that it is committed",
            node.id
        );
        engine.get(LOG_FAMILY, &key).unwrap().is_some()
    };
    for node in [leading, slow] {
        node.memory().hold_syncs();
    }
    let mut writing = Box::pin(leading.write("held"));
    until("one disk has it, and two logs that are not on theirs", async || {
        assert!(
            futures::poll!(writing.as_mut()).is_pending(),
            "acknowledged before a majority has it"
        );
        has(fast, &fast.memory().crash_to_what_is_durable())
            && [leading, slow].iter().all(|node| has(node, &**node.memory()))
    })
    .await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_millis(200) {
        assert!(
            futures::poll!(writing.as_mut()).is_pending(),
            "acknowledged before a majority has it"
        );
        assert!(nodes.iter().all(|node| has(node, &**node.memory())));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    leading.memory().release_syncs();
    writing.await.unwrap();
    for (node, durable) in [(leading, true), (fast, true), (slow, false)] {
        let kept = node.memory().crash_to_what_is_durable().get(LOG_FAMILY, &key).unwrap();
        assert_eq!(kept.is_some(), durable, "node {}", node.id);
    }
    slow.memory().release_syncs();
}

/// Every crash finds other things on the disk: whatever it is, the member starts, and all come
/// level.
#[tokio::test]
async fn whatever_a_power_loss_left_a_member_starts_and_comes_level() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    let mut last = write(&nodes, 2, "first").await;
    let first = crash_seed();
    for turn in 0..12 {
        equal(&nodes, at(1, last)).await;
        let victim = usize::try_from(turn % 3).unwrap();
        let seed = first.wrapping_add(turn);
        eprintln!("turn {turn}: MERIDIAN_CRASH_SEED={seed}");
        if nodes[victim].group().leadership().is_ok() {
            nodes[victim].crash_with(seed).await;
        } else {
            nodes[victim].memory().hold_syncs();
            write(&nodes, 3, "while a disk stalls").await;
            // Also of entries that the others have committed, and that it has applied.
            until("it has them", async || nodes[victim].memory().unsynced_writes() > 0).await;
            nodes[victim].crash_while_its_disk_stalls(seed).await;
        }
        nodes[victim].open(1, &set(1..=3)).await;
        last = write(&nodes, 1, "after").await;
    }
    equal(&nodes, at(1, last)).await;
}
