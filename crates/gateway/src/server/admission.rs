//! Which connections are evicted when there are too many.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use meridian_net::Origin;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::activity::Activity;

/// Between two evictions of connections that are not idle: their clients come back at once.
const STREAMS_EVICTED_EACH: Duration = Duration::from_secs(1);

/// The open connections of a gateway.
#[derive(Default)]
pub(super) struct Admission {
    next: u64,
    /// Connections by origin, oldest first, without the evicted ones.
    origins: HashMap<Origin, BTreeMap<u64, Open>>,
    /// Evicted connections that have not ended yet.
    leaving: HashMap<u64, Arc<Activity>>,
    /// When a connection that was not idle was evicted last.
    streams_evicted: Option<Instant>,
}

struct Open {
    activity: Arc<Activity>,
    /// Asks the connection to close.
    evict: CancellationToken,
}

/// The name of an admitted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ticket {
    origin: Origin,
    id: u64,
}

impl Admission {
    pub(super) fn admit(
        &mut self,
        origin: Origin,
        activity: Arc<Activity>,
        evict: CancellationToken,
    ) -> Ticket {
        let id = self.next;
        self.next += 1;
        self.origins.entry(origin).or_default().insert(id, Open { activity, evict });
        Ticket { origin, id }
    }

    pub(super) fn left(&mut self, ticket: Ticket) {
        self.leaving.remove(&ticket.id);
        drop(self.remove(ticket.origin, ticket.id));
    }

    /// Evicts a connection for each of the waiting `newcomers` (their origins, oldest first) that
    /// has no room yet. Fewer are evicted if the rest cannot be spared, or if connections evicted
    /// before are about to end. Returns the number of evictions.
    ///
    /// Connections without a valid token and without a request in progress are evicted first, from
    /// the origin that has most of them, oldest first. When no such connection is left, an idle
    /// connection is evicted from the origin with the most connections, provided that it has more
    /// than the newcomer's origin; the least recently used connection goes first. When none is idle
    /// there, one goes in a second that has nothing but streams, or answers that its client does not
    /// take: a client opens streams again, and keeps no other out for as long as it likes.
    pub(super) fn make_room(&mut self, newcomers: &[Origin]) -> u64 {
        // An evicted connection that began a request at the last moment makes no room soon.
        let leaving = self.leaving.values().filter(|activity| activity.ends_soon()).count();
        let mut newcomers = newcomers.to_vec();
        newcomers.sort_by_key(|origin| self.open(*origin));
        let Some((served, unserved)) = newcomers.split_at_checked(leaving) else { return 0 };
        let mut evicted = self.evict_strangers(unserved.len());
        if evicted < unserved.len() {
            evicted += self.evict_idle(served, unserved.split_at(evicted));
        }
        if evicted == 0 {
            let waiting = |of: Origin| newcomers.iter().filter(|other| **other == of).count();
            let mut unserved = unserved.iter();
            evicted += usize::from(
                unserved.any(|newcomer| self.evict_streams(*newcomer, waiting(*newcomer))),
            );
        }
        evicted as u64
    }

    /// The number of an origin's connections.
    pub(super) fn open(&self, origin: Origin) -> usize {
        self.origins.get(&origin).map_or(0, BTreeMap::len)
    }

    /// Evicts the least recently used connection that is not at work, of the origin that has most
    /// connections, if it has more than the newcomer's would have with all of those that are `waiting`.
    fn evict_streams(&mut self, newcomer: Origin, waiting: usize) -> bool {
        let now = Instant::now();
        if self.streams_evicted.is_some_and(|last| now < last + STREAMS_EVICTED_EACH) {
            return false;
        }
        let most = self.origins.iter().max_by_key(|(_, connections)| connections.len());
        let most = most.filter(|(_, open)| open.len() > self.open(newcomer) + waiting);
        let Some((origin, connections)) = most else { return false };
        let may_go = connections.iter().filter(|(_, open)| !open.activity.is_at_work());
        let victim = may_go.min_by_key(|(_, open)| open.activity.last_used()).map(|(id, _)| *id);
        let Some(id) = victim else { return false };
        self.evict(*origin, id);
        self.streams_evicted = Some(now);
        true
    }

    fn evict_strangers(&mut self, wanted: usize) -> usize {
        if wanted == 0 {
            return 0;
        }
        let mut most = BinaryHeap::new();
        for (origin, connections) in &self.origins {
            let strangers =
                connections.iter().rev().filter(|(_, open)| !open.activity.is_authorized());
            let strangers =
                strangers.filter(|(_, open)| !open.activity.has_requests()).map(|(id, _)| *id);
            // The oldest connection is last.
            let strangers: Vec<u64> = strangers.collect();
            if let Some(oldest) = strangers.last() {
                most.push((strangers.len(), Reverse(*oldest), *origin, strangers));
            }
        }
        let mut evicted = 0;
        while evicted < wanted
            && let Some((_, Reverse(oldest), origin, mut strangers)) = most.pop()
        {
            self.evict(origin, oldest);
            evicted += 1;
            strangers.pop();
            if let Some(next) = strangers.last() {
                most.push((strangers.len(), Reverse(*next), origin, strangers));
            }
        }
        evicted
    }

    /// Evicts idle connections for the `unserved` newcomers. The `served` and `also_served` ones
    /// already have room, and count as connections of their origins.
    fn evict_idle(
        &mut self,
        served: &[Origin],
        (also_served, unserved): (&[Origin], &[Origin]),
    ) -> usize {
        let mut counts: HashMap<Origin, usize> =
            self.origins.iter().map(|(origin, connections)| (*origin, connections.len())).collect();
        for origin in served.iter().chain(also_served) {
            *counts.entry(*origin).or_default() += 1;
        }
        let mut most = BinaryHeap::new();
        for (origin, connections) in &self.origins {
            let idle = connections.iter().filter(|(_, open)| !open.activity.is_busy());
            let mut idle: Vec<_> =
                idle.map(|(id, open)| (open.activity.last_used(), *id)).collect();
            // The least recently used connection is last.
            idle.sort_unstable_by_key(|used| Reverse(*used));
            if !idle.is_empty() {
                most.push((counts.get(origin).copied().unwrap_or_default(), *origin, idle));
            }
        }
        let mut evicted = 0;
        for newcomer in unserved {
            let own = counts.get(newcomer).copied().unwrap_or_default();
            if most.peek().is_none_or(|(count, ..)| *count <= own) {
                continue;
            }
            let Some((count, origin, mut idle)) = most.pop() else { break };
            if let Some((_, id)) = idle.pop() {
                self.evict(origin, id);
                evicted += 1;
            }
            *counts.entry(*newcomer).or_default() += 1;
            counts.insert(origin, count - 1);
            if !idle.is_empty() {
                most.push((count - 1, origin, idle));
            }
        }
        evicted
    }

    fn evict(&mut self, origin: Origin, id: u64) {
        if let Some(open) = self.remove(origin, id) {
            open.evict.cancel();
            self.leaving.insert(id, open.activity);
        }
    }

    fn remove(&mut self, origin: Origin, id: u64) -> Option<Open> {
        let connections = self.origins.get_mut(&origin)?;
        let removed = connections.remove(&id);
        if connections.is_empty() {
            self.origins.remove(&origin);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::super::activity::{Busy, StreamRoom};
    use super::*;

    fn origin(last: u8) -> Origin {
        Origin::of(IpAddr::from([10, 0, 0, last]))
    }

    fn admit(
        admission: &mut Admission,
        origin: Origin,
    ) -> (Ticket, Arc<Activity>, CancellationToken) {
        let (activity, evict) = (Arc::new(Activity::new(Instant::now())), CancellationToken::new());
        (admission.admit(origin, Arc::clone(&activity), evict.clone()), activity, evict)
    }

    fn evicted(connections: &[(Ticket, Arc<Activity>, CancellationToken)]) -> Vec<bool> {
        connections.iter().map(|(_, _, evict)| evict.is_cancelled()).collect()
    }

    #[test]
    fn the_origin_with_most_connections_makes_room() {
        let mut admission = Admission::default();
        let (_, _, quiet) = admit(&mut admission, origin(1));
        let crowd: Vec<_> = (0..3).map(|_| admit(&mut admission, origin(2))).collect();
        assert_eq!(admission.make_room(&[origin(3)]), 1);
        assert_eq!(evicted(&crowd), [true, false, false]);
        admission.left(crowd[0].0);
        assert_eq!(admission.make_room(&[origin(2)]), 1);
        assert_eq!(evicted(&crowd), [true, true, false]);
        assert!(!quiet.is_cancelled());
    }

    #[test]
    fn no_more_connections_are_evicted_than_newcomers_wait() {
        let mut admission = Admission::default();
        let crowd: Vec<_> = (0..8).map(|_| admit(&mut admission, origin(1))).collect();
        assert_eq!(admission.make_room(&[origin(2)]), 1);
        assert_eq!(admission.make_room(&[origin(2)]), 0, "one is about to end");
        assert_eq!(admission.make_room(&[origin(2), origin(3), origin(3)]), 2);
        // A connection that got a request just then will not end soon, and another is evicted.
        let busy = Busy::new(&crowd[0].1);
        assert_eq!(admission.make_room(&[origin(2), origin(3), origin(3)]), 1);
        drop(busy);
        crowd.iter().take(4).for_each(|(ticket, ..)| admission.left(*ticket));
        assert_eq!(evicted(&crowd), [true, true, true, true, false, false, false, false]);
        assert!(admission.leaving.is_empty());
        crowd.iter().skip(4).for_each(|(_, activity, _)| activity.authorized());
        // Among connections with a token, no origin is left with fewer than the newcomers' origin.
        assert_eq!(admission.make_room(&[origin(2); 8]), 2);
    }

    #[test]
    fn connection_with_a_token_outlives_connections_without() {
        let mut admission = Admission::default();
        let known: Vec<_> = (0..3).map(|_| admit(&mut admission, origin(1))).collect();
        known.iter().for_each(|(_, activity, _)| activity.authorized());
        let stranger = admit(&mut admission, origin(2));
        assert_eq!(admission.make_room(&[origin(3)]), 1);
        assert!(stranger.2.is_cancelled());
        admission.left(stranger.0);
        assert_eq!(evicted(&known), [false, false, false]);
        // Then an idle connection is evicted from an origin with more connections than the
        // newcomer's, and never from the newcomer's own. The least recently used connection goes,
        // however old others are.
        assert_eq!(admission.make_room(&[origin(1)]), 0);
        [0, 2].into_iter().for_each(|at: usize| drop(Busy::new(&known[at].1)));
        assert_eq!(admission.make_room(&[origin(3)]), 1);
        assert_eq!(evicted(&known), [false, true, false]);
    }

    #[test]
    fn a_flood_from_many_addresses_goes_before_the_newest_of_the_largest_client() {
        let mut admission = Admission::default();
        let known: Vec<_> = (0..100).map(|_| admit(&mut admission, origin(0))).collect();
        known.iter().for_each(|(_, activity, _)| activity.authorized());
        let flood: Vec<_> = (1..200).map(|last| admit(&mut admission, origin(last))).collect();
        let fresh = admit(&mut admission, origin(0));
        let newcomers: Vec<_> = (0..199).map(|_| origin(250)).collect();
        assert_eq!(admission.make_room(&newcomers), 199);
        assert!(evicted(&flood).into_iter().all(|evicted| evicted));
        assert!(!fresh.2.is_cancelled());
    }

    #[test]
    fn newcomers_with_room_count_as_connections_of_their_origin() {
        let mut admission = Admission::default();
        let known: Vec<_> = (0..4).map(|_| admit(&mut admission, origin(1))).collect();
        known.iter().for_each(|(_, activity, _)| activity.authorized());
        assert_eq!(admission.make_room(&[origin(2)]), 1);
        assert_eq!(
            admission.make_room(&[origin(2); 2]),
            1,
            "three of the one, and one of the other"
        );
        assert_eq!(admission.make_room(&[origin(2); 3]), 0, "two of each");
        // The same holds where a connection without a token makes the room.
        let mut admission = Admission::default();
        let (stranger, known) =
            (admit(&mut admission, origin(1)), admit(&mut admission, origin(2)));
        known.1.authorized();
        assert_eq!(admission.make_room(&[origin(3); 2]), 1, "one of each");
        assert!(stranger.2.is_cancelled() && !known.2.is_cancelled());
    }

    #[test]
    fn evicted_connections_no_longer_count_for_their_origin() {
        let mut admission = Admission::default();
        let [one, two] = [1, 2].map(|last| {
            let known: Vec<_> = (0..4).map(|_| admit(&mut admission, origin(last))).collect();
            known.iter().for_each(|(_, activity, _)| activity.authorized());
            known
        });
        // The second origin makes room for the first newcomer, and then has fewer than the first
        // origin.
        assert_eq!(admission.make_room(&[origin(3), origin(2)]), 2);
        assert_eq!([evicted(&one), evicted(&two)], [[true, false, false, false]; 2]);
    }

    #[test]
    fn a_request_in_progress_keeps_its_connection() {
        let mut admission = Admission::default();
        let (ticket, activity, evict) = admit(&mut admission, origin(1));
        let busy = Busy::new(&activity);
        assert_eq!(admission.make_room(&[origin(2)]), 0);
        drop(busy);
        assert_eq!(admission.make_room(&[origin(2)]), 1);
        assert!(evict.is_cancelled());
        admission.left(ticket);
        assert!(admission.origins.is_empty() && admission.leaving.is_empty());
    }

    #[test]
    fn origin_with_most_connections_for_streams_makes_room_once_in_a_second() {
        let mut admission = Admission::default();
        let connections: Vec<_> = (0..4).map(|_| admit(&mut admission, origin(1))).collect();
        connections.iter().for_each(|(_, activity, _)| activity.authorized());
        let streams: Vec<_> =
            connections.iter().map(|(_, activity, _)| Busy::new(activity).streams()).collect();
        let request = Busy::new(&connections[0].1);
        assert_eq!(admission.make_room(&[origin(1)]), 0, "it has most of them itself");
        // However many of its own wait before.
        assert_eq!(admission.make_room(&[origin(1), origin(1), origin(2)]), 1);
        assert_eq!(evicted(&connections), [false, true, false, false]);
        admission.left(connections[1].0);
        assert_eq!(admission.make_room(&[origin(2)]), 0, "not so soon again");
        admission.streams_evicted = Some(Instant::now() - STREAMS_EVICTED_EACH);
        // An answer that is not taken is no request in progress.
        let answer = connections[2].1.sending(b"no"[..].into(), STREAMS_EVICTED_EACH, stream());
        assert_eq!(admission.make_room(&[origin(2)]), 1);
        assert_eq!(evicted(&connections)[1..].iter().filter(|evicted| **evicted).count(), 2);
        drop((request, streams, answer));
    }

    fn stream() -> Option<StreamRoom> {
        Some(StreamRoom::default())
    }

    #[test]
    fn stranger_makes_room_although_it_has_not_taken_an_answer() {
        let mut admission = Admission::default();
        let (_, activity, evict) = admit(&mut admission, origin(1));
        let answer = activity.sending(b"no"[..].into(), Duration::from_secs(120), stream());
        assert!(activity.is_busy());
        assert_eq!(admission.make_room(&[origin(2)]), 1);
        assert!(evict.is_cancelled());
        drop(answer);
    }

    #[test]
    fn addresses_of_one_network_are_one_origin() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
