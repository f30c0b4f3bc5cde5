//! How far each replica is behind, in batches, bytes and time, within bounded memory.

use std::collections::VecDeque;

/// How far a replica is behind. All zero when it has everything that is committed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lag {
    pub batches: u64,
    pub bytes: u64,
    /// The age of the oldest batch that is committed and not acknowledged.
    pub millis: u64,
}

#[derive(Debug, Clone, Copy)]
struct Sample {
    sequence: u64,
    /// Of all batches recorded up to and including this one.
    cumulative_bytes: u64,
    time_ms: u64,
}

impl Sample {
    /// Whether what lies between `to` and this one is at least so many times what lies between
    /// `from` and `to`.
    fn is_beyond(&self, from: &Self, to: &Self, times: u64) -> bool {
        let is_beyond = |of: fn(&Self) -> u64| {
            of(to).saturating_sub(of(from)).saturating_mul(times) <= of(self).saturating_sub(of(to))
        };
        is_beyond(|sample| sample.sequence)
            && is_beyond(|sample| sample.cumulative_bytes)
            && is_beyond(|sample| sample.time_ms)
    }
}

/// When, and with how many bytes before it, each recent batch of a shard was committed.
///
/// Memory is bounded: when full, samples are dropped whose neighbours are near to one another
/// against what was committed behind them, in batches, bytes and time alike. So recent lag is
/// exact, and a long lag is overstated by a small part of itself, never understated. Sequences run
/// on across epochs, so one history serves every replica whatever its epoch.
#[derive(Debug, Clone)]
pub struct CommitHistory {
    samples: VecDeque<Sample>,
    capacity: usize,
    last: Sample,
}

impl CommitHistory {
    pub const DEFAULT_CAPACITY: usize = 8192;

    /// A history that knows nothing before `sequence`, the last batch committed or purged so far. A
    /// source that restarts records the batches of its log anew, or, coarser, starts from what was
    /// purged and records the tail with the bytes of the whole log.
    pub fn starting_at(sequence: u64, time_ms: u64, capacity: usize) -> Self {
        let last = Sample { sequence, cumulative_bytes: 0, time_ms };
        Self { samples: VecDeque::from([last]), capacity: capacity.max(4), last }
    }

    /// Batches up to `sequence`, of `bytes` together, are committed; the last was made at
    /// `time_ms`. Ignored unless it is newer than what was recorded.
    pub fn record(&mut self, sequence: u64, bytes: u64, time_ms: u64) {
        if sequence <= self.last.sequence {
            return;
        }
        let time_ms = time_ms.max(self.last.time_ms);
        self.last = Sample {
            sequence,
            cumulative_bytes: self.last.cumulative_bytes.saturating_add(bytes),
            time_ms,
        };
        if self.samples.len() >= self.capacity {
            self.thin();
        }
        self.samples.push_back(self.last);
    }

    /// The lag of a replica that has acknowledged everything up to `durable`. `now_ms` is the clock
    /// that stamps the batches.
    pub fn lag(&self, durable: u64, now_ms: u64) -> Lag {
        if durable >= self.last.sequence {
            return Lag::default();
        }
        let acknowledged = self.at_or_before(durable);
        let oldest_missing = self.at_or_before(durable.saturating_add(1));
        Lag {
            batches: self.last.sequence - durable,
            bytes: self.last.cumulative_bytes - acknowledged.cumulative_bytes,
            millis: now_ms.saturating_sub(oldest_missing.time_ms),
        }
    }

    /// The first sequence behind which at most `max_bytes` were committed: what a log bounded to
    /// that many bytes may be purged through. `None` when the whole history fits.
    pub fn floor(&self, max_bytes: u64) -> Option<u64> {
        let fits =
            |sample: &Sample| self.last.cumulative_bytes - sample.cumulative_bytes <= max_bytes;
        let index = self.samples.partition_point(|sample| !fits(sample));
        if index == 0 { None } else { self.samples.get(index).map(|sample| sample.sequence) }
    }

    /// Every replica has `sequence`: what is older need not be remembered.
    pub fn forget_through(&mut self, sequence: u64) {
        while self.samples.get(1).is_some_and(|second| second.sequence <= sequence) {
            self.samples.pop_front();
        }
    }

    pub fn committed(&self) -> u64 {
        self.last.sequence
    }

    fn at_or_before(&self, sequence: u64) -> Sample {
        let index = self.samples.partition_point(|sample| sample.sequence <= sequence);
        let found = self.samples.get(index.saturating_sub(1)).or_else(|| self.samples.front());
        found.copied().unwrap_or(self.last)
    }

    fn thin(&mut self) {
        // As near as there is room for; the last look would drop all but the ends.
        let mut times = self.capacity as u64;
        while self.samples.len() > self.capacity / 4 * 3 {
            self.drop_near(times);
            times /= 2;
        }
    }

    /// Drops what has neighbours that are near to one another: what was committed behind them is so
    /// many times what was between them.
    fn drop_near(&mut self, times: u64) {
        let mut kept: VecDeque<Sample> = VecDeque::with_capacity(self.capacity);
        for sample in self.samples.drain(..) {
            if let Some(before) = kept.len().checked_sub(2).and_then(|at| kept.get(at))
                && self.last.is_beyond(before, &sample, times)
            {
                kept.pop_back();
            }
            kept.push_back(sample);
        }
        self.samples = kept;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hundred_a_second(capacity: usize, batches: u64) -> CommitHistory {
        let mut history = CommitHistory::starting_at(0, 0, capacity);
        for sequence in 1..=batches {
            history.record(sequence, 100, sequence * 10);
        }
        history
    }

    #[test]
    fn a_replica_that_has_everything_has_no_lag_however_late_it_is() {
        let history = hundred_a_second(64, 10);
        assert_eq!(history.lag(10, 1_000_000), Lag::default());
        assert_eq!(history.lag(11, 1_000_000), Lag::default());
    }

    #[test]
    fn lag_counts_batches_bytes_and_the_age_of_the_oldest_missing_batch() {
        let history = hundred_a_second(64, 10);
        assert_eq!(history.lag(7, 150), Lag { batches: 3, bytes: 300, millis: 70 });
    }

    #[test]
    fn long_lag_is_never_understated_and_little_overstated_within_bounded_memory() {
        let history = hundred_a_second(1024, 100_000);
        assert!(history.samples.len() <= 1024);
        for durable in (0..100_000).step_by(37).chain(99_900..100_000) {
            let (lag, batches) = (history.lag(durable, 1_000_000), 100_000 - durable);
            assert_eq!(lag.batches, batches);
            let bytes = batches * 100;
            assert!((bytes..=bytes + bytes / 16).contains(&lag.bytes), "{durable}: {lag:?}");
            let millis = (batches - 1) * 10;
            assert!((millis..=millis + millis / 16).contains(&lag.millis), "{durable}: {lag:?}");
        }
        assert_eq!(history.lag(99_990, 1_000_000), Lag { batches: 10, bytes: 1000, millis: 90 });
    }

    /// Now and then comes a large one, and now and then nothing for a while.
    #[test]
    fn a_long_lag_is_nearly_right_whatever_commits_are_like() {
        let mut history = CommitHistory::starting_at(0, 0, 1024);
        let (mut bytes, mut times, mut time_ms) = (vec![0], vec![0], 0);
        for sequence in 1..=50_000 {
            let size = if sequence % 1000 == 0 { 1_000_000 } else { 10 };
            time_ms += if sequence % 1700 == 0 { 3_600_000 } else { 1 };
            history.record(sequence, size, time_ms);
            bytes.push(bytes[bytes.len() - 1] + size);
            times.push(time_ms);
        }
        for durable in (0..49_990).step_by(7) {
            let lag = history.lag(durable, time_ms);
            let at = usize::try_from(durable).unwrap();
            let (missing, age) = (bytes[50_000] - bytes[at], time_ms - times[at + 1]);
            assert!(
                (missing..=missing + missing / 16).contains(&lag.bytes),
                "{durable}: {lag:?}, {missing}"
            );
            assert!((age..=age + age / 16).contains(&lag.millis), "{durable}: {lag:?}, {age}");
        }
    }

    #[test]
    fn a_bounded_log_keeps_nearly_as_much_as_it_may_however_long_a_replica_is_away() {
        let history = hundred_a_second(1024, 100_000);
        for max_bytes in [100_000, 1_000_000, 5_000_000] {
            let kept = (100_000 - history.floor(max_bytes).unwrap()) * 100;
            assert!((max_bytes / 16 * 15..=max_bytes).contains(&kept), "{kept} of {max_bytes}");
        }
    }

    #[test]
    fn memory_stays_bounded_whatever_commits_are_like() {
        for capacity in [0, 4, 100] {
            let mut history = CommitHistory::starting_at(0, 0, capacity);
            // Each as large as all before it, and as long after them.
            for sequence in 1..=1000 {
                history.record(sequence, 1 << sequence.min(50), 1 << sequence.min(50));
                assert!(history.samples.len() <= capacity.max(4));
            }
            assert_eq!((history.committed(), history.lag(1000, 0)), (1000, Lag::default()));
            assert!(history.lag(0, 1 << 50).bytes >= 1 << 50);
        }
    }

    #[test]
    fn the_floor_keeps_the_newest_bytes() {
        let history = hundred_a_second(64, 20);
        assert_eq!(history.floor(500), Some(15));
        assert_eq!(history.floor(2000), None);
    }

    #[test]
    fn forgetting_keeps_what_the_slowest_replica_needs() {
        let mut history = hundred_a_second(64, 20);
        history.forget_through(12);
        assert_eq!(history.lag(12, 200), Lag { batches: 8, bytes: 800, millis: 70 });
        assert_eq!(history.samples.len(), 9, "no replica needs what is older");
    }
}
