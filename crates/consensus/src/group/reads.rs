//! Who leads, and what a read at the leader needs.

use std::sync::atomic::Ordering;
use std::time::Instant;

use openraft::async_runtime::WatchReceiver;
use openraft::{Instant as _, ServerState};

use super::{Leadership, NotLeading, RaftGroup, TokioInstant};

/// What this node leads, as openraft says at one moment.
struct Led {
    term: u64,
    /// It votes: openraft itself hands over what a leader led that was removed.
    stays: bool,
}

impl RaftGroup {
    /// Whether this node leads, from what it knows without asking anybody.
    pub fn leadership(&self) -> Result<Leadership, NotLeading> {
        let term = self.led()?.term;
        // openraft writes what a quorum has answered before who leads, so that it is no older here
        // than the term.
        let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
        let now = self.led()?;
        if now.term != term {
            // Nor is it of a later term.
            return Err(NotLeading { leader: None });
        }
        let until = |acked| {
            Instant::now().checked_sub(TokioInstant::now() - acked).map(|at| at + self.lease)
        };
        // After what a quorum has answered was looked at.
        let trusted = now.stays && self.handovers.leave_lease_in(term) && self.lease_trust.holds();
        let answered_until = acked.map(|acked| acked.into_inner()).and_then(until);
        Ok(Leadership { term, lease_until: answered_until.filter(|_| trusted), answered_until })
    }

    fn led(&self) -> Result<Led, NotLeading> {
        let metrics = self.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let vote = &metrics.vote;
        // The channel of who leads is left as it was where Raft stops; that of all says so.
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
        })
    }

    fn led_term(&self) -> Result<u64, NotLeading> {
        Ok(self.led()?.term)
    }

    /// Waits until [`RaftGroup::leadership`] may answer otherwise about who leads. Not until a
    /// lease is renewed.
    pub async fn leadership_changed(&self, known: Option<u64>) {
        // The very channel that the term is read from: another may wake before that one is written.
        // And one that changes seldom: that of all metrics does with every message.
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
    pub async fn another_leader(&self, than: Option<u64>) {
        self.leader_that(|leader| leader != than).await;
    }

    /// Waits until this node leads, or knows a leader that has been heard since this call, or is
    /// not `late`, of whom nothing is heard elsewhere.
    pub async fn leader_in_touch(&self, late: Option<u64>) {
        let asked = Instant::now();
        self.leader_that(|leader| leader != late || self.contact.is_since(asked)).await;
    }

    async fn leader_that(&self, wanted: impl Fn(Option<u64>) -> bool) {
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

    /// Waits until everything is applied here that this node, leading, has told others to be
    /// committed: they apply it as soon as they hear of it, which may be before this node does, and
    /// show it. False if that takes too long, as it does when the group is shut down.
    pub async fn has_applied_what_it_told(&self) -> bool {
        self.has_applied(self.told.load(Ordering::SeqCst), 0).await
    }

    /// Waits until the entry at `index`, and one of `term` or a later one, are applied here; false
    /// if that takes too long.
    pub(super) async fn has_applied(&self, index: u64, term: u64) -> bool {
        let is_applied = || self.machine.last_applied().map_or(0, |applied| applied.index) >= index;
        let mut applied = self.applied();
        let reached = applied.wait_for(|newest| newest.term >= term && is_applied());
        matches!(tokio::time::timeout(self.read_timeout, reached).await, Ok(Ok(_)))
    }
}
