use std::collections::BTreeMap;
use std::time::Duration;

use meridian_shipping::{
    Heartbeat, ReceiverAction, ReceiverEvent, ReceiverPhase, Sender, SenderAction, SenderConfig,
    SenderEvent,
};
use meridian_types::{Epoch, NodeId, Position};

use crate::node::{BATCH_BYTES, LEADER, Link, Message, Node, PRIMARY, Shipped};
use crate::rng::Rng;

/// A bug planted between the receiver and the world, to see that the invariants catch it.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Bug {
    None,
    ReportsBeforePersisted,
    SkipsTheContiguityCheck,
}

pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// The history of each epoch; sequence `n` at index `n - 1`.
    pub(crate) histories: BTreeMap<Epoch, Vec<Position>>,
    pub(crate) bases: Vec<(Epoch, Position)>,
    pub(crate) net: BTreeMap<(u64, u64), (NodeId, NodeId, Message)>,
    pub(crate) sent: u64,
    pub(crate) lossy: bool,
    pub(crate) cut: Vec<(NodeId, NodeId)>,
    pub(crate) bug: Bug,
    pub(crate) violation: Option<String>,
    /// Batches that crossed into each replica region.
    pub(crate) wan_batches: BTreeMap<u64, u64>,
    pub(crate) snapshots: u64,
    pub(crate) orphans: u64,
}

impl World {
    pub(crate) fn new(seed: u64, bug: Bug) -> Self {
        let ids = PRIMARY.into_iter().chain([11, 12, 13, 21, 22, 23].map(NodeId));
        Self {
            now: 0,
            rng: Rng::new(seed),
            nodes: ids.map(|id| (id, Node::new(id))).collect(),
            histories: BTreeMap::from([(Epoch::FIRST, Vec::new())]),
            bases: Vec::new(),
            net: BTreeMap::new(),
            sent: 0,
            lossy: false,
            cut: Vec::new(),
            bug,
            violation: None,
            wan_batches: BTreeMap::new(),
            snapshots: 0,
            orphans: 0,
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        *self.histories.keys().last().unwrap()
    }

    pub(crate) fn truth(&self) -> &[Position] {
        &self.histories[&self.epoch()]
    }

    pub(crate) fn commit(&mut self) {
        let epoch = self.epoch();
        let history = self.histories.get_mut(&epoch).unwrap();
        history.push(Position::new(epoch, history.len() as u64 + 1));
    }

    /// The primary loses its last batches and goes on in a new epoch. Some replicas are sealed
    /// first.
    pub(crate) fn fail_over(&mut self, lost: u64) {
        let epoch = self.epoch();
        let followers: Vec<_> =
            self.nodes.keys().copied().filter(|id| self.nodes[id].follower.is_some()).collect();
        for id in followers {
            if self.rng.chance(500) {
                self.receiver(id, ReceiverEvent::Seal { epoch });
            }
        }
        let mut history = self.truth().to_vec();
        let purged = PRIMARY.iter().map(|id| self.nodes[id].purged.sequence).max().unwrap();
        let kept = (history.len() as u64).saturating_sub(lost).max(purged);
        history.truncate(kept as usize);
        let epoch = Epoch(self.epoch().0 + 1);
        let base = history.last().copied().unwrap_or(Position::ZERO);
        self.bases.push((epoch, base));
        self.histories.insert(epoch, history);
        for id in PRIMARY {
            let node = self.nodes.get_mut(&id).unwrap();
            let keep = kept.saturating_sub(node.purged.sequence) as usize;
            node.log.truncate(keep);
            (node.epoch, node.base) = (epoch, base);
        }
        PRIMARY.into_iter().for_each(|id| self.close_senders(id));
    }

    fn close_senders(&mut self, id: NodeId) {
        let links: Vec<_> = self.nodes[&id].senders.keys().copied().collect();
        for link in links {
            self.sender(id, link, SenderEvent::EpochChanged);
        }
    }

    pub(crate) fn purge(&mut self, id: NodeId, keep: usize) {
        let node = self.nodes.get_mut(&id).unwrap();
        if node.log.len() > keep {
            let gone = node.log.len() - keep;
            node.purged = node.log[gone - 1];
            node.log.drain(..gone);
        }
    }

    fn reaches(&self, a: NodeId, b: NodeId) -> bool {
        !self.cut.contains(&(a, b)) && !self.cut.contains(&(b, a))
    }

    fn send(&mut self, from: NodeId, to: NodeId, message: Message) {
        let is_wan = self.nodes[&from].region() != self.nodes[&to].region();
        if let Message::ToReceiver { event: Shipped::Batch { .. }, .. } = message
            && is_wan
        {
            *self.wan_batches.entry(self.nodes[&to].region()).or_default() += 1;
        }
        if !self.reaches(from, to) || (self.lossy && self.rng.chance(3)) {
            return;
        }
        let mut due = self.now + if is_wan { 40 } else { 1 };
        if self.lossy && self.rng.chance(5) {
            due += self.rng.below(200);
        }
        let copies = if self.lossy && self.rng.chance(5) { 2 } else { 1 };
        for _ in 0..copies {
            self.sent += 1;
            self.net.insert((due, self.sent), (from, to, message));
        }
    }

    /// Five milliseconds pass.
    pub(crate) fn step(&mut self) {
        self.now += 5;
        while let Some((&key, _)) = self.net.first_key_value()
            && key.0 <= self.now
        {
            let (from, to, message) = self.net.remove(&key).unwrap();
            if self.nodes[&to].up {
                self.deliver(from, to, message);
            }
        }
        let ids: Vec<_> = self.nodes.keys().copied().filter(|id| self.nodes[id].up).collect();
        for id in ids {
            self.tick(id);
        }
    }

    fn deliver(&mut self, from: NodeId, to: NodeId, message: Message) {
        let at = Duration::from_millis(self.now);
        match message {
            Message::Status(status) => {
                if let Some(follower) = &mut self.nodes.get_mut(&to).unwrap().follower {
                    follower.election.on_status(at, status);
                }
            }
            Message::Subscribe { link, from: position } => {
                let node = self.nodes.get_mut(&to).unwrap();
                // A node has one subscription at a source. A late subscription is of no use to any
                // node.
                if node.senders.keys().any(|other| other.0 == link.0 && *other >= link) {
                    return;
                }
                node.senders.retain(|other, _| other.0 != link.0);
                if !node.may_serve() {
                    return self.send(
                        to,
                        from,
                        Message::ToReceiver { link, event: Shipped::Closed },
                    );
                }
                let (epoch, tail) = (node.status(self.now).epoch, node.tail());
                let config =
                    SenderConfig { window_bytes: 30 * BATCH_BYTES, ..SenderConfig::default() };
                node.senders.insert(link, Sender::new(config, at, epoch, position));
                self.send(to, from, Message::ToReceiver { link, event: Shipped::Connected(epoch) });
                self.sender(to, link, tail);
            }
            Message::Unsubscribe { link } => {
                drop(self.nodes.get_mut(&to).unwrap().senders.remove(&link))
            }
            Message::Ack { link, durable } => self.sender(to, link, SenderEvent::Acked { durable }),
            Message::ToReceiver { link, event } => {
                let node = self.nodes.get_mut(&to).unwrap();
                if link.1 != node.incarnation {
                    return;
                }
                let durable = node.last();
                let follower = node.follower.as_mut().unwrap();
                if let Shipped::Heartbeat(heartbeat) = event {
                    follower.election.on_status(at, heartbeat.status);
                }
                if let Shipped::Batch { position, .. } = event
                    && self.bug == Bug::SkipsTheContiguityCheck
                    && follower.receiver.phase() == ReceiverPhase::Following
                {
                    let last = follower.writing.back().map_or(durable, |(_, last)| *last);
                    if position.sequence > last.sequence + 1 {
                        return self.act(to, ReceiverAction::Persist { position });
                    }
                }
                self.receiver(to, ReceiverEvent::Stream(link.2, event.into()));
            }
        }
    }

    fn tick(&mut self, id: NodeId) {
        let at = Duration::from_millis(self.now);
        if PRIMARY.contains(&id) {
            self.follow_leader(id);
        } else {
            self.learn_epoch(id);
            self.disk(id);
            self.snapshot(id);
            self.receiver(id, ReceiverEvent::Tick);
            let own = self.nodes[&id].status(self.now);
            let source = self
                .nodes
                .get_mut(&id)
                .unwrap()
                .follower
                .as_mut()
                .unwrap()
                .election
                .choose(at, &own);
            self.receiver(id, ReceiverEvent::Source(source));
        }
        let node = &self.nodes[&id];
        let (tail, links): (_, Vec<_>) = (node.tail(), node.senders.keys().copied().collect());
        for link in links {
            self.sender(id, link, tail.clone());
        }
        if self.nodes[&id].next_status <= self.now {
            self.nodes.get_mut(&id).unwrap().next_status = self.now + 250;
            let status = self.nodes[&id].status(self.now);
            let others: Vec<_> =
                self.nodes.keys().copied().filter(|other| *other != id && other.0 > 3).collect();
            for other in others {
                self.send(id, other, Message::Status(status));
            }
        }
    }

    /// Primary members apply what is committed, the followers now and then a little late.
    fn follow_leader(&mut self, id: NodeId) {
        if id != LEADER && self.rng.chance(300) {
            return;
        }
        let history = &self.histories[&self.epoch()];
        let node = self.nodes.get_mut(&id).unwrap();
        let have = node.last().sequence as usize;
        node.log.extend_from_slice(&history[have.min(history.len())..]);
    }

    fn learn_epoch(&mut self, id: NodeId) {
        let known = self.nodes[&id].follower.as_ref().unwrap().receiver.epoch();
        let next = self.bases.iter().copied().find(|(epoch, _)| *epoch > known);
        if let Some((epoch, base)) = next
            && self.rng.chance(20)
        {
            let node = self.nodes.get_mut(&id).unwrap();
            (node.epoch, node.base) = (epoch, base);
            self.close_senders(id);
            self.receiver(id, ReceiverEvent::Epoch { epoch, base });
        }
    }

    fn disk(&mut self, id: NodeId) {
        let now = self.now;
        let node = self.nodes.get_mut(&id).unwrap();
        let follower = node.follower.as_mut().unwrap();
        let mut persisted = None;
        while let Some(&(due, position)) = follower.writing.front()
            && due <= now
        {
            follower.writing.pop_front();
            node.log.push(position);
            persisted = Some(position);
        }
        if let Some(position) = persisted {
            self.receiver(id, ReceiverEvent::Persisted { position });
        }
    }

    fn snapshot(&mut self, id: NodeId) {
        let (now, install_ms) = (self.now, self.rng.below(200));
        let node = self.nodes.get_mut(&id).unwrap();
        let follower = node.follower.as_mut().unwrap();
        if let Some((_, position)) = follower.installing.take_if(|(due, _)| *due <= now) {
            if !follower.writing.is_empty() {
                self.violation =
                    Some(format!("{id} installed a snapshot over a log that was being written"));
            }
            (node.purged, node.log) = (position, Vec::new());
            self.snapshots += 1;
            return self.receiver(id, ReceiverEvent::SnapshotInstalled { position });
        }
        let Some((_, source, epoch)) = follower.fetching.take_if(|(due, ..)| *due <= now) else {
            return;
        };
        let from = &self.nodes[&source];
        if !from.may_serve() || from.status(self.now).epoch != epoch || !self.reaches(id, source) {
            return self.receiver(id, ReceiverEvent::SnapshotFailed);
        }
        let position = from.last();
        self.nodes.get_mut(&id).unwrap().follower.as_mut().unwrap().installing =
            Some((now + install_ms, position));
        self.receiver(id, ReceiverEvent::SnapshotFetched);
    }

    fn receiver(&mut self, id: NodeId, event: ReceiverEvent) {
        let jitter = self.rng.jitter();
        let at = Duration::from_millis(self.now);
        let follower = self.nodes.get_mut(&id).unwrap().follower.as_mut().unwrap();
        for action in follower.receiver.step(at, jitter, event) {
            self.act(id, action);
        }
    }

    fn act(&mut self, id: NodeId, action: ReceiverAction) {
        let (now, at) = (self.now, Duration::from_millis(self.now));
        let (write_ms, fetch_ms) = (self.rng.below(40), self.rng.below(200));
        let node = self.nodes.get_mut(&id).unwrap();
        let (incarnation, last) = (node.incarnation, node.last());
        let follower = node.follower.as_mut().unwrap();
        match action {
            ReceiverAction::Connect { stream, source, from } => {
                follower.streams.insert(stream, source);
                self.send(id, source, Message::Subscribe { link: (id, incarnation, stream), from });
            }
            ReceiverAction::CloseStream { stream } => {
                let source = follower.streams.remove(&stream).unwrap();
                self.send(id, source, Message::Unsubscribe { link: (id, incarnation, stream) });
            }
            ReceiverAction::Persist { position } => {
                let (due, tail) = follower.writing.back().copied().unwrap_or((now, last));
                follower.writing.push_back((due.max(now + write_ms), position));
                let committed =
                    self.histories[&follower.receiver.epoch()].get(position.sequence as usize - 1);
                if position.sequence != tail.sequence + 1 || committed != Some(&position) {
                    self.violation = Some(format!(
                        "{id} persists {position} after {tail}; committed: {committed:?}"
                    ));
                }
                if follower.sealed.is_some_and(|(epoch, _)| follower.receiver.epoch() <= epoch) {
                    self.violation =
                        Some(format!("{id} takes {position}, though it said that it was sealed"));
                }
                let stream = follower.streams.keys().last().copied();
                if let (Bug::ReportsBeforePersisted, Some(stream)) = (self.bug, stream) {
                    self.act(id, ReceiverAction::ReportDurable { stream, position });
                }
            }
            ReceiverAction::ReportDurable { stream, position } => {
                if position > last {
                    self.violation =
                        Some(format!("{id} reports {position}, but {last} is durable"));
                }
                let source = follower.streams[&stream];
                self.send(
                    id,
                    source,
                    Message::Ack { link: (id, incarnation, stream), durable: position },
                );
            }
            ReceiverAction::FetchSnapshot { source, epoch } => {
                follower.fetching = Some((now + fetch_ms, source, epoch))
            }
            ReceiverAction::CancelSnapshot => {
                if follower.fetching.take().is_none() {
                    self.violation =
                        Some(format!("{id} was to give up a snapshot that it does not fetch"));
                }
                self.receiver(id, ReceiverEvent::SnapshotFailed);
            }
            ReceiverAction::SourceFailed { source, .. } => follower.election.failed(at, source),
            ReceiverAction::SaveOrphans { base } => self.orphans += last.sequence - base.sequence,
            ReceiverAction::Sealed { durable } => {
                follower.sealed = Some((follower.receiver.epoch(), durable));
                if durable != last || !follower.writing.is_empty() {
                    self.violation =
                        Some(format!("{id} says that {durable} is final, but {last} is durable"));
                }
            }
            ReceiverAction::EpochAhead { .. } => {}
        }
    }

    fn sender(&mut self, id: NodeId, link: Link, event: SenderEvent) {
        let mut events = vec![event];
        while let Some(event) = events.pop() {
            let at = Duration::from_millis(self.now);
            let Some(sender) = self.nodes.get_mut(&id).unwrap().senders.get_mut(&link) else {
                return;
            };
            for action in sender.step(at, event) {
                let node = self.nodes.get_mut(&id).unwrap();
                let shipped = match action {
                    SenderAction::Read { after, max_bytes } => {
                        events.push(node.read(after, max_bytes));
                        continue;
                    }
                    SenderAction::Send { position, previous } => {
                        Shipped::Batch { position, previous }
                    }
                    SenderAction::Heartbeat => {
                        let committed = node.last();
                        Shipped::Heartbeat(Heartbeat {
                            status: node.status(self.now),
                            committed,
                            time_ms: self.now,
                        })
                    }
                    SenderAction::SnapshotNeeded { diverged } => {
                        node.senders.remove(&link);
                        Shipped::SnapshotNeeded { diverged }
                    }
                    SenderAction::Close { .. } => {
                        node.senders.remove(&link);
                        Shipped::Closed
                    }
                };
                self.send(id, link.0, Message::ToReceiver { link, event: shipped });
            }
        }
    }
}
