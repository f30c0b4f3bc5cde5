//! Listeners of the queue: clients, their gateways' care of them, and the history of what they saw.
//!
//! A gateway and its client are one here. The way between them is there or not; the network lies
//! between the gateway and the leader.

use std::collections::{BTreeMap, BTreeSet};

use meridian_checker::queue::{Enqueue, EnqueueOutcome, QueueEvent};
use meridian_queue::{Incarnation, ListenerId, MessageKey, Opening, SessionId};
use meridian_types::{MessageId, NodeId, Position, Versionstamp};

use crate::clock::{Instant, MS, SECOND, wall_ms};
use crate::message::{Content, Message, OfListener, Part, Told};
use crate::queue_rows::plan;
use crate::rng::Rng;
use crate::topology::{DATABASE, REGIONS};

mod poll;
mod work;

use poll::Poll;
use work::Work;

/// Gateways have ids from here on: ten for each region.
pub(crate) const FIRST_GATEWAY: NodeId = NodeId(2000);
const GATEWAYS_OF_REGION: u64 = 2;
pub(crate) const LISTENERS_TICK: Instant = 25 * MS;

/// A leader that says nothing for so long is looked for elsewhere.
const SILENT: Instant = 1500 * MS;
/// Until another voter is asked for a session.
const UNANSWERED: Instant = 600 * MS;
const PAUSE: Instant = 150 * MS;
/// A gateway that was without a leader for so long may have come too late to say what its listeners
/// hold, at a leader that stays and at the next one: each waits for five seconds.
const AWAY: Instant = 4 * SECOND;
/// Stands for the listener of a message that was lost on its way.
const UNKNOWN: u32 = 0;

/// In every fourth run. Its choices are its own.
pub(crate) fn of_seed(seed: u64) -> Option<Listeners> {
    (seed % 4 == 2).then(|| Listeners::new(Rng::new(seed ^ 0x0A11_5EA5)))
}

/// Messages from gateways: sender, receiver and word.
pub(crate) type Sent = Vec<(NodeId, NodeId, Message)>;

pub(crate) struct Listeners {
    rng: Rng,
    all: Vec<Listener>,
    numbers: Numbers,
    pub(crate) history: Vec<QueueEvent>,
    /// Where in the history the enqueue of a request is.
    enqueues: BTreeMap<u64, usize>,
    messages: u64,
    /// Nothing goes wrong any more.
    is_calm: bool,
}

/// The last that were given out.
#[derive(Default)]
struct Numbers {
    listener: u32,
    session: u64,
    call: u64,
}

struct Listener {
    region: u64,
    gateway: NodeId,
    number: u32,
    id: ListenerId,
    incarnation: u128,
    /// Of a stream: how many messages it holds at a time.
    credits: u32,
    /// `None`: it listens to a stream.
    poll: Option<Poll>,
    /// `Some`: its client has no way to a gateway before then.
    away_until: Option<Instant>,
    resumed: bool,
    session: Option<Session>,
    ask_at: Instant,
    turn: usize,
    /// The messages that its gateway says it holds.
    held: BTreeSet<MessageKey>,
    work: BTreeMap<MessageKey, Work>,
    /// When a leader that had its session surely led for the last time.
    as_of: Instant,
    handed_at: Instant,
}

struct Session {
    id: SessionId,
    node: NodeId,
    has_begun: bool,
    heard_at: Instant,
}

/// The voters of the shard, as far as a gateway knows.
pub(crate) type Voters<'a> = &'a dyn Fn(NodeId) -> Vec<NodeId>;

/// The surroundings of a listener while it takes a step.
struct Step<'a> {
    now: Instant,
    rng: &'a mut Rng,
    numbers: &'a mut Numbers,
    history: &'a mut Vec<QueueEvent>,
    voters: Voters<'a>,
    sent: &'a mut Sent,
}

fn ns(at: Instant) -> u64 {
    at * 1000
}

/// The node whose gateway it is: each region has two nodes at least.
pub(crate) fn node_of(gateway: NodeId) -> NodeId {
    NodeId(gateway.0 - FIRST_GATEWAY.0 + 1)
}

pub(crate) fn gateways(region: &str) -> impl Iterator<Item = NodeId> {
    let number = (1..).zip(REGIONS).find(|(_, of)| *of == region).map_or(0, |(number, _)| number);
    (0..GATEWAYS_OF_REGION).map(move |index| NodeId(FIRST_GATEWAY.0 + 10 * number + index))
}

impl Listeners {
    fn new(rng: Rng) -> Self {
        let (all, enqueues) = (Vec::new(), BTreeMap::new());
        // Messages are lost on their way at any time, and leases of polls end there.
        let history = vec![QueueEvent::Broke { at_ns: 0, listener: UNKNOWN }];
        let numbers = Numbers::default();
        let mut listeners =
            Self { rng, all, numbers, history, enqueues, messages: 0, is_calm: true };
        // The primary is in the first region at first.
        for region in [1, 1, 2, 3] {
            listeners.add(region, None);
        }
        for region in [1, 2] {
            let poll = Poll::new(0, &mut listeners.rng);
            listeners.add(region, Some(poll));
        }
        listeners
    }

    fn add(&mut self, region: u64, poll: Option<Poll>) {
        let mut listener = Listener {
            region,
            gateway: NodeId(0),
            number: 0,
            id: ListenerId([0; 16]),
            incarnation: 0,
            credits: 0,
            poll,
            away_until: None,
            resumed: false,
            session: None,
            ask_at: 0,
            turn: 0,
            held: BTreeSet::new(),
            work: BTreeMap::new(),
            as_of: 0,
            handed_at: 0,
        };
        listener.begin_life(0, &mut self.rng, &mut self.numbers);
        self.all.push(listener);
    }

    /// The content of a client's write: now and then a message.
    pub(crate) fn enqueue(&mut self, now: Instant, request: u64) -> Content {
        if !self.rng.chance(150) {
            return Content::Plain;
        }
        self.messages += 1;
        let delay = if self.rng.chance(500) { self.rng.between(200, 20_000) * MS } else { 0 };
        let (attempts, dead_keys) = plan(self.messages);
        self.enqueues.insert(request, self.history.len());
        self.history.push(QueueEvent::Enqueue(Enqueue {
            message: self.messages,
            invoked_ns: ns(now),
            completed_ns: None,
            outcome: EnqueueOutcome::Unknown,
            delay_ns: ns(delay),
            attempts,
            dead_keys,
        }));
        Content::Enqueue { message: self.messages, due_ms: wall_ms(now + delay) }
    }

    pub(crate) fn acknowledged(&mut self, now: Instant, (request, position): (u64, Position)) {
        let at = self.enqueues.remove(&request);
        if let Some(QueueEvent::Enqueue(enqueue)) = at.and_then(|at| self.history.get_mut(at)) {
            let versionstamp = Versionstamp::new(position, 0);
            let id = MessageId { enqueued: versionstamp, index: 0 }.to_string();
            enqueue.completed_ns = Some(ns(now));
            enqueue.outcome = EnqueueOutcome::Enqueued { id, versionstamp };
        }
    }

    /// No handler is at work, and no report without an answer.
    pub(crate) fn are_idle(&self) -> bool {
        self.all.iter().all(|listener| listener.work.is_empty())
    }

    pub(crate) fn set_calm(&mut self, is_calm: bool) {
        self.is_calm = is_calm;
    }

    fn with(
        &mut self,
        now: Instant,
        voters: Voters<'_>,
        mut act: impl FnMut(&mut Listener, &mut Step<'_>),
    ) -> Sent {
        let mut sent = Sent::new();
        let Self { rng, all, numbers, history, .. } = self;
        for listener in all {
            let sent = &mut sent;
            act(listener, &mut Step { now, rng, numbers, history, voters, sent });
        }
        sent
    }

    pub(crate) fn tick(&mut self, now: Instant, voters: Voters<'_>) -> Sent {
        let is_calm = self.is_calm;
        self.with(now, voters, |listener, step| listener.tick(step, is_calm))
    }

    pub(crate) fn receive(
        &mut self,
        now: Instant,
        (from, to): (NodeId, NodeId),
        message: &Message,
    ) -> Sent {
        self.with(now, &|_| Vec::new(), |listener, step| match *message {
            Message::Told(Told { session, part })
                if listener.session.as_ref().is_some_and(|its| its.id == session) =>
            {
                listener.told(step, from, part);
            }
            Message::Reported { call, answer } if listener.gateway == to => {
                listener.answered(step, call, answer);
            }
            _ => {}
        })
    }

    /// A gateway's process is gone, with all that it knew. Its clients go to others.
    pub(crate) fn lose(&mut self, now: Instant, gateway: NodeId) {
        drop(self.with(now, &|_| Vec::new(), |listener, step| {
            if listener.gateway == gateway {
                // Its machine says nothing more, so that the leader comes to know late, or never.
                listener.session = None;
                listener.lose_its_way(step);
            }
        }));
    }

    pub(crate) fn any_gateway(&mut self) -> Option<NodeId> {
        let gateways: Vec<_> = self.all.iter().map(|listener| listener.gateway).collect();
        self.rng.pick(&gateways).copied()
    }

    pub(crate) fn chance(&mut self, per_mille: u64) -> bool {
        self.rng.chance(per_mille)
    }

    pub(crate) fn between(&mut self, from: u64, to: u64) -> u64 {
        self.rng.between(from, to)
    }
}

impl Listener {
    /// A process that begins is another listener.
    fn begin_life(&mut self, now: Instant, rng: &mut Rng, numbers: &mut Numbers) {
        numbers.listener += 1;
        self.number = numbers.listener;
        self.id = ListenerId(u128::from(self.number).to_be_bytes());
        self.credits = if rng.chance(500) { 2 } else { 20 };
        self.held.clear();
        self.work.clear();
        (self.as_of, self.handed_at) = (now, now);
        self.come_to_a_gateway(now, rng);
    }

    fn come_to_a_gateway(&mut self, now: Instant, rng: &mut Rng) {
        // Mostly in its own region.
        let region = if rng.chance(800) { self.region } else { rng.between(1, 4) };
        let index = rng.below(GATEWAYS_OF_REGION);
        self.gateway = NodeId(FIRST_GATEWAY.0 + 10 * region + index);
        self.incarnation = (u128::from(now) << 32) | u128::from(self.number);
        (self.session, self.resumed, self.ask_at) = (None, false, now);
        self.held = self.work.keys().copied().collect();
        self.away_until = None;
    }

    fn tick(&mut self, step: &mut Step<'_>, is_calm: bool) {
        self.report_what_is_due(step);
        if let Some(until) = self.away_until {
            if step.now >= until {
                self.come_to_a_gateway(step.now, step.rng);
            }
            return;
        }
        // About each ten seconds.
        if !is_calm && step.rng.chance(3) {
            return self.go_wrong(step);
        }
        if self.poll.is_some() && self.tick_poll(step) {
            return;
        }
        let is_lost = |session: &mut Session| {
            let patience = if session.has_begun { SILENT } else { UNANSWERED };
            step.now > session.heard_at + patience
        };
        if let Some(session) = self.session.take_if(is_lost) {
            self.close(step, &session);
        }
        if self.session.is_none() && step.now >= self.ask_at {
            self.ask_for_a_session(step);
        }
    }

    fn close(&mut self, step: &mut Step<'_>, session: &Session) {
        self.ask_at = step.now + step.rng.below(PAUSE);
        let closes = Message::OfListener(OfListener::Closes(session.id));
        step.sent.push((self.gateway, session.node, closes));
    }

    fn ask_for_a_session(&mut self, step: &mut Step<'_>) {
        self.turn += 1;
        let voters = (step.voters)(self.gateway);
        let Some(node) = voters.get(self.turn % voters.len().max(1)).copied() else { return };
        step.numbers.session += 1;
        let id = SessionId(step.numbers.session);
        let opening = Opening {
            queue: DATABASE.into(),
            listener: self.id,
            session: id,
            incarnation: Incarnation(self.incarnation),
            credits: self.poll.as_ref().map_or(self.credits, Poll::credits),
            lease: self.poll.as_ref().map(Poll::lease),
            held: self.held.iter().copied().collect(),
            resumed: self.resumed,
        };
        self.session = Some(Session { id, node, has_begun: false, heard_at: step.now });
        step.sent.push((self.gateway, node, Message::OfListener(OfListener::Opens(opening))));
    }

    fn told(&mut self, step: &mut Step<'_>, from: NodeId, part: Part) {
        if let Some(session) = &mut self.session {
            (session.has_begun, session.heard_at) = (true, step.now);
        }
        self.resumed |= !matches!(part, Part::Ended);
        match part {
            Part::Begun => {}
            Part::Ended => {
                if self.session.as_ref().is_some_and(|session| session.node == from) {
                    self.session = None;
                    self.ask_at = step.now + step.rng.below(PAUSE);
                }
            }
            Part::Alive { as_of } => self.was_led(step, as_of),
            Part::Handed { key, message, attempt, lease, as_of } => {
                self.was_led(step, as_of);
                self.take(step, key, (message, attempt), lease);
            }
            Part::Released(key) => {
                self.held.remove(&key);
                let is_given_up = self.work.get(&key).is_some_and(|work| work.reported.is_none());
                if is_given_up && let Some(work) = self.work.get(&key) {
                    let (at_ns, listener, message) = (ns(step.now), self.number, work.message);
                    step.history.push(QueueEvent::Released { at_ns, listener, message });
                    if !work.goes_on {
                        self.work.remove(&key);
                    }
                }
            }
        }
    }

    /// A leader that had the session led at that time.
    fn was_led(&mut self, step: &mut Step<'_>, as_of: Instant) {
        if step.now > self.as_of + AWAY {
            self.held_until_now(step);
        }
        self.as_of = self.as_of.max(as_of);
    }

    /// No more than this is sure of what it holds.
    fn held_until_now(&self, step: &mut Step<'_>) {
        let at_ns = ns(self.as_of.max(self.handed_at));
        step.history.push(QueueEvent::Broke { at_ns, listener: self.number });
    }

    /// Its stream breaks, its client starts anew, or both ends stay and the client is late.
    fn go_wrong(&mut self, step: &mut Step<'_>) {
        if let Some(session) = self.session.take() {
            self.close(step, &session);
        }
        if self.poll.is_some() || step.rng.chance(300) {
            self.held_until_now(step);
            self.poll = self.poll.take().map(|_| Poll::new(step.now, step.rng));
            self.begin_life(step.now, step.rng, step.numbers);
            self.away_until = Some(step.now + step.rng.between(100, 3000) * MS);
            return;
        }
        self.lose_its_way(step);
    }

    /// The client comes back within the grace, or later. It is another life to the leader: what was
    /// on its way to it is lost, and has failed.
    fn lose_its_way(&mut self, step: &mut Step<'_>) {
        if self.poll.is_some() {
            return self.lose_its_poll(step);
        }
        let away = if step.rng.chance(600) {
            step.rng.between(50, 3000)
        } else {
            step.rng.between(3000, 9000)
        };
        self.away_until = Some(step.now + away * MS);
    }
}
