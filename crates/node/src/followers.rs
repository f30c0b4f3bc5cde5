//! What a voter knows of those who follow its shard: positions, lag, and what the log must keep for them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_shipping::{CommitHistory, Lag, ReplicaPosition, Retention, Status, retain};
use meridian_storage::ShardState;
use meridian_types::NodeId;
use parking_lot::Mutex;

use crate::clock::wall_ms;

/// Samples of the commit history; beyond, older ones are kept more coarsely.
const HISTORY_SAMPLES: usize = 4096;
/// A follower not heard of for so long counts as away.
const AWAY_AFTER: Duration = Duration::from_secs(3);

/// The leadership is handed to nobody who was silent for longer: one that has just lost its power cannot say
/// so.
const HEIR_HEARD: Duration = Duration::from_millis(500);

/// The followers of one shard, as one of its nodes sees them.
pub(crate) struct Followers {
    inner: Mutex<Inner>,
}

struct Inner {
    history: CommitHistory,
    positions: BTreeMap<NodeId, Follower>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Follower {
    durable: u64,
    heard: Option<Instant>,
    may_lead: bool,
}

/// One follower's lag.
#[derive(Debug, Clone, Copy)]
pub(crate) struct FollowerLag {
    pub(crate) node: NodeId,
    pub(crate) durable: u64,
    pub(crate) lag: Lag,
    pub(crate) connected: bool,
    /// A voter that is there and votes.
    pub(crate) may_lead: bool,
}

/// Of the commits behind what is applied now.
fn history_from(state: &ShardState) -> CommitHistory {
    let applied = state.applied();
    // A shard without a batch has no time yet: count from now, not from 1970.
    let time_ms = if applied.time_ms == 0 { wall_ms() } else { applied.time_ms };
    CommitHistory::starting_at(applied.position.sequence, time_ms, HISTORY_SAMPLES)
}

impl Followers {
    /// Watches what is applied to `state`.
    pub(crate) fn watch(state: &ShardState) -> Arc<Self> {
        let history = history_from(state);
        let followers = Arc::new(Self { inner: Mutex::new(Inner { history, positions: BTreeMap::new() }) });
        let observer = Arc::clone(&followers);
        state.observe(move |batches| {
            let mut inner = observer.inner.lock();
            for (batch, len) in batches {
                inner.history.record(batch.position.sequence, *len as u64, batch.time_ms);
            }
        });
        followers
    }

    /// The state was replaced, or goes on in another epoch: what was recorded of its commits may be of batches
    /// that were lost, whose sequences come again.
    pub(crate) fn restart(&self, state: &ShardState) {
        self.inner.lock().history = history_from(state);
    }

    /// All who follow the shard now, heard of or not.
    pub(crate) fn set_nodes(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let mut inner = self.inner.lock();
        let known = std::mem::take(&mut inner.positions);
        let keep = |node| (node, known.get(&node).copied().unwrap_or_default());
        inner.positions = nodes.into_iter().map(keep).collect();
    }

    /// How far the best of `nodes` is behind, in milliseconds; `None` if there are none.
    pub(crate) fn least_lag_ms(&self, mut counts: impl FnMut(NodeId) -> bool) -> Option<u64> {
        let now_ms = wall_ms();
        let inner = self.inner.lock();
        let of = inner.positions.iter().filter(|(node, _)| counts(**node));
        of.map(|(_, follower)| inner.history.lag(follower.durable, now_ms).millis).min()
    }

    pub(crate) fn heard(&self, status: Status, may_lead: bool) {
        if let Some(follower) = self.inner.lock().positions.get_mut(&status.node) {
            // A node that was wiped says less than before: believe it.
            *follower = Follower { durable: status.durable.sequence, heard: Some(Instant::now()), may_lead };
        }
    }

    /// Every follower's lag behind what is committed here.
    pub(crate) fn lags(&self) -> Vec<FollowerLag> {
        let now_ms = wall_ms();
        let inner = self.inner.lock();
        let lag = |(node, follower): (&NodeId, &Follower)| {
            let connected = follower.heard.is_some_and(|heard| heard.elapsed() < AWAY_AFTER);
            FollowerLag {
                node: *node,
                durable: follower.durable,
                lag: inner.history.lag(follower.durable, now_ms),
                connected,
                may_lead: follower.may_lead && follower.heard.is_some_and(|heard| heard.elapsed() < HEIR_HEARD),
            }
        };
        inner.positions.iter().map(lag).collect()
    }

    /// Who is to lead next: of those who may, the one that has most.
    pub(crate) fn heir(&self) -> Option<NodeId> {
        let heirs = self.lags().into_iter().filter(|follower| follower.may_lead);
        heirs.max_by_key(|heir| heir.durable).map(|heir| heir.node)
    }

    /// How far the log may be purged while it keeps at most `max_bytes` for those who lag.
    pub(crate) fn retention(&self, applied: u64, max_bytes: u64) -> Retention {
        let inner = self.inner.lock();
        let position = |(node, follower): (&NodeId, &Follower)| ReplicaPosition {
            node: *node,
            durable_sequence: follower.durable,
        };
        let positions: Vec<_> = inner.positions.iter().map(position).collect();
        retain(&positions, applied, inner.history.floor(max_bytes))
    }

    pub(crate) fn forget_through(&self, sequence: u64) {
        self.inner.lock().history.forget_through(sequence);
    }
}
