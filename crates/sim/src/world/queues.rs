//! Connections between gateways and nodes, and what goes wrong with gateways.

use std::collections::{BTreeMap, BTreeSet};

use meridian_queue::SessionId;
use meridian_types::NodeId;

use super::{BROKEN_AFTER, Event, World};
use crate::clock::{Instant, MS, SECOND};
use crate::listeners::{LISTENERS_TICK, Sent, node_of};
use crate::message::{Message, OfListener, Part, Told};
use crate::queue_rows::QueueRows;
use crate::topology::SHARD;

/// They keep the order, bring everything once, and break where something is lost.
#[derive(Default)]
pub(super) struct Connections {
    /// When the last message on each way arrives.
    last: BTreeMap<(NodeId, NodeId), Instant>,
    broken: BTreeSet<SessionId>,
}

impl World {
    /// `due`: when the message arrives, unless it is lost.
    pub(super) fn connect(
        &mut self,
        (from, to): (NodeId, NodeId),
        message: Message,
        due: Option<Instant>,
    ) {
        let session = message.session();
        if session.is_some_and(|session| self.connections.broken.contains(&session)) {
            return;
        }
        let Some(due) = due else {
            if let Some(session) = session {
                self.break_session((from, to), session);
            }
            return;
        };
        let last = self.connections.last.entry((from, to)).or_default();
        *last = due.max(*last);
        let after = *last - self.now;
        self.schedule(after, Event::Deliver { from, to, message });
    }

    /// Both ends come to know, and nothing else arrives.
    fn break_session(&mut self, (from, to): (NodeId, NodeId), session: SessionId) {
        self.connections.broken.insert(session);
        let closes = Message::OfListener(OfListener::Closes(session));
        let ended = Message::Told(Told { session, part: Part::Ended });
        let (gateway, node) = if from > to { (from, to) } else { (to, from) };
        let events = [(gateway, node, closes), (node, gateway, ended)];
        for (from, to, message) in events {
            self.schedule(BROKEN_AFTER, Event::Deliver { from, to, message });
        }
    }

    pub(super) fn step_listeners(&mut self) {
        let nodes = &self.nodes;
        let voters = |gateway: NodeId| {
            let shard =
                nodes.get(&node_of(gateway)).and_then(|node| node.disk.cluster.shards.get(&SHARD));
            shard.into_iter().flat_map(|shard| shard.voters.iter().copied()).collect()
        };
        if let Some(listeners) = &mut self.listeners {
            let sent = listeners.tick(self.now, &voters);
            self.send_all(sent);
        }
        self.schedule(LISTENERS_TICK, Event::Listeners);
    }

    pub(super) fn tell_listeners(&mut self, from: NodeId, to: NodeId, message: &Message) {
        if let Some(listeners) = &mut self.listeners {
            let sent = listeners.receive(self.now, (from, to), message);
            self.send_all(sent);
        }
    }

    fn send_all(&mut self, sent: Sent) {
        sent.into_iter().for_each(|(from, to, message)| self.send(from, to, message));
    }

    /// Now and then between two faults: one gateway is lost, or cut from all nodes; or the primary
    /// region goes on for long without the others, with its gateways and clients.
    pub(super) fn trouble_gateways(&mut self) {
        let Some(listeners) = &mut self.listeners else { return };
        if listeners.chance(40) {
            let lasts = listeners.between(9, 20) * SECOND;
            let primary = self.shard().map(|shard| shard.primary_region).unwrap_or_default();
            let inside = self.with_clients(&primary);
            let outside: BTreeSet<_> = self.all().difference(&inside).copied().collect();
            self.say(&format!("cut: region {primary}"));
            self.network.cut(inside.clone(), outside.clone(), self.now + lasts);
            return self.network.cut(outside, inside, self.now + lasts);
        }
        let (is_lost, is_cut) = (listeners.chance(100), listeners.chance(150));
        let lasts = listeners.between(200, 9000) * MS;
        let Some(gateway) = listeners.any_gateway().filter(|_| is_lost || is_cut) else { return };
        if is_lost {
            listeners.lose(self.now, gateway);
            return self.say(&format!("gateway {gateway} is lost"));
        }
        let (inside, outside) = (BTreeSet::from([gateway]), self.ids.iter().copied().collect());
        self.say(&format!("cut: gateway {gateway}"));
        self.network.cut(inside.clone(), BTreeSet::clone(&outside), self.now + lasts);
        self.network.cut(outside, inside, self.now + lasts);
    }

    /// Of the queue nothing is left that could happen.
    pub(crate) fn is_drained(&self) -> bool {
        let Some(listeners) = &self.listeners else { return true };
        let Some(shard) = self.shard() else { return false };
        listeners.are_idle() && QueueRows::of(self.observer.truth(shard.epoch)).is_empty()
    }

    /// The run is over.
    pub(crate) fn finish(&mut self) {
        let history =
            self.listeners.as_mut().map(|listeners| std::mem::take(&mut listeners.history));
        self.observer.finish(self.now, history.unwrap_or_default());
    }
}
