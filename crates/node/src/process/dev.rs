//! A whole cluster in one process: real nodes, each with its own RocksDB, over real gRPC on
//! loopback.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meridian_config::private_file;
use meridian_config::{CertificateFiles, DevLayout};
use meridian_config::{ConfigError, dev_cluster_configs, equip};
use meridian_types::NodeId;

use crate::network::peers::Dial;
use crate::process::node::Node;
use crate::process::start_error::StartError;
use meridian_wan::{Link, WanPlan};

/// Between the gateways' port and the first gRPC port.
const RPC_PORT_OFFSET: u16 = 100;

/// Before a node that was not ready is asked again, should it have said so at once.
const READY_PAUSE: Duration = Duration::from_millis(100);

/// The options of a development cluster.
pub struct DevOptions<'a> {
    pub data_dir: &'a Path,
    pub layout: DevLayout<'a>,
    /// Of the first region's first gateway.
    pub port: u16,
    pub access_token: &'a str,
    pub wan: Option<WanPlan>,
    /// A new cluster's databases fail over by themselves.
    pub automatic_failover: bool,
    /// The memory limit of all nodes together. `None`: that of one process without a setting.
    pub max_memory_mb: Option<u64>,
    /// Where the gateways listen, if not on loopback.
    pub listen_host: Option<&'a str>,
    /// For HTTPS at the gateways.
    pub certificate: Option<CertificateFiles>,
}

/// A running cluster.
pub struct DevCluster {
    nodes: Vec<Node>,
    /// Region and address of the first gateway in each.
    gateways: Vec<(String, SocketAddr)>,
    context: Option<PathBuf>,
    _links: Vec<Link>,
}

impl DevCluster {
    /// # Errors
    /// [`StartError`], naming what cannot be used; nothing is left running then.
    pub async fn start(options: DevOptions<'_>) -> Result<Self, StartError> {
        let invalid = |cause| ConfigError::Invalid { path: options.data_dir.to_owned(), cause };
        let rpc_port = options.port.checked_add(RPC_PORT_OFFSET);
        let rpc_port = rpc_port
            .ok_or_else(|| StartError::Invalid(format!("port {} is too high", options.port)))?;
        let configs = dev_cluster_configs(
            options.layout,
            options.data_dir,
            rpc_port,
            options.port,
            options.access_token,
        );
        let mut configs = configs.map_err(invalid)?;
        let max_memory_mb =
            options.max_memory_mb.unwrap_or((meridian_memory::default_max_bytes() >> 20) as u64);
        let nodes = configs.len() as u64;
        let equipped = equip(&mut configs, options.data_dir);
        let context = equipped.map_err(|error| StartError::Identity(error.to_string()))?;
        for config in &mut configs {
            // A busy machine is no reason to move a primary.
            config.manual_failover = !options.automatic_failover;
            // They are one process; each needs as much as any node does, however many there are.
            let each = max_memory_mb / nodes;
            config.max_memory_mb = Some(each.max((meridian_memory::MIN_BYTES >> 20) as u64));
            config.gateway.certificates = options.certificate.iter().cloned().collect();
            write_config(config)?;
            if let Some(host) = options.listen_host
                && let Some((_, port)) = config.listen.kv.rsplit_once(':')
            {
                config.listen.kv = format!("{host}:{port}");
            }
        }
        let (links, mut dials) = links(&configs, options.wan.as_ref()).await?;
        let mut starting = Vec::new();
        for config in configs {
            let dial = dials
                .remove(&config.node_id)
                .map(|to| Arc::new(move |node| to.get(&node).cloned()) as Dial);
            let region = config.node.region.clone();
            starting.push(async move {
                Ok::<_, StartError>((region, Node::start(config, dial).await?))
            });
        }
        let mut cluster = Self { nodes: Vec::new(), gateways: Vec::new(), context, _links: links };
        for started in futures::future::join_all(starting).await {
            match started {
                Ok((region, node)) => {
                    if cluster.gateways.last().is_none_or(|(last, _)| *last != region) {
                        cluster.gateways.push((region, node.kv_address()));
                    }
                    cluster.nodes.push(node);
                }
                Err(error) => {
                    cluster.stop().await;
                    return Err(error);
                }
            }
        }
        Ok(cluster)
    }

    /// Waits until every shard has a leader that every region's gateway can reach, for as long as
    /// that takes: a machine that is busy is no reason to end.
    pub async fn ready(&self) {
        let waits = self.nodes.iter().map(|node| patiently(async || node.ready().await));
        futures::future::join_all(waits).await;
    }

    /// The context of the cluster's operator. `None`: the cluster is from before nodes had
    /// certificates, and open.
    pub fn context(&self) -> Option<&Path> {
        self.context.as_deref()
    }

    /// Each region, with the address of its first gateway.
    pub fn gateways(&self) -> &[(String, SocketAddr)] {
        &self.gateways
    }

    pub async fn stop(self) {
        futures::future::join_all(self.nodes.into_iter().map(Node::stop)).await;
    }
}

/// Waits until `attempt` succeeds, and says each time why it did not.
async fn patiently(attempt: impl AsyncFn() -> Result<(), StartError>) {
    while let Err(error) = attempt().await {
        tracing::warn!("not ready yet: {error}");
        tokio::time::sleep(READY_PAUSE).await;
    }
}

/// Beside the node's data, for `meridian status`.
fn write_config(config: &meridian_config::NodeConfig) -> Result<(), StartError> {
    let write = || {
        std::fs::create_dir_all(&config.data_dir)?;
        // It holds the access token.
        private_file::write(&config.data_dir.join("node.toml"), config.to_toml().as_bytes())
    };
    let failed = |error: std::io::Error| StartError::DataFolder {
        path: config.data_dir.display().to_string(),
        cause: error.to_string(),
    };
    write().map_err(failed)
}

/// Where each node dials the others.
type Dials = HashMap<NodeId, HashMap<NodeId, String>>;

/// The emulated links of a plan, and where each node dials the others through them.
async fn links(
    configs: &[meridian_config::NodeConfig],
    plan: Option<&WanPlan>,
) -> Result<(Vec<Link>, Dials), StartError> {
    let (mut links, mut dials) = (Vec::new(), Dials::new());
    let Some(plan) = plan else { return Ok((links, dials)) };
    for (from, to, profile) in pairs(configs, plan) {
        let target = to.1.parse();
        let target =
            target.map_err(|_| StartError::Invalid(format!("`{}` is no address", to.1)))?;
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let link = Link::start(listen, target, profile, from.0 << 32 | to.0.0).await;
        let link =
            link.map_err(|error| StartError::Invalid(format!("an emulated link: {error}")))?;
        dials.entry(from).or_default().insert(to.0, link.address().to_string());
        links.push(link);
    }
    Ok((links, dials))
}

/// The pairs of nodes that an emulated link lies between, with the profile of each.
fn pairs(
    configs: &[meridian_config::NodeConfig],
    plan: &WanPlan,
) -> Vec<(NodeId, (NodeId, String), meridian_wan::LinkProfile)> {
    let regions = configs.first().map(|config| config.cluster.regions.clone()).unwrap_or_default();
    let region = |name: &str| regions.iter().position(|region| region == name).unwrap_or(0);
    let mut pairs = Vec::new();
    for from in configs {
        for to in configs.iter().filter(|to| to.node_id != from.node_id) {
            if let Some(profile) = plan.profile(region(&from.node.region), region(&to.node.region))
            {
                pairs.push((from.node_id, (to.node_id, to.node.rpc_address.clone()), profile));
            }
        }
    }
    pairs
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_cluster_that_is_not_ready_within_the_time_of_a_request_is_waited_for() {
        let attempts = Cell::new(0);
        patiently(async || {
            attempts.set(attempts.get() + 1);
            if attempts.get() < 4 {
                Err(StartError::Invalid("no answer".to_owned()))
            } else {
                Ok(())
            }
        })
        .await;
        assert_eq!(attempts.get(), 4);
    }
}
