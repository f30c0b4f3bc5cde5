//! Pulling a stretch of the history from a node that has it: for a drain, or before a group is
//! founded.

use std::sync::Arc;
use std::time::Duration;

use meridian_shipping::ReceiverEvent;
use meridian_types::{NodeId, Position};

use super::part::Part;
use super::voter::Voter;
use super::{Context, Node};
use crate::clock::MS;
use crate::message::{Batch, History, Message, Tail, Wakeup, end_of, len_at};
use crate::topology::{SHARD, region_of};

const READ_BATCHES: usize = 32;
const PULL_TIMEOUT: Duration = Duration::from_millis(400);
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// In which a founder that lags asks everybody for what it lacks; then it joins by a snapshot.
const PULL_ROUNDS: usize = 3;

#[derive(Debug, Clone, Copy)]
pub(super) struct Pull {
    source: NodeId,
    through: Position,
    /// When the source was last asked.
    asked_at: Option<Duration>,
    /// What came is on its way to the disk.
    writes: bool,
    /// The source's log begins too late: the fetch of its whole state, and since when; `None` once
    /// it has come.
    fetch: Option<(u64, Option<Duration>)>,
}

impl Pull {
    pub(super) fn new(source: NodeId, through: Position) -> Self {
        Self { source, through, asked_at: None, writes: false, fetch: None }
    }

    pub(super) fn is_done(&self, end: Position) -> bool {
        end.sequence >= self.through.sequence
    }

    /// What is on its way goes on, and is not asked for again.
    pub(super) fn redirected(self, to: Self) -> Self {
        let asked_at = self.asked_at.filter(|_| self.source == to.source);
        Self { asked_at, writes: self.writes, fetch: self.fetch, ..to }
    }
}

/// Of one that is to found a group and does not stand at the base yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    pull: Pull,
    tried: usize,
}

impl Node {
    /// Of a voter that lacks something of the base.
    pub(super) fn reach_base(&mut self, base: Position) {
        let first = self.sources().first().copied();
        if let (Some(voter), Some(first)) = (self.voter(), first) {
            voter.reach = Some(Reach { pull: Pull::new(first, base), tried: 0 });
        }
    }

    /// All others, the nearest first.
    fn sources(&self) -> Vec<NodeId> {
        let cluster = &self.disk.cluster;
        let home = region_of(cluster, self.id);
        let mut sources: Vec<_> =
            cluster.nodes.keys().copied().filter(|node| *node != self.id).collect();
        sources.sort_by_key(|node| (region_of(cluster, *node) != home, *node));
        sources
    }

    fn pull(&mut self) -> Option<&mut Pull> {
        match &mut self.part {
            Part::Idle => None,
            Part::Voter(voter) => voter.reach.as_mut().map(|reach| &mut reach.pull),
            Part::Replica(replica) if replica.is_quiet() => {
                replica.drain.as_mut().map(|drain| &mut drain.pull)
            }
            Part::Replica(_) => None,
        }
    }

    pub(super) fn go_on_pulling(&mut self, context: &mut Context<'_>) {
        let (at, end) = (self.at(context), self.end());
        self.answer_drain(context);
        let Some(pull) = self.pull() else { return };
        if pull.is_done(end) {
            return self.found(context);
        }
        if let Some((_, Some(since))) = pull.fetch
            && at.saturating_sub(since) >= FETCH_TIMEOUT
        {
            pull.fetch = None;
        }
        if pull.writes || pull.fetch.is_some() {
            return;
        }
        if pull.asked_at.is_some_and(|asked| at.saturating_sub(asked) >= PULL_TIMEOUT) {
            self.next_source();
        }
        if let Some(pull) = self.pull()
            && pull.asked_at.is_none()
        {
            pull.asked_at = Some(at);
            let (source, through) = (pull.source, pull.through);
            context.send(source, Message::ReadLog { after: end, through });
        }
    }

    /// A drain asks its source again; a founder the next one, until it has had enough.
    fn next_source(&mut self) {
        let sources = self.sources();
        if let Some(pull) = self.pull() {
            pull.asked_at = None;
        }
        let Some(Voter { reach, .. }) = self.voter() else { return };
        if let Some(Reach { pull, tried }) = reach {
            *tried += 1;
            pull.source =
                sources.get(*tried % sources.len().max(1)).copied().unwrap_or(pull.source);
        }
        reach.take_if(|reach| reach.tried >= PULL_ROUNDS * sources.len());
    }

    /// A voter that has reached the base.
    fn found(&mut self, context: &mut Context<'_>) {
        let cluster = Arc::clone(&self.disk.cluster);
        let Some(shard) = cluster.shards.get(&SHARD) else { return };
        if self
            .voter()
            .is_some_and(|voter| voter.reach.take().is_some() && voter.epoch == shard.epoch)
        {
            self.part = Part::Idle;
            self.vote(context, shard);
        }
    }

    pub(super) fn read_log(
        &mut self,
        context: &mut Context<'_>,
        to: NodeId,
        after: Position,
        through: Position,
    ) {
        let skip = len_at(after.sequence);
        let has_it = self.disk.history.get(..skip).is_some_and(|before| end_of(before) == after);
        let batches = self.disk.history.iter().skip(skip).take(READ_BATCHES).copied();
        let batches: Vec<_> =
            batches.take_while(|batch| batch.position.sequence <= through.sequence).collect();
        let tail = if self.disk.needs_seed || !has_it || batches.is_empty() {
            Tail::Nothing
        } else if skip < self.disk.purged {
            Tail::Gone
        } else {
            Tail::Batches(batches)
        };
        context.send(to, Message::LogRead { after, tail });
    }

    pub(super) fn log_read(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        after: Position,
        tail: Tail,
    ) {
        let (at, end, incarnation, next) =
            (self.at(context), self.end(), self.incarnation, self.fetches + 1);
        let Some(pull) = self.pull() else { return };
        if after != end || pull.source != from || pull.writes || pull.fetch.is_some() {
            return;
        }
        match tail {
            Tail::Batches(batches) => {
                pull.writes = true;
                let delay = context.disk_delay();
                context.wake(delay, Wakeup::Pulled { batches });
            }
            Tail::Gone => {
                pull.fetch = Some((next, Some(at)));
                self.fetches = next;
                context.send(from, Message::ReadState { incarnation, fetch: next });
            }
            // A drain is ordered again.
            Tail::Nothing if matches!(self.part, Part::Voter(_)) => {
                self.next_source();
                self.go_on_pulling(context);
            }
            Tail::Nothing => {}
        }
    }

    pub(super) fn pulled(&mut self, context: &mut Context<'_>, batches: Vec<Batch>) {
        let next = self.end().sequence + 1;
        let Some(pull) = self.pull().filter(|pull| pull.writes) else { return };
        (pull.writes, pull.asked_at) = (false, None);
        if batches.first().is_some_and(|batch| batch.position.sequence == next) {
            let Some(epoch) = self.part.epoch() else { return };
            for batch in batches {
                context.observer.taken(epoch, self.id, batch);
                self.push(batch);
            }
            context.observer.counts.drains += 1;
            self.say_drained(context);
        }
        self.go_on_pulling(context);
    }

    fn say_drained(&mut self, context: &mut Context<'_>) {
        let position = self.end();
        if let Part::Replica(_) = &self.part {
            self.receiver(context, ReceiverEvent::Drained { position }, None);
        }
    }

    pub(super) fn read_state(
        &mut self,
        context: &mut Context<'_>,
        to: NodeId,
        incarnation: u64,
        fetch: u64,
    ) {
        let gives = !self.disk.needs_seed && self.part.epoch().is_some();
        let history = gives.then(|| Arc::new(self.disk.history.clone()));
        context.send(to, Message::StateRead { incarnation, fetch, history });
    }

    pub(super) fn state_read(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        history: Option<Arc<History>>,
    ) {
        let Some(pull) = self.pull() else { return };
        let Some((_, since)) =
            pull.fetch.as_mut().filter(|(of, since)| *of == number && since.is_some())
        else {
            return;
        };
        *since = None;
        // A large one takes longer than a drain lasts.
        let delay = if context.rng.chance(200) {
            context.rng.between(1000, 5000)
        } else {
            context.rng.between(5, 300)
        };
        match history {
            Some(history) => {
                context.wake(delay * MS, Wakeup::StatePulled { fetch: number, history })
            }
            None => pull.fetch = None,
        }
    }

    /// Takes the state, if it brings this one nearer to where it is to come, and not past it.
    pub(super) fn state_pulled(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        history: &History,
    ) {
        let (end, position) = (self.end(), end_of(history));
        let in_history = self.shard().is_some_and(|shard| shard.in_history(position));
        let Some(pull) = self.pull().filter(|pull| pull.fetch.is_some_and(|(of, _)| of == number))
        else {
            return;
        };
        (pull.fetch, pull.asked_at) = (None, None);
        if in_history && position.sequence > end.sequence && position <= pull.through {
            let (Some(epoch), Some(last)) = (self.part.epoch(), history.last()) else { return };
            context.observer.taken(epoch, self.id, *last);
            context.observer.counts.whole_states += 1;
            context.say(|| format!("n{} takes a whole state at {position}", self.id));
            self.replace_history(history.clone());
            if let Part::Replica(_) = &self.part {
                self.receiver(context, ReceiverEvent::SnapshotInstalled { position }, None);
            }
            self.say_drained(context);
        }
        self.go_on_pulling(context);
    }
}
