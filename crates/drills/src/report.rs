//! The report of a run.

mod chart;
mod escape;
mod html;
mod table;

use std::collections::BTreeMap;

use meridian_checker::queue::QueueStatistics;
use meridian_types::NodeId;
use serde::Serialize;

use crate::gap::{Gap, Measure};
use crate::loss::{Claim, LossSummary, Verdict};
use crate::watch::Snapshot;
use crate::workload::Kind;

pub use html::html_page;
pub use table::{run_text, runs_text, suite_text};

/// An event on the time line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Mark {
    /// From the workload's origin.
    pub at_ms: f64,
    pub text: String,
    pub kind: MarkKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MarkKind {
    Fault,
    Heal,
    /// Waiting, measuring, and reports of the cluster.
    Phase,
}

/// An answer on the time line, for the charts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dot {
    pub kind: Kind,
    pub region: usize,
    pub at_ms: f64,
    pub latency_ms: f64,
}

/// The verdict of the checker.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Judgement {
    pub clean: bool,
    /// How often each invariant is violated.
    pub violations: BTreeMap<String, usize>,
    /// Acknowledged transactions that the cluster's own reports of failovers cover.
    pub lost_as_admitted: usize,
    pub operations: usize,
    pub committed: usize,
    pub unknown: usize,
    /// All of it in words.
    pub text: String,
}

/// The verdict of the checker on a queue.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct QueueJudgement {
    /// How often each rule is violated.
    pub violations: BTreeMap<String, usize>,
    pub statistics: QueueStatistics,
    /// Some of the violations in words.
    pub texts: Vec<String>,
}

/// The delay until writes were shown in another region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replication {
    /// Counted from 0.
    pub region: usize,
    pub probes: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub one_way_ms: f64,
    /// The p99 minus the one-way delay.
    pub p99_beyond_ms: f64,
}

/// One run of one drill. Times count from the workload's origin.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunReport {
    pub drill: String,
    pub title: String,
    pub about: String,
    /// From 1.
    pub run: usize,
    pub seed: u64,
    pub topology: Vec<usize>,
    pub wan: String,
    /// From the primary region to each region, in ms, measured by pings through such links at the
    /// same time (median).
    pub round_trips_ms: Vec<f64>,
    /// The primary region when the drill began; regions count from 0.
    pub home: usize,
    /// The leaders of the shard and of the directory when the drill began. `None`: unknown.
    pub leader: NodeId,
    pub directory_leader: Option<NodeId>,
    pub warm_ms: f64,
    /// The beginning and the end of the measured time.
    pub fault_ms: f64,
    pub end_ms: f64,
    pub marks: Vec<Mark>,
    pub measures: Vec<Measure>,
    /// Regions whose clients were lost with their data centers: measured, not judged.
    pub lost_regions: Vec<usize>,
    /// Failed requests at gateways that were up, after the fault, by region.
    pub failed_requests: BTreeMap<usize, u64>,
    pub failed_by_answer: BTreeMap<String, u64>,
    /// Requests that were in flight at a gateway that was lost.
    pub cut_off_requests: u64,
    /// Answers that no server should give.
    pub oddities: Vec<String>,
    pub acknowledged: usize,
    /// Acknowledged writes that the final reads do not cover.
    pub untold: usize,
    pub loss: LossSummary,
    pub claims: Vec<Claim>,
    pub judgement: Judgement,
    /// `None`: the drill has no messages.
    pub queue: Option<QueueJudgement>,
    /// Nodes that had applied the same state in the end, out of all nodes.
    pub converged: usize,
    pub nodes: usize,
    /// Writes per second beside those of the recorded clients.
    pub pressure_per_second: Option<f64>,
    pub replication: Vec<Replication>,
    #[serde(rename = "looks")]
    pub snapshots: Vec<Snapshot>,
    /// Answers for the charts: some of them, the slowest among them.
    #[serde(skip)]
    pub dots: Vec<Dot>,
    /// When each answer came.
    #[serde(skip)]
    pub answers: Vec<(Kind, f64)>,
}

impl RunReport {
    /// All faults of the run, whatever was promised; empty in a sound run.
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            self.oddities.iter().map(|oddity| format!("odd answer: {oddity}")).collect();
        let of_queue = self.queue.iter().flat_map(|queue| &queue.violations);
        for (invariant, count) in self.judgement.violations.iter().chain(of_queue) {
            faults.push(format!("{invariant}: violated {count} times"));
        }
        if self.untold > 0 {
            faults.push(format!("{} acknowledged writes were not read back", self.untold));
        }
        for claim in &self.claims {
            if let Verdict::False(why) = &claim.verdict {
                faults
                    .push(format!("the report of epoch {} is not true: {why}", claim.report.epoch));
            }
        }
        if self.converged < self.nodes {
            faults.push(format!(
                "only {} of {} nodes have applied the same in the end",
                self.converged, self.nodes
            ));
        }
        faults
    }

    /// The measures of a kind that are judged.
    pub fn judged(&self, kind: Kind) -> impl Iterator<Item = &Measure> {
        let counts = move |measure: &&Measure| {
            measure.kind == kind
                && !self.lost_regions.contains(&measure.region)
                && measure.before.count > 0
        };
        self.measures.iter().filter(counts)
    }

    /// The longest gap of a kind in the regions that are judged.
    pub fn rto(&self, kind: Kind) -> Option<&Gap> {
        self.judged(kind).map(|measure| &measure.gap).max_by(|a, b| a.ms.total_cmp(&b.ms))
    }

    /// The longest gap of writes and strong reads.
    pub fn strong_rto_ms(&self) -> f64 {
        let gaps = [Kind::Write, Kind::StrongRead].into_iter().filter_map(|kind| self.rto(kind));
        gaps.map(|gap| gap.ms).fold(0.0, f64::max)
    }

    /// The slowest write or strong read, minus the usual latency.
    pub fn strong_extra_ms(&self) -> f64 {
        let judged = self.judged(Kind::Write).chain(self.judged(Kind::StrongRead));
        judged.map(|measure| measure.max_extra_ms).fold(0.0, f64::max)
    }

    /// Failed requests of the regions that are judged.
    pub fn failed_judged(&self) -> u64 {
        let judged =
            self.failed_requests.iter().filter(|(region, _)| !self.lost_regions.contains(region));
        judged.map(|(_, count)| count).sum()
    }
}

/// A time from a place on the workload's line to one from the fault, in seconds.
pub(crate) fn from_fault_s(report: &RunReport, at_ms: f64) -> f64 {
    (at_ms - report.fault_ms) / 1000.0
}

#[cfg(test)]
pub(crate) mod tests;
