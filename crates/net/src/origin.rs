//! The origin of connections, and how often one of them may do something.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// The addresses that one client is taken to have: one of IPv4, or a network of 64 bits of IPv6,
/// which is what a subscriber gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Origin(IpAddr);

impl Origin {
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Self(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into())
            }
            address @ IpAddr::V4(_) => Self(address),
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Origins that are remembered at a time. Where more come at once, all are forgotten.
const MAX_ORIGINS: usize = 4096;

/// How often each origin may do something.
#[derive(Debug)]
pub(crate) struct Rate {
    every: Duration,
    at_once: u32,
    /// Until when what an origin did is paid for, at one in each interval.
    paid: Mutex<HashMap<Origin, Instant>>,
}

impl Rate {
    /// `at_once` times, and then once in each interval.
    pub(crate) fn new(at_once: u32, every: Duration) -> Self {
        Self { every, at_once, paid: Mutex::default() }
    }

    /// Whether it may be done once more. A refusal costs nothing.
    pub(crate) fn take(&self, origin: Origin, now: Instant) -> bool {
        let mut all = self.paid.lock();
        if all.len() >= MAX_ORIGINS {
            all.retain(|_, paid| *paid > now);
            if all.len() >= MAX_ORIGINS {
                all.clear();
            }
        }
        let paid = all.entry(origin).or_insert(now);
        let next = (*paid).max(now) + self.every;
        let may = next.saturating_duration_since(now) <= self.every * self.at_once;
        if may {
            *paid = next;
        }
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origin_is_an_address_of_ipv4_or_a_network_of_ipv6() {
        let of = |text: &str| Origin::of(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.1"), of("10.0.0.2"));
    }

    #[test]
    fn origin_may_do_some_at_once_and_then_one_in_each_interval() {
        let (rate, now) = (Rate::new(3, Duration::from_secs(1)), Instant::now());
        let [one, other] = [1, 2].map(|last| Origin::of([10, 0, 0, last].into()));
        let taken = |origin, now| (0..9).filter(|_| rate.take(origin, now)).count();
        assert_eq!((taken(one, now), taken(other, now)), (3, 3));
        assert_eq!(taken(one, now + Duration::from_millis(1500)), 1);
        assert_eq!(taken(one, now + Duration::from_secs(60)), 3);
    }

    #[test]
    fn origins_without_end_take_no_memory_without_end() {
        let (rate, now) = (Rate::new(1, Duration::from_secs(1)), Instant::now());
        for number in 0..3 * MAX_ORIGINS {
            let number = u32::try_from(number).unwrap();
            assert!(rate.take(Origin::of(std::net::Ipv4Addr::from_bits(number).into()), now));
        }
        assert!(rate.paid.lock().len() <= MAX_ORIGINS);
    }
}
