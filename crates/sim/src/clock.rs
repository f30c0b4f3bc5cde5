//! Real time, and the clocks of nodes.

use std::time::Duration;

use crate::rng::Rng;

/// Real time, which no node can see, in microseconds.
pub(crate) type Instant = u64;

pub(crate) const MS: Instant = 1000;
pub(crate) const SECOND: Instant = 1_000_000;

/// A node's monotonic clock: it starts anywhere at each boot, runs up to 1 % too fast or too slow,
/// and goes on while the process is stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    booted: Instant,
    offset: u64,
    /// Local microseconds in 1000 real ones.
    rate: u64,
}

impl Clock {
    pub(crate) fn at_boot(now: Instant, rng: &mut Rng) -> Self {
        Self { booted: now, offset: rng.below(1000) * SECOND, rate: rng.between(990, 1011) }
    }

    pub(crate) fn read(&self, now: Instant) -> Duration {
        Duration::from_micros(self.offset + now.saturating_sub(self.booted) * self.rate / 1000)
    }
}

/// The time on all wall clocks, in milliseconds.
pub(crate) fn wall_ms(now: Instant) -> u64 {
    1_000_000 + now / MS
}
