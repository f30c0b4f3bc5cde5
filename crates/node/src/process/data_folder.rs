//! The data folder of a node: its keys, and its database, which belongs to one node for good.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use meridian_config::NodeConfig;
use meridian_memory::Shares;
use meridian_storage::{
    Durability, Engine, RocksEngine, RocksOptions, StorageError, WriteBatch, schema,
};
use meridian_types::NodeId;
use meridian_vault::Folder;
use tokio::task::JoinError;

use crate::divergence::orphan_files;
use crate::host::disk;
use crate::process::start_error::StartError;

/// Makes the folder if there is none, and opens its keys, off the runtime.
///
/// # Errors
/// [`StartError::DataFolder`]: it cannot be used, or its keys are others. Nothing was changed then.
pub(crate) async fn open_folder(config: &NodeConfig) -> Result<Folder, StartError> {
    let (path, encryption) = (config.data_dir.clone(), config.encryption.clone());
    let opened = tokio::task::spawn_blocking(move || {
        std::fs::create_dir_all(&path)
            // No other user reads what clients stored, also in a folder of an earlier version.
            .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o700)))
            .map_err(|source| StorageError::File { path: path.display().to_string(), source })?;
        // Before the first write: the keyring is replaced where the master key is another.
        disk::make_room(&path);
        Ok(Folder::open(&path, encryption.as_ref())?)
    });
    done(config, opened.await)
}

/// Opens the database of the folder, off the runtime.
///
/// # Errors
/// [`StartError::DataFolder`]: it cannot be opened, or is another node's.
pub(crate) async fn open_engine(
    config: &NodeConfig,
    folder: &Folder,
    shares: &Shares,
) -> Result<Arc<dyn Engine>, StartError> {
    let options = RocksOptions {
        block_cache_bytes: shares.block_cache,
        memtable_bytes: shares.memtables,
        vault: folder.vault().cloned(),
    };
    let (folder, node_id) = (folder.clone(), config.node_id);
    let opened = tokio::task::spawn_blocking(move || open_owned(&folder, options, node_id));
    done(config, opened.await)
}

fn done<T>(
    config: &NodeConfig,
    work: Result<Result<T, StorageError>, JoinError>,
) -> Result<T, StartError> {
    let work = work.unwrap_or_else(|error| Err(StorageError::cancelled(error)));
    work.map_err(|error| unusable(config, &error))
}

/// Takes a database that is open already.
///
/// # Errors
/// As [`open_engine`].
pub(crate) fn take_engine(
    config: &NodeConfig,
    engine: Arc<dyn Engine>,
) -> Result<Arc<dyn Engine>, StartError> {
    claim(&engine, config.node_id).map_err(|error| unusable(config, &error))?;
    Ok(engine)
}

/// Opens the database, makes sure that it is this node's, and removes what crashes left beside it.
fn open_owned(
    folder: &Folder,
    options: RocksOptions,
    node_id: NodeId,
) -> Result<Arc<dyn Engine>, StorageError> {
    let path = folder.join("db");
    let file = |source| StorageError::File { path: path.display().to_string(), source };
    std::fs::create_dir_all(&path).map_err(file)?;
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(&path, options)?);
    claim(&engine, node_id)?;
    // Without a key, the database's lock is the first: until it is held, another process may run on
    // this folder, and write such a file.
    orphan_files::remove_leftovers(folder);
    Ok(engine)
}

/// Makes sure that the database is this node's: a new one becomes it.
fn claim(engine: &Arc<dyn Engine>, node_id: NodeId) -> Result<(), StorageError> {
    match engine.get(schema::META_FAMILY, schema::NODE_KEY)? {
        None => {
            let mut writes = WriteBatch::default();
            writes.put(
                &schema::META_FAMILY.into(),
                schema::NODE_KEY.to_vec(),
                node_id.0.to_be_bytes().to_vec(),
            );
            engine.write(writes, Durability::Logged)?;
            engine.sync()?;
        }
        Some(owner) if owner.as_ref() == node_id.0.to_be_bytes() => {}
        Some(owner) => {
            let owner = NodeId(owner.as_ref().try_into().map_or(0, u64::from_be_bytes));
            return Err(StorageError::WrongOwner { owner, node: node_id });
        }
    }
    Ok(())
}

pub(crate) fn unusable(config: &NodeConfig, error: &StorageError) -> StartError {
    StartError::DataFolder { path: config.data_dir.display().to_string(), cause: error.to_string() }
}

#[cfg(test)]
mod tests {
    use meridian_config::dev_cluster_configs;

    use super::*;

    #[tokio::test]
    async fn second_start_on_the_folder_of_a_running_node_removes_no_file_that_it_writes() {
        let base = tempfile::tempdir().unwrap();
        let configs = dev_cluster_configs(&[3], base.path(), 4601, 4512, "0123456789abcdef");
        let (config, shares) = (configs.unwrap().remove(0), Shares::of_node(0));
        let start = async || {
            let folder = open_folder(&config).await?;
            open_engine(&config, &folder, &shares).await
        };
        let running = start().await.unwrap();
        let orphans = config.data_dir.join("orphans");
        std::fs::create_dir(&orphans).unwrap();
        let partial = orphans.join("shard-3-epoch-2-base-10.partial");
        std::fs::write(&partial, "as far as it was written").unwrap();
        assert!(matches!(start().await, Err(StartError::DataFolder { .. })));
        assert!(partial.exists(), "the running node ends when such a file is gone");
        drop(running);
        drop(start().await.unwrap());
        assert!(!partial.exists(), "a start removes what crashes left");
    }
}
