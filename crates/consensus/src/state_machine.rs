use std::io;
use std::sync::Arc;

use futures::{FutureExt, Stream, StreamExt};
use meridian_proto::decode_batch;
use meridian_storage::{RaftApplied, ShardState, StagedState, StateSnapshot, StorageError};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use tokio::sync::watch;

use crate::type_config::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::wire;

/// Entries applied in one write at most.
const APPLY_ENTRIES: usize = 64;
const COPY_BYTES: usize = 1 << 20;

/// Applies committed batches, blindly, to the shard's state.
#[derive(Clone)]
pub(crate) struct StateMachine {
    state: Arc<ShardState>,
    /// The sequence and the Raft term of what was applied last.
    applied: Arc<watch::Sender<(u64, u64)>>,
}

/// A snapshot's data: on the sender a view of its own state, on the receiver what it has fetched.
pub(crate) enum SnapshotData {
    Local(Arc<StateSnapshot>),
    Staged(StagedState),
}

impl StateMachine {
    pub(crate) fn new(state: Arc<ShardState>) -> Self {
        let machine = Self { state, applied: Arc::new(watch::Sender::new((0, 0))) };
        machine.announce();
        machine
    }

    pub(crate) fn applied(&self) -> watch::Receiver<(u64, u64)> {
        self.applied.subscribe()
    }

    fn announce(&self) {
        let applied = self.state.applied();
        let term = applied.raft.log_id.map_or(0, |log_id| log_id.term);
        self.applied.send_replace((applied.position.sequence, term));
    }

    fn apply_entries(&self, items: &[EntryResponder<TypeConfig>]) -> Result<(), StorageError> {
        let mut raft = self.state.applied().raft;
        let mut batches = Vec::with_capacity(items.len());
        for (entry, _) in items {
            raft.log_id = Some(wire::log_id_to_wire(&entry.log_id));
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(encoded) => {
                    let len = encoded.bytes.len();
                    let batch = decode_batch(encoded.bytes.clone()).map_err(|error| StorageError::Corruption {
                        what: format!("log entry {}", entry.log_id.index),
                        detail: error.to_string(),
                    })?;
                    batches.push((batch, len));
                }
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                    raft.membership = Some(wire::stored_membership_to_wire(&stored));
                }
            }
        }
        self.state.apply(&batches, raft)
    }

    fn meta(&self, raft: &RaftApplied) -> io::Result<SnapshotMeta> {
        Ok(SnapshotMeta {
            last_log_id: raft.log_id.map(wire::log_id),
            last_membership: wire::stored_membership(raft.membership.clone())?,
        })
    }

    fn snapshot(&self) -> io::Result<Snapshot<SnapshotData>> {
        let snapshot = self.state.snapshot();
        let meta = self.meta(&snapshot.applied().raft)?;
        Ok(Snapshot { meta, snapshot: SnapshotData::Local(Arc::new(snapshot)) })
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = self.meta(&self.state.applied().raft)?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let mut items = vec![first?];
            while items.len() < APPLY_ENTRIES
                && let Some(Some(next)) = entries.next().now_or_never()
            {
                items.push(next?);
            }
            self.apply_entries(&items)?;
            self.announce();
            for (_, responder) in items {
                if let Some(responder) = responder {
                    responder.send(());
                }
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMeta, snapshot: SnapshotData) -> Result<(), io::Error> {
        let staged = match snapshot {
            SnapshotData::Staged(staged) => staged,
            SnapshotData::Local(source) => {
                let mut staged = self.state.stage()?;
                let mut after = Vec::new();
                loop {
                    let rows = source.rows(&after, COPY_BYTES)?;
                    after = rows.rows.last().map(|(key, _)| key.to_vec()).unwrap_or_default();
                    let last = rows.last;
                    staged.add(rows)?;
                    if last {
                        break staged;
                    }
                }
            }
        };
        let raft = RaftApplied {
            log_id: meta.last_log_id.as_ref().map(wire::log_id_to_wire),
            membership: Some(wire::stored_membership_to_wire(&meta.last_membership)),
        };
        let state = Arc::clone(&self.state);
        let installed = tokio::task::spawn_blocking(move || state.install(staged, raft));
        installed.await.map_err(io::Error::other)??;
        self.announce();
        Ok(())
    }

    /// The state itself is the snapshot, and always the newest one.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<SnapshotData>>, io::Error> {
        match self.state.applied().raft.log_id {
            None => Ok(None),
            Some(_) => Ok(Some(self.snapshot()?)),
        }
    }
}

impl RaftSnapshotBuilder<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;

    /// Makes the state durable: openraft may purge the log up to here next.
    async fn build_snapshot(&mut self) -> Result<Snapshot<SnapshotData>, io::Error> {
        let snapshot = self.snapshot()?;
        let state = Arc::clone(&self.state);
        tokio::task::spawn_blocking(move || state.flush()).await.map_err(io::Error::other)??;
        Ok(snapshot)
    }
}
