//! Channels to the other nodes, one connection for each use.

use std::collections::HashMap;
use std::sync::Arc;

use meridian_consensus::Peers;
use meridian_directory::{Cluster, Transport};
use meridian_net::grpc::{Peer, Way};
use meridian_net::{CertificateChanges, Expected, Mutual};
use meridian_types::NodeId;
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tonic::transport::Channel;

use crate::network::identity;
use crate::network::lanes::{Lanes, Open};

/// Where to dial a node, if not at the address that the cluster gives: for emulated links.
pub type Dial = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// One HTTP/2 connection to each other node for each use, so that bulk does not hold up heartbeats,
/// and nothing holds up the decisions on which node may serve.
pub(crate) struct PeerChannels {
    dial: Dial,
    /// Where connections of control live; else with all others.
    control: Option<Handle>,
    /// This process's certificate.
    mutual: Arc<Mutual>,
    channels: RwLock<HashMap<NodeId, NodeChannels>>,
    updates: watch::Sender<()>,
}

/// The properties that the channels to a node were made with.
#[derive(PartialEq, Eq)]
struct Made {
    address: String,
    cluster: Option<String>,
    transport: Transport,
    /// Of this process's certificate and the authorities that it believes: connections are dialled
    /// anew before the certificate expires, and with the authorities of today.
    generation: u64,
}

struct NodeChannels {
    made: Made,
    raft: Channel,
    requests: Channel,
    watches: Lanes,
    listeners: Lanes,
    shipping: Channel,
    control: Channel,
}

impl NodeChannels {
    /// Channels connect when first used, and again when broken. `None`: nothing can be dialled
    /// there.
    fn new(made: Made, way: Way, control: Option<&Handle>) -> Option<Self> {
        let authority = match &made.cluster {
            Some(id) => Some(identity::origin(id)?),
            None => None,
        };
        let peer = Peer::new(&made.address, authority, way).ok()?;
        let control = {
            let _there = control.map(Handle::enter);
            peer.control_channel()
        };
        Some(Self {
            made,
            raft: peer.channel(),
            requests: peer.channel(),
            watches: Lanes::new(peer.clone()),
            listeners: Lanes::new(peer.narrow()),
            shipping: peer.channel(),
            control,
        })
    }
}

impl PeerChannels {
    /// With all connections on the present runtime.
    #[cfg(test)]
    pub(crate) fn new(cluster: &Cluster, dial: Dial) -> Result<Self, NodeId> {
        Self::with_control(cluster, dial, None, Arc::new(Mutual::empty()))
    }

    /// With the connections of control on a runtime of their own, if one is given.
    ///
    /// # Errors
    /// The node whose address is none.
    pub(crate) fn with_control(
        cluster: &Cluster,
        dial: Dial,
        control: Option<Handle>,
        mutual: Arc<Mutual>,
    ) -> Result<Self, NodeId> {
        let (channels, updates) = (RwLock::default(), watch::Sender::new(()));
        let peers = Self { dial, control, mutual, channels, updates };
        match peers.update(cluster).first() {
            Some(node) => Err(*node),
            None => Ok(peers),
        }
    }

    /// Dials the nodes of this cluster from now on, and no others, naming its cluster. Those whose
    /// address is none.
    pub(crate) fn update(&self, cluster: &Cluster) -> Vec<NodeId> {
        let mut channels = self.channels.write();
        channels.retain(|node, _| cluster.present_node(*node).is_some());
        let mut failed = Vec::new();
        for (id, node) in cluster.present_nodes() {
            let address = (self.dial)(id).unwrap_or_else(|| node.rpc_address.clone());
            let made = Made {
                address,
                cluster: cluster.id.clone(),
                transport: cluster.trust.transport,
                generation: self.mutual.generation(),
            };
            if channels.get(&id).is_some_and(|known| known.made == made) {
                continue;
            }
            let way = self.way(cluster.trust.transport, id);
            match NodeChannels::new(made, way, self.control.as_ref()) {
                Some(new) => {
                    channels.insert(id, new);
                    self.updates.send_replace(());
                }
                None => failed.push(id),
            }
        }
        failed
    }

    /// After each change channels are to be [made anew](Self::update).
    pub(crate) fn watch_certificate(&self) -> CertificateChanges {
        self.mutual.watch()
    }

    fn way(&self, transport: Transport, node: NodeId) -> Way {
        let mutual = Some(&self.mutual).filter(|_| transport.dials_tls());
        match mutual.and_then(|mutual| Some((mutual.dialler()?, mutual.own()?))) {
            Some((dialler, own)) => {
                let cluster = Some(own.subject.cluster.clone());
                let expected = Expected { cluster, node: Some(node) };
                Way::Tls { dialler, expected, or_plain: transport == Transport::Prefer }
            }
            None => Way::Plain,
        }
    }

    /// For client requests that are passed on.
    pub(crate) fn requests(&self, node: NodeId) -> Option<Channel> {
        self.channels.read().get(&node).map(|channels| channels.requests.clone())
    }

    /// For a stream of a watch: they are many and last, and requests do not wait for them. What
    /// comes with the channel is to be kept for as long as the stream.
    pub(crate) fn watches(&self, node: NodeId) -> Option<(Channel, Open)> {
        self.channels.read().get(&node).map(|channels| channels.watches.next())
    }

    /// The same for a stream of a listener. Clients take what comes in their own time, so a stream
    /// has little on the way, and what waits holds up no watch.
    pub(crate) fn listeners(&self, node: NodeId) -> Option<(Channel, Open)> {
        self.channels.read().get(&node).map(|channels| channels.listeners.next())
    }

    /// For the decisions on which node may serve: leases, seals, and the directory's own group.
    pub(crate) fn control(&self, node: NodeId) -> Option<Channel> {
        self.channels.read().get(&node).map(|channels| channels.control.clone())
    }

    /// Changes whenever a node is dialled at another address, in another way, or by another name of
    /// its cluster: what lasts is to begin anew then.
    pub(crate) fn updates(&self) -> watch::Receiver<()> {
        self.updates.subscribe()
    }

    /// For the log, snapshots and statuses.
    pub(crate) fn shipping(&self, node: NodeId) -> Option<Channel> {
        self.channels.read().get(&node).map(|channels| channels.shipping.clone())
    }
}

/// The way between members of the directory's group.
pub(crate) struct ControlPeers(pub(crate) Arc<PeerChannels>);

impl Peers for ControlPeers {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.0.control(node)
    }
}

impl Peers for PeerChannels {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.channels.read().get(&node).map(|channels| channels.raft.clone())
    }
}

#[cfg(test)]
mod tests;
