use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_proto::batch_header;
use meridian_storage::{GroupId, GroupLog, HighWater, RecordKind, ShardState, StorageError, Syncer};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, InitializeError, RaftError};
use openraft::impls::OneshotResponder;
use openraft::raft::ClientWriteResult;
use openraft::{EntryPayload, Instant as _, Raft, ReadPolicy, ServerState};
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;

use crate::config::openraft_config;
use crate::log_store::LogStore;
use crate::membership::{self, NoVote, Standing, VoteGate};
use crate::network::NetworkFactory;
use crate::state_machine::StateMachine;
use crate::type_config::{EncodedBatch, TypeConfig};
use crate::{Peers, RaftTiming, StateTransfer};

/// How long a quorum may take to say that this node still leads.
const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(1);

type TokioInstant = openraft::alias::InstantOf<TypeConfig>;
type MeridianRaft = Raft<TypeConfig, StateMachine>;

/// What a member of a group is made of.
pub struct RaftGroupOptions {
    pub node_id: u64,
    pub group: GroupId,
    pub state: Arc<ShardState>,
    pub syncer: Arc<Syncer>,
    /// None only in tests.
    pub high_water: Option<Arc<HighWater>>,
    pub peers: Arc<dyn Peers>,
    pub transfer: Arc<dyn StateTransfer>,
    pub timing: RaftTiming,
}

/// A member of one Raft group. Cheap to clone.
#[derive(Clone)]
pub struct RaftGroup {
    id: GroupId,
    node_id: u64,
    raft: MeridianRaft,
    log: LogStore,
    state: Arc<ShardState>,
    applied: watch::Receiver<(u64, u64)>,
    lease: Duration,
    /// The term in which this node asked another to take over: the vote that follows ignores its lease.
    handed_over_in: Arc<AtomicU64>,
    /// The first index of the log when it was last asked for, and the first sequence from there on.
    first_batch: Arc<Mutex<Option<(u64, u64)>>>,
    votes: Arc<RwLock<VoteGate>>,
    /// Until then a lease that this member granted before it started may hold.
    quiet_until: Instant,
}

/// That this node leads in a term, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    pub term: u64,
    /// Until then no other node can lead, whatever happens; `None` before a first quorum has answered.
    /// It is counted on the monotonic clock, from when the heartbeats were sent that the quorum answered.
    pub lease_until: Option<Instant>,
}

/// This node does not lead; `leader` does, if known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the leader")]
pub struct NotLeading {
    pub leader: Option<u64>,
}

/// Why a proposed batch did not commit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposalFailure {
    /// Never appended, and never will be.
    #[error("the batch was not appended: this node does not lead in that term")]
    NotAppended,
    /// Leadership was lost after it was appended: the next leader may have it or not.
    #[error("leadership was lost while the batch was in flight")]
    Unknown,
}

/// A batch in flight. Dropping it changes nothing: the batch is in the log.
pub struct Proposal {
    state: ProposalState,
}

enum ProposalState {
    Applied,
    InFlight(tokio::sync::oneshot::Receiver<ClientWriteResult<TypeConfig>>),
}

impl Proposal {
    /// Waits until the batch is committed and applied here. May be dropped at any await and called again,
    /// until it has answered.
    pub async fn applied(&mut self) -> Result<(), ProposalFailure> {
        match &mut self.state {
            ProposalState::Applied => Ok(()),
            ProposalState::InFlight(receiver) => outcome(receiver.await.map_err(drop)),
        }
    }
}

fn outcome(result: Result<ClientWriteResult<TypeConfig>, ()>) -> Result<(), ProposalFailure> {
    match result {
        Ok(Ok(_)) => Ok(()),
        // openraft's word that it was refused before it was appended.
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(ProposalFailure::NotAppended),
        Ok(Err(_)) | Err(()) => Err(ProposalFailure::Unknown),
    }
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
    pub leader: Option<u64>,
    pub committed_index: u64,
    pub applied_index: u64,
}

impl RaftGroup {
    /// Opens the member from what its disk holds, and starts. What was committed and not flushed is applied
    /// again by and by, see [`RaftGroup::recovered`]. It neither votes nor leads before
    /// [`RaftGroup::take_part`].
    ///
    /// # Errors
    /// When the log is shorter than it was, or storage fails.
    pub async fn open(options: RaftGroupOptions) -> Result<Self, StorageError> {
        let refused = |error: &dyn std::fmt::Display| StorageError::Refused(error.to_string());
        let config = openraft_config(options.timing, options.group.to_string()).map_err(|error| refused(&error))?;
        let log = GroupLog::open(Arc::clone(options.state.engine()), options.group, RecordKind::Entry)?;
        let log = LogStore::open(log, options.syncer, options.high_water)?;
        let machine = StateMachine::new(Arc::clone(&options.state));
        let applied = machine.applied();
        let network = NetworkFactory {
            node_id: options.node_id,
            group: options.group,
            peers: options.peers,
            transfer: options.transfer,
        };
        let raft = Raft::new(options.node_id, Arc::new(config), network, log.clone(), machine);
        let raft = raft.await.map_err(|error| refused(&error))?;
        let election_timeout = Duration::from_millis(options.timing.election_timeout_max_ms);
        Ok(Self {
            id: options.group,
            node_id: options.node_id,
            raft,
            log,
            state: options.state,
            applied,
            // Half of what followers grant: openraft may credit the leader with the sending time of a later
            // request than the one that was answered, ahead by a follower's fsync; and clocks drift.
            lease: election_timeout / 2,
            votes: Arc::new(RwLock::new(VoteGate::Undecided)),
            quiet_until: Instant::now() + election_timeout,
            handed_over_in: Arc::default(),
            first_batch: Arc::default(),
        })
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Begins to vote and to stand for election, once that is safe:
    /// - A member that was here before waits an election timeout: it may have granted a lease right before
    ///   it stopped, and has forgotten it.
    /// - A new member first makes every other voter remember it, and then forms the group with them.
    /// - A member whose folder was wiped never votes again: it has forgotten its votes, and acknowledged
    ///   entries that its quorum counted on. It goes on as a copy.
    ///
    /// Serve the group's calls before this is called. May be dropped at any await and called again.
    pub async fn take_part(&self, voters: &BTreeSet<u64>, peers: &Arc<dyn Peers>) -> Result<(), StorageError> {
        let refused = |error: &dyn std::fmt::Display| StorageError::Refused(error.to_string());
        let engine = self.state.engine();
        let standing = match membership::standing(engine, self.id)? {
            // Also with a log: a wiped member may have got one from the leader since.
            Standing::New => membership::join(engine, self.id, self.node_id, voters, peers).await?,
            known => known,
        };
        if standing == Standing::Voteless {
            tracing::warn!(group = %self.id, "this voter's folder was wiped: it is a copy that does not vote");
            *self.votes.write() = VoteGate::Never;
            return Ok(());
        }
        if self.log.is_pristine().map_err(|error| refused(&error))? {
            *self.votes.write() = VoteGate::OpensAt(Instant::now());
            match self.raft.initialize(voters.clone()).await {
                // Not allowed: another has told this member of the group already.
                Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
                Err(error) => return Err(refused(&error)),
            }
        } else {
            *self.votes.write() = VoteGate::OpensAt(self.quiet_until);
            tokio::time::sleep_until(self.quiet_until.into()).await;
        }
        self.raft.runtime_config().elect(true);
        Ok(())
    }

    /// Whether this member may lead, now or soon.
    pub fn votes(&self) -> bool {
        self.may_vote(true).is_ok()
    }

    /// Whether a vote of this member may be counted now.
    pub(crate) fn may_vote(&self, leadership_transfer: bool) -> Result<(), NoVote> {
        self.votes.read().check(leadership_transfer)
    }

    /// Waits until what was committed before this process started is applied again, at most `within`; false
    /// if that was too short, as it is while no quorum can be reached.
    pub async fn recovered(&self, within: Duration) -> bool {
        self.raft.wait_for_recovery(Some(within)).await.is_ok()
    }

    pub fn state(&self) -> Arc<ShardState> {
        Arc::clone(&self.state)
    }

    pub(crate) fn raft(&self) -> &MeridianRaft {
        &self.raft
    }

    /// The sequence and the term of what was applied last, as it changes.
    pub fn applied(&self) -> watch::Receiver<(u64, u64)> {
        self.applied.clone()
    }

    /// Whether this node leads, from what it knows without asking anybody.
    pub fn leadership(&self) -> Result<Leadership, NotLeading> {
        match self.raft.as_leader() {
            Err(forward) => Err(NotLeading { leader: forward.leader_id.filter(|leader| *leader != self.node_id) }),
            Ok(leader) => {
                let until = |acked| Instant::now().checked_sub(TokioInstant::now() - acked).map(|at| at + self.lease);
                let handed_over = self.handed_over_in.load(Ordering::SeqCst) == leader.term();
                let lease_until = leader.last_quorum_acked().and_then(until).filter(|_| !handed_over);
                Ok(Leadership { term: leader.term(), lease_until })
            }
        }
    }

    /// Waits until [`RaftGroup::leadership`] may answer otherwise.
    pub async fn leadership_changed(&self, known: Option<u64>) {
        // The very channel that `leadership` reads: another may wake before that one is written.
        let mut metrics = self.raft.metrics();
        loop {
            if self.leadership().ok().map(|leadership| leadership.term) != known {
                return;
            }
            if metrics.changed().await.is_err() {
                // Raft has stopped; nothing changes any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Appends the batch of this sequence if this node still leads in `term`; else it is not appended.
    /// Returns when it is in this node's log. It must be called for one batch at a time.
    ///
    /// openraft may refuse one write and take the next in the same term (while its lease has run out for a
    /// moment, or during a leadership transfer that fails). Would the next batch be sent before this one is
    /// in the log, sequences could have a gap.
    pub async fn propose(&self, batch: Bytes, sequence: u64, term: u64) -> Result<Proposal, ProposalFailure> {
        let (responder, mut receiver) = OneshotResponder::<TypeConfig, ClientWriteResult<TypeConfig>>::new_pair();
        let batch = EncodedBatch { bytes: batch, proposed_sequence: sequence };
        let mut appended = self.log.appended();
        if self.raft.write(batch).with_leader(term).responder(responder).await.is_err() {
            return Err(ProposalFailure::NotAppended);
        }
        tokio::select! {
            biased;
            result = &mut receiver => match result {
                Ok(result) => {
                    // Refused, or committed in no time.
                    outcome(Ok(result))?;
                    Ok(Proposal { state: ProposalState::Applied })
                }
                Err(_) => Err(ProposalFailure::Unknown),
            },
            _ = appended.wait_for(|newest| *newest >= (term, sequence)) => {
                Ok(Proposal { state: ProposalState::InFlight(receiver) })
            }
        }
    }

    /// Asks a quorum whether this node still leads. On success everything is applied here that was
    /// acknowledged before the call.
    pub async fn read_index(&self) -> Result<(), NotLeading> {
        let asked = self.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        // A leader that is cut off would wait for ever.
        match tokio::time::timeout(READ_INDEX_TIMEOUT, asked).await {
            Err(_) => Err(NotLeading { leader: None }),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => {
                Err(NotLeading { leader: error.forward_to_leader().and_then(|forward| forward.leader_id) })
            }
        }
    }

    /// Asks `to` to take over the leadership. Returns at once; watch [`RaftGroup::leadership_changed`]. For
    /// the rest of the term this node trusts its lease no more: the other may lead at any time.
    pub async fn transfer_leadership(&self, to: u64) -> Result<(), StorageError> {
        if let Ok(leadership) = self.leadership() {
            self.handed_over_in.store(leadership.term, Ordering::SeqCst);
        }
        let transferred = self.raft.trigger().transfer_leader(to).await;
        transferred.map_err(|error| StorageError::Refused(error.to_string()))
    }

    /// Flushes the state, and purges the log up to the batch at `sequence`, or as far as was flushed.
    pub async fn purge_through(&self, sequence: u64) -> Result<(), StorageError> {
        let refused = |error: &dyn std::fmt::Display| StorageError::Refused(error.to_string());
        // Here, and not only when openraft builds a snapshot: after a restart it takes the state that was
        // applied again for one that was flushed.
        let state = self.state();
        let flushed = tokio::task::spawn_blocking(move || state.flush());
        let flushed = flushed.await.map_err(|error| refused(&error))??;
        let (Some(index), Some(flushed)) = (self.index_of(sequence)?, flushed.raft.log_id) else { return Ok(()) };
        let index = index.min(flushed.index);
        self.raft.trigger().snapshot().await.map_err(|error| refused(&error))?;
        let wait = self.raft.wait(Some(Duration::from_secs(60)));
        let built = wait.metrics(
            move |metrics| metrics.snapshot.as_ref().is_some_and(|snapshot| snapshot.index >= index),
            "state flushed",
        );
        built.await.map_err(|error| refused(&error))?;
        self.raft.trigger().purge_log(index).await.map_err(|error| refused(&error))
    }

    /// Committed batches from `sequence` on, in order, up to about `max_bytes`: (sequence, stored bytes).
    /// Empty if there is none yet.
    ///
    /// # Errors
    /// [`ReadLogFailure::Purged`] if the log begins behind `sequence`.
    pub fn committed_batches(&self, sequence: u64, max_bytes: usize) -> Result<Vec<(u64, Bytes)>, ReadLogFailure> {
        let applied = self.state.applied();
        let Some(last_index) = applied.raft.log_id.map(|log_id| log_id.index) else { return Ok(Vec::new()) };
        if sequence > applied.position.sequence {
            return Ok(Vec::new());
        }
        let start = self.index_of(sequence)?.ok_or(ReadLogFailure::Purged)?;
        let mut batches = Vec::new();
        let mut next = start;
        // One read may return fewer than there are: go on until there is a batch.
        while batches.is_empty() && next <= last_index {
            let entries = self.log.read(next, last_index + 1, max_bytes).map_err(|error| read_error(&error))?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                return Err(ReadLogFailure::Purged);
            };
            // Purged since it was looked up.
            if first.log_id.index != next {
                return Err(ReadLogFailure::Purged);
            }
            next = last.log_id.index + 1;
            for entry in entries {
                if let EntryPayload::Normal(batch) = entry.payload {
                    batches.push((sequence + batches.len() as u64, batch.bytes));
                }
            }
        }
        Ok(batches)
    }

    /// The first batch that is still in the log; `None` if none is.
    pub fn first_sequence(&self) -> Result<Option<u64>, StorageError> {
        let (first, end) = self.log.bounds();
        if let Some((index, sequence)) = *self.first_batch.lock()
            && index == first
        {
            return Ok(Some(sequence));
        }
        for index in first..end {
            if let Some(sequence) = self.sequence_at(index)? {
                *self.first_batch.lock() = Some((first, sequence));
                return Ok(Some(sequence));
            }
        }
        Ok(None)
    }

    /// The index of the batch at `sequence`; `None` if it was purged or is not there yet.
    ///
    /// Indexes run ahead of sequences by the entries that are no batches, of which there are few (one for
    /// each leader and membership), so the search begins at the newest offset and goes down.
    fn index_of(&self, sequence: u64) -> Result<Option<u64>, StorageError> {
        let applied = self.state.applied();
        let Some(applied_index) = applied.raft.log_id.map(|log_id| log_id.index) else { return Ok(None) };
        let Some(behind) = applied.position.sequence.checked_sub(sequence) else { return Ok(None) };
        let (first, _) = self.log.bounds();
        let Some(mut index) = applied_index.checked_sub(behind) else { return Ok(None) };
        while index >= first {
            match self.sequence_at(index)? {
                Some(found) if found == sequence => return Ok(Some(index)),
                // Skip as many as the sequences say at once.
                Some(found) if found > sequence => match index.checked_sub(found - sequence) {
                    Some(lower) => index = lower,
                    None => return Ok(None),
                },
                Some(_) => return Ok(None),
                None => match index.checked_sub(1) {
                    Some(lower) => index = lower,
                    None => return Ok(None),
                },
            }
        }
        Ok(None)
    }

    fn sequence_at(&self, index: u64) -> Result<Option<u64>, StorageError> {
        let entries = self.log.read(index, index + 1, 0).map_err(|error| read_error(&error))?;
        let Some(EntryPayload::Normal(batch)) = entries.into_iter().next().map(|entry| entry.payload) else {
            return Ok(None);
        };
        let corrupt = |error: meridian_proto::InvalidBatch| StorageError::Corruption {
            what: format!("log entry {index} of {}", self.id),
            detail: error.to_string(),
        };
        Ok(Some(batch_header(&batch.bytes).map_err(corrupt)?.0.sequence))
    }

    pub fn status(&self) -> GroupStatus {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let role = match metrics.state {
            _ if metrics.running_state.is_err() => Role::Stopped,
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

    /// Resolves when Raft has stopped by itself: a storage error. The process should stop.
    pub async fn stopped(&self) -> String {
        let mut metrics = self.raft.metrics();
        loop {
            if let Err(fatal) = &metrics.borrow_watched().running_state {
                return fatal.to_string();
            }
            if metrics.changed().await.is_err() {
                return "raft has stopped".to_owned();
            }
        }
    }

    /// Stops taking part. State that was not flushed is applied again at the next start.
    pub async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::warn!(%error, group = %self.id, "raft did not stop cleanly");
        }
    }
}

/// Why committed batches cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadLogFailure {
    #[error("the log begins behind that sequence")]
    Purged,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn read_error(error: &std::io::Error) -> StorageError {
    StorageError::Corruption { what: "a raft log".to_owned(), detail: error.to_string() }
}

impl From<std::io::Error> for ReadLogFailure {
    fn from(error: std::io::Error) -> Self {
        Self::Storage(read_error(&error))
    }
}
