//! How far a shard's log may be purged.

use meridian_types::NodeId;

/// The last durable position a replica reported. Where nothing was ever heard it is 0, or what the
/// directory or the disk remembers; a silent replica counts at its last known position.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReplicaPosition {
    pub node: NodeId,
    pub durable_sequence: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// Everything up to and including this sequence may be purged.
    pub purge_through: u64,
    /// Replicas that this leaves behind: each needs a snapshot. Worth a warning and a metric.
    pub dropped: Vec<NodeId>,
}

/// How far a shard's log may be purged.
///
/// It keeps what any replica (the archive is one) still lacks, unless the byte bound forbids:
/// `floor`, from [`CommitHistory::floor`](crate::CommitHistory::floor), is then purged through and
/// the slowest are dropped. Batches that are not flushed into the state (`flushed_sequence`) are
/// needed by this node itself and are never purged, whatever the bound says.
pub fn retain(
    replicas: &[ReplicaPosition],
    flushed_sequence: u64,
    floor: Option<u64>,
) -> Retention {
    let slowest =
        replicas.iter().map(|replica| replica.durable_sequence).min().unwrap_or(flushed_sequence);
    let purge_through = slowest.max(floor.unwrap_or(0)).min(flushed_sequence);
    let left_behind = replicas.iter().filter(|replica| replica.durable_sequence < purge_through);
    Retention { purge_through, dropped: left_behind.map(|replica| replica.node).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn replicas(positions: &[(u64, u64)]) -> Vec<ReplicaPosition> {
        positions
            .iter()
            .map(|&(node, durable_sequence)| ReplicaPosition {
                node: NodeId(node),
                durable_sequence,
            })
            .collect()
    }

    #[test]
    fn the_slowest_replica_holds_the_log() {
        let retention = retain(&replicas(&[(1, 90), (2, 40), (3, 70)]), 100, None);
        assert_eq!(retention, Retention { purge_through: 40, dropped: vec![] });
    }

    #[test]
    fn a_replica_never_heard_holds_everything_until_the_bound() {
        assert_eq!(retain(&replicas(&[(1, 90), (2, 0)]), 100, None).purge_through, 0);
        let bounded = retain(&replicas(&[(1, 90), (2, 0)]), 100, Some(60));
        assert_eq!(bounded, Retention { purge_through: 60, dropped: vec![NodeId(2)] });
    }

    #[test]
    fn what_is_not_flushed_is_never_purged() {
        assert_eq!(retain(&[], 30, None).purge_through, 30);
        assert_eq!(
            retain(&replicas(&[(1, 90)]), 30, Some(60)),
            Retention { purge_through: 30, dropped: vec![] }
        );
    }
}
