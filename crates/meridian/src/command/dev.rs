//! `meridian dev`: a whole cluster in one process, to develop against.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use chrono::Utc;
use clap::Args;
use meridian_config::{CertificateFiles, DevLayout};
use meridian_node::dev::{DevCluster, DevOptions};
use meridian_wan::WanPlan;
use uuid::Uuid;

use super::access_token::AccessToken;
use super::throw_away;
use super::{Counts, Hangup, asked_to_stop, parse_counts, say};

#[derive(Args)]
pub(crate) struct Dev {
    /// Folder for the nodes' data. A cluster started again with the same folder has its data still.
    #[arg(long, default_value = "meridian-data")]
    data_dir: PathBuf,
    /// Keep data in a temporary folder and remove it at the end.
    #[arg(long, conflicts_with = "data_dir")]
    ephemeral: bool,
    /// Number of data centers in each region, the primary first.
    #[arg(long, default_value = "3,2,1", value_parser = parse_counts)]
    topology: Counts,
    /// Port of the first region's gateway; the next region's is 10 higher, and so on.
    #[arg(long, default_value_t = 4512)]
    port: u16,
    // Generated and kept with the data, if not given.
    #[command(flatten)]
    access_token: AccessToken,
    /// Put an emulated WAN between the regions: round trips in ms from the first region to the
    /// second, the third and so on, as in `90,190,jitter=5,dc=2`. Without a value: 90,190.
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    wan: Option<WanPlan>,
    /// Let databases fail over automatically, as in production. Without it the primary stays in the
    /// first region, however busy this machine is. Takes effect when the data folder is new; later:
    /// `meridian databases set`.
    #[arg(long)]
    automatic_failover: bool,
    /// Address that the gateways listen on. Anything but loopback opens the databases to the
    /// network, in the clear unless --https is given.
    #[arg(long, default_value = "127.0.0.1")]
    host: String,
    /// Serve HTTPS, with a certificate of this machine that is made anew at each start. Clients are
    /// given its file, as in `DENO_CERT=meridian-data/https.crt`.
    #[arg(long)]
    https: bool,
    /// Memory for all nodes together, in MiB; at least 320 for each. Default: half of the machine's
    /// memory, or of its control group's limit.
    #[arg(long)]
    max_memory_mb: Option<u64>,
    /// Accept a primary region with an even number of data centers, or with fewer than three.
    #[arg(long)]
    allow_weak_quorum: bool,
}

/// A development cluster that serves.
pub(crate) struct Running {
    pub(crate) cluster: DevCluster,
    pub(crate) token: String,
    /// The certificate that the gateways show, as an authority for clients.
    pub(crate) authority: Option<PathBuf>,
    /// Of a cluster that leaves nothing.
    temporary: Option<tempfile::TempDir>,
}

impl Running {
    /// The URL of a gateway.
    pub(crate) fn url(&self, gateway: SocketAddr) -> String {
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        format!("{scheme}://{gateway}")
    }

    pub(crate) async fn stop(self) -> Result<()> {
        self.cluster.stop().await;
        match self.temporary {
            Some(folder) => remove(folder.keep()).await,
            None => Ok(()),
        }
    }
}

impl Dev {
    pub(crate) async fn run(self) -> Result<()> {
        let started = Instant::now();
        let stop = asked_to_stop(Hangup::Stop);
        tokio::pin!(stop);
        let Some(running) = self.start(stop.as_mut()).await? else { return Ok(()) };
        self.welcome(&running, started.elapsed());
        stop.await;
        say("Stopping.");
        running.stop().await
    }

    /// `None`: it was to stop before it was ready.
    pub(crate) async fn start(&self, stop: impl Future<Output = ()>) -> Result<Option<Running>> {
        tokio::pin!(stop);
        let temporary = if self.ephemeral { Some(tempfile::tempdir()?) } else { None };
        let data_dir = temporary.as_ref().map_or(self.data_dir.as_path(), tempfile::TempDir::path);
        std::fs::create_dir_all(data_dir)
            .with_context(|| format!("cannot make {}", data_dir.display()))?;
        let token = match self.access_token.read()? {
            Some(token) => token,
            None => kept_token(data_dir)?,
        };
        let certificate = match self.https {
            true => Some(throw_away::certificate(data_dir, &self.host, Utc::now())?),
            false => None,
        };
        let authority = certificate.as_ref().map(|files| files.certificate.clone());
        if let Some(authority) = &authority {
            meridian_kv_client::trust(authority)
                .context("--https has an authority of its own: leave --cacert out")?;
        }
        let options = self.options(data_dir, &token, certificate);
        let cluster = tokio::select! {
            cluster = DevCluster::start(options) => cluster?,
            () = &mut stop => return Ok(None),
        };
        let running = Running { cluster, token, authority, temporary };
        tokio::select! {
            () = running.cluster.ready() => return Ok(Some(running)),
            () = &mut stop => {}
        }
        running.stop().await?;
        Ok(None)
    }

    /// The access token that was given.
    pub(crate) fn given_token(&self) -> Result<Option<String>> {
        self.access_token.read()
    }

    fn options<'a>(
        &'a self,
        data_dir: &'a Path,
        token: &'a str,
        certificate: Option<CertificateFiles>,
    ) -> DevOptions<'a> {
        DevOptions {
            data_dir,
            layout: DevLayout {
                allow_weak_quorum: self.allow_weak_quorum,
                ..DevLayout::new(&self.topology.0)
            },
            port: self.port,
            access_token: token,
            wan: self.wan.clone(),
            automatic_failover: self.automatic_failover,
            max_memory_mb: self.max_memory_mb,
            listen_host: Some(self.host.as_str()),
            certificate,
        }
    }

    /// Prints where the cluster is, and how to open it.
    fn welcome(&self, running: &Running, took: Duration) {
        let Running { cluster, token, authority, temporary } = running;
        let data_dir = temporary.as_ref().map_or(self.data_dir.as_path(), tempfile::TempDir::path);
        let (seconds, folder) = (took.as_secs_f64(), data_dir.display());
        say(&format!("Meridian is ready after {seconds:.1} s. Data is in {folder}."));
        if let Some(plan) = &self.wan {
            say(&format!("The regions are connected by an emulated WAN: {plan}."));
        }
        if cluster.context().is_none() {
            say(
                "The nodes of this folder have data from before they had certificates: they are open.",
            );
        }
        if !self.automatic_failover {
            say(
                "Databases of a new cluster do not fail over automatically: see --automatic-failover.",
            );
        }
        say("");
        for (region, address) in cluster.gateways() {
            say(&format!("  {region:<10} {}", running.url(*address)));
        }
        say("");
        say(&format!("  access token: {token}"));
        say("");
        if let Some((_, address)) = cluster.gateways().first() {
            let url = running.url(*address);
            let cert = authority.as_ref();
            let cert =
                cert.map(|path| format!("DENO_CERT={} ", path.display())).unwrap_or_default();
            if authority.is_some() {
                say(
                    "Its certificate is of this start alone: clients need its file, as below. Other programs of",
                );
                say("this project take it as MERIDIAN_CACERT.");
                say("");
            }
            say("Paste this to try it with Deno:");
            say("");
            say(&format!(
                "  {cert}DENO_KV_ACCESS_TOKEN={token} deno eval --unstable-kv 'const kv = await Deno.openKv(\"{url}\"); \
                 await kv.set([\"hello\"], \"world\"); console.log(await kv.get([\"hello\"])); kv.close();'"
            ));
            say("");
            say(
                "Eventual reads, served in the region: add ?consistency=eventual to a URL. Ctrl-C stops.",
            );
        }
    }
}

/// Removes the folder. Repeats, as RocksDB may close a moment after its node.
async fn remove(folder: PathBuf) -> Result<()> {
    let mut tries = 0;
    loop {
        match std::fs::remove_dir_all(&folder) {
            Ok(()) => return Ok(()),
            Err(error) if tries == 50 => {
                return Err(error).with_context(|| format!("cannot remove {}", folder.display()));
            }
            Err(_) => tries += 1,
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// The token generated for this data earlier, or a new one.
fn kept_token(data_dir: &Path) -> Result<String> {
    let path = data_dir.join("access-token");
    let unusable = || format!("cannot keep the access token in {}", path.display());
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(unusable)?;
    let mut token = String::new();
    file.read_to_string(&mut token).with_context(unusable)?;
    if token.trim().is_empty() {
        token = format!("{}{}", Uuid::new_v4().simple(), Uuid::new_v4().simple());
        file.write_all(token.as_bytes()).with_context(unusable)?;
    }
    Ok(token.trim().to_owned())
}
