//! Members that have forgotten votes which they gave, and leaders that would take their word.

use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use meridian_consensus::{Peers, RaftTiming};
use meridian_proto::log;
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_types::NodeId;

use crate::reads::{Links, three_linked};
use crate::seal::{three, three_that_wait};
use crate::support::{Node, SHARD, at, equal, group, leader, set, until, write};
use crate::wire::{Link, Wire, linked};

/// Gives messages of `from` to `to` a connection of their own from now on, which can be held up.
async fn connect(from: &Node, to: &Node, links: &mut Links) {
    let link = Arc::new(Link::default());
    from.wire.listens(to.id, linked(to.address, Arc::clone(&link)).await);
    links.insert((from.id, to.id), link);
}

fn hold(links: &Links, from: &Node, to: &Node) {
    let link = &links[&(from.id, to.id)];
    link.hold_requests();
    link.hold_answers();
}

/// The leader stands still; the two others elect one of them, and acknowledge a write. Then that
/// one is cut off, and the other loses its folder, and with it the vote that it gave. The first
/// leader goes on, and meets it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_wiped_member_answers_no_leader_before_the_one_it_voted_for() {
    let timing =
        RaftTiming { heartbeat_ms: 30, election_timeout_min_ms: 150, election_timeout_max_ms: 300 };
    let (mut nodes, mut links) = three_linked(timing).await;
    let last = write(&nodes, 3, "before").await;
    equal(&nodes, at(1, last)).await;
    let old = leader(&nodes).await.id;
    let old = nodes.remove(nodes.iter().position(|node| node.id == old).unwrap());
    for other in &nodes {
        hold(&links, &old, other);
        hold(&links, other, &old);
    }
    until("a write under another leader", async || leader(&nodes).await.write("new").await.is_ok())
        .await;
    let newer = leader(&nodes).await.id;
    let newer = nodes.remove(nodes.iter().position(|node| node.id == newer).unwrap());
    let mut wiped = nodes.remove(0);
    until("both have it", async || wiped.state.position() == at(1, last + 1)).await;
    hold(&links, &newer, &wiped);
    hold(&links, &wiped, &newer);
    wiped.wipe().await;
    connect(&old, &wiped, &mut links).await;
    connect(&wiped, &old, &mut links).await;
    wiped.open(1, &set(1..=3)).await;
    assert!(old.group().leadership().is_ok(), "it has heard of no other");
    let mut writing = Box::pin(old.write("old"));
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(2) {
        match futures::poll!(writing.as_mut()) {
            Poll::Ready(Ok(sequence)) => {
                panic!("write {sequence} is acknowledged, and no later leader has it")
            }
            // Not while the last answers of a quorum are too old. A batch that was appended is
            // waited for.
            Poll::Ready(Err(_)) => writing = Box::pin(old.write("old")),
            Poll::Pending => {}
        }
        let leads = old.group().leadership().unwrap();
        assert!(
            leads.lease_until.is_none_or(|until| until < Instant::now()),
            "a lease beside that of another"
        );
        let read = old.group().read_index().await;
        assert!(read.is_err(), "a read is confirmed that does not show what was acknowledged");
    }
    assert_eq!(wiped.state.position(), at(1, 0), "it takes what may be undone");
    drop(writing);
    // The other is back.
    for (from, to) in [(&newer, &old), (&old, &newer), (&newer, &wiped), (&wiped, &newer)] {
        connect(from, to, &mut links).await;
    }
    let nodes = [old, newer, wiped];
    until("a write", async || leader(&nodes[..2]).await.write("after").await.is_ok()).await;
    let reached = nodes[1].state.position();
    equal(&nodes, reached).await;
    assert!(!nodes[2].group().votes());
    // It knows from when on it may follow, also when it starts again and meets no other member.
    let [mut leading, mut follower, mut wiped] = nodes;
    if leading.group().leadership().is_err() {
        std::mem::swap(&mut leading, &mut follower);
    }
    wiped.close().await;
    follower.close().await;
    wiped.open(1, &set(1..=3)).await;
    until("it follows", async || wiped.group().status().leader == Some(leading.id)).await;
}

/// The word that vouches for it may be wrong, and the others know.
#[tokio::test]
async fn a_wiped_member_that_is_vouched_for_does_not_vote_either() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let victim = nodes.iter().position(|node| node.group().leadership().is_err()).unwrap();
    nodes[victim].is_vouched_for = true;
    nodes[victim].wipe().await;
    nodes[victim].open(1, &set(1..=3)).await;
    let last = write(&nodes, 1, "after").await;
    equal(&nodes, at(1, last)).await;
    assert!(!nodes[victim].group().votes());
}

/// B has less than the leader remembers of it, and votes may be missing as well. It is sent a
/// snapshot, which takes a while.
#[tokio::test]
async fn a_member_whose_folder_was_set_back_confirms_no_read_until_it_has_caught_up() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    write(&nodes, 3, "before").await;
    let first = leader(&nodes).await.id;
    let leading = nodes.remove(nodes.iter().position(|node| node.id == first).unwrap());
    let (mut away, mut back) = (nodes.remove(0), nodes.remove(0));
    until("it has them", async || back.state.position() == at(1, 3)).await;
    back.marks.persist().unwrap();
    let image = back.image();
    for _ in 0..3 {
        leading.write("since").await.unwrap();
    }
    until("the leader knows what it holds", async || {
        leading.marks.remembered(group(1), back.id).is_some_and(|mark| mark.index >= 6)
    })
    .await;
    away.close().await;
    leading.group().purge_through(6).await.unwrap();
    wire.hold_fetches(true);
    back.roll_back(image).await;
    back.open(1, &set(1..=3)).await;
    until("it follows", async || back.group().status().leader == Some(first)).await;
    for _ in 0..2 {
        assert!(
            leading.group().read_index().await.is_err(),
            "confirmed by a member that may have forgotten a vote"
        );
        assert_eq!(leading.group().leadership().map(|_| first), Ok(first), "it leads");
    }
    wire.hold_fetches(false);
    until("a read", async || leading.group().read_index().await.is_ok()).await;
    assert!(back.state.position() >= at(1, 6));
}

/// Nothing else comes before it from a leader whose member was just set back.
#[tokio::test]
async fn the_first_question_that_a_member_hears_tells_it_what_it_lacks() {
    let wire = Arc::new(Wire::default());
    let nodes = three_that_wait(&wire).await;
    until("it leads", async || {
        nodes[0].group().elect_now().await;
        nodes[0].group().leadership().is_ok()
    })
    .await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let term = nodes[0].group().leadership().unwrap().term;
    let asked = async |held: u64| {
        let question = raft::AppendRequest {
            group: Some(raft::Group { shard: SHARD.0, epoch: group(1).epoch.0.into(), target: 3 }),
            vote: Some(log::Vote { term, node_id: 1, committed: true }),
            members: vec![raft::MemberMark {
                node_id: 3,
                log_id: Some(log::LogId { term, index: held }),
            }],
            ..Default::default()
        };
        RaftClient::new(wire.channel(NodeId(3)).unwrap()).append(question).await.map(drop)
    };
    until("it confirms that leader", async || asked(last).await.is_ok()).await;
    let refused = asked(last + 100).await.unwrap_err();
    assert!(refused.message().contains("was rolled back"), "{refused}");
}
