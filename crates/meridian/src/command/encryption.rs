//! `meridian encryption`: how the files of each node are encrypted, and changes of keys.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use clap::{Args, Subcommand};
use meridian_directory::{Cluster, Node};
use meridian_net::grpc::Access;
use meridian_proto::admin::{EncryptionStatus, RotateKeysRequest, StatusRequest, StatusResponse};
use meridian_types::NodeId;
use serde::Serialize;

use super::operator::{
    Connect, Directory, Table, admin, every_node, format, print, print_json, resolve,
};

/// A command that tells the key may take 30 s, at the node.
const ROTATION: Duration = Duration::from_secs(40);

#[derive(Args)]
pub(crate) struct Encryption {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Shows for each node whether its files are encrypted, under which keys, and how far it is.
    Status,
    /// Has a node read its master key again, from where its configuration says.
    ///
    /// A key file and a credential are also looked at by the node itself. The keyring of the node is
    /// under the new key when the command ends; no other file is written.
    Rotate {
        /// Id or name of the node.
        #[arg(value_name = "NODE")]
        node: String,
        /// Makes another data key, too: new files are under it, and the older ones are written again
        /// in the background.
        #[arg(long)]
        new_data_key: bool,
    },
}

/// How the files of a node are encrypted.
#[derive(Serialize)]
struct Shown {
    node_id: NodeId,
    node: String,
    state: String,
    percent: u32,
    master_key: String,
    data_key: u32,
    data_key_ms: u64,
    older_data_keys: u32,
    files_until_restart: u64,
}

impl Shown {
    fn of(node_id: NodeId, node: &Node, status: EncryptionStatus) -> Self {
        Self {
            node_id,
            node: node.name.clone(),
            state: status.state,
            percent: status.percent,
            master_key: status.master_key,
            data_key: status.data_key,
            data_key_ms: status.data_key_ms,
            older_data_keys: status.older_data_keys,
            files_until_restart: status.files_until_restart,
        }
    }
}

/// The state in a few words, for people.
pub(crate) fn state(status: &EncryptionStatus) -> String {
    match status.state.as_str() {
        "encrypting" => format!("encrypting, {} % done", status.percent),
        "decrypting" => format!("decrypting, {} % done", status.percent),
        "" => "not known".to_owned(),
        state => state.to_owned(),
    }
}

impl Encryption {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let cluster = directory.inspect(0).await?.cluster;
        let access = directory.access().clone();
        let json = self.connect.json;
        match self.command {
            Command::Status => {
                let nodes = statuses(&cluster, &access).await?;
                if json { print_json(&nodes) } else { print(&table(&nodes)) }
            }
            Command::Rotate { node, new_data_key } => {
                let (id, node) = resolve::node(&cluster, &node)?;
                rotate((id, node), &access, new_data_key, json).await
            }
        }
    }
}

/// Of all nodes that answer.
async fn statuses(cluster: &Cluster, access: &Access) -> Result<Vec<Shown>> {
    let answers = every_node(cluster, "ask", async |node| {
        let mut client = admin(&node.rpc_address, access).await?;
        Ok(client.status(StatusRequest {}).await?.into_inner())
    });
    let shown = |(id, node, status): (_, _, StatusResponse)| {
        Shown::of(id, node, status.encryption.unwrap_or_default())
    };
    Ok(answers.await?.into_iter().map(shown).collect())
}

fn table(nodes: &[Shown]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "ENCRYPTION",
        ">DONE",
        "MASTER KEY",
        ">DATA KEY",
        "MADE",
        ">OLDER KEYS",
        ">FILES UNTIL RESTART",
    ]);
    for node in nodes {
        if node.master_key.is_empty() {
            table.row([node.node.clone(), node.state.clone()]);
            continue;
        }
        table.row([
            node.node.clone(),
            node.state.clone(),
            format!("{} %", node.percent),
            node.master_key.clone(),
            node.data_key.to_string(),
            format::time(node.data_key_ms),
            node.older_data_keys.to_string(),
            node.files_until_restart.to_string(),
        ]);
    }
    table.to_string()
}

async fn rotate(
    (id, node): (NodeId, &Node),
    access: &Access,
    new_data_key: bool,
    json: bool,
) -> Result<()> {
    let rotated = async {
        let mut client = admin(&node.rpc_address, access).await?;
        let request = RotateKeysRequest { new_data_key };
        Ok::<_, tonic::Status>(client.rotate_keys(request).await?.into_inner())
    };
    let late = |_| anyhow!("{} does not answer; `encryption status` shows its keys", node.name);
    let rotated = tokio::time::timeout(ROTATION, rotated).await.map_err(late)?;
    let rotated = rotated.map_err(|status| anyhow!("{}: {}", node.name, status.message()))?;
    let status = rotated.encryption.context("the node does not say what its keys are")?;
    let shown = Shown::of(id, node, status);
    if json {
        return print_json(&shown);
    }
    let master = if rotated.master_key_changed { "now" } else { "still" };
    print(&format!(
        "{}: the keyring is {master} under the master key {}, new files are under data key {}\n",
        shown.node, shown.master_key, shown.data_key
    ))
}
