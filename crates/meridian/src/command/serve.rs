//! `meridian serve` and `meridian gateway`: one node, or one stateless gateway, until a signal.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use clap::Args;
use meridian_config::{ConfigError, GatewayConfig, GatewaySettings, Loaded, NodeConfig};
use meridian_cron::CronServer;
use meridian_net::{Listener, Metrics, serve_metrics};
use meridian_node::{Node, StandaloneGateway};
use tokio_util::sync::CancellationToken;

use super::gateway_url::with_database;
use super::{Hangup, access_token, asked_to_stop, keep_files_private, say};

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
    /// Serve crons to programs of this machine, at this loopback address: each tick of `Deno.cron`
    /// runs once in all programs of all gateways. See docs/cron.md.
    #[arg(
        long,
        env = "MERIDIAN_CRON_LISTEN",
        value_name = "ADDRESS",
        requires = "cron_token_file"
    )]
    cron_listen: Option<String>,
    /// File that holds an access token which may write the database of the crons.
    #[arg(long, env = "MERIDIAN_CRON_TOKEN_FILE", value_name = "FILE")]
    cron_token_file: Option<PathBuf>,
    /// Name of the database that keeps which ticks have run. Default: the default database.
    #[arg(long, env = "MERIDIAN_CRON_DATABASE", value_name = "NAME")]
    cron_database: Option<String>,
}

impl Serve {
    /// Reads the configuration: the number of threads must be known before they start.
    pub(crate) fn load(&mut self) -> Result<Option<usize>> {
        Ok(match NodeConfig::open(&self.config)? {
            Loaded::Config(config) => self.loaded.insert(config).worker_threads,
            Loaded::Joining(joining) => joining.worker_threads,
        })
    }

    pub(crate) async fn run(self) -> Result<()> {
        let config = match self.loaded {
            Some(config) => Some(*config),
            None => joined(|| NodeConfig::open(&self.config)).await?,
        };
        let Some(mut config) = config else { return Ok(()) };
        config.max_memory_mb = self.max_memory_mb.or(config.max_memory_mb);
        keep_files_private();
        let stop = CancellationToken::new();
        start_metrics(config.listen.metrics.as_deref(), &stop).await?;
        let scheme = scheme(&config.gateway);
        let node = Node::start(config, None).await?;
        say(&format!("node {} serves KV Connect at {scheme}://{}", node.name(), node.kv_address()));
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
        let config = joined(|| GatewayConfig::open(&self.config)).await?;
        let Some(mut config) = config else { return Ok(()) };
        if let Some(address) = &self.cron_listen {
            CronServer::check(address)?;
        }
        config.max_memory_mb = self.max_memory_mb.or(config.max_memory_mb);
        let stop = CancellationToken::new();
        start_metrics(config.listen.metrics.as_deref(), &stop).await?;
        let scheme = scheme(&config.gateway);
        let gateway = StandaloneGateway::start(config, None).await?;
        say(&format!("gateway serves KV Connect at {scheme}://{}", gateway.kv_address()));
        let stopping = asked_to_stop(Hangup::Ignore);
        tokio::pin!(stopping);
        let served = tokio::select! {
            crons = self.serve_crons(&gateway) => crons,
            () = &mut stopping => return stop_gateway(gateway, &stop).await,
        };
        let ended = match served {
            Ok(crons) => {
                stopping.await;
                if let Some(crons) = crons {
                    crons.stop().await;
                }
                Ok(())
            }
            Err(error) => Err(error),
        };
        stop_gateway(gateway, &stop).await?;
        ended
    }

    /// Crons are a client of this gateway as any other.
    async fn serve_crons(&self, gateway: &StandaloneGateway) -> Result<Option<CronServer>> {
        let (Some(address), Some(token)) = (&self.cron_listen, &self.cron_token_file) else {
            return Ok(None);
        };
        let token = access_token::read_file(token)?;
        let gateway = gateway.address_for_this_process().await?;
        let url = with_database(url_of(gateway), self.cron_database.as_deref())?;
        let crons = CronServer::start(address, url, token).await?;
        say(&format!("gateway serves crons: DENO_UNSTABLE_CRON_SOCK={}", crons.variable()));
        Ok(Some(crons))
    }
}

fn scheme(settings: &GatewaySettings) -> &'static str {
    if settings.certificates.is_empty() { "http" } else { "https" }
}

/// The configuration, once the process has joined its cluster, if it is to join one. `None`: it was
/// asked to stop before.
async fn joined<C>(open: impl Fn() -> Result<Loaded<C>, ConfigError>) -> Result<Option<C>> {
    let joining = match open()? {
        Loaded::Config(config) => return Ok(Some(*config)),
        Loaded::Joining(joining) => joining,
    };
    say(&format!(
        "joining cluster {} through {}",
        joining.token.cluster,
        joining.token.addresses.join(", ")
    ));
    tokio::select! {
        joined = meridian_node::join(&joining) => joined?,
        () = asked_to_stop(Hangup::Ignore) => return Ok(None),
    }
    match open()? {
        Loaded::Config(config) => Ok(Some(*config)),
        Loaded::Joining(_) => bail!("the process has joined, and its identity is gone"),
    }
}

async fn stop_gateway(gateway: StandaloneGateway, stop: &CancellationToken) -> Result<()> {
    stop.cancel();
    gateway.stop().await;
    Ok(())
}

/// Of a gateway of this machine.
fn url_of(mut gateway: SocketAddr) -> String {
    match gateway.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => gateway.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => gateway.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    format!("http://{gateway}")
}

async fn start_metrics(address: Option<&str>, stop: &CancellationToken) -> Result<()> {
    let Some(address) = address else { return Ok(()) };
    let metrics = Metrics::install().context("metrics cannot be recorded")?;
    let listener = Listener::bind(address).await;
    let listener = listener.with_context(|| format!("cannot listen on {address} for metrics"))?;
    tokio::spawn(serve_metrics(listener, metrics, stop.clone()));
    Ok(())
}
