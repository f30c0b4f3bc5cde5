//! The files as they are written, before anything is checked but the names and types of fields.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use meridian_types::NodeId;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::encryption::EncryptionTable;
use crate::joining::JoinWord;
use crate::{ConfigError, RaftConfig, StorageConfig};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeFile {
    pub(crate) node: Option<NodeId>,
    pub(crate) data_dir: PathBuf,
    pub(crate) max_memory_mb: Option<u64>,
    pub(crate) worker_threads: Option<u64>,
    #[serde(default)]
    pub(crate) join: JoinWord,
    #[serde(default)]
    pub(crate) manual_failover: bool,
    #[serde(default)]
    pub(crate) insecure: bool,
    pub(crate) identity: Option<IdentityTable>,
    #[serde(default)]
    pub(crate) listen: NodeListenTable,
    #[serde(default)]
    pub(crate) raft: RaftConfig,
    #[serde(default)]
    pub(crate) storage: StorageConfig,
    #[serde(default)]
    pub(crate) gateway: GatewayTable,
    pub(crate) encryption: Option<EncryptionTable>,
    // The topology. Not a flattened struct: that would let unknown fields pass.
    #[serde(default)]
    pub(crate) regions: Vec<String>,
    pub(crate) default_database: Option<String>,
    #[serde(default)]
    pub(crate) nodes: Vec<NodeTable>,
    #[serde(default)]
    pub(crate) shards: Vec<ShardTable>,
    #[serde(default)]
    pub(crate) databases: Vec<DatabaseTable>,
    #[serde(default)]
    pub(crate) tokens: Vec<TokenTable>,
    #[serde(default)]
    pub(crate) dial: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayFile {
    pub(crate) region: String,
    pub(crate) max_memory_mb: Option<u64>,
    #[serde(default)]
    pub(crate) join: JoinWord,
    pub(crate) state_dir: Option<PathBuf>,
    #[serde(default)]
    pub(crate) insecure: bool,
    pub(crate) identity: Option<IdentityTable>,
    pub(crate) listen: GatewayListenTable,
    #[serde(default)]
    pub(crate) gateway: GatewayTable,
    #[serde(default)]
    pub(crate) regions: Vec<String>,
    pub(crate) default_database: Option<String>,
    #[serde(default)]
    pub(crate) nodes: Vec<NodeTable>,
    #[serde(default)]
    pub(crate) shards: Vec<ShardTable>,
    #[serde(default)]
    pub(crate) databases: Vec<DatabaseTable>,
    #[serde(default)]
    pub(crate) tokens: Vec<TokenTable>,
    #[serde(default)]
    pub(crate) dial: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeListenTable {
    pub(crate) rpc: Option<String>,
    pub(crate) kv: Option<String>,
    pub(crate) metrics: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayListenTable {
    pub(crate) kv: String,
    pub(crate) metrics: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IdentityTable {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
    pub(crate) authorities: PathBuf,
    pub(crate) operator: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct GatewayTable {
    pub(crate) public_url: Option<String>,
    #[serde(default)]
    pub(crate) certificates: Vec<CertificateTable>,
    #[serde(default)]
    pub(crate) insecure: bool,
    #[serde(default)]
    pub(crate) trusted_proxies: Vec<String>,
    pub(crate) max_connections: Option<u64>,
    pub(crate) max_watches: Option<u64>,
    pub(crate) max_change_feeds: Option<u64>,
    pub(crate) request_deadline_ms: Option<u64>,
    pub(crate) audit: Option<AuditTable>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AuditTable {
    pub(crate) file: PathBuf,
    pub(crate) sample: Option<f64>,
    #[serde(default)]
    pub(crate) keys: bool,
    #[serde(default)]
    pub(crate) values: bool,
    pub(crate) when_full: Option<WhenFullWord>,
}

#[derive(Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WhenFullWord {
    Drop,
    Refuse,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateTable {
    pub(crate) certificate: PathBuf,
    pub(crate) key: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NodeTable {
    pub(crate) id: NodeId,
    pub(crate) name: String,
    pub(crate) region: String,
    pub(crate) data_center: String,
    pub(crate) rpc_address: String,
    pub(crate) kv_address: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ShardTable {
    pub(crate) id: u32,
    pub(crate) primary_region: String,
    pub(crate) voters: Option<Vec<NodeId>>,
    pub(crate) preferred_leader: Option<NodeId>,
    #[serde(default)]
    pub(crate) allow_weak_quorum: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct DatabaseTable {
    pub(crate) id: DatabaseUuid,
    pub(crate) name: String,
    pub(crate) shard: u32,
}

/// A UUID, parsed here so that a malformed one is reported with its line.
pub(crate) struct DatabaseUuid(pub(super) meridian_types::DatabaseId);

impl<'de> Deserialize<'de> for DatabaseUuid {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map(Self).map_err(serde::de::Error::custom)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct TokenTable {
    pub(crate) secret: Option<String>,
    pub(crate) secret_sha256: Option<String>,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) secret_env: Option<String>,
    pub(crate) secret_credential: Option<String>,
    pub(crate) databases: Vec<String>,
    pub(crate) access: Option<AccessWord>,
    pub(crate) permissions: Option<Vec<String>>,
    #[serde(default)]
    pub(crate) prefixes: Vec<String>,
}

#[derive(Deserialize, PartialEq, Eq)]
pub(crate) enum AccessWord {
    #[serde(rename = "read-write")]
    ReadWrite,
    #[serde(rename = "read")]
    Read,
}

/// An error of the TOML reader, without the file's path.
pub(crate) struct Malformed {
    line: usize,
    message: String,
}

impl Malformed {
    pub(crate) fn at(self, path: &Path) -> ConfigError {
        ConfigError::Malformed { path: path.to_owned(), line: self.line, message: self.message }
    }
}

/// The reader's own text is not passed on: it quotes the line, which may hold a secret.
pub(crate) fn parse<T: DeserializeOwned>(text: &str) -> Result<T, Malformed> {
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
