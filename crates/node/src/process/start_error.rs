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
    #[error("{0}")]
    Invalid(String),
}
