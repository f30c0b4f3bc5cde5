//! Room for writes that wait, divided among databases: a flood of one fills its own part, and the
//! next write of another finds room.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_memory::{ByteBudget, Exhausted, Held};
use meridian_types::DatabaseId;
use parking_lot::Mutex;

/// An amount that databases take parts of. Cheap to clone; clones share the amount.
///
/// While more than a quarter is free, every database takes what it asks for. From then on a
/// database that has some may have half of what the others leave, so that each flood leaves as much
/// as it takes; and a database that has nothing takes what is free, of which a dozen floods leave little.
#[derive(Clone)]
pub(crate) struct Division(Arc<Inner>);

struct Inner {
    total: usize,
    held: Mutex<HeldParts>,
}

#[derive(Default)]
struct HeldParts {
    all: usize,
    /// Without those that hold nothing.
    by_database: BTreeMap<DatabaseId, usize>,
}

/// A part of the amount, given back when this is dropped.
pub(crate) struct Part {
    of: Arc<Inner>,
    database: DatabaseId,
    amount: usize,
}

impl Division {
    pub(crate) fn new(total: usize) -> Self {
        Self(Arc::new(Inner { total, held: Mutex::default() }))
    }

    /// `None`: the database has its part.
    pub(crate) fn take(&self, database: DatabaseId, amount: usize) -> Option<Part> {
        let total = self.0.total;
        let mut held = self.0.held.lock();
        let before = held.by_database.get(&database).copied().unwrap_or_default();
        let (all, own) = (held.all.checked_add(amount)?, before.checked_add(amount)?);
        let of_others = held.all - before;
        let may_have = total.saturating_sub(of_others) / if before == 0 { 1 } else { 2 };
        if all > total - total / 4 && own > may_have {
            return None;
        }
        held.all = all;
        held.by_database.insert(database, own);
        Some(Part { of: Arc::clone(&self.0), database, amount })
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let mut held = self.of.held.lock();
        held.all = held.all.saturating_sub(self.amount);
        if let Some(own) = held.by_database.get_mut(&self.database) {
            *own = own.saturating_sub(self.amount);
            if *own == 0 {
                held.by_database.remove(&self.database);
            }
        }
    }
}

/// The bytes of writes that wait at one node, or are in batches that did not commit yet, of all of
/// its shards. Cheap to clone; clones share the bytes.
#[derive(Clone)]
pub(crate) struct WriteBytes {
    bytes: ByteBudget,
    division: Division,
}

/// Bytes of one write, given back when this is dropped.
pub(crate) struct HeldForWrite {
    _held: Held,
    _part: Part,
}

/// Why there is no room for a write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoRoom {
    All(Exhausted),
    OfDatabase { total_bytes: usize },
}

impl WriteBytes {
    pub(crate) fn new(purpose: &'static str, total_bytes: usize) -> Self {
        let bytes = ByteBudget::new(purpose, total_bytes);
        let division = Division::new(bytes.total_bytes());
        Self { bytes, division }
    }

    pub(crate) fn try_take(
        &self,
        database: DatabaseId,
        bytes: usize,
    ) -> Result<HeldForWrite, NoRoom> {
        let held = self.bytes.try_take(bytes).map_err(NoRoom::All)?;
        let total_bytes = self.bytes.total_bytes();
        let part = self.division.take(database, bytes).ok_or(NoRoom::OfDatabase { total_bytes })?;
        Ok(HeldForWrite { _held: held, _part: part })
    }

    #[cfg(test)]
    pub(crate) fn used_bytes(&self) -> usize {
        self.bytes.used_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_of(division: &Division, number: u16) -> Vec<Part> {
        all_of_by(division, number, 1)
    }

    fn all_of_by(division: &Division, number: u16, amount: usize) -> Vec<Part> {
        let [high, low] = number.to_be_bytes();
        let database = DatabaseId([high, low, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        std::iter::from_fn(|| division.take(database, amount)).take(1 << 20).collect()
    }

    #[test]
    fn flood_of_one_database_fills_its_own_part_and_leaves_the_rest() {
        let division = Division::new(1000);
        let flood = all_of(&division, 1);
        assert_eq!(flood.len(), 750);
        let floods: Vec<_> = (2..6).flat_map(|number| all_of(&division, number)).collect();
        assert!(division.take(DatabaseId([9; 16]), 5).is_some(), "{} are taken", floods.len());
        assert!(division.take(DatabaseId([9; 16]), usize::MAX).is_none());
        drop((flood, floods));
        assert!(division.0.held.lock().by_database.is_empty() && division.0.held.lock().all == 0);
    }

    #[test]
    fn database_that_has_nothing_takes_what_a_dozen_floods_have_left() {
        let division = Division::new(1 << 20);
        let floods: Vec<_> = (1..=12).flat_map(|number| all_of_by(&division, number, 7)).collect();
        let free = (1 << 20) - division.0.held.lock().all;
        assert!((8..1000).contains(&free), "{free} are free");
        let quiet = DatabaseId([9; 16]);
        assert!(division.take(quiet, free + 1).is_none());
        let write = division.take(quiet, free - 1);
        assert!(write.is_some() && division.take(quiet, 1).is_none(), "one write, and no flood");
        drop((floods, write));
    }

    #[test]
    fn refused_write_holds_no_bytes_and_is_told_whose_they_are() {
        let bytes = WriteBytes::new("tests", 1000);
        let (flood, quiet) = (DatabaseId([1; 16]), DatabaseId([2; 16]));
        let held = bytes.try_take(flood, 750).unwrap_or_else(|_| panic!("there is room"));
        let refused = bytes.try_take(flood, 1).err();
        assert_eq!(refused, Some(NoRoom::OfDatabase { total_bytes: 1000 }));
        assert_eq!(bytes.used_bytes(), 750);
        let of_quiet = bytes.try_take(quiet, 100);
        assert!(of_quiet.is_ok());
        assert!(matches!(bytes.try_take(quiet, 900), Err(NoRoom::All(_))));
        drop((held, of_quiet));
        assert_eq!(bytes.used_bytes(), 0);
    }
}
