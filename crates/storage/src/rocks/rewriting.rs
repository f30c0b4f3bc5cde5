//! Writes tables again that are not encrypted as new ones are.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

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
        if !self.stale_files(vault, |name| name.ends_with(".log"))?.is_empty() {
            // The log is in new files once no memtable needs the old ones.
            for family in self.families() {
                match self.flush(&family) {
                    Err(StorageError::NoFamily(_)) => {}
                    flushed => flushed?,
                }
            }
        }
        // RocksDB's log for people of earlier openings: keys are in it, and nothing writes it again.
        for path in self.stale_files(vault, |name| name.starts_with("LOG.old."))? {
            match std::fs::remove_file(&path) {
                // RocksDB keeps a few and removes the others.
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                removed => removed.map_err(|source| file_error(&path, source))?,
            }
        }
        let mut tried = BTreeSet::new();
        while let Some(table) = self.next_stale(vault, &tried)? {
            match self.rewrite_table(&table, admit) {
                // Dropped meanwhile, with its tables.
                Err(StorageError::NoFamily(_)) => {}
                rewritten => rewritten?,
            }
            tried.insert(table.name);
        }
        Ok(())
    }

    /// Compacts the first key of a table: RocksDB takes whole tables, so this one goes, with those
    /// that overlap it on the next level, and of the levels below no more than one table each.
    /// Where it does not go, since its first key is of a range of deletions, it is compacted whole,
    /// slice by slice.
    fn rewrite_table(
        &self,
        table: &LiveFile,
        admit: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let (Some(first), Some(last)) = (&table.start_key, &table.end_key) else { return Ok(()) };
        let family = &table.column_family_name;
        let mut options = CompactOptions::default();
        // Others go on meanwhile.
        options.set_exclusive_manual_compaction(false);
        // Also those of the last level, of which nothing would be dropped; but for those that this
        // compaction has written there.
        options.set_bottommost_level_compaction(BottommostLevelCompaction::ForceOptimized);
        let mut stretches = vec![(first.clone(), self.bytes_with_overlapping(table)?)];
        stretches.extend(self.slices(family, first, &[last.as_slice(), &[0]].concat())?);
        let mut from = first.clone();
        for (until, bytes) in stretches {
            if admit(bytes).is_break() {
                return Err(StorageError::cancelled("the rewriting of files was ended"));
            }
            let handle = self.family(family)?;
            self.db.compact_range_cf_opt(&handle, Some(&from), Some(&until), &options);
            if self.db.live_files()?.iter().all(|live| live.name != table.name) {
                break;
            }
            from = until;
        }
        Ok(())
    }

    /// The bytes of a table and of those that are compacted with it: they overlap it on its own
    /// level or on the next level with any.
    fn bytes_with_overlapping(&self, table: &LiveFile) -> Result<u64, StorageError> {
        let mut others = self.db.live_files()?;
        others.retain(|other| other.column_family_name == table.column_family_name);
        let below = others.iter().map(|other| other.level).filter(|level| *level > table.level);
        let below = below.min();
        others.retain(|other| {
            let is_near = other.level == table.level || Some(other.level) == below;
            is_near && other.start_key <= table.end_key && other.end_key >= table.start_key
        });
        Ok(others.iter().map(|other| other.size as u64).sum())
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
                looked => looked.map_err(|source| file_error(&path, source))?,
            };
            if is_stale && !tried.contains(&table.name) {
                return Ok(Some(table));
            }
        }
        Ok(None)
    }

    /// The files with such names that are not encrypted as new ones are.
    fn stale_files(
        &self,
        vault: &Vault,
        is_wanted: impl Fn(&str) -> bool,
    ) -> Result<Vec<PathBuf>, StorageError> {
        let failed = |source| file_error(&self.path, source);
        let mut stale = Vec::new();
        for entry in std::fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if !entry.file_name().to_str().is_some_and(&is_wanted) {
                continue;
            }
            match vault.is_stale(&entry.path()) {
                Ok(true) => stale.push(entry.path()),
                Ok(false) => {}
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(file_error(&entry.path(), error)),
            }
        }
        Ok(stale)
    }
}

fn file_error(path: &Path, source: std::io::Error) -> StorageError {
    StorageError::File { path: path.display().to_string(), source }
}
