//! Why a node or a gateway does not start.

use meridian_config::ConfigError;
use meridian_storage::StorageError;
use meridian_types::ShardId;

/// Why a node or a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot use the data folder {path}: {cause}")]
    DataFolder { path: String, cause: String },
    #[error("shard {shard}: {cause}")]
    Shard { shard: ShardId, cause: StorageError },
    #[error("the identity of this process cannot be used: {0}")]
    Identity(String),
    #[error("this process cannot join the cluster: {0}")]
    Join(String),
    #[error("{0}")]
    Invalid(String),
}
