//! The confirmation that a leader needs before it answers a read without a lease.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, mpsc};

use meridian_consensus::NotLeading;
use meridian_storage::AppliedMark;

use crate::between::{Control, three_between};
use crate::reads::has_logged;
use crate::seal::three_that_wait;
use crate::support::{at, equal, leader, set, until, write};
use crate::wire::Wire;

/// Nothing else tells the leader that another was elected.
#[tokio::test]
async fn a_voter_that_has_seen_a_later_vote_confirms_no_read() {
    let control = Arc::<Control>::default();
    let nodes = three_between(&control, 20_000).await;
    until("node 1 leads", async || {
        nodes[0].group().elect_now().await;
        nodes[0].group().leadership().is_ok()
    })
    .await;
    let last = write(&nodes, 1, "before").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await.group();
    leading.read_index().await.unwrap();
    control.deny_leaders.store(true, Ordering::SeqCst);
    assert!(leading.read_index().await.is_err(), "both have voted for another");
    assert!(leading.leadership().is_ok(), "it has heard of no other");
    control.deny_leaders.store(false, Ordering::SeqCst);
    leading.read_index().await.unwrap();
}

/// The others would confirm it: they have seen no later vote than the saved one.
#[tokio::test]
async fn a_leader_that_was_restarted_confirms_no_read() {
    let wire = Arc::new(Wire::default());
    let mut nodes = three_that_wait(&wire).await;
    nodes[0].group().elect_now().await;
    let last = write(&nodes, 1, "before").await;
    equal(&nodes, at(1, last)).await;
    let old = &mut nodes[0];
    let term = old.group().leadership().unwrap().term;
    old.group().read_index().await.unwrap();
    old.close().await;
    old.open(1, &set(1..=3)).await;
    until("it may answer a leader", async || old.group().votes()).await;
    until("all is applied again", async || {
        *old.group().applied().borrow() == AppliedMark { sequence: last, term }
    })
    .await;
    let unknown = Err(NotLeading { leader: None });
    assert_eq!(
        (old.group().read_index().await, old.group().leadership().map(drop)),
        (unknown, unknown)
    );
}

/// The writer has its answer as soon as the batch is applied; another voter has shown it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_that_a_majority_confirms_waits_until_what_is_committed_is_applied() {
    let nodes = three_between(&Arc::default(), 1000).await;
    let last = write(&nodes, 1, "before").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await;
    leading.group().read_index().await.unwrap();
    let (goes_on, wait) = mpsc::channel::<()>();
    let wait = Mutex::new(wait);
    // Nothing is ever sent: it waits until the other end is dropped.
    let _subscription = leading.state.subscribe(move |_| {
        assert!(tokio::task::block_in_place(|| wait.lock().unwrap().recv()).is_err())
    });
    let reading = async {
        let follower = nodes.iter().find(|node| node.id != leading.id).unwrap();
        until("a follower shows it", async || follower.state.position() == at(1, last + 1)).await;
        // As long as it may take.
        let early = leading.group().read_index().await;
        assert!(early.is_err(), "the leader has not come to it");
        drop(goes_on);
        until("a read", async || leading.group().read_index().await.is_ok()).await;
        assert_eq!(leading.state.position(), at(1, last + 1));
    };
    let (written, ()) = tokio::join!(leading.write("slow"), reading);
    assert_eq!(written, Ok(last + 1));
}

/// The leader before acknowledged what the next one has in its log and does not know to be
/// committed. `None` where another was elected too early.
async fn read_behind_what_was_acknowledged() -> Option<()> {
    let control = Arc::<Control>::default();
    let mut nodes = three_between(&control, 300).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let first = leader(&nodes).await.id;
    *control.newest_commit.lock() = nodes[0].state.applied().raft.log_id;
    let acknowledged = write(&nodes, 1, "acknowledged").await;
    if leader(&nodes).await.id != first || acknowledged != last + 1 {
        return None;
    }
    let mut old = nodes.remove(nodes.iter().position(|node| node.id == first).unwrap());
    until("both have logged it", async || nodes.iter().all(|node| has_logged(node, acknowledged)))
        .await;
    if nodes.iter().any(|node| node.state.position() != at(1, last)) {
        return None;
    }
    control.holds_entries.store(true, Ordering::SeqCst);
    old.close().await;
    until("another leads, and answers no read", async || {
        let Some(leading) = nodes.iter().find(|node| node.group().leadership().is_ok()) else {
            return false;
        };
        let read = leading.group().read_index().await;
        assert!(
            read.is_err(),
            "it has come to {}, and more was acknowledged",
            leading.state.position()
        );
        leading.group().leadership().is_ok()
    })
    .await;
    control.holds_entries.store(false, Ordering::SeqCst);
    *control.newest_commit.lock() = None;
    until("a read", async || {
        let leading = leader(&nodes).await;
        let read = leading.group().read_index().await;
        assert!(read.is_err() || leading.state.position() >= at(1, acknowledged));
        read.is_ok()
    })
    .await;
    Some(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_read_that_a_majority_confirms_waits_for_an_entry_of_the_leaders_term() {
    for _ in 0..5 {
        if read_behind_what_was_acknowledged().await.is_some() {
            return;
        }
    }
    panic!("the machine is too busy to tell anything");
}
