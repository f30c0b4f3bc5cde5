//! Reads at a leader: the oldest state that they may show.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use futures::FutureExt;
use meridian_consensus::{NotLeading, RaftTiming, log_batches_beyond};
use meridian_proto::encode_batch;
use meridian_storage::Engine;
use meridian_types::NodeId;

use crate::seal::{three, three_that_wait};
use crate::support::{DEADLINE, Node, at, batch, equal, leader, set, until, write};
use crate::wire::{Link, Wire, linked};

/// The others apply what they are told is committed, and show it; the leader may come to that
/// later.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_reads_nothing_older_than_what_it_has_let_others_apply() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    let last = write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    assert!(leading.group().has_applied_what_it_advertised().await);
    let (goes_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // Nothing is ever sent: it waits until the other end is dropped.
    let _subscription = leading.state.subscribe(move |_| {
        assert!(tokio::task::block_in_place(|| wait.lock().unwrap().recv()).is_err())
    });

    let shown = async {
        let follower = nodes.iter().find(|node| node.id != leading.id).unwrap();
        let next = at(1, last + 1);
        until("a follower shows it", async || follower.state.position() == next).await;
        let reading = leading.group().has_applied_what_it_advertised();
        tokio::pin!(reading);
        assert!(futures::poll!(&mut reading).is_pending(), "the leader would show what is older");
        drop(goes_on);
        reading.await
    };
    let (written, applied) = tokio::join!(leading.write("slow"), shown);
    assert_eq!((written, applied), (Ok(last + 1), true));
}

/// The links from each member to each other.
pub(crate) type Links = HashMap<(NodeId, NodeId), Arc<Link>>;

/// Three whose connections can be held up.
pub(crate) async fn three_linked(timing: RaftTiming) -> (Vec<Node>, Links) {
    let (mut nodes, mut links, wire) = (Vec::new(), Links::new(), Wire::default());
    for id in 1..=3 {
        // Each reaches the others its own way.
        let mut node = Node::new(id, &Arc::new(Wire::beside(&wire))).await;
        node.timing = timing;
        nodes.push(node);
    }
    for node in &nodes {
        for other in nodes.iter().filter(|other| other.id != node.id) {
            let link = Arc::new(Link::default());
            node.wire.listens(other.id, linked(other.address, Arc::clone(&link)).await);
            links.insert((node.id, other.id), link);
        }
    }
    let voters = set(1..=3);
    for node in &mut nodes {
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
    }
    (nodes, links)
}

/// Whether the batch is in the node's log, committed or not.
pub(crate) fn has_logged(node: &Node, sequence: u64) -> bool {
    let engine: Arc<dyn Engine> = node.engine.clone();
    let mut found = false;
    let mut visit = |logged, _, _: bytes::Bytes, _| {
        found |= logged == sequence;
        Ok(())
    };
    log_batches_beyond(&engine, node.group().id(), sequence - 1, &mut visit).unwrap();
    found
}

/// A leader stands still, with its followers' answers in its sockets. Another is elected, and
/// acknowledges a write. Then the first goes on: it is asked for a read, and finds those answers,
/// one after the other. Returns the read's outcome, and whether it shows less than was acknowledged
/// before it began; `None` where it found no answers, or led no more.
async fn read_after_standing_still() -> Option<(Result<(), NotLeading>, bool)> {
    let timing =
        RaftTiming { heartbeat_ms: 30, election_timeout_min_ms: 150, election_timeout_max_ms: 300 };
    let (nodes, links) = three_linked(timing).await;
    let last = write(&nodes, 5, "before").await;
    equal(&nodes, at(1, last)).await;
    let old = leader(&nodes).await;
    let term = old.group().leadership().ok()?.term;
    let others: Vec<&Node> = nodes.iter().filter(|node| node.id != old.id).collect();
    let link = |from: &Node, to: &Node| &links[&(from.id, to.id)];
    // Later answers of the others wait in the leader's sockets.
    others.iter().for_each(|other| link(old, other).hold_answers());
    let in_flight = encode_batch(&batch(at(1, last + 1), "in flight"));
    let _proposal = old.group().propose(in_flight, last + 1, term).await.ok()?;
    until("the others have logged it", async || {
        others.iter().all(|other| has_logged(other, last + 1))
    })
    .await;
    // It stands still: nothing leaves it, nothing reaches it.
    for other in &others {
        link(old, other).hold_requests();
        link(other, old).hold_requests();
        link(other, old).hold_answers();
    }
    let mut newer = None;
    until("another leads", async || {
        let leads = |node: &&&Node| {
            let leadership = node.group().leadership();
            leadership.is_ok_and(|leads| {
                leads.term > term && node.group().applied().borrow().term == leads.term
            })
        };
        newer = others.iter().find(leads);
        newer.is_some()
    })
    .await;
    let acknowledged = newer?.write("new").await.ok()?;
    assert_eq!(acknowledged, last + 2);
    // It goes on. A read comes first.
    let group = old.group().clone();
    let mut reading = tokio::spawn(async move { group.read_index().await });
    tokio::time::sleep(Duration::from_millis(3)).await;
    link(old, others[0]).release_answers();
    let found = async {
        while old.state.position().sequence <= last {
            tokio::task::yield_now().await
        }
    };
    let found = tokio::time::timeout(Duration::from_millis(300), found).await;
    tokio::time::sleep(Duration::from_millis(3)).await;
    link(old, others[1]).release_answers();
    let read = (&mut reading).await.unwrap();
    found.ok()?;
    Some((read, old.state.position().sequence < acknowledged))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_is_not_confirmed_by_answers_to_what_was_sent_before_it() {
    let mut told = 0;
    for _ in 0..20 {
        if let Some((read, is_older)) = read_after_standing_still().await {
            assert!(
                read.is_err() || !is_older,
                "the read does not see what was acknowledged before it began"
            );
            told += 1;
        }
        if told == 2 {
            return;
        }
    }
    panic!("the machine is too busy to tell anything");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_waits_for_a_majority_that_was_asked_for_it() {
    let timing = RaftTiming {
        heartbeat_ms: 50,
        election_timeout_min_ms: 20_000,
        election_timeout_max_ms: 30_000,
    };
    let (nodes, links) = three_linked(timing).await;
    nodes[0].group().elect_now().await;
    write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    leading.group().read_index().await.unwrap();
    let followers: Vec<&Node> = nodes.iter().filter(|node| node.id != leading.id).collect();
    for follower in &followers {
        links[&(leading.id, follower.id)].hold_answers();
    }
    let group = leading.group().clone();
    let mut reading = tokio::spawn(async move { group.read_index().await });
    let early = tokio::time::timeout(Duration::from_millis(100), &mut reading).await;
    assert!(early.is_err(), "no member has answered: {early:?}");
    links[&(leading.id, followers[1].id)].release_answers();
    reading.await.unwrap().unwrap();
    // A follower does not ask: it does not lead.
    followers[0].group().read_index().await.unwrap_err();
}

/// openraft never takes a handover back: another has to stand for election, once the leader is
/// silent.
#[tokio::test]
async fn reads_keep_no_failed_handover_from_healing() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    write(&nodes, 1, "before").await;
    // No member is there to take over.
    leader(&nodes).await.group().transfer_leadership(NodeId(9)).await.unwrap();
    let groups: Vec<_> = nodes.iter().map(|node| node.group().clone()).collect();
    let reading = tokio::spawn(async move {
        loop {
            for group in &groups {
                let _confirmed = group.read_index().await;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    write(&nodes, 1, "after").await;
    until("a read", async || leader(&nodes).await.group().read_index().await.is_ok()).await;
    reading.abort();
}

/// openraft hands over what it led, which may fail as any other handover.
#[tokio::test]
async fn a_leader_that_was_removed_confirms_no_read() {
    let wire = Arc::new(Wire::default());
    let nodes = three(&wire).await;
    write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    // None of the others takes over.
    nodes.iter().filter(|node| node.id != leading.id).for_each(|node| node.group().seal());
    let left = set((1..=3).filter(|id| *id != leading.id.0));
    let group = leading.group().clone();
    let voters = left.clone();
    let changing = tokio::spawn(async move { group.change_voters(&voters).await });
    until("it is removed", async || leading.group().voters() == left).await;
    assert!(leading.group().read_index().await.is_err());
    assert!(leading.group().leadership().is_ok(), "it leads on: no other member can");
    changing.abort();
}

#[tokio::test]
async fn a_search_for_a_leader_ends_when_a_suitable_leader_is_known() {
    let wire = Arc::new(Wire::default());
    let nodes = three_that_wait(&wire).await;
    let [first, second, third] = [&nodes[0], &nodes[1], &nodes[2]].map(Node::group);
    let (mut another, mut in_touch) =
        (Box::pin(second.another_leader(Some(NodeId(9)))), Box::pin(second.leader_in_touch(None)));
    assert!(
        futures::poll!(another.as_mut()).is_pending()
            && futures::poll!(in_touch.as_mut()).is_pending()
    );
    first.elect_now().await;
    tokio::time::timeout(DEADLINE, async { tokio::join!(another, in_touch) })
        .await
        .expect("node 1 leads");
    assert_eq!(second.leadership(), Err(NotLeading { leader: Some(NodeId(1)) }));
    // The leader itself looks for no other, nor does a member that knows another leader than the
    // failed one.
    assert!(first.another_leader(Some(NodeId(1))).now_or_never().is_some());
    assert!(first.leader_in_touch(Some(NodeId(1))).now_or_never().is_some());
    assert!(second.another_leader(None).now_or_never().is_some());
    assert!(second.leader_in_touch(Some(NodeId(3))).now_or_never().is_some());
    // The leader that is not heard elsewhere is heard here again.
    let (mut another, mut in_touch) = (
        Box::pin(second.another_leader(Some(NodeId(1)))),
        Box::pin(second.leader_in_touch(Some(NodeId(1)))),
    );
    assert!(futures::poll!(in_touch.as_mut()).is_pending(), "it was heard before");
    tokio::time::timeout(DEADLINE, in_touch).await.expect("node 1 sends heartbeats");
    assert!(futures::poll!(another.as_mut()).is_pending());
    until("node 3 takes over", async || {
        first.transfer_leadership(NodeId(3)).await.is_ok_and(|()| third.leadership().is_ok())
    })
    .await;
    tokio::time::timeout(DEADLINE, another).await.expect("node 3 leads");
    until("node 2 follows it", async || {
        second.leader_in_touch(Some(NodeId(1))).now_or_never().is_some()
    })
    .await;
}

#[derive(Default)]
struct Woken(AtomicBool);

impl std::task::Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Else each waiting task would take a processor for itself.
#[tokio::test]
async fn a_task_that_waits_for_news_of_a_stopped_groups_leadership_is_not_woken() {
    let wire = Arc::new(Wire::default());
    let nodes = three_that_wait(&wire).await;
    let stopped = nodes[0].group();
    stopped.shutdown().await;
    let woken = Arc::new(Woken::default());
    let waker = std::task::Waker::from(Arc::clone(&woken));
    let mut waiting = std::pin::pin!(stopped.leadership_changed(None));
    assert!(waiting.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
    for _ in 0..10 {
        tokio::task::yield_now().await;
        assert!(!woken.0.load(Ordering::SeqCst));
    }
}
