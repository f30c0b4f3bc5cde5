//! The configuration of a node and of a stateless gateway: one TOML file each, read once at start.
//! `docs/configuration.md` explains every field; `deploy/node.toml` and `deploy/gateway.toml` are
//! samples.
//!
//! | module | what it holds |
//! |---|---|
//! | `file` | the files as they are written |
//! | `check`, `tokens`, `secrets` | from such a file to a configuration that can work |
//! | `encryption` | where the key of a node's files is read |
//! | `error` | what is refused, with the text for the operator |
//! | `write` | a configuration as an annotated file |
//! | `cluster` | the cluster of version 0 that a file describes, valid as soon as it exists |
//! | `identity` | the files of a process's identity |
//! | `joining` | a file with a join token; [`IdentityFolder`]: a process's own identity |
//! | `context` | [`Context`]: the cluster that an operator's commands are for |
//! | `dev` | the configurations of a whole cluster on one machine |
//! | `dev_identities` | the throw-away authority of such a cluster |
//! | `private_file` | files that only their owner may read |
//!
//! Invariants: a [`NodeConfig`] or [`GatewayConfig`] that exists was checked as a whole, and no
//! secret is in an error or in `Debug` output (it is in [`NodeConfig::to_toml`], which is the
//! file). The environment is read for secrets of tokens alone, where a file says so. Absent on
//! purpose: opening the ports, which only the operating system can judge ([`ConfigError::Listen`]
//! has its error).

mod check;
mod cluster;
mod context;
mod dev;
mod dev_identities;
mod encryption;
mod error;
mod file;
mod identity;
mod joining;
pub mod private_file;
mod secrets;
mod tokens;
mod write;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use meridian_directory::{Cluster, FailoverMode, Node};
use meridian_gateway::{AuditSettings, Options, PublicUrl, TrustedProxies};
use meridian_pki::JoinToken;
use meridian_types::NodeId;
use meridian_vault::EncryptionSettings;
use serde::Deserialize;

pub use cluster::{
    AddressField, ClusterSpec, DEV_DEFAULT_DATABASE, DEV_SECOND_DATABASE, DatabaseSpec, DevLayout,
    InvalidAddress, InvalidCluster, NodeSpec, ShardSpec,
};
pub use context::{Context, ContextError};
pub use dev::{dev_cluster, dev_cluster_configs};
pub use dev_identities::{NoIdentities, equip, equip_other, is_development};
pub use error::{ConfigError, InvalidConfig, ListenPurpose};
pub use identity::IdentityFiles;
pub use joining::{IdentityFolder, Joined, Joining, Loaded};
pub use secrets::{InvalidSecret, SecretSource, TokenSecret, UnreadableSecret, read_secret};
pub use tokens::{InvalidToken, TokenConfig};

/// The checked configuration of `meridian serve`.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    pub node_id: NodeId,
    /// This node, as the cluster has it.
    pub node: Node,
    pub data_dir: PathBuf,
    /// The limit of the process's memory. `None`: as much as [`meridian_memory::default_max_bytes`]
    /// says.
    pub max_memory_mb: Option<u64>,
    /// Threads that serve, beside those that wait for disks and those of the directory. `None`: one
    /// a processor.
    pub worker_threads: Option<usize>,
    pub listen: NodeListen,
    pub raft: RaftConfig,
    pub storage: StorageConfig,
    pub gateway: GatewaySettings,
    /// How the files of the data folder are encrypted. `None`: they are not.
    pub encryption: Option<EncryptionSettings>,
    /// Of version 0: what the file describes.
    pub cluster: Cluster,
    /// At least one, unless the process has joined by a token.
    pub tokens: Vec<TokenConfig>,
    /// The node joins a cluster that is there: it founds nothing on this file.
    pub join: bool,
    /// In the cluster that this file founds no database fails over without an operator's word,
    /// until that is set otherwise.
    pub manual_failover: bool,
    /// Where to dial other nodes, if not at the address that the cluster gives: `host:port`.
    pub dial: BTreeMap<NodeId, String>,
    /// `None`: the process has none, or gets one from the cluster.
    pub identity: Option<IdentityFiles>,
    /// The identity is the cluster's to issue, and not an operator's.
    pub own_identity: bool,
    /// The word that the process may talk in the clear, and believes every caller.
    pub insecure: bool,
}

/// The checked configuration of `meridian gateway`.
#[derive(Debug, Clone)]
pub struct GatewayConfig {
    /// Where this gateway is; its eventual reads go to nodes of this region.
    pub region: String,
    /// As in [`NodeConfig`].
    pub max_memory_mb: Option<u64>,
    pub listen: GatewayListen,
    pub gateway: GatewaySettings,
    /// As in [`NodeConfig`].
    pub cluster: Cluster,
    /// As in [`NodeConfig`].
    pub tokens: Vec<TokenConfig>,
    /// As in [`NodeConfig`].
    pub dial: BTreeMap<NodeId, String>,
    /// As in [`NodeConfig`].
    pub identity: Option<IdentityFiles>,
    /// As in [`NodeConfig`].
    pub own_identity: bool,
    /// The folder in which a gateway that joined keeps its certificate.
    pub state_dir: Option<PathBuf>,
    /// As in [`NodeConfig`].
    pub insecure: bool,
}

/// Where a node listens; each is `host:port`. Port 0, of `kv` and `metrics` only, means any free
/// port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeListen {
    /// gRPC, for other nodes.
    pub rpc: String,
    /// KV Connect, for clients.
    pub kv: String,
    /// Prometheus metrics. `None`: not served.
    pub metrics: Option<String>,
}

/// Where a stateless gateway listens, as in [`NodeListen`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewayListen {
    pub kv: String,
    pub metrics: Option<String>,
}

/// The times of elections: `heartbeat_ms < election_timeout_min_ms < election_timeout_max_ms`, and
/// `heartbeat_ms * 6 <= election_timeout_max_ms`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RaftConfig {
    pub heartbeat_ms: u64,
    pub election_timeout_min_ms: u64,
    pub election_timeout_max_ms: u64,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self { heartbeat_ms: 50, election_timeout_min_ms: 300, election_timeout_max_ms: 450 }
    }
}

/// Sizes in MiB, each between 1 and 1048576. Budgets of memory follow from `max_memory_mb`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StorageConfig {
    /// How much of each shard's log is kept for slow replicas; past it they take a snapshot.
    pub log_retention_mb: u64,
    /// How much of each shard's log is kept for change feeds that come back; never more than
    /// `log_retention_mb`. Past it they take a snapshot.
    pub change_retention_mb: u64,
}

impl Default for StorageConfig {
    fn default() -> Self {
        Self { log_retention_mb: 1024, change_retention_mb: 64 }
    }
}

/// A certificate that clients are shown, with its chain, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    pub certificate: PathBuf,
    /// May be the same file.
    pub key: PathBuf,
}

/// How KV Connect is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GatewaySettings {
    /// Where clients reach this gateway. `None`: taken from each metadata request.
    pub public_url: Option<PublicUrl>,
    /// For HTTPS; the first is shown where none has the name that a client asks for. Empty: plain
    /// HTTP.
    pub certificates: Vec<CertificateFiles>,
    /// Plain HTTP beyond loopback is meant.
    pub insecure: bool,
    /// The proxies that are believed in which client a request is of.
    pub trusted_proxies: TrustedProxies,
    /// Open at a time.
    pub max_connections: usize,
    /// Open at a time; at most three quarters of them are one token's.
    pub max_watches: u32,
    /// Open at a time; at most three quarters of them are one token's.
    pub max_change_feeds: u32,
    /// How long a request may take inside, retries included. Well below the time for which request
    /// ids are remembered, or a late retry could be applied twice.
    pub request_deadline_ms: u64,
    /// `None`: there is no audit log.
    pub audit: Option<AuditSettings>,
}

impl Default for GatewaySettings {
    fn default() -> Self {
        Self {
            public_url: None,
            certificates: Vec::new(),
            insecure: false,
            trusted_proxies: TrustedProxies::default(),
            max_connections: 8192,
            max_watches: Options::DEFAULT_MAX_WATCHES,
            max_change_feeds: Options::DEFAULT_MAX_CHANGE_FEEDS,
            request_deadline_ms: 10_000,
            audit: None,
        }
    }
}

impl NodeConfig {
    /// # Errors
    /// [`ConfigError`]; [`ConfigError::NotJoined`] where [`Self::open`] says more.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read(path)?, path)
    }

    /// Reads a file, and what the process got when it joined, if the file has a join token.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn open(path: &Path) -> Result<Loaded<Self>, ConfigError> {
        Self::read(&read(path)?, path)
    }

    /// As [`Self::load`]. `path` is where `text` is from: errors name it, and a relative `data_dir`
    /// starts in its folder.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::read(text, path)?.config(path)
    }

    fn read(text: &str, path: &Path) -> Result<Loaded<Self>, ConfigError> {
        let invalid = |cause| ConfigError::Invalid { path: path.to_owned(), cause };
        let file = file::parse(text).map_err(|error| error.at(path))?;
        let joined = match check::node_joining(&file, path).map_err(invalid)? {
            None => None,
            Some(joining) => match joining.folder.joined(&joining.token)? {
                None => return Ok(Loaded::Joining(joining)),
                Some(joined) => Some((joined, joining.folder)),
            },
        };
        check::node(file, path, joined).map(Box::new).map(Loaded::Config).map_err(invalid)
    }

    /// The cluster that this node founds.
    pub fn founded_cluster(&self) -> Cluster {
        let mut cluster = self.cluster.clone();
        if self.manual_failover {
            let databases = cluster.databases.values_mut();
            databases.for_each(|database| database.failover = FailoverMode::Manual);
        }
        cluster
    }

    /// The annotated file that [`NodeConfig::load`] reads as this configuration. Plain secrets are
    /// in it. A `data_dir` that is not UTF-8 is written with replacement characters.
    pub fn to_toml(&self) -> String {
        write::node(self)
    }

    /// The annotated file of a node with the settings of this configuration that joins by a token,
    /// and gets all else by it. The token is in it.
    pub fn to_joining_toml(&self, token: &JoinToken) -> String {
        write::joining_node(self, token)
    }
}

impl GatewayConfig {
    /// As [`NodeConfig::load`].
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&read(path)?, path)
    }

    /// As [`NodeConfig::open`].
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn open(path: &Path) -> Result<Loaded<Self>, ConfigError> {
        Self::read(&read(path)?, path)
    }

    /// As [`NodeConfig::parse`].
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        Self::read(text, path)?.config(path)
    }

    fn read(text: &str, path: &Path) -> Result<Loaded<Self>, ConfigError> {
        let invalid = |cause| ConfigError::Invalid { path: path.to_owned(), cause };
        let file = file::parse(text).map_err(|error| error.at(path))?;
        let joined = match check::gateway_joining(&file, path).map_err(invalid)? {
            None => None,
            Some(joining) => match joining.folder.joined(&joining.token)? {
                None => return Ok(Loaded::Joining(joining)),
                Some(joined) => Some((joined, joining.folder)),
            },
        };
        check::gateway(file, path, joined).map(Box::new).map(Loaded::Config).map_err(invalid)
    }

    /// The annotated file that [`GatewayConfig::load`] reads as this configuration. Plain secrets
    /// are in it.
    pub fn to_toml(&self) -> String {
        write::gateway(self)
    }
}

fn read(path: &Path) -> Result<String, ConfigError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |cause| ConfigError::Read { path: path.to_owned(), cause };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let mode = std::fs::metadata(path).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(
            path = %path.display(),
            mode = format!("{:o}", mode & 0o777),
            "this file may hold access tokens, and others can read it: chmod 600"
        );
    }
    Ok(text)
}
