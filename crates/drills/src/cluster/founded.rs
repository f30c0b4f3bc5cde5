//! A cluster as operators found one: the first node makes its authority, and all other processes join
//! by tokens.

use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use meridian_config::{Context, IdentityFolder};

use super::configuration::{join, read_table};
use super::{Cluster, ClusterError, Machine, READY_DEADLINE};
use crate::poll;

impl Cluster {
    /// Starts the first node, and lets the others join it.
    pub(super) async fn found(&mut self) -> Result<(), ClusterError> {
        let mut ids = self.node_ids().into_iter();
        let founder = ids.next().ok_or(ClusterError::NoPorts)?;
        let config = self.node(founder)?.config.clone();
        let mut table = read_table(&config)?;
        table.remove("identity");
        write(&config, &table)?;
        self.restart(Machine::Node(founder))?;
        let data_dir = table.get("data_dir").and_then(toml::Value::as_str).unwrap_or_default();
        let folder = config.parent().unwrap_or(Path::new(".")).join(data_dir);
        let made = IdentityFolder::of(&folder).file("operator.toml");
        let context = self.context();
        let copied = poll::until("the first node founds a cluster", READY_DEADLINE, async || {
            fs::copy(&made, &context).map_err(|error| (error, self.ended()))
        });
        copied.await?;
        self.read_context()?;
        for id in ids {
            let (name, config) = {
                let node = self.node(id)?;
                (node.name.clone(), node.config.clone())
            };
            let mut table = read_table(&config)?;
            join(&mut table, self.join_token(&["nodes", "join-token", &name]).await?);
            write(&config, &table)?;
            self.restart(Machine::Node(id))?;
        }
        Ok(())
    }

    /// The one line that a command prints, once the cluster answers it.
    pub(super) async fn join_token(&self, command: &[&str]) -> Result<String, ClusterError> {
        let printed = poll::until("a join token is made", READY_DEADLINE, async || {
            self.command(command).await.map_err(|error| error.to_string())
        });
        Ok(printed.await?.trim().to_owned())
    }

    /// Replaces the authority of the cluster, which has founded it itself; blocks until its processes
    /// have certificates of the new one.
    pub async fn rotate_authority(&self) -> Result<(), ClusterError> {
        self.command(&["cluster", "rotate-authority"]).await?;
        self.read_context()
    }

    /// The output of the program as the cluster's operator.
    async fn command(&self, arguments: &[&str]) -> Result<String, ClusterError> {
        let mut command = Command::new(&self.program);
        command.args(arguments).env("MERIDIAN_CONTEXT", self.context());
        let output = tokio::task::spawn_blocking(move || command.output()).await;
        let output = output.map_err(io::Error::other).and_then(|output| output);
        let output = output.map_err(|source| ClusterError::io("the program runs", source))?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(ClusterError::Refused { command: arguments.join(" "), text })
    }

    /// From now on the operator believes the authorities of the context.
    fn read_context(&self) -> Result<(), ClusterError> {
        let context = self.context();
        let access = Context::load(&context)?.access(&context)?;
        let addresses = self.nodes.iter().map(|(id, node)| (*id, node.rpc.clone())).collect();
        Ok(self.operator.dial(&addresses, &access)?)
    }
}

fn write(config: &Path, table: &toml::Table) -> Result<(), ClusterError> {
    let written = fs::write(config, table.to_string());
    written.map_err(|source| ClusterError::io("a node's configuration", source))
}
