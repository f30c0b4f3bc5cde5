//! When a chunk that arrives now is to leave.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::controls::LinkProfile;

/// The most that is read at once.
pub(crate) const MAX_CHUNK_BYTES: usize = 64 * 1024;

/// A rated link reads about this much time's worth at once, so that its connections take turns.
const CHUNKS_PER_SECOND: u64 = 100;

/// A sender runs ahead of a rated line by this much, which hides that timers are a little late.
const RATE_SLACK: Duration = Duration::from_millis(5);

/// One direction of a link that has a rate: until when it is busy sending.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    busy_until: Arc<Mutex<Instant>>,
}

impl Line {
    pub(crate) fn new(now: Instant) -> Self {
        Self { busy_until: Arc::new(Mutex::new(now)) }
    }

    /// Takes the next turn on the line and returns when the last byte is on its way.
    fn send(&self, now: Instant, length: usize, bytes_per_second: u64) -> Instant {
        let length = u64::try_from(length).unwrap_or(u64::MAX);
        let busy =
            Duration::from_nanos(length.saturating_mul(1_000_000_000) / bytes_per_second.max(1));
        let mut busy_until = self.busy_until.lock();
        *busy_until = (*busy_until).max(now) + busy;
        *busy_until
    }
}

/// The fate of a chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Passage {
    /// When it arrives at the other end.
    pub(crate) due: Instant,
    /// Until when no more is to be read, so that a rated line is not queued on beyond its rate.
    pub(crate) read_again_at: Option<Instant>,
}

/// Gives every chunk of one direction of one connection its due time; never earlier than the one
/// before.
///
/// So the jitter of a busy connection tends to its upper bound: one late chunk holds up all behind
/// it, as in TCP.
#[derive(Debug)]
pub(crate) struct Shaper {
    line: Line,
    random: SplitMix,
    last_due: Option<Instant>,
}

impl Shaper {
    pub(crate) fn new(line: Line, seed: u64) -> Self {
        Self { line, random: SplitMix(seed), last_due: None }
    }

    /// How much is to be read at once.
    pub(crate) fn chunk_bytes(profile: &LinkProfile) -> usize {
        let fair = profile.bytes_per_second.map_or(u64::MAX, |rate| rate / CHUNKS_PER_SECOND);
        usize::try_from(fair).unwrap_or(usize::MAX).clamp(1, MAX_CHUNK_BYTES)
    }

    /// Accounts for `length` bytes that arrived at `now`.
    pub(crate) fn pass(&mut self, profile: &LinkProfile, now: Instant, length: usize) -> Passage {
        let sent_at = profile.bytes_per_second.map(|rate| self.line.send(now, length, rate));
        let arrives_at =
            sent_at.unwrap_or(now) + profile.one_way_delay + self.random.up_to(profile.jitter);
        let due = self.last_due.map_or(arrives_at, |last| last.max(arrives_at));
        self.last_due = Some(due);
        let read_again_at =
            sent_at.filter(|at| *at > now + RATE_SLACK).and_then(|at| at.checked_sub(RATE_SLACK));
        Passage { due, read_again_at }
    }
}

/// SplitMix64: the same jitter for the same seed, on every machine.
#[derive(Debug)]
pub(crate) struct SplitMix(pub(super) u64);

impl SplitMix {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Evenly spread from zero up to, and without, `limit`.
    fn up_to(&mut self, limit: Duration) -> Duration {
        let scaled = (u128::from(self.next()) * limit.as_nanos()) >> 64;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLISECOND: Duration = Duration::from_millis(1);
    /// Wide enough that some chunks do not wait for those before them.
    const STEP: Duration = Duration::from_millis(10);

    fn dues(seed: u64, profile: &LinkProfile, start: Instant) -> Vec<Instant> {
        let mut shaper = Shaper::new(Line::new(start), seed);
        (0..500).map(|step| shaper.pass(profile, start + step * STEP, 100).due).collect()
    }

    #[test]
    fn jitter_follows_the_seed_and_keeps_order() {
        let start = Instant::now();
        let profile = LinkProfile {
            one_way_delay: 40 * MILLISECOND,
            jitter: 20 * MILLISECOND,
            bytes_per_second: None,
        };
        let first = dues(7, &profile, start);
        assert_eq!(first, dues(7, &profile, start));
        assert_ne!(first, dues(8, &profile, start));
        assert!(first.is_sorted());
        let delays: Vec<Duration> =
            first.iter().zip(0_u32..).map(|(due, step)| *due - (start + step * STEP)).collect();
        assert!(delays.iter().all(|delay| (40 * MILLISECOND..60 * MILLISECOND).contains(delay)));
        assert!(delays.iter().min() < Some(&(45 * MILLISECOND)));
        assert!(delays.iter().max() > Some(&(55 * MILLISECOND)));
    }

    #[test]
    fn order_is_kept_when_the_link_becomes_shorter() {
        let start = Instant::now();
        let mut shaper = Shaper::new(Line::new(start), 1);
        let far = shaper.pass(&LinkProfile::of_round_trip(200 * MILLISECOND), start, 1);
        let near = shaper.pass(&LinkProfile::default(), start + MILLISECOND, 1);
        assert_eq!(far.due, start + 100 * MILLISECOND);
        assert_eq!(near.due, far.due);
    }

    #[test]
    fn connections_share_the_rate_of_a_line() {
        let start = Instant::now();
        let profile = LinkProfile { bytes_per_second: Some(100_000), ..LinkProfile::default() };
        assert_eq!(Shaper::chunk_bytes(&profile), 1000);
        let line = Line::new(start);
        let mut one = Shaper::new(line.clone(), 1);
        let mut other = Shaper::new(line, 2);
        let first = one.pass(&profile, start, 1000);
        let second = other.pass(&profile, start, 1000);
        assert_eq!(first.due, start + 10 * MILLISECOND);
        assert_eq!(
            second,
            Passage {
                due: start + 20 * MILLISECOND,
                read_again_at: Some(start + 15 * MILLISECOND)
            }
        );
        let later = start + Duration::from_secs(1);
        assert_eq!(
            one.pass(&profile, later, 1000).due,
            later + 10 * MILLISECOND,
            "an idle line saves nothing up"
        );
    }

    #[test]
    fn chunks_are_bounded_at_any_rate() {
        for (rate, bytes) in
            [(Some(0), 1), (Some(u64::MAX), MAX_CHUNK_BYTES), (None, MAX_CHUNK_BYTES)]
        {
            let profile = LinkProfile { bytes_per_second: rate, ..LinkProfile::default() };
            assert_eq!(Shaper::chunk_bytes(&profile), bytes);
        }
    }
}
