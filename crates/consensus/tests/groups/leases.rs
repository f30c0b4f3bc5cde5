//! When a leader trusts its lease, and when it does not.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::RaftTiming;
use meridian_proto::encode_batch;

use crate::reads::three_linked;
use crate::seal::three_that_wait;
use crate::support::{at, batch, leader, until, write};
use crate::wire::Wire;

/// openraft may have taken the answer for one to a later request, ahead by as much as it took.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_leader_whose_followers_answered_too_slowly_does_not_trust_its_lease() {
    let granted = Duration::from_secs(3);
    let timing = RaftTiming {
        heartbeat_ms: 50,
        election_timeout_min_ms: 2000,
        election_timeout_max_ms: 3000,
    };
    let (nodes, links) = three_linked(timing).await;
    nodes[0].group().elect_now().await;
    let mut last = write(&nodes, 1, "before").await;
    for _ in 0..5 {
        let leading = leader(&nodes).await;
        until("a lease", async || {
            leading.group().leadership().is_ok_and(|leads| leads.lease_until.is_some())
        })
        .await;
        let answers =
            || links.iter().filter(|((from, _), _)| *from == leading.id).map(|(_, link)| link);
        answers().for_each(|link| link.hold_answers());
        let sent = Instant::now();
        let term = leading.group().leadership().unwrap().term;
        last += 1;
        let slow = encode_batch(&batch(at(1, last), "slow"));
        let mut proposal = leading.group().propose(slow, last, term).await.unwrap();
        until("half a lease is over", async || {
            sent.elapsed() > granted / 2 + Duration::from_millis(50)
        })
        .await;
        let released = Instant::now();
        answers().for_each(|link| link.release_answers());
        proposal.applied().await.unwrap();
        if sent.elapsed() > granted * 3 / 4 {
            // The streams may have been given up meanwhile, and no member answered too slowly.
            continue;
        }
        let mut leads = leading.group().leadership().unwrap();
        until("a quorum has answered lately", async || {
            leads = leading.group().leadership().unwrap();
            leads.answered_until.is_some_and(|until| Instant::now() < until)
        })
        .await;
        assert_eq!(leads.lease_until, None);
        until("a lease", async || leading.group().leadership().unwrap().lease_until.is_some())
            .await;
        assert!(released.elapsed() >= granted, "too early, after {:?}", released.elapsed());
        return;
    }
    panic!("the machine is too busy to tell anything");
}

#[tokio::test]
async fn a_leader_that_asked_another_to_take_over_trusts_no_lease() {
    let wire = Arc::new(Wire::default());
    let nodes = three_that_wait(&wire).await;
    until("node 1 may stand", async || nodes[0].group().votes()).await;
    nodes[0].group().elect_now().await;
    write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    until("a lease", async || {
        let lease_until = leading.group().leadership().unwrap().lease_until;
        let granted = Duration::from_millis(leading.timing.election_timeout_max_ms);
        assert!(
            lease_until.is_none_or(|until| until <= Instant::now() + granted / 2),
            "longer than it was granted"
        );
        lease_until.is_some_and(|until| until > Instant::now())
    })
    .await;
    // It was asked, and does not take over.
    let other = nodes.iter().find(|node| node.id != leading.id).unwrap();
    other.group().seal();
    leading.group().transfer_leadership(other.id).await.unwrap();
    let leads = leading.group().leadership().unwrap();
    assert!(leads.answered_until.is_some());
    assert_eq!(leads.lease_until, None);
}
