//! How packets travel, and what comes of them where they arrive.

use crate::files::{FileKind, Socket};
use crate::kernel::{Event, Kernel};
use crate::machine::Power;
use crate::network::{Link, Message, Packet, Side};

/// The longest wait of a connection until it sends again what a cut link has lost.
const AGAIN_NS: u64 = 1_000_000_000;

impl Kernel {
    pub(crate) fn link(&mut self, from: usize, to: usize) -> &mut Link {
        let profile = &self.settings.link;
        let (latency_ns, jitter_ns) =
            if from == to { (10_000, 5_000) } else { (profile.latency_ns, profile.jitter_ns) };
        let lost_ppm = if from == to { 0 } else { profile.lost_ppm };
        let new = Link { latency_ns, jitter_ns, lost_ppm, is_cut: false };
        self.network.links.entry((from, to)).or_insert(new)
    }

    fn travels(&mut self, from: usize, to: usize) -> u64 {
        let link = *self.link(from, to);
        let mut takes = link.latency_ns + self.chance.below(link.jitter_ns.max(1));
        while self.chance.happens(link.lost_ppm) && takes < AGAIN_NS {
            // Sent again after the time that a sender waits for an acknowledgement.
            takes += 200_000_000 + 2 * link.latency_ns;
        }
        takes
    }

    /// Sends to a side of a connection, behind all that was sent before.
    pub(crate) fn send(&mut self, connection: usize, to: usize, message: Message) {
        let Some(sides) = self.network.connections.get(&connection) else { return };
        let [zero, one] = sides;
        let (from, target) = if to == 0 { (one, zero) } else { (zero, one) };
        let (from, target, last_at) = (from.machine, target.machine, target.last_at);
        let at = (self.now + self.travels(from, target)).max(last_at + 1);
        if let Some(side) = self.side(connection, to) {
            side.last_at = at;
        }
        self.schedule(at, Event::Packet(Packet { connection, to, message }));
    }

    pub(crate) fn side(&mut self, connection: usize, side: usize) -> Option<&mut Side> {
        self.network.connections.get_mut(&connection).and_then(|sides| sides.get_mut(side))
    }

    /// A packet has come to the end of its way, if that is not cut.
    pub(crate) fn arrives(&mut self, packet: Packet) {
        let Packet { connection, to, message } = packet;
        let (Some(other), Some(side)) =
            (self.side(connection, 1 - to).map(|other| other.machine), self.side(connection, to))
        else {
            return;
        };
        let (machine, keeps) = (side.machine, !side.kept.is_empty());
        self.note((connection as u64) << 32 ^ (to as u64) << 24 ^ self.now);
        let is_cut = self.link(other, machine).is_cut;
        if message == Message::Again {
            if !is_cut {
                self.arrives_again(connection, to);
            }
        } else if is_cut || keeps {
            if let Some(side) = self.side(connection, to) {
                side.kept.push_back(message);
            }
        } else {
            self.receive(connection, to, message);
        }
    }

    fn arrives_again(&mut self, connection: usize, to: usize) {
        let kept = self.side(connection, to).map(|side| std::mem::take(&mut side.kept));
        for message in kept.into_iter().flatten() {
            self.receive(connection, to, message);
        }
    }

    /// A link is whole again: what it kept arrives when it is sent again.
    pub(crate) fn send_again(&mut self, from: usize, to: usize) {
        let mut waiting = Vec::new();
        for (connection, [zero, one]) in &self.network.connections {
            for (side, here, there) in [(0, zero, one), (1, one, zero)] {
                if here.machine == to && there.machine == from && !here.kept.is_empty() {
                    waiting.push((*connection, side));
                }
            }
        }
        for (connection, to) in waiting {
            let at = self.now + self.chance.below(AGAIN_NS);
            let packet = Packet { connection, to, message: Message::Again };
            self.schedule(at, Event::Packet(packet));
        }
    }

    fn receive(&mut self, connection: usize, to: usize, message: Message) {
        let Some(side) = self.side(connection, to) else { return };
        let machine = side.machine;
        if self.machine(machine).power == Power::Off {
            if let Some(side) = self.side(connection, to) {
                side.is_missed = true;
            }
            return;
        }
        if message == Message::Open {
            return self.opens(connection, to);
        }
        let Some(side) = self.side(connection, to) else { return };
        if side.is_gone() {
            let other = self.side(connection, 1 - to).map(|other| other.is_gone());
            if other == Some(true) {
                self.network.connections.remove(&connection);
            } else if matches!(message, Message::Data(_) | Message::End | Message::Opened) {
                self.send(connection, 1 - to, Message::Reset);
            }
            return;
        }
        let (file, refused) = (side.file, message_error(&message));
        match message {
            Message::Data(bytes) => {
                side.coming -= bytes.len();
                side.arrived.extend(bytes);
            }
            Message::End => side.ended = true,
            Message::Room => side.is_full = false,
            Message::Reset | Message::Refused => side.is_reset = true,
            Message::Opened | Message::Open | Message::Again => {}
        }
        if let Some(file) = file {
            if let Some(FileKind::Socket(socket)) = self.files.kind(file)
                && let Socket::Connecting { connection } = *socket
            {
                *socket = match refused {
                    None => Socket::Connected { connection, side: to },
                    Some(error) => Socket::Failed { error },
                };
            }
            self.changed(file);
        }
    }

    /// A machine hears that another wants a connection.
    fn opens(&mut self, connection: usize, to: usize) {
        let Some(side) = self.side(connection, to) else { return };
        let (machine, port) = (side.machine, side.local.port);
        let listener = self.files.listener(machine, port);
        let Some((file, waiting)) = listener else {
            self.send(connection, 1 - to, Message::Refused);
            return;
        };
        waiting.push_back(connection);
        if let Some(side) = self.side(connection, to) {
            side.waits_for_accept = true;
        }
        self.send(connection, 1 - to, Message::Opened);
        self.changed(file);
    }

    /// A side is given up: its process closes it, or is gone.
    pub(crate) fn give_up(&mut self, connection: usize, side: usize, silently: bool) {
        let Some(here) = self.side(connection, side) else { return };
        let is_rude = !here.arrived.is_empty() || here.coming > 0;
        let was_over = here.is_reset || (here.ended && here.has_shut);
        (here.file, here.waits_for_accept) = (None, false);
        here.arrived.clear();
        if !silently && !was_over {
            let last = if is_rude { Message::Reset } else { Message::End };
            self.send(connection, 1 - side, last);
        }
    }

    /// The machine's connections end: with a word to the other side, if its kernel is there to say
    /// one.
    pub(crate) fn lose_connections(&mut self, machine: usize, silently: bool) {
        let mut lost = Vec::new();
        for (connection, sides) in &self.network.connections {
            for (at, side) in sides.iter().enumerate() {
                if side.machine == machine && !side.is_gone() {
                    lost.push((*connection, at));
                }
            }
        }
        for (connection, side) in lost {
            if let Some(here) = self.side(connection, side) {
                (here.file, here.waits_for_accept) = (None, false);
            }
            if !silently {
                self.send(connection, 1 - side, Message::Reset);
            }
        }
    }

    /// A machine is there again: it answers what is sent to connections that it does not know.
    pub(crate) fn disown_connections(&mut self, machine: usize) {
        let mut unknown = Vec::new();
        for (connection, sides) in &mut self.network.connections {
            for (at, side) in sides.iter_mut().enumerate() {
                if side.machine == machine && std::mem::take(&mut side.is_missed) {
                    unknown.push((*connection, 1 - at));
                }
            }
        }
        for (connection, to) in unknown {
            let at = self.now + self.chance.below(AGAIN_NS);
            let packet = Packet { connection, to, message: Message::Reset };
            self.schedule(at, Event::Packet(packet));
        }
    }

    /// All connections between two machines break.
    pub(crate) fn break_connections(&mut self, one: usize, other: usize) {
        let between = |sides: &[Side; 2]| {
            let [zero, first] = sides;
            (zero.machine, first.machine) == (one, other)
                || (zero.machine, first.machine) == (other, one)
        };
        let connections = &self.network.connections;
        let broken: Vec<usize> = connections
            .iter()
            .filter_map(|(connection, sides)| between(sides).then_some(*connection))
            .collect();
        for connection in broken {
            for to in [0, 1] {
                let packet = Packet { connection, to, message: Message::Reset };
                self.schedule(self.now, Event::Packet(packet));
            }
        }
    }
}

/// Why a connection did not come about.
fn message_error(message: &Message) -> Option<i32> {
    match message {
        Message::Refused => Some(libc::ECONNREFUSED),
        Message::Reset => Some(libc::ECONNRESET),
        _ => None,
    }
}
