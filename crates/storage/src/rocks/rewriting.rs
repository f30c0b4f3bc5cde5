//! Writes tables again that are not encrypted as new ones are.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::ControlFlow;

use meridian_vault::Vault;
use rocksdb::{BottommostLevelCompaction, CompactOptions, LiveFile};

use super::RocksEngine;
use crate::{Engine, StorageError};

impl RocksEngine {
    /// One table after the other, each with those that overlap it. A table that is still there after
    /// its compaction is left to the next call.
    pub(super) fn rewrite_stale(
        &self,
        vault: &Vault,
        admit: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        // The log is in new files once no memtable needs the old ones.
        for family in self.families() {
            match self.flush(&family) {
                Err(StorageError::NoFamily(_)) => {}
                flushed => flushed?,
            }
        }
        self.remove_old_info_logs(vault)?;
        let mut tried = BTreeSet::new();
        while let Some(table) = self.next_stale(vault, &tried)? {
            if admit(table.size as u64).is_break() {
                return Err(StorageError::cancelled("the rewriting of files was ended"));
            }
            let mut options = CompactOptions::default();
            // Others go on meanwhile.
            options.set_exclusive_manual_compaction(false);
            // Also those of the last level, of which nothing would be dropped.
            options.set_bottommost_level_compaction(BottommostLevelCompaction::Force);
            let (first, last) = (table.start_key.as_deref(), table.end_key.as_deref());
            match self.family(&table.column_family_name) {
                Ok(family) => self.db.compact_range_cf_opt(&family, first, last, &options),
                // Dropped meanwhile, with its tables.
                Err(StorageError::NoFamily(_)) => {}
                Err(error) => return Err(error),
            }
            tried.insert(table.name);
        }
        Ok(())
    }

    fn next_stale(
        &self,
        vault: &Vault,
        tried: &BTreeSet<String>,
    ) -> Result<Option<LiveFile>, StorageError> {
        for table in self.db.live_files()? {
            let path = self.path.join(table.name.trim_start_matches('/'));
            let is_stale = match vault.is_stale(&path) {
                // Compacted away meanwhile.
                Err(error) if error.kind() == ErrorKind::NotFound => false,
                looked => looked.map_err(|source| StorageError::File {
                    path: path.display().to_string(),
                    source,
                })?,
            };
            if is_stale && !tried.contains(&table.name) {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    /// RocksDB's log for people of earlier openings: keys are in it, and nothing writes it again.
    fn remove_old_info_logs(&self, vault: &Vault) -> Result<(), StorageError> {
        let failed = |source| StorageError::File { path: self.path.display().to_string(), source };
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if !name.starts_with("LOG.old.") {
                continue;
            }
            let removed = vault
                .is_stale(&path)
                .and_then(|is_stale| if is_stale { std::fs::remove_file(&path) } else { Ok(()) });
            match removed {
                // RocksDB keeps a few and removes the others.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(failed)?,
            }
        }
        Ok(())
    }
}
