//! The queue of the shard at the node that leads it, around the real dispatcher.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use meridian_queue::{
    Action, Dispatcher, Event, Lane, ListenerId, MessageKey, Moment, Opening, Outcome, SessionId,
    Ticket,
};
use meridian_types::{NodeId, Position, Verdict};

use super::{Context, Node};
use crate::bugs::Bug;
use crate::clock::{Instant, wall_ms};
use crate::message::{Batch, Content, Message, OfListener, Part, Told, Wakeup};
use crate::queue_rows::{QueueRows, number};
use crate::topology::DATABASE;

const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// Without its quorum for so long, a leader takes itself for none, and ends its sessions.
const ALONE: Duration = Duration::from_millis(1200);

struct Session {
    gateway: NodeId,
    listener: ListenerId,
}

/// A message on its way out: it leaves when the leadership is confirmed.
struct Handout {
    session: SessionId,
    key: MessageKey,
    until: Option<Duration>,
    /// The round that confirms it, and when that began.
    round: Option<(u64, Instant)>,
}

/// A leader's knowledge of its queue in one term.
pub(super) struct Queues {
    term: u64,
    dispatcher: Dispatcher,
    rows: QueueRows,
    /// So many batches are in `rows`.
    fed: usize,
    sessions: BTreeMap<SessionId, Session>,
    /// A connection brings each opening once.
    opened: BTreeSet<SessionId>,
    handouts: Vec<Handout>,
    tickets: BTreeMap<Ticket, (NodeId, u64)>,
    numbers: u64,
    /// Rows that were looked for, and are on their way.
    looked: BTreeMap<u64, Event>,
    /// To be logged.
    decided: Vec<(u64, Content)>,
    /// By the request, until it is known to have committed.
    logging: BTreeMap<u64, Lane>,
    /// Committed, and not yet told: that is an answer, and wants a lease.
    committed: Vec<Lane>,
    /// The round that shows that it leads, and when it began.
    alive: Option<(u64, Instant)>,
    alive_at: Duration,
    confirmed_at: Duration,
}

impl Queues {
    fn begin(term: u64, moment: Moment, history: &[Batch], bug: Option<Bug>) -> Self {
        let began = match bug {
            Some(Bug::HandOutAtOnce) => Position::ZERO,
            _ => crate::message::end_of(history),
        };
        Self {
            term,
            dispatcher: Dispatcher::new(moment, began),
            rows: QueueRows::of(history),
            fed: history.len(),
            sessions: BTreeMap::new(),
            opened: BTreeSet::new(),
            handouts: Vec::new(),
            tickets: BTreeMap::new(),
            numbers: 0,
            looked: BTreeMap::new(),
            decided: Vec::new(),
            logging: BTreeMap::new(),
            committed: Vec::new(),
            alive: None,
            alive_at: Duration::ZERO,
            confirmed_at: moment.now,
        }
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn tell(&self, context: &mut Context<'_>, session: SessionId, part: Part) {
        if let Some(Session { gateway, .. }) = self.sessions.get(&session) {
            context.send(*gateway, Message::Told(Told { session, part }));
        }
    }

    fn end_session(&mut self, context: &mut Context<'_>, session: SessionId) -> Option<Event> {
        self.tell(context, session, Part::Ended);
        let Session { listener, .. } = self.sessions.remove(&session)?;
        Some(Event::Closed { queue: DATABASE.into(), listener, session })
    }

    /// The listener's next attempt is due then, as its schedule says or its listener.
    fn verdict(&self, key: &MessageKey, outcome: Outcome, time_ms: u64) -> Verdict {
        let Outcome::Failed { retry_after } = outcome else { return Verdict::Delivered };
        let scheduled = self.rows.row(key).and_then(|row| row.backoff_ms.first().copied());
        let after_ms = retry_after.map_or_else(
            || scheduled.map_or(0, u64::from),
            |after| u64::try_from(after.as_millis()).unwrap_or(u64::MAX),
        );
        Verdict::Failed { retry_at_ms: time_ms + after_ms }
    }
}

impl Node {
    /// After each step: the queue of a leader that has begun, goes on or has ended.
    pub(super) fn tend_queues(&mut self, context: &mut Context<'_>) {
        let moment = self.moment(context);
        let Some(voter) = self.voter() else { return };
        let leads = voter.takes_part() && voter.raft.is_settled_leader();
        let term = voter.raft.term();
        if let Some(queues) = voter.queues.take_if(|queues| !leads || queues.term != term) {
            for (session, Session { gateway, .. }) in queues.sessions {
                context.send(gateway, Message::Told(Told { session, part: Part::Ended }));
            }
        }
        if voter.queues.is_none() && voter.is_ready() {
            let queues = Queues::begin(term, moment, &self.disk.history, context.bug);
            if let Some(voter) = self.voter() {
                voter.queues = Some(Box::new(queues));
            }
        }
        self.with_queues(context, |node, context, queues| {
            node.feed(context, queues);
            if queues.dispatcher.wake_at().is_some_and(|at| at <= moment.now) {
                node.step(context, queues, Event::Tick);
            }
            node.show_that_it_leads(context, queues);
        });
        self.log_settlements(context);
        self.confirm_handouts(context);
        self.with_queues(context, |node, context, queues| {
            node.feed(context, queues);
            node.hand_out(context, queues);
        });
    }

    fn moment(&self, context: &Context<'_>) -> Moment {
        let logged_ms = self.disk.history.last().map_or(0, |batch| batch.time_ms);
        Moment { now: self.at(context), time_ms: wall_ms(context.now).max(logged_ms) }
    }

    /// Nothing that `act` does lets the group take a step.
    fn with_queues(
        &mut self,
        context: &mut Context<'_>,
        act: impl FnOnce(&mut Self, &mut Context<'_>, &mut Queues),
    ) {
        let Some(mut queues) = self.voter().and_then(|voter| voter.queues.take()) else { return };
        act(self, context, &mut queues);
        if let Some(voter) = self.voter() {
            voter.queues = Some(queues);
        }
    }

    pub(super) fn of_listener(
        &mut self,
        context: &mut Context<'_>,
        gateway: NodeId,
        word: OfListener,
    ) {
        self.tend_queues(context);
        if self.voter().is_none_or(|voter| voter.queues.is_none()) {
            match word {
                OfListener::Opens(Opening { session, .. }) => {
                    context.send(gateway, Message::Told(Told { session, part: Part::Ended }));
                }
                OfListener::Closes(_) => {}
                OfListener::Reports { call, .. } => {
                    context.send(gateway, Message::Reported { call, answer: None });
                }
            }
            return;
        }
        self.with_queues(context, |node, context, queues| match word {
            OfListener::Opens(opening) => {
                let (session, listener) = (opening.session, opening.listener);
                if queues.opened.insert(session) {
                    queues.sessions.insert(session, Session { gateway, listener });
                    queues.tell(context, session, Part::Begun);
                    node.step(context, queues, Event::Opened(opening));
                }
            }
            OfListener::Closes(session) => {
                queues.opened.insert(session);
                if let Some(Session { listener, .. }) = queues.sessions.remove(&session) {
                    let closed = Event::Closed { queue: DATABASE.into(), listener, session };
                    node.step(context, queues, closed);
                }
            }
            OfListener::Reports { call, listener, key, report } => {
                let ticket = Ticket(queues.number());
                queues.tickets.insert(ticket, (gateway, call));
                let reports = vec![(ticket, key, report)];
                let reported = Event::Reported { queue: DATABASE.into(), listener, reports };
                node.step(context, queues, reported);
            }
        });
    }

    pub(super) fn looked(&mut self, context: &mut Context<'_>, term: u64, number: u64) {
        self.with_queues(context, |node, context, queues| {
            if queues.term == term
                && let Some(event) = queues.looked.remove(&number)
            {
                // Applied before, told before.
                node.feed(context, queues);
                node.step(context, queues, event);
            }
        });
    }

    /// Tells what was applied, and what has committed of what is being logged.
    fn feed(&mut self, context: &mut Context<'_>, queues: &mut Queues) {
        while let Some(batch) = self.disk.history.get(queues.fed).copied() {
            queues.fed += 1;
            let changes = queues.rows.apply(&batch);
            if !changes.is_empty() {
                self.step(context, queues, Event::Applied(changes));
            }
            if let Some(lane) = queues.logging.remove(&batch.request)
                && !queues.logging.values().any(|other| *other == lane)
            {
                queues.committed.push(lane);
            }
        }
        if !queues.committed.is_empty() && self.may_answer(context) {
            for lane in std::mem::take(&mut queues.committed) {
                self.step(context, queues, Event::Settled { queue: DATABASE.into(), lane });
            }
        }
    }

    fn may_answer(&self, context: &Context<'_>) -> bool {
        self.part.epoch().is_some_and(|epoch| self.holds_lease(context, epoch))
    }

    fn step(&mut self, context: &mut Context<'_>, queues: &mut Queues, event: Event) {
        let moment = self.moment(context);
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for action in queues.dispatcher.step(moment, event) {
                match action {
                    Action::Read { queue, from, limit } => {
                        let (rows, next) = queues.rows.from(from, limit);
                        self.look(context, queues, Event::Read { queue, rows, next });
                    }
                    Action::Check { queue, keys } => {
                        let gone = |key: &MessageKey| queues.rows.row(key).is_none();
                        let gone = keys.into_iter().filter(gone).collect();
                        self.look(context, queues, Event::Checked { queue, gone });
                    }
                    Action::Deliver { session, key, until } => {
                        queues.handouts.push(Handout { session, key, until, round: None });
                    }
                    Action::Release { session, key } => {
                        queues.tell(context, session, Part::Released(key));
                    }
                    Action::Refuse { session, .. } => {
                        events.extend(queues.end_session(context, session));
                    }
                    Action::Settle { lane, settlements, .. } => {
                        for (key, outcome) in settlements {
                            let verdict = queues.verdict(&key, outcome, moment.time_ms);
                            let request = self.settlement_request();
                            context.say(|| format!("n{} logs of {key:?}: {verdict:?}", self.id));
                            queues.decided.push((request, Content::Settle { key, verdict }));
                            queues.logging.insert(request, lane);
                        }
                    }
                    Action::Answer { ticket, answer } => {
                        context.say(|| format!("n{} answers {ticket:?}: {answer:?}", self.id));
                        if let Some((gateway, call)) = queues.tickets.remove(&ticket) {
                            let answer = Some(answer);
                            context.send(gateway, Message::Reported { call, answer });
                        }
                    }
                }
            }
        }
    }

    /// Apart from those of clients, and of every other life of a node.
    fn settlement_request(&mut self) -> u64 {
        self.settlements += 1;
        (1 << 63) | (self.id.0 << 48) | (self.incarnation << 32) | self.settlements
    }

    /// An answer comes later, when other things may have been applied.
    fn look(&self, context: &mut Context<'_>, queues: &mut Queues, found: Event) {
        let (term, number) = (queues.term, queues.number());
        queues.looked.insert(number, found);
        let delay = context.rng.between(100, 12_000);
        context.wake(delay, Wakeup::Looked { term, number });
    }

    /// Says so to gateways, once its quorum has confirmed it. Without that it ends their sessions.
    fn show_that_it_leads(&mut self, context: &mut Context<'_>, queues: &mut Queues) {
        let at = self.at(context);
        let may_answer = self.may_answer(context);
        let Some(voter) = self.voter() else { return };
        if queues.sessions.is_empty() {
            (queues.alive, queues.confirmed_at) = (None, at);
            return;
        }
        if let Some((round, as_of)) = queues.alive
            && voter.raft.confirmed() >= round
        {
            (queues.alive, queues.confirmed_at) = (None, at);
            for session in queues.sessions.keys().filter(|_| may_answer) {
                queues.tell(context, *session, Part::Alive { as_of });
            }
        }
        if queues.alive.is_none() && at >= queues.alive_at {
            queues.alive = Some((voter.raft.next_round(), context.now));
            queues.alive_at = at + ALIVE_EVERY;
        }
        if at.saturating_sub(queues.confirmed_at) > ALONE {
            let sessions: Vec<SessionId> = queues.sessions.keys().copied().collect();
            for session in sessions {
                if let Some(closed) = queues.end_session(context, session) {
                    self.step(context, queues, closed);
                }
            }
        }
    }

    fn log_settlements(&mut self, context: &mut Context<'_>) {
        let may_answer = self.may_answer(context);
        loop {
            let Some(voter) = self.voter() else { return };
            if !(voter.is_ready() && voter.admits && may_answer) {
                return;
            }
            let Some(queues) = &mut voter.queues else { return };
            let Some((request, content)) = queues.decided.pop() else { return };
            let (position, time_ms) = (voter.next_position(), wall_ms(context.now));
            let batch = Batch { position, request, time_ms, content };
            self.raft(context, |raft, at, _, out| raft.propose(at, batch, out));
        }
    }

    /// A round that begins now confirms the leadership for all that is to leave.
    fn confirm_handouts(&mut self, context: &mut Context<'_>) {
        let Some(queues) = self.voter().and_then(|voter| voter.queues.as_ref()) else { return };
        if queues.handouts.iter().all(|handout| handout.round.is_some()) {
            return;
        }
        let (mut round, as_of) = (0, context.now);
        self.raft(context, |raft, at, _, out| round = raft.begin_round(at, out));
        if let Some(queues) = self.voter().and_then(|voter| voter.queues.as_mut()) {
            for handout in &mut queues.handouts {
                handout.round.get_or_insert((round, as_of));
            }
        }
    }

    /// The messages whose rows are there still, as of a leadership that was confirmed since they
    /// were to leave; under the epoch lease alone.
    fn hand_out(&mut self, context: &mut Context<'_>, queues: &mut Queues) {
        if queues.handouts.is_empty() {
            return;
        }
        let at = self.at(context);
        let may_leave =
            self.may_answer(context) || context.bug == Some(Bug::HandOutWithoutTheLease);
        let Some(voter) = self.voter().filter(|voter| voter.is_ready()) else { return };
        let confirmed = voter.raft.confirmed();
        let is_confirmed =
            |handout: &mut Handout| handout.round.is_some_and(|(round, _)| round <= confirmed);
        let leave: Vec<Handout> = queues.handouts.extract_if(.., is_confirmed).collect();
        for Handout { session, key, until, round } in leave {
            if !queues.sessions.contains_key(&session) {
                continue;
            }
            let Some(row) = queues.rows.row(&key) else {
                let gone = Event::Gone { queue: DATABASE.into(), keys: vec![key] };
                self.step(context, queues, gone);
                continue;
            };
            if !may_leave {
                if let Some(closed) = queues.end_session(context, session) {
                    self.step(context, queues, closed);
                }
                continue;
            }
            let lease = until.map(|until| until.saturating_sub(at));
            if lease.is_some_and(|lease| lease.is_zero()) {
                continue;
            }
            let (message, attempt) = (number(&row.payload), row.attempts + 1);
            let (id, term) = (self.id, queues.term);
            context.say(|| {
                format!("n{id} hands out {message}, attempt {attempt}, in term {term}: {key:?}")
            });
            let as_of = round.map_or(0, |(_, as_of)| as_of);
            queues.tell(context, session, Part::Handed { key, message, attempt, lease, as_of });
        }
    }
}
