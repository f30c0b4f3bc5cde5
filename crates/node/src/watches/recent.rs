//! The values that were told of lately, within a bound: a watch that comes later, or was slow, has the
//! value read again.

use std::collections::VecDeque;

use meridian_types::Versionstamp;

use super::WatchedKey;

/// The memory that a value takes beside its bytes, and those of its key.
const BESIDE_BYTES: usize = 160;

/// The order in which values came, and the bytes of all.
pub(super) struct Recent {
    max_bytes: usize,
    bytes: usize,
    values: VecDeque<(WatchedKey, Versionstamp, usize)>,
}

impl Recent {
    pub(super) fn new(max_bytes: usize) -> Self {
        Self { max_bytes, bytes: 0, values: VecDeque::new() }
    }

    pub(super) fn add(&mut self, key: WatchedKey, versionstamp: Versionstamp, bytes: usize) {
        let bytes = bytes + key.1.len() + BESIDE_BYTES;
        self.bytes += bytes;
        self.values.push_back((key, versionstamp, bytes));
    }

    /// The oldest value, if all together take too much. It may have been replaced long ago.
    pub(super) fn next_to_forget(&mut self) -> Option<(WatchedKey, Versionstamp)> {
        if self.bytes <= self.max_bytes {
            return None;
        }
        let (key, versionstamp, bytes) = self.values.pop_front()?;
        self.bytes -= bytes;
        Some((key, versionstamp))
    }
}
