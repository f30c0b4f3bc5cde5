//! Which node leads, as far as this one knows, and whether its read lease holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_types::NodeId;
use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};

use super::RaftGroup;
use super::handover::Handovers;
use crate::lease_trust::LeaseTrust;
use crate::type_config::TypeConfig;

type TokioInstant = openraft::alias::InstantOf<TypeConfig>;

/// That this node leads in a term, as far as it knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leadership {
    pub term: u64,
    /// Until then no other node can lead, whatever happens; `None` before a first quorum has
    /// answered. It is counted on the monotonic clock, from when the heartbeats were sent that the
    /// quorum answered.
    pub lease_until: Option<Instant>,
    /// As `lease_until`, also where that is not to be trusted: that a quorum has answered of late. A
    /// leader that is its only voter has always been answered.
    pub answered_until: Option<Instant>,
}

/// This node does not lead; `leader` does, if known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not the leader")]
pub struct NotLeading {
    pub leader: Option<NodeId>,
}

/// The read lease of a leader: how long it is, and whether anything speaks against it.
#[derive(Clone)]
pub(super) struct ReadLease {
    pub(super) length: Duration,
    pub(super) trust: Arc<LeaseTrust>,
    pub(super) handovers: Arc<Handovers>,
}

/// This node's leadership, as openraft publishes it at one moment.
struct Led {
    term: u64,
    /// It votes: openraft itself hands over what a leader led that was removed.
    stays: bool,
    /// It is the only voter.
    is_alone: bool,
}

impl RaftGroup {
    /// Whether this node leads, from what it knows without asking another member.
    pub fn leadership(&self) -> Result<Leadership, NotLeading> {
        let term = self.led()?.term;
        // openraft writes what a quorum has answered before it writes the leader, so that it is no
        // older here than the term.
        let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
        let now = self.led()?;
        if now.term != term {
            // Nor is it of a later term.
            return Err(NotLeading { leader: None });
        }
        let until = |acked| {
            Instant::now().checked_sub(TokioInstant::now() - acked).map(|at| at + self.lease.length)
        };
        // After what a quorum has answered was looked at.
        let trusted =
            now.stays && self.lease.handovers.leave_lease_in(term) && self.lease.trust.holds();
        let acked_until = acked.map(|acked| acked.into_inner()).and_then(until);
        // openraft writes when a voter acknowledged to itself only where it has something to do.
        let answered_until =
            if now.is_alone { Some(Instant::now() + self.lease.length) } else { acked_until };
        Ok(Leadership { term, lease_until: acked_until.filter(|_| trusted), answered_until })
    }

    fn led(&self) -> Result<Led, NotLeading> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let vote = &metrics.vote;
        // The channel of server metrics is left as it was where Raft stops; that of all metrics
        // says so.
        let leads = self.raft.metrics().borrow_watched().running_state.is_ok()
            && metrics.state == ServerState::Leader
            // A leader that was restarted or removed leads no more, whatever the vote says that it
            // saved.
            && vote.committed
            && vote.leader_id.voted_for == self.node_id;
        if !leads {
            return Err(NotLeading {
                leader: metrics.current_leader.filter(|leader| *leader != self.node_id),
            });
        }
        let voters = metrics.membership_config.membership().get_joint_config();
        Ok(Led {
            term: vote.leader_id.term,
            stays: voters.iter().any(|voters| voters.contains(&self.node_id)),
            is_alone: voters.iter().all(|voters| voters.iter().eq([&self.node_id])),
        })
    }

    fn led_term(&self) -> Result<u64, NotLeading> {
        Ok(self.led()?.term)
    }

    /// Waits until [`RaftGroup::leadership`] may name another leader. Not until a lease is renewed.
    pub async fn leadership_changed(&self, known: Option<u64>) {
        // The very channel that the term is read from: another may wake before it is written. It
        // changes seldom; that of all metrics does with every message.
        let mut metrics = self.raft.server_metrics();
        loop {
            if self.led_term().ok() != known {
                return;
            }
            if metrics.changed().await.is_err() && self.led_term().ok() == known {
                // Raft has stopped; nothing changes any more.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Waits until this node leads, or knows a leader other than `than`.
    pub async fn another_leader(&self, than: Option<NodeId>) {
        self.leader_that(|leader| leader != than).await;
    }

    /// Waits until this node leads or has a live leader: one other than `suspect`, or `suspect`
    /// itself if a heartbeat arrived after this call.
    pub async fn leader_in_touch(&self, suspect: Option<NodeId>) {
        let asked = Instant::now();
        self.leader_that(|leader| leader != suspect || self.member.contact.is_since(asked)).await;
    }

    async fn leader_that(&self, wanted: impl Fn(Option<NodeId>) -> bool) {
        let mut metrics = self.raft.server_metrics();
        loop {
            match self.led_term() {
                Err(NotLeading { leader }) if leader.is_none() || !wanted(leader) => {}
                _ => return,
            }
            // A heartbeat is no change.
            if let Ok(Err(_)) = tokio::time::timeout(self.heartbeat, metrics.changed()).await {
                // Raft has stopped; nothing changes any more.
                std::future::pending::<()>().await;
            }
        }
    }
}
