//! `meridian status` and `meridian transfer-leadership`: every node asked by itself, without the
//! directory.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use meridian_directory::{Cluster, Node};
use meridian_net::grpc::Access;
use meridian_proto::admin::{
    ShardStatus, StatusRequest, StatusResponse, TransferLeadershipRequest,
};
use meridian_types::{NodeId, ShardId};

use super::encryption;
use super::operator::{Directory, Table, Target, admin, print};

const TIMEOUT: Duration = Duration::from_secs(3);
const TRANSFER: Duration = Duration::from_secs(9);
/// For an answer that others do not wait for.
const SOON: Duration = Duration::from_secs(1);
/// The role of a shard's leader, in the answer of a node.
const LEADER: &str = "leader";

#[derive(Args)]
pub(crate) struct Status {
    #[command(flatten)]
    target: Target,
}

#[derive(Args)]
pub(crate) struct TransferLeadership {
    #[command(flatten)]
    target: Target,
    #[arg(long)]
    shard: u32,
    /// Id of the voter that becomes the leader.
    #[arg(long)]
    to: NodeId,
}

/// The cluster as it is now, from any of its nodes, and the way to them.
async fn cluster(target: &Target) -> Result<(Cluster, Access)> {
    let mut directory = Directory::new(target)?;
    let cluster = directory.inspect(0).await?.cluster;
    Ok((cluster, directory.access().clone()))
}

fn present(cluster: &Cluster) -> impl Iterator<Item = &Node> {
    cluster.nodes.values().filter(|node| !node.removed)
}

async fn ask(address: &str, access: &Access) -> Result<StatusResponse> {
    let asked =
        async { Ok(admin(address, access).await?.status(StatusRequest {}).await?.into_inner()) };
    tokio::time::timeout(TIMEOUT, asked).await.context("no answer")?
}

/// The warnings of those nodes that answer soon.
pub(super) async fn warnings_of_nodes(cluster: &Cluster, access: &Access) -> Vec<String> {
    let asked =
        present(cluster).map(|node| tokio::time::timeout(SOON, ask(&node.rpc_address, access)));
    let answers = futures::future::join_all(asked).await;
    let answers = answers.into_iter().flatten().flatten();
    answers.flat_map(|status| own_warnings(&status)).collect()
}

fn own_warnings(status: &StatusResponse) -> Vec<String> {
    status.warnings.iter().map(|text| format!("{}: {text}", status.node_name)).collect()
}

/// The answers of all nodes, in order of their ids: what each said, or why it did not.
struct Answers<'a> {
    cluster: &'a Cluster,
    answers: Vec<(&'a Node, Result<StatusResponse>)>,
}

impl<'a> Answers<'a> {
    async fn gather(cluster: &'a Cluster, access: &Access) -> Self {
        let mut answers = Vec::new();
        for node in present(cluster) {
            answers.push((node, ask(&node.rpc_address, access).await));
        }
        Self { cluster, answers }
    }

    fn statuses(&self) -> impl Iterator<Item = &StatusResponse> {
        self.answers.iter().filter_map(|(_, answer)| answer.as_ref().ok())
    }

    /// The leaders of shards, with the shard that each leads.
    fn leaders(&self) -> Vec<(&StatusResponse, &ShardStatus)> {
        let shards = self.statuses().flat_map(|node| node.shards.iter().map(move |s| (node, s)));
        shards.filter(|(_, shard)| shard.role == LEADER).collect()
    }

    fn nodes(&self) -> Table {
        let mut table =
            Table::new(&["NODE", "REGION", ">SHARD", "ROLE", ">APPLIED", ">LOG FROM", "LEADER"]);
        for (node, answer) in &self.answers {
            let Ok(status) = answer else {
                table.row([
                    node.name.clone(),
                    node.region.clone(),
                    "-".to_owned(),
                    "away".to_owned(),
                ]);
                continue;
            };
            for shard in &status.shards {
                let source = if shard.source > 0 { shard.source } else { shard.leader };
                table.row([
                    status.node_name.clone(),
                    status.region.clone(),
                    shard.shard.to_string(),
                    shard.role.clone(),
                    shard.applied_sequence.to_string(),
                    shard.first_sequence.to_string(),
                    name(self.cluster, NodeId(source)),
                ]);
            }
        }
        table
    }

    fn followers(&self) -> Table {
        let mut table = Table::new(&[
            ">SHARD",
            "LEADER",
            "FOLLOWER",
            ">BATCHES BEHIND",
            ">BYTES BEHIND",
            ">SECONDS BEHIND",
            "STATE",
        ]);
        for (leader, shard) in self.leaders() {
            for follower in &shard.subscribers {
                table.row([
                    shard.shard.to_string(),
                    leader.node_name.clone(),
                    name(self.cluster, NodeId(follower.node_id)),
                    follower.lag_batches.to_string(),
                    follower.lag_bytes.to_string(),
                    format!("{:.3}", follower.lag_ms as f64 / 1000.0),
                    if follower.connected { "connected" } else { "disconnected" }.to_owned(),
                ]);
            }
        }
        table
    }

    fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for (node, answer) in &self.answers {
            match answer {
                Ok(status) => warnings.extend(own_warnings(status)),
                Err(error) => warnings.push(format!("{} does not answer: {error:#}", node.name)),
            }
        }
        let leaders = self.leaders();
        let led = |shard: &ShardId| leaders.iter().any(|(_, led)| led.shard == shard.0);
        let leaderless = self.cluster.shards.keys().filter(|shard| !led(shard));
        warnings.extend(leaderless.map(|shard| format!("shard {shard} has no leader")));
        warnings
    }
}

/// How the files of the nodes are encrypted, with the nodes of which that is true.
fn encryption<'a>(statuses: impl Iterator<Item = &'a StatusResponse>) -> String {
    let mut nodes: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for status in statuses {
        let state = status.encryption.as_ref().map_or("not known".to_owned(), encryption::state);
        nodes.entry(state).or_default().push(&status.node_name);
    }
    let line = |(state, names): (&String, &Vec<&str>)| match nodes.len() {
        1 => format!("encryption at rest: {state}\n"),
        _ => format!("encryption at rest: {state} ({})\n", names.join(", ")),
    };
    nodes.iter().map(line).collect()
}

impl Status {
    pub(crate) async fn run(self) -> Result<()> {
        let (cluster, access) = cluster(&self.target).await?;
        let answers = Answers::gather(&cluster, &access).await;
        let warnings = answers.warnings().into_iter().map(|text| format!("warning: {text}\n"));
        print(&format!(
            "{}\n{}{}{}",
            answers.nodes(),
            answers.followers(),
            encryption(answers.statuses()),
            warnings.collect::<String>()
        ))?;
        if answers.statuses().next().is_none() {
            bail!("no node answers");
        }
        Ok(())
    }
}

impl TransferLeadership {
    pub(crate) async fn run(self) -> Result<()> {
        let (cluster, access) = cluster(&self.target).await?;
        for node in present(&cluster) {
            let Ok(status) = ask(&node.rpc_address, &access).await else { continue };
            if status.shards.iter().any(|shard| shard.shard == self.shard && shard.role == LEADER) {
                let request = TransferLeadershipRequest { shard: self.shard, to: self.to.0 };
                let transfer = async {
                    admin(&node.rpc_address, &access).await?.transfer_leadership(request).await
                };
                let transferred = tokio::time::timeout(TRANSFER, transfer).await;
                let transferred = transferred.context("the leader does not answer")?;
                transferred.map_err(|status| anyhow!("{}", status.message()))?;
                println!("shard {} is now led by {}", self.shard, name(&cluster, self.to));
                return Ok(());
            }
        }
        bail!("no leader of shard {} found", self.shard)
    }
}

fn name(cluster: &Cluster, node: NodeId) -> String {
    match cluster.nodes.get(&node) {
        Some(node) => node.name.clone(),
        None => "-".to_owned(),
    }
}
