//! Founding a group from a state. Every founder's log begins as if one entry had been applied and
//! purged: no crash leaves a group half made. Blocks on the disk.

use std::collections::BTreeSet;
use std::sync::Arc;

use meridian_proto::log;
use meridian_storage::{
    GroupId, GroupLog, HighWater, RaftApplied, RecordKind, ShardState, StorageError,
};
use meridian_types::{NodeId, Position};
use openraft::Membership;

use super::RaftGroup;
use crate::log_store::LogStore;
use crate::type_config::StoredMembership;
use crate::wire;

/// The entry that stands, in every founder's log, for the state at the base and the first voters:
/// as if it had been applied and purged. So no founder's log is ahead of another's, and a member
/// without the state cannot be sent entries before it has a snapshot.
const ORIGIN: log::LogId = log::LogId { term: 0, index: 0 };

/// The outcome of [`RaftGroup::form`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formed {
    /// This node is a founder now.
    Founder,
    /// This node has taken part before, as a founder or not; nothing was changed.
    Already,
    /// The state stands elsewhere, so this node is no founder. Opened, it is a member as soon as
    /// the leader has sent it a snapshot.
    NotAtBase(Position),
}

impl RaftGroup {
    /// Makes this node a founder of a group whose log begins right behind `base`, the position of
    /// the last batch before. To be called before [`RaftGroup::open`], while nothing else writes
    /// the state; it blocks on the disk. May be called again, also after a crash in between.
    ///
    /// `voters` must be the same on every node that ever forms this group, whatever its voters are
    /// later: a founder believes that the others began with them. A node that is to be a voter of a
    /// group which may have changed its voters must not form it.
    ///
    /// The state must be in the shard's history up to its position. That is not known here.
    ///
    /// # Errors
    /// When this node took part before and nothing but its state says so, and when storage fails.
    pub fn form(
        state: &Arc<ShardState>,
        group: GroupId,
        voters: &BTreeSet<NodeId>,
        base: Position,
        high_water: Option<&HighWater>,
    ) -> Result<Formed, StorageError> {
        let refused = |why: String| Err(StorageError::Invalid(why));
        if state.shard() != group.shard || voters.is_empty() {
            return refused(format!(
                "{group} cannot be formed by {voters:?} from shard {}",
                state.shard()
            ));
        }
        let log = GroupLog::open(Arc::clone(state.engine()), group, RecordKind::Entry)?;
        // One whose log is gone took part as well: it is told how far its log went when it is
        // opened.
        let was_longer = high_water.is_some_and(|marks| marks.mark(group) > 0);
        if was_longer || LogStore::is_in_use(&log)? {
            return Ok(Formed::Already);
        }
        let applied = state.applied();
        // An earlier call may have come as far as the state.
        if applied.raft.epoch == Some(group.epoch) && applied.raft.log_id != Some(ORIGIN) {
            return refused(format!(
                "the log of {group} is gone, and the state has applied entries of it"
            ));
        }
        if applied.position != base {
            return Ok(Formed::NotAtBase(applied.position));
        }
        let raft = RaftApplied {
            epoch: Some(group.epoch),
            log_id: Some(ORIGIN),
            membership: Some(wire::stored_membership_to_wire(&first_membership(voters)?)),
        };
        // First the state, durably: a log that begins behind an entry that the state does not have
        // is broken.
        state.apply(&[], raft)?;
        state.flush()?;
        LogStore::begin_behind(&log, ORIGIN)?;
        state.engine().sync()?;
        Ok(Formed::Founder)
    }
}

fn first_membership(voters: &BTreeSet<NodeId>) -> Result<StoredMembership, StorageError> {
    let membership = Membership::new(vec![voters.clone()], voters.clone());
    let membership = membership.map_err(|error| StorageError::Invalid(error.to_string()))?;
    Ok(StoredMembership::new(Some(wire::log_id(ORIGIN)), membership))
}
