//! The operator of the queues.

use meridian_queue::{Event, MessageKey, RowChange};

use super::{Checked, DATABASE, OTHER, World};

impl World {
    /// Removes a message.
    pub(super) fn cancel(&mut self) {
        let Some((database, key)) = self.rows.keys().next().copied() else { return };
        self.rows.remove(&(database, key));
        self.done.insert(key.id);
        self.tell_applied(vec![RowChange::Deleted(database, key)]);
    }

    /// Has a message delivered at once, also where a listener holds it.
    pub(super) fn run_now(&mut self) {
        let nth = usize::try_from(self.rng.below(10)).unwrap();
        let Some((database, key)) = self.rows.keys().nth(nth).copied() else { return };
        let moved = MessageKey { due_ms: self.now_ms, ..key };
        let attempts = self.rows.remove(&(database, key)).unwrap();
        self.rows.insert((database, moved), attempts);
        if moved != key {
            self.taken.insert(key);
        }
        // The dispatcher is yet to hear where it is.
        self.told.remove(&key.id);
        let deleted = RowChange::Deleted(database, key);
        self.tell_applied(vec![deleted, RowChange::Moved(database, moved)]);
    }

    pub(super) fn pause_or_resume(&mut self) -> Checked {
        let database = if self.rng.chance(300) { OTHER } else { DATABASE };
        if !self.paused.remove(&database) {
            self.paused.insert(database);
        }
        self.step(Event::Paused(self.paused.clone()))
    }
}
