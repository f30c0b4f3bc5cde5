//! `meridian cluster-config`: the configuration files of a development cluster of separate
//! processes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;
use meridian_config::DevLayout;
use meridian_config::private_file;
use meridian_config::{dev_cluster_configs, equip};

use super::access_token::AccessToken;
use super::{Counts, parse_counts};

#[derive(Args)]
pub(crate) struct ClusterConfig {
    /// Folder to write to: for each node a folder with its node.toml, and later its data.
    #[arg(long)]
    dir: PathBuf,
    /// Number of data centers in each region, the primary first.
    #[arg(long, default_value = "3,2,1", value_parser = parse_counts)]
    topology: Counts,
    /// First KV Connect port; nodes of the first region count up from it, each further region
    /// starts 10 higher.
    #[arg(long, default_value_t = 4512)]
    port: u16,
    /// First gRPC port; nodes count up from it.
    #[arg(long, default_value_t = 4612)]
    rpc_port: u16,
    /// First metrics port; nodes count up from it. Default: no metrics.
    #[arg(long)]
    metrics_port: Option<u16>,
    // Opens every database.
    #[command(flatten)]
    access_token: AccessToken,
    /// Log kept for slow replicas, in MiB for each shard.
    #[arg(long)]
    log_retention_mb: Option<u64>,
    /// Number of shards. The nodes of the first region lead them in turn.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=1000))]
    shards: u32,
    /// Number of databases, spread over the shards: `default`, `second`, `database-3` and so on.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    databases: u32,
    /// Give the nodes no certificates: they talk in the clear, and believe every caller.
    #[arg(long)]
    insecure: bool,
    /// Accept a primary region with an even number of data centers, or with fewer than three.
    #[arg(long)]
    allow_weak_quorum: bool,
}

impl ClusterConfig {
    pub(crate) fn run(self) -> Result<()> {
        let layout = DevLayout {
            counts: &self.topology.0,
            allow_weak_quorum: self.allow_weak_quorum,
            shards: self.shards,
            databases: self.databases,
        };
        let token = self
            .access_token
            .read()?
            .context("give --access-token-file, or set DENO_KV_ACCESS_TOKEN")?;
        let mut configs = dev_cluster_configs(layout, &self.dir, self.rpc_port, self.port, &token)?;
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot make {}", self.dir.display()))?;
        if !self.insecure && equip(&mut configs, &self.dir)?.is_none() {
            eprintln!(
                "meridian: the nodes of {} have data from before they had certificates, and stay open",
                self.dir.display()
            );
        }
        for (mut config, number) in configs.into_iter().zip(0..) {
            if let Some(base) = self.metrics_port {
                let port = base.checked_add(number).context("the metrics ports do not fit")?;
                config.listen.metrics = Some(format!("127.0.0.1:{port}"));
            }
            if let Some(retention) = self.log_retention_mb {
                config.storage.log_retention_mb = retention;
            }
            std::fs::create_dir_all(&config.data_dir)?;
            let path = config.data_dir.join("node.toml");
            // The file holds the access token.
            let written = private_file::write(&path, config.to_toml().as_bytes());
            written.with_context(|| format!("cannot write {}", path.display()))?;
            println!("{}\t{}\t{}", config.node.name, config.listen.kv, path.display());
        }
        Ok(())
    }
}
