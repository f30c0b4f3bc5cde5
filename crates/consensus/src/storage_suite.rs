//! openraft's own storage tests, on both engines.

use std::sync::Arc;

use meridian_storage::{
    Engine, GroupId, GroupLog, HighWater, MemoryEngine, RecordKind, RocksEngine, RocksOptions,
    ShardState, Syncer,
};
use meridian_types::{Epoch, ShardId};
use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};

use crate::log_cache::LogCache;
use crate::log_store::LogStore;
use crate::state_machine::StateMachine;
use crate::type_config::TypeConfig;

struct Builder {
    engine: fn(&tempfile::TempDir) -> Arc<dyn Engine>,
}

impl StoreBuilder<TypeConfig, LogStore, StateMachine, tempfile::TempDir> for Builder {
    async fn build(
        &self,
    ) -> Result<(tempfile::TempDir, LogStore, StateMachine), StorageError<TypeConfig>> {
        let folder = tempfile::tempdir().unwrap();
        let engine = (self.engine)(&folder);
        let syncer = Arc::new(Syncer::start(Arc::clone(&engine)).unwrap());
        let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
        let log = GroupLog::open(Arc::clone(&engine), group, RecordKind::Entry).unwrap();
        let marks = HighWater::open(folder.path().join("high-water")).unwrap();
        let log =
            LogStore::open(log, syncer, Some(Arc::new(marks)), &LogCache::new(1 << 20)).unwrap();
        let state = ShardState::open(engine, group.shard).unwrap();
        Ok((folder, log, StateMachine::new(Arc::new(state), group)))
    }
}

#[tokio::test]
async fn openraft_suite_on_rocksdb() {
    let engine = |folder: &tempfile::TempDir| -> Arc<dyn Engine> {
        Arc::new(RocksEngine::open(&folder.path().join("db"), RocksOptions::default()).unwrap())
    };
    Suite::test_all(Builder { engine }).await.unwrap();
}

#[tokio::test]
async fn openraft_suite_on_the_in_memory_twin() {
    Suite::test_all(Builder { engine: |_| Arc::new(MemoryEngine::default()) }).await.unwrap();
}
