//! Whether the nodes of a shard applied the same: each announces a digest of its state, and a node
//! that was at the same position compares.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use meridian_proto::shipping as wire;
use meridian_storage::{Digest, ShardState};
use meridian_types::{NodeId, Position};
use parking_lot::Mutex;

use crate::replication::wire::{position, position_to_wire};

/// A node that was silent for so long is no longer told of: it was removed, or wiped.
const FORGET: Duration = Duration::from_secs(600);

/// The nodes that had something else than this one, of one shard.
#[derive(Default)]
pub(crate) struct Comparison {
    differing: Mutex<BTreeMap<NodeId, Differing>>,
}

struct Differing {
    /// Where it was first seen: the difference is older.
    since: Position,
    heard: Instant,
}

impl Comparison {
    /// Another node says what its state comes to. Digests that differ differ for good, so whatever
    /// position both were at tells.
    pub(crate) fn heard(&self, own: NodeId, state: &ShardState, checkpoint: &wire::Checkpoint) {
        let Some(at) = checkpoint.applied.and_then(position) else { return };
        let (node, digest) = (NodeId(checkpoint.node_id), Digest(checkpoint.digest));
        let Some(here) = state.digest_at(at).filter(|_| node != own) else { return };
        let (shard, mut differing) = (state.shard(), self.differing.lock());
        metrics::counter!("meridian_replica_comparisons_total", "shard" => shard.to_string())
            .increment(1);
        if here == digest {
            if differing.remove(&node).is_some() {
                tracing::warn!(%shard, %own, %node, position = %at, "the states of two nodes agree again");
            }
            return;
        }
        let labels = [("shard", shard.to_string()), ("node", node.to_string())];
        metrics::counter!("meridian_replica_divergence_total", &labels).increment(1);
        let known = differing.entry(node).or_insert_with(|| {
            tracing::error!(
                %shard, %own, %node, position = %at, digest_here = here.0, digest_there = digest.0,
                "two nodes applied different batches: one of them serves what was never committed"
            );
            Differing { since: at, heard: Instant::now() }
        });
        known.heard = Instant::now();
    }

    /// The nodes that differ, and since which position that is known.
    pub(crate) fn differing(&self) -> Vec<(NodeId, Position)> {
        let mut differing = self.differing.lock();
        differing.retain(|_, other| other.heard.elapsed() < FORGET);
        differing.iter().map(|(node, other)| (*node, other.since)).collect()
    }
}

/// The digest of this node's state, with its position.
pub(crate) fn checkpoint(own: NodeId, state: &ShardState) -> wire::Checkpoint {
    let (at, digest) = state.checkpoint();
    wire::Checkpoint {
        shard: state.shard().0,
        node_id: own.0,
        applied: Some(position_to_wire(at)),
        digest: digest.0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use meridian_proto::DecodedBatch;
    use meridian_storage::{MemoryEngine, RaftApplied};
    use meridian_types::{Batch, Epoch, ShardId};

    use super::*;

    /// A state with the batches of a history, one `time_ms` each.
    fn state(times: &[u64]) -> ShardState {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        go_on(&state, times);
        state
    }

    fn go_on(state: &ShardState, times: &[u64]) {
        for time_ms in times {
            let position = Position::new(Epoch(1), state.position().sequence + 1);
            let batch = Batch { position, time_ms: *time_ms, transactions: Vec::new() };
            state.apply(&[DecodedBatch::from(batch)], RaftApplied::default()).unwrap();
        }
    }

    #[test]
    fn states_that_differ_are_found_at_whatever_position_both_were() {
        let (here, same, other) = (state(&[1, 2, 3, 4, 5]), state(&[1, 2, 3]), state(&[1, 9, 3]));
        let comparison = Comparison::default();
        comparison.heard(NodeId(1), &here, &checkpoint(NodeId(2), &same));
        comparison.heard(NodeId(1), &here, &checkpoint(NodeId(1), &other));
        assert_eq!(comparison.differing(), []);
        comparison.heard(NodeId(1), &here, &checkpoint(NodeId(3), &other));
        assert_eq!(comparison.differing(), [(NodeId(3), Position::new(Epoch(1), 3))]);
        // Ahead of this node it is not judged, and it stays known: it may have come there with the
        // same fault.
        go_on(&other, &[4, 5, 6]);
        comparison.heard(NodeId(1), &here, &checkpoint(NodeId(3), &other));
        assert_eq!(comparison.differing(), [(NodeId(3), Position::new(Epoch(1), 3))]);
        // The one ahead finds it as well.
        let seen_there = Comparison::default();
        seen_there.heard(NodeId(3), &other, &checkpoint(NodeId(1), &here));
        assert_eq!(seen_there.differing(), [(NodeId(1), Position::new(Epoch(1), 5))]);
        // It was seeded afresh.
        comparison.heard(NodeId(1), &here, &checkpoint(NodeId(3), &state(&[1, 2, 3, 4])));
        assert_eq!(comparison.differing(), []);
    }
}
