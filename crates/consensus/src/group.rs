use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_proto::log;
use meridian_storage::{
    AppliedMark, GroupId, GroupLog, HighWater, RecordKind, ShardState, StorageError, Syncer,
};
use openraft::async_runtime::WatchReceiver;
use openraft::errors::ClientWriteError;
use openraft::impls::OneshotResponder;
use openraft::raft::{ClientWriteResult, VoteRequest};
use openraft::{Raft, ServerState};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::config::openraft_config;
use crate::lease_trust::LeaseTrust;
use crate::log_cache::LogCache;
use crate::log_store::LogStore;
use crate::member_marks::{MemberMarks, RolledBack};
use crate::membership::{self, Standing};
use crate::network::NetworkFactory;
use crate::state_machine::StateMachine;
use crate::type_config::{EncodedBatch, TypeConfig};
use crate::votes::{NoVote, VoteGate, Votes};
use crate::{Peers, RaftTiming, StateTransfer};

mod confirmation;
mod formation;
mod handover;
mod log_reader;
mod reads;
mod timers;
mod voters;

pub use formation::Formed;
use handover::Handovers;
pub use handover::TransferFailure;
pub use log_reader::ReadLogFailure;
pub(crate) use log_reader::{Sought, seek, sequence_of};
pub(crate) use timers::Contact;
use timers::Timers;
pub use voters::ChangeVotersFailure;
use voters::Changes;

/// Between two candidacies of a member that is to lead.
const CANDIDACY_PAUSE: Duration = Duration::from_millis(50);

/// An encoded batch at most. With what is sent beside it, it fits a message several times over.
pub const MAX_BATCH_BYTES: usize = 16 << 20;

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
    /// Shared by all groups of the node.
    pub log_cache: LogCache,
}

/// A member of one Raft group. Cheap to clone.
#[derive(Clone)]
pub struct RaftGroup {
    id: GroupId,
    node_id: u64,
    raft: MeridianRaft,
    log: LogStore,
    state: Arc<ShardState>,
    machine: StateMachine,
    peers: Arc<dyn Peers>,
    applied: watch::Receiver<AppliedMark>,
    lease: Duration,
    lease_trust: Arc<LeaseTrust>,
    members: Arc<MemberMarks>,
    /// How long a quorum may take to say that this node still leads.
    read_timeout: Duration,
    handovers: Arc<Handovers>,
    /// The first index of the log when it was last asked for, and the first sequence from there on.
    first_batch: Arc<Mutex<Option<(u64, u64)>>>,
    votes: Arc<Votes>,
    /// Until then a lease that this member granted before it started may hold.
    quiet_until: Instant,
    contact: Contact,
    changes: Arc<Changes>,
    /// The highest index that this node, leading, has told another member to be committed.
    told: Arc<AtomicU64>,
    heartbeat: Duration,
    _timers: Arc<Timers>,
}

/// That this node leads in a term, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    pub term: u64,
    /// Until then no other node can lead, whatever happens; `None` before a first quorum has
    /// answered. It is counted on the monotonic clock, from when the heartbeats were sent that the
    /// quorum answered.
    pub lease_until: Option<Instant>,
    /// As `lease_until`, also where that is not to be trusted: that a quorum has answered of late.
    pub answered_until: Option<Instant>,
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
    /// Never appended: it could be sent to nobody, and nothing behind it either.
    #[error(
        "a batch of {bytes} bytes is larger than the {MAX_BATCH_BYTES} bytes that the log takes"
    )]
    TooLarge { bytes: usize },
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
    /// Waits until the batch is committed and applied here. May be dropped at any await and called
    /// again, until it has answered.
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
        // openraft's word that it was refused before it was appended. It says otherwise of what it
        // cut off its log.
        Ok(Err(ClientWriteError::ForwardToLeader(_))) => Err(ProposalFailure::NotAppended),
        Ok(Err(_)) | Err(()) => Err(ProposalFailure::Unknown),
    }
}

/// Why the word of a member, this one or a candidate, does not count now.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotCounted {
    #[error(transparent)]
    NoVote(#[from] NoVote),
    #[error(transparent)]
    RolledBack(#[from] RolledBack),
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn raft_stopped(group: GroupId, reason: impl ToString) -> StorageError {
    StorageError::RaftStopped { group, reason: reason.to_string() }
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
    /// Opens the member from what its disk holds, and starts. What was committed and not flushed is
    /// applied again by and by, see [`RaftGroup::recovered`]. It neither votes nor leads before
    /// [`RaftGroup::take_part`].
    ///
    /// A node that did not form the group, and is not in it, waits for a leader that has it as a
    /// member. What state it has is replaced by the leader's, even if it went further in an earlier
    /// epoch.
    ///
    /// # Errors
    /// When storage fails.
    pub async fn open(options: RaftGroupOptions) -> Result<Self, StorageError> {
        let id = options.group;
        let config = openraft_config(options.timing, id.to_string())
            .map_err(|error| StorageError::Invalid(error.to_string()))?;
        let members = Arc::new(MemberMarks::new(id, options.node_id, options.high_water.clone()));
        let (engine, syncer, high_water) =
            (Arc::clone(options.state.engine()), options.syncer, options.high_water);
        let log_cache = options.log_cache;
        // It reads all of the log that is not known to be whole.
        let opened = tokio::task::spawn_blocking(move || {
            LogStore::open(
                GroupLog::open(engine, id, RecordKind::Entry)?,
                syncer,
                high_water,
                &log_cache,
            )
        })
        .await;
        let log = opened.map_err(StorageError::cancelled)??;
        let machine = StateMachine::new(Arc::clone(&options.state), id);
        let reached = machine.last_applied().map(|applied| applied.index);
        if let Some(purged) = log.purged()?
            && reached.is_none_or(|index| index < purged.index)
        {
            return Err(StorageError::Invalid(format!(
                "the log of {id} begins behind index {}, and the state has nothing of it: something else has \
                 written the state since",
                purged.index
            )));
        }
        let applied_term =
            machine.own(options.state.applied().raft).log_id.map_or(0, |applied| applied.term);
        let mut standing = membership::standing(options.state.engine(), id)?;
        if standing != Standing::Voteless && log.has_lost_votes(applied_term)? {
            tracing::error!(group = %id, "the votes that this member gave are gone from its disk: it votes no more, replace it");
            membership::resign(options.state.engine(), id)?;
            standing = Standing::Voteless;
        }
        let election_timeout = options.timing.election_timeout_max();
        // Before it first granted a vote, or followed a leader, it saved that.
        let quiet = if log.has_vote()? { election_timeout } else { Duration::ZERO };
        let votes = Arc::new(Votes::default());
        if standing == Standing::Member {
            votes.follow_from(0);
        }
        let told = Arc::new(AtomicU64::new(0));
        // Half of what followers grant; what may be wrong with it, and clocks that drift, take less
        // than the rest.
        let lease = election_timeout / 2;
        let lease_trust = Arc::new(LeaseTrust::new(election_timeout, lease));
        let network = NetworkFactory {
            node_id: options.node_id,
            group: id,
            peers: Arc::clone(&options.peers),
            transfer: options.transfer,
            votes: Arc::clone(&votes),
            append_timeout: options.timing.answer_timeout(),
            told: Arc::clone(&told),
            lease_trust: Arc::clone(&lease_trust),
            members: Arc::clone(&members),
        };
        let applied = machine.applied();
        let raft =
            Raft::new(options.node_id, Arc::new(config), network, log.clone(), machine.clone());
        let raft = raft.await.map_err(|error| raft_stopped(id, error))?;
        let contact = Contact::default();
        let timers = Timers::start(
            raft.clone(),
            options.node_id,
            contact.clone(),
            Arc::clone(&votes),
            options.timing,
        );
        Ok(Self {
            id,
            node_id: options.node_id,
            raft,
            log,
            state: options.state,
            machine,
            peers: options.peers,
            applied,
            lease,
            lease_trust,
            members,
            read_timeout: options.timing.answer_timeout(),
            votes,
            quiet_until: Instant::now() + quiet,
            contact,
            changes: Arc::default(),
            told,
            heartbeat: Duration::from_millis(options.timing.heartbeat_ms),
            _timers: Arc::new(timers),
            handovers: Arc::default(),
            first_batch: Arc::default(),
        })
    }

    pub fn id(&self) -> GroupId {
        self.id
    }

    /// Begins to vote and to stand for election, once that is safe:
    /// - A member that took part before waits an election timeout: it may have granted a lease
    ///   right before it stopped, and has forgotten it.
    /// - A new one first makes every other voter remember it.
    /// - A member whose folder was wiped never votes again: it has forgotten its votes, and
    ///   acknowledged entries that its quorum counted on. It goes on as a copy, once it knows that
    ///   it voted in no later term than that of its leader.
    /// - One that left the group and is back has acknowledged entries that it has deleted since: it
    ///   waits until its log is as long as it was. So does one whose disk lost the end of its log.
    ///
    /// `voters` are those of the group, or those to be: a node that is about to become a voter asks
    /// them too. Serve the group's calls before this is called. May be dropped at any await and
    /// called again.
    ///
    /// `vouched`: somebody who would know has said that this node's folder is its first. Then a new
    /// member does not wait for voters that are away.
    pub async fn take_part(
        &self,
        voters: &BTreeSet<u64>,
        peers: &Arc<dyn Peers>,
        vouched: bool,
    ) -> Result<(), StorageError> {
        let engine = self.state.engine();
        let standing = match membership::standing(engine, self.id)? {
            // Also with a log: a wiped member may have got one from the leader since.
            Standing::New => {
                membership::join(engine, self.id, self.node_id, voters, peers, vouched, &self.votes)
                    .await?
            }
            known => known,
        };
        if standing == Standing::Voteless {
            tracing::warn!(group = %self.id, "this voter's folder was wiped: it is a copy that does not vote");
            self.votes.settle(VoteGate::Never);
            return Ok(());
        }
        self.reach_what_it_left().await?;
        self.votes.settle(VoteGate::OpensAt(self.quiet_until));
        tokio::time::sleep_until(self.quiet_until.into()).await;
        Ok(())
    }

    /// Has every one of `voters` remember this member; or, if it has no vote, asks them from which
    /// term on it may follow a leader. To be called when it takes part; may be dropped at any
    /// await.
    pub async fn announce(
        &self,
        voters: &BTreeSet<u64>,
        peers: &Arc<dyn Peers>,
    ) -> Result<(), StorageError> {
        let (engine, id, node_id) = (self.state.engine(), self.id, self.node_id);
        if membership::standing(engine, id)? == Standing::Voteless {
            self.votes
                .follow_from(membership::follows_from(engine, id, node_id, voters, peers).await?);
            return Ok(());
        }
        membership::announce(engine, id, node_id, voters, peers).await
    }

    async fn reach_what_it_left(&self) -> Result<(), StorageError> {
        let log = GroupLog::open(Arc::clone(self.state.engine()), self.id, RecordKind::Entry)?;
        let left = LogStore::left(&log)?;
        while LogStore::last_log_id(&log)? < left {
            self.votes.settle(VoteGate::Behind);
            tokio::time::sleep(CANDIDACY_PAUSE).await;
        }
        Ok(())
    }

    /// Stands for election without waiting for an election timeout, again and again until it knows
    /// a leader, or does not vote. For the first leader of an epoch: the others are well, and wait
    /// for it. Where there is a leader with a lease, its followers refuse, and nothing changes. May
    /// be dropped at any await.
    pub async fn elect_now(&self) {
        loop {
            match self.may_vote(false) {
                Err(NoVote::Wiped | NoVote::Sealed | NoVote::MayHaveForgotten(_)) => return,
                Err(NoVote::Undecided | NoVote::JustStarted | NoVote::Behind) => {}
                // Not while it is a candidate: that would be a second candidacy, in the next term.
                Ok(()) if self.status().role == Role::Candidate => {}
                Ok(()) => {
                    if self.raft.trigger().elect(true).await.is_err() {
                        return;
                    }
                }
            }
            tokio::time::sleep(CANDIDACY_PAUSE).await;
            if self.status().leader.is_some() {
                return;
            }
        }
    }

    /// From now on, and until the group is opened again, this member grants no vote (not even for a
    /// transfer), counts none for itself, and does not stand for election. It goes on following a
    /// leader, or leading: what was begun can be finished.
    pub fn seal(&self) {
        self.votes.seal();
    }

    /// The newest term that this member has given a vote in, or has followed. Asked after
    /// [`RaftGroup::seal`]: it votes in no later one.
    pub async fn term(&self) -> u64 {
        // Raft itself is asked, since what it publishes trails: a vote may be out that is not in
        // there yet.
        match self.raft.with_raft_state(|state| state.vote_ref().leader_id.term).await {
            Ok(term) => term,
            Err(_) => self.status().term,
        }
    }

    /// Whether this member may lead, now or soon.
    pub fn votes(&self) -> bool {
        self.may_vote(true).is_ok()
    }

    /// Whether a vote of this member may be counted now.
    pub(crate) fn may_vote(&self, leadership_transfer: bool) -> Result<(), NoVote> {
        self.votes.check(leadership_transfer)
    }

    /// Whether what the leader of `term` sends may be taken and acknowledged here.
    ///
    /// A leader counts an acknowledgement for a commit, and for its lease, as the word of a member
    /// that has voted in no later term. One that was wiped after it voted for another would let
    /// both lead, and commit. What it acknowledged before, and lost, does no harm: it gives no
    /// vote, or none before its log is as long as it was, so every later leader is elected by
    /// others that hold what was committed. A log that is merely shorter ([`VoteGate::Behind`])
    /// comes with all its votes, and has to be filled again: what it acknowledges, it holds.
    pub(crate) fn may_follow(&self, term: u64) -> Result<(), NoVote> {
        self.votes.may_follow(term)
    }

    /// Whether this member may tell a leader that it knows of no later one. Its word is only good
    /// with all its votes: not while it does not know whether it has them, nor while its log is
    /// behind what it held, as it says itself or others remember: with a folder that was set back,
    /// votes are gone as well. `said` is what the leader remembers of this member: the question may
    /// be the first that it hears since it was set back.
    pub(crate) fn may_confirm(&self, said: Option<log::LogId>) -> Result<(), NotCounted> {
        self.votes.may_confirm()?;
        let last = self.log.last()?;
        Ok(self.members.check(self.node_id, last.as_ref(), said)?)
    }

    pub(crate) fn members(&self) -> &Arc<MemberMarks> {
        &self.members
    }

    /// Whether the candidate's log, and this member's, hold what they are known to have held.
    pub(crate) fn check_members(
        &self,
        candidate: &VoteRequest<TypeConfig>,
        remembered: Option<log::LogId>,
    ) -> Result<(), NotCounted> {
        let from = candidate.vote.leader_id.voted_for;
        self.members.check(from, candidate.last_log_id.as_ref(), None)?;
        let last = self.log.last()?;
        Ok(self.members.check(self.node_id, last.as_ref(), remembered)?)
    }

    /// Waits until what was committed before this process started is applied again, at most
    /// `within`; false if that was too short, as it is while no quorum can be reached.
    pub async fn recovered(&self, within: Duration) -> bool {
        self.raft.wait_for_recovery(Some(within)).await.is_ok()
    }

    pub fn state(&self) -> Arc<ShardState> {
        Arc::clone(&self.state)
    }

    /// A leader, or a candidate that this member votes for, was heard just now.
    pub(crate) fn contact(&self) -> &Contact {
        &self.contact
    }

    pub(crate) fn raft(&self) -> &MeridianRaft {
        &self.raft
    }

    /// What was applied last, as it changes.
    pub fn applied(&self) -> watch::Receiver<AppliedMark> {
        self.applied.clone()
    }

    /// Appends the batch of this sequence if this node still leads in `term`; else it is not
    /// appended. Returns when it is in this node's log. It must be called for one batch at a time.
    ///
    /// openraft may refuse one write and take the next in the same term (while its lease has run
    /// out for a moment, or during a leadership transfer that fails). Would the next batch be sent
    /// before this one is in the log, sequences could have a gap.
    ///
    /// A batch of more than [`MAX_BATCH_BYTES`] is not appended.
    pub async fn propose(
        &self,
        batch: Bytes,
        sequence: u64,
        term: u64,
    ) -> Result<Proposal, ProposalFailure> {
        if batch.len() > MAX_BATCH_BYTES {
            return Err(ProposalFailure::TooLarge { bytes: batch.len() });
        }
        let (responder, mut receiver) =
            OneshotResponder::<TypeConfig, ClientWriteResult<TypeConfig>>::new_pair();
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
            // One batch at a time: no other can be the newest.
            _ = appended.wait_for(|newest| *newest == (term, sequence)) => {
                Ok(Proposal { state: ProposalState::InFlight(receiver) })
            }
        }
    }

    /// Flushes the state, and purges the log up to the batch at `sequence`, or as far as was
    /// flushed.
    pub async fn purge_through(&self, sequence: u64) -> Result<(), StorageError> {
        // Here, and not only when openraft builds a snapshot: after a restart it takes the state
        // that was applied again for one that was flushed.
        let state = self.state();
        let flushed = tokio::task::spawn_blocking(move || state.flush());
        let flushed = flushed.await.map_err(StorageError::cancelled)??;
        let flushed = self.machine.own(flushed.raft).log_id;
        let (Some(index), Some(flushed)) = (self.index_of(sequence)?, flushed) else {
            return Ok(());
        };
        let index = index.min(flushed.index);
        self.raft.trigger().snapshot().await.map_err(|error| self.raft_stopped(error))?;
        let wait = self.raft.wait(Some(Duration::from_secs(60)));
        let built = wait.metrics(
            move |metrics| {
                metrics.snapshot.as_ref().is_some_and(|snapshot| snapshot.index >= index)
            },
            "state flushed",
        );
        built.await.map_err(StorageError::cancelled)?;
        self.machine.purged(index);
        self.raft.trigger().purge_log(index).await.map_err(|error| self.raft_stopped(error))
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

    /// Resolves when Raft has stopped by itself: a storage error. The process should stop.
    pub async fn stopped(&self) -> String {
        // Closed when Raft has stopped, and seldom changed before that.
        let mut server = self.raft.server_metrics();
        while server.changed().await.is_ok() {}
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
        // A task of its own: whoever seals a voter may be a call that is cancelled, and openraft
        // panics where the first who waits for its end goes away (`RaftCore should have already
        // quit`).
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
