//! A shard on a node outside its primary region: follows the committed log, durably, and serves it
//! on.

mod disk;
pub(crate) mod driver;

use std::sync::Arc;
use std::time::Instant;

use meridian_consensus::StateTransfer;
use meridian_memory::ByteBudget;
use meridian_shipping::{AdvertisedCommit, Status};
use meridian_storage::{AppliedMark, ShardState, ShippedLog, StorageError, StoredBatch, Syncer};
use meridian_types::{Epoch, EpochHistory, NodeId, Position};
use meridian_vault::Folder;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::cluster_view::view::Directory;
use crate::host::disk::DiskGuard;
use crate::network::peers::PeerChannels;
use crate::read::execution::Reads;
use crate::read::freshness::serves_alone;
use driver::Driver;

/// A replica's view of itself and its source, for others to ask.
#[derive(Debug, Clone)]
pub(crate) struct ReplicaStatus {
    pub(crate) status: Status,
    pub(crate) may_serve: bool,
    pub(crate) is_relay: bool,
    /// The node that it subscribes to.
    pub(crate) source: Option<NodeId>,
    /// The newest commit that its source has advertised.
    pub(crate) committed: Option<AdvertisedCommit>,
    pub(crate) history: EpochHistory,
    /// It has had what was committed when it started, or a little before, and is on the shard's
    /// history.
    caught_up: bool,
}

/// The commands of the node to a replica.
enum Command {
    /// The shard has gone on: what its history is now.
    History(EpochHistory),
    Seal {
        epoch: Epoch,
        reply: oneshot::Sender<Position>,
    },
    Drain {
        source: NodeId,
        through: Position,
        reply: oneshot::Sender<Result<Position, String>>,
    },
    /// Durable batches are applied when it answers, and nothing is written any more.
    Stop {
        reply: oneshot::Sender<()>,
    },
}

/// One shard that this node follows.
pub(crate) struct Replica {
    state: Arc<ShardState>,
    log: ShippedLog,
    reads: Reads,
    applied: watch::Receiver<AppliedMark>,
    status: Arc<Mutex<ReplicaStatus>>,
    heard: mpsc::Sender<Status>,
    commands: mpsc::UnboundedSender<Command>,
    /// The newest sequence that is no longer in the log.
    purged: Arc<watch::Sender<u64>>,
    started: Instant,
}

/// The parts that a replica works with.
pub(crate) struct ReplicaParts {
    pub(crate) node_id: NodeId,
    pub(crate) history: EpochHistory,
    /// It was sealed in this epoch before it restarted: it takes nothing of it.
    pub(crate) sealed: Option<Epoch>,
    pub(crate) state: Arc<ShardState>,
    pub(crate) log: ShippedLog,
    pub(crate) syncer: Arc<Syncer>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) transfer: Arc<dyn StateTransfer>,
    pub(crate) data_dir: Folder,
    pub(crate) disk: Arc<DiskGuard>,
    pub(crate) reads: Reads,
    /// For the compression of streams.
    pub(crate) streams: ByteBudget,
}

impl Replica {
    /// Begins to follow. The batches of the log behind the state were applied again before, see
    /// [`ShippedLog::replay`].
    ///
    /// # Errors
    /// When storage fails.
    pub(crate) fn start(parts: ReplicaParts) -> Result<Self, StorageError> {
        let (log, reads) = (parts.log.clone(), parts.reads.clone());
        let durable = parts.state.position();
        // An installation that a crash cut off may have left a mark ahead of the state.
        let purged = log.purged()?.unwrap_or(0).min(durable.sequence);
        let purged = Arc::new(watch::Sender::new(purged));
        let applied = watch::Sender::new(AppliedMark::of_replica(durable.sequence));
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
    pub(crate) fn follow(&self, history: EpochHistory) {
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

    /// Ends it. Durable batches are applied on return, and nothing is written any more.
    pub(crate) async fn stop(&self) {
        let (reply, stopped) = oneshot::channel();
        if self.commands.send(Command::Stop { reply }).is_ok() {
            drop(stopped.await);
        }
    }

    pub(crate) fn history(&self) -> EpochHistory {
        self.status.lock().history.clone()
    }

    pub(crate) fn reads(&self) -> &Reads {
        &self.reads
    }

    pub(crate) fn state(&self) -> &Arc<ShardState> {
        &self.state
    }

    pub(crate) fn applied(&self) -> watch::Receiver<AppliedMark> {
        self.applied.clone()
    }

    /// Whether this replica has had what was committed when it started, or a little before. Until
    /// then it may show a state that is hours old, or none. A state that left the shard's history
    /// is not shown.
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
    ) -> Result<Option<Vec<StoredBatch>>, StorageError> {
        // Applied batches are durable.
        let through = self.applied.borrow().sequence;
        if after < self.purged() {
            return Ok(None);
        }
        // It may be emptied for a snapshot right now.
        self.log.batches_after(after, through, max_bytes)
    }

    /// Flushes the state, and purges the log up to `sequence`, or as far as was flushed.
    pub(crate) fn purge_through(&self, sequence: u64) -> Result<(), StorageError> {
        let through = self.log.purge_flushed(&self.state, sequence)?;
        self.purged.send_if_modified(|purged| {
            let raised = *purged < through;
            *purged = through.max(*purged);
            raised
        });
        Ok(())
    }
}

#[cfg(test)]
mod tests;
