//! A node's record of the directory: its own incarnation, and the cluster as it last knew it.

use std::sync::Arc;

use bytes::Bytes;
use meridian_directory::Cluster;
use meridian_storage::schema::{CLUSTER_KEY, META_FAMILY, NODE_INCARNATION_KEY};
use meridian_storage::{Durability, Engine, StorageError, WriteBatch};
use uuid::Uuid;

/// The cluster as this node last knew it.
pub(crate) fn load_cluster(engine: &Arc<dyn Engine>) -> Result<Option<Cluster>, StorageError> {
    let corrupt = |error: serde_json::Error| StorageError::Corruption {
        what: "the cluster as this node last knew it".to_owned(),
        detail: error.to_string(),
    };
    engine
        .get(META_FAMILY, CLUSTER_KEY)?
        .map(|json| serde_json::from_slice(&json).map_err(corrupt))
        .transpose()
}

/// Not synced: an older cluster is as good to begin with.
pub(crate) fn save_cluster(
    engine: &Arc<dyn Engine>,
    cluster: &Cluster,
) -> Result<(), StorageError> {
    let json =
        serde_json::to_vec(cluster).map_err(|error| StorageError::Invalid(error.to_string()))?;
    let mut writes = WriteBatch::default();
    writes.put(&META_FAMILY.into(), CLUSTER_KEY.to_vec(), json);
    engine.write(writes, Durability::Logged)
}

/// Made with the data folder: it tells a wiped folder from the folder that the directory knows.
pub(crate) fn incarnation(engine: &Arc<dyn Engine>) -> Result<Bytes, StorageError> {
    if let Some(known) = engine.get(META_FAMILY, NODE_INCARNATION_KEY)? {
        return Ok(known);
    }
    let new = Bytes::copy_from_slice(Uuid::new_v4().as_bytes());
    let mut writes = WriteBatch::default();
    writes.put(&META_FAMILY.into(), NODE_INCARNATION_KEY.to_vec(), new.clone());
    engine.write(writes, Durability::Logged)?;
    engine.sync()?;
    Ok(new)
}
