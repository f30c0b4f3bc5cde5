//! How a voter carries out what [`Sealing`] decides when its epoch ends.

use std::collections::VecDeque;

use meridian_placement::{DRAIN_TIMEOUT, SealAction, SealEvent, Sealing, knows_voters};
use meridian_storage::Applied;

use super::Voter;

/// How a voter stands when it was sealed.
pub(crate) struct Sealed {
    pub(crate) applied: Applied,
    /// The Raft term that it will not leave.
    pub(crate) term: u64,
    /// It led in that term, and everything it ever proposed is decided and applied.
    pub(crate) drained_leader: bool,
}

impl Voter {
    /// Serves nothing strong any more, and gives no vote. `planned`: a follower goes on appending,
    /// so that the leader can finish what it has in flight; else the group stops here, and what is
    /// applied is final.
    pub(crate) async fn seal(&self, planned: bool) -> Sealed {
        let (mut sealing, actions) = Sealing::again(planned);
        let (mut actions, mut term, mut drained_in) = (VecDeque::from(actions), 0, None);
        while let Some(action) = actions.pop_front() {
            if let SealAction::Note { drained } = action {
                drained_in = drained;
            }
            let event = self.carry_out(action, &mut term).await;
            actions.extend(event.into_iter().flat_map(|event| sealing.step(event)));
        }
        self.sealed(term, drained_in)
    }

    /// The voter's side of an action. `term`: where the group's final term is put; it is read
    /// before the group stops.
    pub(crate) async fn carry_out(&self, action: SealAction, term: &mut u64) -> Option<SealEvent> {
        match action {
            SealAction::CloseVoter => {
                self.proposer.seal();
                self.group.seal();
                let leads = self.group.leadership().is_ok();
                *term = self.group.term().await;
                Some(SealEvent::VoterClosed { leads })
            }
            SealAction::AwaitDrain => {
                let drained = tokio::time::timeout(DRAIN_TIMEOUT, self.proposer.drained()).await;
                *term = self.group.term().await;
                Some(drained.map_or(SealEvent::NotDrained, |term| SealEvent::Drained { term }))
            }
            SealAction::StopGroup => {
                // Before it stops: the stop is not to pass for a failure.
                self.stop.cancel();
                self.group.shutdown().await;
                None
            }
            SealAction::Fence
            | SealAction::WriteDown(_)
            | SealAction::Sync
            | SealAction::CloseReplica
            | SealAction::Note { .. }
            | SealAction::Answer => None,
        }
    }

    /// The answer of a voter that has drained in a term, or has not.
    pub(crate) fn sealed(&self, term: u64, drained: Option<u64>) -> Sealed {
        let knows_voters = self
            .directory
            .shard(self.group.id().shard)
            .is_some_and(|shard| knows_voters(&shard, self.group.stable_voters().as_ref()));
        if !knows_voters {
            self.directory.renew_now();
        }
        let drained_leader = drained == Some(term) && knows_voters;
        Sealed { applied: self.state.applied(), term, drained_leader }
    }
}
