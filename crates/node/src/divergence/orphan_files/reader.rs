//! Reads one orphan file, batch by batch.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use meridian_proto::admin as wire;
use meridian_storage::StorageError;
use meridian_vault::{FileReader, Folder};
use prost::Message;

use super::{
    BATCH, END, HEADER, MAGIC, OrphanHeader, OrphanName, OrphanSummary, RECORD_HEAD, corruption,
    file_error, folder,
};

/// The batches of one file, in order. After an error come no more.
#[derive(Debug)]
pub(crate) struct OrphanReader {
    path: PathBuf,
    file: FileReader,
    /// Bytes of the file that were not read yet.
    left: u64,
    header: OrphanHeader,
    /// The summary of the batches read so far, to be compared with the file's last record.
    read: OrphanSummary,
    ended: bool,
}

impl OrphanReader {
    /// # Errors
    /// [`StorageError::File`]; [`StorageError::Corruption`] when the file does not begin as it
    /// must.
    pub(super) fn open(data_dir: &Folder, name: OrphanName) -> Result<Self, StorageError> {
        let path = folder(data_dir).join(name.to_string());
        let file = data_dir.read(&path).map_err(|source| file_error(&path, source))?;
        let left = file.content_bytes();
        let none = OrphanHeader {
            shard: name.shard,
            epoch: name.epoch,
            base: meridian_types::Position::ZERO,
        };
        let read = OrphanSummary::default();
        let mut reader = Self { path, file, left, header: none, read, ended: false };
        if reader.read_bytes(MAGIC.len())? != MAGIC {
            return Err(corruption(
                &reader.path,
                "it does not begin as a file of orphans of this version",
            ));
        }
        let header = match reader.record()?.split_first() {
            Some((&HEADER, body)) => OrphanHeader::decode(body),
            _ => None,
        };
        match header {
            Some(header) if name.is_of(&header) => reader.header = header,
            Some(_) => return Err(corruption(&reader.path, "it was written under another name")),
            None => return Err(corruption(&reader.path, "it has no header")),
        }
        Ok(reader)
    }

    /// The header and, from the end of the file, the summary. Does not look at the batches.
    pub(super) fn summarize(mut self) -> Result<(OrphanHeader, OrphanSummary), StorageError> {
        let left = self.left;
        for length in OrphanSummary::LENGTHS {
            self.left = left.min((RECORD_HEAD + 1 + length) as u64);
            let behind = i64::try_from(self.left).map_or(0, |length| -length);
            self.file
                .seek(SeekFrom::End(behind))
                .map_err(|source| file_error(&self.path, source))?;
            match self.record() {
                Ok(payload) => {
                    if let Some((&END, body)) = payload.split_first()
                        && body.len() == length
                        && let Some(summary) = OrphanSummary::decode(body)
                    {
                        return Ok((self.header, summary));
                    }
                }
                // Not where a record begins.
                Err(StorageError::Corruption { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Err(corruption(&self.path, "it does not end with its last record"))
    }

    fn step(&mut self) -> Result<Option<wire::OrphanBatch>, StorageError> {
        let record = self.record()?;
        match record.split_first() {
            Some((&BATCH, body)) => {
                let stored = wire::OrphanBatch::decode(body)
                    .map_err(|error| corruption(&self.path, error))?;
                let batch = meridian_proto::decode_batch(stored.batch.clone());
                let batch = batch.map_err(|error| corruption(&self.path, error))?;
                let transactions = batch.transactions.len() as u64;
                self.read.add(transactions, batch.time_ms, stored.batch.len(), stored.committed);
                Ok(Some(stored))
            }
            Some((&END, body))
                if self.left == 0
                    && OrphanSummary::decode(body).is_some_and(|end| end.is_of(&self.read)) =>
            {
                Ok(None)
            }
            Some((&END, _)) => {
                Err(corruption(&self.path, "it does not hold what its last record says"))
            }
            _ => Err(corruption(&self.path, "a record is of no known kind")),
        }
    }

    /// The payload of the next record.
    fn record(&mut self) -> Result<Vec<u8>, StorageError> {
        let head = self.read_bytes(RECORD_HEAD)?;
        let (length, checksum) = match head.as_chunks::<4>() {
            ([length, checksum], _) => (u32::from_le_bytes(*length), u32::from_le_bytes(*checksum)),
            _ => (0, 0),
        };
        let payload = self.read_bytes(usize::try_from(length).unwrap_or(usize::MAX))?;
        if crc32c::crc32c(&payload) != checksum {
            return Err(corruption(&self.path, "the checksum of a record does not match"));
        }
        Ok(payload)
    }

    fn read_bytes(&mut self, length: usize) -> Result<Vec<u8>, StorageError> {
        // Before memory is taken for a length that damage made up.
        self.left = match self.left.checked_sub(length as u64) {
            Some(left) => left,
            None => return Err(corruption(&self.path, "it is cut short")),
        };
        let mut bytes = vec![0; length];
        self.file.read_exact(&mut bytes).map_err(|source| file_error(&self.path, source))?;
        Ok(bytes)
    }
}

impl Iterator for OrphanReader {
    type Item = Result<wire::OrphanBatch, StorageError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let step = self.step();
        self.ended = !matches!(step, Ok(Some(_)));
        step.transpose()
    }
}
