//! Handing leadership over, and what that does to the lease: the vote that follows ignores leases.

use std::future::Future;

use meridian_types::NodeId;
use parking_lot::Mutex;

use super::RaftGroup;
use crate::type_config::Vote;
use crate::votes::NoVote;

/// Why the leadership was not handed over.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TransferFailure {
    #[error("this member is sealed: the epoch ends")]
    Sealed,
    /// Raft has stopped, or the process ends.
    #[error("{0}")]
    Stopped(String),
}

/// The terms in which this node, leading, may have asked another to take over.
#[derive(Debug, Default)]
pub(super) struct Handovers(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// How many times Raft is being asked. It may come to lead, or to lead in another term, until
    /// it hears that.
    being_asked: usize,
    newest_term: u64,
}

impl Handovers {
    /// Whether every vote respects the lease of a leader in `term`.
    pub(super) fn leave_lease_in(&self, term: u64) -> bool {
        let state = self.0.lock();
        state.being_asked == 0 && state.newest_term < term
    }

    /// `ask` has Raft ask the other; `term` is the newest that this node may have led until after
    /// that. Not to be dropped before it is over: no lease would be trusted any more.
    async fn during<E>(
        &self,
        ask: impl Future<Output = Result<(), E>>,
        term: impl Future<Output = Result<u64, E>>,
    ) -> Result<(), E> {
        self.0.lock().being_asked += 1;
        let asked = ask.await;
        // An error says that Raft has stopped: no lease is needed any more.
        let term = term.await?;
        let mut state = self.0.lock();
        state.newest_term = state.newest_term.max(term);
        state.being_asked -= 1;
        asked
    }
}

/// The newest term that a node with this vote may have led. Where it stands for election, or
/// follows another, Raft hears no wish to hand over, and should the node win that term, its lease
/// is one like any other.
fn newest_led(vote: &Vote, node_id: NodeId) -> u64 {
    let leader = &vote.leader_id;
    let leads = vote.committed && leader.voted_for == node_id;
    if leads { leader.term } else { leader.term.saturating_sub(1) }
}

impl RaftGroup {
    /// Asks `to` to take over the leadership. Returns at once; watch
    /// [`RaftGroup::leadership_changed`]. For the rest of the term this node trusts its lease no
    /// more: the other may lead at any time. Nothing happens where this node does not lead. May be
    /// dropped at any await: it goes on.
    ///
    /// # Errors
    /// When this member is sealed, or Raft has stopped.
    pub async fn transfer_leadership(&self, to: NodeId) -> Result<(), TransferFailure> {
        if self.may_vote(true) == Err(NoVote::Sealed) {
            return Err(TransferFailure::Sealed);
        }
        let group = self.clone();
        let asked = tokio::spawn(async move {
            let trigger = group.raft.trigger();
            // The published metrics of this node trail, so Raft itself is asked for its term: its
            // answer comes after all earlier requests.
            let node_id = group.node_id;
            let term =
                group.raft.with_raft_state(move |state| newest_led(state.vote_ref(), node_id));
            group.lease.handovers.during(trigger.transfer_leader(to), term).await
        });
        let stopped = |reason: &dyn std::fmt::Display| TransferFailure::Stopped(reason.to_string());
        asked.await.map_err(|error| stopped(&error))?.map_err(|error| stopped(&error))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;

    #[tokio::test]
    async fn no_lease_of_the_term_that_was_handed_over_is_trusted_whichever_that_was() {
        let handovers = Handovers::default();
        let term = Cell::new(6);
        let trusts = |term| handovers.leave_lease_in(term);
        assert!(trusts(6));
        let ask = async {
            assert!(!trusts(6));
            // It comes to lead right before it is asked, and has not published that yet.
            term.set(7);
            assert!(!trusts(7));
            Ok::<(), Infallible>(())
        };
        let then = async {
            assert!(!trusts(7) && !trusts(8));
            Ok(term.get())
        };
        handovers.during(ask, then).await.unwrap();
        assert!(!trusts(7));
        assert!(trusts(8));
    }

    #[tokio::test]
    async fn a_term_that_is_won_after_raft_was_asked_in_vain_has_a_lease() {
        for (vote, trusted) in [
            // A candidate of 7, which is published as the leader of 6, or 5; it may win.
            (Vote::new(7, NodeId(1)), [false, true, true]),
            // It voted for another, or follows one.
            (Vote::new(7, NodeId(2)), [false, true, true]),
            (Vote::new_committed(7, NodeId(2)), [false, true, true]),
            (Vote::new_committed(7, NodeId(1)), [false, false, true]),
            (Vote::new(0, NodeId(1)), [true, true, true]),
        ] {
            let handovers = Handovers::default();
            let ask = async { Ok::<(), Infallible>(()) };
            handovers.during(ask, async { Ok(newest_led(&vote, NodeId(1))) }).await.unwrap();
            assert_eq!([6, 7, 8].map(|term| handovers.leave_lease_in(term)), trusted, "{vote}");
        }
    }

    #[tokio::test]
    async fn of_several_handovers_none_ends_the_mistrust_of_another() {
        let handovers = Handovers::default();
        let inner = async {
            handovers.during(async { Ok::<(), Infallible>(()) }, async { Ok(7) }).await.unwrap();
            assert!(!handovers.leave_lease_in(8));
            Ok::<(), Infallible>(())
        };
        handovers.during(inner, async { Ok(6) }).await.unwrap();
        assert!(!handovers.leave_lease_in(7));
        assert!(handovers.leave_lease_in(8));
    }

    #[tokio::test]
    async fn a_transfer_that_raft_does_not_hear_leaves_no_lease() {
        let handovers = Handovers::default();
        handovers.during(async { Err("stopped") }, async { Err("stopped") }).await.unwrap_err();
        assert!(!handovers.leave_lease_in(u64::MAX));
    }
}
