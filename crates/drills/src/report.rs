//! What came out of a run.

mod chart;
mod html;
mod table;

use std::collections::BTreeMap;

use meridian_types::NodeId;
use serde::Serialize;

use crate::gap::{Gap, Measure};
use crate::loss::{Claim, LossSummary, Verdict};
use crate::watch::Look;
use crate::workload::Kind;

pub use html::html_page;
pub use table::{run_text, runs_text, suite_text};

/// Something that happened on the time line.
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
    /// Waiting, measuring, and what the cluster reports.
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

/// What the checker said.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Judgement {
    pub clean: bool,
    /// How often each invariant is violated.
    pub violations: BTreeMap<String, usize>,
    /// Acknowledged transactions that the cluster's own reports of failovers admit to have lost.
    pub lost_as_admitted: usize,
    pub operations: usize,
    pub committed: usize,
    pub unknown: usize,
    /// All of it in words.
    pub text: String,
}

/// How soon writes were shown in another region.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Replication {
    /// Counted from 0.
    pub region: usize,
    pub probes: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub one_way_ms: f64,
    /// What the p99 takes beyond the one-way delay.
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
    /// From the primary region to each region, in ms, as pings through such links took at the same
    /// time (median).
    pub round_trips_ms: Vec<f64>,
    /// The primary region when the drill began, counted from 0.
    pub home: usize,
    /// Who led the shard and the directory when the drill began. `None`: not known.
    pub leader: NodeId,
    pub directory_leader: Option<NodeId>,
    pub warm_ms: f64,
    /// When the fault began, and until when it is measured.
    pub fault_ms: f64,
    pub end_ms: f64,
    pub marks: Vec<Mark>,
    pub measures: Vec<Measure>,
    /// Regions whose clients were lost with their data centers: measured, not judged.
    pub lost_regions: Vec<usize>,
    /// Requests that failed at gateways that were there, after the fault, by region.
    pub failed_requests: BTreeMap<usize, u64>,
    pub failed_by_answer: BTreeMap<String, u64>,
    /// Requests that were in flight at a gateway that was lost.
    pub cut_off_requests: u64,
    /// Answers that no server should give.
    pub oddities: Vec<String>,
    pub acknowledged: usize,
    /// Acknowledged writes of which the final reads do not tell.
    pub untold: usize,
    pub loss: LossSummary,
    pub claims: Vec<Claim>,
    pub judgement: Judgement,
    /// Nodes that had applied the same in the end, of all.
    pub converged: usize,
    pub nodes: usize,
    /// Writes per second beside those of the recorded clients.
    pub pressure_per_second: Option<f64>,
    pub replication: Vec<Replication>,
    pub looks: Vec<Look>,
    /// Answers for the charts: some of them, the slowest among them.
    #[serde(skip)]
    pub dots: Vec<Dot>,
    /// When each answer came.
    #[serde(skip)]
    pub answers: Vec<(Kind, f64)>,
}

impl RunReport {
    /// What is wrong, whatever was promised; nothing in a sound run.
    pub fn faults(&self) -> Vec<String> {
        let mut faults: Vec<String> =
            self.oddities.iter().map(|oddity| format!("odd answer: {oddity}")).collect();
        for (invariant, count) in &self.judgement.violations {
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

    /// What the slowest write or strong read took beyond the usual.
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
