//! Whether this node still leads, by a majority's answers to a question of its own.
//!
//! openraft's ReadIndex takes other answers for it, also such to what was sent before a read began
//! ([ADR 9](../../../../docs/adr/0009-what-openraft-confirms.md)). Here a voter is asked after the
//! read began, by a call of its own, and nothing but the answer to that very call counts: whatever
//! clocks do, and whatever waits in whose sockets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_types::NodeId;
use openraft::ServerState;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse};

use super::{NotLeading, RaftGroup};
use crate::network::RECONNECT_PAUSE;
use crate::type_config::{TypeConfig, Vote};
use crate::wire;

/// The settings of reads at a leader.
#[derive(Clone)]
pub(super) struct ReadIndex {
    /// The highest index that this node, leading, has advertised to another member as committed.
    pub(super) advertised: Arc<AtomicU64>,
    /// How long a quorum may take to say that this node still leads.
    pub(super) timeout: Duration,
}

/// A leader's vote at the start of a read, for a majority to confirm, and its commit index.
struct Claim {
    vote: Vote,
    /// One set, or two while they are being changed: a majority of each is needed.
    voters: Vec<BTreeSet<NodeId>>,
    committed: u64,
}

impl Claim {
    fn term(&self) -> u64 {
        self.vote.leader_id.term
    }

    fn is_confirmed_by(&self, confirmed: &BTreeSet<NodeId>) -> bool {
        self.voters.iter().all(|voters| voters.intersection(confirmed).count() * 2 > voters.len())
    }
}

impl RaftGroup {
    /// Asks a quorum whether this node still leads. On success everything is applied here that was
    /// acknowledged before the call, and all that another member was told to be committed.
    pub async fn read_index(&self) -> Result<(), NotLeading> {
        let confirmed = async {
            let claim = self.claim().await?;
            tokio::select! {
                confirmed = self.is_confirmed(&claim) => confirmed,
                () = self.leadership_changed(Some(claim.term())) => false,
            }
            .then_some(())
            .ok_or_else(|| self.leadership().err().unwrap_or(NotLeading { leader: None }))
        };
        // A leader that is cut off would wait for ever.
        let confirmed = tokio::time::timeout(self.read_index.timeout, confirmed).await;
        confirmed.unwrap_or(Err(NotLeading { leader: None }))
    }

    /// Raft itself is asked, since what it publishes trails: the vote is this node's own word that
    /// it has not given it to another yet.
    async fn claim(&self) -> Result<Claim, NotLeading> {
        let node_id = self.node_id;
        let claim = self.raft.with_raft_state(move |state| {
            let vote = *state.vote_ref();
            let leads = state.server_state == ServerState::Leader
                && vote.committed
                && vote.leader_id.voted_for == node_id;
            let membership = state.membership_state.effective().membership();
            let committed = state.cluster_committed().max(state.local_committed());
            let committed = committed.map_or(0, |log_id| log_id.index);
            let voters = membership.get_joint_config().clone();
            // openraft itself hands over what a leader led that was removed.
            let stays = voters.iter().any(|voters| voters.contains(&node_id));
            (leads && stays).then_some(Claim { vote, voters, committed })
        });
        match claim.await {
            // openraft never takes a handover back within its term. Where it fails, another stands
            // for election once this node is not heard any more: a question would keep that from
            // ever coming about.
            Ok(Some(claim)) if !self.lease.handovers.leave_lease_in(claim.term()) => {
                Err(NotLeading { leader: None })
            }
            Ok(Some(claim)) => Ok(claim),
            Ok(None) => Err(self.leadership().err().unwrap_or(NotLeading { leader: None })),
            Err(_) => Err(NotLeading { leader: None }),
        }
    }

    async fn is_confirmed(&self, claim: &Claim) -> bool {
        let mut confirmed = BTreeSet::from([self.node_id]);
        let others: BTreeSet<NodeId> =
            claim.voters.iter().flatten().copied().filter(|id| *id != self.node_id).collect();
        let mut answers: FuturesUnordered<_> =
            others.into_iter().map(|voter| self.follows(voter, claim.vote)).collect();
        while !claim.is_confirmed_by(&confirmed) {
            match answers.next().await {
                Some(Some(voter)) => drop(confirmed.insert(voter)),
                Some(None) => {}
                None => return false,
            }
        }
        // Before an entry of this term is applied, the state may lack what an earlier leader
        // acknowledged.
        self.has_applied(claim.committed, claim.term()).await
    }

    /// The voter, if it follows this leader now; `None` if it has seen a later one, or a candidate.
    /// It is asked until it answers.
    async fn follows(&self, voter: NodeId, vote: Vote) -> Option<NodeId> {
        loop {
            match self.append_nothing(voter, vote).await {
                Some(AppendEntriesResponse::HigherVote(_)) => return None,
                // Also where logs do not match: that is about the log, not about the leader.
                Some(_) => return Some(voter),
                None => tokio::time::sleep(RECONNECT_PAUSE).await,
            }
        }
    }

    /// A heartbeat that leaves the voter's log and what it knows of commits as they are. It says
    /// what is remembered of the voter: one whose log is behind that has been set back, and its
    /// votes with it.
    async fn append_nothing(
        &self,
        voter: NodeId,
        vote: Vote,
    ) -> Option<AppendEntriesResponse<TypeConfig>> {
        let nothing = AppendEntriesRequest {
            vote,
            prev_log_id: None,
            entries: Vec::new(),
            leader_commit: None,
        };
        let (shard, epoch) = (self.id.shard.0, self.id.epoch.0.into());
        let target = raft::Group { shard, epoch, target: voter.0 };
        let mut client = RaftClient::new(self.peers.channel(voter)?);
        let remembered = self.member.marks.remembered(voter);
        let members =
            remembered.map(|log_id| raft::MemberMark { node_id: voter.0, log_id: Some(log_id) });
        let question = wire::append_request_to_wire(target, &nothing);
        let question = raft::AppendRequest { members: members.into_iter().collect(), ..question };
        let response = client.append(question).await.ok()?;
        wire::append_response(response.into_inner()).ok()
    }

    /// Waits until everything is applied here that this node, leading, has advertised to others as
    /// committed: they apply it as soon as they hear of it, which may be before this node does, and
    /// show it. False if that takes too long, as it does when the group is shut down.
    pub async fn has_applied_what_it_advertised(&self) -> bool {
        self.has_applied(self.read_index.advertised.load(Ordering::SeqCst), 0).await
    }

    /// Waits until the entry at `index`, and one of `term` or a later one, are applied here; false
    /// if that takes too long.
    pub(super) async fn has_applied(&self, index: u64, term: u64) -> bool {
        let is_applied = || self.machine.last_applied().map_or(0, |applied| applied.index) >= index;
        let mut applied = self.applied();
        let reached = applied.wait_for(|newest| newest.term >= term && is_applied());
        matches!(tokio::time::timeout(self.read_index.timeout, reached).await, Ok(Ok(_)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_majority_of_the_voters_before_and_after_a_change_confirms() {
        let set = |nodes: &[u64]| nodes.iter().copied().map(NodeId).collect();
        let claim = |voters: &[&[u64]]| Claim {
            vote: Vote::new_committed(3, NodeId(1)),
            voters: voters.iter().map(|voters| set(voters)).collect(),
            committed: 0,
        };
        let is_confirmed = |voters, by| claim(voters).is_confirmed_by(&set(by));
        assert!(is_confirmed(&[&[1]], &[1]));
        assert!(is_confirmed(&[&[1, 2, 3]], &[1, 3]));
        assert!(!is_confirmed(&[&[1, 2, 3]], &[1]));
        assert!(!is_confirmed(&[&[1, 2]], &[1]));
        assert!(!is_confirmed(&[&[1, 2, 3, 4, 5]], &[1, 5]));
        assert!(is_confirmed(&[&[1, 2, 3, 4, 5]], &[1, 4, 5]));
        assert!(!is_confirmed(&[&[1, 2, 3, 4]], &[1, 2]));
        // The leader is none of them.
        assert!(!is_confirmed(&[&[2, 3, 4]], &[1, 2]));
        assert!(is_confirmed(&[&[2, 3, 4]], &[1, 2, 4]));
        assert!(!is_confirmed(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 3]));
        assert!(is_confirmed(&[&[1, 2, 3], &[3, 4, 5]], &[1, 3, 5]));
    }
}
