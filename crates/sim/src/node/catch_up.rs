//! Carries out what [`CatchUp`] decides: for an order of the directory's leader, or before a group is
//! founded.

use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Phase, Shard};
use meridian_placement::{
    CALL_TIMEOUT, CatchUp, CatchUpAction, CatchUpEvent, CatchUpFailure, PULL_PAUSE, check_source,
    sources,
};
use meridian_shipping::{ReceiverEvent, ReceiverPhase};
use meridian_types::{EpochHistory, NodeId, Position};

use super::orders::Order;
use super::part::Part;
use super::{Context, Node};
use crate::clock::MS;
use crate::message::{Batch, History, Message, Tail, Wakeup, end_of, len_at};
use crate::topology::SHARD;

const READ_BATCHES: usize = 32;
/// For a whole state to come: a chunk that is lost on its way ends the stream.
const FETCH_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the caller of an order waits for its answer.
const ORDER_WAITS: Duration = Duration::from_millis(2500);

/// A catch-up that is being carried out, and the order that it is for.
#[derive(Debug)]
pub(super) struct Pulling {
    machine: CatchUp,
    order: Option<Order>,
    waits: Waits,
}

/// The event that a catching-up node waits for.
#[derive(Debug)]
enum Waits {
    Nothing,
    Log { source: NodeId, after: Position, since: Duration },
    Batches(Vec<Batch>),
    State,
    Pause { until: Duration },
}

/// A whole state that is fetched in place of a tail.
#[derive(Debug)]
pub(super) struct Whole {
    number: u64,
    /// Since when its source is silent; `None` once it is on its way.
    silent_since: Option<Duration>,
    came: Option<Arc<History>>,
}

impl Node {
    pub(super) fn order(&mut self, context: &mut Context<'_>, order: Order) {
        if self.part.epoch() != Some(order.epoch) {
            return;
        }
        match &mut self.part {
            Part::None => {}
            // Its group is what brings it there, until it has stopped.
            Part::Voter(voter) => voter.order = Some(order).filter(|_| !voter.halted),
            // The log is shipped to it anyway.
            Part::Replica(replica) if replica.receiver.phase() != ReceiverPhase::Sealed => {
                replica.waiting = Some(order);
            }
            // An earlier caller has asked again.
            Part::Replica(_) => self.order = Some(order),
        }
        self.tick_orders(context);
    }

    /// Answers what has come to its position by itself, and begins the order at hand once nothing else
    /// goes on in a sealed replica.
    pub(super) fn tick_orders(&mut self, context: &mut Context<'_>) {
        let (at, end) = (self.at(context), self.end());
        let waits = |order: &Order| at.saturating_sub(order.asked_at) < ORDER_WAITS;
        self.order.take_if(|order| !waits(order));
        let arrived = match &mut self.part {
            Part::None => return,
            Part::Voter(voter) => {
                voter.order.take_if(|order| order.through.sequence <= end.sequence)
            }
            Part::Replica(replica) => {
                replica.waiting.take_if(|order| !waits(order));
                replica.waiting.take_if(|order| order.through <= end)
            }
        };
        if let Some(order) = arrived {
            self.answer_order(context, order);
        }
        if self.pulling.is_some() {
            return;
        }
        let Part::Replica(replica) = &self.part else { return };
        if replica.is_quiet()
            && let Some(order) = self.order.take()
        {
            let (history, is_fetching) = (replica.history.clone(), self.whole.is_some());
            let machine = CatchUp::ordered(at, history, order.source, order.through, is_fetching);
            self.begin_pulling(context, machine, Some(order));
        }
    }

    fn answer_order(&self, context: &mut Context<'_>, order: Order) {
        let Order { from, term, epoch, .. } = order;
        context.send(from, Message::Drained { term, epoch, position: self.end() });
    }

    pub(super) fn pull_to_base(&mut self, context: &mut Context<'_>, history: EpochHistory) {
        let sources = sources(&self.disk.cluster, SHARD, self.id);
        self.begin_pulling(context, CatchUp::to_base(history, sources), None);
    }

    fn begin_pulling(&mut self, context: &mut Context<'_>, machine: CatchUp, order: Option<Order>) {
        self.pulling = Some(Pulling { machine, order, waits: Waits::Nothing });
        self.pull(context, CatchUpEvent::Begin { position: self.end() });
    }

    /// Whether the group that a founder pulls for is still being formed.
    pub(super) fn is_forming(&self, shard: &Shard) -> bool {
        self.pulling.as_ref().is_none_or(|pulling| {
            pulling.order.is_some()
                || (shard.epoch == pulling.machine.history().epoch()
                    && shard.phase == Phase::Forming)
        })
    }

    pub(super) fn unwanted(&mut self, context: &mut Context<'_>) {
        if self.pulling.as_ref().is_some_and(|pulling| matches!(pulling.waits, Waits::State)) {
            self.whole = None;
            self.pull(context, CatchUpEvent::Unwanted);
        }
    }

    /// Tells the machine what has happened, and does what it says.
    fn pull(&mut self, context: &mut Context<'_>, event: CatchUpEvent) {
        let at = self.at(context);
        let mut next = Some(event);
        while let Some(event) = next.take()
            && let Some(pulling) = &mut self.pulling
        {
            match pulling.machine.step(at, event) {
                CatchUpAction::ReadLog { source, after, through } => {
                    pulling.waits = Waits::Log { source, after, since: at };
                    context.send(source, Message::ReadLog { after, through });
                }
                CatchUpAction::WriteBatches => {
                    let delay = context.disk_delay();
                    context.wake(delay, Wakeup::Pulled);
                }
                CatchUpAction::FetchState { source } => {
                    pulling.waits = Waits::State;
                    self.fetches += 1;
                    let (incarnation, fetch) = (self.incarnation, self.fetches);
                    self.whole = Some(Whole { number: fetch, silent_since: Some(at), came: None });
                    context.send(source, Message::ReadState { incarnation, fetch });
                }
                CatchUpAction::AwaitState => {
                    pulling.waits = Waits::State;
                    next = self.fetched_state();
                }
                CatchUpAction::InstallState => {
                    next = self.install_state(context);
                }
                CatchUpAction::Pause => pulling.waits = Waits::Pause { until: at + PULL_PAUSE },
                CatchUpAction::Finish(result) => return self.finish_pulling(context, result),
                CatchUpAction::Nothing => {}
            }
        }
    }

    fn finish_pulling(&mut self, context: &mut Context<'_>, result: Result<(), CatchUpFailure>) {
        if result.is_ok() {
            self.whole = None;
        }
        let Some(Pulling { order, .. }) = self.pulling.take() else { return };
        let Some(order) = order else {
            context.say(|| format!("n{} pulled up to the base: {result:?}", self.id));
            self.whole = None;
            return self.go_on_changing(context);
        };
        let position = self.end();
        self.receiver(context, ReceiverEvent::Drained { position }, None);
        if result.is_ok() {
            self.answer_order(context, order);
        }
        self.close_replica(context);
        self.go_on_changing(context);
    }

    /// Times that are over.
    pub(super) fn tick_pulling(&mut self, context: &mut Context<'_>) {
        let at = self.at(context);
        let is_lost = |whole: &Whole| {
            whole.silent_since.is_some_and(|since| at.saturating_sub(since) >= FETCH_TIMEOUT)
        };
        let is_lost = self.whole.take_if(|whole| is_lost(whole)).is_some();
        let Some(pulling) = &self.pulling else { return };
        let failed = || CatchUpEvent::Failed { reason: "no answer".to_owned() };
        let event = match &pulling.waits {
            Waits::Log { since, .. } if at.saturating_sub(*since) >= CALL_TIMEOUT => failed(),
            Waits::State if is_lost => failed(),
            Waits::Pause { until } if at >= *until => {
                CatchUpEvent::Resumed { sources: sources(&self.disk.cluster, SHARD, self.id) }
            }
            _ if pulling.machine.until().is_some_and(|until| at >= until) => CatchUpEvent::Late,
            _ => return,
        };
        self.pull(context, event);
    }

    pub(super) fn read_log(
        &mut self,
        context: &mut Context<'_>,
        to: NodeId,
        after: Position,
        through: Position,
    ) {
        let skip = len_at(after.sequence);
        let serves = self.is_source(Some(after));
        let batches = self.disk.history.iter().skip(skip).take(READ_BATCHES).copied();
        let batches: Vec<_> =
            batches.take_while(|batch| batch.position.sequence <= through.sequence).collect();
        let tail = if !serves || batches.is_empty() {
            Tail::Nothing
        } else if skip < self.disk.purged {
            Tail::Gone
        } else {
            Tail::Batches(batches)
        };
        context.send(to, Message::LogRead { after, tail });
    }

    fn is_source(&self, after: Option<Position>) -> bool {
        let history = match &self.part {
            Part::None => return false,
            Part::Voter(voter) => &voter.history,
            Part::Replica(replica) => &replica.history,
        };
        check_source(history, self.end(), after).is_ok()
    }

    pub(super) fn log_read(
        &mut self,
        context: &mut Context<'_>,
        from: NodeId,
        after: Position,
        tail: Tail,
    ) {
        let Some(pulling) = &mut self.pulling else { return };
        let Waits::Log { source, after: asked, .. } = &pulling.waits else { return };
        if *source != from || *asked != after {
            return;
        }
        let event = match tail {
            Tail::Batches(batches) => {
                let positions = batches.iter().map(|batch| batch.position).collect();
                pulling.waits = Waits::Batches(batches);
                CatchUpEvent::Batches { previous: after, batches: positions }
            }
            Tail::Gone => CatchUpEvent::LogGone,
            Tail::Nothing => CatchUpEvent::Failed { reason: "it has nothing".to_owned() },
        };
        self.pull(context, event);
    }

    /// The pulled batches are durable.
    pub(super) fn pulled(&mut self, context: &mut Context<'_>) {
        let Some(pulling) = &mut self.pulling else { return };
        let Waits::Batches(batches) = std::mem::replace(&mut pulling.waits, Waits::Nothing) else {
            return;
        };
        let epoch = pulling.machine.history().epoch();
        for batch in batches {
            context.observer.taken(epoch, self.id, batch);
            self.push(batch);
        }
        context.observer.counts.drains += 1;
        self.pull(context, CatchUpEvent::Written { position: self.end() });
    }

    pub(super) fn read_state(
        &mut self,
        context: &mut Context<'_>,
        to: NodeId,
        incarnation: u64,
        fetch: u64,
    ) {
        let history = self.is_source(None).then(|| Arc::new(self.disk.history.clone()));
        context.send(to, Message::StateRead { incarnation, fetch, history });
    }

    pub(super) fn state_read(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        history: Option<Arc<History>>,
    ) {
        let Some(whole) = self.whole.as_mut().filter(|whole| whole.number == number) else {
            return;
        };
        let Some(history) = history else {
            self.whole = None;
            return self.state_failed(context);
        };
        // A large one takes longer than an order lasts.
        let delay = if context.rng.chance(200) {
            context.rng.between(1000, 5000)
        } else {
            context.rng.between(5, 300)
        };
        whole.silent_since = None;
        context.wake(delay * MS, Wakeup::StatePulled { fetch: number, history });
    }

    fn state_failed(&mut self, context: &mut Context<'_>) {
        if self.pulling.as_ref().is_some_and(|pulling| matches!(pulling.waits, Waits::State)) {
            let reason = "it gives no state".to_owned();
            self.pull(context, CatchUpEvent::Failed { reason });
        }
    }

    pub(super) fn state_pulled(
        &mut self,
        context: &mut Context<'_>,
        number: u64,
        history: Arc<History>,
    ) {
        let Some(whole) = self.whole.as_mut().filter(|whole| whole.number == number) else {
            return;
        };
        whole.came = Some(history);
        if self.pulling.as_ref().is_some_and(|pulling| matches!(pulling.waits, Waits::State))
            && let Some(event) = self.fetched_state()
        {
            self.pull(context, event);
        }
    }

    /// The state, if it has come.
    fn fetched_state(&self) -> Option<CatchUpEvent> {
        let came = self.whole.as_ref()?.came.as_ref()?;
        Some(CatchUpEvent::StateFetched { position: end_of(came) })
    }

    fn install_state(&mut self, context: &mut Context<'_>) -> Option<CatchUpEvent> {
        let history = self.whole.take()?.came?;
        let (position, last) = (end_of(&history), history.last()?);
        let pulling = self.pulling.as_ref()?;
        context.observer.taken(pulling.machine.history().epoch(), self.id, *last);
        context.observer.counts.whole_states += 1;
        context.say(|| format!("n{} takes a whole state at {position}", self.id));
        self.replace_history(history.to_vec());
        self.receiver(context, ReceiverEvent::SnapshotInstalled { position }, None);
        Some(CatchUpEvent::StateInstalled { position })
    }
}
