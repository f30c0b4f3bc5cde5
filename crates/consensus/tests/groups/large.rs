//! Batches that are larger than others.

use std::sync::Arc;

use meridian_consensus::{MAX_BATCH_BYTES, ProposalFailure, RaftTiming};
use meridian_proto::{encode_batch, log};
use meridian_storage::{GroupLog, RecordKind};
use prost::Message;

use crate::support::{Node, at, batch, equal, group, leader, set, until, write};
use crate::wire::Wire;

async fn three() -> Vec<Node> {
    let wire = Arc::new(Wire::default());
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::new(id, &wire).await);
    }
    let voters = set(1..=3);
    for node in &mut nodes {
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
    }
    nodes
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_is_refused_and_others_go_on() {
    let nodes = three().await;
    let last = write(&nodes, 1, "before").await;
    let leading = leader(&nodes).await;
    let term = leading.group().leadership().unwrap().term;
    let encoded = |text: &str| encode_batch(&batch(at(1, last + 1), text));
    let mut text = "x".repeat(MAX_BATCH_BYTES - 200);
    text += &"x".repeat(MAX_BATCH_BYTES + 1 - encoded(&text).len());
    let refused = leading.group().propose(encoded(&text), last + 1, term).await;
    assert_eq!(refused.err(), Some(ProposalFailure::TooLarge { bytes: MAX_BATCH_BYTES + 1 }));
    // One of just so many is nothing special, nor are several that are sent at once.
    text.pop();
    assert_eq!(encoded(&text).len(), MAX_BATCH_BYTES);
    let last = write(&nodes, 3, &text).await;
    equal(&nodes, at(1, last)).await;
}

/// Puts a batch behind what a member's log holds, below whatever checks it. The member is closed.
fn put_into_the_log(node: &Node, sequence: u64, text: &str) {
    let records = GroupLog::open(Arc::clone(&node.engine), group(1), RecordKind::Entry).unwrap();
    let (_, last) = records.last().unwrap().unwrap();
    let last = log::Entry::decode(last).unwrap().log_id.unwrap();
    let log_id = Some(log::LogId { index: last.index + 1, ..last });
    let payload = Some(log::entry::Payload::Batch(encode_batch(&batch(at(1, sequence), text))));
    let entry = log::Entry { log_id, payload }.encode_to_vec();
    records.append([(last.index + 1, &entry[..])]).unwrap();
    node.engine.sync().unwrap();
}

/// As an earlier version, which bounded requests and not what they make, could leave it behind.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_batch_beyond_the_bound_that_is_in_a_log_already_commits_and_others_behind_it() {
    let mut nodes = three().await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    for node in &mut nodes {
        node.close().await;
    }
    // Two of them have it, so that the leader has it, and has to send it to the third.
    let large = "x".repeat(70 << 20);
    for node in &nodes[..2] {
        put_into_the_log(node, last + 1, &large);
    }
    let voters = set(1..=3);
    for node in &mut nodes {
        // As in the product: what takes a moment to be encoded and checked is no reason for an
        // election.
        node.timing = RaftTiming {
            heartbeat_ms: 100,
            election_timeout_min_ms: 1500,
            election_timeout_max_ms: 2000,
        };
        node.open(1, &voters).await;
    }
    until("it is applied", async || {
        nodes.iter().all(|node| node.state.position() >= at(1, last + 1))
    })
    .await;
    let last = write(&nodes, 2, "behind it").await;
    equal(&nodes, at(1, last)).await;
}
