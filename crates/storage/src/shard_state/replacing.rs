//! Whole states: the snapshot that is sent to another node, and the staged state that takes the
//! place of the one in use.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Applied, Current, RaftApplied, ShardState, StateChange, dropped};
use crate::schema::{self, APPLIED_KEY, META_FAMILY};
use crate::{Durability, StagedState, StateSnapshot, StorageError, WriteBatch};

/// The states that a snapshot may replace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// A state that is not newer.
    Older,
    /// Any state: the one in use has left the shard's history, beyond the base of a later epoch.
    Any,
}

impl ShardState {
    /// The whole state at one moment, to be sent to another node. It waits for no change of the
    /// state.
    pub fn snapshot(&self) -> Result<StateSnapshot, StorageError> {
        let (snapshot, family, applied) = self.at_one_moment()?;
        let applied = applied.map_or_else(|| Ok(Applied::nothing()), Applied::decode)?;
        Ok(StateSnapshot::new(snapshot, family, applied))
    }

    /// An empty state beside the one in use, to be filled with the rows of a snapshot.
    pub fn stage(&self) -> Result<StagedState, StorageError> {
        let generation = self.next_generation.fetch_add(1, Ordering::Relaxed);
        StagedState::new(
            Arc::clone(&self.engine),
            schema::state_family(self.shard, generation).into(),
        )
    }

    /// Replaces the state by a staged one, atomically and durably: after a crash it is the old or
    /// the new. `raft` is the position in this node's own Raft group, if it is in one: that of the
    /// snapshot's sender means nothing here. Blocks while the new state is flushed and named;
    /// readers see the old one until then.
    ///
    /// # Errors
    /// [`StorageError::Incomplete`], or [`StorageError::Stale`] if it may not replace the one in
    /// use.
    pub fn install(
        &self,
        staged: StagedState,
        raft: RaftApplied,
        replace: Replace,
    ) -> Result<Applied, StorageError> {
        let changing = self.changing.lock();
        let applied = Applied { raft, ..staged.applied()? };
        let mut writes = WriteBatch::default();
        writes.put(staged.family()?, APPLIED_KEY.to_vec(), applied.encode());
        self.engine.write(writes, Durability::Unlogged)?;
        self.engine.flush(staged.family()?)?;
        let here = self.position();
        if replace == Replace::Older && applied.position < here {
            return Err(StorageError::Stale { snapshot: applied.position, state: here });
        }
        let family = staged.take()?;
        dropped::forget(&*self.engine, &family)?;
        let mut name = WriteBatch::default();
        name.put(
            &META_FAMILY.into(),
            schema::current_family_key(self.shard),
            family.as_bytes().to_vec(),
        );
        self.engine.write(name, Durability::Logged)?;
        // Until it is durable the old state is read: a crash may bring that back.
        self.engine.sync()?;
        let mut current = self.current.write();
        let old = std::mem::replace(&mut *current, Current::new(family, applied.clone()));
        let readers = self.log_readers.present();
        drop(current);
        self.tell(changing, readers, StateChange::Replaced(&applied));
        self.engine.drop_family(&old.family)?;
        Ok(applied)
    }
}
