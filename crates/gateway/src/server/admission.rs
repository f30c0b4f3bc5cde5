//! Which connections stay when there are too many.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::activity::Activity;

/// Where a connection comes from, as far as shares are concerned: an IPv4 address, or the /64 of an IPv6 one.
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

/// The open connections of a gateway by origin, oldest first.
#[derive(Default)]
pub(super) struct Admission {
    next: u64,
    origins: HashMap<Origin, BTreeMap<u64, Open>>,
    /// The same, by how many each has.
    counts: BTreeSet<(usize, Origin)>,
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
    pub(super) fn admit(&mut self, origin: Origin, activity: Arc<Activity>, evict: CancellationToken) -> Ticket {
        let id = self.next;
        self.next += 1;
        self.change(origin, |connections| drop(connections.insert(id, Open { activity, evict })));
        Ticket { origin, id }
    }

    pub(super) fn left(&mut self, ticket: Ticket) {
        self.change(ticket.origin, |connections| drop(connections.remove(&ticket.id)));
    }

    /// Asks one connection to make room for a newcomer of `origin`; false if none can be spared.
    ///
    /// First goes the oldest connection that never showed a valid token and has no request in progress, of the
    /// origin that has most connections. Where every connection showed one, an idle connection goes of an origin
    /// that has more of them than the newcomer's.
    pub(super) fn evict_for(&mut self, origin: Origin) -> bool {
        let own = self.origins.get(&origin).map_or(0, BTreeMap::len);
        let by_count = || self.counts.iter().rev();
        let strangers = by_count().find_map(|(_, origin)| self.spare(*origin, |activity| !activity.is_authorized()));
        let spared = strangers
            .or_else(|| by_count().filter(|(count, _)| *count > own).find_map(|(_, o)| self.spare(*o, |_| true)));
        let Some(ticket) = spared else { return false };
        if let Some(open) = self.origins.get(&ticket.origin).and_then(|connections| connections.get(&ticket.id)) {
            open.evict.cancel();
        }
        // It counts no more: the next one to be evicted is another.
        self.left(ticket);
        true
    }

    fn spare(&self, origin: Origin, which: impl Fn(&Activity) -> bool) -> Option<Ticket> {
        let mut connections = self.origins.get(&origin)?.iter();
        let (id, _) = connections.find(|(_, open)| !open.activity.is_busy() && which(&open.activity))?;
        Some(Ticket { origin, id: *id })
    }

    fn change(&mut self, origin: Origin, change: impl FnOnce(&mut BTreeMap<u64, Open>)) {
        let connections = self.origins.entry(origin).or_default();
        let before = connections.len();
        change(connections);
        let after = connections.len();
        if after == 0 {
            self.origins.remove(&origin);
        }
        if before != after {
            self.counts.remove(&(before, origin));
            if after > 0 {
                self.counts.insert((after, origin));
            }
        }
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

    fn admit(admission: &mut Admission, origin: Origin) -> (Ticket, Arc<Activity>, CancellationToken) {
        let (activity, evict) = (Arc::new(Activity::new(Instant::now())), CancellationToken::new());
        (admission.admit(origin, Arc::clone(&activity), evict.clone()), activity, evict)
    }

    #[test]
    fn the_origin_with_most_connections_makes_room() {
        let mut admission = Admission::default();
        let (_, _, quiet) = admit(&mut admission, origin(1));
        let crowd: Vec<_> = (0..3).map(|_| admit(&mut admission, origin(2))).collect();
        assert!(admission.evict_for(origin(3)));
        let evicted = |connections: &[(Ticket, Arc<Activity>, CancellationToken)]| {
            connections.iter().map(|(_, _, evict)| evict.is_cancelled()).collect::<Vec<_>>()
        };
        assert_eq!(evicted(&crowd), [true, false, false]);
        assert!(admission.evict_for(origin(2)));
        assert_eq!(evicted(&crowd), [true, true, false]);
        assert!(!quiet.is_cancelled());
    }

    #[test]
    fn a_connection_with_a_token_outlives_those_without() {
        let mut admission = Admission::default();
        let known: Vec<_> = (0..3).map(|_| admit(&mut admission, origin(1))).collect();
        known.iter().for_each(|(_, activity, _)| activity.authorized());
        let (_, _, stranger) = admit(&mut admission, origin(2));
        assert!(admission.evict_for(origin(3)));
        assert!(stranger.is_cancelled());
        assert!(known.iter().all(|(_, _, evict)| !evict.is_cancelled()));
        // Then idle ones of an origin that has more than the newcomer's, and never of the newcomer's own.
        assert!(!admission.evict_for(origin(1)));
        assert!(admission.evict_for(origin(3)));
        assert!(known[0].2.is_cancelled());
    }

    #[test]
    fn a_request_in_progress_keeps_its_connection() {
        let mut admission = Admission::default();
        let (ticket, activity, evict) = admit(&mut admission, origin(1));
        let busy = Busy::new(&activity);
        assert!(!admission.evict_for(origin(2)));
        drop(busy);
        assert!(admission.evict_for(origin(2)));
        assert!(evict.is_cancelled());
        admission.left(ticket);
        assert!(admission.origins.is_empty() && admission.counts.is_empty());
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
