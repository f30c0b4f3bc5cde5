//! How much each database of a shard has written of late.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use meridian_types::DatabaseId;

/// Databases are compared by the present window and the one before.
const WINDOW: Duration = Duration::from_secs(1);

/// A database's part of what was written of late, against as much for each that wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asks {
    Less,
    /// About as much as others, or no other writes.
    ItsShare,
    /// By more than a quarter.
    TooMuch,
}

/// The bytes that databases had logged of late. It forgets within two windows.
pub(super) struct Recent {
    since: Instant,
    present: BTreeMap<DatabaseId, u64>,
    before: BTreeMap<DatabaseId, u64>,
}

impl Recent {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, present: BTreeMap::new(), before: BTreeMap::new() }
    }

    /// To be called before anything else of this time.
    pub(super) fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return;
        }
        self.before = std::mem::take(&mut self.present);
        if passed >= 2 * WINDOW {
            self.before.clear();
        }
        self.since = now;
    }

    pub(super) fn add(&mut self, database: DatabaseId, bytes: u64) {
        let written = self.present.entry(database).or_default();
        *written = written.saturating_add(bytes.max(1));
    }

    /// Whether others than this database wrote of late.
    pub(super) fn has_others(&self, database: DatabaseId) -> bool {
        self.present.keys().chain(self.before.keys()).any(|other| *other != database)
    }

    pub(super) fn asks(&self, database: DatabaseId) -> Asks {
        let mut written = self.before.clone();
        for (database, bytes) in &self.present {
            let sum = written.entry(*database).or_default();
            *sum = sum.saturating_add(*bytes);
        }
        // The write that asks counts, too.
        let own = written.entry(database).or_default();
        *own = own.saturating_add(1);
        let own = u128::from(written.get(&database).copied().unwrap_or_default());
        let total: u128 = written.values().map(|bytes| u128::from(*bytes)).sum();
        let own_of_equals = own * written.len() as u128;
        match () {
            () if own_of_equals < total => Asks::Less,
            () if own_of_equals * 4 > total * 5 => Asks::TooMuch,
            () => Asks::ItsShare,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn database_asks_too_much_only_beside_others_and_is_forgotten() {
        let (start, flood, quiet) = (Instant::now(), DatabaseId([1; 16]), DatabaseId([2; 16]));
        let mut recent = Recent::new(start);
        recent.add(flood, 1_000_000);
        assert_eq!((recent.asks(flood), recent.has_others(flood)), (Asks::ItsShare, false));
        assert_eq!((recent.asks(quiet), recent.has_others(quiet)), (Asks::Less, true));
        recent.add(quiet, 1000);
        assert_eq!((recent.asks(flood), recent.asks(quiet)), (Asks::TooMuch, Asks::Less));
        recent.add(quiet, 900_000);
        assert_eq!((recent.asks(flood), recent.asks(quiet)), (Asks::ItsShare, Asks::Less));
        recent.advance(start + WINDOW);
        assert!(recent.has_others(flood), "of the window before");
        recent.advance(start + 2 * WINDOW);
        assert!(!recent.has_others(flood));
        recent.add(flood, 1);
        recent.advance(start + 9 * WINDOW);
        assert!(!recent.has_others(quiet));
        assert_eq!(recent.asks(quiet), Asks::ItsShare);
    }
}
