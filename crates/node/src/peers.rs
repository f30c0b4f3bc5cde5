use std::collections::HashMap;
use std::time::Duration;

use meridian_consensus::Peers;
use meridian_types::NodeId;
use tonic::transport::{Channel, Endpoint};

use crate::topology::Topology;

/// Bytes of one message between nodes at most.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// One HTTP/2 connection to each other node for each use, so that bulk does not hold up heartbeats.
pub(crate) struct PeerChannels {
    channels: HashMap<NodeId, NodeChannels>,
}

struct NodeChannels {
    raft: Channel,
    requests: Channel,
    shipping: Channel,
}

impl PeerChannels {
    /// Channels connect when first used, and again when broken. `address` says where to dial a node.
    ///
    /// # Errors
    /// The node whose address is none.
    pub(crate) fn new(topology: &Topology, address: impl Fn(NodeId) -> Option<String>) -> Result<Self, NodeId> {
        let channels = topology.nodes.values().map(|node| {
            let address = address(node.id).unwrap_or_else(|| node.rpc_address.clone());
            let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|_| node.id)?;
            let endpoint = endpoint
                .connect_timeout(Duration::from_secs(2))
                .tcp_nodelay(true)
                .tcp_keepalive(Some(Duration::from_secs(5)))
                .http2_keep_alive_interval(Duration::from_secs(2))
                .keep_alive_timeout(Duration::from_secs(3))
                .initial_stream_window_size(8 << 20)
                .initial_connection_window_size(16 << 20);
            let connect = || endpoint.connect_lazy();
            Ok((node.id, NodeChannels { raft: connect(), requests: connect(), shipping: connect() }))
        });
        Ok(Self { channels: channels.collect::<Result<_, NodeId>>()? })
    }

    /// For client requests that are passed on.
    pub(crate) fn requests(&self, node: NodeId) -> Option<Channel> {
        self.channels.get(&node).map(|channels| channels.requests.clone())
    }

    /// For the log, snapshots and statuses.
    pub(crate) fn shipping(&self, node: NodeId) -> Option<Channel> {
        self.channels.get(&node).map(|channels| channels.shipping.clone())
    }
}

impl Peers for PeerChannels {
    fn channel(&self, node: u64) -> Option<Channel> {
        self.channels.get(&node).map(|channels| channels.raft.clone())
    }
}
