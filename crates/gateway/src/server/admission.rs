//! Which connections stay when there are too many.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::activity::Activity;

/// Where a connection comes from, as far as shares are concerned: an IPv4 address, or the /64 of an
/// IPv6 one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Origin(IpAddr);

impl Origin {
    pub(super) fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            address @ IpAddr::V4(_) => Self(address),
        }
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// The open connections of a gateway.
#[derive(Default)]
pub(super) struct Admission {
    next: u64,
    /// By origin, oldest first, without those that were evicted.
    origins: HashMap<Origin, BTreeMap<u64, Open>>,
    /// Those that were evicted and have not ended yet.
    leaving: HashMap<u64, Arc<Activity>>,
}

struct Open {
    activity: Arc<Activity>,
    /// Asks the connection to close.
    evict: CancellationToken,
}

/// Names a connection that was admitted.
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

    /// Asks as many connections to close as these newcomers need that wait, oldest first, with one
    /// origin for each; fewer if they cannot be spared, or were asked before and are about to end.
    /// How many were asked.
    ///
    /// First go connections that never showed a valid token and have no request in progress, of the
    /// origin that has most such connections, oldest first. Where every connection showed one, an
    /// idle connection goes of the origin that has most connections and more than the newcomer's,
    /// the least recently used first.
    pub(super) fn make_room(&mut self, newcomers: &[Origin]) -> u64 {
        // One that began a request when it was asked to close makes no room soon.
        let leaving = self.leaving.values().filter(|activity| !activity.is_busy()).count();
        let Some((served, unserved)) = newcomers.split_at_checked(leaving) else { return 0 };
        let mut evicted = self.evict_strangers(unserved.len());
        if evicted < unserved.len() {
            evicted += self.evict_idle(served, unserved.split_at(evicted));
        }
        evicted as u64
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
                strangers.filter(|(_, open)| !open.activity.is_busy()).map(|(id, _)| *id);
            // The oldest last.
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

    /// For the `newcomers`: those for whom there is room already, and those for whom there is none.
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
            // The least recently used last.
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
    use tokio::time::Instant;

    use super::super::activity::Busy;
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
    fn no_more_are_evicted_than_wait() {
        let mut admission = Admission::default();
        let crowd: Vec<_> = (0..8).map(|_| admit(&mut admission, origin(1))).collect();
        assert_eq!(admission.make_room(&[origin(2)]), 1);
        assert_eq!(admission.make_room(&[origin(2)]), 0, "one is about to end");
        assert_eq!(admission.make_room(&[origin(2), origin(3), origin(3)]), 2);
        // One that was sent a request just then will not end soon, and another goes.
        let busy = Busy::new(&crowd[0].1);
        assert_eq!(admission.make_room(&[origin(2), origin(3), origin(3)]), 1);
        drop(busy);
        crowd.iter().take(4).for_each(|(ticket, ..)| admission.left(*ticket));
        assert_eq!(evicted(&crowd), [true, true, true, true, false, false, false, false]);
        assert!(admission.leaving.is_empty());
        crowd.iter().skip(4).for_each(|(_, activity, _)| activity.authorized());
        // Of those who showed a token, no origin is left with fewer than the newcomers'.
        assert_eq!(admission.make_room(&[origin(2); 8]), 2);
    }

    #[test]
    fn a_connection_with_a_token_outlives_those_without() {
        let mut admission = Admission::default();
        let known: Vec<_> = (0..3).map(|_| admit(&mut admission, origin(1))).collect();
        known.iter().for_each(|(_, activity, _)| activity.authorized());
        let stranger = admit(&mut admission, origin(2));
        assert_eq!(admission.make_room(&[origin(3)]), 1);
        assert!(stranger.2.is_cancelled());
        admission.left(stranger.0);
        assert_eq!(evicted(&known), [false, false, false]);
        // Then idle ones of an origin that has more than the newcomer's, and never of the
        // newcomer's own. The one that was used longest ago goes, however old the others are.
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
    fn an_origin_for_whose_newcomers_room_is_made_already_has_so_many_more() {
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
        // Also where a stranger makes it.
        let mut admission = Admission::default();
        let (stranger, known) =
            (admit(&mut admission, origin(1)), admit(&mut admission, origin(2)));
        known.1.authorized();
        assert_eq!(admission.make_room(&[origin(3); 2]), 1, "one of each");
        assert!(stranger.2.is_cancelled() && !known.2.is_cancelled());
    }

    #[test]
    fn an_origin_that_has_just_made_room_for_another_has_one_less() {
        let mut admission = Admission::default();
        let [one, two] = [1, 2].map(|last| {
            let known: Vec<_> = (0..4).map(|_| admit(&mut admission, origin(last))).collect();
            known.iter().for_each(|(_, activity, _)| activity.authorized());
            known
        });
        // The second makes room for the first newcomer, and is then below the first itself.
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
    fn addresses_of_one_network_are_one_origin() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(of("2001:db8:1:2::1"), of("2001:db8:1:2:ffff::9"));
        assert_ne!(of("2001:db8:1:2::1"), of("2001:db8:1:3::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }
}
