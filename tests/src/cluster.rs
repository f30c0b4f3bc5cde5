//! The cluster of `meridian-drills`, for tests: every failure is a panic.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;

use meridian_drills::{ClusterError, Machine, Trust, with_causes};
use meridian_proto::admin::{ShardStatus, StatusResponse};
use meridian_types::{DatabaseId, NodeId};

use crate::kv_connect::KvClient;

#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Data centers in each region, the primary first; at most three regions, and ten nodes in all.
    pub topology: &'static [usize],
    /// Log kept for slow replicas; the default is the product's.
    pub log_retention_mb: Option<u64>,
    /// Memory for each process; the default is the product's, which depends on the machine.
    pub max_memory_mb: Option<u64>,
}

impl Default for ClusterOptions {
    /// Three regions with three, two and one data center.
    fn default() -> Self {
        Self { topology: &[3, 2, 1], log_retention_mb: None, max_memory_mb: None }
    }
}

/// A cluster of one process for each node, on loopback. Nodes are numbered from 1 through all
/// regions.
///
/// Dropping it ends its processes and removes its folder; after a panic the folder stays, with the
/// logs. Methods without a text here are those of `meridian-drills`.
///
/// # Panics
/// In each of its methods, when the operation fails.
pub struct Cluster(meridian_drills::Cluster);

impl Deref for Cluster {
    type Target = meridian_drills::Cluster;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl DerefMut for Cluster {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0
    }
}

#[track_caller]
fn done<T>(result: Result<T, ClusterError>) -> T {
    result.unwrap_or_else(|error| panic!("{}", with_causes(&error)))
}

impl Cluster {
    /// Starts all nodes, and waits until the cluster is ready.
    pub async fn start(options: ClusterOptions) -> Self {
        Self::start_with(options, Trust::Files).await
    }

    /// The same of nodes without certificates, which talk in the clear.
    pub async fn start_open(options: ClusterOptions) -> Self {
        Self::start_with(options, Trust::Open).await
    }

    async fn start_with(options: ClusterOptions, trust: Trust) -> Self {
        let started = meridian_drills::Cluster::start(meridian_drills::ClusterOptions {
            program: binary(),
            topology: options.topology.to_vec(),
            log_retention_mb: options.log_retention_mb,
            max_memory_mb: options.max_memory_mb,
            wan: None,
            trust,
        });
        Self(done(started.await))
    }

    /// Waits until every gateway answers a strong read of both databases.
    pub async fn ready(&mut self) {
        done(self.0.ready().await);
    }

    /// Waits until this node answers a strong read of both databases.
    pub async fn node_ready(&mut self, id: impl Into<NodeId>) {
        done(self.0.node_ready(id.into()).await);
    }

    pub fn assert_all_run(&mut self) {
        if let Some(ended) = self.0.ended() {
            panic!("{ended}");
        }
        let down = self.0.down();
        assert!(down.is_empty(), "{down:?} are down");
    }

    /// The URL of this node's gateway, without a slash at the end.
    pub fn url(&self, id: impl Into<NodeId>) -> String {
        done(self.0.url(Machine::Node(id.into())))
    }

    /// The gRPC address of this node.
    pub fn rpc_address(&self, id: impl Into<NodeId>) -> &str {
        done(self.0.rpc_address(id.into()))
    }

    /// The address of this node's metrics.
    pub fn metrics_address(&self, id: impl Into<NodeId>) -> &str {
        done(self.0.metrics_address(id.into()))
    }

    /// The process id of a node that is up.
    pub fn process_id(&self, id: impl Into<NodeId>) -> u32 {
        done(self.0.process_id(id.into()))
    }

    pub fn client(&self, id: impl Into<NodeId>, database: DatabaseId) -> KvClient {
        done(self.0.client(id.into(), database))
    }

    pub fn start_all(&mut self) {
        done(self.0.start_all());
    }

    /// SIGKILL.
    pub fn kill(&mut self, id: impl Into<NodeId>) {
        done(self.0.kill(Machine::Node(id.into())));
    }

    /// SIGKILL to all nodes.
    pub fn kill_all(&mut self) {
        done(self.0.kill_all());
    }

    /// SIGTERM, and waits for the end.
    pub fn stop(&mut self, id: impl Into<NodeId>) -> ExitStatus {
        done(self.0.stop(Machine::Node(id.into())))
    }

    /// Starts a node that is down. [`Cluster::node_ready`] says when it serves.
    pub fn restart(&mut self, id: impl Into<NodeId>) {
        done(self.0.restart(Machine::Node(id.into())));
    }

    /// SIGSTOP: the node hangs.
    pub fn pause(&mut self, id: impl Into<NodeId>) {
        done(self.0.pause(Machine::Node(id.into())));
    }

    /// SIGCONT.
    pub fn resume(&mut self, id: impl Into<NodeId>) {
        done(self.0.resume(Machine::Node(id.into())));
    }

    /// Removes all data of a node that is down.
    pub fn wipe(&mut self, id: impl Into<NodeId>) {
        done(self.0.wipe(id.into()));
    }

    /// The log of a node so far.
    pub fn log(&self, id: impl Into<NodeId>) -> String {
        done(self.0.log(id.into()))
    }

    /// The status of a node.
    pub async fn status(&self, id: impl Into<NodeId>) -> Result<StatusResponse, tonic::Status> {
        self.0.operator().status(id.into()).await
    }

    /// The status of a node and one shard.
    pub async fn shard_status(
        &self,
        id: impl Into<NodeId>,
        shard: u32,
    ) -> Result<ShardStatus, tonic::Status> {
        self.0.operator().shard_status(id.into(), shard).await
    }

    /// The node that reports to lead a shard; of several, the one with the highest epoch and term.
    pub async fn leader(&self, shard: u32) -> NodeId {
        done(self.0.leader(shard).await)
    }

    /// The output of `meridian status`.
    pub fn status_text(&self) -> String {
        done(self.0.status_text())
    }

    /// Runs a command of `meridian` that asks this node of the cluster; returns whether it
    /// succeeded, and its output.
    pub async fn meridian(&self, through: impl Into<NodeId>, arguments: &[&str]) -> (bool, String) {
        let mut command = tokio::process::Command::new(binary());
        command.args(arguments).args(["--node", self.rpc_address(through)]).kill_on_drop(true);
        if self.context().exists() {
            command.env("MERIDIAN_CONTEXT", self.context());
        }
        let output = command.output().await.expect("meridian runs");
        let printed = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&printed).into_owned())
    }

    /// Logs in with an operator's token: the commands of this cluster use it from then on.
    pub async fn log_in(&self, token: &str) {
        let made = log_in(token, &self.folder().join("home")).await;
        let context = self.context();
        std::fs::create_dir_all(context.parent().expect("it has a folder")).expect("it is made");
        std::fs::rename(made, context).expect("it is there");
    }

    /// Like [`Cluster::meridian`], for a command that must succeed; returns its output.
    pub async fn order(&self, through: impl Into<NodeId>, arguments: &[&str]) -> String {
        let (done, printed) = self.meridian(through, arguments).await;
        assert!(done, "{arguments:?}: {printed}");
        printed
    }

    /// The cluster in the directory.
    pub async fn directory(&self) -> meridian_directory::Cluster {
        match self.0.operator().inspect(std::time::Duration::from_secs(2)).await {
            Ok(inspection) => inspection.cluster,
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn transfer_leadership(
        &self,
        shard: u32,
        from: impl Into<NodeId>,
        to: impl Into<NodeId>,
    ) -> Result<(), tonic::Status> {
        self.0.operator().transfer_leadership(shard, from.into(), to.into()).await
    }

    /// Starts the stateless `meridian gateway` of a region, which counts from 0; returns its URL
    /// when it serves.
    pub async fn start_gateway(&mut self, region: usize) -> String {
        done(self.0.start_gateway(region).await)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let status = self.0.status_text().unwrap_or_default();
            let ended = self.0.ended().unwrap_or_default();
            let folder = self.0.keep_folder();
            eprintln!(
                "{status}{ended}\nthe logs and data of the cluster are in {}",
                folder.display()
            );
        }
    }
}

/// `meridian` of the same build as this test.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    let folder = test.parent().expect("a program in a folder");
    // target/<profile>/deps/<test>, or target/<profile>/<program>
    let folder =
        if folder.ends_with("deps") { folder.parent().expect("a target folder") } else { folder };
    let binary = folder.join("meridian");
    assert!(
        binary.exists(),
        "{} is missing: run scripts/test, or build the package `meridian`",
        binary.display()
    );
    binary
}

/// Logs in with an operator's token; the context, below `home`.
///
/// # Panics
/// When the token is refused.
pub async fn log_in(token: &str, home: &Path) -> PathBuf {
    use tokio::io::AsyncWriteExt;
    let mut command = tokio::process::Command::new(binary());
    command.args(["login", "--name", "test"]).env("XDG_CONFIG_HOME", home);
    command.stdin(std::process::Stdio::piped()).kill_on_drop(true);
    let mut login = command.spawn().expect("meridian runs");
    let mut input = login.stdin.take().expect("it is piped");
    input.write_all(token.as_bytes()).await.expect("it reads");
    drop(input);
    assert!(login.wait().await.expect("it ends").success());
    home.join("meridian/test.toml")
}
