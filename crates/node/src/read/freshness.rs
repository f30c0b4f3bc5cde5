//! Whether a state is new enough to be read.

use std::time::{Duration, Instant};

use meridian_storage::{AppliedMark, ShardState};
use tokio::sync::watch;

/// A node that hears of no leader for so long after its start serves what it has.
const ALONE_AFTER: Duration = Duration::from_secs(5);

/// No other node can tell a starting node how far the shard is: what it has is shown after a while,
/// if it has anything, rather than nothing for as long as it is cut off.
pub(crate) fn serves_alone(started: Instant, state: &ShardState) -> bool {
    started.elapsed() >= ALONE_AFTER && state.position().sequence > 0
}

/// Waits until `sequence` is applied; false if that takes too long.
pub(crate) async fn wait_applied(
    mut applied: watch::Receiver<AppliedMark>,
    sequence: u64,
    within: Duration,
) -> bool {
    if applied.borrow().sequence >= sequence {
        return true;
    }
    let reached = applied.wait_for(|newest| newest.sequence >= sequence);
    matches!(tokio::time::timeout(within, reached).await, Ok(Ok(_)))
}
