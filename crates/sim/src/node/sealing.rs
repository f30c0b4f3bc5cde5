//! Carries out what [`Sealing`] decides when the directory's leader asks a node to seal.

use std::collections::VecDeque;

use meridian_failover::SealAnswer;
use meridian_placement::{DRAIN_TIMEOUT, Seal, SealAction, SealEvent, Sealing, knows_voters};
use meridian_shipping::ReceiverEvent;
use meridian_types::Position;

use super::orders::{SealAsk, SealRequest};
use super::part::Part;
use super::{Context, Node};
use crate::bugs::Bug;
use crate::message::{Message, len_at};
use crate::topology::SHARD;

impl Node {
    pub(super) fn seal(&mut self, context: &mut Context<'_>, ask: SealAsk) {
        let SealAsk { epoch, planned, .. } = ask;
        if self.part.epoch() != Some(epoch) {
            // It hears of the epoch, or of the next, soon.
            return self.renew_now();
        }
        if context.bug == Some(Bug::ForgetTheSeal) {
            let leads = self.voter().filter(|voter| planned && voter.raft.is_drained());
            let drained = leads.map(|voter| voter.raft.term());
            return self.answer_seal(context, ask, drained);
        }
        let votes = matches!(self.part, Part::Voter(_));
        let (sealing, actions) = Sealing::asked(Seal { epoch, planned }, votes);
        let request = SealRequest { ask: Some(ask), sealing, since: self.at(context) };
        self.carry_out_seal(context, request, actions);
    }

    /// Of a voter that was sealed before it restarted.
    pub(super) fn seal_again(&mut self, context: &mut Context<'_>, planned: bool) {
        let (sealing, actions) = Sealing::again(planned);
        let request = SealRequest { ask: None, sealing, since: self.at(context) };
        self.carry_out_seal(context, request, actions);
    }

    fn carry_out_seal(
        &mut self,
        context: &mut Context<'_>,
        mut request: SealRequest,
        actions: Vec<SealAction>,
    ) {
        let (at, mut actions) = (self.at(context), VecDeque::from(actions));
        let mut noted = None;
        while let Some(action) = actions.pop_front() {
            let event = match (action, &mut self.part) {
                (SealAction::Fence, part) => {
                    if let Some(epoch) = part.epoch() {
                        self.lease.seal(SHARD, epoch);
                    }
                    None
                }
                (SealAction::WriteDown(seal), _) => {
                    self.disk.sealed = Some(seal.after(self.disk.sealed));
                    None
                }
                (SealAction::Sync, _) => Some(SealEvent::Durable),
                (SealAction::CloseVoter, Part::Voter(voter)) => {
                    voter.close();
                    let leads = voter.raft.is_leader() && voter.takes_part();
                    Some(SealEvent::VoterClosed { leads })
                }
                (SealAction::AwaitDrain, Part::Voter(voter)) => {
                    request.since = at;
                    voter.sealing.push(request);
                    return self.end_drains(context);
                }
                (SealAction::StopGroup, Part::Voter(voter)) => {
                    voter.halt();
                    None
                }
                (SealAction::CloseReplica, Part::Replica(replica)) => {
                    replica.sealing.push(request);
                    return self.close_replica(context);
                }
                (SealAction::Note { drained }, _) => {
                    noted = drained;
                    None
                }
                (SealAction::Answer, _) => {
                    if let Some(ask) = request.ask {
                        self.answer_seal(context, ask, noted);
                    }
                    return;
                }
                _ => None,
            };
            actions.extend(event.into_iter().flat_map(|event| request.sealing.step(event)));
        }
    }

    /// Ends the waiting of leaders that have drained, that lead no more, or for which it is late.
    pub(super) fn end_drains(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        let Some(voter) = self.voter() else { return };
        let event = |request: &SealRequest| {
            if !voter.raft.is_leader() || at.saturating_sub(request.since) >= DRAIN_TIMEOUT {
                Some(SealEvent::NotDrained)
            } else {
                let term = voter.raft.term();
                voter.raft.is_drained().then_some(SealEvent::Drained { term })
            }
        };
        let all = std::mem::take(&mut voter.sealing);
        let (ended, waiting): (Vec<_>, Vec<_>) = all
            .into_iter()
            .map(|request| (event(&request), request))
            .partition(|(event, _)| event.is_some());
        voter.sealing = waiting.into_iter().map(|(_, request)| request).collect();
        for (event, mut request) in ended {
            let actions = event.map(|event| request.sealing.step(event)).unwrap_or_default();
            self.carry_out_seal(context, request, actions);
        }
    }

    /// Has the receiver stop, if it is to. Not in the middle of an order, which brings the replica
    /// further than the receiver knows.
    pub(super) fn close_replica(&mut self, context: &mut Context<'_>) {
        let is_free = self.pulling.is_none();
        let replica = self.replica().filter(|replica| is_free && !replica.sealing.is_empty());
        if let Some(epoch) = replica.map(|replica| replica.receiver.epoch()) {
            self.receiver(context, ReceiverEvent::Seal { epoch }, None);
        }
    }

    /// The receiver has stopped: everything it took is durable.
    pub(super) fn replica_sealed(&mut self, context: &mut Context<'_>, durable: Position) {
        if durable != self.end() {
            let what =
                format!("n{} says that {durable} is final, but it has {}", self.id, self.end());
            context.observer.violated("sealed_is_final", what);
        }
        let Some(replica) = self.replica() else { return };
        for mut request in std::mem::take(&mut replica.sealing) {
            let actions = request.sealing.step(SealEvent::ReplicaClosed);
            self.carry_out_seal(context, request, actions);
        }
        self.tick_orders(context);
    }

    fn answer_seal(&mut self, context: &mut Context<'_>, ask: SealAsk, drained: Option<u64>) {
        let position = self.end();
        let (term, drained_leader) = match &self.part {
            Part::Voter(voter) => {
                let knows = self.shard().is_some_and(|shard| {
                    let is_settled = voter.raft.is_settled_on(&shard.voters);
                    knows_voters(shard, is_settled.then_some(&shard.voters))
                });
                let term = voter.raft.term();
                if !knows {
                    self.renewals.begin_now();
                }
                (Some(term), drained == Some(term) && knows)
            }
            Part::None | Part::Replica(_) => (None, false),
        };
        let last = self.disk.history.get(len_at(position.sequence).wrapping_sub(1));
        let answer = SealAnswer {
            shard: SHARD,
            epoch: ask.epoch,
            planned: ask.planned,
            position,
            transactions: position.sequence,
            time_ms: last.map_or(0, |batch| batch.time_ms),
            term,
            drained_leader,
        };
        context.send(ask.from, Message::Sealed { term: ask.term, answer });
    }
}
