//! Why a configuration is refused.

use std::path::PathBuf;
use std::{fmt, io};

use meridian_gateway::{InvalidNetwork, InvalidPublicUrl};
use meridian_pki::NotAJoinToken;
use meridian_types::NodeId;

use crate::cluster::{InvalidAddress, InvalidCluster};
use crate::tokens::InvalidToken;

/// Why a node or gateway does not start. Each text is whole: it holds its cause, which is therefore
/// not a `source` that a report would print again.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {}: {cause}", path.display())]
    Read { path: PathBuf, cause: io::Error },
    /// Not TOML, or not of the fields that there are.
    #[error("{}, line {line}: {message}", path.display())]
    Malformed { path: PathBuf, line: usize, message: String },
    #[error("{}: {cause}", path.display())]
    Invalid { path: PathBuf, cause: InvalidConfig },
    #[error("{}: the process has not joined yet, and knows no cluster", path.display())]
    NotJoined { path: PathBuf },
    /// For the caller that opens the ports.
    #[error("cannot listen on {address} for {purpose}: {cause}")]
    Listen { address: String, purpose: ListenPurpose, cause: io::Error },
}

/// The use of a port that a process listens on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListenPurpose {
    KvConnect,
    Rpc,
    Metrics,
}

impl fmt::Display for ListenPurpose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KvConnect => "KV Connect",
            Self::Rpc => "other nodes (gRPC)",
            Self::Metrics => "metrics",
        })
    }
}

/// A configuration that is well formed and cannot work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidConfig {
    #[error(transparent)]
    Cluster(#[from] InvalidCluster),
    #[error("`node = {0}`, but there is no node {0} among [[nodes]]")]
    UnknownNode(NodeId),
    #[error("`region = \"{region}\"` is not one of the regions {regions}")]
    UnknownRegion { region: String, regions: String },
    #[error("`join`: {0}")]
    Join(NotAJoinToken),
    #[error(
        "`{0}` means nothing in a file with a join token: the process gets it from the cluster"
    )]
    JoinAndMore(&'static str),
    #[error("`state_dir` is missing: the folder in which the gateway keeps its certificate")]
    NoStateDir,
    #[error("`node` is missing: the id of this node")]
    NoNode,
    #[error("the process has joined as {met}, and {wanted} was expected")]
    JoinedAs { met: String, wanted: &'static str },
    #[error("[identity] and `insecure = true` exclude each other")]
    InsecureIdentity,
    #[error("identity.{0} is empty")]
    EmptyIdentity(&'static str),
    #[error("`data_dir` is empty")]
    EmptyDataDir,
    #[error("the data directory {} cannot be written to TOML, which is UTF-8", .0.display())]
    DataDirNotUtf8(PathBuf),
    #[error("{field}: {cause}")]
    ListenAddress { field: &'static str, cause: InvalidAddress },
    #[error("`listen.kv` is missing, and node {0} has no `kv_address` to take its place")]
    NowhereToListen(NodeId),
    #[error("{first} and {second} are the same port: {address}")]
    SameListen { first: &'static str, second: &'static str, address: String },
    #[error("{field} is {value}: it must lie between {min} and {max}")]
    OutOfRange { field: &'static str, value: u64, min: u64, max: u64 },
    #[error(
        "six times raft.heartbeat_ms ({heartbeat_ms}) is more than raft.election_timeout_max_ms ({max_ms}): \
         two lost heartbeats would cost the leader its lease, which is half of that"
    )]
    HeartbeatTooSlow { heartbeat_ms: u64, max_ms: u64 },
    #[error(
        "raft.heartbeat_ms ({heartbeat_ms}), raft.election_timeout_min_ms ({min_ms}) and \
         raft.election_timeout_max_ms ({max_ms}) must each be less than the next"
    )]
    ElectionTimes { heartbeat_ms: u64, min_ms: u64, max_ms: u64 },
    #[error("[encryption] names no key: key_file, key_credential or key_command is needed")]
    NoKey,
    #[error("[encryption] has several of {prefix}file, {prefix}credential and {prefix}command")]
    TwoKeys { prefix: &'static str },
    #[error("encryption.{prefix}credential is not the name of a credential")]
    KeyCredential { prefix: &'static str },
    #[error("encryption.{prefix}command names no program")]
    KeyCommand { prefix: &'static str },
    #[error("gateway.public_url: {0}")]
    PublicUrl(InvalidPublicUrl),
    #[error("gateway.trusted_proxies: {0}")]
    TrustedProxies(InvalidNetwork),
    #[error(
        "gateway.insecure says that clients come in the clear, and [[gateway.certificates]] is for HTTPS"
    )]
    InsecureWithCertificates,
    #[error("gateway.audit.file is empty")]
    EmptyAuditFile,
    #[error("gateway.audit.sample is {0}: it must lie between 0 and 1")]
    AuditSample(String),
    #[error("gateway.audit.values is for lines that have keys: set gateway.audit.keys, too")]
    AuditedValuesWithoutKeys,
    #[error("there are no access tokens: at least one [[tokens]] is needed")]
    NoTokens,
    /// `number` counts from 1, in the order of the file.
    #[error("token number {number}: {cause}")]
    Token { number: usize, cause: InvalidToken },
    #[error("`{0}` in [dial] is no node's id")]
    DialNode(String),
    #[error("[dial] of node {node}: {cause}")]
    DialAddress { node: NodeId, cause: InvalidAddress },
    #[error("ports from {base} on are too few for node {node}")]
    TooFewPorts { base: u16, node: NodeId },
}
