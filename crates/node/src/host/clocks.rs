//! The wall clocks of this node and of the others, as they say them with their statuses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meridian_types::NodeId;
use parking_lot::Mutex;

use crate::host::clock::{boot_time, wall_ms};

/// A node not heard of for so long has no say in what time it is.
const AWAY_AFTER: Duration = Duration::from_secs(3);
/// A clock that is further from the others' is worth a look.
const WORTH_A_WARNING_MS: i64 = 1000;

/// The clocks at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Reading {
    /// The middle one of this node's clock and those of the others that were heard of late; of two
    /// in the middle the earlier. Milliseconds since the Unix epoch.
    pub(crate) median_ms: u64,
    /// This node's own.
    pub(crate) own_ms: u64,
    /// How many others were heard.
    pub(crate) others: usize,
}

impl Reading {
    /// How far this node's clock is ahead of the middle one.
    pub(crate) fn offset_ms(&self) -> i64 {
        i64::try_from(i128::from(self.own_ms) - i128::from(self.median_ms)).unwrap_or(i64::MAX)
    }

    fn is_away(&self) -> bool {
        self.offset_ms().abs() > WORTH_A_WARNING_MS
    }
}

/// The source of a leader's logged time. Tests set both of its clocks as they like.
pub(crate) trait TimeSource: Send + Sync {
    /// A clock that does not jump, and goes on while the machine is suspended.
    fn now(&self) -> Duration;

    fn reading(&self) -> Reading;
}

/// Cheap to clone; clones share what was heard.
#[derive(Clone, Default)]
pub(crate) struct Clocks {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    /// The last clock that each other node of the cluster announced, and when it was heard.
    heard: Mutex<BTreeMap<NodeId, Option<(u64, Duration)>>>,
    is_away: AtomicBool,
}

impl Clocks {
    /// The other nodes of the cluster: only their clocks count.
    pub(crate) fn set_others(&self, nodes: impl Iterator<Item = NodeId>) {
        let mut heard = self.inner.heard.lock();
        let known = std::mem::take(&mut *heard);
        *heard = nodes.map(|node| (node, known.get(&node).copied().flatten())).collect();
    }

    /// `clock_ms` is what the node's clock said when it sent that. On its way it got older, so the
    /// node's clock is taken to be behind by that much; never ahead.
    pub(crate) fn heard(&self, node: NodeId, clock_ms: u64) {
        if let Some(heard) = self.inner.heard.lock().get_mut(&node) {
            *heard = Some((clock_ms, boot_time()));
        }
    }

    /// Shows how far this node's clock is from the others', and warns once when it is far.
    pub(crate) fn report(&self) {
        let reading = self.reading();
        let offset_ms = reading.offset_ms();
        metrics::gauge!("meridian_node_clock_offset_seconds").set(offset_ms as f64 / 1000.0);
        let is_away = reading.is_away();
        if self.inner.is_away.swap(is_away, Ordering::Relaxed) == is_away {
            return;
        }
        if is_away {
            tracing::warn!(
                offset_ms,
                others = reading.others,
                "this node's clock is away from the middle of the others': is it synchronized?"
            );
        } else {
            tracing::info!(offset_ms, "this node's clock agrees with the others' again");
        }
    }

    /// The warning in a node's status that its clock is far from the others'.
    pub(crate) fn warning(&self) -> Option<String> {
        let reading = self.reading();
        let (offset_ms, others) = (reading.offset_ms(), reading.others);
        reading.is_away().then(|| {
            let direction = if offset_ms > 0 { "ahead of" } else { "behind" };
            format!(
                "the clock is {:.1} s {direction} the middle of {} nodes' clocks: is it synchronized?",
                offset_ms.unsigned_abs() as f64 / 1000.0,
                others + 1,
            )
        })
    }

    fn reading_at(&self, now: Duration, own_ms: u64) -> Reading {
        let heard = self.inner.heard.lock();
        let ages =
            heard.values().flatten().map(|(clock_ms, at)| (*clock_ms, now.saturating_sub(*at)));
        let fresh = ages.filter(|(_, age)| *age < AWAY_AFTER);
        let millis = |age: Duration| u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let mut clocks: Vec<u64> =
            fresh.map(|(clock_ms, age)| clock_ms.saturating_add(millis(age))).collect();
        let others = clocks.len();
        clocks.push(own_ms);
        clocks.sort_unstable();
        let median_ms = clocks.get((clocks.len() - 1) / 2).copied().unwrap_or(own_ms);
        Reading { median_ms, own_ms, others }
    }
}

impl TimeSource for Clocks {
    fn now(&self) -> Duration {
        boot_time()
    }

    fn reading(&self) -> Reading {
        self.reading_at(boot_time(), wall_ms())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_of_the_clocks_that_are_heard_counts_and_of_two_the_one_behind() {
        let clocks = Clocks::default();
        clocks.set_others([2, 3].map(NodeId).into_iter());
        clocks.heard(NodeId(9), 1);
        let now = boot_time();
        let read = |own_ms, later| clocks.reading_at(now + Duration::from_millis(later), own_ms);
        let alone = read(90_000, 0);
        assert_eq!((alone.median_ms, alone.offset_ms(), alone.others), (90_000, 0, 0));
        clocks.heard(NodeId(2), 1000);
        // A day ahead of the only other one: that one may be right.
        assert!((1000..1100).contains(&read(86_400_000, 0).median_ms));
        assert!((500..501).contains(&read(500, 0).median_ms));
        clocks.heard(NodeId(3), 1400);
        // They are taken to go on while nothing is heard of them.
        let reading = read(86_400_000, 500);
        assert!((1850..=1900).contains(&reading.median_ms), "{reading:?}");
        assert_eq!(
            (reading.others, reading.offset_ms()),
            (2, 86_400_000 - i64::try_from(reading.median_ms).unwrap())
        );
        // No other node is left.
        assert_eq!(read(86_400_000, 4000).median_ms, 86_400_000);
    }

    #[test]
    fn a_clock_is_away_that_is_more_than_a_second_ahead_or_behind() {
        let away = |own_ms| Reading { median_ms: 5000, own_ms, others: 2 }.is_away();
        assert_eq!([3999, 4000, 5000, 6000, 6001].map(away), [true, false, false, false, true]);
    }

    #[test]
    fn a_status_says_how_far_this_nodes_clock_is_from_the_others() {
        let warning = |own_is_ahead_ms: i64| {
            let clocks = Clocks::default();
            clocks.set_others([2, 3].map(NodeId).into_iter());
            (2..=3).map(NodeId).for_each(|node| {
                clocks.heard(node, wall_ms().checked_add_signed(-own_is_ahead_ms).unwrap())
            });
            clocks.warning()
        };
        assert_eq!(warning(0), None);
        let text = |how_far: &str| {
            Some(format!(
                "the clock is {how_far} the middle of 3 nodes' clocks: is it synchronized?"
            ))
        };
        assert_eq!(
            (warning(60_000), warning(-60_000)),
            (text("60.0 s ahead of"), text("60.0 s behind"))
        );
    }

    #[test]
    fn the_time_that_passes_is_that_of_a_clock_that_does_not_jump() {
        let before = boot_time();
        let now = Clocks::default().now();
        assert!(before <= now && now <= boot_time());
    }
}
