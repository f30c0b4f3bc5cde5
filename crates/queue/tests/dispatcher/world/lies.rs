//! Clients that are not told the truth.

use meridian_queue::{Event, MessageKey, Report, Ticket};
use meridian_types::QueueId;

use super::{CLIENTS, World, ms};

impl World {
    /// A message at a place where it may have been, and is not.
    fn stale(&mut self, queue: &QueueId) -> Option<MessageKey> {
        let (nth, before) = (self.rng.below(30), 1 + self.rng.below(100));
        let rows = self.rows.range((queue.clone(), MessageKey::FIRST)..);
        let mut rows = rows.take_while(|((of, _), _)| of == queue).map(|((_, key), _)| *key);
        let key = rows.nth(usize::try_from(nth).unwrap())?;
        Some(MessageKey { due_ms: key.due_ms - before, ..key })
    }

    /// Claims of a listener that is not told the truth: of places that messages have left, and of
    /// messages that another listener has claimed or got.
    pub(super) fn false_claims(&mut self, number: usize) -> Vec<MessageKey> {
        let queue = self.clients[number].queue.clone();
        let mut claims = Vec::new();
        while self.rng.chance(500) {
            claims.extend(self.stale(&queue));
            let other = usize::try_from(self.rng.below(CLIENTS as u64)).unwrap();
            let other = &self.clients[other];
            if other.session.is_some() && other.queue == queue {
                claims.extend(other.held.keys().next());
            }
        }
        claims
    }

    pub(super) fn extend_without_a_row(&mut self) {
        let number = usize::try_from(self.rng.below(CLIENTS as u64)).unwrap();
        let (queue, listener) = (self.clients[number].queue.clone(), self.clients[number].listener);
        let Some(key) = self.stale(&queue) else { return };
        let ticket = Ticket(self.number());
        self.hollow.insert(ticket);
        let by = ms(self.rng.below(2000));
        let reports = vec![(ticket, key, Report::Extended { by })];
        self.later(30, Event::Reported { queue, listener, reports });
    }
}
