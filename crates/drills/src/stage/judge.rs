//! From the records of a run to its report.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_checker::queue::{QueueHistory, check_queue};
use meridian_checker::{History, Invariant, check_with};
use meridian_directory::FailoverReport;

use super::Stage;
use crate::gap::{Latencies, Measure, Window, ms};
use crate::loss::{Claim, Loss, allowance};
use crate::operator::Inspection;
use crate::report::{Dot, Judgement, Mark, MarkKind, QueueJudgement, Replication, RunReport};
use crate::script::ClientsLost;
use crate::watch::Snapshot;
use crate::workload::{Attempts, Kind, Outcome, Probe, Sample};

/// Answers in a chart: the slowest, and some of the others.
const MAX_DOTS: usize = 6_000;
/// Violations of a queue that are told in words.
const MAX_TEXTS: usize = 20;

/// The records of a run.
pub(super) struct Evidence {
    pub(super) warm_at: Duration,
    pub(super) end: Duration,
    pub(super) history: History,
    /// `None`: the drill has no messages.
    pub(super) queue: Option<QueueHistory>,
    /// `None`: the cluster has no directory.
    pub(super) inspection: Option<Inspection>,
    pub(super) converged: usize,
    pub(super) snapshots: Vec<Snapshot>,
    /// The round trips to each region, pinged while clients were at work.
    pub(super) round_trips: Vec<Option<Duration>>,
    /// Writes per second, and probes.
    pub(super) pressure: Option<(f64, Vec<Probe>)>,
}

/// In the window, by region.
fn failed_requests(attempts: &Attempts, window: Window) -> BTreeMap<usize, u64> {
    let mut failed = BTreeMap::new();
    let in_window = |at: &Duration| *at >= window.from && *at <= window.to;
    for (_, region, _) in attempts.failed.iter().filter(|(at, ..)| in_window(at)) {
        *failed.entry(*region).or_default() += 1;
    }
    failed
}

impl Stage<'_> {
    pub(super) fn judge(&self, run: usize, evidence: Evidence) -> RunReport {
        let window = Window { from: self.fault_at, to: evidence.end };
        let samples = self.workload.samples();
        let regions = self.cluster.regions();
        let measures =
            Kind::ALL.into_iter().flat_map(|kind| (0..regions).map(move |region| (kind, region)));
        let measures = measures
            .map(|(kind, region)| Measure::of(&samples, kind, region, evidence.warm_at, window));
        let reports =
            evidence.inspection.as_ref().map(|known| self.roles.reports(known)).unwrap_or_default();
        let faults_ns = self.faults_ns();
        let fault_ns = faults_ns.first().copied().unwrap_or(0);
        let loss = Loss::of(&evidence.history);
        let claims = reports
            .iter()
            .map(|report| Claim::judge(report, &loss, &evidence.history, fault_ns))
            .collect();
        let attempts = self.workload.attempts();
        let pings = evidence.round_trips.iter().copied();
        let round_trip = |region| ms(self.options.wan.round_trip(self.roles.home, region));
        let replication_of =
            |(_, probes): &(f64, Vec<Probe>)| replication(probes, window, round_trip);
        RunReport {
            drill: self.drill.name.clone(),
            title: self.drill.script.title.clone(),
            about: self.drill.script.about.clone(),
            run,
            seed: self.options.seed,
            topology: self.options.topology.clone(),
            wan: self.options.wan.to_string(),
            round_trips_ms: (0..)
                .zip(pings)
                .map(|(to, ping)| ping.map_or_else(|| round_trip(to), ms))
                .collect(),
            home: self.roles.home,
            leader: self.roles.leader,
            directory_leader: self.roles.directory_leader,
            warm_ms: ms(evidence.warm_at),
            fault_ms: ms(window.from),
            end_ms: ms(window.to),
            marks: self.all_marks(&evidence.snapshots),
            measures: measures.collect(),
            lost_regions: match self.drill.script.clients_lost {
                ClientsLost::None => Vec::new(),
                ClientsLost::Primary => vec![self.roles.home],
            },
            failed_requests: failed_requests(&attempts, window),
            failed_by_answer: attempts
                .by_answer()
                .into_iter()
                .map(|(what, n)| (what.to_owned(), n))
                .collect(),
            cut_off_requests: attempts.cut_off,
            oddities: self.workload.oddities(),
            acknowledged: loss.acknowledged,
            untold: loss.untold,
            loss: loss.summary(&faults_ns),
            claims,
            judgement: judgement(&evidence.history, &reports),
            queue: evidence.queue.map(|history| queue_judgement(&history, &reports)),
            converged: evidence.converged,
            nodes: self.cluster.node_ids().len(),
            pressure_per_second: evidence.pressure.as_ref().map(|(per_second, _)| *per_second),
            replication: evidence.pressure.as_ref().map(replication_of).unwrap_or_default(),
            snapshots: evidence.snapshots,
            dots: dots(&samples, evidence.warm_at),
            answers: answers(&samples),
        }
    }

    /// The beginnings of all faults, even if only a later one is measured.
    fn faults_ns(&self) -> Vec<u64> {
        let faults = self.marks.iter().filter(|mark| mark.kind == MarkKind::Fault);
        let at = faults.map(|mark| Duration::from_secs_f64(mark.at_ms / 1000.0));
        at.map(|at| u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)).collect()
    }

    /// The marks of the script, and of changes of the leader.
    fn all_marks(&self, snapshots: &[Snapshot]) -> Vec<Mark> {
        let mut marks = self.marks.clone();
        let mut leader = None;
        for snapshot in snapshots {
            let newest = snapshot.leader();
            if let Some((node, epoch)) = newest
                && leader != newest
            {
                if leader.is_some() {
                    let text = format!("node {node} leads epoch {epoch}");
                    marks.push(Mark { at_ms: snapshot.at_ms, text, kind: MarkKind::Phase });
                }
                leader = newest;
            }
        }
        marks.sort_by(|a, b| a.at_ms.total_cmp(&b.at_ms));
        marks
    }
}

fn judgement(history: &History, reports: &[FailoverReport]) -> Judgement {
    let report = check_with(history, &allowance(reports));
    let violated = Invariant::ALL.into_iter().filter(|invariant| report.count(*invariant) > 0);
    Judgement {
        clean: report.is_clean(),
        violations: violated
            .map(|invariant| (invariant.name().to_owned(), report.count(invariant)))
            .collect(),
        lost_as_admitted: report.lost.len(),
        operations: report.statistics.operations,
        committed: report.statistics.committed,
        unknown: report.statistics.unknown,
        text: report.to_string(),
    }
}

fn queue_judgement(history: &QueueHistory, reports: &[FailoverReport]) -> QueueJudgement {
    let verdict = check_queue(history, &allowance(reports));
    let mut violations = BTreeMap::new();
    for violation in &verdict.violations {
        *violations.entry(violation.rule.name().to_owned()).or_default() += 1;
    }
    let texts = verdict.violations.iter().take(MAX_TEXTS).map(ToString::to_string);
    QueueJudgement { violations, statistics: verdict.statistics, texts: texts.collect() }
}

fn replication(
    probes: &[Probe],
    window: Window,
    round_trip_ms: impl Fn(usize) -> f64,
) -> Vec<Replication> {
    let mut by_region: BTreeMap<usize, Vec<Duration>> = BTreeMap::new();
    for probe in probes.iter().filter(|probe| probe.at >= window.from && probe.at <= window.to) {
        by_region.entry(probe.region).or_default().push(probe.delay);
    }
    let of = |(region, delays)| {
        let latencies = Latencies::of(delays);
        let one_way_ms = round_trip_ms(region) / 2.0;
        Replication {
            region,
            probes: latencies.count,
            p50_ms: latencies.p50_ms,
            p99_ms: latencies.p99_ms,
            one_way_ms,
            p99_beyond_ms: latencies.p99_ms - one_way_ms,
        }
    };
    by_region.into_iter().map(of).collect()
}

fn answers(samples: &[Sample]) -> Vec<(Kind, f64)> {
    let answered = samples.iter().filter(|sample| sample.outcome == Outcome::Answered);
    answered.map(|sample| (sample.kind, ms(sample.ended))).collect()
}

fn dots(samples: &[Sample], warm_at: Duration) -> Vec<Dot> {
    let is_shown =
        |sample: &&Sample| sample.outcome == Outcome::Answered && sample.started >= warm_at;
    let mut shown: Vec<&Sample> = samples.iter().filter(is_shown).collect();
    if shown.len() > MAX_DOTS {
        shown.sort_by_key(|sample| std::cmp::Reverse(sample.latency()));
        let (slowest, rest) = shown.split_at(MAX_DOTS / 3);
        let every = rest.len().div_ceil(MAX_DOTS - slowest.len()).max(1);
        shown = slowest.iter().chain(rest.iter().step_by(every)).copied().collect();
    }
    shown.sort_by_key(|sample| sample.ended);
    let dot = |sample: &&Sample| Dot {
        kind: sample.kind,
        region: sample.region,
        at_ms: ms(sample.ended),
        latency_ms: ms(sample.latency()),
    };
    shown.iter().map(dot).collect()
}
