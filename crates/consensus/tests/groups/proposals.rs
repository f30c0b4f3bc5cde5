//! Proposals: the batches that get into the log, and the moment at which the proposer hears of it.

use std::sync::Arc;

use meridian_consensus::{ProposalFailure, RaftTiming};
use meridian_proto::encode_batch;

use crate::reads::{has_logged, three_linked};
use crate::seal::three_that_wait;
use crate::support::{at, batch, equal, leader, until, write};
use crate::wire::Wire;

/// Else a leader that was deposed and is back would append what it evaluated before, in another
/// history.
#[tokio::test]
async fn a_batch_is_appended_in_the_term_that_it_is_proposed_for_and_in_no_other() {
    let nodes = three_that_wait(&Arc::new(Wire::default())).await;
    nodes[0].group().elect_now().await;
    let last = write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    let term = leading.group().leadership().unwrap().term;
    for other in [term - 1, term + 1] {
        let late = encode_batch(&batch(at(1, last + 1), "late"));
        let proposed = leading.group().propose(late, last + 1, other).await;
        assert_eq!(
            proposed.map(drop),
            Err(ProposalFailure::NotAppended),
            "in {other}, and it leads in {term}"
        );
    }
    let next = write(&nodes, 1, "after").await;
    assert_eq!(next, last + 1);
    equal(&nodes, at(1, next)).await;
}

/// Else Raft could refuse it, and take the next one in the same term: with a gap. On one thread, on
/// which Raft does nothing while the test goes on.
#[tokio::test]
async fn a_proposal_is_made_when_its_batch_is_in_the_log() {
    let nodes = three_that_wait(&Arc::new(Wire::default())).await;
    nodes[0].group().elect_now().await;
    let last = write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    let term = leading.group().leadership().unwrap().term;
    for sequence in last + 1..last + 20 {
        let next = encode_batch(&batch(at(1, sequence), "next"));
        let _proposal = leading.group().propose(next, sequence, term).await.unwrap();
        assert!(has_logged(leading, sequence), "batch {sequence} is on its way to the log");
    }
    equal(&nodes, at(1, last + 19)).await;
}

/// This leader cuts it off its log. Of more than three members another may have it all the same,
/// and lead next.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_became_of_a_batch_is_not_known_once_it_was_in_the_log() {
    let timing =
        RaftTiming { heartbeat_ms: 30, election_timeout_min_ms: 150, election_timeout_max_ms: 300 };
    let (nodes, links) = three_linked(timing).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let mut cut_off = None;
    until("a batch is in flight at a leader that is cut off", async || {
        links.values().for_each(|link| link.release());
        let old = leader(&nodes).await;
        let of_old = || {
            links
                .iter()
                .filter(|((from, to), _)| *from == old.id || *to == old.id)
                .map(|(_, link)| link)
        };
        of_old().for_each(|link| link.hold_requests());
        let Ok(leadership) = old.group().leadership() else { return false };
        let next = old.state.position().next();
        let bytes = encode_batch(&batch(next, "cut off"));
        let Ok(proposal) = old.group().propose(bytes, next.sequence, leadership.term).await else {
            return false;
        };
        cut_off = Some((old, proposal, next));
        true
    })
    .await;
    let (old, mut proposal, next) = cut_off.unwrap();
    until("a write under another leader", async || {
        let leading =
            nodes.iter().find(|node| node.id != old.id && node.group().leadership().is_ok());
        match leading {
            Some(leading) => leading.write("instead").await.is_ok(),
            None => false,
        }
    })
    .await;
    links.values().for_each(|link| link.release());
    assert_eq!(proposal.applied().await, Err(ProposalFailure::Unknown));
    until("all have the other", async || nodes.iter().all(|node| node.state.position() >= next))
        .await;
}
