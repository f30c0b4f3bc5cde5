//! The machines, their nodes and what happens to them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use meridian_config::{DevLayout, NodeConfig, NodeListen, dev_cluster_configs};
use meridian_directory::Cluster as Described;
use meridian_drills::TOKEN;
use meridian_drills::workload::Gateway;
use meridian_node::Node;
use meridian_sim_kernel::{self as kernel, Chance, Crash, LinkProfile, MachineId};
use meridian_storage::Engine;
use meridian_types::NodeId;
use tokio::sync::Notify;

use crate::bugs::Bug;
use crate::disk::{Disk, Mounted};

const RPC_PORT: u16 = 4612;
const KV_PORT: u16 = 4512;
/// How much slower the clocks of the first region go with a planted bug.
const SLOW_PPM: i64 = -600_000;
/// Clocks of machines differ by as much.
const DRIFT_PPM: i64 = 400;
const WALL_AHEAD_MS: i64 = 300;
/// Within a region, and from one region to another.
const NEAR_NS: std::ops::Range<u64> = 100_000..600_000;
const FAR_NS: std::ops::Range<u64> = 5_000_000..45_000_000;
/// A node that is told to stop does so within this.
const STOPS_WITHIN: Duration = Duration::from_secs(30);
const LOOK: Duration = Duration::from_millis(50);

/// A machine and the node on it.
pub(crate) struct Host {
    pub(crate) machine: MachineId,
    pub(crate) region: usize,
    pub(crate) gateway: Arc<Gateway>,
    pub(crate) rpc_address: String,
    config: NodeConfig,
    disk: Arc<Disk>,
    /// How often it was started.
    starts: u32,
    is_up: bool,
    stop: Arc<Stop>,
}

/// The word to a node that it is to stop, and the word that it has.
#[derive(Default)]
struct Stop {
    wanted: Notify,
    done: AtomicBool,
}

/// All machines of a cluster, by the ids of their nodes.
pub(crate) struct Cluster {
    pub(crate) hosts: BTreeMap<NodeId, Host>,
    pub(crate) clients: MachineId,
    /// Within regions and between them, as long as nothing is wrong.
    links: BTreeMap<(MachineId, MachineId), LinkProfile>,
}

/// Up to so much, or so little.
fn either_way(chance: &mut Chance, most: i64) -> i64 {
    i64::try_from(chance.below(2 * most.unsigned_abs())).unwrap_or(0) - most
}

fn ip(region: usize, node: NodeId) -> [u8; 4] {
    let byte = |number: u64| u8::try_from(number).unwrap_or(u8::MAX);
    [10, 1, byte(region as u64 + 1), byte(node.0)]
}

fn address(region: usize, node: NodeId, port: u16) -> String {
    let [a, b, c, d] = ip(region, node);
    format!("{a}.{b}.{c}.{d}:{port}")
}

impl Cluster {
    /// The machines of a cluster with so many nodes in each region; no node runs yet.
    ///
    /// # Errors
    /// When the cluster cannot work.
    pub(crate) fn new(
        counts: &[usize],
        chance: &mut Chance,
        bug: Option<Bug>,
        folder: &Path,
    ) -> anyhow::Result<Self> {
        let region_of = |node: NodeId| {
            let mut regions = (0..counts.len()).flat_map(|region| {
                std::iter::repeat_n(region, counts.get(region).map_or(0, |n| *n))
            });
            regions.nth(usize::try_from(node.0 - 1).unwrap_or(usize::MAX)).unwrap_or(0)
        };
        let at = |node, port| address(region_of(node), node, port);
        let described =
            DevLayout::new(counts).found(|node| at(node, RPC_PORT), |node| Some(at(node, KV_PORT)));
        let described = described.context("the cluster cannot work")?;
        let mut hosts = BTreeMap::new();
        for dev in dev_cluster_configs(counts, folder, RPC_PORT, KV_PORT, TOKEN)? {
            let node = dev.node_id;
            let region = region_of(node);
            let machine = kernel::machine(&format!("node-{node}"), ip(region, node));
            let (drift, ahead) = (either_way(chance, DRIFT_PPM), either_way(chance, WALL_AHEAD_MS));
            let is_slow = bug == Some(Bug::AnswerWithoutLease) && region == 0;
            kernel::set_clock(machine, if is_slow { SLOW_PPM } else { drift }, ahead);
            let lies = bug == Some(Bug::AcknowledgeBeforeFsync);
            let host = Host {
                machine,
                region,
                gateway: Gateway::new(
                    format!("node-{node}"),
                    format!("http://{}", at(node, KV_PORT)),
                ),
                rpc_address: at(node, RPC_PORT),
                config: config(dev, &described, folder)?,
                disk: Disk::new(chance.fork(), lies)?,
                starts: 0,
                is_up: false,
                stop: Arc::default(),
            };
            hosts.insert(node, host);
        }
        let clients = kernel::machine("clients", [10, 2, 0, 1]);
        let mut cluster = Self { hosts, clients, links: BTreeMap::new() };
        cluster.lay_links(counts.len(), chance);
        Ok(cluster)
    }

    /// Draws how far the regions are from each other. Clients are near to all.
    fn lay_links(&mut self, regions: usize, chance: &mut Chance) {
        let mut between = BTreeMap::new();
        for one in 0..regions {
            for other in one..regions {
                let latency_ns = chance.within(if one == other { NEAR_NS } else { FAR_NS });
                let lost_ppm = chance.below(500);
                let link = LinkProfile { latency_ns, jitter_ns: latency_ns / 4, lost_ppm };
                between.insert((one, other), link);
                between.insert((other, one), link);
            }
        }
        for from in self.hosts.values() {
            for to in self.hosts.values().filter(|to| to.machine != from.machine) {
                if let Some(link) = between.get(&(from.region, to.region)) {
                    self.links.insert((from.machine, to.machine), *link);
                }
            }
        }
        for ((from, to), link) in &self.links {
            kernel::set_link(*from, *to, *link);
        }
    }

    pub(crate) fn host(&self, node: NodeId) -> anyhow::Result<&Host> {
        self.hosts.get(&node).with_context(|| format!("there is no node {node}"))
    }

    fn host_mut(&mut self, node: NodeId) -> anyhow::Result<&mut Host> {
        self.hosts.get_mut(&node).with_context(|| format!("there is no node {node}"))
    }

    pub(crate) fn nodes(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    /// The nodes of a region.
    pub(crate) fn region(&self, region: usize) -> Vec<NodeId> {
        let hosts = self.hosts.iter().filter(|(_, host)| host.region == region);
        hosts.map(|(node, _)| *node).collect()
    }

    /// Starts a node that is down, on what its disk has.
    pub(crate) fn start(&mut self, node: NodeId) -> anyhow::Result<()> {
        let host = self.host_mut(node)?;
        ensure!(!host.is_up, "node {node} is up");
        host.is_up = true;
        host.starts += 1;
        host.stop = Arc::default();
        kernel::restart(host.machine);
        let (engine, mut config) = (Mounted(Arc::clone(&host.disk)), host.config.clone());
        // Each start has a name of its own for the folder: in a process of its own the node would
        // not meet what it holds for its former self, which ended without a word.
        let folder = config.data_dir.with_extension(host.starts.to_string());
        std::os::unix::fs::symlink(&config.data_dir, &folder)?;
        config.data_dir = folder;
        let stop = Arc::clone(&host.stop);
        kernel::start(host.machine, "node", move || serve(Arc::new(engine), config, &stop));
        Ok(())
    }

    /// Takes a node's power away: it loses what was not synced.
    pub(crate) fn crash(&mut self, node: NodeId, how: Crash) -> anyhow::Result<()> {
        let host = self.host_mut(node)?;
        ensure!(host.is_up, "node {node} is down");
        kernel::crash(host.machine, how);
        host.is_up = false;
        host.disk = host.disk.crashed(&host.config.data_dir)?;
        host.gateway.restarted();
        Ok(())
    }

    /// Stops a node as its operator does.
    pub(crate) fn stop(&mut self, node: NodeId) -> anyhow::Result<()> {
        let host = self.host_mut(node)?;
        ensure!(host.is_up, "node {node} is down");
        host.stop.wanted.notify_one();
        let latest = kernel::now() + STOPS_WITHIN;
        while !host.stop.done.load(Ordering::Relaxed) {
            if kernel::now() > latest {
                bail!("node {node} does not stop");
            }
            std::thread::sleep(LOOK);
        }
        host.is_up = false;
        host.gateway.restarted();
        Ok(())
    }

    /// Makes the disk of a node slower, or as fast as ever.
    pub(crate) fn slow_disk(&self, node: NodeId, by: Duration) -> anyhow::Result<()> {
        self.host(node)?.disk.slow_down(by);
        Ok(())
    }

    /// Makes a link slower in one direction, or as fast as ever.
    pub(crate) fn slow_link(&self, from: MachineId, to: MachineId, by: Duration) {
        if let Some(link) = self.links.get(&(from, to)) {
            let more = u64::try_from(by.as_nanos()).unwrap_or(0);
            let latency_ns = link.latency_ns + more;
            let slower = LinkProfile { latency_ns, jitter_ns: link.jitter_ns + more / 2, ..*link };
            kernel::set_link(from, to, slower);
        }
    }
}

/// The configuration of a node, from one for development.
fn config(dev: NodeConfig, described: &Described, folder: &Path) -> anyhow::Result<NodeConfig> {
    let known = described.nodes.get(&dev.node_id).context("the node is not described")?.clone();
    let data_dir = folder.join(&known.name);
    std::fs::create_dir_all(&data_dir)?;
    Ok(NodeConfig {
        data_dir,
        max_memory_mb: Some((meridian_memory::MIN_BYTES >> 20) as u64),
        listen: NodeListen {
            rpc: known.rpc_address.clone(),
            kv: known.kv_address.clone().unwrap_or_default(),
            metrics: None,
        },
        cluster: described.clone(),
        node: known,
        ..dev
    })
}

/// A node's process.
#[allow(clippy::panic, reason = "a node that does not start ends the simulation")]
fn serve(engine: Arc<dyn Engine>, config: NodeConfig, stop: &Stop) {
    let mut threads = tokio::runtime::Builder::new_multi_thread();
    let runtime = match threads.worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("a node has no runtime: {error}"),
    };
    runtime.block_on(async {
        let node = match Node::start_on(engine, config).await {
            Ok(node) => node,
            Err(error) => panic!("a node does not start: {error}"),
        };
        stop.wanted.notified().await;
        node.stop().await;
    });
    drop(runtime);
    stop.done.store(true, Ordering::Relaxed);
}
