//! The controls of a link, which an operator sets and its connections read.

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// The longest delay and the widest jitter that a link emulates; more is taken as this much.
pub const MAX_DELAY: Duration = Duration::from_secs(60);

/// How far and how wide a link is; the same in both directions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LinkProfile {
    /// The delay of every byte, each way: half of the round trip. At most [`MAX_DELAY`].
    pub one_way_delay: Duration,
    /// A chunk waits up to this much more, evenly spread. Order is kept: a chunk also waits for
    /// those before it.
    pub jitter: Duration,
    /// The rate of each direction, shared by all connections of the link. Zero is taken as one.
    pub bytes_per_second: Option<u64>,
}

impl LinkProfile {
    /// A link of this round trip, without jitter and of any rate.
    #[must_use]
    pub fn of_round_trip(round_trip: Duration) -> Self {
        Self { one_way_delay: round_trip / 2, jitter: Duration::ZERO, bytes_per_second: None }
    }

    /// Twice the one-way delay.
    #[must_use]
    pub fn round_trip(&self) -> Duration {
        self.one_way_delay.saturating_mul(2)
    }

    pub(crate) fn bounded(self) -> Self {
        Self {
            one_way_delay: self.one_way_delay.min(MAX_DELAY),
            jitter: self.jitter.min(MAX_DELAY),
            ..self
        }
    }
}

/// A direction of a link, as seen by the client that connects to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From clients to the target.
    Forward,
    /// From the target to clients.
    Backward,
    Both,
}

/// One of the two ways of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Forward,
    Backward,
}

impl Way {
    pub(crate) fn opposite(self) -> Self {
        match self {
            Self::Forward => Self::Backward,
            Self::Backward => Self::Forward,
        }
    }
}

/// The connection is over and both of its ends are to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Broken;

impl From<watch::error::RecvError> for Broken {
    /// The link is gone.
    fn from(_: watch::error::RecvError) -> Self {
        Self
    }
}

/// The state of a link that all of its connections watch.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Controls {
    pub(crate) profile: LinkProfile,
    pub(crate) reset_after: Option<Duration>,
    forward_cut_at: Option<Instant>,
    backward_cut_at: Option<Instant>,
}

impl Controls {
    pub(crate) fn new(profile: LinkProfile) -> Self {
        Self { profile: profile.bounded(), ..Self::default() }
    }

    /// A direction that is cut already keeps the time since when.
    pub(crate) fn cut(&mut self, direction: Direction, now: Instant) {
        if matches!(direction, Direction::Forward | Direction::Both) {
            self.forward_cut_at.get_or_insert(now);
        }
        if matches!(direction, Direction::Backward | Direction::Both) {
            self.backward_cut_at.get_or_insert(now);
        }
    }

    pub(crate) fn heal(&mut self) {
        self.forward_cut_at = None;
        self.backward_cut_at = None;
    }

    /// Cuts just this much: a direction that was cut and stays so keeps the time since when.
    /// Returns whether anything changed.
    pub(crate) fn set_cuts(&mut self, forward: bool, backward: bool, now: Instant) -> bool {
        let changed =
            self.is_cut(Way::Forward) != forward || self.is_cut(Way::Backward) != backward;
        self.forward_cut_at = forward.then(|| self.forward_cut_at.unwrap_or(now));
        self.backward_cut_at = backward.then(|| self.backward_cut_at.unwrap_or(now));
        changed
    }

    pub(crate) fn is_cut(&self, way: Way) -> bool {
        match way {
            Way::Forward => self.forward_cut_at.is_some(),
            Way::Backward => self.backward_cut_at.is_some(),
        }
    }

    pub(crate) fn is_cut_anyhow(&self) -> bool {
        self.forward_cut_at.is_some() || self.backward_cut_at.is_some()
    }

    /// When a connection that was accepted at `accepted_at` is to be reset, if nothing heals
    /// before.
    fn reset_at(&self, accepted_at: Instant) -> Option<Instant> {
        let cut_at = match (self.forward_cut_at, self.backward_cut_at) {
            (Some(forward), Some(backward)) => forward.min(backward),
            (Some(at), None) | (None, Some(at)) => at,
            (None, None) => return None,
        };
        // A time too far to be told never comes.
        cut_at.max(accepted_at).checked_add(self.reset_after?)
    }
}

/// Returns when `way` carries bytes; at once unless it is cut.
///
/// Held bytes travel once more when the cut is healed, since it is the sender that retransmits. May
/// be dropped at any await.
pub(crate) async fn passable(
    controls: &mut watch::Receiver<Controls>,
    way: Way,
) -> Result<(), Broken> {
    while controls.borrow_and_update().is_cut(way) {
        let delay = controls.wait_for(|now| !now.is_cut(way)).await?.profile.one_way_delay;
        tokio::time::sleep(delay).await;
    }
    Ok(())
}

/// Returns when a connection has been cut for longer than the link's `reset_after`, or its link is
/// gone.
pub(crate) async fn cut_for_too_long(
    mut controls: watch::Receiver<Controls>,
    accepted_at: Instant,
) -> Broken {
    loop {
        let reset_at = controls.borrow_and_update().reset_at(accepted_at);
        let expiry = async {
            match reset_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = expiry => return Broken,
            changed = controls.changed() => if changed.is_err() { return Broken },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_counts_from_the_first_cut_and_from_the_connection() {
        let start = Instant::now();
        let second = Duration::from_secs(1);
        let mut controls = Controls::new(LinkProfile::default());
        controls.cut(Direction::Backward, start + second);
        assert_eq!(controls.reset_at(start), None, "no reset unless asked for");
        controls.reset_after = Some(5 * second);
        controls.cut(Direction::Both, start + 2 * second);
        assert_eq!(controls.reset_at(start), Some(start + 6 * second));
        assert_eq!(controls.reset_at(start + 3 * second), Some(start + 8 * second));
        assert!(controls.is_cut(Way::Forward) && controls.is_cut(Way::Backward));
        controls.heal();
        assert_eq!(controls.reset_at(start), None);
    }

    #[test]
    fn one_of_two_cuts_is_healed_at_once() {
        let start = Instant::now();
        let mut controls = Controls::new(LinkProfile::default());
        controls.reset_after = Some(Duration::from_secs(5));
        assert!(controls.set_cuts(true, true, start));
        assert!(controls.set_cuts(false, true, start + Duration::from_secs(1)));
        assert!(!controls.set_cuts(false, true, start + Duration::from_secs(2)));
        assert!(!controls.is_cut(Way::Forward) && controls.is_cut(Way::Backward));
        assert_eq!(
            controls.reset_at(start),
            Some(start + Duration::from_secs(5)),
            "cut since the first time"
        );
    }

    #[test]
    fn delays_are_bounded() {
        let far = LinkProfile {
            one_way_delay: Duration::MAX,
            jitter: Duration::MAX,
            bytes_per_second: None,
        };
        assert_eq!(Controls::new(far).profile.one_way_delay, MAX_DELAY);
        assert_eq!(Controls::new(far).profile.jitter, MAX_DELAY);
    }
}
