//! Links, connections and what is on the way: how they are noted.

use std::collections::{BTreeMap, VecDeque};

/// Bytes that a connection holds in one direction.
pub(crate) const ROOM: usize = 1 << 20;

/// An address of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(crate) struct Address {
    pub(crate) ip: [u8; 4],
    pub(crate) port: u16,
}

/// The way from one machine to another.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Link {
    pub(crate) latency_ns: u64,
    pub(crate) jitter_ns: u64,
    /// Of a million packets so many are lost at first, and sent again.
    pub(crate) lost_ppm: u64,
    pub(crate) is_cut: bool,
}

/// All connections.
#[derive(Default)]
pub(crate) struct Network {
    pub(crate) links: BTreeMap<(usize, usize), Link>,
    pub(crate) connections: BTreeMap<usize, [Side; 2]>,
    pub(crate) opened: usize,
}

/// One end of a connection, and what comes to it.
#[derive(Default)]
pub(crate) struct Side {
    pub(crate) machine: usize,
    pub(crate) local: Address,
    /// The socket; `None`: not accepted yet, or closed.
    pub(crate) file: Option<usize>,
    pub(crate) waits_for_accept: bool,
    pub(crate) arrived: VecDeque<u8>,
    /// The other side sends no more.
    pub(crate) ended: bool,
    pub(crate) is_reset: bool,
    /// On the way to here.
    pub(crate) coming: usize,
    pub(crate) last_at: u64,
    /// Messages that a cut link keeps.
    pub(crate) kept: VecDeque<Message>,
    /// This side would send more than there is room for.
    pub(crate) is_full: bool,
    pub(crate) has_shut: bool,
    /// Something was sent to this side and did not arrive, since its machine is off.
    pub(crate) is_missed: bool,
}

impl Side {
    /// No socket is there, and none will be.
    pub(crate) fn is_gone(&self) -> bool {
        self.file.is_none() && !self.waits_for_accept
    }
}

/// Something on the way to a side of a connection.
pub(crate) struct Packet {
    pub(crate) connection: usize,
    pub(crate) to: usize,
    pub(crate) message: Message,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// A connection is wanted.
    Open,
    Opened,
    Refused,
    Data(Vec<u8>),
    End,
    Reset,
    /// There is room again.
    Room,
    /// The messages that a cut link has kept are sent again.
    Again,
}

impl Network {
    /// A connection that the first machine wants; nothing of it is on the way yet.
    pub(crate) fn open(&mut self, from: (usize, Address, usize), to: (usize, Address)) -> usize {
        let (machine, local, file) = from;
        let dialling = Side { machine, local, file: Some(file), ..Side::default() };
        let dialled = Side { machine: to.0, local: to.1, ..Side::default() };
        self.opened += 1;
        self.connections.insert(self.opened, [dialling, dialled]);
        self.opened
    }
}
