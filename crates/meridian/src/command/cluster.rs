//! `meridian cluster`: the state of the cluster, the record of its changes, the directory's voters.

pub(crate) mod change_text;
mod overview;
mod transport;
mod warnings;

use std::collections::BTreeMap;
use std::fmt::Write;

use anyhow::{Result, bail};
use clap::{Args, Subcommand};
use meridian_directory::{Change, Transport};
use meridian_proto::directory::ChangeRecord;
use serde::Serialize;

use super::operator::{Connect, Directory, Table, format, no_leader, print, print_json, resolve};
use super::status::warnings_of_nodes;
pub(crate) use overview::{NodeOverview, Overview, ShardOverview};

#[derive(Args)]
pub(crate) struct ClusterCommand {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows the directory's leader, every shard and node, and all warnings.
    Status,
    /// Shows the record of changes, the latest last, with the author of each: an operator, or the
    /// directory itself.
    Changes {
        /// Number of changes.
        #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        number: u32,
    },
    /// Shows how the cluster's processes talk to each other, or changes it while they serve.
    ///
    /// `off`: in the clear, and every caller is believed. `allow`: TLS is accepted. `prefer`: TLS is
    /// used where the other side has it. `require`: mutual TLS alone, and every call needs its role.
    /// A change goes step by step, and waits for all nodes before each.
    Transport {
        #[arg(value_parser = transport::parse)]
        to: Option<Transport>,
        /// Go to `require` though there is no operator with a token, or processes still call in
        /// the clear; or leave it, which opens the cluster again.
        #[arg(long)]
        yes: bool,
    },
    /// Replaces the cluster's certificate authority, and every certificate, while all serves.
    RotateAuthority,
    /// Sets the voters of the directory: an odd number, each in a region of its own if there are
    /// three.
    SetDirectoryVoters {
        /// Ids or names of nodes.
        #[arg(long, required = true, value_delimiter = ',', value_name = "NODES")]
        voters: Vec<String>,
        /// Accept fewer than three voters, or an even number.
        #[arg(long)]
        allow_weak_quorum: bool,
    },
}

impl ClusterCommand {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        match self.command {
            Command::Status => status(&mut directory, self.connect.json).await,
            Command::Changes { number } => changes(&mut directory, number, self.connect.json).await,
            Command::Transport { to: None, .. } => {
                transport::show(&mut directory, self.connect.json).await
            }
            Command::Transport { to: Some(to), yes } => {
                transport::change(&mut directory, to, yes).await
            }
            Command::RotateAuthority => transport::rotate_authority(&mut directory).await,
            Command::SetDirectoryVoters { voters, allow_weak_quorum } => {
                let view = directory.inspect_leader(0).await?;
                let voters = resolve::nodes(&view.cluster, &voters)?;
                resolve::check_quorum(&voters, allow_weak_quorum)?;
                let cluster = directory.execute(&Change::SetDirectoryVoters { voters }).await?;
                if self.connect.json {
                    return print_json(&cluster.directory_voters);
                }
                let names = resolve::node_names(&cluster, &cluster.directory_voters);
                print(&format!("the directory changes its voters to {names}, one at a time\n"))
            }
        }
    }
}

async fn status(directory: &mut Directory, json: bool) -> Result<()> {
    let view = directory.inspect(0).await?;
    let mut overview = Overview::of(&view, format::now_ms());
    overview.warnings.extend(warnings_of_nodes(&view.cluster, directory.access()).await);
    if json {
        print_json(&overview)?;
    } else {
        print(&overview.to_string())?;
    }
    if view.leader_address.is_none() {
        bail!(
            "the directory has no reachable leader ({}): this view may be outdated",
            no_leader(&view)
        );
    }
    Ok(())
}

#[derive(Serialize)]
struct Line<'a> {
    version: u64,
    time_ms: u64,
    actor: &'a str,
    change: serde_json::Value,
}

async fn changes(directory: &mut Directory, number: u32, json: bool) -> Result<()> {
    let view = directory.inspect(number).await?;
    if json {
        let line = |record: &ChangeRecord| -> Result<serde_json::Value> {
            let change = serde_json::from_slice(&record.change_json)?;
            let line = Line {
                version: record.version,
                time_ms: record.time_ms,
                actor: &record.actor,
                change,
            };
            Ok(serde_json::to_value(line)?)
        };
        return print_json(&view.changes.iter().map(line).collect::<Result<Vec<_>>>()?);
    }
    let mut table = Table::new(&[">VERSION", "TIME", "BY", "CHANGE"]);
    for record in &view.changes {
        let text = change_text::describe(&record.change_json, &view.cluster);
        table.row([
            record.version.to_string(),
            format::time(record.time_ms),
            record.actor.clone(),
            text,
        ]);
    }
    let mut out = table.to_string();
    if view.changes.is_empty() && view.leader_address.is_none() {
        writeln!(out, "(no voter of the directory answers; only its voters keep the record)")?;
    }
    print(&out)
}

/// `region-2 20 ms, region-3 90 ms`.
fn lags_text(lags: &BTreeMap<String, u64>) -> String {
    let lags: Vec<String> =
        lags.iter().map(|(region, lag)| format!("{region} {}", format::duration(*lag))).collect();
    if lags.is_empty() { "-".to_owned() } else { lags.join(", ") }
}
