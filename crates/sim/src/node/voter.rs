//! A node that votes in the shard, and its leader: writes, reads, acknowledgements.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use meridian_types::{Epoch, EpochHistory, NodeId, Position};

use super::orders::{Order, SealRequest};
use super::queues::Queues;
use super::{Context, Node};
use crate::bugs::Bug;
use crate::clock::wall_ms;
use crate::invariants::Answered;
use crate::message::{Batch, History, Message, Operation};
use crate::raft::{Entry, Members, Outbox, Raft, RaftDisk, RaftMessage, RaftTiming, Sync};
use crate::rng::Rng;
use crate::topology::SHARD;

const TIMING: RaftTiming =
    RaftTiming { heartbeat: Duration::from_millis(100), election: Duration::from_millis(400) };

/// A client that waits.
#[derive(Debug, Clone, Copy)]
struct Caller {
    client: NodeId,
    call: u64,
    floor: Position,
}

/// A member of the group of one epoch.
pub(super) struct Voter {
    pub(super) epoch: Epoch,
    pub(super) history: EpochHistory,
    pub(super) raft: Raft<Batch>,
    applied: usize,
    /// It has the base, or was given what follows it. Else it takes no part.
    pub(super) seeded: bool,
    /// Sealed: a planned seal lets it finish what it began.
    pub(super) admits: bool,
    pub(super) halted: bool,
    pending: BTreeMap<u64, Caller>,
    reads: Vec<(u64, Caller)>,
    /// Seals that wait until it has drained.
    pub(super) sealing: Vec<SealRequest>,
    pub(super) order: Option<Order>,
    /// While it leads.
    pub(super) queues: Option<Box<Queues>>,
}

impl Voter {
    pub(super) fn new(
        id: NodeId,
        history: EpochHistory,
        disk: RaftDisk<Batch>,
        at: Duration,
        rng: &mut Rng,
    ) -> Self {
        Self {
            epoch: history.epoch(),
            history,
            raft: Raft::new(id, TIMING, disk, at, rng),
            applied: 0,
            seeded: false,
            admits: true,
            halted: false,
            pending: BTreeMap::new(),
            reads: Vec::new(),
            sealing: Vec::new(),
            order: None,
            queues: None,
        }
    }

    /// Begins nothing more, and gives no vote.
    pub(super) fn close(&mut self) {
        self.admits = false;
        self.raft.frozen = true;
    }

    /// Stops the group here: the answered position is final.
    pub(super) fn halt(&mut self) {
        self.halted = true;
        self.order = None;
    }

    pub(super) fn takes_part(&self) -> bool {
        self.seeded && !self.halted
    }

    pub(super) fn leads(&self, at: Duration) -> bool {
        self.takes_part() && self.raft.leads(at)
    }

    /// It leads, knows all that was ever committed, and has applied it.
    pub(super) fn is_ready(&self) -> bool {
        self.takes_part() && self.raft.is_settled_leader() && self.applied == self.raft.applicable()
    }

    /// Where the next batch goes.
    pub(super) fn next_position(&self) -> Position {
        let last = self.raft.disk.log.iter().rev().find_map(|entry| entry.command);
        Position::new(
            self.epoch,
            last.map_or(self.history.base(), |batch| batch.position).sequence + 1,
        )
    }
}

impl Node {
    /// Lets the group take one step, and does what follows from it.
    pub(super) fn raft(
        &mut self,
        context: &mut Context<'_>,
        step: impl FnOnce(&mut Raft<Batch>, Duration, &mut Rng, &mut Outbox<Batch>),
    ) {
        let at = self.at(context);
        let mut out = Outbox::new();
        let Some(voter) = self.voter().filter(|voter| voter.takes_part()) else { return };
        step(&mut voter.raft, at, context.rng, &mut out);
        let epoch = voter.epoch;
        if let Some(sync) = voter.raft.take_sync() {
            let delay = context.disk_delay();
            context.wake(delay, super::Wakeup::ShardSynced(epoch, sync));
        }
        for (to, raft) in out {
            context.send(to, Message::Shard { epoch, raft });
        }
        self.apply(context);
        self.serve_reads(context);
        self.end_drains(context);
    }

    pub(super) fn tick_voter(&mut self, context: &mut Context<'_>) {
        self.raft(context, |raft, at, rng, out| raft.tick(at, rng, out));
        self.tick_members(context);
    }

    pub(super) fn shard_synced(&mut self, context: &mut Context<'_>, epoch: Epoch, sync: Sync) {
        if self.voter().is_some_and(|voter| voter.epoch == epoch) {
            self.raft(context, |raft, at, _, out| raft.on_synced(at, sync, out));
        }
    }

    pub(super) fn shard_message(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        epoch: Epoch,
        message: RaftMessage<Batch>,
    ) {
        let Some(voter) = self.voter().filter(|voter| voter.epoch == epoch) else { return };
        if voter.takes_part() {
            self.raft(context, |raft, at, rng, out| raft.receive(at, rng, from, message, out));
        } else if !voter.halted && matches!(message, RaftMessage::Append { .. }) {
            context.send(from, Message::NeedSeed { epoch });
        }
    }

    /// The state of this node, and the part of the group's log that it is made of.
    pub(super) fn give_seed(&mut self, context: &mut Context<'_>, to: NodeId, epoch: Epoch) {
        let history = Arc::new(self.disk.history.clone());
        let Some(voter) = self.voter().filter(|voter| voter.epoch == epoch && voter.takes_part())
        else {
            return;
        };
        let log = voter.raft.disk.log.iter().take(voter.applied).cloned().collect();
        let founders = voter.raft.disk.founders.clone();
        context.send(to, Message::Seed { epoch, history, founders, log });
    }

    pub(super) fn take_seed(
        &mut self,
        context: &mut Context<'_>,
        epoch: Epoch,
        history: &History,
        founders: Members,
        log: Vec<Entry<Batch>>,
    ) {
        let Some(voter) = self.voter().filter(|voter| voter.epoch == epoch) else { return };
        if voter.seeded || voter.halted {
            return;
        }
        voter.applied = log.len();
        voter.raft.seed(founders, log);
        voter.seeded = true;
        context.say(|| format!("n{} is seeded in {epoch}", self.id));
        self.replace_history(history.clone());
    }

    fn apply(&mut self, context: &mut Context<'_>) {
        loop {
            let Some(voter) = self.voter() else { return };
            if voter.applied >= voter.raft.applicable() {
                break;
            }
            let (epoch, index) = (voter.epoch, voter.applied);
            voter.applied += 1;
            let Some(batch) = voter.raft.disk.log.get(index).and_then(|entry| entry.command) else {
                continue;
            };
            let caller = voter.pending.remove(&batch.request);
            context.observer.committed(epoch, self.id, batch);
            // After a restart, what was applied before is applied again.
            if batch.position.sequence > self.end().sequence {
                self.push(batch);
            }
            if let Some(caller) = caller {
                self.answer(
                    context,
                    caller,
                    Operation::Write { request: batch.request, content: batch.content },
                    batch.position,
                );
            }
        }
        if let Some(voter) = self.voter().filter(|voter| !voter.raft.is_leader()) {
            voter.pending.clear();
            voter.reads.clear();
        }
    }

    pub(super) fn holds_lease(&self, context: &Context<'_>, epoch: Epoch) -> bool {
        context.bug == Some(Bug::SkipTheFence) || self.lease.holds(self.at(context), SHARD, epoch)
    }

    /// The fence: asked right before an answer leaves.
    fn answer(
        &mut self,
        context: &mut Context<'_>,
        caller: Caller,
        operation: Operation,
        position: Position,
    ) {
        let Some(epoch) = self.part.epoch() else { return };
        if !self.holds_lease(context, epoch) {
            return;
        }
        let Caller { client, call, floor } = caller;
        context.observer.answered(Answered { node: self.id, epoch, operation, position, floor });
        context.send(client, Message::Answer { call, position });
    }

    pub(super) fn request(
        &mut self,
        context: &mut Context<'_>,
        client: NodeId,
        call: u64,
        operation: Operation,
        floor: Position,
    ) {
        let known_leader = self.shard().and_then(|shard| shard.preferred_leader);
        let epoch = self.part.epoch();
        let has_lease = epoch.is_some_and(|epoch| self.holds_lease(context, epoch));
        let caller = Caller { client, call, floor };
        let Some(voter) = self.voter() else {
            return context.send(client, Message::NotHere { call, leader: known_leader });
        };
        if !voter.is_ready() || !voter.admits || !has_lease {
            let leader = voter.raft.leader.filter(|leader| *leader != self.id);
            return context.send(client, Message::NotHere { call, leader });
        }
        match operation {
            Operation::Read => {
                let mut round = 0;
                self.raft(context, |raft, at, _, out| round = raft.begin_round(at, out));
                if let Some(voter) = self.voter() {
                    voter.reads.push((round, caller));
                }
                self.serve_reads(context);
            }
            Operation::Write { request, content } => {
                if let Some(position) = self.requests.get(&request).copied() {
                    return self.answer(context, caller, operation, position);
                }
                let Some(voter) = self.voter() else { return };
                let unapplied = voter.raft.disk.log.iter().skip(voter.applied);
                let in_flight = unapplied
                    .filter_map(|entry| entry.command)
                    .any(|batch| batch.request == request);
                voter.pending.insert(request, caller);
                if !in_flight {
                    let time_ms = wall_ms(context.now);
                    let position = voter.next_position();
                    let batch = Batch { position, request, time_ms, content };
                    self.raft(context, |raft, at, _, out| raft.propose(at, batch, out));
                }
            }
        }
    }

    fn serve_reads(&mut self, context: &mut Context<'_>) {
        let position = self.end();
        let Some(voter) =
            self.voter().filter(|voter| !voter.reads.is_empty() && voter.takes_part())
        else {
            return;
        };
        // A read waits until the entries committed when its round began are applied.
        if voter.applied < voter.raft.applicable() {
            return;
        }
        let confirmed = voter.raft.confirmed();
        let served: Vec<_> = voter.reads.extract_if(.., |(round, _)| *round <= confirmed).collect();
        for (_, caller) in served {
            self.answer(context, caller, Operation::Read, position);
        }
    }
}
