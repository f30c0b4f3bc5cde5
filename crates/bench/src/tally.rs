//! The counts of one worker, or of several together.

use std::time::Duration;

use hdrhistogram::Histogram;

use crate::error::BenchError;

const MICROS_PER_HOUR: u64 = 3_600_000_000;
const SIGNIFICANT_DIGITS: u8 = 3;

#[derive(Debug, Clone)]
pub struct Tally {
    /// Successes that finished within the measured time.
    pub operations: u64,
    pub errors: u64,
    /// Attempts that failed because another write came first, and that were repeated.
    pub conflicts: u64,
    /// Operations of an open loop that found no free connection before the time was over.
    pub unsent: u64,
    pub first_error: Option<String>,
    /// Latencies of successes, including those after the measured time, and the time so far of
    /// operations unfinished at its end; microseconds.
    latencies_us: Histogram<u64>,
}

impl Tally {
    pub fn new() -> Result<Self, BenchError> {
        let latencies_us = Histogram::new_with_bounds(1, MICROS_PER_HOUR, SIGNIFICANT_DIGITS)
            .map_err(|error| BenchError::Option(error.to_string()))?;
        Ok(Self {
            operations: 0,
            errors: 0,
            conflicts: 0,
            unsent: 0,
            first_error: None,
            latencies_us,
        })
    }

    pub fn success(&mut self, latency: Duration, within_time: bool) {
        self.operations += u64::from(within_time);
        self.latencies_us.saturating_record(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts an operation that had been due for `latency` when the time was over.
    pub fn unsent(&mut self, latency: Duration) {
        self.unsent += 1;
        self.success(latency, false);
    }

    pub fn error(&mut self, error: &BenchError) {
        self.errors += 1;
        if self.first_error.is_none() {
            self.first_error = Some(error.to_string());
        }
    }

    pub fn merge(&mut self, other: Self) -> Result<(), BenchError> {
        self.operations += other.operations;
        self.errors += other.errors;
        self.conflicts += other.conflicts;
        self.unsent += other.unsent;
        self.first_error = self.first_error.take().or(other.first_error);
        self.latencies_us
            .add(other.latencies_us)
            .map_err(|error| BenchError::Option(error.to_string()))
    }

    pub fn quantile_ms(&self, quantile: f64) -> f64 {
        millis(self.latencies_us.value_at_quantile(quantile))
    }

    pub fn max_ms(&self) -> f64 {
        millis(self.latencies_us.max())
    }
}

fn millis(micros: u64) -> f64 {
    micros as f64 / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn merging_adds_up() {
        let mut all = Tally::new().unwrap();
        for worker in 0..2 {
            let mut tally = Tally::new().unwrap();
            for step in 1..=50 {
                tally.success(Duration::from_millis(worker * 50 + step), true);
            }
            tally.error(&BenchError::Unsuccessful(format!("error of {worker}")));
            tally.conflicts += 3;
            all.merge(tally).unwrap();
        }
        assert_eq!((all.conflicts, all.unsent), (6, 0));
        assert_eq!(
            (all.operations, all.errors, all.first_error.as_deref()),
            (100, 2, Some("error of 0"))
        );
        assert!((all.quantile_ms(0.5) - 50.0).abs() < 0.1);
        assert!((all.quantile_ms(0.99) - 99.0).abs() < 0.1);
        assert!((all.max_ms() - 100.0).abs() < 0.1);
    }

    #[test]
    fn late_operation_counts_for_latency_and_not_for_throughput() {
        let mut tally = Tally::new().unwrap();
        tally.success(Duration::from_secs(3), false);
        assert_eq!(tally.operations, 0);
        assert!((tally.max_ms() - 3000.0).abs() < 2.0);
    }

    #[test]
    fn unsent_operation_counts_its_waiting_time() {
        let mut tally = Tally::new().unwrap();
        let mut other = Tally::new().unwrap();
        other.unsent(Duration::from_secs(2));
        tally.merge(other).unwrap();
        assert_eq!((tally.operations, tally.errors, tally.unsent), (0, 0, 1));
        assert!((tally.quantile_ms(0.5) - 2000.0).abs() < 2.0);
    }
}
