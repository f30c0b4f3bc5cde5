//! A member of a Raft group on this node: what it is made of, and its beginning and end.
//!
//! | file | what a member does |
//! |---|---|
//! | `opening` | starts from what its disk holds |
//! | `formation` | founds a group from a state |
//! | `member` | comes to vote, stands for election, is sealed; when its word counts |
//! | `timers` | sends heartbeats, and stands for election in its turn |
//! | `leadership` | says whether it leads, and whether its read lease holds |
//! | `confirmation` | asks a majority whether it leads, for a read |
//! | `handover` | hands the leadership over |
//! | `proposals` | appends a batch in one term |
//! | `log_reader`, `purging` | reads its log, and cuts it |
//! | `voters` | changes the voters |

use std::sync::Arc;
use std::time::Duration;

use meridian_storage::{AppliedMark, GroupId, HighWater, ShardState, StorageError, Syncer};
use meridian_types::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::{Raft, ServerState};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::log_cache::LogCache;
use crate::log_store::LogStore;
use crate::state_machine::StateMachine;
use crate::type_config::TypeConfig;
use crate::{Peers, RaftTiming, StateTransfer};

mod confirmation;
mod formation;
mod handover;
mod leadership;
mod log_reader;
mod member;
mod opening;
mod proposals;
mod purging;
mod timers;
mod voters;

use confirmation::ReadIndex;
pub use formation::Formed;
pub use handover::TransferFailure;
use leadership::ReadLease;
pub use leadership::{Leadership, NotLeading};
use log_reader::FirstBatch;
pub use log_reader::ReadLogFailure;
pub(crate) use log_reader::{Sought, seek, sequence_of};
use member::Member;
pub use proposals::{MAX_BATCH_BYTES, Proposal, ProposalFailure};
pub(crate) use timers::Contact;
use timers::Timers;
pub use voters::ChangeVotersFailure;
use voters::Changes;

type MeridianRaft = Raft<TypeConfig, StateMachine>;

/// The parts that a member of a group is made from.
pub struct RaftGroupOptions {
    pub node_id: NodeId,
    pub group: GroupId,
    pub state: Arc<ShardState>,
    pub syncer: Arc<Syncer>,
    /// None only in tests.
    pub high_water: Option<Arc<HighWater>>,
    pub peers: Arc<dyn Peers>,
    pub transfer: Arc<dyn StateTransfer>,
    pub timing: RaftTiming,
    /// Shared by all groups of the node.
    pub log_cache: LogCache,
}

/// A member of one Raft group. Cheap to clone.
#[derive(Clone)]
pub struct RaftGroup {
    id: GroupId,
    node_id: NodeId,
    raft: MeridianRaft,
    log: LogStore,
    state: Arc<ShardState>,
    machine: StateMachine,
    peers: Arc<dyn Peers>,
    applied: watch::Receiver<AppliedMark>,
    member: Member,
    lease: ReadLease,
    read_index: ReadIndex,
    changes: Arc<Changes>,
    first_batch: Arc<Mutex<Option<FirstBatch>>>,
    heartbeat: Duration,
    _timers: Arc<Timers>,
}

/// A member's role in its group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    Leader,
    Follower,
    Candidate,
    Learner,
    Stopped,
}

#[derive(Debug, Clone)]
pub struct GroupStatus {
    pub role: Role,
    pub term: u64,
    pub leader: Option<NodeId>,
    pub committed_index: u64,
    pub applied_index: u64,
}

fn raft_stopped(group: GroupId, reason: impl ToString) -> StorageError {
    StorageError::RaftStopped { group, reason: reason.to_string() }
}

impl RaftGroup {
    pub fn id(&self) -> GroupId {
        self.id
    }

    pub fn state(&self) -> Arc<ShardState> {
        Arc::clone(&self.state)
    }

    pub(crate) fn raft(&self) -> &MeridianRaft {
        &self.raft
    }

    /// The newest applied entry, as it changes.
    pub fn applied(&self) -> watch::Receiver<AppliedMark> {
        self.applied.clone()
    }

    /// Waits until what was committed before this process started is applied again, at most
    /// `within`; false if that was too short, as it is while no quorum can be reached.
    pub async fn recovered(&self, within: Duration) -> bool {
        self.raft.wait_for_recovery(Some(within)).await.is_ok()
    }

    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let role = match metrics.state {
            ServerState::Leader => Role::Leader,
            ServerState::Follower => Role::Follower,
            ServerState::Candidate => Role::Candidate,
            ServerState::Learner => Role::Learner,
            ServerState::Shutdown => Role::Stopped,
        };
        GroupStatus {
            role,
            term: metrics.current_term,
            leader: metrics.current_leader,
            committed_index: metrics.cluster_committed.as_ref().map_or(0, |log_id| log_id.index),
            applied_index: metrics.last_applied.as_ref().map_or(0, |log_id| log_id.index),
        }
    }

    /// Resolves when Raft has stopped by itself: a storage error. The process should stop. Does not
    /// resolve while the runtime ends: it drops Raft's task as any other.
    pub async fn stopped(&self) -> String {
        // Closed when Raft has stopped, and seldom changed before that.
        let mut server = self.raft.server_metrics();
        while server.changed().await.is_ok() {}
        // A runtime takes no tasks before it drops its first.
        if tokio::spawn(async {}).await.is_err() {
            std::future::pending().await
        }
        match &self.raft.metrics().borrow_watched().running_state {
            Err(fatal) => fatal.to_string(),
            Ok(()) => "raft has stopped".to_owned(),
        }
    }

    /// Stops taking part. On return nothing of this member writes the log or the state any more:
    /// another group may take the state over, or this one may be opened again. Its log can still be
    /// read here. State that was not flushed is applied again when it is opened. May be dropped at
    /// any await: it goes on.
    pub async fn shutdown(&self) {
        let group = self.clone();
        // A task of its own: the caller may be a call that is cancelled, and openraft panics where
        // the first caller that waits for its end goes away (`RaftCore should have already quit`).
        let stopped = tokio::spawn(async move { group.stop().await });
        // Not finished: the runtime is ending.
        drop(stopped.await);
    }

    fn raft_stopped(&self, reason: impl ToString) -> StorageError {
        raft_stopped(self.id, reason)
    }

    async fn stop(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, group = %self.id, "raft did not stop cleanly");
        }
        let machine = self.machine.clone();
        let closed = tokio::task::spawn_blocking(move || machine.close()).await;
        // Also behind what raises the high-water mark when the last appends are durable.
        if let Err(error) = closed.map_err(std::io::Error::other).and(self.log.sync().await) {
            tracing::warn!(%error, group = %self.id, "the log was not synced at the end");
        }
    }
}
