//! The operator of the queues.

use meridian_queue::{Event, MessageKey, RowChange};

use super::{Checked, DATABASE, OTHER, World};

impl World {
    /// Removes a message.
    pub(super) fn cancel(&mut self) {
        let Some((queue, key)) = self.rows.keys().next().cloned() else { return };
        self.rows.remove(&(queue.clone(), key));
        self.done.insert(key.id);
        self.tell_applied(vec![RowChange::Deleted(queue, key)]);
    }

    /// Has a message delivered at once, also where a listener holds it.
    pub(super) fn run_now(&mut self) {
        let nth = usize::try_from(self.rng.below(10)).unwrap();
        let Some((queue, key)) = self.rows.keys().nth(nth).cloned() else { return };
        let moved = MessageKey { due_ms: self.now_ms, ..key };
        let attempts = self.rows.remove(&(queue.clone(), key)).unwrap();
        self.rows.insert((queue.clone(), moved), attempts);
        if moved != key {
            self.taken.insert(key);
        }
        // The dispatcher is yet to hear where it is.
        self.told.remove(&key.id);
        let deleted = RowChange::Deleted(queue.clone(), key);
        self.tell_applied(vec![deleted, RowChange::Moved(queue, moved)]);
    }

    pub(super) fn pause_or_resume(&mut self) -> Checked {
        let database = if self.rng.chance(300) { OTHER } else { DATABASE };
        if !self.paused.remove(&database) {
            self.paused.insert(database);
        }
        self.step(Event::Paused(self.paused.clone()))
    }
}
