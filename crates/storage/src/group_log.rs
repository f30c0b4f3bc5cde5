//! The log of one group on one node: numbered records with checksums, and marks beside them.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;

use bytes::Bytes;

use crate::schema::{self, GroupId, LOG_FAMILY, LogMark, RecordKind};
use crate::{Durability, Engine, Scan, StorageError, WriteBatch, record};

/// The log of one group on one node, as numbered records with checksums. Writes are readable on
/// return and durable after the next sync ([`crate::Syncer`]).
#[derive(Clone)]
pub struct GroupLog {
    engine: Arc<dyn Engine>,
    family: Arc<str>,
    group: GroupId,
    kind: RecordKind,
}

impl GroupLog {
    /// # Errors
    /// When the `log` family cannot be made.
    pub fn open(
        engine: Arc<dyn Engine>,
        group: GroupId,
        kind: RecordKind,
    ) -> Result<Self, StorageError> {
        engine.create_family(LOG_FAMILY)?;
        Ok(Self { engine, family: LOG_FAMILY.into(), group, kind })
    }

    pub fn group(&self) -> GroupId {
        self.group
    }

    pub fn kind(&self) -> RecordKind {
        self.kind
    }

    /// Appends records; what stood at their numbers is replaced.
    pub fn append<'a>(
        &self,
        records: impl IntoIterator<Item = (u64, &'a [u8])>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        for (number, payload) in records {
            batch.put(&self.family, self.key(number), record::encode(payload));
        }
        self.engine.write(batch, Durability::Logged)
    }

    /// Records from `range`, ascending, of at most `max_bytes` together; at least one if there is
    /// one.
    ///
    /// # Errors
    /// Corruption, naming the record.
    pub fn read(
        &self,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        self.read_from(range, false, max_bytes)
    }

    /// As [`GroupLog::read`], of the end of the range.
    ///
    /// # Errors
    /// Corruption, naming the record.
    pub fn read_back(
        &self,
        range: Range<u64>,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let mut records = self.read_from(range, true, max_bytes)?;
        records.reverse();
        Ok(records)
    }

    fn read_from(
        &self,
        range: Range<u64>,
        reverse: bool,
        max_bytes: usize,
    ) -> Result<Vec<(u64, Bytes)>, StorageError> {
        let mut records = Vec::new();
        let mut bytes = 0;
        let (start, end) = (self.key(range.start), self.key(range.end));
        self.scan(&start, &end, reverse, |number, record| {
            bytes += record.len();
            if bytes > max_bytes && !records.is_empty() {
                return ControlFlow::Break(());
            }
            records.push((number, record));
            ControlFlow::Continue(())
        })?;
        records
            .into_iter()
            .map(|(number, record)| Ok((number, self.payload(number, record)?)))
            .collect()
    }

    pub fn get(&self, number: u64) -> Result<Option<Bytes>, StorageError> {
        let record = self.engine.get(&self.family, &self.key(number))?;
        record.map(|record| self.payload(number, record)).transpose()
    }

    pub fn first(&self) -> Result<Option<(u64, Bytes)>, StorageError> {
        self.edge(false)
    }

    pub fn last(&self) -> Result<Option<(u64, Bytes)>, StorageError> {
        self.edge(true)
    }

    /// Deletes the records behind `number`.
    pub fn truncate_after(&self, number: u64) -> Result<(), StorageError> {
        self.delete(number.saturating_add(1)..u64::MAX, None)
    }

    /// Deletes all records.
    pub fn clear(&self) -> Result<(), StorageError> {
        self.delete(0..u64::MAX, None)
    }

    /// Deletes the records up to and including `number`, and keeps `mark` in the same write.
    pub fn purge_through(
        &self,
        number: u64,
        mark: Option<(LogMark, &[u8])>,
    ) -> Result<(), StorageError> {
        self.delete(0..number.saturating_add(1), mark)
    }

    /// Deletes all records, and these marks, and keeps `mark`, in one write: a power
    /// loss may keep a later write and lose the one before it.
    pub fn erase(
        &self,
        marks: &[LogMark],
        mark: Option<(LogMark, &[u8])>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.delete_range(&self.family, self.key(0), self.key(u64::MAX));
        for mark in marks {
            batch.delete(&self.family, self.mark_key(*mark));
        }
        if let Some((mark, payload)) = mark {
            batch.put(&self.family, self.mark_key(mark), record::encode(payload));
        }
        self.engine.write(batch, Durability::Logged)
    }

    /// A small value beside the records, such as a vote.
    pub fn put_mark(&self, mark: LogMark, payload: &[u8]) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        batch.put(&self.family, self.mark_key(mark), record::encode(payload));
        self.engine.write(batch, Durability::Logged)
    }

    pub fn mark(&self, mark: LogMark) -> Result<Option<Bytes>, StorageError> {
        let record = self.engine.get(&self.family, &self.mark_key(mark))?;
        let what = || format!("mark `{mark}` of {}", self.group);
        record.map(|record| record::decode(record, what)).transpose()
    }

    /// See [`Engine::write_out`].
    pub fn write_out(&self) -> Result<(), StorageError> {
        self.engine.write_out()
    }

    /// Makes every write so far durable. Blocks for an fsync: elsewhere [`crate::Syncer`] does it.
    pub fn sync(&self) -> Result<(), StorageError> {
        self.engine.sync()
    }

    fn delete(
        &self,
        range: Range<u64>,
        mark: Option<(LogMark, &[u8])>,
    ) -> Result<(), StorageError> {
        let mut batch = WriteBatch::default();
        if let Some((mark, payload)) = mark {
            batch.put(&self.family, self.mark_key(mark), record::encode(payload));
        }
        batch.delete_range(&self.family, self.key(range.start), self.key(range.end));
        self.engine.write(batch, Durability::Logged)
    }

    fn edge(&self, reverse: bool) -> Result<Option<(u64, Bytes)>, StorageError> {
        let mut found = None;
        self.scan(&self.key(0), &self.key(u64::MAX), reverse, |number, record| {
            found = Some((number, record));
            ControlFlow::Break(())
        })?;
        found.map(|(number, record)| Ok((number, self.payload(number, record)?))).transpose()
    }

    fn scan(
        &self,
        start: &[u8],
        end: &[u8],
        reverse: bool,
        mut visit: impl FnMut(u64, Bytes) -> ControlFlow<()>,
    ) -> Result<(), StorageError> {
        let mut malformed = false;
        self.engine.scan(
            &self.family,
            Scan { start, end, reverse },
            &mut |key, record| match key.last_chunk::<8>() {
                Some(number) => visit(u64::from_be_bytes(*number), Bytes::copy_from_slice(record)),
                None => {
                    malformed = true;
                    ControlFlow::Break(())
                }
            },
        )?;
        if malformed {
            return Err(StorageError::corruption(
                format!("the log of {}", self.group),
                "a key is malformed",
            ));
        }
        Ok(())
    }

    fn payload(&self, number: u64, record: Bytes) -> Result<Bytes, StorageError> {
        record::decode(record, || format!("{:?} record {number} of {}", self.kind, self.group))
    }

    fn key(&self, number: u64) -> Vec<u8> {
        schema::record_key(self.group, self.kind, number)
    }

    fn mark_key(&self, mark: LogMark) -> Vec<u8> {
        schema::mark_key(self.group, mark)
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, ShardId};

    use super::*;
    use crate::MemoryEngine;

    fn log(engine: &Arc<dyn Engine>, shard: u32, kind: RecordKind) -> GroupLog {
        GroupLog::open(Arc::clone(engine), GroupId { shard: ShardId(shard), epoch: Epoch(1) }, kind)
            .unwrap()
    }

    #[test]
    fn groups_and_kinds_do_not_mix() {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let (one, two) = (log(&engine, 1, RecordKind::Entry), log(&engine, 2, RecordKind::Entry));
        let shipped = log(&engine, 1, RecordKind::Shipped);
        one.append([(1, b"a".as_slice()), (2, b"b"), (3, b"c")]).unwrap();
        two.append([(7, b"z".as_slice())]).unwrap();
        one.purge_through(1, Some((LogMark::Purged, b"mark"))).unwrap();
        one.truncate_after(2).unwrap();
        assert_eq!(one.read(0..u64::MAX, usize::MAX).unwrap(), [(2, Bytes::from_static(b"b"))]);
        assert_eq!(one.mark(LogMark::Purged).unwrap().unwrap(), b"mark".as_slice());
        assert_eq!(two.last().unwrap(), Some((7, Bytes::from_static(b"z"))));
        let numbers =
            [1, 2, 3, 7].map(|number| (one.get(number).unwrap(), two.get(number).unwrap()));
        let (b, z) = (Some(Bytes::from_static(b"b")), Some(Bytes::from_static(b"z")));
        assert_eq!(numbers, [(None, None), (b, None), (None, None), (None, z)]);
        assert_eq!(shipped.first().unwrap(), None);
    }

    #[test]
    fn erasing_a_log_leaves_other_logs_and_marks_alone() {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let open = |epoch, kind| {
            let group = GroupId { shard: ShardId(1), epoch: Epoch(epoch) };
            GroupLog::open(Arc::clone(&engine), group, kind).unwrap()
        };
        let logs = [0, 1, 2].map(|epoch| open(epoch, RecordKind::Entry));
        let shipped = [0, 1].map(|epoch| open(epoch, RecordKind::Shipped));
        for log in logs.iter().chain(&shipped) {
            log.append([(1, b"a".as_slice()), (u64::MAX - 1, b"b")]).unwrap();
        }
        for log in &logs {
            log.put_mark(LogMark::Vote, b"vote").unwrap();
            log.put_mark(LogMark::Purged, b"purged").unwrap();
        }
        let [zero, one, two] = &logs;
        one.erase(&[LogMark::Purged], Some((LogMark::Left, b"left"))).unwrap();
        assert_eq!((one.first().unwrap(), one.mark(LogMark::Purged).unwrap()), (None, None));
        assert_eq!(one.mark(LogMark::Left).unwrap().unwrap(), b"left".as_slice());
        assert!(one.mark(LogMark::Vote).unwrap().is_some());
        for log in [zero, two] {
            assert_eq!(log.read(0..u64::MAX, usize::MAX).unwrap().len(), 2);
            assert!(
                log.mark(LogMark::Vote).unwrap().is_some()
                    && log.mark(LogMark::Purged).unwrap().is_some()
            );
        }
        assert!(shipped.iter().all(|log| log.read(0..u64::MAX, usize::MAX).unwrap().len() == 2));
    }

    #[test]
    fn reads_stop_at_the_byte_bound_but_return_one() {
        let engine: Arc<dyn Engine> = Arc::new(MemoryEngine::default());
        let log = log(&engine, 1, RecordKind::Shipped);
        log.append([(1, [0; 100].as_slice()), (2, &[0; 100])]).unwrap();
        assert_eq!(log.read(1..9, 0).unwrap().len(), 1);
        // Of 104 bytes each, with their checksums.
        assert_eq!(log.read(1..9, 207).unwrap().len(), 1);
        assert_eq!(log.read(1..9, 208).unwrap().len(), 2);
        let numbers = |range, max_bytes| {
            let records = log.read_back(range, max_bytes).unwrap();
            records.into_iter().map(|(number, _)| number).collect::<Vec<_>>()
        };
        assert_eq!((numbers(1..9, 0), numbers(1..9, 208)), (vec![2], vec![1, 2]));
        assert_eq!((numbers(1..2, 208), numbers(3..9, 208)), (vec![1], vec![]));
    }
}
