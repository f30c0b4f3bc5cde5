//! The files of a cluster on loopback, for development and tests.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use meridian_directory::Node;
use meridian_gateway::Databases;
use meridian_types::{NodeId, Permissions};

use crate::cluster::DevLayout;
use crate::{
    GatewaySettings, InvalidConfig, NodeConfig, NodeListen, RaftConfig, StorageConfig, TokenConfig,
    TokenSecret,
};

/// Between the KV Connect ports of two regions' first nodes.
const REGION_PORTS: u64 = 10;

/// The configurations of [`DevLayout::found`] on loopback, by node id. Node `k` takes gRPC port
/// `rpc_base_port + k - 1`; the gateways of region `r`, counted from 0, take `kv_base_port + 10 r`
/// and on. The data of a node is in `base_dir`, in a folder of the node's name; `token` opens every
/// database.
pub fn dev_cluster_configs<'a>(
    layout: impl Into<DevLayout<'a>>,
    base_dir: &Path,
    rpc_base_port: u16,
    kv_base_port: u16,
    token: &str,
) -> Result<Vec<NodeConfig>, InvalidConfig> {
    let layout = layout.into();
    let kv_offsets = kv_offsets(layout.counts);
    let overflow = Cell::new(None);
    let address = |base: u16, node: NodeId, offset: u64| {
        let port = u16::try_from(u64::from(base).saturating_add(offset)).unwrap_or_else(|_| {
            overflow.set(overflow.get().or(Some((base, node))));
            u16::MAX
        });
        format!("127.0.0.1:{port}")
    };
    let rpc_address = |node: NodeId| address(rpc_base_port, node, node.0 - 1);
    let kv_address = |node| {
        Some(address(kv_base_port, node, kv_offsets.get(&node).copied().unwrap_or(u64::MAX)))
    };
    let cluster = layout.found(rpc_address, kv_address);
    // First: clashes of addresses that do not exist would only confuse.
    if let Some((base, node)) = overflow.get() {
        return Err(InvalidConfig::TooFewPorts { base, node });
    }
    let cluster = cluster?;

    // A relative folder in a file would start at that file's.
    let base_dir = std::path::absolute(base_dir).map_err(|_| InvalidConfig::EmptyDataDir)?;
    if base_dir.to_str().is_none() {
        return Err(InvalidConfig::DataDirNotUtf8(base_dir));
    }
    let secret = TokenSecret::plain(token.to_owned())
        .map_err(|cause| InvalidConfig::Token { number: 1, cause: cause.into() })?;
    let token = TokenConfig::new(secret, Databases::All, Permissions::ALL);
    let config = |(id, node): (&NodeId, &Node)| NodeConfig {
        data_dir: base_dir.join(&node.name),
        max_memory_mb: None,
        worker_threads: None,
        listen: NodeListen {
            rpc: node.rpc_address.clone(),
            kv: node.kv_address.clone().unwrap_or_default(),
            metrics: None,
        },
        raft: RaftConfig::default(),
        storage: StorageConfig::default(),
        gateway: GatewaySettings::default(),
        encryption: None,
        tokens: vec![token.clone()],
        cluster: cluster.clone(),
        node_id: *id,
        node: node.clone(),
        join: false,
        manual_failover: false,
        dial: BTreeMap::new(),
        identity: None,
        own_identity: false,
        // Until `equip` gives it an identity.
        insecure: true,
    };
    Ok(cluster.nodes.iter().map(config).collect())
}

/// [`dev_cluster_configs`] as files: the name of each node, and the text of its `node.toml`.
pub fn dev_cluster<'a>(
    layout: impl Into<DevLayout<'a>>,
    base_dir: &Path,
    rpc_base_port: u16,
    kv_base_port: u16,
    token: &str,
) -> Result<Vec<(String, String)>, InvalidConfig> {
    let configs = dev_cluster_configs(layout, base_dir, rpc_base_port, kv_base_port, token)?;
    Ok(configs.into_iter().map(|config| (config.node.name.clone(), config.to_toml())).collect())
}

/// From the base port to each node's.
fn kv_offsets(counts: &[usize]) -> HashMap<NodeId, u64> {
    // More than 26 are refused with the layout.
    let ports = |(region, &count): (u64, &usize)| {
        (0..).take(count.min(26)).map(move |k| region * REGION_PORTS + k)
    };
    let offsets = (0..).zip(counts).flat_map(ports);
    (1..).map(NodeId).zip(offsets).collect()
}
