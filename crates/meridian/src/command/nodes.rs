//! `meridian nodes`: lists, adds, removes and replaces nodes.

mod config_file;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use clap::{Args, Subcommand};
use meridian_directory::{Change, Cluster, Member, Node, Refused};
use meridian_pki::{Holder, JoinToken, Subject};
use meridian_types::NodeId;
use serde::Serialize;

use super::cluster::NodeOverview;
use super::invitation::{Lifetime, invite, revoke, show_token};
use super::operator::{Connect, Directory, View, format, is_fresh, print, print_json, resolve};
use config_file::NewFile;

#[derive(Args)]
pub(crate) struct Nodes {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the nodes with their addresses, and when each was last seen.
    List {
        /// Include removed nodes.
        #[arg(long)]
        all: bool,
    },
    /// Adds a node: assigns its id and writes its configuration. It joins as a replica of every
    /// shard.
    ///
    /// Its region must exist; `meridian regions add` adds one. `meridian shards set-voters` makes
    /// the node a voter.
    Add(NewNode),
    /// Prints a join token for a node that the cluster knows: one line, for `join` in its file.
    ///
    /// It can be used once. A node that lost its certificate, or whose certificate has expired, joins
    /// with a new one, and keeps its data.
    JoinToken {
        /// Id or name of the node.
        #[arg(value_name = "NODE")]
        node: String,
        #[command(flatten)]
        lifetime: Lifetime,
    },
    /// Revokes the certificates that a node has: it is refused from now on, until it joins anew.
    Revoke {
        /// Id or name of the node.
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Removes a node permanently: it stops serving, and its id is never used again.
    ///
    /// Refused while the node votes in a shard or in the directory.
    Remove {
        /// Id or name of the node.
        #[arg(value_name = "NODE")]
        node: String,
        /// Confirm. Without it, the command only shows the consequences.
        #[arg(long)]
        yes: bool,
    },
    /// Replaces a permanently lost node by a new one, with its votes, while the cluster serves.
    ///
    /// The new node begins with an empty data folder. The old node is removed and may never come
    /// back.
    Replace {
        /// Id or name of the lost node.
        #[arg(value_name = "NODE")]
        old: String,
        #[command(flatten)]
        new: Replacement,
    },
}

#[derive(Args)]
struct NewNode {
    /// Letters, digits, `-`, `_` and `.`; unique among the nodes.
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
    /// Letters, digits, `-`, `_` and `.`; may be the old node's name.
    #[arg(long)]
    name: String,
    /// Default: the old node's data center. The region stays.
    #[arg(long)]
    data_center: Option<String>,
    /// Replace the old node even if it still answers.
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: Place,
}

/// The addresses of a new node, and the file for its configuration.
#[derive(Args)]
struct Place {
    /// Address at which other nodes reach it (gRPC).
    #[arg(long, value_name = "HOST:PORT")]
    rpc_address: String,
    /// Address at which clients reach its gateway (KV Connect).
    #[arg(long, value_name = "HOST:PORT")]
    kv_address: Option<String>,
    /// File for the new node's configuration, made from the one of --config, with a join token where
    /// the cluster has an authority of its own. It must not exist yet.
    #[arg(long, value_name = "FILE")]
    config_out: Option<PathBuf>,
    /// Data folder in the new node's configuration; a relative path starts at that file's folder.
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
#[serde(rename_all = "camelCase")]
struct Added {
    id: NodeId,
    name: String,
    config: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    join_token: Option<String>,
}

impl Nodes {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        match self.command {
            Command::List { all } => list(&mut directory, all, self.connect.json).await,
            Command::Add(new) => {
                let node = new.place.node(new.name, new.region, new.data_center);
                let change = Change::AddNode { node };
                let before = directory.inspect_leader(0).await?;
                join(&mut directory, &before, &change, &new.place, &self.connect).await
            }
            Command::JoinToken { node, lifetime } => {
                let view = directory.inspect_leader(0).await?;
                let (id, _) = resolve::node(&view.cluster, &node)?;
                let member = Member::Node(id);
                let token = invite(&mut directory, &view.cluster, member, &lifetime).await?;
                show_token(&token, self.connect.json)
            }
            Command::Revoke { node } => {
                let view = directory.inspect_leader(0).await?;
                let (id, known) = resolve::node(&view.cluster, &node)?;
                let name = known.name.clone();
                revoke(&mut directory, Member::Node(id)).await?;
                print(&format!("the certificates of {name} (node {id}) are refused from now on\n"))
            }
            Command::Remove { node, yes } => {
                remove(&mut directory, &node, yes, self.connect.json).await
            }
            Command::Replace { old, new } => {
                let view = directory.inspect_leader(0).await?;
                let (id, node) = resolve::node(&view.cluster, &old)?;
                let data_center = new.data_center.unwrap_or_else(|| node.data_center.clone());
                check_replaceable(&view, id, new.yes)?;
                let change = Change::ReplaceNode {
                    old: id,
                    new: new.place.node(new.name, node.region.clone(), data_center),
                };
                join(&mut directory, &view, &change, &new.place, &self.connect).await
            }
        }
    }
}

async fn list(directory: &mut Directory, all: bool, json: bool) -> Result<()> {
    let view = directory.inspect(0).await?;
    let nodes = view.cluster.nodes.iter().filter(|(_, node)| all || !node.removed);
    let now_ms = format::now_ms();
    let nodes: Vec<NodeOverview> =
        nodes.map(|(id, node)| NodeOverview::of(&view, *id, node, now_ms)).collect();
    if json { print_json(&nodes) } else { print(&NodeOverview::table(&nodes).to_string()) }
}

/// Adds or replaces a node, and writes the new node's configuration.
async fn join(
    directory: &mut Directory,
    before: &View,
    change: &Change,
    place: &Place,
    connect: &Connect,
) -> Result<()> {
    // Errors of the configuration are reported before the node is added.
    let expected = before.cluster.after(change).map_err(refused)?;
    let template = &connect.target.config;
    let file = |cluster: &Cluster, token: Option<&JoinToken>| {
        let data_dir = &place.data_dir;
        NewFile { template, cluster, id: new_id(cluster, place)?, data_dir }.text(token)
    };
    if let Some(path) = &place.config_out {
        file(&expected, None)
            .context("the node was not added, since its configuration cannot be made")?;
        if path.exists() {
            bail!("{} exists already; the node was not added", path.display());
        }
    }
    let cluster = directory.execute(change).await?;
    let id = new_id(&cluster, place)?;
    let name = resolve::node_name(&cluster, id);
    let token = match cluster.trust.authorities.is_empty() {
        true => None,
        false => {
            let invited = invite(directory, &cluster, Member::Node(id), &Lifetime::default()).await;
            Some(invited.with_context(|| {
                format!("node {id} is {name}, and has no token yet: `meridian nodes join-token {name}` prints one")
            })?)
        }
    };
    let mut certificate = None;
    if let Some(path) = &place.config_out {
        config_file::write(path, &file(&cluster, token.as_ref())?)?;
        if token.is_none() {
            certificate = config_file::wanted_certificate(template, &name, id)?;
        }
    }
    let config = place.config_out.clone();
    if connect.json {
        let join_token = token.map(|token| token.to_string());
        return print_json(&Added { id, name, config, join_token });
    }
    let next = next_step(&cluster, id, config.as_deref(), token.as_ref(), certificate.as_deref());
    print(&format!("node {id} is {name}; {next}"))
}

/// The words for the step that brings a new node into the cluster. `certificate`: the file that its
/// operator has to put one into.
fn next_step(
    cluster: &Cluster,
    id: NodeId,
    config: Option<&Path>,
    token: Option<&JoinToken>,
    certificate: Option<&Path>,
) -> String {
    let certificate = certificate.map(|path| {
        let cluster = cluster.id.as_deref().unwrap_or("CLUSTER").to_owned();
        let subject = Subject { cluster, holder: Holder::Node(id) };
        format!("put a certificate for {subject} with its key into {}, and ", path.display())
    });
    match (config, token) {
        (Some(path), _) => format!(
            "{}start it with\n  meridian serve --config {}\n",
            certificate.unwrap_or_default(),
            path.display()
        ),
        (None, Some(token)) => format!(
            "give it a file with `data_dir`, `[listen]` and this line, which can be used once:\n\njoin = \"{token}\"\n"
        ),
        (None, None) => format!(
            "give it a configuration with `node = {id}`, `join = true` and the cluster's [[nodes]] (--config-out writes one)\n"
        ),
    }
}

/// A refusal in the directory's words.
fn refused(why: Refused) -> anyhow::Error {
    anyhow!("refused: {why}")
}

/// The id of the new node, found by its address: another node may have been added at the same time.
fn new_id(cluster: &Cluster, place: &Place) -> Result<NodeId> {
    let mut live = cluster.nodes.iter().filter(|(_, node)| !node.removed);
    let found = live.find(|(_, node)| node.rpc_address == place.rpc_address);
    found.map(|(id, _)| *id).context("the new node was removed meanwhile")
}

async fn remove(directory: &mut Directory, text: &str, yes: bool, json: bool) -> Result<()> {
    let view = directory.inspect_leader(0).await?;
    let (id, node) = resolve::node(&view.cluster, text)?;
    let change = Change::RemoveNode { node: id };
    // Refusals of the directory come before the question for --yes.
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
            "removing {} (node {id}) is permanent: its data is not used again, and {copies}. Add --yes to remove it",
            node.name
        );
    }
    let name = node.name.clone();
    directory.execute(&change).await?;
    if json {
        return print_json(&Added { id, name, config: None, join_token: None });
    }
    print(&format!("node {id} ({name}) was removed; stop its process and delete its data folder\n"))
}

/// Refuses, without `yes`, to replace a node that is up.
fn check_replaceable(view: &View, id: NodeId, yes: bool) -> Result<()> {
    let name = resolve::node_name(&view.cluster, id);
    let age = view.contacts.get(&id).map(|contact| contact.age_ms);
    if yes || !age.is_some_and(is_fresh) {
        return Ok(());
    }
    bail!(
        "{name} (node {id}) still answers. Once replaced, it may never come back, and its data no longer counts: until \
         the new node has copied everything, each shard it votes in survives one loss less. Add --yes to replace it"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::{view, view_without};

    #[test]
    fn node_that_answers_is_replaced_only_with_yes() {
        let error = check_replaceable(&view(), NodeId(2), false).unwrap_err().to_string();
        assert!(
            error.contains("region-1-b (node 2) still answers") && error.contains("--yes"),
            "{error}"
        );
        check_replaceable(&view(), NodeId(2), true).unwrap();
        check_replaceable(&view_without("region-1", 60_000), NodeId(2), false).unwrap();
        let mut unheard = view();
        unheard.contacts.remove(&NodeId(2));
        check_replaceable(&unheard, NodeId(2), false).unwrap();
    }

    #[test]
    fn next_step_names_the_file_and_the_certificate_that_it_wants() {
        let cluster = Cluster { id: Some("00ff00ff00ff00ff".to_owned()), ..view().cluster };
        let step = |config: Option<&str>, certificate: Option<&str>| {
            let (config, certificate) = (config.map(Path::new), certificate.map(Path::new));
            next_step(&cluster, NodeId(7), config, None, certificate)
        };
        let own = step(Some("n7.toml"), Some("/pki/n7.pem"));
        assert!(own.contains("certificate for meridian://00ff00ff00ff00ff/node/7"), "{own}");
        assert!(own.contains("into /pki/n7.pem, and start it"), "{own}");
        assert!(step(Some("n7.toml"), None).starts_with("start it with"));
        assert!(step(None, None).contains("--config-out"));
    }
}
