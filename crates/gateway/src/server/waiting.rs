//! Accepted sockets for which there is no room yet.

use std::collections::VecDeque;
use std::time::Duration;

use meridian_net::Origin;
use tokio::time::Instant;

/// Sockets that wait at a time, and of one origin, so that no origin takes the places of others.
/// Beyond, a socket is closed at once.
const MAX_WAITING: usize = 512;
const MAX_OF_ONE_ORIGIN: usize = 32;

/// The waiting sockets, oldest first.
pub(super) struct Waiting<S> {
    patience: Duration,
    waiting: VecDeque<(Instant, Origin, S)>,
}

impl<S> Waiting<S> {
    /// `patience` is the longest time that a socket waits.
    pub(super) fn new(patience: Duration) -> Self {
        Self { patience, waiting: VecDeque::new() }
    }

    /// Adds a socket, or drops it where too many wait already.
    pub(super) fn add(&mut self, origin: Origin, newcomer: S, now: Instant) {
        let of_this = self.waiting.iter().filter(|(_, other, _)| *other == origin).count();
        if self.waiting.len() < MAX_WAITING && of_this < MAX_OF_ONE_ORIGIN {
            self.waiting.push_back((now, origin, newcomer));
        }
    }

    /// The socket that has waited longest, of the origins with fewest connections.
    pub(super) fn next(&mut self, open: impl Fn(Origin) -> usize) -> Option<(Origin, S)> {
        let origins = self.waiting.iter().enumerate();
        let (place, _) = origins.min_by_key(|(_, (_, origin, _))| open(*origin))?;
        self.waiting.remove(place).map(|(_, origin, newcomer)| (origin, newcomer))
    }

    /// Drops the sockets that have waited too long. Returns the origins of the rest, oldest first.
    pub(super) fn newcomers(&mut self, now: Instant) -> Vec<Origin> {
        let patience = self.patience;
        self.waiting.retain(|(since, ..)| now.duration_since(*since) < patience);
        self.waiting.iter().map(|(_, origin, _)| *origin).collect()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(number: u16) -> Origin {
        let [high, low] = number.to_be_bytes();
        Origin::of([10, 0, high, low].into())
    }

    #[test]
    fn one_origin_leaves_others_a_place_to_wait() {
        let (mut waiting, now) = (Waiting::new(Duration::from_secs(10)), Instant::now());
        (0..100).for_each(|number| waiting.add(origin(1), number, now));
        waiting.add(origin(2), 100, now);
        assert_eq!(
            waiting.newcomers(now),
            [[origin(1); MAX_OF_ONE_ORIGIN].as_slice(), &[origin(2)]].concat()
        );
        let taken: Vec<_> =
            std::iter::from_fn(|| waiting.next(|_| 1)).map(|(_, number)| number).collect();
        assert_eq!(taken, (0..32).chain([100]).collect::<Vec<_>>());
        (0..2).for_each(|number| waiting.add(origin(1), number, now));
        waiting.add(origin(2), 2, now);
        let has_many = |of| if of == origin(1) { 100 } else { 0 };
        assert_eq!(waiting.next(has_many).map(|(_, number)| number), Some(2));
        while waiting.next(has_many).is_some() {}
        (0..1000).for_each(|number| waiting.add(origin(number), number, now));
        assert_eq!(waiting.newcomers(now).len(), MAX_WAITING);
    }

    #[test]
    fn sockets_are_dropped_when_their_patience_is_over() {
        let (mut waiting, now) = (Waiting::new(Duration::from_secs(10)), Instant::now());
        waiting.add(origin(1), (), now);
        waiting.add(origin(2), (), now + Duration::from_secs(1));
        assert_eq!(waiting.newcomers(now + Duration::from_secs(10)), [origin(2)]);
        assert!(waiting.newcomers(now + Duration::from_secs(11)).is_empty() && waiting.is_empty());
    }
}
