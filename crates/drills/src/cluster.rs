//! A cluster of real processes on loopback.

mod configuration;
mod error;
mod founded;
mod ports;
mod process;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use meridian_types::{DatabaseId, NodeId};
use meridian_wan::WanPlan;
use tempfile::TempDir;

use crate::kv_connect::{DEFAULT_DATABASE, KvClient, SECOND_DATABASE};
use crate::network::{Machine, Network};
use crate::operator::Operator;
use crate::poll;

pub use error::{ClusterError, with_causes};
pub use ports::PortBlock;
use process::Process;

const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Longer than a node tries, so that its answer has the reason.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// The time for a graceful stop.
const STOP_DEADLINE: Duration = Duration::from_secs(30);
/// Lines of the log of a process that ended by itself. A panic with its stack fits.
const LOG_LINES: usize = 60;
const LOG_LINE_CHARS: usize = 300;
/// Attempts to start: another program may take a port between its choice and the start.
const STARTS: usize = 4;

#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The `meridian` program.
    pub program: PathBuf,
    /// Data centers in each region, the primary first; at most three regions, and ten nodes in all.
    pub topology: Vec<usize>,
    /// Log kept for slow replicas; the default is the product's.
    pub log_retention_mb: Option<u64>,
    /// Memory for each process; the default is the product's, which depends on the machine.
    pub max_memory_mb: Option<u64>,
    /// Emulated links between all machines. `None`: nodes dial each other directly.
    pub wan: Option<WanPlan>,
    pub trust: Trust,
}

/// How the processes of a cluster come to believe each other.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Trust {
    /// By files of a throw-away authority.
    #[default]
    Files,
    /// By the cluster's own authority, which its first node makes; the others join by tokens.
    Founded,
    /// They have no certificates, and talk in the clear.
    Open,
}

/// One process for each node, numbered from 1 through all regions, and stateless gateways beside
/// them.
///
/// Dropping it ends its processes and removes its folder, unless [`Cluster::keep_folder`] was
/// called.
pub struct Cluster {
    program: PathBuf,
    topology: Vec<usize>,
    trust: Trust,
    nodes: BTreeMap<NodeId, Node>,
    /// By region.
    gateways: BTreeMap<usize, Node>,
    network: Option<Network>,
    operator: Operator,
    ports: PortBlock,
    folder: TempDir,
}

/// A process, running or down: a node or a stateless gateway.
struct Node {
    name: String,
    region: usize,
    kv: String,
    /// Empty for a gateway.
    rpc: String,
    /// Empty for a gateway.
    metrics: String,
    command: &'static str,
    config: PathBuf,
    log: PathBuf,
    /// `None`: the process is down.
    process: Option<Process>,
}

impl Node {
    fn start(&mut self, program: &Path) -> Result<(), ClusterError> {
        if self.process.is_some() {
            return Err(ClusterError::RunsAlready(self.name.clone()));
        }
        let config =
            self.config.to_str().ok_or_else(|| ClusterError::NotUtf8(self.config.clone()))?;
        let process = Process::start(program, &[self.command, "--config", config], &self.log);
        self.process = Some(
            process.map_err(|source| ClusterError::io(&format!("{} starts", self.name), source))?,
        );
        Ok(())
    }

    fn running(&mut self) -> Result<&mut Process, ClusterError> {
        self.process.as_mut().ok_or_else(|| ClusterError::IsDown(self.name.clone()))
    }

    fn take(&mut self) -> Result<Process, ClusterError> {
        self.process.take().ok_or_else(|| ClusterError::IsDown(self.name.clone()))
    }

    /// The exit of a process that ended by itself, with the end of its log.
    fn ended(&mut self) -> Option<String> {
        let status = self.process.as_mut()?.exited().ok()??;
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        let mut text = format!("{} ended with {status}:", self.name);
        for line in lines.iter().skip(lines.len().saturating_sub(LOG_LINES)) {
            text.push('\n');
            text.extend(line.chars().take(LOG_LINE_CHARS));
        }
        Some(text)
    }
}

impl Cluster {
    /// Starts all nodes, and waits until the cluster is [`Cluster::ready`].
    ///
    /// # Errors
    /// When the cluster cannot be started; the other methods fail likewise.
    pub async fn start(options: ClusterOptions) -> Result<Self, ClusterError> {
        for _ in 0..STARTS {
            let mut cluster = Self::configure(&options).await?;
            let started = match options.trust {
                Trust::Founded => cluster.found().await,
                Trust::Files | Trust::Open => cluster.start_all(),
            };
            let ready = match started {
                Ok(()) => cluster.ready().await,
                Err(error) => Err(cluster.ended().map_or(error, ClusterError::Ended)),
            };
            match ready {
                Err(ClusterError::Ended(log)) if log.contains("in use") => {}
                Ok(()) => return Ok(cluster),
                Err(error) => {
                    let folder = cluster.keep_folder();
                    return Err(ClusterError::NotReady { source: Box::new(error), folder });
                }
            }
        }
        Err(ClusterError::NoPorts)
    }

    /// Waits until every gateway of a node that is up answers a strong read of both databases.
    pub async fn ready(&mut self) -> Result<(), ClusterError> {
        for id in self.node_ids().into_iter().filter(|id| self.is_up(*id)).collect::<Vec<_>>() {
            self.node_ready(id).await?;
        }
        Ok(())
    }

    /// Waits until this node answers a strong read of both databases.
    pub async fn node_ready(&mut self, id: NodeId) -> Result<(), ClusterError> {
        self.machine_ready(Machine::Node(id)).await
    }

    /// Waits until this machine's gateway answers a strong read of both databases.
    pub async fn machine_ready(&mut self, machine: Machine) -> Result<(), ClusterError> {
        for database in [DEFAULT_DATABASE, SECOND_DATABASE] {
            let client = crate::kv_connect::client(self.url(machine)?, database)
                .with_timeout(ANSWER_TIMEOUT);
            let what = format!("{machine} answers a strong read");
            let ended =
                poll::until(&what, READY_DEADLINE, async || match client.get(b"ready?").await {
                    Ok(_) => Ok(None),
                    Err(error) => match self.ended() {
                        Some(ended) => Ok(Some(ended)),
                        None => Err(error),
                    },
                });
            if let Some(ended) = ended.await? {
                return Err(ClusterError::Ended(ended));
            }
        }
        Ok(())
    }

    /// The exit status and log of a node or gateway that ended by itself.
    pub fn ended(&mut self) -> Option<String> {
        self.nodes.values_mut().chain(self.gateways.values_mut()).find_map(Node::ended)
    }

    /// The names of the nodes that are down.
    pub fn down(&self) -> Vec<String> {
        self.nodes
            .values()
            .filter(|node| node.process.is_none())
            .map(|node| node.name.clone())
            .collect()
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The nodes of a region, which counts from 0: the primary at first.
    pub fn region(&self, region: usize) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.region == region).map(|(id, _)| *id).collect()
    }

    pub fn region_of(&self, id: NodeId) -> Result<usize, ClusterError> {
        Ok(self.node(id)?.region)
    }

    pub fn regions(&self) -> usize {
        self.topology.len()
    }

    /// Data centers in each region.
    pub fn topology(&self) -> &[usize] {
        &self.topology
    }

    /// The nodes, and the stateless gateways that were started.
    pub fn machines(&self) -> Vec<Machine> {
        let nodes = self.nodes.keys().map(|id| Machine::Node(*id));
        nodes.chain(self.gateways.keys().map(|region| Machine::Gateway(*region))).collect()
    }

    /// The URL of this machine's gateway, without a slash at the end.
    pub fn url(&self, machine: Machine) -> Result<String, ClusterError> {
        Ok(format!("http://{}", self.machine(machine)?.kv))
    }

    /// The gRPC address of this node.
    pub fn rpc_address(&self, id: NodeId) -> Result<&str, ClusterError> {
        Ok(&self.node(id)?.rpc)
    }

    /// The address of this node's metrics.
    pub fn metrics_address(&self, id: NodeId) -> Result<&str, ClusterError> {
        Ok(&self.node(id)?.metrics)
    }

    /// The process id of a node that is up.
    pub fn process_id(&self, id: NodeId) -> Result<u32, ClusterError> {
        let node = self.node(id)?;
        let process =
            node.process.as_ref().ok_or_else(|| ClusterError::IsDown(node.name.clone()))?;
        Ok(process.id())
    }

    pub fn client(&self, id: NodeId, database: DatabaseId) -> Result<KvClient, ClusterError> {
        Ok(crate::kv_connect::client(self.url(Machine::Node(id))?, database))
    }

    pub fn operator(&self) -> &Operator {
        &self.operator
    }

    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    pub fn network_mut(&mut self) -> Result<&mut Network, ClusterError> {
        self.network.as_mut().ok_or(ClusterError::NoNetwork)
    }

    pub fn start_all(&mut self) -> Result<(), ClusterError> {
        let program = &self.program;
        let mut down = self
            .nodes
            .values_mut()
            .chain(self.gateways.values_mut())
            .filter(|node| node.process.is_none());
        down.try_for_each(|node| node.start(program))
    }

    /// SIGKILL.
    pub fn kill(&mut self, machine: Machine) -> Result<(), ClusterError> {
        self.machine_mut(machine)?.take()?.kill();
        Ok(())
    }

    /// SIGKILL to all nodes.
    pub fn kill_all(&mut self) -> Result<(), ClusterError> {
        // All are killed before any is waited for: none should live to see the others go.
        for node in self.nodes.values_mut() {
            if let Some(process) = &mut node.process {
                process.pause().map_err(|source| ClusterError::io("a signal", source))?;
            }
        }
        self.nodes.values_mut().filter_map(|node| node.process.take()).for_each(Process::kill);
        Ok(())
    }

    /// SIGTERM, and blocks until the end.
    pub fn stop(&mut self, machine: Machine) -> Result<ExitStatus, ClusterError> {
        self.machine_mut(machine)?
            .take()?
            .stop()
            .map_err(|source| ClusterError::io("the end of a child", source))
    }

    /// SIGTERM, and waits for the end.
    pub async fn stop_and_wait(&mut self, machine: Machine) -> Result<ExitStatus, ClusterError> {
        let node = self.machine_mut(machine)?;
        let process = node.running()?;
        process.terminate().map_err(|source| ClusterError::io("a signal", source))?;
        let what = format!("{} ends", node.name);
        let status =
            poll::until(&what, STOP_DEADLINE, async || match node.running().map(Process::exited) {
                Ok(Ok(Some(status))) => Ok(status),
                Ok(Ok(None)) => Err("it runs".to_owned()),
                Ok(Err(error)) => Err(error.to_string()),
                Err(error) => Err(error.to_string()),
            });
        let status = status.await?;
        node.process = None;
        Ok(status)
    }

    /// Starts a node or gateway that is down. [`Cluster::node_ready`] says when it serves.
    pub fn restart(&mut self, machine: Machine) -> Result<(), ClusterError> {
        let program = self.program.clone();
        self.machine_mut(machine)?.start(&program)
    }

    /// SIGSTOP: the process hangs.
    pub fn pause(&mut self, machine: Machine) -> Result<(), ClusterError> {
        let process = self.machine_mut(machine)?.running()?;
        process.pause().map_err(|source| ClusterError::io("a signal", source))
    }

    /// SIGCONT.
    pub fn resume(&mut self, machine: Machine) -> Result<(), ClusterError> {
        let process = self.machine_mut(machine)?.running()?;
        process.resume().map_err(|source| ClusterError::io("a signal", source))
    }

    pub fn is_up(&self, id: NodeId) -> bool {
        self.nodes.get(&id).is_some_and(|node| node.process.is_some())
    }

    /// Whether the machine's process runs and is not paused.
    pub fn runs(&self, machine: Machine) -> bool {
        self.machine(machine)
            .is_ok_and(|node| node.process.as_ref().is_some_and(|process| !process.is_paused()))
    }

    pub fn is_paused(&self, machine: Machine) -> bool {
        self.machine(machine)
            .is_ok_and(|node| node.process.as_ref().is_some_and(Process::is_paused))
    }

    /// Removes all data of a node that is down.
    pub fn wipe(&mut self, id: NodeId) -> Result<(), ClusterError> {
        let node = self.node(id)?;
        if node.process.is_some() {
            return Err(ClusterError::RunsAlready(node.name.clone()));
        }
        let removed = |source| ClusterError::io("data can be removed", source);
        for entry in
            fs::read_dir(node.config.parent().unwrap_or(Path::new("."))).map_err(removed)?
        {
            let path = entry.map_err(removed)?.path();
            if path.is_dir() {
                fs::remove_dir_all(path).map_err(removed)?;
            } else if path != node.config {
                fs::remove_file(path).map_err(removed)?;
            }
        }
        Ok(())
    }

    /// The log of a node so far.
    pub fn log(&self, id: NodeId) -> Result<String, ClusterError> {
        Ok(fs::read_to_string(&self.node(id)?.log).unwrap_or_default())
    }

    /// The node that reports to lead a shard; of several, the one with the highest epoch and term.
    pub async fn leader(&self, shard: u32) -> Result<NodeId, ClusterError> {
        let found = poll::until("a leader", READY_DEADLINE, async || {
            let mut leaders = Vec::new();
            for id in self.node_ids().into_iter().filter(|id| self.runs(Machine::Node(*id))) {
                if let Ok(status) = self.operator.shard_status(id, shard).await
                    && status.role == "leader"
                {
                    leaders.push((status.epoch, status.term, id));
                }
            }
            leaders.into_iter().max().map(|(.., id)| id).ok_or("none")
        });
        Ok(found.await?)
    }

    /// The context of the cluster's operator.
    #[must_use]
    pub fn context(&self) -> PathBuf {
        self.folder().join(configuration::CONTEXT)
    }

    /// The output of `meridian status`.
    pub fn status_text(&self) -> Result<String, ClusterError> {
        let node = self.nodes.values().next().ok_or(ClusterError::NoPorts)?;
        let output =
            Command::new(&self.program).arg("status").arg("--config").arg(&node.config).output();
        let output = output.map_err(|source| ClusterError::io("meridian status runs", source))?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Starts a stateless `meridian gateway` in a region that has none yet (regions count from 0);
    /// returns its URL when it serves.
    pub async fn start_gateway(&mut self, region: usize) -> Result<String, ClusterError> {
        let machine = Machine::Gateway(region);
        if self.gateways.contains_key(&region) {
            return Err(ClusterError::RunsAlready(machine.to_string()));
        }
        let number = u16::try_from(self.gateways.len()).unwrap_or(u16::MAX);
        let port = self.ports.gateway(number).ok_or(ClusterError::NoPorts)?;
        let mut gateway = self.configure_gateway(region, port).await?;
        gateway.start(&self.program)?;
        self.gateways.insert(region, gateway);
        self.machine_ready(machine).await?;
        self.url(machine)
    }

    /// The folder of the nodes' data and logs.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Keeps the folder, with data and logs.
    pub fn keep_folder(&mut self) -> PathBuf {
        self.folder.disable_cleanup(true);
        self.folder.path().to_owned()
    }

    fn node(&self, id: NodeId) -> Result<&Node, ClusterError> {
        self.machine(Machine::Node(id))
    }

    fn machine(&self, machine: Machine) -> Result<&Node, ClusterError> {
        let found = match machine {
            Machine::Node(id) => self.nodes.get(&id),
            Machine::Gateway(region) => self.gateways.get(&region),
        };
        found.ok_or(ClusterError::NoSuchMachine(machine))
    }

    fn machine_mut(&mut self, machine: Machine) -> Result<&mut Node, ClusterError> {
        let found = match machine {
            Machine::Node(id) => self.nodes.get_mut(&id),
            Machine::Gateway(region) => self.gateways.get_mut(&region),
        };
        found.ok_or(ClusterError::NoSuchMachine(machine))
    }
}
