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

/// The bytes that one database had logged of late.
#[derive(Debug, Clone, Copy, Default)]
struct Written {
    present: u64,
    before: u64,
    /// Whether any of it was for its clients.
    for_clients: (bool, bool),
}

impl Written {
    fn total(self) -> u128 {
        u128::from(self.present) + u128::from(self.before)
    }

    fn has_clients(self) -> bool {
        self.for_clients.0 || self.for_clients.1
    }
}

/// The bytes that databases had logged of late. It forgets within two windows.
///
/// A question costs the same however many databases there are, since each write asks one while
/// replication lags.
pub(super) struct Recent {
    since: Instant,
    /// Of the databases that wrote in either window.
    databases: BTreeMap<DatabaseId, Written>,
    /// Of all of them.
    total: u128,
    /// The number of databases whose clients wrote.
    with_clients: usize,
}

impl Recent {
    pub(super) fn new(now: Instant) -> Self {
        Self { since: now, databases: BTreeMap::new(), total: 0, with_clients: 0 }
    }

    /// To be called before anything else of this time.
    pub(super) fn advance(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.since);
        if passed < WINDOW {
            return;
        }
        let forgets_all = passed >= 2 * WINDOW;
        self.databases.retain(|_, written| {
            let (present, has_clients) = (written.present, written.for_clients.0);
            let before = if forgets_all { 0 } else { present };
            *written = Written { present: 0, before, for_clients: (false, has_clients) };
            before > 0
        });
        let with_clients = self.databases.values().filter(|written| written.has_clients());
        self.with_clients = with_clients.count();
        self.total = self.databases.values().map(|written| written.total()).sum();
        self.since = now;
    }

    /// For a client.
    pub(super) fn add(&mut self, database: DatabaseId, bytes: u64) {
        let written = self.log(database, bytes);
        let had_clients = written.has_clients();
        written.for_clients.0 = true;
        self.with_clients += usize::from(!had_clients);
    }

    /// By an internal writer: no client waits for it, so that it takes no part of a batch from others.
    pub(super) fn add_internal(&mut self, database: DatabaseId, bytes: u64) {
        self.log(database, bytes);
    }

    fn log(&mut self, database: DatabaseId, bytes: u64) -> &mut Written {
        let written = self.databases.entry(database).or_default();
        let before = written.total();
        written.present = written.present.saturating_add(bytes.max(1));
        self.total += written.total() - before;
        written
    }

    /// Whether clients of others than this database wrote of late.
    pub(super) fn has_others(&self, database: DatabaseId) -> bool {
        let own = self.databases.get(&database).is_some_and(|written| written.has_clients());
        self.with_clients > usize::from(own)
    }

    pub(super) fn asks(&self, database: DatabaseId) -> Asks {
        let written = self.databases.get(&database).copied();
        // The write that asks counts, too.
        let (own, total) = (written.unwrap_or_default().total() + 1, self.total + 1);
        let databases = self.databases.len() + usize::from(written.is_none());
        let own_of_equals = own * databases as u128;
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

    /// As many databases as one shard may have, and as many writes.
    #[test]
    fn question_costs_the_same_however_many_databases_wrote() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        let database = |number: u32| {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&number.to_be_bytes());
            DatabaseId(id)
        };
        (0..20_000).for_each(|number| recent.add(database(number), 100));
        recent.advance(start + WINDOW);
        (0..20_000).for_each(|number| recent.add(database(number), 100));
        let began = Instant::now();
        for number in 0..20_000 {
            assert_eq!(recent.asks(database(number)), Asks::ItsShare);
            assert!(recent.has_others(database(number)));
        }
        // A sum over all of them takes a millisecond, and a sum that is kept less than a microsecond.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }

    #[test]
    fn sweeps_count_as_what_their_database_asks_for_and_make_it_no_neighbour() {
        let (start, swept, quiet) = (Instant::now(), DatabaseId([1; 16]), DatabaseId([2; 16]));
        let mut recent = Recent::new(start);
        recent.add(quiet, 1000);
        recent.add_internal(swept, 1_000_000);
        assert_eq!((recent.asks(swept), recent.asks(quiet)), (Asks::TooMuch, Asks::Less));
        assert_eq!((recent.has_others(swept), recent.has_others(quiet)), (true, false));
        recent.add(swept, 1);
        assert!(recent.has_others(quiet));
        recent.advance(start + WINDOW);
        assert!(recent.has_others(quiet));
        recent.add_internal(swept, 1_000_000);
        recent.advance(start + 2 * WINDOW);
        assert_eq!((recent.asks(swept), recent.has_others(quiet)), (Asks::ItsShare, false));
    }

    #[test]
    fn total_is_that_of_all_databases_whatever_was_added_and_forgotten() {
        let start = Instant::now();
        let mut recent = Recent::new(start);
        for step in 0..100u32 {
            recent.advance(start + step * WINDOW / 3);
            let bytes = if step % 10 == 9 { u64::MAX } else { u64::from(step) };
            recent.add(DatabaseId([u8::try_from(step % 7).unwrap(); 16]), bytes);
            let sum: u128 = recent.databases.values().map(|written| written.total()).sum();
            assert_eq!((recent.total, recent.with_clients), (sum, recent.databases.len()));
        }
        recent.advance(start + 100 * WINDOW);
        assert_eq!((recent.total, recent.databases.len()), (0, 0));
    }
}
