//! The recovery time as clients measure it: the longest time without an answer, and the slowest
//! answers.

use std::time::Duration;

use serde::Serialize;

use crate::workload::{Kind, Outcome, Sample};

/// A part of the time line, from the workload's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    pub from: Duration,
    pub to: Duration,
}

/// The longest time between two successive answers to clients of one kind and region.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Gap {
    pub ms: f64,
    /// Its beginning, from the workload's origin.
    pub from_ms: f64,
    /// No answer ended the gap: the window did.
    pub open: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Latencies {
    pub count: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
}

/// The view of the clients of one kind and region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Measure {
    pub kind: Kind,
    /// Counted from 0.
    pub region: usize,
    pub before: Latencies,
    /// Without clients that moved to another gateway because theirs was lost: they paused and tried
    /// again.
    pub during: Latencies,
    pub moved: usize,
    /// The longest gap before the window: the usual one.
    pub gap_before: Gap,
    pub gap: Gap,
    /// The slowest answer of the window, minus the median before it.
    pub max_extra_ms: f64,
    pub failed: usize,
    pub cut_off: usize,
}

/// Milliseconds, for reports.
pub fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

impl Gap {
    /// `ends`: the times of answers, ascending. The last answer before the window counts.
    pub fn longest(ends: &[Duration], window: Window) -> Self {
        let first = ends.partition_point(|end| *end < window.from);
        let last = ends.partition_point(|end| *end <= window.to);
        let before = first.checked_sub(1).and_then(|place| ends.get(place)).copied();
        let mut previous = before.unwrap_or(window.from);
        let mut longest = (Duration::ZERO, previous, false);
        for end in ends.get(first..last).unwrap_or_default() {
            let gap = end.saturating_sub(previous);
            if gap > longest.0 {
                longest = (gap, previous, false);
            }
            previous = *end;
        }
        let open = window.to.saturating_sub(previous);
        if open > longest.0 {
            longest = (open, previous, true);
        }
        Self { ms: ms(longest.0), from_ms: ms(longest.1), open: longest.2 }
    }
}

impl Latencies {
    /// By the nearest rank.
    pub fn of(mut latencies: Vec<Duration>) -> Self {
        latencies.sort_unstable();
        Self {
            count: latencies.len(),
            p50_ms: ms(quantile(&latencies, 50)),
            p99_ms: ms(quantile(&latencies, 99)),
            max_ms: ms(latencies.last().copied().unwrap_or_default()),
        }
    }
}

/// The least element of `sorted` that so many percent do not exceed; zero for no elements.
pub fn quantile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl Measure {
    /// Answers before `warm_at` come from a cluster that has just started.
    pub fn of(
        samples: &[Sample],
        kind: Kind,
        region: usize,
        warm_at: Duration,
        window: Window,
    ) -> Self {
        let mine =
            || samples.iter().filter(|sample| sample.kind == kind && sample.region == region);
        let answered = || mine().filter(|sample| sample.outcome == Outcome::Answered);
        let mut ends: Vec<Duration> =
            answered().map(|sample| sample.ended).filter(|end| *end >= warm_at).collect();
        ends.sort_unstable();
        let is_before = |sample: &&Sample| sample.started >= warm_at && sample.ended < window.from;
        let is_during = |sample: &&Sample| sample.ended >= window.from && sample.ended <= window.to;
        let before = Latencies::of(answered().filter(is_before).map(Sample::latency).collect());
        let (moved, stayed): (Vec<&Sample>, Vec<&Sample>) =
            answered().filter(is_during).partition(|sample| sample.moved);
        let during = Latencies::of(stayed.into_iter().map(Sample::latency).collect());
        let ended =
            |outcome| mine().filter(is_during).filter(|sample| sample.outcome == outcome).count();
        Self {
            kind,
            region,
            before,
            during,
            moved: moved.len(),
            gap_before: Gap::longest(&ends, Window { from: warm_at, to: window.from }),
            gap: Gap::longest(&ends, window),
            max_extra_ms: if during.count == 0 {
                0.0
            } else {
                (during.max_ms - before.p50_ms).max(0.0)
            },
            failed: ended(Outcome::Failed),
            cut_off: ended(Outcome::CutOff),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn window(from: u64, to: u64) -> Window {
        Window { from: at(from), to: at(to) }
    }

    #[test]
    fn longest_gap_overlaps_the_window() {
        let ends: Vec<_> = [0, 500, 990, 1010, 1700, 1710, 2000].map(at).into();
        let gap = Gap::longest(&ends, window(1000, 2000));
        assert_eq!((gap.ms, gap.from_ms, gap.open), (690.0, 1010.0, false));
        // A gap that reaches into the window begins at the last answer before it.
        let gap = Gap::longest(&ends, window(1600, 2000));
        assert_eq!((gap.ms, gap.from_ms), (690.0, 1010.0));
        // Before it, gaps do not count.
        assert_eq!(Gap::longest(&ends, window(1705, 2000)).ms, 290.0);
    }

    #[test]
    fn gap_without_an_ending_answer_is_open() {
        let ends: Vec<_> = [900, 1100].map(at).into();
        let gap = Gap::longest(&ends, window(1000, 5000));
        assert_eq!((gap.ms, gap.from_ms, gap.open), (3900.0, 1100.0, true));
        let none = Gap::longest(&[], window(1000, 5000));
        assert_eq!((none.ms, none.from_ms, none.open), (4000.0, 1000.0, true));
        // An answer after the window does not end the gap.
        assert!(Gap::longest(&[at(900), at(6000)], window(1000, 5000)).open);
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let sorted: Vec<_> = (1..=20).map(at).collect();
        assert_eq!(quantile(&sorted, 50), at(10));
        assert_eq!(quantile(&sorted, 99), at(20));
        assert_eq!(quantile(&[], 99), Duration::ZERO);
        let latencies = Latencies::of((1..=200).rev().map(at).collect());
        assert_eq!(
            (latencies.count, latencies.p50_ms, latencies.p99_ms, latencies.max_ms),
            (200, 100.0, 198.0, 200.0)
        );
    }

    #[test]
    fn one_kind_and_region_is_measured() {
        let sample = |kind, region, started, ended, outcome| Sample {
            kind,
            region,
            started: at(started),
            ended: at(ended),
            outcome,
            moved: false,
        };
        let samples = [
            sample(Kind::Write, 0, 0, 400, Outcome::Answered),
            sample(Kind::Write, 0, 500, 510, Outcome::Answered),
            sample(Kind::Write, 0, 980, 1700, Outcome::Answered),
            sample(Kind::Write, 0, 1000, 1100, Outcome::CutOff),
            sample(Kind::Write, 0, 1700, 2000, Outcome::Failed),
            sample(Kind::Write, 1, 1000, 1001, Outcome::Answered),
            sample(Kind::StrongRead, 0, 1000, 1001, Outcome::Answered),
        ];
        let measure = Measure::of(&samples, Kind::Write, 0, at(450), window(1000, 2000));
        assert_eq!((measure.before.count, measure.before.p50_ms), (1, 10.0));
        assert_eq!(
            (measure.during.count, measure.during.max_ms, measure.max_extra_ms),
            (1, 720.0, 710.0)
        );
        assert_eq!((measure.gap.ms, measure.gap.from_ms, measure.gap.open), (1190.0, 510.0, false));
        assert_eq!((measure.failed, measure.cut_off), (1, 1));
    }
}
