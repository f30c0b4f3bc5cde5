//! The emulated network of a cluster: a link from every machine to every node, all of them in this
//! process.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::SocketAddr;

use meridian_types::NodeId;
use meridian_wan::{Link, LinkProfile, WanPlan};

/// A machine that may dial a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Machine {
    Node(NodeId),
    /// The stateless gateway of a region; regions count from 0.
    Gateway(usize),
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node(id) => write!(f, "node {id}"),
            Self::Gateway(region) => write!(f, "the gateway of region {}", region + 1),
        }
    }
}

/// The address and region of a node.
#[derive(Debug, Clone, Copy)]
pub struct Site {
    /// Counts from 0.
    pub region: usize,
    pub address: SocketAddr,
}

struct Wire {
    link: Link,
    profile: LinkProfile,
}

/// Links between all machines. A flow from one machine to another crosses two of them: the link on
/// which the first dials, forward, and the link on which the second dials, backward; a cut of the
/// flow cuts both.
///
/// A cut loses nothing and notifies no process: bytes are held, as by TCP that retransmits into a
/// dead network. It looks like a data center without power, or a lost route.
pub struct Network {
    wires: BTreeMap<(Machine, NodeId), Wire>,
    /// The flows that are cut.
    cut: BTreeSet<(Machine, Machine)>,
    /// Machines without power: all their flows are cut.
    dark: BTreeSet<Machine>,
}

impl Network {
    /// Makes links as far as `plan` says. Links without delay exist too, so that they can be cut.
    ///
    /// # Errors
    /// When a link cannot listen.
    pub async fn start(
        nodes: &BTreeMap<NodeId, Site>,
        gateways: impl IntoIterator<Item = usize>,
        plan: &WanPlan,
    ) -> io::Result<Self> {
        let machines = nodes.iter().map(|(id, site)| (Machine::Node(*id), site.region));
        let machines: Vec<_> = machines
            .chain(gateways.into_iter().map(|region| (Machine::Gateway(region), region)))
            .collect();
        let mut wires = BTreeMap::new();
        for ((from, from_region), seed) in machines.into_iter().zip(1_u64..) {
            for (to, site) in nodes.iter().filter(|(to, _)| Machine::Node(**to) != from) {
                let profile = plan.profile(from_region, site.region).unwrap_or_default();
                let listen = SocketAddr::from(([127, 0, 0, 1], 0));
                let link = Link::start(listen, site.address, profile, seed << 32 | to.0).await?;
                wires.insert((from, *to), Wire { link, profile });
            }
        }
        Ok(Self { wires, cut: BTreeSet::new(), dark: BTreeSet::new() })
    }

    /// The addresses at which this machine dials the others, for the table `[dial]` of its
    /// configuration.
    pub fn dial(&self, from: Machine) -> BTreeMap<NodeId, SocketAddr> {
        let wires = self.wires.iter().filter(|((dialler, _), _)| *dialler == from);
        wires.map(|((_, to), wire)| (*to, wire.link.address())).collect()
    }

    /// Cuts all flows from the machines of `from` to the machines of `to`. The opposite direction
    /// stays.
    pub fn cut(&mut self, from: &[Machine], to: &[Machine]) {
        let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (*from, *to)));
        self.cut.extend(pairs.filter(|(from, to)| from != to));
        self.apply();
    }

    /// Cuts the machine off silently, before its processes are killed.
    pub fn darken(&mut self, machine: Machine) {
        self.dark.insert(machine);
        self.apply();
    }

    /// Restores the power of the machine. Bytes held until then reach its new processes, which know
    /// nothing of them.
    pub fn lighten(&mut self, machine: Machine) {
        self.dark.remove(&machine);
        self.apply();
    }

    /// Limits the rate of bytes between the machines of `a` and of `b`: each direction of each
    /// link.
    pub fn throttle(&self, a: &[Machine], b: &[Machine], bytes_per_second: u64) {
        for ((from, to), wire) in &self.wires {
            let to = Machine::Node(*to);
            if (a.contains(from) && b.contains(&to)) || (b.contains(from) && a.contains(&to)) {
                wire.link
                    .set(LinkProfile { bytes_per_second: Some(bytes_per_second), ..wire.profile });
            }
        }
    }

    /// Heals all cuts and throttles. Machines without power stay dark.
    pub fn heal(&mut self) {
        self.cut.clear();
        self.apply();
        for wire in self.wires.values().filter(|wire| wire.link.profile() != wire.profile) {
            wire.link.set(wire.profile);
        }
    }

    /// Whether bytes from one machine reach the other.
    pub fn passes(&self, from: Machine, to: Machine) -> bool {
        !self.cut.contains(&(from, to)) && !self.dark.contains(&from) && !self.dark.contains(&to)
    }

    fn apply(&self) {
        for ((from, to), wire) in &self.wires {
            let (from, to) = (*from, Machine::Node(*to));
            wire.link.set_cuts(!self.passes(from, to), !self.passes(to, from));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const A: Machine = Machine::Node(NodeId(1));
    const B: Machine = Machine::Node(NodeId(2));

    async fn two_nodes() -> (Network, TcpListener) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let site = Site { region: 0, address: listener.local_addr().unwrap() };
        let nodes = BTreeMap::from([(NodeId(1), site), (NodeId(2), Site { region: 1, ..site })]);
        let plan = WanPlan { round_trips: vec![Duration::from_millis(2)], ..WanPlan::default() };
        (Network::start(&nodes, [0], &plan).await.unwrap(), listener)
    }

    async fn arrives(to: &mut TcpStream) -> bool {
        let mut byte = [0];
        tokio::time::timeout(Duration::from_millis(300), to.read_exact(&mut byte)).await.is_ok()
    }

    #[tokio::test]
    async fn flow_is_cut_on_the_links_of_both_dialers() {
        let (mut network, listener) = two_nodes().await;
        assert_eq!(network.dial(Machine::Gateway(0)).len(), 2);
        let mut dialled = TcpStream::connect(network.dial(A)[&NodeId(2)]).await.unwrap();
        let (mut answering, _) = listener.accept().await.unwrap();
        // From A to B: forward on the link on which A dials.
        network.cut(&[A], &[B]);
        dialled.write_all(b"x").await.unwrap();
        answering.write_all(b"y").await.unwrap();
        assert!(!arrives(&mut answering).await);
        assert!(arrives(&mut dialled).await);
        network.heal();
        assert!(arrives(&mut answering).await);
        // From B to A: backward on it.
        network.cut(&[B], &[A]);
        dialled.write_all(b"x").await.unwrap();
        answering.write_all(b"y").await.unwrap();
        assert!(arrives(&mut answering).await);
        assert!(!arrives(&mut dialled).await);
        network.heal();
        assert!(arrives(&mut dialled).await);
    }

    #[tokio::test]
    async fn cuts_and_darkness_lie_over_each_other() {
        let (mut network, _listener) = two_nodes().await;
        network.cut(&[A], &[B]);
        network.darken(B);
        assert!(!network.passes(B, A));
        network.lighten(B);
        assert!(network.passes(B, A) && !network.passes(A, B));
        network.darken(A);
        network.heal();
        assert!(!network.passes(A, B) && !network.passes(Machine::Gateway(0), A));
        network.lighten(A);
        assert!(network.passes(A, B));
    }
}
