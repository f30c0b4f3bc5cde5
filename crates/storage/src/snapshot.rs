//! Whole states: as they are sent, and as they are filled at the receiving end.

use std::ops::ControlFlow;
use std::sync::Arc;

use bytes::Bytes;
use meridian_types::Position;

use crate::schema::APPLIED_KEY;
use crate::{Applied, Durability, Engine, EngineSnapshot, Scan, StorageError, WriteBatch};

/// A shard's whole state at one moment. It holds the engine's files of that moment for as long as
/// it lives.
pub struct StateSnapshot {
    engine: Arc<dyn EngineSnapshot>,
    family: Arc<str>,
    applied: Applied,
}

/// Rows in key order, and whether no more follow.
#[derive(Debug, Clone, PartialEq)]
pub struct StateRows {
    pub rows: Vec<(Bytes, Bytes)>,
    pub last: bool,
}

impl StateSnapshot {
    pub(crate) fn new(engine: Arc<dyn EngineSnapshot>, family: Arc<str>, applied: Applied) -> Self {
        Self { engine, family, applied }
    }

    pub fn applied(&self) -> &Applied {
        &self.applied
    }

    /// Rows behind `after` (from the first if it is empty) until they exceed `max_bytes`.
    pub fn rows(&self, after: &[u8], max_bytes: usize) -> Result<StateRows, StorageError> {
        let start = if after.is_empty() { Vec::new() } else { [after, &[0]].concat() };
        let mut rows = Vec::new();
        let mut bytes = 0;
        // No row's key begins with 0xff: see the schema's prefixes.
        let scan = Scan { start: &start, end: &[0xff], reverse: false };
        let mut last = true;
        self.engine.scan(&self.family, scan, &mut |key, value| {
            if bytes > max_bytes {
                last = false;
                return ControlFlow::Break(());
            }
            bytes += key.len() + value.len();
            rows.push((Bytes::copy_from_slice(key), Bytes::copy_from_slice(value)));
            ControlFlow::Continue(())
        })?;
        Ok(StateRows { rows, last })
    }
}

/// A state that is being filled from a snapshot's rows. Dropped without
/// [`crate::ShardState::install`], its family is dropped too.
pub struct StagedState {
    engine: Arc<dyn Engine>,
    family: Option<Arc<str>>,
    complete: bool,
}

impl StagedState {
    pub(crate) fn new(engine: Arc<dyn Engine>, family: Arc<str>) -> Result<Self, StorageError> {
        // Rows of an earlier attempt would mix with the rows to come.
        engine.drop_family(&family)?;
        engine.create_family(&family)?;
        Ok(Self { engine, family: Some(family), complete: false })
    }

    /// Adds rows; they may be written twice.
    pub fn add(&mut self, rows: StateRows) -> Result<(), StorageError> {
        let Some(family) = &self.family else { return Ok(()) };
        let mut writes = WriteBatch::default();
        for (key, value) in rows.rows {
            writes.put(family, key.to_vec(), value);
        }
        self.engine.write(writes, Durability::Unlogged)?;
        self.complete |= rows.last;
        Ok(())
    }

    /// The position that the staged state reflects.
    ///
    /// # Errors
    /// [`StorageError::Incomplete`] while rows are missing.
    pub fn position(&self) -> Result<Position, StorageError> {
        Ok(self.applied()?.position)
    }

    pub(crate) fn applied(&self) -> Result<Applied, StorageError> {
        if !self.complete {
            return Err(StorageError::Incomplete("rows are missing"));
        }
        let applied = self
            .engine
            .get(self.family()?, APPLIED_KEY)?
            .ok_or(StorageError::Incomplete("it has no position"))?;
        Applied::decode(applied)
    }

    pub(crate) fn family(&self) -> Result<&Arc<str>, StorageError> {
        self.family.as_ref().ok_or(StorageError::Incomplete("it was taken already"))
    }

    /// The family, now the caller's.
    pub(crate) fn take(mut self) -> Result<Arc<str>, StorageError> {
        let family = Arc::clone(self.family()?);
        self.family = None;
        Ok(family)
    }
}

impl Drop for StagedState {
    fn drop(&mut self) {
        if let Some(family) = self.family.take()
            && let Err(error) = self.engine.drop_family(&family)
        {
            tracing::warn!(%error, "a staged state family could not be dropped; the next start drops it");
        }
    }
}
