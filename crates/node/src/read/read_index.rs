//! The read index: how far a state must be applied before a strong read may be served from it.
//!
//! The leader's [`ReadGate`] gives it once leadership is confirmed; another voter fetches it by a
//! [`LeaderIndex`], over the RPC `ReadPosition`.

use std::sync::Arc;
use std::time::Instant;

use meridian_consensus::{NotLeading, RaftGroup};
use meridian_proto::node_id;
use meridian_proto::shard::{self as wire, read_position_response, shard_client::ShardClient};
use meridian_types::NodeId;

use crate::network::peers::PeerChannels;
use crate::read::refusal::{NotServed, ReadRefusal};
use crate::read::shared_call::SharedCall;
use crate::time_budget::READ_INDEX_TIMEOUT;

/// The position that must be applied before a strong read is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadIndex {
    pub(crate) sequence: u64,
}

/// Says whether this node leads a group, for reads: by its lease, or else by asking a quorum, once
/// for all that wait.
pub(crate) struct ReadGate {
    quorum: SharedCall<Result<(), NotLeading>>,
}

impl ReadGate {
    pub(crate) fn start(group: RaftGroup) -> Self {
        Self {
            quorum: SharedCall::start(move || {
                let group = group.clone();
                async move { group.read_index().await }
            }),
        }
    }

    /// A gate whose quorum confirms everything.
    #[cfg(test)]
    pub(crate) fn confirmed() -> Self {
        Self { quorum: SharedCall::start(|| async { Ok(()) }) }
    }

    /// On success the state applied here holds every write that was acknowledged before this call,
    /// and all that another voter has shown.
    ///
    /// A lease read also needs an entry of this term applied: before, the state may lack what an
    /// earlier leader acknowledged; and all that the other voters were told to be committed, since
    /// they may apply it sooner than the leader. The lease is looked at after the call began, so
    /// even a node that is stopped right after and wakes much later returns what was the newest
    /// state at some time during the call. The term in which that was so.
    pub(crate) async fn confirm(&self, group: &RaftGroup) -> Result<u64, NotLeading> {
        let leadership = group.leadership()?;
        let applied_term = group.applied().borrow().term;
        if applied_term == leadership.term
            && leadership.lease_until.is_some_and(|until| Instant::now() < until)
        {
            let applied = group.has_applied_what_it_advertised().await;
            return if applied { Ok(leadership.term) } else { Err(NotLeading { leader: None }) };
        }
        self.quorum.join().await.unwrap_or(Err(NotLeading { leader: None }))?;
        match group.leadership()? {
            // Another term began meanwhile: it is unknown which one the quorum confirmed.
            other if other.term != leadership.term => Err(NotLeading { leader: None }),
            same => Ok(same.term),
        }
    }

    /// The index of a strong read that begins now. Only a leader knows.
    pub(crate) async fn index(&self, group: &RaftGroup) -> Result<ReadIndex, NotServed> {
        match self.confirm(group).await {
            // Also what another read may have seen here while it took effect.
            Ok(_) => Ok(ReadIndex { sequence: group.state().max_served() }),
            Err(not_leading) => Err(NotServed::NotLeader(not_leading.leader)),
        }
    }
}

/// Fetches read indexes from the leader, each on behalf of all reads that wait for one.
pub(crate) struct LeaderIndex {
    pub(crate) group: RaftGroup,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) peers: Arc<PeerChannels>,
}

impl LeaderIndex {
    /// Goes on with the next leader where one is lost meanwhile.
    pub(crate) async fn fetch(&self) -> Result<ReadIndex, NotServed> {
        let mut failed = NotServed::NotLeader(None);
        let fetched = async {
            loop {
                let Err(not_leading) = self.group.leadership() else {
                    return self.gate.index(&self.group).await;
                };
                if let Some(leader) = not_leading.leader {
                    tokio::select! {
                        answer = self.call(leader) => match answer {
                            Ok(index) => return Ok(index),
                            Err(not_served) => failed = not_served,
                        },
                        () = self.group.another_leader(Some(leader)) => continue,
                    }
                }
                self.group.leader_in_touch(not_leading.leader).await;
            }
        };
        let fetched = tokio::time::timeout(READ_INDEX_TIMEOUT, fetched).await;
        fetched.unwrap_or(Err(failed))
    }

    async fn call(&self, leader: NodeId) -> Result<ReadIndex, NotServed> {
        let Some(channel) = self.peers.requests(leader) else {
            return Err(NotServed::NotLeader(None));
        };
        let id = self.group.id();
        let group = Some(wire::ShardEpoch { shard: id.shard.0, epoch: id.epoch.0.into() });
        let answer =
            ShardClient::new(channel).read_position(wire::ReadPositionRequest { group }).await;
        let unavailable =
            |reason: &str| NotServed::Refused(ReadRefusal::LeaderDidNotAnswer(reason.to_owned()));
        match answer.map_err(|status| unavailable(status.message()))?.into_inner().result {
            Some(read_position_response::Result::Position(position)) => {
                Ok(ReadIndex { sequence: position.sequence })
            }
            Some(read_position_response::Result::NotLeader(hint)) => {
                Err(NotServed::NotLeader(node_id(hint.leader)))
            }
            Some(read_position_response::Result::Unavailable(reason)) => Err(unavailable(&reason)),
            None => Err(unavailable("an empty answer")),
        }
    }
}
