//! Opening a member: from what its disk holds to a Raft that runs.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use meridian_storage::{GroupId, GroupLog, RecordKind, StorageError};
use openraft::Raft;

use super::leadership::ReadLease;
use super::member::Member;
use super::{Contact, RaftGroup, RaftGroupOptions, ReadIndex, Timers, raft_stopped};
use crate::config::openraft_config;
use crate::lease_trust::LeaseTrust;
use crate::log_store::LogStore;
use crate::member_marks::MemberMarks;
use crate::membership::{self, VotingStatus};
use crate::network::NetworkFactory;
use crate::state_machine::StateMachine;
use crate::votes::Votes;

impl RaftGroup {
    /// Opens the member from what its disk holds, and starts. Entries that were committed and not
    /// flushed are applied again by and by, see [`RaftGroup::recovered`]. It neither votes nor
    /// leads before [`RaftGroup::take_part`].
    ///
    /// A node that did not form the group, and is not in it, waits for a leader that has it as a
    /// member. Its state is replaced by the leader's, even if it went further in an earlier epoch.
    ///
    /// # Errors
    /// When storage fails.
    pub async fn open(options: RaftGroupOptions) -> Result<Self, StorageError> {
        let (id, node_id, timing) = (options.group, options.node_id, options.timing);
        let config = openraft_config(timing, id.to_string())
            .map_err(|error| StorageError::Invalid(error.to_string()))?;
        let log = open_log(&options).await?;
        let machine = StateMachine::new(Arc::clone(&options.state), id);
        check_connected(id, &log, &machine)?;
        let member = member(&options, &log, &machine)?;
        let lease = read_lease(timing.election_timeout_max());
        let read_index =
            ReadIndex { advertised: Arc::new(AtomicU64::new(0)), timeout: timing.answer_timeout() };
        let network = NetworkFactory {
            node_id,
            group: id,
            peers: Arc::clone(&options.peers),
            transfer: options.transfer,
            votes: Arc::clone(&member.votes),
            append_timeout: timing.answer_timeout(),
            advertised: Arc::clone(&read_index.advertised),
            lease_trust: Arc::clone(&lease.trust),
            marks: Arc::clone(&member.marks),
        };
        let applied = machine.applied();
        let raft = Raft::new(node_id, Arc::new(config), network, log.clone(), machine.clone());
        let raft = raft.await.map_err(|error| raft_stopped(id, error))?;
        let timers = Timers::start(
            raft.clone(),
            node_id,
            member.contact.clone(),
            Arc::clone(&member.votes),
            timing,
        );
        Ok(Self {
            id,
            node_id,
            raft,
            log,
            state: options.state,
            machine,
            peers: options.peers,
            applied,
            member,
            lease,
            read_index,
            changes: Arc::default(),
            first_batch: Arc::default(),
            heartbeat: Duration::from_millis(timing.heartbeat_ms),
            _timers: Arc::new(timers),
        })
    }
}

/// Reads all of the log that is not known to be whole, off the runtime.
async fn open_log(options: &RaftGroupOptions) -> Result<LogStore, StorageError> {
    let (engine, syncer) = (Arc::clone(options.state.engine()), Arc::clone(&options.syncer));
    let (id, high_water) = (options.group, options.high_water.clone());
    let log_cache = options.log_cache.clone();
    let opened = tokio::task::spawn_blocking(move || {
        let log = GroupLog::open(engine, id, RecordKind::Entry)?;
        LogStore::open(log, syncer, high_water, &log_cache)
    });
    opened.await.map_err(StorageError::cancelled)?
}

/// A log that begins behind what the state has of the group cannot be applied to it.
fn check_connected(
    id: GroupId,
    log: &LogStore,
    machine: &StateMachine,
) -> Result<(), StorageError> {
    let reached = machine.last_applied().map(|applied| applied.index);
    match log.purged()? {
        Some(purged) if reached.is_none_or(|index| index < purged.index) => {
            Err(StorageError::Invalid(format!(
                "the log of {id} begins behind index {}, and the state has nothing of it: \
                 something else has written the state since",
                purged.index
            )))
        }
        _ => Ok(()),
    }
}

/// With its votes kept in, as far as its disk says that they may be wrong.
fn member(
    options: &RaftGroupOptions,
    log: &LogStore,
    machine: &StateMachine,
) -> Result<Member, StorageError> {
    let (id, engine) = (options.group, options.state.engine());
    let applied_term =
        machine.own(options.state.applied().raft).log_id.map_or(0, |applied| applied.term);
    let mut status = membership::voting_status(engine, id)?;
    if status != VotingStatus::NonVoting && log.has_lost_votes(applied_term)? {
        tracing::error!(group = %id, "the votes that this member gave are gone from its disk: it votes no more, replace it");
        membership::resign(engine, id)?;
        status = VotingStatus::NonVoting;
    }
    // Before it first granted a vote, or followed a leader, it saved that.
    let granted = log.has_vote()?;
    let quiet = if granted { options.timing.election_timeout_max() } else { Duration::ZERO };
    let votes = Arc::new(Votes::default());
    if status == VotingStatus::Member {
        votes.follow_from(0);
    }
    let marks = MemberMarks::new(id, options.node_id, options.high_water.clone());
    Ok(Member {
        votes,
        votes_from: Instant::now() + quiet,
        contact: Contact::default(),
        marks: Arc::new(marks),
    })
}

/// Half of what followers grant; what may be wrong with it, and clocks that drift, take less than
/// the rest.
fn read_lease(election_timeout: Duration) -> ReadLease {
    let length = election_timeout / 2;
    let trust = Arc::new(LeaseTrust::new(election_timeout, length));
    ReadLease { length, trust, handovers: Arc::default() }
}
