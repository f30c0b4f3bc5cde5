//! How a member comes to vote, and when its word counts: for a candidate, for a leader that asks,
//! and for itself.
//!
//! Invariant: a member gives no vote, and no acknowledgement, that contradicts an earlier one; also
//! after a restart, after it left the group, and where its folder was wiped or set back. Every
//! method may be dropped at any await.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::log;
use meridian_storage::{GroupLog, RecordKind, StorageError};
use meridian_types::NodeId;
use openraft::raft::VoteRequest;

use super::{Contact, RaftGroup, Role};
use crate::Peers;
use crate::log_store::LogStore;
use crate::member_marks::{MemberMarks, RolledBack};
use crate::membership::{self, VotingStatus};
use crate::type_config::TypeConfig;
use crate::votes::{NoVote, VoteGate, Votes};

/// Between two candidacies of a member that is to lead, and two looks at a log that grows again.
const CANDIDACY_PAUSE: Duration = Duration::from_millis(50);

/// The state that decides whether this member's votes and acknowledgements count.
#[derive(Clone)]
pub(super) struct Member {
    pub(super) votes: Arc<Votes>,
    /// Until then a vote lease that this member granted before it started may hold.
    pub(super) votes_from: Instant,
    pub(super) contact: Contact,
    /// How far each member's log was, as the others remember it.
    pub(super) marks: Arc<MemberMarks>,
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

impl RaftGroup {
    /// Begins to vote and to stand for election, once that is safe:
    /// - A member that took part before waits an election timeout: it may have granted a lease
    ///   right before it stopped, and has forgotten it.
    /// - A new one first makes every other voter remember it.
    /// - A member whose folder was wiped never votes again: it has forgotten its votes, and
    ///   acknowledged entries that its quorum counted on. It goes on as a copy, once it knows that
    ///   it voted in no later term than that of its leader.
    /// - A member that left the group and is back has acknowledged entries that it has deleted
    ///   since: it waits until its log is as long as it was. So does a member whose disk lost the
    ///   end of its log.
    ///
    /// `voters` are those of the group, or those to be: a node that is about to become a voter asks
    /// them too. Serve the group's calls before this is called. May be dropped at any await and
    /// called again.
    ///
    /// `vouched`: the directory has said that this node's folder is its first. Then a new member
    /// does not wait for voters that are away.
    pub async fn take_part(
        &self,
        voters: &BTreeSet<NodeId>,
        peers: &Arc<dyn Peers>,
        vouched: bool,
    ) -> Result<(), StorageError> {
        let engine = self.state.engine();
        let status = match membership::voting_status(engine, self.id)? {
            // Also with a log: a wiped member may have got one from the leader since.
            VotingStatus::New => {
                membership::join(
                    engine,
                    self.id,
                    self.node_id,
                    voters,
                    peers,
                    vouched,
                    &self.member.votes,
                )
                .await?
            }
            known => known,
        };
        if status == VotingStatus::NonVoting {
            tracing::warn!(group = %self.id, "this voter's folder was wiped: it is a copy that does not vote");
            self.member.votes.set_gate(VoteGate::Never);
            return Ok(());
        }
        self.reach_what_it_left().await?;
        self.member.votes.set_gate(VoteGate::OpensAt(self.member.votes_from));
        tokio::time::sleep_until(self.member.votes_from.into()).await;
        Ok(())
    }

    /// Has every one of `voters` remember this member; or, if it has no vote, asks them from which
    /// term on it may follow a leader. To be called when it takes part; may be dropped at any
    /// await.
    pub async fn announce(
        &self,
        voters: &BTreeSet<NodeId>,
        peers: &Arc<dyn Peers>,
    ) -> Result<(), StorageError> {
        let (engine, id, node_id) = (self.state.engine(), self.id, self.node_id);
        if membership::voting_status(engine, id)? == VotingStatus::NonVoting {
            self.member
                .votes
                .follow_from(membership::follows_from(engine, id, node_id, voters, peers).await?);
            return Ok(());
        }
        membership::announce(engine, id, node_id, voters, peers).await
    }

    async fn reach_what_it_left(&self) -> Result<(), StorageError> {
        let log = GroupLog::open(Arc::clone(self.state.engine()), self.id, RecordKind::Entry)?;
        let left = LogStore::left(&log)?;
        while LogStore::last_log_id(&log)? < left {
            self.member.votes.set_gate(VoteGate::Behind);
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
        self.member.votes.seal();
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
        self.member.votes.check(leadership_transfer)
    }

    /// Whether what the leader of `term` sends may be taken and acknowledged here.
    ///
    /// A leader counts an acknowledgement for a commit, and for its lease, as the word of a member
    /// that has voted in no later term. A member that was wiped after it voted for another would
    /// let both lead, and commit. Acknowledgements of entries that it lost do no harm: it gives no
    /// vote, or none before its log is as long as it was, so every later leader is elected by
    /// others that hold what was committed. A log that is merely shorter ([`VoteGate::Behind`])
    /// comes with all its votes, and has to be filled again: it holds what it acknowledges.
    pub(crate) fn may_follow(&self, term: u64) -> Result<(), NoVote> {
        self.member.votes.may_follow(term)
    }

    /// Whether this member may tell a leader that it knows of no later one. Its word is only good
    /// with all its votes: not while it does not know whether it has them, nor while its log is
    /// behind what it held, as it says itself or others remember: with a folder that was set back,
    /// votes are gone as well. `said` is what the leader remembers of this member: the question may
    /// be the first that it hears since it was set back.
    pub(crate) fn may_confirm(&self, said: Option<log::LogId>) -> Result<(), NotCounted> {
        self.member.votes.may_confirm()?;
        let last = self.log.last()?;
        Ok(self.member.marks.check(self.node_id, last.as_ref(), said)?)
    }

    pub(crate) fn marks(&self) -> &Arc<MemberMarks> {
        &self.member.marks
    }

    /// Whether the candidate's log, and this member's, hold what they are known to have held.
    pub(crate) fn check_members(
        &self,
        candidate: &VoteRequest<TypeConfig>,
        remembered: Option<log::LogId>,
    ) -> Result<(), NotCounted> {
        let from = candidate.vote.leader_id.voted_for;
        self.member.marks.check(from, candidate.last_log_id.as_ref(), None)?;
        let last = self.log.last()?;
        Ok(self.member.marks.check(self.node_id, last.as_ref(), remembered)?)
    }

    /// A leader, or a candidate that this member votes for, was heard just now.
    pub(crate) fn contact(&self) -> &Contact {
        &self.member.contact
    }
}
