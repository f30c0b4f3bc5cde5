//! A range in batches. Each batch is a read of its own: a scan is no snapshot.

use anyhow::Result;
use meridian_kv_client::ClientError;
use meridian_proto::kv_connect as pb;
use meridian_types::limits::MAX_READ_ENTRIES;

use super::selection::Bounds;
use super::session::Session;

/// Entries of a batch of the largest keys and values, which are shorter than the longest answer
/// that is taken.
const SAFE_BATCH: usize = 100;
/// Bytes that a batch shall have.
const BATCH_BYTES: usize = 2 << 20;

pub(super) struct Scan<'a> {
    session: &'a mut Session,
    bounds: Bounds,
    reverse: bool,
    /// Entries that may still come.
    remaining: u64,
    batch: usize,
    is_over: bool,
}

impl<'a> Scan<'a> {
    pub(super) fn new(session: &'a mut Session, bounds: Bounds) -> Self {
        let remaining = u64::MAX;
        Self { session, bounds, reverse: false, remaining, batch: SAFE_BATCH, is_over: false }
    }

    pub(super) fn reverse(self, reverse: bool) -> Self {
        Self { reverse, ..self }
    }

    pub(super) fn limit(self, limit: Option<u64>) -> Self {
        Self { remaining: limit.unwrap_or(u64::MAX), ..self }
    }

    /// The next entries; none at the end.
    pub(super) async fn next(&mut self) -> Result<Vec<pb::KvEntry>> {
        if self.is_over || self.remaining == 0 || self.bounds.start >= self.bounds.end {
            return Ok(Vec::new());
        }
        let asked = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(self.batch);
        let entries = match self.read(asked).await {
            // Smaller values came before.
            Err(ClientError::AnswerTooLarge(_)) if asked > SAFE_BATCH => {
                self.read(SAFE_BATCH).await?
            }
            other => other?,
        };
        let Some(last) = entries.last() else {
            self.is_over = true;
            return Ok(entries);
        };
        match self.reverse {
            true => self.bounds.end = last.key.to_vec(),
            false => self.bounds.start = [&last.key[..], &[0]].concat(),
        }
        let count = entries.len();
        self.remaining -= u64::try_from(count).unwrap_or(u64::MAX).min(self.remaining);
        let bytes: usize = entries.iter().map(|entry| entry.key.len() + entry.value.len()).sum();
        let fitting = BATCH_BYTES / (bytes / count).max(1);
        self.batch = fitting.clamp(SAFE_BATCH, MAX_READ_ENTRIES);
        Ok(entries)
    }

    async fn read(&mut self, limit: usize) -> Result<Vec<pb::KvEntry>, ClientError> {
        let range = pb::ReadRange {
            start: self.bounds.start.clone().into(),
            end: self.bounds.end.clone().into(),
            limit: i32::try_from(limit).unwrap_or(i32::MAX),
            reverse: self.reverse,
        };
        self.session.read(range).await
    }

    /// For work on what was found.
    pub(super) fn session(&mut self) -> &mut Session {
        self.session
    }
}
