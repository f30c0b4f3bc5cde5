//! The promises of the product, and their comparison with runs of drills. The README lists them.

use std::collections::BTreeMap;

use meridian_checker::queue::QueueStatistics;

use crate::gap::Latencies;
use crate::report::RunReport;
use crate::verdict::{Column, PromiseVerdict, Row};
use crate::workload::Kind;

/// The runs of each drill, by its name.
pub type Runs = BTreeMap<String, Vec<RunReport>>;

/// The drills that the promises need.
pub const DRILLS: [&str; 10] = [
    "calm",
    "replication",
    "dc-loss",
    "replica-loss",
    "two-dc-loss",
    "region-loss",
    "partition",
    "throttled-loss",
    "switchover",
    "queue-failover",
];

/// Whether the stated promise and the aim are kept (`None`: not measured), and the measurement.
type Kept = (Option<bool>, Option<bool>, String);

/// A promise, and the function that compares runs with it.
struct Promise {
    promise: &'static str,
    /// The promise of the system that this product replaces.
    stated: &'static str,
    aim: &'static str,
    drills: &'static [&'static str],
    judge: fn(&[&RunReport]) -> Kept,
}

const PROMISES: [Promise; 11] = [
    Promise {
        promise: "copies",
        stated: "at least 6 data centers in 3 regions",
        aim: "the same",
        drills: &["calm"],
        judge: |runs| {
            let least = |copies: fn(&RunReport) -> usize| {
                runs.iter().map(|run| copies(run)).min().unwrap_or(0)
            };
            let regions = |run: &RunReport| run.topology.iter().filter(|count| **count > 0).count();
            let (copies, regions) = (least(|run| run.converged), least(regions));
            let met = Some(copies >= 6 && regions >= 3);
            (
                met,
                met,
                format!("{copies} data centers in {regions} regions hold every acknowledged write"),
            )
        },
    },
    Promise {
        promise: "a commit is durable in at least 2 data centers of the primary region before it is acknowledged",
        stated: "at least 2",
        aim: "the same: the loss of the leader loses nothing",
        drills: &["dc-loss"],
        judge: |runs| {
            let (lost, acknowledged) = lost(runs);
            let met = Some(lost == 0);
            (met, met, format!("{lost} of {acknowledged} acknowledged writes lost with the leader"))
        },
    },
    Promise {
        promise: "consistency",
        stated: "external (strict serializability)",
        aim: "the same, checked from client histories under faults",
        drills: &DRILLS,
        judge: |runs| {
            let violated =
                runs.iter().filter(|run| !run.judgement.clean || !run.oddities.is_empty()).count();
            let operations: usize = runs.iter().map(|run| run.judgement.operations).sum();
            let met = Some(violated == 0);
            (
                met,
                met,
                format!("{violated} of {} histories violated, {operations} operations", runs.len()),
            )
        },
    },
    Promise {
        promise: "replication to other regions",
        stated: "under 10 s",
        aim: "p99 under 500 ms beyond the one-way delay, at 5,000 writes/s",
        drills: &["replication"],
        judge: |runs| {
            let all = || runs.iter().flat_map(|run| &run.replication);
            let worst = all().map(|region| region.p99_ms).fold(0.0, f64::max);
            let beyond = all().map(|region| region.p99_beyond_ms).fold(0.0, f64::max);
            let rates = runs.iter().filter_map(|run| run.pressure_per_second);
            let rate = rates.fold(f64::INFINITY, f64::min);
            let measured = all().next().is_some();
            // Within one percent of the rate.
            let aim = (measured && rate >= 4_950.0).then_some(beyond < 500.0);
            let text = format!(
                "p99 {worst:.0} ms, {beyond:.0} ms beyond the one-way delay, at {rate:.0} writes/s"
            );
            (measured.then_some(worst < 10_000.0), aim, text)
        },
    },
    Promise {
        promise: "loss of one primary data center",
        stated: "RPO 0, RTO under 5 s",
        aim: "RPO 0, RTO under 1 s as a client sees it, no request failed",
        drills: &["dc-loss"],
        judge: |runs| {
            let (rto, failed, (lost, _)) = (worst_rto(runs), failed(runs), lost(runs));
            let times = if runs.len() == 1 {
                "in one run".to_owned()
            } else {
                format!("at p99 of {} runs", runs.len())
            };
            let text = format!("RPO {lost}, RTO {rto:.0} ms {times}, {failed} requests failed");
            (
                Some(lost == 0 && rto < 5_000.0),
                Some(lost == 0 && rto < 1_000.0 && failed == 0),
                text,
            )
        },
    },
    Promise {
        promise: "loss of any data centers of a replica region",
        stated: "RPO 0, RTO under 5 s",
        aim: "RPO 0, no strong request touched (none over 100 ms of extra latency)",
        drills: &["replica-loss"],
        judge: |runs| {
            let (rto, failed, (lost, _)) = (worst_rto(runs), failed(runs), lost(runs));
            let eventual =
                runs.iter().filter_map(|run| run.rto(Kind::EventualRead)).map(|gap| gap.ms);
            let eventual = eventual.fold(0.0, f64::max);
            let extra = runs.iter().map(|run| run.strong_extra_ms()).fold(0.0, f64::max);
            let text = format!(
                "RPO {lost}, slowest strong request {extra:.0} ms over the usual, {failed} requests failed, \
                 eventual reads without an answer for {eventual:.0} ms"
            );
            let stated = lost == 0 && rto < 5_000.0 && eventual < 5_000.0;
            (
                Some(stated),
                Some(lost == 0 && extra < 100.0 && failed == 0 && eventual < 1_000.0),
                text,
            )
        },
    },
    Promise {
        promise: "loss of two or more primary data centers",
        stated: "RPO under 60 s",
        aim: "RPO under 1 s, automatic, RTO under 10 s",
        drills: &["two-dc-loss", "region-loss", "partition"],
        judge: |runs| {
            let (rto, rpo) = (worst_rto(runs), worst_rpo_ms(runs));
            let (lost, _) = lost(runs);
            let automatic =
                runs.iter().all(|run| run.claims.iter().any(|claim| !claim.report.planned));
            let text = format!(
                "RPO {rpo:.0} ms ({lost} transactions), RTO {rto:.0} ms, {}",
                if automatic { "automatic" } else { "no failover" }
            );
            (Some(rpo < 60_000.0), Some(rpo < 1_000.0 && rto < 10_000.0 && automatic), text)
        },
    },
    Promise {
        promise: "writes are throttled before the bound on loss can break",
        stated: "",
        aim: "RPO under 1 s also where replication cannot keep up",
        drills: &["throttled-loss"],
        judge: |runs| {
            let (rpo, (lost, _)) = (worst_rpo_ms(runs), lost(runs));
            (None, Some(rpo < 1_000.0), format!("RPO {rpo:.0} ms ({lost} transactions)"))
        },
    },
    Promise {
        promise: "planned switchover",
        stated: "",
        aim: "RPO 0, write pause under 1 s",
        drills: &["switchover"],
        judge: |runs| {
            let pauses = runs.iter().filter_map(|run| run.rto(Kind::Write)).map(|gap| gap.ms);
            let (pause, (lost, _)) = (pauses.fold(0.0, f64::max), lost(runs));
            (
                None,
                Some(lost == 0 && pause < 1_000.0),
                format!("RPO {lost}, writes paused for {pause:.0} ms"),
            )
        },
    },
    Promise {
        promise: "messages of queues, over the loss of their leader",
        stated: "at least once",
        aim: "at least once, one listener at a time, no attempt lost with the leader",
        drills: &["queue-failover"],
        judge: |runs| {
            let queues = || runs.iter().filter_map(|run| run.queue.as_ref());
            let count = |of: fn(&QueueStatistics) -> usize| -> usize {
                queues().map(|queue| of(&queue.statistics)).sum()
            };
            let violations: usize = queues().flat_map(|queue| queue.violations.values()).sum();
            let kept = queues().next().is_some().then_some(violations == 0);
            let text = format!(
                "{} messages, handed out {} times, {violations} violations",
                count(|statistics| statistics.enqueued),
                count(|statistics| statistics.handed)
            );
            (kept, kept, text)
        },
    },
    Promise {
        promise: "reads from a replica region",
        stated: "eventual: local; strong: one WAN round trip",
        aim: "eventual: under 1 ms over the client's own round trip; strong: one WAN round trip and under 1 ms",
        drills: &["calm"],
        judge: |runs| {
            let (mut eventual, mut strong, mut stated) = (0.0_f64, 0.0_f64, true);
            for run in runs {
                for measure in run.measures.iter().filter(|measure| measure.region != run.home) {
                    let all = median(measure.before, measure.during);
                    let round_trip = run.round_trips_ms.get(measure.region).copied().unwrap_or(0.0);
                    match measure.kind {
                        Kind::EventualRead => {
                            eventual = eventual.max(all);
                            stated &= all < round_trip / 2.0;
                        }
                        Kind::StrongRead => {
                            strong = strong.max(all - round_trip);
                            stated &= all < round_trip * 1.5;
                        }
                        Kind::Write => {}
                    }
                }
            }
            let text = format!(
                "median: eventual {eventual:.2} ms, strong {strong:.2} ms over the round trip"
            );
            (Some(stated), Some(eventual < 1.0 && strong < 1.0), text)
        },
    },
];

/// A median over both parts of a run without a fault.
fn median(before: Latencies, during: Latencies) -> f64 {
    if during.count >= before.count { during.p50_ms } else { before.p50_ms }
}

fn lost(runs: &[&RunReport]) -> (usize, usize) {
    (
        runs.iter().map(|run| run.loss.transactions).sum(),
        runs.iter().map(|run| run.acknowledged).sum(),
    )
}

fn worst_rpo_ms(runs: &[&RunReport]) -> f64 {
    runs.iter().map(|run| run.loss.window_ms).fold(0.0, f64::max)
}

fn failed(runs: &[&RunReport]) -> u64 {
    runs.iter().map(|run| run.failed_judged()).sum()
}

/// The p99 of the runs by the nearest rank; of up to 100 runs that is the worst.
fn worst_rto(runs: &[&RunReport]) -> f64 {
    let mut gaps: Vec<f64> = runs.iter().map(|run| run.strong_rto_ms()).collect();
    gaps.sort_by(f64::total_cmp);
    let rank = (gaps.len() * 99).div_ceil(100);
    gaps.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}

/// Compares runs with all promises.
pub fn rows(runs: &Runs) -> Vec<Row> {
    PROMISES.iter().map(|promise| row(promise, runs)).collect()
}

fn row(promise: &Promise, runs: &Runs) -> Row {
    let mine: Vec<&RunReport> =
        promise.drills.iter().filter_map(|drill| runs.get(*drill)).flatten().collect();
    let all_run =
        promise.drills.iter().all(|drill| runs.get(*drill).is_some_and(|runs| !runs.is_empty()));
    let (stated, aim, mut measured) = (promise.judge)(&mine);
    if mine.is_empty() {
        "nothing: no drill came to its end".clone_into(&mut measured);
    }
    let verdict = |kept: Option<bool>| match kept {
        Some(false) if !mine.is_empty() => PromiseVerdict::Missed,
        Some(true) if all_run => PromiseVerdict::Met,
        _ => PromiseVerdict::NotMeasured,
    };
    Row {
        promise: promise.promise,
        stated: Column {
            text: if promise.stated.is_empty() { "not stated" } else { promise.stated },
            verdict: if promise.stated.is_empty() {
                PromiseVerdict::NotStated
            } else {
                verdict(stated)
            },
        },
        aim: Column { text: promise.aim, verdict: verdict(aim) },
        measured,
        drills: promise.drills.to_vec(),
    }
}

#[cfg(test)]
mod tests;
