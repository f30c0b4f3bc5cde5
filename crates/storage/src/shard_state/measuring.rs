//! How much a database stores.

use std::ops::ControlFlow;

use meridian_types::DatabaseId;

use super::ShardState;
use super::dropped::ranges;
use crate::schema::{data_range, user_key};
use crate::{Scan, StorageError};

/// The rows that are read in one go, in bytes and in number, so that no iterator is open for long.
const STEP_BYTES: u64 = 1 << 20;
const STEP_ROWS: u64 = 10_000;

/// The size of a database. Values that have expired count until they are swept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StoredSize {
    /// Keys that have a value.
    pub keys: u64,
    /// Of keys and values, those of messages and dead letters too. A value counts as it is stored,
    /// with its versionstamp.
    pub bytes: u64,
}

impl ShardState {
    /// Measures a database, while others write to it: what is written meanwhile counts or does not.
    /// Reads all of its rows; `paced` is called after each part with its bytes, and ends the work
    /// by a break. For a thread that may block for long.
    ///
    /// # Errors
    /// [`StorageError::Cancelled`] if `paced` ended it.
    pub fn stored_size(
        &self,
        database: DatabaseId,
        paced: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<StoredSize, StorageError> {
        let mut size = StoredSize::default();
        let (first_key, _) = data_range(database);
        for (mut start, end) in ranges(database) {
            let has_keys = start == first_key;
            loop {
                let (step, next) = self.measured_step(&start, &end)?;
                size.bytes += step.bytes;
                size.keys += if has_keys { step.keys } else { 0 };
                if paced(step.bytes).is_break() {
                    return Err(StorageError::Cancelled(
                        "a database was being measured".to_owned(),
                    ));
                }
                match next {
                    Some(next) => start = next,
                    None => break,
                }
            }
        }
        Ok(size)
    }

    /// The rows of one step, and where the next begins, if there are more.
    fn measured_step(
        &self,
        start: &[u8],
        end: &[u8],
    ) -> Result<(StoredSize, Option<Vec<u8>>), StorageError> {
        self.in_family(|family| {
            let (mut step, mut next) = (StoredSize::default(), None);
            let scan = Scan { start, end, reverse: false };
            self.engine.scan_past_cache(family, scan, &mut |key, value| {
                if step.bytes >= STEP_BYTES || step.keys >= STEP_ROWS {
                    next = Some(key.to_vec());
                    return ControlFlow::Break(());
                }
                step.keys += 1;
                step.bytes += (user_key(key).len() + value.len()) as u64;
                ControlFlow::Continue(())
            })?;
            Ok((step, next))
        })
    }
}

#[cfg(test)]
mod tests;
