//! The open loop: operations are due at a fixed rate, whether or not earlier ones are answered.
//!
//! Latency counts from the time when an operation was due. Counted from its sending, a stalled
//! server would have few slow answers: those in flight, and none of those waiting behind them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;

use crate::error::BenchError;

/// The timer of the runtime has a grain of 1 ms, which would be most of a latency; a thread sleeps
/// more exactly. Shorter sleeps would only cost the servers CPU time.
const MIN_SLEEP: Duration = Duration::from_micros(100);
/// The longest time for which the thread outlives a closed loop.
const MAX_SLEEP: Duration = Duration::from_millis(100);

/// The times when operations are due: one at the start, and one after each interval.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    pub start: Instant,
    /// Operations a second, above 0.
    pub rate: u32,
}

impl Schedule {
    pub fn due(&self, ticket: u64) -> Instant {
        let whole = Duration::from_secs(ticket / u64::from(self.rate));
        let rest = Duration::from_nanos(
            ticket % u64::from(self.rate) * 1_000_000_000 / u64::from(self.rate),
        );
        self.start + whole + rest
    }

    /// The number of operations due before `instant`.
    pub fn count_before(&self, instant: Instant) -> u64 {
        let elapsed = instant.saturating_duration_since(self.start).as_nanos();
        let guess =
            u64::try_from(elapsed * u128::from(self.rate) / 1_000_000_000).unwrap_or(u64::MAX);
        // `due` rounds down to nanoseconds: the guess may be too low by one.
        (guess..guess.saturating_add(2))
            .find(|ticket| self.due(*ticket) >= instant)
            .unwrap_or(guess.saturating_add(2))
    }
}

/// The operations of one cell, as workers take them.
#[derive(Debug)]
pub struct OpenLoop {
    schedule: Schedule,
    end: Instant,
    /// A permit for each operation that is due and that no worker has taken.
    due: Semaphore,
    taken: AtomicU64,
}

impl OpenLoop {
    /// Starts a thread that ends at `end`, or soon after the loop was closed.
    pub fn start(schedule: Schedule, end: Instant) -> Result<Arc<Self>, BenchError> {
        let this =
            Arc::new(Self { schedule, end, due: Semaphore::new(0), taken: AtomicU64::new(0) });
        let pacer = Arc::clone(&this);
        std::thread::Builder::new()
            .name("pacer".into())
            .spawn(move || pacer.pace())
            .map_err(|error| BenchError::Unsuccessful(format!("cannot start a thread: {error}")))?;
        Ok(this)
    }

    fn pace(&self) {
        let total = self.schedule.count_before(self.end);
        let mut released = 0;
        loop {
            let now = Instant::now();
            if now >= self.end || self.due.is_closed() {
                return self.due.close();
            }
            let count = self.schedule.count_before(now).min(total);
            self.due.add_permits(usize::try_from(count - released).unwrap_or(0));
            released = count;
            let next = if released < total { self.schedule.due(released) } else { self.end };
            std::thread::sleep(next.saturating_duration_since(now).clamp(MIN_SLEEP, MAX_SLEEP));
        }
    }

    /// The time when the next operation was due, once it is due; in that order. `None`: the time is
    /// over.
    pub async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        if Instant::now() >= self.end {
            return None;
        }
        Some(self.schedule.due(self.taken.fetch_add(1, Ordering::Relaxed)))
    }

    /// Ends the operations. Returns the due times of those due before `ended` that no worker took.
    pub fn close(&self, ended: Instant) -> impl Iterator<Item = Instant> {
        self.due.close();
        let taken = self.taken.load(Ordering::Relaxed);
        (taken..self.schedule.count_before(ended).max(taken))
            .map(|ticket| self.schedule.due(ticket))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_are_due_at_even_intervals_without_drift() {
        let start = Instant::now();
        let schedule = Schedule { start, rate: 3 };
        let nanos: Vec<u128> = [0, 1, 2, 3, 7]
            .iter()
            .map(|&ticket| (schedule.due(ticket) - start).as_nanos())
            .collect();
        assert_eq!(nanos, [0, 333_333_333, 666_666_666, 1_000_000_000, 2_333_333_333]);
        let after_an_hour = schedule.due(3 * 3600) - start;
        assert_eq!(after_an_hour, Duration::from_secs(3600));
    }

    #[test]
    fn operations_due_before_an_instant_are_counted_exactly() {
        for rate in [1, 3, 7, 1000, 999_999, 1_000_000] {
            let start = Instant::now();
            let schedule = Schedule { start, rate };
            assert_eq!(schedule.count_before(start), 0);
            for ticket in [0, 1, 2, 6, 7, 1000, 123_457] {
                let due = schedule.due(ticket);
                assert_eq!(schedule.count_before(due), ticket, "rate {rate}");
                assert_eq!(
                    schedule.count_before(due + Duration::from_nanos(1)),
                    ticket + 1,
                    "rate {rate}"
                );
            }
        }
    }

    #[tokio::test]
    async fn operations_come_when_due_and_untaken_ones_are_returned() {
        let start = Instant::now();
        let schedule = Schedule { start, rate: 1000 };
        let end = start + Duration::from_secs(3600);
        let open = OpenLoop::start(schedule, end).unwrap();
        for ticket in 0..20 {
            let due = open.next().await.unwrap();
            assert_eq!(due, schedule.due(ticket));
            assert!(Instant::now() >= due);
        }
        // No worker takes numbers 20 to 49, which a real run would have sent by then.
        let left: Vec<Instant> = open.close(schedule.due(50)).collect();
        assert_eq!(left, (20..50).map(|ticket| schedule.due(ticket)).collect::<Vec<_>>());
        assert!(open.next().await.is_none());
    }

    #[tokio::test]
    async fn nothing_begins_after_the_end() {
        let start = Instant::now();
        let end = start + Duration::from_millis(5);
        let open = OpenLoop::start(Schedule { start, rate: 1000 }, end).unwrap();
        let mut taken = 0;
        while let Some(due) = open.next().await {
            assert!(due < end);
            taken += 1;
        }
        assert!(taken <= 5);
        assert_eq!(open.close(end).count(), 5 - taken);
    }
}
