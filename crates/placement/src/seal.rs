//! The seal of a shard at one node: the record, the waits and the answer.
//!
//! The position that a node answers is final: the base of the next epoch is chosen by it. So the seal
//! is durable before anything is answered, and no restart undoes it.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_directory::{Phase, Shard};
use meridian_types::{Epoch, NodeId};

/// How long a leader that is sealed waits for what it has in flight.
pub const DRAIN_TIMEOUT: Duration = Duration::from_millis(700);

/// A node's promise about the end of an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    pub epoch: Epoch,
    /// The leader may finish what it began. Else nothing is taken any more.
    pub planned: bool,
}

impl Seal {
    /// The seal in force once this one is asked for behind `known`. A seal that takes nothing any
    /// more does not become a planned one, and none goes back to an earlier epoch.
    #[must_use]
    pub fn after(self, known: Option<Self>) -> Self {
        let stays = |known: &Self| {
            known.epoch > self.epoch || (known.epoch == self.epoch && !known.planned)
        };
        known.filter(stays).unwrap_or(self)
    }
}

/// The inputs of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealEvent {
    /// All that was written before [`SealAction::Sync`] is durable.
    Durable,
    /// The voter is closed; whether it leads its group.
    VoterClosed { leads: bool },
    /// All that this leader ever proposed in this term is decided and applied.
    Drained { term: u64 },
    /// The leader lost its leadership before, or [`DRAIN_TIMEOUT`] has passed.
    NotDrained,
    /// The replica takes nothing more of the epoch, and all that it took is durable and applied.
    ReplicaClosed,
}

/// The actions of the driver, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SealAction {
    /// Holds no lease on the epoch any more: what is checked from now on fails.
    Fence,
    /// Writes the seal down, as [`Seal::after`] says.
    WriteDown(Seal),
    /// Makes all writes so far durable. Then [`SealEvent::Durable`].
    Sync,
    /// Begins nothing strong any more, and gives no vote. Then [`SealEvent::VoterClosed`].
    CloseVoter,
    /// Waits until the leader has drained, no longer than [`DRAIN_TIMEOUT`]. Then
    /// [`SealEvent::Drained`] or [`SealEvent::NotDrained`].
    AwaitDrain,
    /// Stops the group on this node: what is applied is final. Before, a follower goes on appending,
    /// so that the leader can finish what it has in flight.
    StopGroup,
    /// Takes nothing more of the epoch. Then [`SealEvent::ReplicaClosed`].
    CloseReplica,
    /// Notes where the state stands, for the answer. `drained`: the term in which this leader has
    /// drained. Before the last [`SealAction::Sync`]: a batch that is applied while the disk is at
    /// work is not covered by it.
    Note { drained: Option<u64> },
    /// Answers what was noted.
    Answer,
}

/// One request to seal, on its way.
#[derive(Debug)]
pub struct Sealing {
    planned: bool,
    votes: bool,
    /// The request comes from the directory's leader, and not from what was written down before.
    is_asked: bool,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    WritingDown,
    Closing,
    Draining,
    Ending,
    Answered,
}

impl Sealing {
    /// Of a request of the directory's leader. The fence comes first: from then on every check fails
    /// that an answer to a client depends on.
    pub fn asked(seal: Seal, votes: bool) -> (Self, Vec<SealAction>) {
        let (planned, stage) = (seal.planned, Stage::WritingDown);
        let actions = vec![SealAction::Fence, SealAction::WriteDown(seal), SealAction::Sync];
        (Self { planned, votes, is_asked: true, stage }, actions)
    }

    /// Of a voter that takes its role in an epoch which it is sealed in: no caller waits for an answer.
    pub fn again(planned: bool) -> (Self, Vec<SealAction>) {
        let stage = Stage::Closing;
        (Self { planned, votes: true, is_asked: false, stage }, vec![SealAction::CloseVoter])
    }

    /// Waits for the leader to drain.
    pub fn is_draining(&self) -> bool {
        self.stage == Stage::Draining
    }

    /// Takes an event. An event that the machine does not wait for does nothing.
    pub fn step(&mut self, event: SealEvent) -> Vec<SealAction> {
        match (self.stage, event) {
            (Stage::WritingDown, SealEvent::Durable) => {
                self.stage = Stage::Closing;
                let close =
                    if self.votes { SealAction::CloseVoter } else { SealAction::CloseReplica };
                vec![close]
            }
            (Stage::Closing, SealEvent::VoterClosed { leads: true }) => {
                self.stage = Stage::Draining;
                vec![SealAction::AwaitDrain]
            }
            (Stage::Closing, SealEvent::VoterClosed { leads: false })
            | (Stage::Draining, SealEvent::NotDrained) => self.end(None),
            (Stage::Draining, SealEvent::Drained { term }) => self.end(Some(term)),
            (Stage::Closing, SealEvent::ReplicaClosed) => {
                self.stage = Stage::Answered;
                vec![SealAction::Note { drained: None }, SealAction::Answer]
            }
            (Stage::Ending, SealEvent::Durable) => {
                self.stage = Stage::Answered;
                vec![SealAction::Answer]
            }
            _ => Vec::new(),
        }
    }

    /// The answer includes batches that were applied after the seal was written down. A restart has to
    /// come to the same position, and how far the log is committed may be in memory only.
    fn end(&mut self, drained: Option<u64>) -> Vec<SealAction> {
        let stop = (!self.planned).then_some(SealAction::StopGroup);
        let sync = self.is_asked.then_some(SealAction::Sync);
        self.stage = if self.is_asked { Stage::Ending } else { Stage::Answered };
        stop.into_iter().chain([SealAction::Note { drained }]).chain(sync).collect()
    }
}

/// Whether the voters that this node knows its group to have are those that the directory counts by.
/// Only then may a leader claim to have drained. Voters do not change while an epoch is being sealed:
/// a node that knows of the sealing knows them; and a majority of the directory's voters is one of the
/// group only when they are its members.
pub fn knows_voters(shard: &Shard, group: Option<&BTreeSet<NodeId>>) -> bool {
    matches!(shard.phase, Phase::Sealing(_)) && group == Some(&shard.voters)
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNPLANNED: Seal = Seal { epoch: Epoch(3), planned: false };
    const PLANNED: Seal = Seal { epoch: Epoch(3), planned: true };

    #[test]
    fn seal_only_grows() {
        let earlier = Seal { epoch: Epoch(2), planned: false };
        assert_eq!(PLANNED.after(None), PLANNED);
        assert_eq!(PLANNED.after(Some(earlier)), PLANNED);
        assert_eq!(UNPLANNED.after(Some(PLANNED)), UNPLANNED);
        assert_eq!(PLANNED.after(Some(UNPLANNED)), UNPLANNED);
        assert_eq!(earlier.after(Some(PLANNED)), PLANNED);
    }

    /// Plays events to a request, and collects all actions.
    fn story(
        (mut sealing, mut actions): (Sealing, Vec<SealAction>),
        events: &[SealEvent],
    ) -> Vec<SealAction> {
        for event in events {
            actions.extend(sealing.step(*event));
        }
        actions
    }

    #[test]
    fn follower_is_fenced_and_its_seal_is_durable_before_it_closes_stops_and_answers() {
        let events =
            [SealEvent::Durable, SealEvent::VoterClosed { leads: false }, SealEvent::Durable];
        let actions = story(Sealing::asked(UNPLANNED, true), &events);
        assert_eq!(
            actions,
            [
                SealAction::Fence,
                SealAction::WriteDown(UNPLANNED),
                SealAction::Sync,
                SealAction::CloseVoter,
                SealAction::StopGroup,
                SealAction::Note { drained: None },
                SealAction::Sync,
                SealAction::Answer,
            ]
        );
    }

    #[test]
    fn leader_of_a_switchover_finishes_what_it_began_and_goes_on() {
        let events = [
            SealEvent::Durable,
            SealEvent::VoterClosed { leads: true },
            SealEvent::Drained { term: 7 },
            SealEvent::Durable,
        ];
        let actions = story(Sealing::asked(PLANNED, true), &events);
        assert_eq!(
            actions[3..],
            [
                SealAction::CloseVoter,
                SealAction::AwaitDrain,
                SealAction::Note { drained: Some(7) },
                SealAction::Sync,
                SealAction::Answer,
            ]
        );
    }

    #[test]
    fn leader_that_does_not_drain_in_time_claims_nothing() {
        let events = [
            SealEvent::Durable,
            SealEvent::VoterClosed { leads: true },
            SealEvent::NotDrained,
            SealEvent::Durable,
        ];
        let actions = story(Sealing::asked(UNPLANNED, true), &events);
        let note = SealAction::Note { drained: None };
        let end = [SealAction::StopGroup, note, SealAction::Sync, SealAction::Answer];
        assert_eq!(actions[5..], end);
    }

    #[test]
    fn replica_answers_when_it_is_closed() {
        let events = [SealEvent::Durable, SealEvent::ReplicaClosed];
        let actions = story(Sealing::asked(UNPLANNED, false), &events);
        let note = SealAction::Note { drained: None };
        assert_eq!(actions[3..], [SealAction::CloseReplica, note, SealAction::Answer]);
    }

    #[test]
    fn voter_that_restarted_sealed_writes_nothing_down_and_syncs_nothing() {
        let events = [SealEvent::VoterClosed { leads: false }];
        let actions = story(Sealing::again(false), &events);
        let expected =
            [SealAction::CloseVoter, SealAction::StopGroup, SealAction::Note { drained: None }];
        assert_eq!(actions, expected);
    }

    #[test]
    fn nothing_is_closed_before_the_seal_is_durable() {
        let events = [SealEvent::VoterClosed { leads: true }, SealEvent::Drained { term: 1 }];
        let (sealing, first) = Sealing::asked(PLANNED, true);
        let count = first.len();
        assert_eq!(story((sealing, first), &events).len(), count);
    }
}
