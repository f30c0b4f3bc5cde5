//! When a member stands for election, when it does not, and what comes of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use futures::FutureExt;
use meridian_consensus::{Peers, RaftGroup, Role};
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_proto::{log, raft::append_response};
use meridian_types::NodeId;

use crate::between::{Control, three_between};
use crate::seal::{three, three_that_wait};
use crate::support::{DEADLINE, Node, SHARD, at, equal, group, role, set, until, write};
use crate::wire::Wire;

/// Each candidacy is one in a later term, and makes the answers to the one before void.
#[tokio::test]
async fn a_member_that_is_to_lead_stands_once_however_long_its_votes_take() {
    let control = Arc::new(Control::default());
    let nodes = three_between(&control, 20_000).await;
    control.holds_votes.store(true, Ordering::SeqCst);
    let electing = nodes[0].group().clone();
    let electing = tokio::spawn(async move { electing.elect_now().await });
    until("it stands", async || role(&nodes[0]) == Role::Candidate).await;
    // Several times as long as it waits between two candidacies.
    let stood = Instant::now();
    while stood.elapsed() < Duration::from_millis(300) {
        assert_eq!(nodes[0].group().status().term, 1, "it stands again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    control.holds_votes.store(false, Ordering::SeqCst);
    electing.await.unwrap();
    // That it is known to lead, and by which lease, is published one after the other.
    until("it leads", async || nodes[0].group().leadership().is_ok()).await;
    assert_eq!(nodes[0].group().leadership().unwrap().term, 1);
}

#[tokio::test]
async fn a_candidate_gives_its_votes_the_time_that_they_may_take_before_it_stands_again() {
    let control = Arc::new(Control::default());
    let nodes = three_between(&control, 1000).await;
    control.holds_votes.store(true, Ordering::SeqCst);
    until("node 1 stands, whose turn it is", async || role(&nodes[0]) == Role::Candidate).await;
    let stood = Instant::now();
    // A candidate that no voter would vote for asks again sooner. Votes may take two seconds.
    while stood.elapsed() < Duration::from_millis(600) {
        assert_eq!(nodes[0].group().status().term, 1, "it stands again");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    control.holds_votes.store(false, Ordering::SeqCst);
    write(&nodes, 1, "after").await;
}

#[tokio::test]
async fn a_leader_that_is_asked_to_hands_over_at_once_and_all_follow_in_the_new_term() {
    let nodes = three_that_wait(&Arc::new(Wire::default())).await;
    nodes[0].group().elect_now().await;
    let last = write(&nodes, 1, "before").await;
    equal(&nodes, at(1, last)).await;
    let [old, new] = [&nodes[0], &nodes[1]].map(Node::group);
    let term = old.term().await;
    assert_eq!(term, old.leadership().unwrap().term);
    // No member stands by itself meanwhile.
    until("node 2 leads", async || {
        old.transfer_leadership(NodeId(2)).await.is_ok() && new.leadership().is_ok()
    })
    .await;
    let next = new.leadership().unwrap().term;
    assert!(next > term);
    until("all are in its term", async || {
        let mut terms = Vec::new();
        for node in &nodes {
            terms.push(node.group().term().await);
        }
        terms == [next; 3]
    })
    .await;
}

/// From then on it may have granted a lease.
#[tokio::test]
async fn a_member_is_in_touch_with_a_leader_that_it_answered_and_not_with_one_of_an_earlier_term() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three_that_wait(&wire).await;
    nodes[0].group().elect_now().await;
    let last = write(&nodes, 1, "before").await;
    equal(&nodes, at(1, last)).await;
    let term = nodes[0].group().leadership().unwrap().term;
    // It is silent from now on.
    nodes[0].close().await;
    let member = nodes[1].group();
    let target = Some(raft::Group { shard: SHARD.0, epoch: group(1).epoch.0.into(), target: 2 });
    let mut client = RaftClient::new(wire.channel(NodeId(2)).unwrap());
    for (term, is_in_touch) in [(term, true), (term - 1, false)] {
        for is_streamed in [true, false] {
            let mut in_touch = Box::pin(member.leader_in_touch(Some(NodeId(1))));
            assert!(futures::poll!(in_touch.as_mut()).is_pending());
            let vote = Some(log::Vote { term, node_id: 1, committed: true });
            let question = raft::AppendRequest { group: target, vote, ..Default::default() };
            let answer = if is_streamed {
                let answers =
                    client.stream_append(futures::stream::iter([question])).await.unwrap();
                answers.into_inner().message().await.unwrap().unwrap()
            } else {
                client.append(question).await.unwrap().into_inner()
            };
            let is_refused = matches!(answer.result, Some(append_response::Result::HigherVote(_)));
            assert_eq!(is_refused, !is_in_touch, "{answer:?}");
            let waits = if is_in_touch { DEADLINE } else { Duration::from_millis(150) };
            assert_eq!(
                tokio::time::timeout(waits, in_touch).await.is_ok(),
                is_in_touch,
                "term {term}, {is_streamed}"
            );
        }
    }
}

#[tokio::test]
async fn what_was_committed_before_a_restart_is_known_again_once_a_majority_is_back() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three(&wire).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    for node in &mut nodes {
        node.close().await;
    }
    let voters = set(1..=3);
    nodes[0].open(1, &voters).await;
    assert!(!nodes[0].group().recovered(Duration::from_millis(100)).await, "alone it cannot know");
    for node in &mut nodes[1..] {
        node.open(1, &voters).await;
    }
    assert!(nodes[0].group().recovered(DEADLINE).await);
    assert_eq!(nodes[0].state.position(), at(1, last));
}

#[tokio::test]
async fn a_member_that_no_code_holds_any_more_ends() {
    let node = Node::new(1, &Arc::new(Wire::default())).await;
    node.form(1, &set([1]), at(1, 0));
    let before = Arc::strong_count(&node.state);
    let opened = RaftGroup::open(node.options(1)).await.unwrap();
    assert!(Arc::strong_count(&node.state) > before);
    drop(opened);
    until("nothing has its state", async || Arc::strong_count(&node.state) == before).await;
}

#[test]
fn runtime_that_ends_under_a_member_is_no_failure_of_it() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (node, group) = runtime.block_on(async {
        let node = Node::new(1, &Arc::new(Wire::default())).await;
        node.form(1, &set([1]), at(1, 0));
        let opened = RaftGroup::open(node.options(1)).await.unwrap();
        (node, opened)
    });
    let ended = runtime.handle().clone();
    drop(runtime);
    let _as_its_last_task = ended.enter();
    assert_eq!(group.stopped().now_or_never(), None);
    drop(node);
}
