//! Databases that are gone: dropped in the log, and written no more.

use std::collections::HashSet;

use meridian_types::{DatabaseId, Position};

/// The dropped databases that one term's leader knows. All drops that an earlier term logged are
/// applied when the term begins, so nothing of these databases is ever logged behind its drop,
/// however old the directory is that a leader knows.
pub(super) struct Dropped {
    applied: HashSet<DatabaseId>,
    in_flight: Vec<(Position, DatabaseId)>,
}

impl Dropped {
    pub(super) fn new(applied: Vec<DatabaseId>) -> Self {
        Self { applied: applied.into_iter().collect(), in_flight: Vec::new() }
    }

    /// The batch at this position is applied.
    pub(super) fn completed(&mut self, position: Position) {
        for (_, database) in self.in_flight.extract_if(.., |(at, _)| *at <= position) {
            self.applied.insert(database);
        }
    }

    /// The batch at this position, which is in the log, drops these.
    pub(super) fn logged(&mut self, position: Position, databases: Vec<DatabaseId>) {
        self.in_flight.extend(databases.into_iter().map(|database| (position, database)));
    }

    /// Whether the drop is applied here.
    pub(super) fn is_applied(&self, database: DatabaseId) -> bool {
        self.applied.contains(&database)
    }

    /// Whether the drop is in the log, at least.
    pub(super) fn is_logged(&self, database: DatabaseId) -> bool {
        self.applied.contains(&database)
            || self.in_flight.iter().any(|(_, dropped)| *dropped == database)
    }
}
