//! Which nodes answer one gateway, and how fast.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::NodeId;
use parking_lot::Mutex;

use crate::time_budget::RECEIVED_LATELY;

/// To a node that has not answered yet.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(100);
/// No node is waited for as if it were farther than this.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);
/// A node that did not answer is tried after the others for so long; then by one request at a time.
const AVOID: Duration = Duration::from_secs(3);

#[derive(Default, Clone, Copy)]
struct Health {
    round_trip: Option<Duration>,
    last_received: Option<Duration>,
    silent_since: Option<Duration>,
}

impl Health {
    fn was_received_lately(self, now: Duration) -> bool {
        self.last_received.is_some_and(|at| now.saturating_sub(at) < RECEIVED_LATELY)
    }
}

/// The health of all nodes. The node of this process is asked like the others, and takes no
/// time.
pub(super) struct NodeHealth {
    local: Option<NodeId>,
    nodes: Mutex<BTreeMap<NodeId, Health>>,
}

impl NodeHealth {
    pub(super) fn new(local: Option<NodeId>) -> Self {
        Self { local, nodes: Mutex::default() }
    }

    /// How long the node usually takes to answer.
    pub(super) fn round_trip(&self, node: NodeId) -> Duration {
        if Some(node) == self.local {
            return Duration::ZERO;
        }
        self.measured(node).unwrap_or(UNKNOWN_ROUND_TRIP)
    }

    pub(super) fn measured(&self, node: NodeId) -> Option<Duration> {
        self.nodes.lock().get(&node)?.round_trip
    }

    /// The node has answered, or is at work on it.
    pub(super) fn received(&self, now: Duration, node: NodeId) {
        let mut nodes = self.nodes.lock();
        let known = nodes.entry(node).or_default();
        known.last_received = Some(now);
        known.silent_since = None;
    }

    pub(super) fn was_received_since(&self, since: Duration, node: NodeId) -> bool {
        self.nodes
            .lock()
            .get(&node)
            .is_some_and(|known| known.last_received.is_some_and(|at| at > since))
    }

    /// Whether anything was received from the node of late.
    pub(super) fn was_received_lately(&self, now: Duration, node: NodeId) -> bool {
        let nodes = self.nodes.lock();
        nodes.get(&node).is_some_and(|known| known.was_received_lately(now))
    }

    /// It took so long to the first byte of an answer; or longer, where it was given up then.
    pub(super) fn took(&self, node: NodeId, elapsed: Duration) {
        let mut nodes = self.nodes.lock();
        let smoothed = nodes.entry(node).or_default().round_trip.get_or_insert(elapsed);
        *smoothed = ((*smoothed * 7 + elapsed) / 8).min(MAX_ROUND_TRIP);
    }

    /// It did not answer in time.
    pub(super) fn was_silent(&self, now: Duration, node: NodeId) {
        let mut nodes = self.nodes.lock();
        let known = nodes.entry(node).or_default();
        if !known.was_received_lately(now) {
            known.silent_since = Some(now);
        }
    }

    /// Nothing can be sent to it.
    pub(super) fn was_cut_off(&self, now: Duration, node: NodeId) {
        self.nodes.lock().entry(node).or_default().silent_since = Some(now);
    }

    pub(super) fn is_silent(&self, now: Duration, node: NodeId) -> bool {
        let nodes = self.nodes.lock();
        nodes.get(&node).is_some_and(|known| {
            known.silent_since.is_some_and(|since| now.saturating_sub(since) < AVOID)
        })
    }

    /// As [`NodeHealth::is_silent`], for a caller that asks the node next if it is not: one request
    /// at a time finds out whether a silent node is back.
    pub(super) fn avoid(&self, now: Duration, node: NodeId) -> bool {
        let mut nodes = self.nodes.lock();
        let Some(Health { silent_since: Some(since), .. }) = nodes.get_mut(&node) else {
            return false;
        };
        if now.saturating_sub(*since) < AVOID {
            return true;
        }
        *since = now;
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: NodeId = NodeId(1);

    #[test]
    fn silent_node_is_tried_by_one_request_at_a_time_and_a_heard_one_is_not_silent() {
        let health = NodeHealth::new(None);
        let mut now = Duration::from_secs(1);
        health.received(now, NODE);
        health.was_silent(now, NODE);
        assert!(!health.is_silent(now, NODE), "one of its answers is large");
        now += RECEIVED_LATELY;
        health.was_silent(now, NODE);
        assert!(health.is_silent(now, NODE) && health.avoid(now, NODE));
        now += AVOID;
        assert!(!health.is_silent(now, NODE));
        assert_eq!((health.avoid(now, NODE), health.avoid(now, NODE)), (false, true));
        health.received(now, NODE);
        assert!(!health.avoid(now, NODE) && !health.avoid(now, NODE));
        health.was_cut_off(now, NODE);
        assert!(health.avoid(now, NODE));
    }

    #[test]
    fn answer_counts_as_received_since_any_time_before_it() {
        let (health, at) = (NodeHealth::new(None), Duration::from_secs);
        assert!(!health.was_received_since(at(0), NODE));
        health.received(at(5), NODE);
        assert!(health.was_received_since(at(4), NODE) && !health.was_received_since(at(5), NODE));
    }

    #[test]
    fn try_that_was_cut_raises_the_estimate_up_to_a_bound() {
        let health = NodeHealth::new(Some(NodeId(9)));
        health.took(NODE, Duration::from_millis(10));
        (0..3).for_each(|_| health.took(NODE, Duration::from_secs(1)));
        assert!(health.round_trip(NODE) > Duration::from_millis(300));
        (0..100).for_each(|_| health.took(NODE, Duration::from_secs(60)));
        assert_eq!(health.round_trip(NODE), MAX_ROUND_TRIP);
        assert_eq!(
            (health.round_trip(NodeId(2)), health.round_trip(NodeId(9))),
            (UNKNOWN_ROUND_TRIP, Duration::ZERO)
        );
    }
}
