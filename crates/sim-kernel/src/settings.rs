//! The settings of a simulation.

/// The way of packets from one machine to another.
#[derive(Debug, Clone, Copy)]
pub struct LinkProfile {
    pub latency_ns: u64,
    /// A packet takes up to so much longer.
    pub jitter_ns: u64,
    /// Of a million packets so many are lost, and sent again by their sender after a while.
    pub lost_ppm: u64,
}

/// The settings of a simulation.
#[derive(Debug, Clone)]
pub struct Settings {
    pub seed: u64,
    /// Of links without a profile of their own.
    pub link: LinkProfile,
    /// The duration of an fsync of a file.
    pub fsync_ns: std::ops::RangeInclusive<u64>,
    /// Of a million times that a thread wakes or tells another, so many let others run first.
    pub preempted_ppm: u64,
}
