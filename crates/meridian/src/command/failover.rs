//! `meridian failover`: a failover ordered by an operator, which may lose commits that were not shipped.

mod preview;

use anyhow::{Result, bail};
use clap::Args;
use meridian_directory::Change;

use super::operator::{Connect, Directory, actor, format, print, print_json, resolve};
use super::switchover::{Goal, wait};
use preview::Preview;

/// Moves the primary of a shard out of a lost region, losing commits that were not shipped.
///
/// Without --allow-data-loss it only shows the loss, as far as that is known, and ends with exit
/// code 1. While the region serves, `meridian switchover` moves the shard without loss.
#[derive(Args)]
pub(crate) struct Failover {
    /// A shard's number, or a database's name or id: all databases of the shard move with it.
    #[arg(value_name = "SHARD|DATABASE")]
    target: String,
    /// Region to fail over to. Default: the most advanced region.
    #[arg(long, value_name = "REGION")]
    to: Option<String>,
    /// Order the failover.
    #[arg(long)]
    allow_data_loss: bool,
    /// Show the progress, and end when the shard is served in its new region.
    #[arg(long)]
    wait: bool,
    #[command(flatten)]
    connect: Connect,
}

impl Failover {
    pub(crate) async fn run(self) -> Result<()> {
        let json = self.connect.json;
        let mut directory = Directory::new(&self.connect.target)?;
        let view = directory.inspect_leader(0).await?;
        let (id, shard) = resolve::shard_of(&view.cluster, &self.target)?;
        if let Some(to) = &self.to {
            resolve::region(&view.cluster, to)?;
        }
        let preview = Preview::new(&view, id, shard, self.to.as_deref());
        if !self.allow_data_loss {
            if json {
                print_json(&preview)?
            } else {
                print(&preview.to_string())?
            }
            bail!("nothing was done: add --allow-data-loss to fail over shard {id}");
        }
        if !json {
            print(&preview.to_string())?;
        }
        let goal = Goal {
            shard: id,
            epoch: shard.epoch,
            from: shard.primary_region.clone(),
            to: self.to.clone(),
            planned: false,
            version: view.cluster.version + 1,
        };
        let change = Change::ForceFailover {
            shard: id,
            epoch: shard.epoch,
            to: self.to,
            since_ms: format::now_ms(),
            cause: format!("ordered by {}", actor()),
        };
        directory.execute(&change).await?;
        if self.wait {
            return match wait(&mut directory, &[goal], json).await? {
                true => Ok(()),
                false => bail!("the shard did not reach its target region"),
            };
        }
        if json {
            return print_json(&preview);
        }
        print(&format!(
            "shard {id} fails over; `meridian cluster status` shows the progress, `meridian shards reports {id}` the \
             loss\n"
        ))
    }
}
