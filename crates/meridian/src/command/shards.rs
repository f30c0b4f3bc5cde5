//! `meridian shards`: lists shards, sets their voters, and shows the reports of their failovers.

use anyhow::Result;
use clap::{Args, Subcommand};
use meridian_directory::{Change, Cluster, FailoverReport};
use meridian_types::ShardId;
use serde::Serialize;

use super::cluster::{ShardOverview, change_text};
use super::operator::{Connect, Directory, Table, format, print, print_json, resolve};

#[derive(Args)]
pub(crate) struct Shards {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the shards with their leaders, voters and lags.
    List,
    /// Sets the voters of a shard. Its leader adds and removes them one at a time, while the shard
    /// serves.
    ///
    /// All voters must be in the primary region, each in a data center of its own. Refused unless
    /// the shard is active.
    SetVoters {
        /// The shard's number.
        shard: String,
        /// Ids or names of nodes.
        #[arg(long, required = true, value_delimiter = ',', value_name = "NODES")]
        voters: Vec<String>,
        /// Accept fewer than three voters, or an even number.
        #[arg(long)]
        allow_weak_quorum: bool,
    },
    /// Shows every failover and switchover of a shard, with its loss and duration.
    Reports {
        /// Number of the shard, or a database in it. Default: all shards.
        #[arg(value_name = "SHARD|DATABASE")]
        shard: Option<String>,
    },
}

#[derive(Serialize)]
struct Reports<'a> {
    shard: ShardId,
    reports: &'a [FailoverReport],
}

impl Shards {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        match self.command {
            Command::List => {
                let view = directory.inspect(0).await?;
                let shards = view.cluster.shards.iter();
                let shards: Vec<ShardOverview> =
                    shards.map(|(id, shard)| ShardOverview::of(&view, *id, shard)).collect();
                if self.connect.json {
                    print_json(&shards)
                } else {
                    print(&ShardOverview::table(&shards).to_string())
                }
            }
            Command::SetVoters { shard, voters, allow_weak_quorum } => {
                let view = directory.inspect_leader(0).await?;
                let (shard, _) = resolve::shard(&view.cluster, &shard)?;
                let voters = resolve::nodes(&view.cluster, &voters)?;
                resolve::check_quorum(&voters, allow_weak_quorum)?;
                let cluster =
                    directory.execute(&Change::SetVoters { shard, voters: voters.clone() }).await?;
                if self.connect.json {
                    return print_json(&voters);
                }
                let names = resolve::node_names(&cluster, &voters);
                print(&format!(
                    "shard {shard} changes its voters to {names}; `meridian cluster status` shows the progress\n"
                ))
            }
            Command::Reports { shard } => {
                let view = directory.inspect(0).await?;
                let only =
                    shard.map(|shard| resolve::shard_of(&view.cluster, &shard)).transpose()?;
                reports(&view.cluster, only.map(|(id, _)| id), self.connect.json)
            }
        }
    }
}

fn reports(cluster: &Cluster, only: Option<ShardId>, json: bool) -> Result<()> {
    let shards = cluster.shards.iter().filter(|(id, _)| only.is_none_or(|only| only == **id));
    if json {
        let reports = shards.map(|(id, shard)| Reports { shard: *id, reports: &shard.reports });
        return print_json(&reports.collect::<Vec<_>>());
    }
    let mut table = Table::new(&[
        ">SHARD",
        ">EPOCH",
        "SINCE",
        "FROM",
        "TO",
        "KIND",
        ">SEALED FOR",
        "LOST",
        "CAUSE",
    ]);
    for (id, shard) in shards {
        for report in &shard.reports {
            let kind = if report.planned { "switchover" } else { "failover" };
            table.row([
                id.to_string(),
                report.epoch.to_string(),
                format::time(report.promoted_at_ms),
                report.from_region.clone(),
                report.to_region.clone(),
                kind.to_owned(),
                format::duration(report.promoted_at_ms.saturating_sub(report.sealed_at_ms)),
                change_text::loss(report),
                report.cause.clone(),
            ]);
        }
    }
    print(&table.to_string())
}
