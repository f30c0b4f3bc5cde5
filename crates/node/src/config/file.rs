//! The files as they are written, before anything is checked but the names and types of fields.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use meridian_types::NodeId;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{ConfigError, RaftConfig, StorageConfig};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeFile {
    pub(super) node: NodeId,
    pub(super) data_dir: PathBuf,
    pub(super) max_memory_mb: Option<u64>,
    pub(super) worker_threads: Option<u64>,
    #[serde(default)]
    pub(super) join: bool,
    #[serde(default)]
    pub(super) manual_failover: bool,
    #[serde(default)]
    pub(super) listen: NodeListenTable,
    #[serde(default)]
    pub(super) raft: RaftConfig,
    #[serde(default)]
    pub(super) storage: StorageConfig,
    #[serde(default)]
    pub(super) gateway: GatewayTable,
    // The topology. Not a flattened struct: that would let unknown fields pass.
    pub(super) regions: Vec<String>,
    pub(super) default_database: Option<String>,
    #[serde(default)]
    pub(super) nodes: Vec<NodeTable>,
    #[serde(default)]
    pub(super) shards: Vec<ShardTable>,
    #[serde(default)]
    pub(super) databases: Vec<DatabaseTable>,
    #[serde(default)]
    pub(super) tokens: Vec<TokenTable>,
    #[serde(default)]
    pub(super) dial: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GatewayFile {
    pub(super) region: String,
    pub(super) max_memory_mb: Option<u64>,
    pub(super) listen: GatewayListenTable,
    #[serde(default)]
    pub(super) gateway: GatewayTable,
    pub(super) regions: Vec<String>,
    pub(super) default_database: Option<String>,
    #[serde(default)]
    pub(super) nodes: Vec<NodeTable>,
    #[serde(default)]
    pub(super) shards: Vec<ShardTable>,
    #[serde(default)]
    pub(super) databases: Vec<DatabaseTable>,
    #[serde(default)]
    pub(super) tokens: Vec<TokenTable>,
    #[serde(default)]
    pub(super) dial: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeListenTable {
    pub(super) rpc: Option<String>,
    pub(super) kv: Option<String>,
    pub(super) metrics: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GatewayListenTable {
    pub(super) kv: String,
    pub(super) metrics: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct GatewayTable {
    pub(super) public_url: Option<String>,
    pub(super) max_connections: Option<u64>,
    pub(super) request_deadline_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NodeTable {
    pub(super) id: NodeId,
    pub(super) name: String,
    pub(super) region: String,
    pub(super) data_center: String,
    pub(super) rpc_address: String,
    pub(super) kv_address: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ShardTable {
    pub(super) id: u32,
    pub(super) primary_region: String,
    pub(super) voters: Option<Vec<NodeId>>,
    pub(super) preferred_leader: Option<NodeId>,
    #[serde(default)]
    pub(super) allow_weak_quorum: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DatabaseTable {
    pub(super) id: DatabaseUuid,
    pub(super) name: String,
    pub(super) shard: u32,
}

/// A UUID, parsed here so that a malformed one is reported with its line.
pub(super) struct DatabaseUuid(pub(super) meridian_types::DatabaseId);

impl<'de> Deserialize<'de> for DatabaseUuid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TokenTable {
    pub(super) secret: Option<String>,
    pub(super) secret_sha256: Option<String>,
    pub(super) databases: Vec<String>,
    pub(super) access: AccessWord,
}

#[derive(Deserialize, PartialEq, Eq)]
pub(super) enum AccessWord {
    #[serde(rename = "read-write")]
    ReadWrite,
    #[serde(rename = "read")]
    Read,
}

/// What the TOML reader refused.
pub(super) struct Malformed {
    line: usize,
    message: String,
}

impl Malformed {
    pub(super) fn at(self, path: &Path) -> ConfigError {
        ConfigError::Malformed { path: path.to_owned(), line: self.line, message: self.message }
    }
}

/// The reader's own text is not passed on: it quotes the line, which may hold a secret.
pub(super) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Malformed> {
    toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        let line = before.bytes().filter(|&byte| byte == b'\n').count() + 1;
        Malformed { line, message: without_value(error.message()) }
    })
}

/// Serde's words for a wrong value quote it. The line number finds it as well, and a secret that
/// stands in the wrong place stays unseen.
fn without_value(message: &str) -> String {
    for fault in ["invalid type: ", "invalid value: ", "unknown variant "] {
        let Some((value, expected)) =
            message.strip_prefix(fault).and_then(|rest| rest.rsplit_once(", expected "))
        else {
            continue;
        };
        let kind = value.split(['`', '"']).next().unwrap_or_default().trim();
        let fault = fault.trim_end_matches([':', ' ']);
        let separator = if kind.is_empty() { "" } else { ": " };
        return format!("{fault}{separator}{kind}, expected {expected}");
    }
    message.trim_end().to_owned()
}
