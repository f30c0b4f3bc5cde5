//! Blocks of ports for clusters on loopback.

use std::net::{Ipv4Addr, TcpListener};
use std::ops::RangeInclusive;
use std::time::{SystemTime, UNIX_EPOCH};

/// Below the range that systems use for outgoing connections.
const FIRST: u16 = 12_000;
const BLOCKS: u16 = 370;
const PORTS: u16 = 55;

/// Stateless gateways in a block of ports.
pub(crate) const GATEWAYS: u16 = 4;
/// Nodes in a block of ports.
pub(crate) const NODES: usize = 10;
/// Regions in a block of ports.
pub(crate) const REGIONS: usize = 3;

/// Ports on loopback that no other cluster uses.
///
/// The last port of the block is held open as long as this lives, so that clusters of other
/// programs see the block as taken even while the nodes of this one are down.
#[derive(Debug)]
pub struct PortBlock {
    base: u16,
    _guard: TcpListener,
}

impl PortBlock {
    /// `None`: hardly any port is free.
    #[must_use]
    pub fn take() -> Option<Self> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_nanos());
        let start =
            u16::try_from((now / 1000 + std::process::id() * 31) % u32::from(BLOCKS)).unwrap_or(0);
        (0..BLOCKS).map(|step| FIRST + (start + step) % BLOCKS * PORTS).find_map(|base| {
            let guard = TcpListener::bind((Ipv4Addr::LOCALHOST, base + PORTS - 1)).ok()?;
            let free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            (base..base + PORTS - 1).all(free).then_some(Self { base, _guard: guard })
        })
    }

    /// For programs that share none of them with a [`Cluster`](super::Cluster).
    #[must_use]
    pub fn all(&self) -> RangeInclusive<u16> {
        self.base..=self.base + PORTS - 2
    }

    /// Up to three regions' gateways: 30 ports.
    pub(crate) fn kv(&self) -> u16 {
        self.base
    }

    /// Ten ports.
    pub(crate) fn rpc(&self) -> u16 {
        self.base + 30
    }

    /// Ten ports.
    pub(crate) fn metrics(&self) -> u16 {
        self.base + 44
    }

    /// Four ports for stateless gateways.
    pub(crate) fn gateway(&self, number: u16) -> Option<u16> {
        (number < GATEWAYS).then_some(self.base + 40 + number)
    }
}
