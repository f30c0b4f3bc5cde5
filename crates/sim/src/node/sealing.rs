//! What the directory's leader asks of a node at the end of an epoch: to seal, and to drain.

use meridian_directory::Phase;
use meridian_failover::SealAnswer;
use meridian_shipping::{ReceiverEvent, ReceiverPhase};
use meridian_types::{Epoch, NodeId, Position};

use super::part::Part;
use super::pull::Pull;
use super::{Context, Node, Sealed};
use crate::bugs::Bug;
use crate::message::{Message, len_at};
use crate::topology::SHARD;

/// Who asked, in which term of its leadership.
#[derive(Debug, Clone, Copy)]
pub(super) struct SealAsk {
    from: NodeId,
    term: u64,
    epoch: Epoch,
    planned: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Drain {
    from: NodeId,
    term: u64,
    pub(super) epoch: Epoch,
    pub(super) pull: Pull,
}

impl Drain {
    pub(super) fn new(
        from: NodeId,
        term: u64,
        epoch: Epoch,
        source: NodeId,
        through: Position,
    ) -> Self {
        Self { from, term, epoch, pull: Pull::new(source, through) }
    }
}

impl Node {
    pub(super) fn seal(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        term: u64,
        epoch: Epoch,
        planned: bool,
    ) {
        if self.part.epoch() != Some(epoch) {
            // It hears of the epoch, or of the next, soon.
            return self.renew_now();
        }
        let ask = SealAsk { from, term, epoch, planned };
        if context.bug == Some(Bug::ForgetTheSeal) {
            let answer = self.seal_answer(ask, self.end());
            return context.send(from, Message::Sealed { term, answer });
        }
        let was_planned =
            self.disk.sealed.filter(|sealed| sealed.epoch == epoch).map(|sealed| sealed.planned);
        let planned_only = planned && was_planned != Some(false);
        // Written down, before it is answered.
        self.disk.sealed = Some(Sealed { epoch, planned: planned_only });
        self.lease.seal(SHARD, epoch);
        match &mut self.part {
            Part::Idle => {}
            Part::Voter(voter) => {
                voter.seal(planned_only);
                if planned && voter.raft.is_leader() && !voter.halted {
                    voter.asks.push(ask);
                    self.answer_drained(context);
                } else {
                    let answer = self.seal_answer(ask, self.end());
                    context.send(from, Message::Sealed { term, answer });
                }
            }
            Part::Replica(replica) => {
                replica.asks.push(ask);
                self.receiver(context, ReceiverEvent::Seal { epoch }, None);
            }
        }
    }

    /// Of a voter that was asked as a leader: when it has drained, or leads no more.
    pub(super) fn answer_drained(&mut self, context: &mut Context<'_>) {
        let Part::Voter(voter) = &mut self.part else { return };
        if voter.raft.is_leader() && !voter.raft.is_drained() {
            return;
        }
        for ask in std::mem::take(&mut voter.asks) {
            let answer = self.seal_answer(ask, self.end());
            context.send(ask.from, Message::Sealed { term: ask.term, answer });
        }
    }

    fn seal_answer(&self, ask: SealAsk, position: Position) -> SealAnswer {
        let (term, drained_leader) = match &self.part {
            Part::Voter(voter) => {
                let drained = ask.planned && voter.takes_part() && voter.raft.is_drained();
                let is_sealing =
                    self.shard().is_some_and(|shard| matches!(shard.phase, Phase::Sealing(_)));
                (Some(voter.raft.term()), drained && is_sealing && self.has_wanted_voters())
            }
            Part::Idle | Part::Replica(_) => (None, false),
        };
        let time_ms = self
            .disk
            .history
            .get(len_at(position.sequence).wrapping_sub(1))
            .map_or(0, |batch| batch.time_ms);
        let (epoch, planned) = (ask.epoch, ask.planned);
        let transactions = position.sequence;
        SealAnswer {
            shard: SHARD,
            epoch,
            planned,
            position,
            transactions,
            time_ms,
            term,
            drained_leader,
        }
    }

    /// The receiver has stopped: everything it took is durable.
    pub(super) fn replica_sealed(&mut self, context: &mut Context<'_>, durable: Position) {
        if durable != self.end() {
            let what =
                format!("n{} says that {durable} is final, but it has {}", self.id, self.end());
            context.observer.violated("sealed_is_final", what);
        }
        let Part::Replica(replica) = &mut self.part else { return };
        for ask in std::mem::take(&mut replica.asks) {
            let answer = self.seal_answer(ask, durable);
            context.send(ask.from, Message::Sealed { term: ask.term, answer });
        }
        self.go_on_pulling(context);
    }

    pub(super) fn drain(&mut self, context: &mut Context<'_>, drain: Drain) {
        if self.part.epoch() != Some(drain.epoch) {
            return;
        }
        match &mut self.part {
            Part::Idle => return,
            // Its group is what brings it there, until it has stopped.
            Part::Voter(voter) => voter.drain = Some(drain).filter(|_| !voter.halted),
            Part::Replica(replica) => {
                let pull = replica.drain.map_or(drain.pull, |old| old.pull.redirected(drain.pull));
                replica.drain = Some(Drain { pull, ..drain });
                if replica.receiver.phase() != ReceiverPhase::Sealed {
                    // A switchover's target was not asked to seal.
                    self.disk.sealed = Some(Sealed { epoch: drain.epoch, planned: true });
                    return self.receiver(
                        context,
                        ReceiverEvent::Seal { epoch: drain.epoch },
                        None,
                    );
                }
            }
        }
        self.go_on_pulling(context);
    }

    pub(super) fn end_drain(&mut self) {
        if let Part::Replica(replica) = &mut self.part {
            replica.drain = None;
        }
    }

    /// Says so once it has come where it was to be drained to.
    pub(super) fn answer_drain(&mut self, context: &mut Context<'_>) {
        let end = self.end();
        let drain = match &mut self.part {
            Part::Idle => return,
            Part::Voter(voter) => &mut voter.drain,
            Part::Replica(replica) if replica.is_quiet() => &mut replica.drain,
            Part::Replica(_) => return,
        };
        if let Some(Drain { from, term, epoch, .. }) =
            drain.take_if(|drain| drain.pull.is_done(end))
        {
            context.send(from, Message::Drained { term, epoch, position: end });
        }
    }
}
