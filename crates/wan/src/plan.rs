//! How far the regions lie from each other.

use std::time::Duration;

use crate::controls::LinkProfile;

/// Every region beyond the known ones lies this much farther than the one before.
const NEXT_REGION: Duration = Duration::from_millis(60);

/// The distances between regions, in the order of the topology (the first is region 0).
///
/// Written and read as in `90,190,jitter=5,dc=2`; see [`WanPlan::from_str`](std::str::FromStr).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WanPlan {
    /// From the first region to the second, to the third, and so on. Regions that are not listed
    /// follow, each 60 ms farther than the one before.
    pub round_trips: Vec<Duration>,
    /// Between data centers of one region; zero for none.
    pub data_center_round_trip: Duration,
    /// Of each way between regions; there is none within a region.
    pub jitter: Duration,
}

impl Default for WanPlan {
    /// 90 ms to the second region, 190 ms to the third (150 ms between these), nothing within a
    /// region.
    fn default() -> Self {
        Self {
            round_trips: vec![Duration::from_millis(90), Duration::from_millis(190)],
            data_center_round_trip: Duration::ZERO,
            jitter: Duration::ZERO,
        }
    }
}

impl WanPlan {
    /// The link from a data center of one region to another data center, of the same or of another
    /// region. None: they are as near as the machine makes them, and need no link.
    #[must_use]
    pub fn profile(&self, from_region: usize, to_region: usize) -> Option<LinkProfile> {
        let jitter = if from_region == to_region { Duration::ZERO } else { self.jitter };
        let profile = LinkProfile {
            jitter,
            ..LinkProfile::of_round_trip(self.round_trip(from_region, to_region))
        };
        (profile != LinkProfile::default()).then_some(profile)
    }

    /// The round trip between data centers of two regions, without jitter; the same both ways.
    #[must_use]
    pub fn round_trip(&self, from_region: usize, to_region: usize) -> Duration {
        if from_region == to_region {
            return self.data_center_round_trip;
        }
        let (from, to) = (self.first_to(from_region), self.first_to(to_region));
        let (near, far) = (from.min(to), from.max(to));
        // Neither in one line with the first region nor opposite of each other: 150 ms for 90 and
        // 190. Always between far - near and far + near, so no detour is a short cut.
        far - near * 4 / 9
    }

    fn first_to(&self, region: usize) -> Duration {
        let Some(index) = region.checked_sub(1) else { return Duration::ZERO };
        if let Some(round_trip) = self.round_trips.get(index) {
            return *round_trip;
        }
        let beyond = u32::try_from(region - self.round_trips.len()).unwrap_or(u32::MAX);
        self.round_trips
            .last()
            .copied()
            .unwrap_or_default()
            .saturating_add(NEXT_REGION.saturating_mul(beyond))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn milliseconds(plan: &WanPlan, from: usize, to: usize) -> u128 {
        assert_eq!(plan.round_trip(from, to), plan.round_trip(to, from));
        plan.round_trip(from, to).as_millis()
    }

    #[test]
    fn the_default_distances() {
        let plan = WanPlan::default();
        assert_eq!(milliseconds(&plan, 0, 1), 90);
        assert_eq!(milliseconds(&plan, 0, 2), 190);
        assert_eq!(milliseconds(&plan, 1, 2), 150);
        assert_eq!(milliseconds(&plan, 0, 3), 250);
        assert_eq!(milliseconds(&plan, 0, 4), 310);
        assert_eq!(plan.profile(1, 1), None);
        assert_eq!(plan.profile(2, 0).unwrap().one_way_delay, Duration::from_millis(95));
    }

    #[test]
    fn no_detour_is_a_short_cut() {
        let plan = WanPlan::default();
        for a in 0..7 {
            for b in 0..7 {
                for c in (0..7).filter(|c| *c != a && *c != b && a != b) {
                    assert!(
                        plan.round_trip(a, b) <= plan.round_trip(a, c) + plan.round_trip(c, b),
                        "{a} {b} {c}"
                    );
                }
            }
        }
    }

    #[test]
    fn jitter_lies_between_regions_only() {
        let plan = WanPlan {
            data_center_round_trip: Duration::from_millis(2),
            jitter: Duration::from_millis(5),
            ..WanPlan::default()
        };
        assert_eq!(plan.profile(0, 0), Some(LinkProfile::of_round_trip(Duration::from_millis(2))));
        assert_eq!(plan.profile(0, 1).unwrap().jitter, Duration::from_millis(5));
    }

    #[test]
    fn no_distance_is_no_link() {
        let plan = WanPlan { round_trips: vec![Duration::ZERO], ..WanPlan::default() };
        assert_eq!(plan.profile(0, 1), None);
        assert_eq!(plan.profile(0, 2).unwrap().round_trip(), Duration::from_millis(60));
        assert!(plan.profile(usize::MAX, 0).is_some());
    }
}
