//! Listeners that poll: each poll is a listener of its own, whose messages are leased for a time.

use std::time::Duration;

use super::{Listener, Step};
use crate::clock::{Instant, MS, SECOND};
use crate::rng::Rng;

const MAX: u32 = 3;
const WAIT: Instant = 3 * SECOND;
/// Messages that are handed out with the first are in the same answer.
const TOGETHER: Instant = 10 * MS;

/// One poll, and the leases of what it got.
pub(super) struct Poll {
    lease: Instant,
    left: u32,
    /// It is answered then.
    until: Instant,
    is_answered: bool,
    /// When the first of its leases may end; `None`: it got nothing, or that was said.
    lease_ends: Option<Instant>,
}

impl Poll {
    pub(super) fn new(now: Instant, rng: &mut Rng) -> Self {
        let lease = rng.between(1000, 8000) * MS;
        let until = now + WAIT + rng.below(SECOND);
        Self { lease, left: MAX, until, is_answered: false, lease_ends: None }
    }

    pub(super) fn credits(&self) -> u32 {
        self.left
    }

    pub(super) fn lease(&self) -> Duration {
        Duration::from_micros(self.lease)
    }

    /// A message that surely is leased since then for so long, by a clock that is not exact.
    pub(super) fn got(&mut self, now: Instant, as_of: Instant, lease: Option<Duration>) {
        self.left = self.left.saturating_sub(1);
        self.until = self.until.min(now + TOGETHER);
        let lease = lease.map_or(0, |lease| u64::try_from(lease.as_micros()).unwrap_or(0));
        let ends = (as_of + lease * 97 / 100).max(now);
        self.lease_ends = Some(self.lease_ends.map_or(ends, |first| first.min(ends)));
    }
}

impl Listener {
    /// True where it has no more to do at present.
    pub(super) fn tick_poll(&mut self, step: &mut Step<'_>) -> bool {
        let Some(poll) = &mut self.poll else { return false };
        if let Some(ends) = poll.lease_ends.take_if(|ends| step.now >= *ends) {
            let at_ns = super::ns(ends.max(self.handed_at));
            step.history.push(super::QueueEvent::Broke { at_ns, listener: self.number });
        }
        if poll.is_answered {
            if self.work.is_empty() {
                self.poll_again(step);
            }
            return self.work.is_empty() || self.held.is_empty();
        }
        if step.now < poll.until {
            return false;
        }
        // Its gateway tells leaders what it holds, and takes no more.
        (poll.is_answered, poll.left) = (true, 0);
        if let Some(session) = self.session.take() {
            self.close(step, &session);
            self.ask_at = step.now;
        }
        self.held = self.work.keys().copied().collect();
        if self.work.is_empty() {
            self.poll_again(step);
        }
        true
    }

    /// Its gateway is gone: nothing tells leaders what it holds.
    pub(super) fn lose_its_poll(&mut self, step: &mut Step<'_>) {
        self.held_until_now(step);
        self.held.clear();
        if let Some(poll) = &mut self.poll {
            (poll.is_answered, poll.left) = (true, 0);
        }
    }

    fn poll_again(&mut self, step: &mut Step<'_>) {
        if let Some(session) = self.session.take() {
            self.close(step, &session);
        }
        let pause = step.rng.between(100, 1000) * MS;
        self.poll = Some(Poll::new(step.now + pause, step.rng));
        self.begin_life(step.now, step.rng, step.numbers);
        self.away_until = Some(step.now + pause);
    }
}
