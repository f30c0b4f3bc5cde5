//! Which nodes answer one gateway, and how fast.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::NodeId;
use parking_lot::Mutex;

use crate::time_budget::HEARD_LATELY;

/// To a node that has not answered yet.
const UNKNOWN_ROUND_TRIP: Duration = Duration::from_millis(100);
/// No node is waited for as if it were farther than this.
const MAX_ROUND_TRIP: Duration = Duration::from_secs(2);
/// A node that did not answer is tried after the others for so long; then by one request at a time.
const AVOID: Duration = Duration::from_secs(3);

#[derive(Default, Clone, Copy)]
struct Known {
    round_trip: Option<Duration>,
    heard: Option<Duration>,
    silent_since: Option<Duration>,
}

impl Known {
    fn is_heard(self, now: Duration) -> bool {
        self.heard.is_some_and(|heard| now.saturating_sub(heard) < HEARD_LATELY)
    }
}

/// What is known of the nodes. That of this process is asked like the others, and takes no time.
pub(super) struct Reach {
    local: Option<NodeId>,
    nodes: Mutex<BTreeMap<NodeId, Known>>,
}

impl Reach {
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
    pub(super) fn heard(&self, now: Duration, node: NodeId) {
        let mut nodes = self.nodes.lock();
        let known = nodes.entry(node).or_default();
        known.heard = Some(now);
        known.silent_since = None;
    }

    pub(super) fn was_heard_since(&self, since: Duration, node: NodeId) -> bool {
        self.nodes
            .lock()
            .get(&node)
            .is_some_and(|known| known.heard.is_some_and(|heard| heard > since))
    }

    /// Whether anything was heard of the node of late.
    pub(super) fn is_heard(&self, now: Duration, node: NodeId) -> bool {
        let nodes = self.nodes.lock();
        nodes.get(&node).is_some_and(|known| known.is_heard(now))
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
        if !known.is_heard(now) {
            known.silent_since = Some(now);
        }
    }

    /// Nothing can be sent to it.
    pub(super) fn is_cut_off(&self, now: Duration, node: NodeId) {
        self.nodes.lock().entry(node).or_default().silent_since = Some(now);
    }

    pub(super) fn is_silent(&self, now: Duration, node: NodeId) -> bool {
        let nodes = self.nodes.lock();
        nodes.get(&node).is_some_and(|known| {
            known.silent_since.is_some_and(|since| now.saturating_sub(since) < AVOID)
        })
    }

    /// As [`Reach::is_silent`], for somebody who asks the node next if it is not: one request at a
    /// time finds out whether a silent node is back.
    pub(super) fn avoid(&self, now: Duration, node: NodeId) -> bool {
        let mut nodes = self.nodes.lock();
        let Some(Known { silent_since: Some(since), .. }) = nodes.get_mut(&node) else {
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

    #[test]
    fn a_node_that_was_heard_lately_is_not_silent_and_one_that_was_is_tried_by_one_at_a_time() {
        let reach = Reach::new(None);
        let mut now = Duration::from_secs(1);
        reach.heard(now, 1);
        reach.was_silent(now, 1);
        assert!(!reach.is_silent(now, 1), "one of its answers is large");
        now += HEARD_LATELY;
        reach.was_silent(now, 1);
        assert!(reach.is_silent(now, 1) && reach.avoid(now, 1));
        now += AVOID;
        assert!(!reach.is_silent(now, 1));
        assert_eq!((reach.avoid(now, 1), reach.avoid(now, 1)), (false, true));
        reach.heard(now, 1);
        assert!(!reach.avoid(now, 1) && !reach.avoid(now, 1));
        reach.is_cut_off(now, 1);
        assert!(reach.avoid(now, 1));
    }

    #[test]
    fn a_node_is_heard_since_before_it_was_heard() {
        let (reach, at) = (Reach::new(None), Duration::from_secs);
        assert!(!reach.was_heard_since(at(0), 1));
        reach.heard(at(5), 1);
        assert!(reach.was_heard_since(at(4), 1) && !reach.was_heard_since(at(5), 1));
    }

    #[test]
    fn a_try_that_was_cut_raises_the_estimate_up_to_a_bound() {
        let reach = Reach::new(Some(9));
        reach.took(1, Duration::from_millis(10));
        (0..3).for_each(|_| reach.took(1, Duration::from_secs(1)));
        assert!(reach.round_trip(1) > Duration::from_millis(300));
        (0..100).for_each(|_| reach.took(1, Duration::from_secs(60)));
        assert_eq!(reach.round_trip(1), MAX_ROUND_TRIP);
        assert_eq!(
            (reach.round_trip(2), reach.round_trip(9)),
            (UNKNOWN_ROUND_TRIP, Duration::ZERO)
        );
    }
}
