//! Applies what a group has committed to the shard's state, and takes and gives snapshots of it:
//! openraft's state machine.
//!
//! Invariants: after [`StateMachine::close`] the state is not touched, whatever openraft still has
//! to do; the Raft position in the state counts in the group that it names only.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use futures::{FutureExt, Stream, StreamExt};
use meridian_proto::decode_stored;
use meridian_storage::{
    AppliedMark, GroupId, RaftApplied, Replace, ShardState, StagedState, StateSnapshot,
    StorageError,
};
use openraft::storage::{EntryResponder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend, RaftSnapshotBuilder};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::blocking::off_the_runtime;
use crate::type_config::{LogId, Snapshot, SnapshotMeta, StoredMembership, TypeConfig};
use crate::wire;

/// Entries applied in one write at most; see also [`ShardState::APPLY_BYTES`].
const APPLY_ENTRIES: usize = 64;
const COPY_BYTES: usize = 1 << 20;

/// Applies committed batches, blindly, to the shard's state.
///
/// The state outlives the group: it may come from an earlier epoch, and goes on to later ones. What
/// it says of Raft counts here only if it says it of this group. A state that is of no use to this
/// group (it is not at the base, or beyond it) stays as it is until the leader's snapshot takes its
/// place.
#[derive(Clone)]
pub(crate) struct StateMachine {
    state: Arc<ShardState>,
    group: GroupId,
    shared: Arc<Shared>,
}

struct Shared {
    /// Zeros before this group has the state.
    applied: watch::Sender<AppliedMark>,
    /// The sequence that goes with the index of what this group applied last.
    last: Mutex<Option<LastApplied>>,
    /// Held while the state is changed; false once the group has been shut down.
    running: Mutex<bool>,
    /// The last snapshot that was made for a member, for as long as it is kept.
    offered: Mutex<Weak<StateSnapshot>>,
    /// The index up to which the log was purged at least.
    purged: AtomicU64,
}

/// Where this group's log and the state stand together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LastApplied {
    pub(crate) index: u64,
    pub(crate) sequence: u64,
}

/// A snapshot's data: on the sender a view of its own state, on the receiver what it has fetched.
pub(crate) enum SnapshotData {
    Local(Arc<StateSnapshot>),
    Staged(StagedState),
}

impl StateMachine {
    pub(crate) fn new(state: Arc<ShardState>, group: GroupId) -> Self {
        let shared = Shared {
            applied: watch::Sender::default(),
            last: Mutex::default(),
            running: Mutex::new(true),
            offered: Mutex::default(),
            purged: AtomicU64::new(0),
        };
        let machine = Self { state, group, shared: Arc::new(shared) };
        machine.announce();
        machine
    }

    pub(crate) fn applied(&self) -> watch::Receiver<AppliedMark> {
        self.shared.applied.subscribe()
    }

    /// Also after the state has gone on to another epoch.
    pub(crate) fn last_applied(&self) -> Option<LastApplied> {
        *self.shared.last.lock()
    }

    /// From now on the state is not touched: openraft's worker may outlive openraft. Blocks while a
    /// snapshot is being installed.
    pub(crate) fn close(&self) {
        *self.shared.running.lock() = false;
    }

    /// Raft's part, if it is of this group.
    pub(crate) fn own(&self, raft: RaftApplied) -> RaftApplied {
        if raft.epoch == Some(self.group.epoch) { raft } else { RaftApplied::default() }
    }

    /// A state that is not of this group is announced as nothing: a sequence in it that is reached
    /// need not be the committed one.
    fn announce(&self) {
        let applied = self.state.applied();
        let Some(log_id) = self.own(applied.raft).log_id else { return };
        let sequence = applied.position.sequence;
        *self.shared.last.lock() = Some(LastApplied { index: log_id.index, sequence });
        self.shared.applied.send_replace(AppliedMark { sequence, term: log_id.term });
    }

    fn corruption(&self, index: u64, detail: impl ToString) -> StorageError {
        StorageError::Corruption {
            what: format!("log entry {index} of {}", self.group),
            detail: detail.to_string(),
        }
    }

    /// False if the group was shut down meanwhile, and nothing was applied.
    fn apply_entries(&self, items: &[EntryResponder<TypeConfig>]) -> Result<bool, StorageError> {
        let running = self.shared.running.lock();
        if !*running {
            return Ok(false);
        }
        let applied = self.state.applied();
        let mut raft = self.own(applied.raft);
        let mut batches = Vec::with_capacity(items.len());
        for (entry, _) in items {
            let index = entry.log_id.index;
            if raft.log_id.is_none() && applied.position.sequence > 0 {
                return Err(self.corruption(index, "the state is not of this group"));
            }
            raft.epoch = Some(self.group.epoch);
            raft.log_id = Some(wire::log_id_to_wire(&entry.log_id));
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(encoded) => {
                    let decoded = decode_stored(encoded.bytes.clone())
                        .map_err(|error| self.corruption(index, error))?;
                    let position = decoded.batch.position;
                    if position.epoch != self.group.epoch {
                        return Err(
                            self.corruption(index, format!("batch {position} is of another epoch"))
                        );
                    }
                    batches.push(decoded);
                }
                EntryPayload::Membership(membership) => {
                    let stored = StoredMembership::new(Some(entry.log_id), membership.clone());
                    raft.membership = Some(wire::stored_membership_to_wire(&stored));
                }
            }
        }
        self.state.apply(&batches, raft)?;
        Ok(true)
    }

    /// The first snapshot of this group may take the place of any state: what the one in use has of
    /// an earlier epoch and not of this one's base was never in this group's history.
    fn install(&self, staged: StagedState, raft: RaftApplied) -> Result<(), StorageError> {
        let running = self.shared.running.lock();
        if !*running {
            return Err(StorageError::Shutdown(self.group));
        }
        let replace = match self.own(self.state.applied().raft).log_id {
            Some(_) => Replace::Older,
            None => Replace::Any,
        };
        self.state.install(staged, raft, replace)?;
        self.announce();
        Ok(())
    }

    fn staged(&self, snapshot: SnapshotData) -> Result<StagedState, StorageError> {
        let source = match snapshot {
            SnapshotData::Staged(staged) => return Ok(staged),
            SnapshotData::Local(source) => source,
        };
        let (mut staged, mut after) = (self.state.stage()?, Vec::new());
        loop {
            let rows = source.rows(&after, COPY_BYTES)?;
            after = rows.rows.last().map(|(key, _)| key.to_vec()).unwrap_or_default();
            let last = rows.last;
            staged.add(rows)?;
            if last {
                return Ok(staged);
            }
        }
    }

    fn meta(&self, raft: &RaftApplied) -> io::Result<SnapshotMeta> {
        Ok(SnapshotMeta {
            last_log_id: raft.log_id.map(wire::log_id),
            last_membership: wire::stored_membership(raft.membership.clone())?,
        })
    }

    fn snapshot(&self) -> io::Result<Snapshot<SnapshotData>> {
        self.snapshot_of(Arc::new(self.state.snapshot()?))
    }

    fn snapshot_of(&self, snapshot: Arc<StateSnapshot>) -> io::Result<Snapshot<SnapshotData>> {
        let meta = self.meta(&self.own(snapshot.applied().raft.clone()))?;
        Ok(Snapshot { meta, snapshot: SnapshotData::Local(snapshot) })
    }

    /// The log begins behind this index, or is about to.
    pub(crate) fn purged(&self, index: u64) {
        self.shared.purged.fetch_max(index, Ordering::SeqCst);
    }

    /// The snapshot that a member is copying or was until a moment ago, if the log goes on from
    /// there.
    fn offered(&self) -> Option<Arc<StateSnapshot>> {
        let snapshot = self.shared.offered.lock().upgrade()?;
        let index = self.own(snapshot.applied().raft.clone()).log_id?.index;
        (index >= self.shared.purged.load(Ordering::SeqCst)).then_some(snapshot)
    }
}

fn encoded_bytes((entry, _): &EntryResponder<TypeConfig>) -> usize {
    match &entry.payload {
        EntryPayload::Normal(encoded) => encoded.bytes.len(),
        EntryPayload::Blank | EntryPayload::Membership(_) => 0,
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = SnapshotData;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), io::Error> {
        let meta = self.meta(&self.own(self.state.applied().raft))?;
        Ok((meta.last_log_id, meta.last_membership))
    }

    async fn apply<Strm>(&mut self, mut entries: Strm) -> Result<(), io::Error>
    where
        Strm: Stream<Item = Result<EntryResponder<TypeConfig>, io::Error>> + Unpin + OptionalSend,
    {
        while let Some(first) = entries.next().await {
            let mut items = vec![first?];
            let mut bytes = items.first().map_or(0, encoded_bytes);
            while items.len() < APPLY_ENTRIES
                && bytes < ShardState::APPLY_BYTES
                && let Some(Some(next)) = entries.next().now_or_never()
            {
                items.push(next?);
                bytes += items.last().map_or(0, encoded_bytes);
            }
            let machine = self.clone();
            // Off the runtime: where a disk does not keep up, writes wait for it. It ends before
            // the next begins.
            let (applied, done) =
                off_the_runtime(move || (machine.apply_entries(&items), items)).await?;
            if !applied? {
                // The caller that waits is told that the outcome is not known.
                continue;
            }
            self.announce();
            for (_, responder) in done {
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

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: SnapshotData,
    ) -> Result<(), io::Error> {
        let raft = RaftApplied {
            epoch: Some(self.group.epoch),
            log_id: meta.last_log_id.as_ref().map(wire::log_id_to_wire),
            membership: Some(wire::stored_membership_to_wire(&meta.last_membership)),
        };
        let machine = self.clone();
        Ok(off_the_runtime(move || machine.install(machine.staged(snapshot)?, raft)).await??)
    }

    /// The state itself is the snapshot. A state that is not of this group is none. While a member
    /// copies one, it is the same: a copy that broke off can then go on, however long it takes.
    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<SnapshotData>>, io::Error> {
        if self.own(self.state.applied().raft).log_id.is_none() {
            return Ok(None);
        }
        if let Some(offered) = self.offered() {
            return Ok(Some(self.snapshot_of(offered)?));
        }
        let snapshot = Arc::new(self.state.snapshot()?);
        *self.shared.offered.lock() = Arc::downgrade(&snapshot);
        Ok(Some(self.snapshot_of(snapshot)?))
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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use meridian_proto::encode_batch;
    use meridian_storage::{Call, HookedEngine, Hooks, MemoryEngine};
    use meridian_types::{
        Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Position, RequestId, ShardId,
        Value, ValueEncoding,
    };

    use super::*;
    use crate::type_config::{EncodedBatch, Entry};

    fn batch(epoch: u16, sequence: u64) -> Bytes {
        let position = Position::new(Epoch(epoch), sequence);
        encode_batch(&Batch { position, time_ms: 0, transactions: Vec::new() })
    }

    async fn apply(machine: &mut StateMachine, index: u64, batch: Bytes) -> Result<(), String> {
        let payload = EntryPayload::Normal(EncodedBatch::stored(batch));
        let entry = Entry { log_id: LogId::new(1.into(), index), payload };
        let entries = futures::stream::iter([Ok((entry, None))]);
        machine.apply(entries).await.map_err(|error| error.to_string())
    }

    fn machine(epoch: u16, raft: RaftApplied) -> StateMachine {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        let shipped =
            Batch { position: Position::new(Epoch(1), 1), time_ms: 0, transactions: Vec::new() };
        state.apply(&[shipped.into()], raft).unwrap();
        StateMachine::new(Arc::new(state), GroupId { shard: ShardId(1), epoch: Epoch(epoch) })
    }

    fn raft(epoch: u16) -> RaftApplied {
        let log_id = meridian_proto::log::LogId { term: 1, index: 7 };
        RaftApplied { epoch: Some(Epoch(epoch)), log_id: Some(log_id), membership: None }
    }

    #[tokio::test]
    async fn what_raft_said_in_another_epoch_does_not_count() {
        let mut own = machine(2, raft(2));
        assert_eq!(own.applied_state().await.unwrap().0, Some(LogId::new(1.into(), 7)));
        assert_eq!(
            (own.last_applied(), *own.applied().borrow()),
            (Some(LastApplied { index: 7, sequence: 1 }), AppliedMark { sequence: 1, term: 1 })
        );
        assert!(own.get_current_snapshot().await.unwrap().is_some());
        for raft in [raft(1), raft(3), RaftApplied::default()] {
            let mut foreign = machine(2, raft);
            assert_eq!(foreign.applied_state().await.unwrap(), (None, StoredMembership::default()));
            assert_eq!(
                (foreign.last_applied(), *foreign.applied().borrow()),
                (None, AppliedMark::default())
            );
            assert!(foreign.get_current_snapshot().await.unwrap().is_none());
            let error = apply(&mut foreign, 0, batch(2, 2)).await.unwrap_err();
            assert!(error.contains("the state is not of this group"), "{error}");
        }
    }

    /// Counts writes.
    #[derive(Default)]
    struct Writes(std::sync::atomic::AtomicUsize);

    impl Hooks for Writes {
        fn after(&self, call: Call<'_>) {
            self.0.fetch_add(usize::from(matches!(call, Call::Write(_))), Ordering::SeqCst);
        }
    }

    #[tokio::test]
    async fn what_is_applied_in_one_write_is_bounded_in_bytes() {
        for (bytes, writes) in [(ShardState::APPLY_BYTES / 2, 4), (100, 1)] {
            let engine =
                Arc::new(HookedEngine::new(Arc::new(MemoryEngine::default()), Writes::default()));
            let state = ShardState::open(engine.clone(), ShardId(1)).unwrap();
            let mut machine =
                StateMachine::new(Arc::new(state), GroupId { shard: ShardId(1), epoch: Epoch(1) });
            let entries = (1..=8).map(|sequence| {
                let (data, encoding) = (Bytes::from(vec![7; bytes]), ValueEncoding::Bytes);
                let put = Effect::Put {
                    key: "a".into(),
                    value: Value { encoding, data },
                    expire_at_ms: 0,
                };
                let (request_id, database) = (RequestId([1; 16]), DatabaseId([1; 16]));
                let transaction = CommittedTransaction {
                    request_id,
                    database,
                    effects: vec![put],
                    refusal: None,
                };
                let position = Position::new(Epoch(1), sequence);
                let batch =
                    encode_batch(&Batch { position, time_ms: 0, transactions: vec![transaction] });
                let payload = EntryPayload::Normal(EncodedBatch::stored(batch));
                Ok((Entry { log_id: LogId::new(1.into(), sequence), payload }, None))
            });
            machine.apply(futures::stream::iter(entries)).await.unwrap();
            assert_eq!(
                (machine.state.position().sequence, engine.0.load(Ordering::SeqCst)),
                (8, writes)
            );
        }
    }

    #[tokio::test]
    async fn a_member_that_copies_is_given_the_same_snapshot_until_the_log_begins_behind_it() {
        let position = |snapshot: &Snapshot<SnapshotData>| {
            snapshot.meta.last_log_id.map(|log_id| log_id.index)
        };
        let mut machine = machine(2, raft(2));
        let first = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(position(&first), Some(7));
        apply(&mut machine, 8, batch(2, 2)).await.unwrap();
        let again = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(position(&again), Some(7), "a copy that broke off goes on");
        drop(again);
        machine.purged(8);
        let later = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(position(&later), Some(8), "nothing could be sent behind the first");
        drop((first, later));
        apply(&mut machine, 9, batch(2, 3)).await.unwrap();
        let newest = machine.get_current_snapshot().await.unwrap().unwrap();
        assert_eq!(position(&newest), Some(9), "no member copies");
    }

    #[tokio::test]
    async fn only_batches_of_the_group_are_applied_and_none_once_it_was_shut_down() {
        let mut machine = machine(2, raft(2));
        let error = apply(&mut machine, 8, batch(1, 2)).await.unwrap_err();
        assert!(error.contains("batch 1.2 is of another epoch"), "{error}");
        apply(&mut machine, 8, batch(2, 2)).await.unwrap();
        machine.close();
        apply(&mut machine, 9, batch(2, 3)).await.unwrap();
        assert_eq!(machine.state.position(), Position::new(Epoch(2), 2));
        let snapshot = machine.get_current_snapshot().await.unwrap().unwrap();
        let error = machine.install_snapshot(&snapshot.meta, snapshot.snapshot).await.unwrap_err();
        assert!(error.to_string().contains("was shut down"), "{error}");
    }
}
