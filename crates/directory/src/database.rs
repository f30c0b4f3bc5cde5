//! Databases, how they fail over, and how far their replicas may lag.

use meridian_types::{Quotas, ShardId, V8Format};
use serde::{Deserialize, Serialize};

use crate::webhook::Webhook;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Database {
    pub name: String,
    pub shard: ShardId,
    /// Where an operator wants its primary: where its shard goes back to.
    pub primary_region: String,
    #[serde(default)]
    pub failover: FailoverMode,
    #[serde(default)]
    pub rpo: Rpo,
    #[serde(default)]
    pub v8_format: V8Format,
    /// Its queue hands out no messages.
    #[serde(default)]
    pub queue_paused: bool,
    /// One a queue at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub webhooks: Vec<Webhook>,
    #[serde(default, skip_serializing_if = "Quotas::is_empty")]
    pub quotas: Quotas,
}

/// A database that is being deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// Its former name; another database may be called so by now.
    pub name: String,
    /// Whose leader logs that its data goes.
    pub shard: ShardId,
}

/// Whether a shard whose primary region is lost fails over by itself: only if all of its databases
/// say so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailoverMode {
    #[default]
    Auto,
    Manual,
}

/// The treatment of writes when replication falls behind, measured at the best replica region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rpo {
    pub mode: RpoMode,
    /// Beyond, writes are slowed.
    pub soft_ms: u64,
    /// Beyond, writes are refused.
    pub max_ms: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RpoMode {
    Off,
    /// Said in logs and metrics only.
    Warn,
    Enforce,
}

impl Default for Rpo {
    fn default() -> Self {
        Self { mode: RpoMode::Enforce, soft_ms: 500, max_ms: 1000 }
    }
}
