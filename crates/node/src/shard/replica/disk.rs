//! The thread that writes what one replica keeps, off the runtime: a disk that stalls there would
//! hold up the heartbeats and leases of every shard.

use std::collections::VecDeque;
use std::sync::{Arc, mpsc as std_mpsc};

use meridian_proto::DecodedBatch;
use meridian_storage::{
    Applied, AppliedMark, Replace, ShardState, ShippedLog, StagedState, StorageError, Syncer,
    or_fatal,
};
use meridian_types::{EpochHistory, Position};
use meridian_vault::Folder;
use tokio::sync::{mpsc, oneshot, watch};

use crate::divergence::collect;
use crate::replication::shipped_batch::Shipped;

/// The work that the thread has done.
pub(super) enum Written {
    /// Everything up to here is fsynced, and then applied: what is reported can be served.
    Durable(Position),
    Installed(Result<Applied, StorageError>),
}

/// Done one after another, in the order in which they were given: what is kept of a history is in
/// its file before a snapshot takes its place, and nothing is appended meanwhile.
enum Job {
    /// The sender is for what follows the fsync.
    Append(Vec<Shipped>, std_mpsc::Sender<Job>),
    Fsynced(Position),
    SaveOrphans {
        history: EpochHistory,
        base: Position,
    },
    Install {
        staged: StagedState,
        diverged: bool,
    },
    Idle(oneshot::Sender<()>),
}

/// The parts that the thread works with.
pub(super) struct DiskParts {
    pub(super) state: Arc<ShardState>,
    pub(super) log: ShippedLog,
    pub(super) syncer: Arc<Syncer>,
    pub(super) data_dir: Folder,
    pub(super) applied: watch::Sender<AppliedMark>,
    pub(super) written: mpsc::UnboundedSender<Written>,
}

/// The driver's end.
pub(super) struct Disk {
    jobs: std_mpsc::Sender<Job>,
    ended: oneshot::Receiver<()>,
}

impl Disk {
    /// # Errors
    /// When no thread can be started.
    pub(super) fn start(parts: DiskParts) -> Result<Self, StorageError> {
        let (jobs, queue) = std_mpsc::channel();
        let (end, ended) = oneshot::channel();
        std::thread::Builder::new()
            .name("replica-disk".to_owned())
            .spawn(move || {
                let mut disk = Thread { parts, unapplied: VecDeque::new() };
                for job in queue {
                    disk.carry_out(job);
                }
                // The node may have been dropped, and with it the receiver.
                end.send(()).unwrap_or_default();
            })
            .map_err(|source| StorageError::File {
                path: "replica-disk thread".to_owned(),
                source,
            })?;
        Ok(Self { jobs, ended })
    }

    /// Appends what follows, has it fsynced with whatever else waits, and applies it.
    pub(super) fn append(&self, batches: Vec<Shipped>) {
        self.give(Job::Append(batches, self.jobs.clone()));
    }

    /// Keeps what `history` does not hold.
    pub(super) fn save_orphans(&self, history: EpochHistory, base: Position) {
        self.give(Job::SaveOrphans { history, base });
    }

    pub(super) fn install(&self, staged: StagedState, diverged: bool) {
        self.give(Job::Install { staged, diverged });
    }

    /// Waits until all that was given is done, but for appends whose fsync is still to come.
    pub(super) async fn idle(&self) {
        let (done, idle) = oneshot::channel();
        self.give(Job::Idle(done));
        drop(idle.await);
    }

    /// Waits until everything that was given is done, also behind an fsync, and ends the thread.
    pub(super) async fn close(self) {
        drop(self.jobs);
        drop(self.ended.await);
    }

    fn give(&self, job: Job) {
        // The thread ends when no sender is left: this is one.
        drop(self.jobs.send(job));
    }
}

struct Thread {
    parts: DiskParts,
    /// In the log, and to be applied once they are fsynced.
    unapplied: VecDeque<DecodedBatch>,
}

impl Thread {
    fn carry_out(&mut self, job: Job) {
        match job {
            Job::Append(batches, jobs) => self.append(batches, jobs),
            Job::Fsynced(position) => {
                self.apply_through(position);
                self.tell(Written::Durable(position));
            }
            Job::SaveOrphans { history, base } => {
                let (state, epoch) = (&self.parts.state, history.epoch());
                let saved =
                    collect::keep_shipped(&self.parts.data_dir, state, &history, &self.parts.log);
                let (shard, batches) = (state.shard(), or_fatal(saved));
                tracing::warn!(%shard, %epoch, %base, batches, "kept batches that the shard's history lost");
            }
            Job::Install { staged, diverged } => {
                // A state that left the shard's history may be replaced by an older one.
                let replace = if diverged { Replace::Any } else { Replace::Older };
                let installed = self.parts.log.replace_state(&self.parts.state, staged, replace);
                if installed.is_ok() {
                    self.unapplied.clear();
                }
                self.tell(Written::Installed(installed));
            }
            Job::Idle(done) => done.send(()).unwrap_or_default(),
        }
    }

    fn append(&mut self, batches: Vec<Shipped>, jobs: std_mpsc::Sender<Job>) {
        let Some(last) = batches.last().map(Shipped::position) else { return };
        let records = batches.iter().map(|next| (next.position().sequence, next.bytes.as_ref()));
        or_fatal(self.parts.log.append(records));
        self.unapplied.extend(batches.into_iter().map(|next| next.decoded));
        self.parts.syncer.sync_then(move || drop(jobs.send(Job::Fsynced(last))));
    }

    fn apply_through(&mut self, position: Position) {
        let mut batches = Vec::new();
        while self.unapplied.front().is_some_and(|next| next.batch.position <= position) {
            batches.extend(self.unapplied.pop_front());
        }
        if !batches.is_empty() {
            or_fatal(self.parts.state.apply_shipped(batches));
            let sequence = self.parts.state.position().sequence;
            self.parts.applied.send_replace(AppliedMark::of_replica(sequence));
        }
    }

    fn tell(&self, written: Written) {
        // The driver is gone only when the node stops.
        drop(self.parts.written.send(written));
    }
}
