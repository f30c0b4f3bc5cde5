//! Reading a group's log by sequences. Raft numbers entries by index; the entries that are no
//! batches set the two apart.

use meridian_proto::batch_header;
use meridian_storage::{GroupId, StorageError, StoredBatch};
use openraft::EntryPayload;

use super::RaftGroup;
use crate::type_config::Entry;

/// The first batch of the log, as it was found last.
#[derive(Debug, Clone, Copy)]
pub(super) struct FirstBatch {
    /// The first index of the log then.
    log_begins_at: u64,
    sequence: u64,
}

/// Reading the log. It goes on after [`RaftGroup::shutdown`], while the group is not forgotten.
impl RaftGroup {
    /// Committed batches from `sequence` on, in order, up to about `max_bytes`. Empty if there
    /// is none yet.
    ///
    /// # Errors
    /// [`ReadLogFailure::Purged`] if the log begins behind `sequence`.
    pub fn committed_batches(
        &self,
        sequence: u64,
        max_bytes: usize,
    ) -> Result<Vec<StoredBatch>, ReadLogFailure> {
        // Not from the state: it goes on to later epochs, and this log may be read for longer.
        let Some(applied) = self.machine.last_applied() else { return Ok(Vec::new()) };
        if sequence > applied.sequence {
            return Ok(Vec::new());
        }
        let start = self.index_of(sequence)?.ok_or(ReadLogFailure::Purged)?;
        let mut batches = Vec::new();
        let mut next = start;
        // One read may return fewer than there are: go on until there is a batch.
        while batches.is_empty() && next <= applied.index {
            let entries = self
                .log
                .read(next, applied.index + 1, max_bytes)
                .map_err(|error| read_error(&error))?;
            let (Some(first), Some(last)) = (entries.first(), entries.last()) else {
                return Err(ReadLogFailure::Purged);
            };
            // Purged since it was looked up.
            if first.log_id.index != next {
                return Err(ReadLogFailure::Purged);
            }
            next = last.log_id.index + 1;
            for entry in entries {
                if let EntryPayload::Normal(batch) = entry.payload {
                    let sequence = sequence + batches.len() as u64;
                    batches.push(StoredBatch { sequence, bytes: batch.bytes });
                }
            }
        }
        Ok(batches)
    }

    /// The first batch that is still in the log; `None` if none is.
    pub fn first_sequence(&self) -> Result<Option<u64>, StorageError> {
        let bounds = self.log.bounds();
        if let Some(known) = *self.first_batch.lock()
            && known.log_begins_at == bounds.first
        {
            return Ok(Some(known.sequence));
        }
        for index in bounds.first..bounds.end {
            if let Some(sequence) = self.sequence_at(index)? {
                let found = FirstBatch { log_begins_at: bounds.first, sequence };
                *self.first_batch.lock() = Some(found);
                return Ok(Some(sequence));
            }
        }
        Ok(None)
    }

    /// The index of the batch at `sequence`; `None` if it was purged or is not there yet.
    pub(super) fn index_of(&self, sequence: u64) -> Result<Option<u64>, StorageError> {
        let Some(applied) = self.machine.last_applied() else { return Ok(None) };
        let Some(behind) = applied.sequence.checked_sub(sequence) else { return Ok(None) };
        let first = self.log.bounds().first;
        let Some(newest) = applied.index.checked_sub(behind) else { return Ok(None) };
        match seek(first, newest, sequence, |index| self.sequence_at(index))? {
            Sought::At(index) => Ok(Some(index)),
            Sought::Purged | Sought::Ahead => Ok(None),
        }
    }

    fn sequence_at(&self, index: u64) -> Result<Option<u64>, StorageError> {
        let entries = self.log.read(index, index + 1, 0).map_err(|error| read_error(&error))?;
        entries.first().map_or(Ok(None), |entry| sequence_of(self.id, entry))
    }
}

/// Where a batch was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sought {
    At(u64),
    /// The log begins behind it.
    Purged,
    /// It is not there yet.
    Ahead,
}

/// Looks for the batch at `sequence` among the indexes from `first` to `newest`.
///
/// Indexes run ahead of sequences by the entries that are no batches, of which there are few (one
/// for each leader and membership), so the search begins at the newest index that is possible and
/// goes down.
pub(crate) fn seek(
    first: u64,
    newest: u64,
    sequence: u64,
    sequence_at: impl Fn(u64) -> Result<Option<u64>, StorageError>,
) -> Result<Sought, StorageError> {
    let mut index = newest;
    while index >= first {
        let down = match sequence_at(index)? {
            Some(found) if found == sequence => return Ok(Sought::At(index)),
            Some(found) if found < sequence => return Ok(Sought::Ahead),
            // Skip as many as the sequences say at once.
            Some(found) => found - sequence,
            None => 1,
        };
        let Some(lower) = index.checked_sub(down) else { break };
        index = lower;
    }
    Ok(Sought::Purged)
}

/// The sequence of an entry that is a batch.
pub(crate) fn sequence_of(group: GroupId, entry: &Entry) -> Result<Option<u64>, StorageError> {
    let EntryPayload::Normal(batch) = &entry.payload else { return Ok(None) };
    let header = batch_header(&batch.bytes).map_err(|error| StorageError::Corruption {
        what: format!("log entry {} of {group}", entry.log_id.index),
        detail: error.to_string(),
    })?;
    Ok(Some(header.0.sequence))
}

/// Why committed batches cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadLogFailure {
    #[error("the log begins behind that sequence")]
    Purged,
    #[error(transparent)]
    Storage(#[from] StorageError),
}

fn read_error(error: &std::io::Error) -> StorageError {
    StorageError::Corruption { what: "a raft log".to_owned(), detail: error.to_string() }
}

impl From<std::io::Error> for ReadLogFailure {
    fn from(error: std::io::Error) -> Self {
        Self::Storage(read_error(&error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_is_found_between_entries_that_are_none() {
        // Index 0 was purged; leaders and memberships have no sequence.
        let log = [None, None, Some(6), Some(7), None, None, Some(8), Some(9), None];
        let look = |sequence| {
            seek(1, 8, sequence, |index| Ok(log[usize::try_from(index).unwrap()])).unwrap()
        };
        let found = [6, 7, 8, 9].map(look);
        assert_eq!(found, [Sought::At(2), Sought::At(3), Sought::At(6), Sought::At(7)]);
        assert_eq!((look(5), look(1), look(10)), (Sought::Purged, Sought::Purged, Sought::Ahead));
        assert_eq!(seek(1, 0, 5, |_| unreachable!()).unwrap(), Sought::Purged);
    }
}
