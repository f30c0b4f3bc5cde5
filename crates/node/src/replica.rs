//! A shard on a node outside its primary region: follows the committed log, durably, and serves it
//! on.

mod disk;
pub(crate) mod driver;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use meridian_consensus::StateTransfer;
use meridian_memory::ByteBudget;
use meridian_proto::{DecodedBatch, decode_stored};
use meridian_shipping::Status;
use meridian_storage::{Engine, GroupId, GroupLog, RecordKind, ShardState, StorageError, Syncer};
use meridian_types::{Epoch, NodeId, Position, ShardId};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::directory::Directory;
use crate::disk::DiskGuard;
use crate::history::History;
use crate::peers::PeerChannels;
use crate::reads::Reads;
use crate::shard::serves_alone;
use driver::Driver;

/// The mark of the newest sequence that is no longer in the log.
pub(crate) const PURGED: u8 = b'p';

/// What a replica knows of itself and its source, for others to ask.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaStatus {
    pub(crate) status: Status,
    pub(crate) may_serve: bool,
    pub(crate) is_relay: bool,
    /// Whom it subscribes to.
    pub(crate) source: Option<NodeId>,
    /// The newest commit it was told of, with the voter's wall clock then.
    pub(crate) committed: Option<(Position, u64)>,
    pub(crate) history: History,
    /// It has had what was committed when it started, or a little before, and is on the shard's
    /// history.
    caught_up: bool,
}

/// What the node asks of a replica.
enum Command {
    /// The shard has gone on: what its history is now.
    History(History),
    Seal {
        epoch: Epoch,
        reply: oneshot::Sender<Position>,
    },
    Drain {
        source: NodeId,
        through: Position,
        reply: oneshot::Sender<Result<Position, String>>,
    },
    /// What is durable is applied when it answers, and nothing is written any more.
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// One shard that this node follows.
pub(crate) struct Replica {
    state: Arc<ShardState>,
    log: GroupLog,
    reads: Reads,
    applied: watch::Receiver<(u64, u64)>,
    status: Arc<Mutex<ReplicaStatus>>,
    heard: mpsc::Sender<Status>,
    commands: mpsc::UnboundedSender<Command>,
    /// The newest sequence that is no longer in the log.
    purged: Arc<watch::Sender<u64>>,
    started: Instant,
}

/// What a replica works with.
pub(crate) struct ReplicaParts {
    pub(crate) node_id: NodeId,
    pub(crate) history: History,
    /// It was sealed in this epoch before it restarted: it takes nothing of it.
    pub(crate) sealed: Option<Epoch>,
    pub(crate) state: Arc<ShardState>,
    /// See [`shipped_log`].
    pub(crate) log: GroupLog,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) transfer: Arc<dyn StateTransfer>,
    pub(crate) data_dir: PathBuf,
    pub(crate) disk: Arc<DiskGuard>,
    pub(crate) reads: Reads,
    /// For the compression of streams.
    pub(crate) streams: ByteBudget,
}

/// What a node takes as a replica of a shard lies in one log, of no epoch: sequences go on across
/// epochs.
pub(crate) fn shipped_log(
    engine: &Arc<dyn Engine>,
    shard: ShardId,
) -> Result<GroupLog, StorageError> {
    GroupLog::open(Arc::clone(engine), GroupId { shard, epoch: Epoch(0) }, RecordKind::Shipped)
}

impl Replica {
    /// Begins to follow. What the log holds behind the state was applied again, see [`catch_up`].
    ///
    /// # Errors
    /// When storage fails.
    pub(crate) fn start(parts: ReplicaParts) -> Result<Self, StorageError> {
        let (log, reads) = (parts.log.clone(), parts.reads.clone());
        let durable = parts.state.position();
        // An installation that a crash cut off may have left a mark ahead of the state.
        let purged = log
            .mark(PURGED)?
            .and_then(|bytes| bytes.as_ref().try_into().ok().map(u64::from_be_bytes));
        let purged = Arc::new(watch::Sender::new(purged.unwrap_or(0).min(durable.sequence)));
        let applied = watch::Sender::new((durable.sequence, 0));
        let (heard, statuses) = mpsc::channel(256);
        let (commands, orders) = mpsc::unbounded_channel();
        let state = Arc::clone(&parts.state);
        let (receiver, driver) =
            (applied.subscribe(), Driver::new(parts, applied, Arc::clone(&purged))?);
        let status = driver.status();
        tokio::spawn(driver.run(statuses, orders));
        Ok(Self {
            state,
            log,
            reads,
            applied: receiver,
            status,
            heard,
            commands,
            purged,
            started: Instant::now(),
        })
    }

    /// The shard has gone on to another epoch.
    pub(crate) fn follow(&self, history: History) {
        drop(self.commands.send(Command::History(history)));
    }

    /// Takes nothing of the epoch any more; what is durable and applied then. `None`: the replica
    /// is gone.
    pub(crate) async fn seal(&self, epoch: Epoch) -> Option<Position> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(Command::Seal { epoch, reply }).ok()?;
        answer.await.ok()
    }

    /// Comes to `through`: from `source` if it is sealed, else as the log is shipped to it anyway.
    ///
    /// # Errors
    /// For the log, when the source has no answer.
    pub(crate) async fn drain(
        &self,
        source: NodeId,
        through: Position,
    ) -> Result<Position, String> {
        let (reply, answer) = oneshot::channel();
        let gone = || "the replica has stopped".to_owned();
        self.commands.send(Command::Drain { source, through, reply }).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// Ends it. What is durable is applied on return, and nothing is written any more.
    pub(crate) async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop { reply }).is_ok() {
            drop(stopped.await);
        }
    }

    pub(crate) fn history(&self) -> History {
        self.status.lock().history.clone()
    }

    pub(crate) fn reads(&self) -> &Reads {
        &self.reads
    }

    pub(crate) fn state(&self) -> &Arc<ShardState> {
        &self.state
    }

    pub(crate) fn applied(&self) -> watch::Receiver<(u64, u64)> {
        self.applied.clone()
    }

    /// Whether this replica has had what was committed when it started, or a little before. Until
    /// then it may show a state that is hours old, or none. One that left the shard's history shows
    /// nothing.
    pub(crate) fn has_caught_up(&self) -> bool {
        let status = self.status();
        let alone = || {
            let diverged = status.history.leaves(self.state.position()).is_some();
            status.committed.is_none() && !diverged && serves_alone(self.started, &self.state)
        };
        status.caught_up || alone()
    }

    pub(crate) fn status(&self) -> ReplicaStatus {
        self.status.lock().clone()
    }

    /// Another node said this of itself.
    pub(crate) fn heard(&self, status: Status) {
        // When full, the next one comes soon.
        self.heard.try_send(status).ok();
    }

    pub(crate) fn purged(&self) -> u64 {
        *self.purged.borrow()
    }

    /// Durable batches behind `after`, up to about `max_bytes`. `None`: they are no longer in the
    /// log.
    pub(crate) fn batches_after(
        &self,
        after: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<(u64, Bytes)>>, StorageError> {
        // What is applied is durable.
        let end = self.applied.borrow().0 + 1;
        if after < self.purged() {
            return Ok(None);
        }
        let batches = self.log.read(after + 1..end, max_bytes)?;
        if batches.is_empty() && after + 1 < end {
            // Emptied for a snapshot right now.
            return Ok(None);
        }
        let contiguous =
            batches.iter().zip(after + 1..).all(|((found, _), expected)| *found == expected);
        Ok(contiguous.then_some(batches))
    }

    /// Flushes the state, and purges the log up to `sequence`, or as far as was flushed.
    pub(crate) fn purge_through(&self, sequence: u64) -> Result<(), StorageError> {
        let through = purge(&self.state, &self.log, sequence)?;
        self.purged.send_if_modified(|purged| {
            let raised = *purged < through;
            *purged = through.max(*purged);
            raised
        });
        Ok(())
    }
}

/// The part of [`Replica::purge_through`] that is on the disk; up to where the log was purged.
fn purge(state: &ShardState, log: &GroupLog, sequence: u64) -> Result<u64, StorageError> {
    // Another state that is put in place meanwhile may begin before what was flushed of this one,
    // and the log behind it is not flushed.
    let _one_state = state.hold_in_place();
    let through = sequence.min(state.flush()?.position.sequence);
    log.purge_through(through, Some((PURGED, &through.to_be_bytes())))?;
    Ok(through)
}

/// Applies what the log holds behind the state. Before anything is judged by the state's position.
///
/// # Errors
/// When storage fails, or the log does not connect to the state.
pub(crate) fn catch_up(state: &ShardState, log: &GroupLog) -> Result<(), StorageError> {
    loop {
        let next = state.position().sequence + 1;
        let records = log.read(next..u64::MAX, 8 << 20)?;
        let follow = records
            .iter()
            .zip(next..)
            .take_while(|((found, _), expected)| found == expected)
            .count();
        let hole = follow < records.len();
        let batches = records.into_iter().take(follow).map(|(_, bytes)| decode(bytes));
        let batches = batches.collect::<Result<Vec<_>, _>>()?;
        let done = batches.is_empty();
        state.apply_shipped(batches)?;
        if hole {
            // What a power loss left behind a hole was never durable, and nobody was told that it
            // is.
            let last = state.position().sequence;
            tracing::warn!(log = %log.group(), last, "the log has a hole: what lies behind it is fetched again");
            log.truncate_after(last)?;
            // Before anything takes the place of what was cut. Else a power loss could undo the cut
            // and keep what a later epoch appended: a log that goes on with what that epoch's
            // history does not hold.
            return log.sync();
        }
        if done {
            return Ok(());
        }
    }
}

pub(crate) fn decode(bytes: Bytes) -> Result<DecodedBatch, StorageError> {
    let corrupt = |error: meridian_proto::InvalidBatch| StorageError::Corruption {
        what: "a shipped batch".to_owned(),
        detail: error.to_string(),
    };
    decode_stored(bytes).map_err(corrupt)
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod purge_tests;
