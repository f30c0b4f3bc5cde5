//! What the directory's leader asks of a node at the end of an epoch: to seal, and to drain.

use meridian_failover::{Phase, SealAnswer};
use meridian_shipping::{ReceiverEvent, ReceiverPhase};
use meridian_types::{Epoch, NodeId, Position};
use std::time::Duration;

use super::part::Part;
use super::{Context, Node, Sealed};
use crate::bugs::Bug;
use crate::message::{Batch, Message, Wakeup, len_at};
use crate::topology::SHARD;

const READ_BATCHES: usize = 32;
const PULL_TIMEOUT: Duration = Duration::from_millis(400);

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
    epoch: Epoch,
    source: NodeId,
    through: Position,
    /// When the source was last asked.
    asked_at: Option<Duration>,
    /// What came is on its way to the disk.
    writes: bool,
}

impl Drain {
    pub(super) fn new(from: NodeId, term: u64, epoch: Epoch, source: NodeId, through: Position) -> Self {
        Self { from, term, epoch, source, through, asked_at: None, writes: false }
    }
}

impl Node {
    pub(super) fn seal(&mut self, context: &mut Context<'_>, from: NodeId, term: u64, epoch: Epoch, planned: bool) {
        if self.part.epoch() != Some(epoch) {
            // It hears of the epoch, or of the next, soon.
            return self.renew_now();
        }
        let ask = SealAsk { from, term, epoch, planned };
        if context.bug == Some(Bug::ForgetTheSeal) {
            let answer = self.seal_answer(ask, self.end());
            return context.send(from, Message::Sealed { term, answer });
        }
        let was_planned = self.disk.sealed.filter(|sealed| sealed.epoch == epoch).map(|sealed| sealed.planned);
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
                let is_sealing = self.shard().is_some_and(|shard| matches!(shard.phase, Phase::Sealing(_)));
                (Some(voter.raft.term()), drained && is_sealing && self.has_wanted_voters())
            }
            Part::Idle | Part::Replica(_) => (None, false),
        };
        let time_ms = self.disk.history.get(len_at(position.sequence).wrapping_sub(1)).map_or(0, |batch| batch.time_ms);
        let (epoch, planned) = (ask.epoch, ask.planned);
        let transactions = position.sequence;
        SealAnswer { shard: SHARD, epoch, planned, position, transactions, time_ms, term, drained_leader }
    }

    /// The receiver has stopped: everything it took is durable.
    pub(super) fn replica_sealed(&mut self, context: &mut Context<'_>, durable: Position) {
        if durable != self.end() {
            let what = format!("n{} says that {durable} is final, but it has {}", self.id, self.end());
            context.observer.violated("sealed_is_final", what);
        }
        let Part::Replica(replica) = &mut self.part else { return };
        for ask in std::mem::take(&mut replica.asks) {
            let answer = self.seal_answer(ask, durable);
            context.send(ask.from, Message::Sealed { term: ask.term, answer });
        }
        self.go_on_draining(context);
    }

    pub(super) fn drain(&mut self, context: &mut Context<'_>, drain: Drain) {
        if self.part.epoch() != Some(drain.epoch) {
            return;
        }
        match &mut self.part {
            Part::Idle => return,
            Part::Voter(voter) => voter.drain = Some(Drain { asked_at: None, ..drain }),
            Part::Replica(replica) => {
                // What is on its way to the disk is not asked for again.
                let writes = replica.drain.is_some_and(|old| old.writes);
                let asked_at = replica.drain.filter(|old| old.source == drain.source).and_then(|old| old.asked_at);
                replica.drain = Some(Drain { writes, asked_at, ..drain });
                if replica.receiver.phase() != ReceiverPhase::Sealed {
                    // A switchover's target was not asked to seal.
                    self.disk.sealed = Some(Sealed { epoch: drain.epoch, planned: true });
                    return self.receiver(context, ReceiverEvent::Seal { epoch: drain.epoch }, None);
                }
            }
        }
        self.go_on_draining(context);
    }

    pub(super) fn end_drain(&mut self) {
        if let Part::Replica(replica) = &mut self.part {
            replica.drain = None;
        }
    }

    pub(super) fn tick_drain(&mut self, context: &mut Context<'_>) {
        self.go_on_draining(context);
    }

    fn draining(&mut self) -> Option<&mut Drain> {
        match &mut self.part {
            Part::Idle => None,
            Part::Voter(voter) => voter.drain.as_mut(),
            Part::Replica(replica) if replica.is_quiet() => replica.drain.as_mut(),
            Part::Replica(_) => None,
        }
    }

    fn go_on_draining(&mut self, context: &mut Context<'_>) {
        let (at, end) = (self.at(context), self.end());
        // A voter that goes on appending comes there by itself.
        let pulls = !matches!(&self.part, Part::Voter(voter) if !voter.halted);
        let Some(drain) = self.draining() else { return };
        if end.sequence >= drain.through.sequence {
            let Drain { from, term, epoch, .. } = *drain;
            self.forget_drain();
            return context.send(from, Message::Drained { term, epoch, position: end });
        }
        let waits = drain.writes || drain.asked_at.is_some_and(|asked| at.saturating_sub(asked) < PULL_TIMEOUT);
        if pulls && !waits {
            drain.asked_at = Some(at);
            context.send(drain.source, Message::ReadLog { after: end, through: drain.through });
        }
    }

    fn forget_drain(&mut self) {
        match &mut self.part {
            Part::Idle => {}
            Part::Voter(voter) => voter.drain = None,
            Part::Replica(replica) => replica.drain = None,
        }
    }

    pub(super) fn read_log(&mut self, context: &mut Context<'_>, to: NodeId, after: Position, through: Position) {
        let skip = len_at(after.sequence);
        let has_it =
            skip >= self.disk.purged && crate::message::end_of(self.disk.history.get(..skip).unwrap_or(&[])) == after;
        let batches = self.disk.history.iter().skip(skip).take(READ_BATCHES).copied();
        let batches: Vec<_> = batches.take_while(|batch| batch.position.sequence <= through.sequence).collect();
        if has_it && !batches.is_empty() {
            context.send(to, Message::LogRead { after, batches });
        }
    }

    pub(super) fn log_read(&mut self, context: &mut Context<'_>, after: Position, batches: Vec<Batch>) {
        let end = self.end();
        let Some(drain) = self.draining().filter(|drain| after == end && !drain.writes) else { return };
        drain.writes = true;
        let delay = context.disk_delay();
        context.wake(delay, Wakeup::Pulled { batches });
    }

    pub(super) fn pulled(&mut self, context: &mut Context<'_>, batches: Vec<Batch>) {
        let next = self.end().sequence + 1;
        let Some(drain) = self.draining().filter(|drain| drain.writes) else { return };
        (drain.writes, drain.asked_at) = (false, None);
        let epoch = drain.epoch;
        if batches.first().is_some_and(|batch| batch.position.sequence == next) {
            for batch in batches {
                context.observer.taken(epoch, self.id, batch);
                self.push(batch);
            }
            context.observer.counts.drains += 1;
            let position = self.end();
            if let Part::Replica(_) = &self.part {
                self.receiver(context, ReceiverEvent::Drained { position }, None);
            }
        }
        self.go_on_draining(context);
    }
}
