//! `meridian regions`: lists, adds and removes regions.

use anyhow::Result;
use clap::{Args, Subcommand};
use meridian_directory::Change;
use serde::Serialize;

use super::cluster::Overview;
use super::operator::{Connect, Directory, Table, format, print, print_json};

#[derive(Args)]
pub(crate) struct Regions {
    #[command(flatten)]
    connect: Connect,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lists the regions.
    List,
    /// Adds a region, to which `meridian nodes add` can then add nodes.
    Add {
        /// Letters, digits, `-`, `_` and `.`.
        name: String,
    },
    /// Removes a region.
    ///
    /// Refused while the region has nodes, a shard's primary, or a database that belongs there, so
    /// that nothing is lost.
    Remove { name: String },
}

#[derive(Serialize)]
struct Named<'a> {
    regions: &'a [String],
}

impl Regions {
    pub(crate) async fn run(self) -> Result<()> {
        let mut directory = Directory::new(&self.connect.target)?;
        let change = match self.command {
            Command::List => return list(&mut directory, self.connect.json).await,
            Command::Add { name } => Change::AddRegion { name },
            Command::Remove { name } => Change::RemoveRegion { name },
        };
        let cluster = directory.execute(&change).await?;
        if self.connect.json {
            return print_json(&Named { regions: &cluster.regions });
        }
        print(&format!("the regions are {}\n", cluster.regions.join(", ")))
    }
}

async fn list(directory: &mut Directory, json: bool) -> Result<()> {
    let overview = Overview::of(&directory.inspect(0).await?, format::now_ms());
    if json {
        return print_json(&overview.regions);
    }
    let mut table = Table::new(&["REGION", ">NODES", ">DATA CENTERS", "PRIMARY OF"]);
    for region in &overview.regions {
        let primary = overview.shards.iter().filter(|shard| shard.primary_region == region.name);
        let primary: Vec<String> = primary.map(|shard| format!("shard {}", shard.shard)).collect();
        table.row([
            region.name.clone(),
            region.nodes.to_string(),
            region.data_centers.to_string(),
            primary.join(", "),
        ]);
    }
    print(&table.to_string())
}
