//! How far each member's log was, as the others remember it.
//!
//! A member whose data folder was rolled back as a whole (a virtual machine's snapshot, a restored
//! backup) finds nothing missing in it: log, vote and high-water mark went back together. Its
//! quorum counted on what it acknowledged since, so the others tell it. With every append the
//! leader says what each member holds of what is committed; all keep that beside their own
//! high-water marks; a candidate, and a member that is asked for its vote, compares. The log of a
//! member that is behind grows again as its leader sends what it lacks, and then it votes.
//!
//! No append waits for this. An acknowledgement in the last heartbeat before a member stopped may
//! not have been told to others, and a member that loses power forgets up to a second of the marks
//! that it was told.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_proto::raft;
use meridian_storage::{GroupId, HighWater, MemberMark};
use meridian_types::NodeId;
use parking_lot::Mutex;

use crate::type_config::LogId;
use crate::wire;

/// Members that one message speaks of at most.
const MEMBERS: usize = 64;

/// A member's log ends before what it is known to have held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the log of node {node} ends at term {} index {}, and it had acknowledged term {} index {}, which is committed: its \
     data folder was rolled back, or its disk lost data. It gives and gets no vote until a leader has sent it as much \
     again",
    .ends.term, .ends.index, .held.term, .held.index
)]
pub(crate) struct RolledBack {
    pub(crate) node: NodeId,
    pub(crate) ends: MemberMark,
    pub(crate) held: MemberMark,
}

/// One member's marks of the logs of all members.
pub(crate) struct MemberMarks {
    group: GroupId,
    node_id: NodeId,
    high_water: Option<Arc<HighWater>>,
    leading: Mutex<Leading>,
}

/// The marks that a leader has heard in its term.
#[derive(Default)]
struct Leading {
    term: u64,
    acknowledged: BTreeMap<NodeId, MemberMark>,
    /// The marks of members that were found to be behind them, so that each is logged once.
    rolled_back: BTreeMap<NodeId, MemberMark>,
}

fn mark(log_id: &LogId) -> MemberMark {
    MemberMark { term: log_id.leader_id.term, index: log_id.index }
}

impl MemberMarks {
    pub(crate) fn new(group: GroupId, node_id: NodeId, high_water: Option<Arc<HighWater>>) -> Self {
        Self { group, node_id, high_water, leading: Mutex::default() }
    }

    /// A follower has this, durably, in the log that it has of this leader.
    pub(crate) fn acknowledged(&self, node: NodeId, log_id: &LogId) {
        let mut leading = self.leading.lock();
        let acknowledged = mark(log_id);
        // Entries of an earlier term may have been cut since.
        if acknowledged.term == leading.term {
            leading.acknowledged.insert(node, acknowledged);
        }
    }

    /// The marks that a leader of `term` tells to all: how much of the log up to `committed` each
    /// member holds.
    pub(crate) fn to_advertise(
        &self,
        term: u64,
        committed: Option<&LogId>,
    ) -> Vec<raft::MemberMark> {
        let (Some(marks), Some(committed)) = (&self.high_water, committed.map(mark)) else {
            return Vec::new();
        };
        let mut leading = self.leading.lock();
        if leading.term != term {
            *leading = Leading { term, ..Leading::default() };
        }
        // Its own appends are fsynced while the followers' are.
        if marks.mark(self.group) >= committed.index {
            leading.acknowledged.insert(self.node_id, committed);
        }
        let held = leading.acknowledged.iter().map(|(node, acknowledged)| {
            let held = if acknowledged.index < committed.index { *acknowledged } else { committed };
            marks.remember(self.group, *node, held);
            let log_id = meridian_proto::log::LogId { term: held.term, index: held.index };
            raft::MemberMark { node_id: node.0, log_id: Some(log_id) }
        });
        held.take(MEMBERS).collect()
    }

    /// A leader says so. A deposed leader is as good: what was committed stays so.
    pub(crate) fn learn(&self, told: &[raft::MemberMark]) {
        let Some(marks) = &self.high_water else { return };
        for member in told.iter().take(MEMBERS) {
            let Some(log_id) = &member.log_id else { continue };
            marks.remember(
                self.group,
                NodeId(member.node_id),
                MemberMark { term: log_id.term, index: log_id.index },
            );
        }
    }

    /// For a member that is asked for its vote: what this one knows that it held.
    pub(crate) fn remembered(&self, node: NodeId) -> Option<meridian_proto::log::LogId> {
        let held = self.high_water.as_ref()?.remembered(self.group, node)?;
        Some(meridian_proto::log::LogId { term: held.term, index: held.index })
    }

    /// Whether a member whose log ends at `last` holds what this one remembers, and what another
    /// says.
    pub(crate) fn check(
        &self,
        node: NodeId,
        last: Option<&LogId>,
        said: Option<meridian_proto::log::LogId>,
    ) -> Result<(), RolledBack> {
        let known = self.high_water.as_ref().and_then(|marks| marks.remembered(self.group, node));
        let said = said.map(|log_id| mark(&wire::log_id(log_id)));
        let ends = last.map_or(MemberMark { term: 0, index: 0 }, mark);
        match known.max(said) {
            Some(held) if ends < held => Err(RolledBack { node, ends, held }),
            _ => Ok(()),
        }
    }

    /// A follower does not have the entry at `conflict`, which is in this leader's log.
    pub(crate) fn conflicts(&self, node: NodeId, conflict: &LogId) {
        let Some(held) =
            self.high_water.as_ref().and_then(|marks| marks.remembered(self.group, node))
        else {
            return;
        };
        if conflict.index <= held.index
            && self.leading.lock().rolled_back.insert(node, held) != Some(held)
        {
            tracing::error!(
                group = %self.group, %node, held_term = held.term, held_index = held.index, missing = conflict.index,
                "a member has lost entries that it had acknowledged: its data folder was rolled back, or its disk lost \
                 data. It is sent them again, and does not vote before it has them"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use meridian_types::{Epoch, ShardId};
    use tracing::span;

    use super::*;

    const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };

    fn id(term: u64, index: u64) -> LogId {
        LogId::new(term.into(), index)
    }

    #[test]
    fn members_remember_of_each_other_what_is_committed() {
        let folder = tempfile::tempdir().unwrap();
        let marks = |name: &str| Arc::new(HighWater::open(folder.path().join(name)).unwrap());
        let (first, second) = (marks("1"), marks("2"));
        let leader = MemberMarks::new(GROUP, NodeId(1), Some(Arc::clone(&first)));
        let follower = MemberMarks::new(GROUP, NodeId(2), Some(Arc::clone(&second)));
        assert_eq!(leader.to_advertise(3, None), []);
        leader.to_advertise(3, Some(&id(2, 5)));
        // Acknowledgements before this term may have been cut; 2 has more than is committed, 3
        // less, 1 has not synced.
        leader.acknowledged(NodeId(2), &id(2, 9));
        assert_eq!(leader.to_advertise(3, Some(&id(2, 6))), []);
        leader.acknowledged(NodeId(2), &id(3, 12));
        leader.acknowledged(NodeId(3), &id(3, 8));
        first.raise(GROUP, 9);
        let told = leader.to_advertise(3, Some(&id(3, 10)));
        let nodes: Vec<_> =
            told.iter().map(|mark| (mark.node_id, mark.log_id.unwrap().index)).collect();
        assert_eq!(nodes, [(2, 10), (3, 8)]);
        first.raise(GROUP, 10);
        assert_eq!(leader.to_advertise(3, Some(&id(3, 10))).len(), 3);
        follower.learn(&told);
        second.persist().unwrap();
        let restarted = MemberMarks::new(GROUP, NodeId(2), Some(marks("2")));
        for member in [&leader, &follower, &restarted] {
            assert_eq!(member.check(NodeId(2), Some(&id(3, 10)), None), Ok(()));
            assert_eq!(member.check(NodeId(2), Some(&id(4, 6)), None), Ok(()));
            assert!(
                member
                    .check(NodeId(2), Some(&id(3, 9)), None)
                    .unwrap_err()
                    .to_string()
                    .contains("index 9, and it had")
            );
            assert!(
                member.check(NodeId(2), Some(&id(2, 30)), None).is_err()
                    && member.check(NodeId(2), None, None).is_err()
            );
            assert_eq!(member.check(NodeId(4), None, None), Ok(()));
        }
        // The other member's mark counts as well.
        let newcomer = MemberMarks::new(GROUP, NodeId(4), Some(marks("4")));
        assert_eq!(newcomer.check(NodeId(2), Some(&id(3, 9)), None), Ok(()));
        assert!(newcomer.check(NodeId(2), Some(&id(3, 9)), leader.remembered(NodeId(2))).is_err());
        // In the next term it begins anew.
        assert_eq!(leader.to_advertise(4, Some(&id(3, 9))).len(), 1);
    }

    /// Counts what is said on this thread.
    #[derive(Clone, Default)]
    struct Said(Arc<AtomicUsize>);

    impl tracing::Subscriber for Said {
        fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
            true
        }

        fn event(&self, _: &tracing::Event<'_>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }

        fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
            span::Id::from_u64(1)
        }

        fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

        fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

        fn enter(&self, _: &span::Id) {}

        fn exit(&self, _: &span::Id) {}
    }

    #[test]
    fn that_a_member_lost_what_it_held_is_said_once_and_of_nothing_that_it_never_had() {
        let folder = tempfile::tempdir().unwrap();
        let marks = Arc::new(HighWater::open(folder.path().join("1")).unwrap());
        let leader = MemberMarks::new(GROUP, NodeId(1), Some(Arc::clone(&marks)));
        let held = |index| marks.remember(GROUP, NodeId(2), MemberMark { term: 3, index });
        let said = Said::default();
        let conflicts = |node, index| {
            tracing::subscriber::with_default(said.clone(), || {
                leader.conflicts(NodeId(node), &id(3, index))
            });
            said.0.load(Ordering::SeqCst)
        };
        held(10);
        assert_eq!((conflicts(2, 11), conflicts(4, 1)), (0, 0));
        assert_eq!((conflicts(2, 10), conflicts(2, 7)), (1, 1));
        // It was sent them again, and more.
        held(12);
        assert_eq!((conflicts(2, 13), conflicts(2, 12), conflicts(2, 11)), (1, 2, 2));
    }
}
