use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;
use meridian_directory::{Cluster, Node};
use meridian_proto::admin::{
    ShardStatus, StatusRequest, StatusResponse, TransferLeadershipRequest,
    admin_client::AdminClient,
};
use tonic::transport::{Channel, Endpoint};

use super::operator::{Directory, Reach};

const TIMEOUT: Duration = Duration::from_secs(3);

#[derive(Args)]
pub(crate) struct Status {
    /// A node's configuration: it knows the others.
    #[arg(long, default_value = "meridian-data/region-1-a/node.toml")]
    config: PathBuf,
    /// Ask this node, by its gRPC address, instead of those of --config. May be repeated.
    #[arg(long = "node", value_name = "HOST:PORT")]
    nodes: Vec<String>,
}

#[derive(Args)]
pub(crate) struct TransferLeadership {
    /// A node's configuration: it knows the others.
    #[arg(long, default_value = "meridian-data/region-1-a/node.toml")]
    config: PathBuf,
    /// Ask this node, by its gRPC address, instead of those of --config. May be repeated.
    #[arg(long = "node", value_name = "HOST:PORT")]
    nodes: Vec<String>,
    #[arg(long)]
    shard: u32,
    /// The node that is to lead.
    #[arg(long)]
    to: u64,
}

/// What the cluster is now, as any of its nodes says.
async fn cluster(config: PathBuf, nodes: Vec<String>) -> Result<Cluster> {
    let reach = Reach { config, nodes, json: false };
    Ok(Directory::new(&reach)?.inspect(0).await?.cluster)
}

fn present(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    cluster.nodes.values().filter(|node| !node.removed)
}

async fn connect(address: &str) -> Result<AdminClient<Channel>> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(TIMEOUT)
        .timeout(TIMEOUT * 3);
    Ok(AdminClient::new(endpoint.connect().await?))
}

async fn ask(address: &str) -> Result<StatusResponse> {
    let asked = async { Ok(connect(address).await?.status(StatusRequest {}).await?.into_inner()) };
    tokio::time::timeout(TIMEOUT, asked).await.context("no answer")?
}

impl Status {
    pub(crate) async fn run(self) -> Result<()> {
        let cluster = cluster(self.config, self.nodes).await?;
        let mut out = String::new();
        let mut away = 0;
        let mut leaders: Vec<(String, ShardStatus)> = Vec::new();
        let mut warnings = Vec::new();
        writeln!(
            out,
            "{:<14} {:<10} {:>5}  {:<10} {:>12} {:>12} {:>8}",
            "NODE", "REGION", "SHARD", "ROLE", "APPLIED", "LOG FROM", "LEADER"
        )?;
        for node in present(&cluster) {
            match ask(&node.rpc_address).await {
                Ok(status) => {
                    warnings.extend(
                        status.warnings.iter().map(|text| format!("{}: {text}", status.node_name)),
                    );
                    for shard in status.shards {
                        let source = if shard.source > 0 { shard.source } else { shard.leader };
                        writeln!(
                            out,
                            "{:<14} {:<10} {:>5}  {:<10} {:>12} {:>12} {:>8}",
                            status.node_name,
                            status.region,
                            shard.shard,
                            shard.role,
                            shard.applied_sequence,
                            shard.first_sequence,
                            name(&cluster, source),
                        )?;
                        if shard.role == "leader" {
                            leaders.push((status.node_name.clone(), shard));
                        }
                    }
                }
                Err(error) => {
                    away += 1;
                    writeln!(
                        out,
                        "{:<14} {:<10} does not answer: {error:#}",
                        node.name, node.region
                    )?;
                }
            }
        }
        writeln!(out)?;
        writeln!(
            out,
            "{:>5} {:<14} {:<14} {:>10} {:>12} {:>10}",
            "SHARD", "LEADER", "FOLLOWER", "BATCHES", "BYTES", "SECONDS"
        )?;
        for (leader, shard) in &leaders {
            for follower in &shard.subscribers {
                writeln!(
                    out,
                    "{:>5} {:<14} {:<14} {:>10} {:>12} {:>10.3}  {}",
                    shard.shard,
                    leader,
                    name(&cluster, follower.node_id),
                    follower.lag_batches,
                    follower.lag_bytes,
                    follower.lag_ms as f64 / 1000.0,
                    if follower.connected { "" } else { "not heard of" },
                )?;
            }
        }
        for shard in cluster.shards.keys() {
            if !leaders.iter().any(|(_, led)| led.shard == shard.0) {
                writeln!(out, "shard {shard} has no leader")?;
            }
        }
        for warning in warnings {
            writeln!(out, "warning: {warning}")?;
        }
        // Whoever reads only the first lines closes the pipe: that is no failure.
        match std::io::stdout().write_all(out.as_bytes()) {
            Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
                return Err(error.into());
            }
            _ => {}
        }
        if away == present(&cluster).count() {
            bail!("no node answers");
        }
        Ok(())
    }
}

impl TransferLeadership {
    pub(crate) async fn run(self) -> Result<()> {
        let cluster = cluster(self.config, self.nodes).await?;
        for node in present(&cluster) {
            let Ok(status) = ask(&node.rpc_address).await else { continue };
            if status.shards.iter().any(|shard| shard.shard == self.shard && shard.role == "leader")
            {
                let request = TransferLeadershipRequest { shard: self.shard, to: self.to };
                connect(&node.rpc_address)
                    .await?
                    .transfer_leadership(request)
                    .await
                    .map_err(|status| anyhow::anyhow!("{}", status.message()))?;
                println!("shard {} is led by {} now", self.shard, name(&cluster, self.to));
                return Ok(());
            }
        }
        bail!("no node says that it leads shard {}", self.shard)
    }
}

fn name(cluster: &Cluster, node: u64) -> String {
    match cluster.nodes.get(&node) {
        Some(node) => node.name.clone(),
        None => "-".to_owned(),
    }
}
