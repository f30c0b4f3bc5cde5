//! The nodes of the cluster: who they are, and how one comes and goes.

mod config_file;

use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use meridian_directory::{Change, Cluster, Node, Refused};
use meridian_types::NodeId;
use serde::Serialize;

use super::cluster::NodeOverview;
use super::operator::{Directory, Reach, View, is_fresh, print, print_json, selection};
use config_file::NewFile;

#[derive(Args)]
pub(crate) struct Nodes {
    #[command(flatten)]
    reach: Reach,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// All nodes, where they are, and when they were last heard of.
    List {
        /// Also those that were removed.
        #[arg(long)]
        all: bool,
    },
    /// Gives a new node its id, and writes its configuration. It joins as a replica of every shard.
    ///
    /// A region of its own is added before, with `meridian regions add`. `meridian shards
    /// set-voters` makes it a voter.
    Add(NewNode),
    /// Removes a node for good: it serves nothing any more, and its id is never used again.
    ///
    /// Refused while it votes in a shard or in the directory.
    Remove {
        /// Id or name.
        #[arg(value_name = "NODE")]
        node: String,
        /// Without it, the command only says what the removal means.
        #[arg(long)]
        yes: bool,
    },
    /// Puts a new node in the place of one that is gone for good, with its votes, while the cluster
    /// serves.
    ///
    /// The new node begins with an empty data folder. The old one is removed and may never come
    /// back.
    Replace {
        /// Id or name of the node that is gone.
        #[arg(value_name = "NODE")]
        old: String,
        #[command(flatten)]
        new: Replacement,
    },
}

#[derive(Args)]
struct NewNode {
    /// Of letters, digits, `-`, `_` and `.`; no other node has it.
    #[arg(long)]
    name: String,
    #[arg(long)]
    region: String,
    /// The failure domain within the region.
    #[arg(long)]
    data_center: String,
    #[command(flatten)]
    place: Place,
}

#[derive(Args)]
struct Replacement {
    /// Of letters, digits, `-`, `_` and `.`; it may be the old node's.
    #[arg(long)]
    name: String,
    /// The old node's, if not given. The region stays.
    #[arg(long)]
    data_center: Option<String>,
    /// Also while the old node still answers.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

/// Where a new node is, and where its configuration goes.
#[derive(Args)]
struct Place {
    /// Where other nodes dial it (gRPC).
    #[arg(long, value_name = "HOST:PORT")]
    rpc_address: String,
    /// Where clients reach its gateway (KV Connect).
    #[arg(long, value_name = "HOST:PORT")]
    kv_address: Option<String>,
    /// Where to write the new node's configuration, made from that of --config. It must not be
    /// there yet.
    #[arg(long, value_name = "FILE")]
    config_out: Option<PathBuf>,
    /// What the new node's configuration says; a relative folder starts at that file's.
    #[arg(long, default_value = "data", value_name = "FOLDER")]
    data_dir: PathBuf,
}

impl Place {
    fn node(&self, name: String, region: String, data_center: String) -> Node {
        Node {
            name,
            region,
            data_center,
            rpc_address: self.rpc_address.clone(),
            kv_address: self.kv_address.clone(),
            incarnation: None,
            removed: false,
        }
    }
}

#[derive(Serialize)]
struct Added {
    id: NodeId,
    name: String,
    config: Option<PathBuf>,
}

impl Nodes {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.reach)?;
        match self.command {
            Command::List { all } => list(&mut directory, all, self.reach.json).await,
            Command::Add(new) => {
                let node = new.place.node(new.name, new.region, new.data_center);
                let change = Change::AddNode { node };
                let before = directory.inspect_leader(0).await?;
                join(&mut directory, &before, &change, &new.place, &self.reach).await
            }
            Command::Remove { node, yes } => {
                remove(&mut directory, &node, yes, self.reach.json).await
            }
            Command::Replace { old, new } => {
                let view = directory.inspect_leader(0).await?;
                let (id, node) = selection::node(&view.cluster, &old)?;
                let data_center = new.data_center.unwrap_or_else(|| node.data_center.clone());
                check_replaceable(&view, id, new.yes)?;
                let change = Change::ReplaceNode {
                    old: id,
                    new: new.place.node(new.name, node.region.clone(), data_center),
                };
                join(&mut directory, &view, &change, &new.place, &self.reach).await
            }
        }
    }
}

async fn list(directory: &mut Directory, all: bool, json: bool) -> Result<()> {
    let view = directory.inspect(0).await?;
    let nodes = view.cluster.nodes.iter().filter(|(_, node)| all || !node.removed);
    let nodes: Vec<NodeOverview> =
        nodes.map(|(id, node)| NodeOverview::of(&view, *id, node)).collect();
    if json { print_json(&nodes) } else { print(&NodeOverview::table(&nodes).to_string()) }
}

/// Adds or replaces, and writes the configuration of the node that is new.
async fn join(
    directory: &mut Directory,
    before: &View,
    change: &Change,
    place: &Place,
    reach: &Reach,
) -> Result<()> {
    // Whatever is wrong with it should be said before the node has its id.
    let expected = before.cluster.after(change).map_err(refused)?;
    let wants_file = place.config_out.is_some();
    let file = |cluster: &Cluster| {
        NewFile {
            template: &reach.config,
            cluster,
            id: new_id(cluster, place)?,
            data_dir: &place.data_dir,
        }
        .text()
    };
    let tried = file(&expected);
    if wants_file {
        tried.context("the node was not added, since its configuration cannot be made")?;
    }
    if let Some(path) = place.config_out.as_ref().filter(|path| path.exists()) {
        bail!("{} is there already; the node was not added", path.display());
    }
    let cluster = directory.execute(change).await?;
    let id = new_id(&cluster, place)?;
    let name = selection::node_name(&cluster, id);
    if let Some(path) = &place.config_out {
        config_file::write(path, &file(&cluster)?)?;
    }
    if reach.json {
        return print_json(&Added { id, name, config: place.config_out.clone() });
    }
    let next = match &place.config_out {
        Some(path) => format!("start it with\n  meridian serve --config {}\n", path.display()),
        None => format!(
            "give it a configuration with `node = {id}`, `join = true` and the cluster's [[nodes]] (--config-out writes one)\n"
        ),
    };
    print(&format!("node {id} is {name}; {next}"))
}

/// As the directory would say it.
fn refused(why: Refused) -> anyhow::Error {
    anyhow!("refused: {why}")
}

/// The only one that lives at its address. Another may have been added at the same time.
fn new_id(cluster: &Cluster, place: &Place) -> Result<NodeId> {
    let mut live = cluster.nodes.iter().filter(|(_, node)| !node.removed);
    let found = live.find(|(_, node)| node.rpc_address == place.rpc_address);
    found.map(|(id, _)| *id).context("the new node is gone again")
}

async fn remove(directory: &mut Directory, text: &str, yes: bool, json: bool) -> Result<()> {
    let view = directory.inspect_leader(0).await?;
    let (id, node) = selection::node(&view.cluster, text)?;
    let change = Change::RemoveNode { node: id };
    // What the directory would refuse, it refuses here.
    view.cluster.after(&change).map_err(refused)?;
    if !yes {
        let data_center: Vec<&str> = view
            .cluster
            .nodes_of(&node.region)
            .filter(|(other, other_node)| {
                *other != id && other_node.data_center == node.data_center
            })
            .map(|(_, other)| other.name.as_str())
            .collect();
        let copies = match data_center.as_slice() {
            [] => format!(
                "it holds the only copy in data center {} of {}",
                node.data_center, node.region
            ),
            others => format!(
                "data center {} of {} keeps {}",
                node.data_center,
                node.region,
                others.join(", ")
            ),
        };
        bail!(
            "removing {} (node {id}) is for good: its copies are not used again, and {copies}. Say --yes to do it",
            node.name
        );
    }
    let name = node.name.clone();
    directory.execute(&change).await?;
    if json {
        return print_json(&Added { id, name, config: None });
    }
    print(&format!("node {id} ({name}) was removed; stop its process and delete its data folder\n"))
}

/// Refuses without `yes` what may be a mistake: a node that is up needs no replacement.
fn check_replaceable(view: &View, id: NodeId, yes: bool) -> Result<()> {
    let name = selection::node_name(&view.cluster, id);
    let age = view.contacts.get(&id).map(|contact| contact.age_ms);
    if yes || !age.is_some_and(is_fresh) {
        return Ok(());
    }
    bail!(
        "{name} (node {id}) still answers. Replaced, it may never come back, and what it holds counts no more: until \
         the new node has copied everything, each shard it votes in survives one loss less. Say --yes to do it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::{view, view_without};

    #[test]
    fn a_node_that_answers_is_replaced_only_with_a_word() {
        let error = check_replaceable(&view(), 2, false).unwrap_err().to_string();
        assert!(
            error.contains("region-1-b (node 2) still answers") && error.contains("--yes"),
            "{error}"
        );
        check_replaceable(&view(), 2, true).unwrap();
        check_replaceable(&view_without("region-1", 60_000), 2, false).unwrap();
        let mut unheard = view();
        unheard.contacts.remove(&2);
        check_replaceable(&unheard, 2, false).unwrap();
    }
}
