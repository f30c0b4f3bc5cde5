//! Batches that this node held of an epoch beyond the base of the next one, kept for operators in
//! files of its data folder: `orphans/shard-<id>-epoch-<epoch>-base-<sequence>-<number>.orphans`.
//!
//! A file is `meridian orphans 1\n` and then records: length (4 bytes, little-endian) ‖ crc32c (4)
//! ‖ payload, of which the length and the checksum are. The first byte of a payload says what
//! follows:
//!
//! | kind | what follows | how many |
//! |---|---|---|
//! | 1 | the [`OrphanHeader`] | one, first |
//! | 2 | a `meridian.admin.v1.OrphanBatch` | one a batch |
//! | 3 | the [`OrphanSummary`] | one, last |
//!
//! Invariant: a file under its name is complete and fsynced, and is never written again. A file
//! that a crash cut short has another name, is ignored, and is overwritten by the next try.
//! Absent on purpose: deleting a file, which is an operator's business; tokio (all of this blocks).

mod reader;
mod rewriting;
mod writer;

#[cfg(test)]
pub(crate) mod tests;

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use meridian_directory::FailoverReport;
use meridian_placement::{Kept, shown};
use meridian_proto::admin as wire;
use meridian_proto::directory;
use meridian_storage::StorageError;
use meridian_types::{Epoch, Position, ShardId};
use meridian_vault::{Folder, REWRITTEN};
use tonic::Status;

pub(crate) use reader::OrphanReader;
pub(crate) use rewriting::OrphanRewriter;
pub(crate) use writer::OrphanWriter;

const MAGIC: &[u8] = b"meridian orphans 1\n";
const HEADER: u8 = 1;
const BATCH: u8 = 2;
const END: u8 = 3;
/// Length and checksum.
const RECORD_HEAD: usize = 8;

/// Whose batches a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrphanHeader {
    pub(crate) shard: ShardId,
    /// The epoch whose history the batches are not in.
    pub(crate) epoch: Epoch,
    /// Where that history left theirs.
    pub(crate) base: Position,
}

/// Counts of the batches of a file, and which are missing from it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct OrphanSummary {
    pub(crate) batches: u64,
    pub(crate) transactions: u64,
    /// Of the transactions, those in batches that are known to have been committed.
    pub(crate) committed_transactions: u64,
    /// The leader's time of the first and the last batch, milliseconds since the Unix epoch.
    pub(crate) first_time_ms: u64,
    pub(crate) last_time_ms: u64,
    /// Of the encoded batches.
    pub(crate) bytes: u64,
    /// The first and the last batch that this node had beyond the base, and its log did not any
    /// more; 0: none.
    pub(crate) missing_from: u64,
    pub(crate) missing_through: u64,
    /// Transactions of the shard since it was made, up to the last that `epoch` cut off and that is
    /// known to have been committed. It counts also what is missing. 0: not known.
    pub(crate) committed_total: u64,
}

/// A file as [`list`] finds it.
#[derive(Debug)]
pub(crate) struct StoredOrphans {
    pub(crate) name: OrphanName,
    /// An error for a file that cannot be read.
    pub(crate) content: Result<(OrphanHeader, OrphanSummary), StorageError>,
}

/// The name of a file: all of its header but the base's epoch, which follows from the rest, and a
/// number from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct OrphanName {
    pub(crate) shard: ShardId,
    pub(crate) epoch: Epoch,
    pub(crate) base_sequence: u64,
    number: u32,
}

impl OrphanName {
    fn new(header: &OrphanHeader, number: u32) -> Self {
        Self {
            shard: header.shard,
            epoch: header.epoch,
            base_sequence: header.base.sequence,
            number,
        }
    }

    /// `None` for every other text, so that no path gets through.
    fn parse(text: &str) -> Option<Self> {
        let rest = text.strip_prefix("shard-")?.strip_suffix(".orphans")?;
        let (shard, rest) = rest.split_once("-epoch-")?;
        let (epoch, rest) = rest.split_once("-base-")?;
        let (base, number) = rest.split_once('-')?;
        let name = Self {
            shard: ShardId(shard.parse().ok()?),
            epoch: Epoch(epoch.parse().ok()?),
            base_sequence: base.parse().ok()?,
            number: number.parse().ok()?,
        };
        // Only as it would be written: no leading zeros, no signs.
        (name.to_string() == text).then_some(name)
    }

    fn is_of(&self, header: &OrphanHeader) -> bool {
        *self == Self::new(header, self.number)
    }
}

impl std::fmt::Display for OrphanName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { shard, epoch, base_sequence, number } = self;
        write!(f, "shard-{shard}-epoch-{epoch}-base-{base_sequence}-{number}.orphans")
    }
}

/// Behind the name of a file, but for its number, while it is written.
const PARTIAL: &str = ".partial";

/// Whether a file has such a name while it is written, or written again.
fn is_temporary(name: &str) -> bool {
    let rewritten = name.strip_suffix(REWRITTEN).and_then(OrphanName::parse);
    let written = name.strip_suffix(PARTIAL);
    let written = written.and_then(|name| OrphanName::parse(&format!("{name}-1.orphans")));
    rewritten.or(written).is_some()
}

/// Whether this module makes files of such a name in the folder. An operator's are beside
/// them: exports, packed copies.
pub(crate) fn is_ours(name: &str) -> bool {
    OrphanName::parse(name).is_some() || is_temporary(name)
}

/// All complete files of a node, by shard, epoch, base and number. None if there is no folder.
///
/// # Errors
/// When the folder cannot be read. The error of a single file is beside its name.
pub(crate) fn list(data_dir: &Folder) -> Result<Vec<StoredOrphans>, StorageError> {
    let folder = folder(data_dir);
    let stored = |name: OrphanName| {
        let content = OrphanReader::open(data_dir, name).and_then(OrphanReader::summarize);
        StoredOrphans { name, content }
    };
    Ok(names(&folder)?.into_iter().map(stored).collect())
}

/// The batches of one file, in order. The last item is an error if the file is damaged.
///
/// # Errors
/// [`StorageError::Invalid`] when `name` is not that of such a file, [`StorageError::File`] when
/// there is none.
pub(crate) fn read(data_dir: &Folder, name: &str) -> Result<OrphanReader, StorageError> {
    let refused =
        || StorageError::Invalid(format!("`{name}` is not the name of a file of orphans"));
    let name = OrphanName::parse(name).ok_or_else(refused)?;
    OrphanReader::open(data_dir, name)
}

/// Whether a file of this header has what another of `lacking` does not, and reaches as far.
///
/// # Errors
/// When the folder cannot be read.
pub(crate) fn is_kept(
    data_dir: &Folder,
    header: &OrphanHeader,
    lacking: &OrphanSummary,
) -> Result<bool, StorageError> {
    let has_it = |stored: &StoredOrphans| {
        let content = stored.content.as_ref();
        content.is_ok_and(|(_, summary)| summary.kept().has_what_lacks(&lacking.kept()))
    };
    Ok(list(data_dir)?.iter().any(|stored| stored.name.is_of(header) && has_it(stored)))
}

/// The summaries of a node's files. Each file is read once: none is ever written again.
#[derive(Default)]
pub(crate) struct KnownOrphans {
    files: BTreeMap<OrphanName, Result<OrphanSummary, StorageError>>,
}

impl KnownOrphans {
    /// Looks for new files.
    ///
    /// # Errors
    /// When the folder cannot be read; nothing has changed. The error of a single file is logged.
    pub(crate) fn refresh(&mut self, data_dir: &Folder) -> Result<(), StorageError> {
        let folder = folder(data_dir);
        let names = names(&folder)?;
        // A damaged file stays that; a disk that does not answer may the next time.
        let stays = |content: &Result<_, _>| {
            matches!(content, Ok(_) | Err(StorageError::Corruption { .. }))
        };
        self.files.retain(|name, content| stays(content) && names.binary_search(name).is_ok());
        for name in names {
            self.files.entry(name).or_insert_with(|| {
                let opened = OrphanReader::open(data_dir, name);
                let content = opened.and_then(OrphanReader::summarize).map(|(_, summary)| summary);
                content.inspect_err(|error| {
                    tracing::error!(%error, "a file of orphans cannot be read: what its failover lost stays a bound");
                })
            });
        }
        Ok(())
    }

    /// How much this node held beyond the base of `report`. `None` while that cannot be counted,
    /// or a file not be read.
    pub(crate) fn shown(
        &self,
        shard: ShardId,
        report: &FailoverReport,
    ) -> Option<directory::Orphans> {
        let name = |base_sequence, number| OrphanName {
            shard,
            epoch: report.epoch,
            base_sequence,
            number,
        };
        let files = self.files.range(name(0, 0)..=name(u64::MAX, u32::MAX));
        let kept = files.map(|(_, content)| content.as_ref().ok().map(OrphanSummary::kept));
        let shown = shown(report, kept.collect::<Option<Vec<_>>>()?)?;
        Some(directory::Orphans {
            shard: shard.0,
            epoch: report.epoch.0.into(),
            transactions: shown.transactions,
            at_most: shown.at_most,
            last_time_ms: shown.last_time_ms,
        })
    }
}

/// [`list`] for operators. A file that cannot be read is in it without counts; [`read_orphans`]
/// says why.
pub(crate) fn list_orphans(data_dir: &Folder) -> Result<wire::ListOrphansResponse, Status> {
    let file = |stored: StoredOrphans| {
        let summary = stored.content.map(|(_, summary)| summary).unwrap_or_else(|error| {
            tracing::error!(%error, "a file of orphans cannot be read");
            OrphanSummary::default()
        });
        wire::OrphanFile {
            name: stored.name.to_string(),
            shard: stored.name.shard.0,
            epoch: stored.name.epoch.0.into(),
            base_sequence: stored.name.base_sequence,
            batches: summary.batches,
            transactions: summary.transactions,
            first_time_ms: summary.first_time_ms,
            last_time_ms: summary.last_time_ms,
            bytes: summary.bytes,
            missing_from: summary.missing_from,
            missing_through: summary.missing_through,
        }
    };
    let files = list(data_dir).map_err(|error| status(&error))?;
    Ok(wire::ListOrphansResponse { files: files.into_iter().map(file).collect() })
}

/// [`read`] for operators. Every step reads from the disk.
pub(crate) fn read_orphans(
    data_dir: &Folder,
    name: &str,
) -> Result<impl Iterator<Item = Result<wire::OrphanBatch, Status>> + Send + 'static, Status> {
    let reader = read(data_dir, name).map_err(|error| status(&error))?;
    Ok(reader.map(|batch| batch.map_err(|error| status(&error))))
}

/// Removes what crashes left of files that were being written, or written again: whole copies,
/// which may be in the clear. To be called before this process writes the first, and not before it
/// has the data folder's lock: else they may be those of another process.
pub(crate) fn remove_leftovers(data_dir: &Folder) {
    if let Err(error) = writer::remove_leftovers(&folder(data_dir), None) {
        tracing::warn!(%error, "temporary files may be left behind");
    }
}

fn status(error: &StorageError) -> Status {
    match error {
        StorageError::Invalid(_) => Status::invalid_argument(error.to_string()),
        StorageError::File { source, .. } if source.kind() == ErrorKind::NotFound => {
            Status::not_found(error.to_string())
        }
        StorageError::Corruption { .. } => Status::data_loss(error.to_string()),
        _ => Status::internal(error.to_string()),
    }
}

fn folder(data_dir: &Path) -> PathBuf {
    data_dir.join("orphans")
}

/// Of the complete files, sorted.
fn names(folder: &Path) -> Result<Vec<OrphanName>, StorageError> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|source| file_error(folder, source))?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| file_error(folder, source))?;
        names.extend(entry.file_name().to_str().and_then(OrphanName::parse));
    }
    names.sort_unstable();
    Ok(names)
}

fn file_error(path: &Path, source: std::io::Error) -> StorageError {
    if source.kind() == ErrorKind::InvalidData {
        // Of an encrypted file: it is not as it was written.
        return corruption(path, source);
    }
    StorageError::File { path: path.display().to_string(), source }
}

fn corruption(path: &Path, detail: impl ToString) -> StorageError {
    StorageError::Corruption { what: path.display().to_string(), detail: detail.to_string() }
}

impl OrphanHeader {
    fn encode(&self) -> Vec<u8> {
        let Self { shard, epoch, base } = self;
        let mut bytes = shard.0.to_le_bytes().to_vec();
        bytes.extend(epoch.0.to_le_bytes());
        bytes.extend(base.epoch.0.to_le_bytes());
        bytes.extend(base.sequence.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let (shard, rest) = bytes.split_first_chunk()?;
        let (epoch, rest) = rest.split_first_chunk()?;
        let (base_epoch, rest) = rest.split_first_chunk()?;
        let base = Position::new(
            Epoch(u16::from_le_bytes(*base_epoch)),
            u64::from_le_bytes(rest.try_into().ok()?),
        );
        Some(Self {
            shard: ShardId(u32::from_le_bytes(*shard)),
            epoch: Epoch(u16::from_le_bytes(*epoch)),
            base,
        })
    }
}

impl OrphanSummary {
    /// As it is written, and as it was before it said what is missing.
    const LENGTHS: [usize; 2] = [72, 48];

    fn encode(&self) -> Vec<u8> {
        let Self {
            batches,
            transactions,
            committed_transactions,
            first_time_ms,
            last_time_ms,
            bytes,
            ..
        } = self;
        let Self { missing_from, missing_through, committed_total, .. } = self;
        let counted =
            [batches, transactions, committed_transactions, first_time_ms, last_time_ms, bytes];
        let fields = counted.into_iter().chain([missing_from, missing_through, committed_total]);
        fields.flat_map(|field| field.to_le_bytes()).collect()
    }

    fn decode(encoded: &[u8]) -> Option<Self> {
        if !Self::LENGTHS.contains(&encoded.len()) {
            return None;
        }
        let mut fields = encoded.as_chunks::<8>().0.iter().map(|field| u64::from_le_bytes(*field));
        let mut next = || fields.next().unwrap_or(0);
        Some(Self {
            batches: next(),
            transactions: next(),
            committed_transactions: next(),
            first_time_ms: next(),
            last_time_ms: next(),
            bytes: next(),
            missing_from: next(),
            missing_through: next(),
            committed_total: next(),
        })
    }

    /// Whether it is of a file with the batches that `read` counts.
    fn is_of(&self, read: &Self) -> bool {
        // Without batches, the times are those of what is missing.
        let times = if read.batches == 0 { self } else { read };
        let Self { missing_from, missing_through, committed_total, .. } = *self;
        let Self { first_time_ms, last_time_ms, .. } = *times;
        *self
            == Self {
                first_time_ms,
                last_time_ms,
                missing_from,
                missing_through,
                committed_total,
                ..*read
            }
    }

    fn kept(&self) -> Kept {
        Kept {
            transactions: self.transactions,
            committed_transactions: self.committed_transactions,
            last_time_ms: self.last_time_ms,
            missing_through: self.missing_through,
            committed_total: self.committed_total,
        }
    }

    /// With one more batch behind.
    fn add(&mut self, transactions: u64, time_ms: u64, bytes: usize, committed: bool) {
        if self.batches == 0 {
            self.first_time_ms = time_ms;
        }
        self.batches += 1;
        self.transactions += transactions;
        self.committed_transactions += if committed { transactions } else { 0 };
        self.last_time_ms = time_ms;
        self.bytes += bytes as u64;
    }
}
