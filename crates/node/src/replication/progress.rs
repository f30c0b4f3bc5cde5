//! A voter's view of the followers of its shard: positions, lag, and the part of the log that they
//! still need.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::DecodedBatch;
use meridian_shipping::{CommitHistory, Lag, ReplicaPosition, Retention, Status, retain};
use meridian_storage::{LogSubscription, ShardState, StateChange};
use meridian_types::NodeId;
use parking_lot::Mutex;

use crate::host::clock::{steady_ms, wall_ms};
use crate::host::disk::Room;
use crate::time_budget::{COPY_STALLED, HEIR_HEARD};

/// Kept in any case: what a member or replica lacks that was away for a moment.
pub(crate) const KEEP_BATCHES: u64 = 1000;
/// Samples of the commit history; beyond, older ones are kept more coarsely.
const HISTORY_SAMPLES: usize = 4096;
/// Batches in flight are fewer.
const PROPOSED_SAMPLES: usize = 64;
/// A follower not heard of for so long counts as away.
const AWAY_AFTER: Duration = Duration::from_secs(3);

/// The followers of one shard, as one of its nodes sees them.
pub(crate) struct Followers {
    inner: Arc<Mutex<Inner>>,
    /// It reads what is applied as long as this lives.
    _applied: LogSubscription,
}

struct Inner {
    history: CommitHistory,
    /// Batches that this node has proposed and not applied yet, and when.
    proposed: VecDeque<(u64, u64)>,
    /// The newest applied sequence.
    newest: u64,
    positions: BTreeMap<NodeId, Follower>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Follower {
    durable: u64,
    heard: Option<Instant>,
    may_lead: bool,
    room: Room,
    copying: Option<Copying>,
}

/// A follower copies a whole state, or catches up with what was written meanwhile.
#[derive(Debug, Clone, Copy)]
struct Copying {
    /// It needs the log behind this sequence, or behind a later one.
    after: u64,
    /// When it was last known to get on.
    at: Instant,
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
    let made_at = if applied.time_ms == 0 { steady_ms() } else { made_at(applied.time_ms) };
    CommitHistory::starting_at(applied.position.sequence, made_at, HISTORY_SAMPLES)
}

/// About when a batch was made whose shard's time is `time_ms`: that follows the nodes' clocks.
/// Applied batches age on the monotonic clock: a wall clock that is set back would make all lag
/// vanish for as long.
fn made_at(time_ms: u64) -> u64 {
    steady_ms().saturating_sub(wall_ms().saturating_sub(time_ms))
}

impl Inner {
    fn proposed_at(&mut self, sequence: u64) -> Option<u64> {
        while let Some((oldest, at)) = self.proposed.front().copied()
            && oldest <= sequence
        {
            self.proposed.pop_front();
            if oldest == sequence {
                return Some(at);
            }
        }
        None
    }
}

impl Followers {
    /// Watches what is applied to `state`.
    pub(crate) fn watch(state: &ShardState) -> Arc<Self> {
        let (history, newest) = (history_from(state), state.position().sequence);
        let inner =
            Inner { history, proposed: VecDeque::new(), newest, positions: BTreeMap::new() };
        let inner = Arc::new(Mutex::new(inner));
        let known = Arc::clone(&inner);
        let applied = state.subscribe(move |change| {
            // The code that replaces a state restarts this, too.
            let StateChange::Applied(batches) = change else { return };
            let mut inner = known.lock();
            for DecodedBatch { batch, len, .. } in batches {
                let sequence = batch.position.sequence;
                let at = inner.proposed_at(sequence).unwrap_or_else(|| made_at(batch.time_ms));
                inner.newest = sequence;
                inner.history.record(sequence, *len as u64, at);
            }
        });
        Arc::new(Self { inner, _applied: applied })
    }

    /// The state was replaced, or goes on in another epoch: what was recorded of its commits may be
    /// of batches that were lost, whose sequences come again.
    pub(crate) fn restart(&self, state: &ShardState) {
        let mut inner = self.inner.lock();
        (inner.history, inner.newest) = (history_from(state), state.position().sequence);
        inner.proposed.clear();
    }

    /// This node proposes a batch now. A shard's time may trail the clocks, so that it does not
    /// tell how old that is.
    pub(crate) fn proposed(&self, sequence: u64) {
        let mut inner = self.inner.lock();
        while inner.proposed.back().is_some_and(|(newest, _)| *newest >= sequence)
            || inner.proposed.len() >= PROPOSED_SAMPLES
        {
            inner.proposed.pop_back();
        }
        inner.proposed.push_back((sequence, steady_ms()));
    }

    /// All followers of the shard now, heard of or not.
    pub(crate) fn set_nodes(&self, nodes: impl IntoIterator<Item = NodeId>) {
        let mut inner = self.inner.lock();
        let known = std::mem::take(&mut inner.positions);
        let keep = |node| (node, known.get(&node).copied().unwrap_or_default());
        inner.positions = nodes.into_iter().map(keep).collect();
    }

    /// How far the best of `nodes` is behind, in milliseconds; `None` if there are none.
    pub(crate) fn least_lag_ms(&self, mut counts: impl FnMut(NodeId) -> bool) -> Option<u64> {
        let now_ms = steady_ms();
        let inner = self.inner.lock();
        let of = inner.positions.iter().filter(|(node, _)| counts(**node));
        of.map(|(_, follower)| inner.history.lag(follower.durable, now_ms).millis).min()
    }

    pub(crate) fn heard(&self, status: Status, may_lead: bool, room: Room) {
        let mut inner = self.inner.lock();
        let newest = inner.newest;
        if let Some(follower) = inner.positions.get_mut(&status.node) {
            // A node that was wiped says less than before: believe it.
            let (durable, now) = (status.durable.sequence, Instant::now());
            let copying =
                follower.copying.filter(|copying| now.duration_since(copying.at) < COPY_STALLED);
            let copying = match copying {
                // Its copy is not older than the log that this node begins to keep now.
                None if status.fetching_snapshot => {
                    Some(Copying { after: newest.saturating_sub(KEEP_BATCHES), at: now })
                }
                Some(copying) if status.fetching_snapshot => Some(Copying { at: now, ..copying }),
                // The copy is in place: what was written meanwhile is still to come.
                Some(_) if durable + KEEP_BATCHES >= newest => None,
                Some(copying) if durable > copying.after => {
                    Some(Copying { after: durable, at: now })
                }
                other => other,
            };
            *follower = Follower { durable, heard: Some(now), may_lead, room, copying };
        }
    }

    /// The sequence behind which the log is needed by followers that copy a state, or catch up
    /// behind a copy, whatever the bound on the log's bytes says: without it they would begin anew,
    /// for ever.
    pub(crate) fn needs_log_after(&self) -> Option<u64> {
        let inner = self.inner.lock();
        let copying = inner.positions.values().filter_map(|follower| follower.copying);
        copying
            .filter(|copying| copying.at.elapsed() < COPY_STALLED)
            .map(|copying| copying.after)
            .min()
    }

    /// The room on the node's disk, as it announced it last. A node that is away keeps its last.
    pub(crate) fn room(&self, node: NodeId) -> Room {
        self.inner.lock().positions.get(&node).map(|follower| follower.room).unwrap_or_default()
    }

    /// Every follower's lag behind what is committed here.
    pub(crate) fn lags(&self) -> Vec<FollowerLag> {
        let now_ms = steady_ms();
        let inner = self.inner.lock();
        let lag = |(node, follower): (&NodeId, &Follower)| {
            let connected = follower.heard.is_some_and(|heard| heard.elapsed() < AWAY_AFTER);
            FollowerLag {
                node: *node,
                durable: follower.durable,
                lag: inner.history.lag(follower.durable, now_ms),
                connected,
                may_lead: follower.may_lead
                    && follower.heard.is_some_and(|heard| heard.elapsed() < HEIR_HEARD),
            }
        };
        inner.positions.iter().map(lag).collect()
    }

    /// The node that is to lead next: of those that may, the most advanced.
    pub(crate) fn heir(&self) -> Option<NodeId> {
        let heirs = self.lags().into_iter().filter(|follower| follower.may_lead);
        heirs.max_by_key(|heir| heir.durable).map(|heir| heir.node)
    }

    /// Whether the shard goes on should `heir` be lost when it is asked to take over from this
    /// node. Raft takes no handover back in its term: the leader writes nothing any more, and the
    /// others have to elect another. Where one of them acknowledges entries and does not vote, as a
    /// wiped member, they could have gone on and cannot do that.
    pub(crate) fn may_take_over(&self, heir: NodeId, voters: &BTreeSet<NodeId>) -> bool {
        let lags = self.lags();
        let others =
            || lags.iter().filter(|other| other.node != heir && voters.contains(&other.node));
        let majority = voters.len() / 2 + 1;
        // This node is one of them.
        let (commit, elect) =
            (others().filter(|other| other.connected), others().filter(|other| other.may_lead));
        1 + elect.count() >= majority || 1 + commit.count() < majority
    }

    /// How far the log may be purged while it keeps at most `max_bytes` for followers that lag.
    pub(crate) fn retention(&self, applied: u64, max_bytes: u64) -> Retention {
        let inner = self.inner.lock();
        let position = |(node, follower): (&NodeId, &Follower)| ReplicaPosition {
            node: *node,
            durable_sequence: follower.durable,
        };
        let positions: Vec<_> = inner.positions.iter().map(position).collect();
        retain(&positions, applied, inner.history.floor(max_bytes))
    }

    /// The bytes that were committed behind a sequence, as far as this node has heard of them.
    pub(crate) fn bytes_behind(&self, sequence: u64) -> u64 {
        self.inner.lock().history.lag(sequence, 0).bytes
    }

    /// The sequence behind which at most so many bytes were committed, as far as this node has heard
    /// of them.
    pub(crate) fn kept_within(&self, max_bytes: u64) -> u64 {
        self.inner.lock().history.floor(max_bytes).unwrap_or(0)
    }

    pub(crate) fn forget_through(&self, sequence: u64) {
        self.inner.lock().history.forget_through(sequence);
    }
}

#[cfg(test)]
mod tests {
    use meridian_storage::{MemoryEngine, RaftApplied};
    use meridian_types::{Batch, Epoch, Position, ShardId};

    use super::*;

    fn status(node: u64, sequence: u64) -> Status {
        let position = Position::new(Epoch(1), sequence);
        Status::of_primary_member(NodeId(node), position.epoch, position, Duration::ZERO)
    }

    #[test]
    fn the_log_is_kept_from_where_a_copy_began_until_the_newcomer_has_caught_up() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let followers = Followers::watch(&state);
        followers.set_nodes([NodeId(4)]);
        let mut written = 0;
        let mut write = |batches: u64| {
            for _ in 0..batches {
                written += 1;
                let position = Position::new(Epoch(1), written);
                let batch = Batch { position, time_ms: 1, transactions: Vec::new() };
                state.apply(&[batch.into()], RaftApplied::default()).unwrap();
            }
        };
        let copies = |sequence| Status { fetching_snapshot: true, ..status(4, sequence) };
        write(1500);
        followers.heard(status(4, 0), false, Room::Enough);
        assert_eq!(
            followers.needs_log_after(),
            None,
            "for a follower that is only slow, bytes are the bound"
        );
        followers.heard(copies(0), false, Room::Enough);
        write(5000);
        followers.heard(copies(0), false, Room::Enough);
        assert_eq!(followers.needs_log_after(), Some(500));
        followers.heard(status(4, 1500), false, Room::Enough);
        write(1000);
        assert_eq!(followers.needs_log_after(), Some(1500), "in place; the rest is to come");
        followers.heard(status(4, 4000), false, Room::Enough);
        assert_eq!(followers.needs_log_after(), Some(4000));
        followers.heard(status(4, 7000), false, Room::Enough);
        assert_eq!(followers.needs_log_after(), None);
    }

    #[test]
    fn leadership_is_handed_to_no_node_whose_loss_would_leave_a_quorum_leaderless() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let followers = Followers::watch(&state);
        // This is node 1, and 9 is a replica.
        followers.set_nodes([2, 3, 4, 5, 9].map(NodeId));
        let (three, five) = ((1..=3).map(NodeId).collect(), (1..=5).map(NodeId).collect());
        let heard = |node, may_lead| followers.heard(status(node, 0), may_lead, Room::Enough);
        heard(2, true);
        heard(9, false);
        assert!(followers.may_take_over(NodeId(2), &three), "without it there is no quorum anyway");
        assert!(followers.may_take_over(NodeId(2), &[1, 2].map(NodeId).into()));
        heard(3, false);
        assert!(!followers.may_take_over(NodeId(2), &three));
        assert!(followers.may_take_over(NodeId(2), &five));
        heard(4, true);
        assert!(!followers.may_take_over(NodeId(2), &five));
        heard(5, true);
        assert!(followers.may_take_over(NodeId(2), &five));
        heard(3, true);
        assert!(followers.may_take_over(NodeId(2), &three));
    }

    #[test]
    fn a_wall_clock_that_was_set_back_hides_no_lag() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let followers = Followers::watch(&state);
        followers.set_nodes([NodeId(4)]);
        followers.heard(status(4, 0), false, Room::Enough);
        // The leader's clock was an hour ahead when it made this.
        let batch = Batch {
            position: Position::new(Epoch(1), 1),
            time_ms: wall_ms() + 3_600_000,
            transactions: Vec::new(),
        };
        state.apply(&[batch.into()], RaftApplied::default()).unwrap();
        let applied = Instant::now();
        while followers.least_lag_ms(|_| true) < Some(20) {
            assert!(applied.elapsed() < Duration::from_secs(10), "no lag is seen");
            std::thread::yield_now();
        }
        assert!(applied.elapsed() >= Duration::from_millis(15));
        followers.heard(status(4, 1), false, Room::Low);
        assert_eq!(followers.least_lag_ms(|_| true), Some(0));
        assert_eq!(
            (followers.room(NodeId(4)), followers.room(NodeId(5))),
            (Room::Low, Room::Enough)
        );
    }
}
