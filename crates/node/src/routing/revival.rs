//! News for requests that wait for a shard.

use meridian_types::NodeId;

/// What those who wait for a shard are told: it is served, by this leader. Once for each leader
/// that is found, or each end of an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Revival {
    pub(crate) count: u64,
    pub(crate) leader: Option<NodeId>,
}
