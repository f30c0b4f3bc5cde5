//! The world around the nodes: events in the order of real time.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_directory::{Cluster, Shard};
use meridian_types::NodeId;

use crate::bugs::Bug;
use crate::client::{Client, FIRST_CLIENT};
use crate::clock::{Instant, MS};
use crate::invariants::Observer;
use crate::listeners::{self, FIRST_GATEWAY, Listeners};
use crate::message::{Content, Message, Operation, Shipped, Wakeup};
use crate::network::Network;
use crate::node::{Context, Effect, Node};
use crate::rng::Rng;
use crate::topology::{REGIONS, SHARD, genesis};

mod chaos;
mod operator;
mod queues;
mod starvation;

const CLIENT_TICK: Instant = 10 * MS;
/// Until both ends of a connection take it for broken.
const BROKEN_AFTER: Instant = 800 * MS;

#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "nearly all of them are messages")]
enum Event {
    Deliver {
        from: NodeId,
        to: NodeId,
        message: Message,
    },
    Wake {
        node: NodeId,
        incarnation: u64,
        wakeup: Wakeup,
    },
    Client(usize),
    Listeners,
    Chaos,
    Crash(NodeId),
    Start(NodeId),
    Resume(NodeId),
    /// A starved process gets its turn, or has had it.
    Slice {
        node: NodeId,
        runs: bool,
    },
}

/// Nodes, clients and what is between them, in real time.
pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) observer: Observer,
    rng: Rng,
    /// Of the operator that changes voters; `None`: there is none.
    operator: Option<Rng>,
    /// `None`: no node is starved in this run.
    starved: Option<starvation::Starved>,
    /// `None`: there is no queue in this run.
    listeners: Option<Listeners>,
    connections: queues::Connections,
    nodes: BTreeMap<NodeId, Node>,
    ids: Vec<NodeId>,
    clients: Vec<Client>,
    network: Network,
    events: BTreeMap<(Instant, u64), Event>,
    scheduled: u64,
    /// Stopped processes, and what they will find when they go on.
    paused: BTreeMap<NodeId, Vec<Event>>,
    request: u64,
    quiet: bool,
    /// Average real time between two faults; `None` once they are over.
    faults: Option<Instant>,
    bug: Option<Bug>,
    verbose: bool,
    effects: Vec<Effect>,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>, verbose: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut operator = operator::of_seed(seed);
        let genesis = genesis(&mut rng, operator.as_mut());
        let nodes: BTreeMap<_, _> =
            genesis.nodes.keys().map(|id| (*id, Node::new(*id, &genesis, &mut rng))).collect();
        let clients = REGIONS
            .iter()
            .zip(FIRST_CLIENT.0..)
            .map(|(region, id)| Client::new(NodeId(id), region))
            .collect();
        let mut world = Self {
            now: 0,
            observer: Observer::new(&genesis),
            ids: nodes.keys().copied().collect(),
            nodes,
            clients,
            network: Network::default(),
            events: BTreeMap::new(),
            scheduled: 0,
            paused: BTreeMap::new(),
            request: 0,
            quiet: false,
            faults: None,
            bug,
            verbose,
            effects: Vec::new(),
            operator,
            starved: starvation::of_seed(seed).map(starvation::Starved::new),
            listeners: listeners::of_seed(seed),
            connections: queues::Connections::default(),
            rng,
        };
        for id in world.ids.clone() {
            world.start(id);
        }
        (0..world.clients.len())
            .for_each(|client| world.schedule(CLIENT_TICK, Event::Client(client)));
        if world.listeners.is_some() {
            world.schedule(0, Event::Listeners);
        }
        world
    }

    /// Until `end`, or the first violation.
    ///
    /// # Errors
    /// The violation, and its time.
    pub(crate) fn run_until(&mut self, end: Instant) -> Result<(), String> {
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > end {
                break;
            }
            let ((due, _), event) = entry.remove_entry();
            self.now = due;
            self.handle(event);
            if let Some(violation) = self.observer.violation.take() {
                return Err(format!("at {:.3} s: {violation}", self.now as f64 / 1e6));
            }
        }
        self.now = end;
        Ok(())
    }

    pub(crate) fn shard(&self) -> Option<Shard> {
        self.observer.cluster().and_then(|cluster| cluster.shards.get(&SHARD)).cloned()
    }

    pub(crate) fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.nodes.values()
    }

    /// Whether every client had a write acknowledged since then.
    pub(crate) fn all_acked_since(&self, since: Instant) -> bool {
        self.clients.iter().all(|client| client.acked_at > since)
    }

    /// Clients begin nothing any more.
    pub(crate) fn hush(&mut self) {
        self.quiet = true;
    }

    fn cluster(&self) -> Option<Arc<Cluster>> {
        self.observer.cluster().cloned()
    }

    fn schedule(&mut self, after: Instant, event: Event) {
        self.scheduled += 1;
        self.events.insert((self.now + after, self.scheduled), event);
    }

    fn handle(&mut self, event: Event) {
        if let Event::Deliver { from, to, message: Message::Renew { report, .. } } = &event {
            let leads = report.as_ref().filter(|report| report.leads).map(|report| report.epoch);
            self.observer.arrivals.renewal(self.now, *to, *from, leads);
        }
        let node = match &event {
            Event::Deliver { to, .. } => Some(*to),
            Event::Wake { node, .. } => Some(*node),
            _ => None,
        };
        if let Some(waiting) = node.and_then(|node| self.paused.get_mut(&node)) {
            return waiting.push(event);
        }
        match event {
            Event::Deliver { from, to, message } if to >= FIRST_GATEWAY => {
                self.tell_listeners(from, to, &message);
            }
            Event::Deliver { from, to, message } if to >= FIRST_CLIENT => {
                self.tell_client(from, to, &message);
            }
            Event::Deliver { from, to, message } => {
                if self.nodes.get(&to).is_some_and(|node| node.up) {
                    self.step(to, |node, context| node.receive(context, from, message));
                }
            }
            Event::Wake { node: id, incarnation, wakeup } => {
                if self
                    .nodes
                    .get(&id)
                    .is_some_and(|node| node.up && node.incarnation == incarnation)
                {
                    self.step(id, |node, context| node.wakeup(context, wakeup));
                }
            }
            Event::Client(index) => self.step_client(index),
            Event::Listeners => self.step_listeners(),
            Event::Chaos => self.chaos(),
            Event::Crash(id) => {
                // Crashes that were planned for a time after the faults do not happen.
                if self.faults.is_some() {
                    self.crash(id);
                }
            }
            Event::Start(id) => self.start(id),
            Event::Resume(id) => self.resume(id),
            Event::Slice { node, runs } => self.slice(node, runs),
        }
    }

    fn step(&mut self, id: NodeId, step: impl FnOnce(&mut Node, &mut Context<'_>)) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let mut effects = std::mem::take(&mut self.effects);
        let mut context = Context {
            now: self.now,
            rng: &mut self.rng,
            observer: &mut self.observer,
            effects: &mut effects,
            bug: self.bug,
            verbose: self.verbose,
        };
        step(node, &mut context);
        let incarnation = node.incarnation;
        for effect in effects.drain(..) {
            match effect {
                Effect::Send { to, message } => self.send(id, to, message),
                Effect::Wake { after, wakeup } => {
                    self.schedule(after, Event::Wake { node: id, incarnation, wakeup })
                }
            }
        }
        self.effects = effects;
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        let is_wan = self.is_wan(from, to);
        let mut arrivals = self.network.arrivals(self.now, &mut self.rng, from, to, is_wan);
        if from >= FIRST_GATEWAY || to >= FIRST_GATEWAY {
            return self.connect((from, to), message, arrivals.first().copied());
        }
        let Some(last) = arrivals.pop() else { return self.break_stream(&message) };
        for due in arrivals {
            self.schedule(due - self.now, Event::Deliver { from, to, message: message.clone() });
        }
        self.schedule(last - self.now, Event::Deliver { from, to, message });
    }

    /// A stream loses nothing: it ends, and both ends come to know.
    fn break_stream(&mut self, message: &Message) {
        let (source, link) = match message {
            Message::Ack { source, link, .. } | Message::ToReceiver { source, link, .. } => {
                (*source, *link)
            }
            _ => return,
        };
        let closed = Message::ToReceiver { source, link, event: Shipped::Closed };
        self.schedule(BROKEN_AFTER, Event::Deliver { from: source, to: link.0, message: closed });
        self.schedule(
            BROKEN_AFTER,
            Event::Deliver { from: link.0, to: source, message: Message::Unsubscribe { link } },
        );
    }

    /// Nodes and gateways are numbered by region, ten each; clients in the same order.
    fn is_wan(&self, from: NodeId, to: NodeId) -> bool {
        let number = |id: NodeId| match id {
            id if id >= FIRST_GATEWAY => (id.0 - FIRST_GATEWAY.0) / 10,
            id if id >= FIRST_CLIENT => id.0 - FIRST_CLIENT.0 + 1,
            id => id.0 / 10,
        };
        number(from) != number(to)
    }

    fn tell_client(&mut self, from: NodeId, to: NodeId, message: &Message) {
        let client = self.clients.iter_mut().find(|client| client.id == to);
        let acknowledged =
            client.and_then(|client| client.receive(self.now, &mut self.rng, from, message));
        if let (Some(listeners), Some(write)) = (&mut self.listeners, acknowledged) {
            listeners.acknowledged(self.now, write);
        }
    }

    fn step_client(&mut self, index: usize) {
        let floor = self.observer.floor();
        if let Some(client) = self.clients.get_mut(index).filter(|_| !self.quiet) {
            let id = client.id;
            let (now, request, listeners) = (self.now, &mut self.request, &mut self.listeners);
            let write = || {
                *request += 1;
                let content = listeners.as_mut().map(|listeners| listeners.enqueue(now, *request));
                Operation::Write { request: *request, content: content.unwrap_or(Content::Plain) }
            };
            let sent = client.step(now, &mut self.rng, &self.ids, floor, write);
            if let Some((to, message)) = sent {
                self.send(id, to, message);
            }
        }
        self.schedule(CLIENT_TICK, Event::Client(index));
    }

    fn start(&mut self, id: NodeId) {
        if self.nodes.get(&id).is_some_and(|node| !node.up) {
            self.say(&format!("n{id} starts"));
            self.step(id, |node, context| node.start(context));
        }
    }

    fn crash(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.up) {
            node.crash(self.bug);
            self.paused.remove(&id);
            self.say(&format!("n{id} crashes"));
        }
    }

    fn pause(&mut self, id: NodeId) {
        if self.nodes.get(&id).is_some_and(|node| node.up) && !self.paused.contains_key(&id) {
            self.paused.insert(id, Vec::new());
            self.say(&format!("n{id} is stopped"));
        }
    }

    /// It finds what came meanwhile, in the order in which it came.
    fn resume(&mut self, id: NodeId) {
        if let Some(waiting) = self.paused.remove(&id) {
            self.say(&format!("n{id} goes on"));
            waiting.into_iter().for_each(|event| self.schedule(0, event));
        }
    }

    fn say(&self, text: &str) {
        if self.verbose {
            println!("{:>9.3} {text}", self.now as f64 / 1e6);
        }
    }
}

#[cfg(test)]
mod tests;
