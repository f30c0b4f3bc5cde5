//! Batches of a stopped group's log beyond a base.

use std::sync::Arc;

use std::ops::ControlFlow;

use meridian_consensus::{
    Formed, RaftGroup, applied_batches_back, forget_group, log_batches_beyond,
};
use meridian_storage::{Engine, RaftApplied, StorageError};

use crate::support::{Node, at, equal, group, set, until, write};
use crate::wire::Wire;

fn beyond(node: &Node, after: u64) -> Vec<(u64, bool)> {
    let engine: Arc<dyn Engine> = node.engine.clone();
    let mut found = Vec::new();
    log_batches_beyond(&engine, group(1), after, &mut |sequence, _, bytes, committed| {
        assert_eq!(meridian_proto::batch_header(&bytes).unwrap().0, at(1, sequence));
        found.push((sequence, committed));
        Ok(())
    })
    .unwrap();
    found
}

/// The sequences of each piece of what the state has, until one of them is `last`.
fn back(node: &Node, max_bytes: usize, last: u64) -> Vec<Vec<u64>> {
    let engine: Arc<dyn Engine> = node.engine.clone();
    let mut pieces = Vec::new();
    applied_batches_back(&engine, group(1), max_bytes, &mut |piece| {
        for batch in piece {
            let position = meridian_proto::batch_header(&batch.bytes).unwrap().0;
            assert_eq!(position, at(1, batch.sequence));
        }
        pieces.push(piece.iter().map(|batch| batch.sequence).collect::<Vec<_>>());
        let is_last = piece.iter().any(|batch| batch.sequence == last);
        Ok(if is_last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    })
    .unwrap();
    pieces
}

#[tokio::test]
async fn batches_beyond_a_base_are_read_and_then_forgotten() {
    let wire = Arc::new(Wire::default());
    let voters = set(1..=3);
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let mut node = Node::new(id, &wire).await;
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
        nodes.push(node);
    }
    write(&nodes, 5, "first").await;
    equal(&nodes, at(1, 5)).await;
    // Then a batch that only the leader has.
    let first = crate::support::leader(&nodes).await.id;
    for node in nodes.iter_mut().filter(|node| node.id != first) {
        node.close().await;
    }
    let node = nodes.iter_mut().find(|node| node.id == first).unwrap();
    tokio::select! {
        written = node.write("alone") => panic!("without a quorum: {written:?}"),
        () = until("it has the batch", async || beyond(node, 5) == [(6, false)]) => {}
    }
    node.close().await;
    assert_eq!(beyond(node, 3), [(4, true), (5, true), (6, false)]);
    assert_eq!(beyond(node, 5), [(6, false)]);
    assert_eq!(beyond(node, 6), []);
    assert_eq!(beyond(node, 0).len(), 6);
    assert_eq!(back(node, 1 << 20, 0), [[1, 2, 3, 4, 5]]);
    assert_eq!(back(node, 0, 0), [[5], [4], [3], [2], [1]]);
    assert_eq!(back(node, 0, 4), [[5], [4]]);
    // The state has another entry there than the log, which may hold anything before it then.
    let raft = node.state.applied().raft;
    let log_id = raft.log_id.map(|log_id| meridian_proto::log::LogId { term: 99, ..log_id });
    node.state.apply(&[], RaftApplied { log_id, ..raft }).unwrap();
    assert_eq!(back(node, 0, 0), Vec::<Vec<u64>>::new());
    // Not from the state, which another epoch may have taken over, but from what was marked.
    node.state.apply(&[], RaftApplied::default()).unwrap();
    assert_eq!(back(node, 0, 0), Vec::<Vec<u64>>::new());
    assert_eq!(beyond(node, 4), [(5, true), (6, false)]);
    let engine: Arc<dyn Engine> = node.engine.clone();
    let enough = |_: u64, _, _, _| Err(StorageError::cancelled("enough"));
    assert_eq!(
        log_batches_beyond(&engine, group(1), 0, &mut { enough }).unwrap_err().to_string(),
        "enough"
    );

    until("a mark", async || node.marks.mark(group(1)) > 0).await;
    forget_group(&engine, group(1), Some(&node.marks)).unwrap();
    forget_group(&engine, group(1), Some(&node.marks)).unwrap();
    assert_eq!((beyond(node, 0), node.marks.mark(group(1))), (vec![], 0));
    node.crash().await;
    assert_eq!((beyond(node, 0), node.marks.mark(group(1))), (vec![], 0));
    // It has forgotten its votes: in this group it gives none any more.
    node.open(1, &voters).await;
    let peers: Arc<dyn meridian_consensus::Peers> = wire.clone();
    node.group().take_part(&voters, &peers, false).await.unwrap();
    assert!(!node.group().votes());
    node.close().await;
    // In the next epoch it is one like the others.
    let alone = set([first.0]);
    let base = node.state.position();
    assert_eq!(
        RaftGroup::form(&node.state, group(2), &alone, base, Some(&node.marks)).unwrap(),
        Formed::Founder
    );
    node.open(2, &alone).await;
    until("it leads", async || node.write("second").await.is_ok()).await;
}
