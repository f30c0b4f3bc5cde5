//! The places of messages that have moved lately.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use meridian_types::{DatabaseId, MessageId};

use crate::event::MessageKey;

/// Messages of a shard whose new place is remembered, at most.
const MAX_MOVED: usize = 10_000;

/// Where messages are by now whose delivery failed, or that an operator has moved, so that a success
/// that is reported late finds them. The latest alone: of what was forgotten the message is delivered
/// once more. Where there are too many, the database that has most of them loses its oldest, so that
/// no other one makes a database forget.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    due_ms: BTreeMap<MessageId, u64>,
    /// Of each database, oldest first. None is empty.
    oldest_first: BTreeMap<DatabaseId, VecDeque<MessageId>>,
    /// How many each database has.
    counts: BTreeSet<(usize, DatabaseId)>,
}

impl Moved {
    pub(crate) fn insert(&mut self, database: DatabaseId, key: MessageKey) {
        if self.due_ms.insert(key.id, key.due_ms).is_some() {
            return;
        }
        let of_database = self.oldest_first.entry(database).or_default();
        self.counts.remove(&(of_database.len(), database));
        of_database.push_back(key.id);
        self.counts.insert((of_database.len(), database));
        if self.due_ms.len() > MAX_MOVED {
            self.forget();
        }
    }

    fn forget(&mut self) {
        let Some((count, most)) = self.counts.pop_last() else { return };
        let Some(of_most) = self.oldest_first.get_mut(&most) else { return };
        if let Some(oldest) = of_most.pop_front() {
            self.due_ms.remove(&oldest);
        }
        if of_most.is_empty() {
            self.oldest_first.remove(&most);
        } else {
            self.counts.insert((count - 1, most));
        }
    }

    pub(crate) fn knows(&self, id: MessageId) -> bool {
        self.due_ms.contains_key(&id)
    }

    pub(crate) fn due_ms(&self, id: MessageId) -> Option<u64> {
        self.due_ms.get(&id).copied()
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, Position, Versionstamp};

    use super::*;

    fn id(sequence: usize) -> MessageId {
        let position = Position::new(Epoch(1), sequence as u64);
        MessageId { enqueued: Versionstamp::new(position, 0), index: 0 }
    }

    #[test]
    fn database_whose_neighbour_moves_without_end_is_not_forgotten() {
        let [quiet, loud] = [1, 2].map(|id| DatabaseId([id; 16]));
        let mut moved = Moved::default();
        let mut insert = |database, sequence| {
            moved.insert(database, MessageKey { due_ms: sequence as u64, id: id(sequence) });
        };
        for sequence in 0..10 {
            insert(quiet, sequence);
        }
        for sequence in 100..100 + 3 * MAX_MOVED {
            insert(loud, sequence);
        }
        // Moved again, it is no further one.
        insert(quiet, 3);
        assert!((0..10).all(|sequence| moved.due_ms(id(sequence)) == Some(sequence as u64)));
        assert_eq!(moved.due_ms.len(), MAX_MOVED);
        let newest = 99 + 3 * MAX_MOVED;
        assert!(moved.knows(id(newest)) && !moved.knows(id(100)));
        let first_kept = newest - (MAX_MOVED - 10) + 1;
        assert!(moved.knows(id(first_kept)) && !moved.knows(id(first_kept - 1)));
        // One alone has all of it.
        let mut moved = Moved::default();
        for sequence in 0..2 * MAX_MOVED {
            moved.insert(loud, MessageKey { due_ms: 1, id: id(sequence) });
        }
        assert!(moved.knows(id(MAX_MOVED)) && !moved.knows(id(MAX_MOVED - 1)));
    }
}
