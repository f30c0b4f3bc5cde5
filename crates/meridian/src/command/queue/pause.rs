//! `meridian queue pause` and `meridian queue resume`.

use anyhow::{Result, bail};
use clap::Args;
use meridian_directory::Change;
use meridian_types::DatabaseId;
use serde::Serialize;

use crate::command::kv::output::{Form, Output};
use crate::command::operator::{Connect, Directory, resolve};

/// Keeps a queue from handing out messages, to any listener, until it is resumed.
///
/// Listeners stay connected, keep what they hold and report on it, and messages are enqueued and
/// changed as ever. It is a setting of the database, and lasts over restarts and failovers. `meridian
/// queue count` says when the queue's leader knows it.
#[derive(Args)]
pub(crate) struct Pause {
    #[command(flatten)]
    queue: Paused,
}

/// Has a queue that was paused hand out its messages again.
#[derive(Args)]
pub(crate) struct Resume {
    #[command(flatten)]
    queue: Paused,
}

#[derive(Args)]
struct Paused {
    /// Name or id of the database.
    #[arg(value_name = "DATABASE")]
    name: String,
    #[command(flatten)]
    connect: Connect,
}

impl Pause {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        self.queue.set(true, output).await
    }
}

impl Resume {
    pub(super) async fn run(self, output: &mut Output) -> Result<()> {
        self.queue.set(false, output).await
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Set<'a> {
    id: DatabaseId,
    name: &'a str,
    paused: bool,
}

impl Paused {
    async fn set(self, paused: bool, output: &mut Output) -> Result<()> {
        let Self { name, connect } = self;
        let mut directory = Directory::new(&connect.target)?;
        let view = directory.inspect_leader(0).await?;
        let id = resolve::database(&view.cluster, &name)?;
        let change = Change::SetDatabase {
            id,
            failover: None,
            rpo: None,
            primary_region: None,
            v8_format: None,
            queue_paused: Some(paused),
        };
        let cluster = directory.execute(&change).await?;
        let Some(database) = cluster.databases.get(&id) else {
            bail!("database {id} was deleted meanwhile")
        };
        let is = if paused { "paused" } else { "resumed" };
        if database.queue_paused != paused {
            bail!(
                "the queue of {name} is not {is}: it was changed meanwhile, or the directory's leader \
                 is of a version that pauses no queues"
            );
        }
        let (set, name) = (Set { id, name: &database.name, paused }, &database.name);
        let wants_json = connect.json || output.form() == Form::Json;
        output.line(&match (wants_json, paused) {
            (true, _) => serde_json::to_string(&set)?,
            (false, true) => format!(
                "the queue of database {name} is paused; `meridian queue resume {name}` ends that"
            ),
            (false, false) => format!("the queue of database {name} is resumed"),
        })
    }
}
