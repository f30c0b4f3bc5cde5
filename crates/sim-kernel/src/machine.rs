//! The machines that threads belong to, and their clocks.

/// When simulations begin, on wall clocks without an error: 2030-01-01.
const WALL_NS: u64 = 1_893_456_000 * 1_000_000_000;

/// The time on monotonic clocks then, so that a program can subtract what it likes.
const BOOTED_NS: u64 = 100_000 * 1_000_000_000;

/// Whether the threads of a machine run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Power {
    On,
    /// Its threads stand still, its kernel goes on.
    Paused,
    /// Its processes are gone; its kernel answers that no process listens.
    Killed,
    /// Its kernel answers nothing either.
    Off,
}

/// A machine, with clocks of its own.
pub(crate) struct Machine {
    pub(crate) name: String,
    pub(crate) ip: [u8; 4],
    pub(crate) power: Power,
    /// How much faster its clocks are, in millionths.
    pub(crate) drift_ppm: i64,
    /// How far its wall clock is ahead.
    pub(crate) wall_ahead_ns: i64,
    /// The last port that the kernel gave to a connection.
    pub(crate) port: u16,
}

impl Machine {
    pub(crate) fn new(name: &str, ip: [u8; 4]) -> Self {
        Self {
            name: name.to_owned(),
            ip,
            power: Power::On,
            drift_ppm: 0,
            wall_ahead_ns: 0,
            port: 32_768,
        }
    }

    pub(crate) fn runs(&self) -> bool {
        self.power == Power::On
    }

    /// The time that has passed on its clocks since the simulation began.
    fn passed(&self, now: u64) -> u64 {
        let drift = i128::from(now) * i128::from(self.drift_ppm) / 1_000_000;
        u64::try_from(i128::from(now) + drift).unwrap_or(0)
    }

    pub(crate) fn monotonic(&self, now: u64) -> u64 {
        BOOTED_NS + self.passed(now)
    }

    pub(crate) fn wall(&self, now: u64) -> u64 {
        (WALL_NS + self.passed(now)).saturating_add_signed(self.wall_ahead_ns)
    }

    /// How long it takes until so much has passed on its clocks.
    pub(crate) fn lasts(&self, own: u64) -> u64 {
        let rate = i128::from(1_000_000 + self.drift_ppm).max(1);
        u64::try_from(i128::from(own) * 1_000_000 / rate + 1).unwrap_or(u64::MAX)
    }

    pub(crate) fn next_port(&mut self) -> u16 {
        self.port = if self.port >= 60_999 { 32_768 } else { self.port + 1 };
        self.port
    }
}
