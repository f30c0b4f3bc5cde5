//! Writes one orphan file, which is there complete or not at all.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use meridian_proto::admin as wire;
use meridian_storage::StorageError;
use meridian_types::{Epoch, Position, ShardId};
use meridian_vault::{FileWriter, Folder, Vault};
use parking_lot::Mutex;
use prost::Message;

use super::{
    BATCH, END, HEADER, MAGIC, OrphanHeader, OrphanName, OrphanSummary, PARTIAL, corruption,
    file_error, folder, is_kept, is_temporary, names,
};

/// Writes one file. Dropped before [`OrphanWriter::finish`], it leaves nothing.
#[derive(Debug)]
pub(crate) struct OrphanWriter {
    header: OrphanHeader,
    summary: OrphanSummary,
    data_dir: Folder,
    /// Under its temporary name.
    file: FileWriter,
    partial: Partial,
}

impl OrphanWriter {
    /// Begins a file for batches that are not in the history of `epoch`, which left theirs at
    /// `base`. Unless [`OrphanWriter::finish`] is called, no file comes of it.
    ///
    /// # Errors
    /// [`StorageError::File`], and [`StorageError::Busy`] while another writer in this process is
    /// at the same.
    pub(crate) fn create(
        data_dir: &Folder,
        shard: ShardId,
        epoch: Epoch,
        base: Position,
    ) -> Result<Self, StorageError> {
        let header = OrphanHeader { shard, epoch, base };
        let folder = folder(data_dir);
        fs::create_dir_all(&folder).map_err(|source| file_error(&folder, source))?;
        sync_folder(data_dir)?;
        let partial = Partial::claim(
            folder.join(format!("shard-{shard}-epoch-{epoch}-base-{}{PARTIAL}", base.sequence)),
        )?;
        let file = data_dir.create(&partial.0).map_err(|source| file_error(&partial.0, source))?;
        let (summary, data_dir) = (OrphanSummary::default(), data_dir.clone());
        let mut writer = Self { header, summary, data_dir, file, partial };
        writer.write(MAGIC)?;
        writer.record(HEADER, &header.encode())?;
        Ok(writer)
    }

    /// Adds a stored `meridian.log.v1.Batch`, behind the ones before. `committed`: known to have
    /// been. How many transactions it has.
    ///
    /// # Errors
    /// [`StorageError::File`], or [`StorageError::Corruption`] when `batch` is not one. The writer
    /// is of no use then.
    pub(crate) fn push(&mut self, batch: &[u8], committed: bool) -> Result<u64, StorageError> {
        let batch = Bytes::copy_from_slice(batch);
        let decoded = meridian_proto::decode_batch(batch.clone());
        let decoded = decoded.map_err(|error| corruption(&self.partial.0, error))?;
        let transactions = decoded.transactions.len() as u64;
        self.summary.add(transactions, decoded.time_ms, batch.len(), committed);
        self.record(BATCH, &wire::OrphanBatch { batch, committed }.encode_to_vec())?;
        Ok(transactions)
    }

    /// Says up to where it reaches: see [`OrphanSummary::committed_total`].
    pub(crate) fn set_committed_total(&mut self, transactions: u64) {
        self.summary.committed_total = transactions;
    }

    /// Says what this node had beyond the base, and its log did not any more: batches from one
    /// through another, the last of them made at `time_ms`, if that is known. Not when another file
    /// has them.
    ///
    /// # Errors
    /// When the other files cannot be read.
    pub(crate) fn set_missing(
        &mut self,
        from: u64,
        through: u64,
        time_ms: u64,
    ) -> Result<(), StorageError> {
        let lacking =
            OrphanSummary { missing_from: from, missing_through: through, ..self.summary };
        if is_kept(&self.data_dir, &self.header, &lacking)? {
            return Ok(());
        }
        self.summary = lacking;
        if self.summary.batches == 0 {
            (self.summary.first_time_ms, self.summary.last_time_ms) = (time_ms, time_ms);
        }
        Ok(())
    }

    /// Makes the file durable under a name that no other has, and says what is in it. If nothing
    /// was added, nor is missing, there is no file; if a file with the same content is there
    /// already, no second one.
    ///
    /// # Errors
    /// [`StorageError::File`]. The orphans are not kept then.
    pub(crate) fn finish(mut self) -> Result<OrphanSummary, StorageError> {
        let summary = self.summary;
        if summary.batches == 0 && summary.missing_through == 0 {
            return Ok(summary);
        }
        self.record(END, &summary.encode())?;
        let Self { header, data_dir, file, partial, .. } = self;
        let (folder, partial) = (folder(&data_dir), &partial.0);
        file.finish().map_err(|source| file_error(partial, source))?;
        let mut number = Some(1);
        for name in names(&folder)?.into_iter().filter(|name| name.is_of(&header)) {
            if same_content(&data_dir, &folder.join(name.to_string()), partial)? {
                // Its name may not be durable yet: a crash came before.
                sync_folder(&folder)?;
                return Ok(summary);
            }
            number = name.number.checked_add(1);
        }
        let number =
            number.ok_or_else(|| corruption(&folder, "the numbers of files are used up"))?;
        let name = OrphanName::new(&header, number).to_string();
        let path = folder.join(&name);
        fs::rename(partial, &path).map_err(|source| file_error(&path, source))?;
        sync_folder(&folder)?;
        tracing::warn!(
            file = name,
            batches = summary.batches,
            transactions = summary.transactions,
            committed_transactions = summary.committed_transactions,
            "batches that are not in the history of the shard were kept in a file of orphans"
        );
        if summary.missing_through > 0 {
            tracing::warn!(
                file = name,
                from = summary.missing_from,
                through = summary.missing_through,
                "batches that are not in the history of the shard are lost here: the log was purged of them"
            );
        }
        Ok(summary)
    }

    fn record(&mut self, kind: u8, body: &[u8]) -> Result<(), StorageError> {
        let payload = [&[kind], body].concat();
        let too_long = |_| corruption(&self.partial.0, "a record is longer than 4 GiB");
        let length = u32::try_from(payload.len()).map_err(too_long)?;
        self.write(&length.to_le_bytes())?;
        self.write(&crc32c::crc32c(&payload).to_le_bytes())?;
        self.write(&payload)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), StorageError> {
        self.file.write_all(bytes).map_err(|source| file_error(&self.partial.0, source))
    }
}

/// A temporary name, held by one writer of this process. No other process opens the data folder.
/// The file goes with it, unless it was renamed.
#[derive(Debug)]
struct Partial(PathBuf);

/// Temporary names that are held.
static CLAIMED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

impl Partial {
    fn claim(path: PathBuf) -> Result<Self, StorageError> {
        if CLAIMED.lock().insert(path.clone()) {
            return Ok(Self(path));
        }
        Err(StorageError::Busy(path.display().to_string()))
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!(path = %self.0.display(), %error, "a temporary file is left behind");
            }
            _ => {}
        }
        CLAIMED.lock().remove(&self.0);
    }
}

/// Removes files under temporary names that no writer has; with a vault, those alone that are not
/// encrypted as new ones are.
pub(super) fn remove_leftovers(folder: &Path, vault: Option<&Vault>) -> Result<(), StorageError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(|source| file_error(folder, source))?,
    };
    for entry in entries {
        let entry = entry.map_err(|source| file_error(folder, source))?;
        let path = entry.path();
        let is_temporary = entry.file_name().to_str().is_some_and(is_temporary);
        let is_stale = |vault: &Vault| vault.is_stale(&path).unwrap_or(false);
        if is_temporary && vault.is_none_or(is_stale) {
            // It goes with the claim.
            drop(Partial::claim(path));
        }
    }
    Ok(())
}

fn same_content(data_dir: &Folder, one: &Path, other: &Path) -> Result<bool, StorageError> {
    let open = |path: &Path| {
        data_dir.read(path).map(BufReader::new).map_err(|source| file_error(path, source))
    };
    let (mut one_file, mut other_file) = (open(one)?, open(other)?);
    loop {
        let one_read = one_file.fill_buf().map_err(|source| file_error(one, source))?;
        let other_read = other_file.fill_buf().map_err(|source| file_error(other, source))?;
        let length = one_read.len().min(other_read.len());
        if length == 0 {
            return Ok(one_read.len() == other_read.len());
        }
        if one_read.get(..length) != other_read.get(..length) {
            return Ok(false);
        }
        one_file.consume(length);
        other_file.consume(length);
    }
}

fn sync_folder(folder: &Path) -> Result<(), StorageError> {
    let sync = File::open(folder).and_then(|folder| folder.sync_all());
    sync.map_err(|source| file_error(folder, source))
}
