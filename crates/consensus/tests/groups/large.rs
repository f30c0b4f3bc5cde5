//! Batches that are larger than others.

use std::sync::Arc;

use meridian_consensus::{MAX_BATCH_BYTES, ProposalFailure};
use meridian_proto::encode_batch;

use crate::support::{Node, at, batch, equal, leader, set, write};
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
    let bytes = encode_batch(&batch(at(1, last + 1), &"x".repeat(MAX_BATCH_BYTES)));
    let length = bytes.len();
    let refused = leading.group().propose(bytes, last + 1, term).await;
    assert_eq!(refused.err(), Some(ProposalFailure::TooLarge { bytes: length }));
    // One just below the bound is nothing special, nor are several that are sent at once.
    let bound = "x".repeat(MAX_BATCH_BYTES - 200);
    let last = write(&nodes, 3, &bound).await;
    equal(&nodes, at(1, last)).await;
}
