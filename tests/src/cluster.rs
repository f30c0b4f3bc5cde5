use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use meridian_proto::admin::{
    ShardStatus, StatusRequest, StatusResponse, TransferLeadershipRequest, admin_client::AdminClient,
};
use meridian_types::{Consistency, NodeId};
use tempfile::TempDir;
use tonic::transport::{Channel, Endpoint};

use crate::kv_connect::{DEFAULT_DATABASE, KvClient, SECOND_DATABASE, point};
use crate::poll;
use crate::ports::PortBlock;
use crate::process::{Process, binary};

/// Opens every database of every cluster here.
pub const TOKEN: &str = "a-token-for-tests-only";
/// Opens them for reads.
pub const READ_ONLY_TOKEN: &str = "a-token-for-reading-only";

const READY_DEADLINE: Duration = Duration::from_secs(60);
/// Longer than a node tries: so that it says why it cannot.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
const ADMIN_TIMEOUT: Duration = Duration::from_secs(3);
/// Another program may take a port between the look and the start.
const STARTS: usize = 4;

#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Data centers in each region, the primary first; at most three regions of at most ten.
    pub topology: &'static [usize],
    /// Log kept for slow replicas; the default is the product's.
    pub log_retention_mb: Option<u64>,
}

impl Default for ClusterOptions {
    /// Three regions with three, two and one data center.
    fn default() -> Self {
        Self { topology: &[3, 2, 1], log_retention_mb: None }
    }
}

/// A cluster of one process for each node, on loopback. Nodes are numbered from 1 through all regions.
///
/// Its processes end and its folder goes when it is dropped; after a panic the folder stays, with the logs.
pub struct Cluster {
    topology: &'static [usize],
    nodes: BTreeMap<NodeId, Node>,
    gateways: Vec<Process>,
    ports: PortBlock,
    folder: Option<TempDir>,
}

struct Node {
    name: String,
    region: usize,
    kv: String,
    rpc: String,
    folder: PathBuf,
    log: PathBuf,
    /// `None`: it is down.
    process: Option<Process>,
}

impl Node {
    fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let config = self.folder.join("node.toml");
        let config = config.to_str().expect("a path in UTF-8");
        self.process = Some(Process::start(&["serve", "--config", config], &self.log));
    }
}

impl Cluster {
    /// Starts all nodes, and waits until the cluster is [`Cluster::ready`].
    ///
    /// # Panics
    /// When it cannot be had; so do the other methods.
    pub async fn start(options: ClusterOptions) -> Self {
        for _ in 0..STARTS {
            let mut cluster = Self::configure(&options);
            cluster.start_all();
            match cluster.try_ready().await {
                Ok(()) => return cluster,
                Err(exited) if exited.contains("in use") => {}
                Err(exited) => panic!("{exited}"),
            }
        }
        panic!("no free ports in {STARTS} starts");
    }

    fn configure(options: &ClusterOptions) -> Self {
        let folder = TempDir::with_prefix("meridian-test-").expect("a temporary folder");
        let ports = PortBlock::take();
        let counts: Vec<String> = options.topology.iter().map(ToString::to_string).collect();
        let mut command = Command::new(binary());
        command.args(["cluster-config", "--access-token", TOKEN, "--topology", &counts.join(",")]);
        command.args(["--port", &ports.kv().to_string(), "--rpc-port", &ports.rpc().to_string()]);
        command.arg("--dir").arg(folder.path());
        if let Some(retention) = options.log_retention_mb {
            command.args(["--log-retention-mb", &retention.to_string()]);
        }
        let output = command.output().expect("meridian cluster-config runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

        let mut nodes = BTreeMap::new();
        let mut ids = 1..;
        for (region, count) in options.topology.iter().enumerate() {
            for (data_center, id) in ('a'..='z').take(*count).zip(ids.by_ref()) {
                let name = format!("region-{}-{data_center}", region + 1);
                let node_folder = folder.path().join(&name);
                let config = fs::read_to_string(node_folder.join("node.toml")).expect("the configuration of a node");
                let config = config + &read_only_token();
                fs::write(node_folder.join("node.toml"), &config).expect("a node's configuration");
                let config: toml::Table = config.parse().expect("TOML");
                let listen = |what: &str| {
                    let address = config.get("listen").and_then(|listen| listen.get(what));
                    address.and_then(toml::Value::as_str).expect("where the node listens").to_owned()
                };
                let node = Node {
                    region,
                    kv: listen("kv"),
                    rpc: listen("rpc"),
                    log: folder.path().join(format!("{name}.log")),
                    folder: node_folder,
                    name,
                    process: None,
                };
                nodes.insert(id, node);
            }
        }
        Self { topology: options.topology, nodes, gateways: Vec::new(), ports, folder: Some(folder) }
    }

    /// Waits until every gateway answers a strong read of both databases.
    pub async fn ready(&mut self) {
        if let Err(exited) = self.try_ready().await {
            panic!("{exited}");
        }
    }

    /// An error: a node has ended, and its log.
    async fn try_ready(&mut self) -> Result<(), String> {
        for id in self.node_ids() {
            for database in [DEFAULT_DATABASE, SECOND_DATABASE] {
                let client = self.client(id, database).with_timeout(ANSWER_TIMEOUT);
                let what = format!("node {id} answers a strong read");
                poll::until(&what, READY_DEADLINE, async || match client.get(b"ready?").await {
                    Ok(_) => Ok(Ok(())),
                    Err(error) => match self.exited() {
                        Some(exited) => Ok(Err(exited)),
                        None => Err(error),
                    },
                })
                .await?;
            }
        }
        Ok(())
    }

    /// Waits until this node answers a strong read of both databases.
    pub async fn node_ready(&mut self, id: NodeId) {
        for database in [DEFAULT_DATABASE, SECOND_DATABASE] {
            let client = self.client(id, database).with_timeout(ANSWER_TIMEOUT);
            let what = format!("node {id} answers a strong read");
            poll::until(&what, READY_DEADLINE, async || client.get(b"ready?").await).await;
        }
    }

    /// What a node that ended by itself has said.
    fn exited(&mut self) -> Option<String> {
        self.nodes.values_mut().find_map(|node| {
            let status = node.process.as_mut()?.exited()?;
            let log = fs::read_to_string(&node.log).unwrap_or_default();
            Some(format!("{} ended with {status}:\n{log}", node.name))
        })
    }

    /// # Panics
    /// When a node that should run has ended by itself.
    pub fn assert_all_run(&mut self) {
        if let Some(exited) = self.exited() {
            panic!("{exited}");
        }
        let down: Vec<_> = self.nodes.values().filter(|node| node.process.is_none()).map(|node| &node.name).collect();
        assert!(down.is_empty(), "{down:?} are down");
    }

    pub fn node_ids(&self) -> Vec<NodeId> {
        self.nodes.keys().copied().collect()
    }

    /// The nodes of a region, counted from 0: the primary.
    pub fn region(&self, region: usize) -> Vec<NodeId> {
        self.nodes.iter().filter(|(_, node)| node.region == region).map(|(id, _)| *id).collect()
    }

    pub fn regions(&self) -> usize {
        self.topology.len()
    }

    /// Where this node's gateway serves, without a slash at the end.
    pub fn url(&self, id: NodeId) -> String {
        format!("http://{}", self.node(id).kv)
    }

    /// Where this node listens for gRPC.
    pub fn rpc_address(&self, id: NodeId) -> &str {
        &self.node(id).rpc
    }

    pub fn client(&self, id: NodeId, database: meridian_types::DatabaseId) -> KvClient {
        KvClient::new(self.url(id), database)
    }

    pub fn start_all(&mut self) {
        for node in self.nodes.values_mut() {
            if node.process.is_none() {
                node.start();
            }
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self, id: NodeId) {
        self.take_process(id).kill();
    }

    /// SIGKILL to all nodes.
    pub fn kill_all(&mut self) {
        // First all, then wait for each: none should live to see the others go.
        for node in self.nodes.values_mut() {
            if let Some(process) = &mut node.process {
                process.pause();
            }
        }
        for node in self.nodes.values_mut() {
            if let Some(process) = node.process.take() {
                process.kill();
            }
        }
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, id: NodeId) -> ExitStatus {
        self.take_process(id).stop()
    }

    /// Starts a node that is down. [`Cluster::node_ready`] says when it serves.
    pub fn restart(&mut self, id: NodeId) {
        self.node_mut(id).start();
    }

    /// SIGSTOP: the node hangs.
    pub fn pause(&mut self, id: NodeId) {
        self.node_mut(id).process.as_mut().expect("a node that runs").pause();
    }

    /// SIGCONT.
    pub fn resume(&mut self, id: NodeId) {
        self.node_mut(id).process.as_mut().expect("a node that runs").resume();
    }

    pub fn is_up(&self, id: NodeId) -> bool {
        self.node(id).process.is_some()
    }

    /// Removes all data of a node that is down.
    pub fn wipe(&mut self, id: NodeId) {
        let node = self.node(id);
        assert!(node.process.is_none(), "{} runs", node.name);
        for entry in fs::read_dir(&node.folder).expect("the folder of a node") {
            let path = entry.expect("an entry of it").path();
            if path.is_dir() {
                fs::remove_dir_all(path).expect("data can be removed");
            } else if path.file_name().is_some_and(|name| name != "node.toml") {
                fs::remove_file(path).expect("data can be removed");
            }
        }
    }

    /// What a node's log holds so far.
    pub fn log(&self, id: NodeId) -> String {
        fs::read_to_string(&self.node(id).log).unwrap_or_default()
    }

    /// What a node says of itself.
    pub async fn status(&self, id: NodeId) -> Result<StatusResponse, tonic::Status> {
        Ok(self.admin(id)?.status(StatusRequest {}).await?.into_inner())
    }

    /// What a node says of itself and one shard.
    pub async fn shard_status(&self, id: NodeId, shard: u32) -> Result<ShardStatus, tonic::Status> {
        let status = self.status(id).await?;
        let found = status.shards.into_iter().find(|status| status.shard == shard);
        found.ok_or_else(|| tonic::Status::not_found("the shard"))
    }

    /// The node that leads a shard, as it says itself; of two, that of the higher term.
    pub async fn leader(&self, shard: u32) -> NodeId {
        poll::until("a leader", READY_DEADLINE, async || {
            let mut leaders = Vec::new();
            for id in self.region(0).into_iter().filter(|id| self.is_up(*id)) {
                if let Ok(status) = self.shard_status(id, shard).await
                    && status.role == "leader"
                {
                    leaders.push((status.term, id));
                }
            }
            leaders.into_iter().max().map(|(_, id)| id).ok_or("none")
        })
        .await
    }

    /// What `meridian status` prints.
    pub fn status_text(&self) -> String {
        let node = self.nodes.values().next().expect("a node");
        let mut command = Command::new(binary());
        let output = command.arg("status").arg("--config").arg(node.folder.join("node.toml")).output();
        let output = output.expect("meridian status runs");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub async fn transfer_leadership(&self, shard: u32, from: NodeId, to: NodeId) -> Result<(), tonic::Status> {
        self.admin(from)?.transfer_leadership(TransferLeadershipRequest { shard, to }).await?;
        Ok(())
    }

    fn admin(&self, id: NodeId) -> Result<AdminClient<Channel>, tonic::Status> {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.node(id).rpc));
        let endpoint = endpoint.map_err(|error| tonic::Status::internal(error.to_string()))?;
        let endpoint = endpoint.connect_timeout(ADMIN_TIMEOUT).timeout(ADMIN_TIMEOUT * 2);
        Ok(AdminClient::new(endpoint.connect_lazy()))
    }

    /// Starts a stateless `meridian gateway` in a region, counted from 0; gives its URL when it serves.
    pub async fn start_gateway(&mut self, region: usize) -> String {
        let number = self.gateways.len();
        let port = self.ports.gateway() + u16::try_from(number).expect("few gateways");
        let folder = self.folder().to_owned();
        let config = folder.join(format!("gateway-{number}.toml"));
        fs::write(&config, self.gateway_config(region, port)).expect("the gateway's configuration");
        let config = config.to_str().expect("a path in UTF-8");
        let log = folder.join(format!("gateway-{number}.log"));
        self.gateways.push(Process::start(&["gateway", "--config", config], &log));
        let url = format!("http://127.0.0.1:{port}");
        let client = KvClient::new(url.clone(), DEFAULT_DATABASE);
        poll::until("the gateway answers", READY_DEADLINE, async || {
            client.read(Consistency::Strong, vec![point(b"ready?")]).await
        })
        .await;
        url
    }

    /// As `deploy/gateway.toml`: the topology and tokens of a node's file, and where the gateway is.
    fn gateway_config(&self, region: usize, port: u16) -> String {
        let node = self.nodes.values().next().expect("a node");
        let text = fs::read_to_string(node.folder.join("node.toml")).expect("the configuration of a node");
        let mut config: toml::Table = text.parse().expect("TOML");
        for of_the_node in ["node", "data_dir", "listen", "raft", "storage"] {
            config.remove(of_the_node);
        }
        config.insert("region".to_owned(), format!("region-{}", region + 1).into());
        let listen = toml::Table::from_iter([("kv".to_owned(), format!("127.0.0.1:{port}").into())]);
        config.insert("listen".to_owned(), listen.into());
        config.to_string()
    }

    /// Where the nodes' folders and logs are.
    pub fn folder(&self) -> &Path {
        self.folder.as_ref().map(TempDir::path).expect("a cluster has a folder until it is dropped")
    }

    fn take_process(&mut self, id: NodeId) -> Process {
        self.node_mut(id).process.take().expect("a node that runs")
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(&id).expect("a node of the cluster")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node of the cluster")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        let mut ends = String::new();
        if panicking {
            ends = self.status_text();
        }
        for node in self.nodes.values_mut() {
            if panicking && let Some(status) = node.process.as_mut().and_then(Process::exited) {
                ends.push_str(&format!("{} ended with {status}\n", node.name));
            }
            drop(node.process.take());
        }
        self.gateways.clear();
        if panicking && let Some(folder) = self.folder.take() {
            eprintln!("{ends}the logs and data of the cluster are in {}", folder.keep().display());
        }
    }
}

fn read_only_token() -> String {
    format!("\n[[tokens]]\nsecret = \"{READ_ONLY_TOKEN}\"\ndatabases = [\"*\"]\naccess = \"read\"\n")
}
