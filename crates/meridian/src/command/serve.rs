//! `meridian serve` and `meridian gateway`: one node, or one stateless gateway, until a signal.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use meridian_config::{GatewayConfig, NodeConfig};
use meridian_net::{Listener, Metrics, serve_metrics};
use meridian_node::{Node, StandaloneGateway};
use tokio_util::sync::CancellationToken;

use super::{Hangup, asked_to_stop, say};

#[derive(Args)]
pub(crate) struct Serve {
    /// Configuration file of the node; see docs/configuration.md.
    #[arg(long)]
    config: PathBuf,
    /// Memory for this process, in MiB, instead of the configuration's.
    #[arg(long, env = "MERIDIAN_MAX_MEMORY_MB", value_parser = clap::value_parser!(u64).range(320..=1_048_576))]
    max_memory_mb: Option<u64>,
    #[arg(skip)]
    loaded: Option<Box<NodeConfig>>,
}

#[derive(Args)]
pub(crate) struct Gateway {
    /// Configuration file of the gateway; see docs/configuration.md.
    #[arg(long)]
    config: PathBuf,
    /// Memory for this process, in MiB, instead of the configuration's.
    #[arg(long, env = "MERIDIAN_MAX_MEMORY_MB", value_parser = clap::value_parser!(u64).range(320..=1_048_576))]
    max_memory_mb: Option<u64>,
}

impl Serve {
    /// Reads the configuration: the number of threads must be known before they start.
    pub(crate) fn load(&mut self) -> Result<Option<usize>> {
        let config = self.loaded.insert(Box::new(NodeConfig::load(&self.config)?));
        Ok(config.worker_threads)
    }

    pub(crate) async fn run(self) -> Result<()> {
        let mut config = match self.loaded {
            Some(config) => *config,
            None => NodeConfig::load(&self.config)?,
        };
        config.max_memory_mb = self.max_memory_mb.or(config.max_memory_mb);
        let stop = CancellationToken::new();
        start_metrics(config.listen.metrics.as_deref(), &stop).await?;
        let node = Node::start(config, None).await?;
        say(&format!("node {} serves KV Connect at http://{}", node.name(), node.kv_address()));
        let refused = tokio::select! {
            () = asked_to_stop(Hangup::Ignore) => None,
            reason = node.refused() => Some(reason),
        };
        stop.cancel();
        node.stop().await;
        match refused {
            None => Ok(()),
            Some(reason) => bail!("the cluster refuses this node: {reason}"),
        }
    }
}

impl Gateway {
    pub(crate) async fn run(self) -> Result<()> {
        let mut config = GatewayConfig::load(&self.config)?;
        config.max_memory_mb = self.max_memory_mb.or(config.max_memory_mb);
        let stop = CancellationToken::new();
        start_metrics(config.listen.metrics.as_deref(), &stop).await?;
        let gateway = StandaloneGateway::start(config, None).await?;
        say(&format!("gateway serves KV Connect at http://{}", gateway.kv_address()));
        asked_to_stop(Hangup::Ignore).await;
        stop.cancel();
        gateway.stop().await;
        Ok(())
    }
}

async fn start_metrics(address: Option<&str>, stop: &CancellationToken) -> Result<()> {
    let Some(address) = address else { return Ok(()) };
    let metrics = Metrics::install().context("metrics cannot be recorded")?;
    let listener = Listener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address} for metrics"))?;
    tokio::spawn(serve_metrics(listener, metrics, stop.clone()));
    Ok(())
}
