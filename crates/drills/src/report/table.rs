//! Reports as text.

use std::fmt;

use super::{QueueJudgement, RunReport, from_fault_s};
use crate::gap::Measure;
use crate::loss::{Claim, Verdict, reported_at_most};
use crate::verdict::{PromiseVerdict, Row};
use crate::workload::Kind;

/// The number of the cluster's failed answers that are shown.
const ANSWERS_SHOWN: usize = 5;

/// One run.
pub fn run_text(report: &RunReport) -> String {
    RunText(report).to_string()
}

struct RunText<'a>(&'a RunReport);

impl fmt::Display for RunText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_run(f, self.0)
    }
}

fn write_run(out: &mut fmt::Formatter<'_>, report: &RunReport) -> fmt::Result {
    let counts: Vec<String> = report.topology.iter().map(ToString::to_string).collect();
    writeln!(out, "{}: {}", report.drill, report.title)?;
    writeln!(
        out,
        "  {} data centers, round trips {} ms, run {}, seed {}",
        counts.join(","),
        report.wan,
        report.run,
        report.seed
    )?;
    let directory =
        report.directory_leader.map_or("no node".to_owned(), |node| format!("node {node}"));
    writeln!(out, "  node {} leads, {directory} leads the directory", report.leader)?;
    writeln!(out)?;
    for mark in &report.marks {
        writeln!(out, "  {:+9.3} s  {}", from_fault_s(report, mark.at_ms), mark.text)?;
    }
    writeln!(out)?;
    write_measures(out, report)?;
    writeln!(out)?;
    for kind in Kind::ALL {
        if let Some(gap) = report.rto(kind) {
            let open = if gap.open { ", and not over at the end" } else { "" };
            let at_s = from_fault_s(report, gap.from_ms);
            writeln!(
                out,
                "  RTO of {kind}: {:.0} ms without an answer, from {at_s:+.3} s on{open}",
                gap.ms
            )?;
        }
    }
    writeln!(
        out,
        "  RPO: {} of {} acknowledged writes lost, {:.0} ms",
        report.loss.transactions, report.acknowledged, report.loss.window_ms
    )?;
    for claim in &report.claims {
        write_claim(out, claim)?;
    }
    write_requests(out, report)?;
    write_replication(out, report)?;
    if let Some(per_second) = report.pressure_per_second {
        writeln!(out, "  written beside the recorded clients: {per_second:.0} a second")?;
    }
    write_lag(out, report)?;
    let judgement = &report.judgement;
    let verdict = if judgement.clean { "strictly serializable" } else { "VIOLATED" };
    writeln!(
        out,
        "  consistency: {verdict}, {} operations, {} commits",
        judgement.operations, judgement.committed
    )?;
    write_queue(out, report)?;
    for fault in report.faults() {
        writeln!(out, "  NOT SOUND: {fault}")?;
    }
    if !judgement.clean {
        writeln!(out, "\n{}", judgement.text)?;
    }
    Ok(())
}

fn write_measures(out: &mut fmt::Formatter<'_>, report: &RunReport) -> fmt::Result {
    writeln!(
        out,
        "  {:<15} {:<10} {:>8} {:>8} {:>8}  {:>8} {:>8} {:>8} {:>8} {:>6} {:>7}",
        "", "", "before:", "", "", "after:", "", "", "", "", ""
    )?;
    writeln!(
        out,
        "  {:<15} {:<10} {:>8} {:>8} {:>8}  {:>8} {:>8} {:>8} {:>8} {:>6} {:>7}",
        "in ms", "", "p50", "p99", "gap", "p50", "p99", "max", "gap", "moved", "failed"
    )?;
    report.measures.iter().try_for_each(|measure| write_measure(out, report, measure))
}

fn write_queue(out: &mut fmt::Formatter<'_>, report: &RunReport) -> fmt::Result {
    let Some(QueueJudgement { statistics, texts, .. }) = &report.queue else { return Ok(()) };
    writeln!(
        out,
        "  queue: {} messages enqueued, {} done, {} dead; handed out {} times, {} of them again without a refusal",
        statistics.enqueued,
        statistics.done,
        statistics.dead,
        statistics.handed,
        statistics.duplicates
    )?;
    texts.iter().try_for_each(|text| writeln!(out, "    {text}"))
}

fn write_replication(out: &mut fmt::Formatter<'_>, report: &RunReport) -> fmt::Result {
    for replication in &report.replication {
        writeln!(
            out,
            "  shown in region {}: p50 {:.1} ms, p99 {:.1} ms after the acknowledgement, one way being {:.0} ms ({} probes)",
            replication.region + 1,
            replication.p50_ms,
            replication.p99_ms,
            replication.one_way_ms,
            replication.probes
        )?;
    }
    Ok(())
}

fn write_measure(
    out: &mut fmt::Formatter<'_>,
    report: &RunReport,
    measure: &Measure,
) -> fmt::Result {
    let lost = report.lost_regions.contains(&measure.region);
    writeln!(
        out,
        "  {:<15} {:<10} {:>8.1} {:>8.1} {:>8.1}  {:>8.1} {:>8.1} {:>8.1} {:>8.1} {:>6} {:>7}{}",
        measure.kind.name(),
        format!("region-{}", measure.region + 1),
        measure.before.p50_ms,
        measure.before.p99_ms,
        measure.gap_before.ms,
        measure.during.p50_ms,
        measure.during.p99_ms,
        measure.during.max_ms,
        measure.gap.ms,
        measure.moved,
        measure.failed,
        if lost { "  (not judged)" } else { "" }
    )
}

fn write_claim(out: &mut fmt::Formatter<'_>, claim: &Claim) -> fmt::Result {
    let report = &claim.report;
    let verdict = match &claim.verdict {
        Verdict::True => "true".to_owned(),
        Verdict::Incomplete => "not wrong, and not complete yet".to_owned(),
        Verdict::False(why) => format!("NOT TRUE: {why}"),
    };
    let kind = if report.planned { "switchover" } else { "failover" };
    writeln!(
        out,
        "  the cluster reports: epoch {}, {kind} from {} to {} ({})",
        report.epoch, report.from_region, report.to_region, report.cause
    )?;
    let (least, most) = (report.loss.transactions, reported_at_most(report));
    let transactions = match most {
        Some(most) if most == least => least.to_string(),
        Some(most) => format!("{least} to {most}"),
        None => format!("{least} or more"),
    };
    let window_ms = report.loss.window_ms;
    writeln!(
        out,
        "    lost beyond {}: {transactions} transactions, {window_ms} ms: {verdict}",
        report.base
    )?;
    writeln!(
        out,
        "    clients: {} acknowledged writes beyond the base, within {:.0} ms; {} more were in flight",
        claim.acknowledged_lost, claim.acknowledged_span_ms, claim.unacknowledged
    )
}

fn write_requests(out: &mut fmt::Formatter<'_>, report: &RunReport) -> fmt::Result {
    let failed: u64 = report.failed_requests.values().sum();
    write!(out, "  requests failed: {failed}")?;
    if failed > report.failed_judged() {
        write!(out, ", {} of them in regions that were not lost", report.failed_judged())?;
    }
    writeln!(out, "; cut off with their gateways: {}", report.cut_off_requests)?;
    for (answer, count) in report.failed_by_answer.iter().take(ANSWERS_SHOWN) {
        writeln!(out, "    {count:>6} times {answer}")?;
    }
    Ok(())
}

fn write_lag(out: &mut fmt::Formatter<'_>, report: &RunReport) -> fmt::Result {
    let most = |from_ms: f64, to_ms: f64| {
        let within = report
            .snapshots
            .iter()
            .filter(|snapshot| snapshot.at_ms >= from_ms && snapshot.at_ms < to_ms);
        within.flat_map(|snapshot| snapshot.lag_ms.values()).copied().max().unwrap_or(0)
    };
    let (before, after) =
        (most(report.warm_ms, report.fault_ms), most(report.fault_ms, report.end_ms));
    writeln!(out, "  greatest lag of a subscriber: {before} ms before, {after} ms after the fault")
}

/// Several runs of one drill, a line each, and the worst of each column.
pub fn runs_text(reports: &[RunReport]) -> String {
    let mut out = format!(
        "{:>4} {:>12} {:>12} {:>12} {:>10} {:>10} {:>8}  {}\n",
        "run", "writes ms", "strong ms", "eventual ms", "lost", "lost ms", "failed", "sound"
    );
    let gap = |report: &RunReport, kind| report.rto(kind).map_or(0.0, |gap| gap.ms);
    for report in reports {
        let line = format!(
            "{:>4} {:>12.0} {:>12.0} {:>12.0} {:>10} {:>10.0} {:>8}  {}\n",
            report.run,
            gap(report, Kind::Write),
            gap(report, Kind::StrongRead),
            gap(report, Kind::EventualRead),
            report.loss.transactions,
            report.loss.window_ms,
            report.failed_judged(),
            if report.faults().is_empty() { "yes" } else { "NO" }
        );
        out.push_str(&line);
    }
    let worst = |kind| reports.iter().map(|report| gap(report, kind)).fold(0.0, f64::max);
    let line = format!(
        "{:>4} {:>12.0} {:>12.0} {:>12.0}   the longest without an answer\n",
        "all",
        worst(Kind::Write),
        worst(Kind::StrongRead),
        worst(Kind::EventualRead)
    );
    out.push_str(&line);
    out
}

/// The promises, each with its measurement.
pub fn suite_text(rows: &[Row]) -> String {
    let word = |verdict: &PromiseVerdict| match verdict {
        PromiseVerdict::Met => "met",
        PromiseVerdict::Missed => "MISSED",
        PromiseVerdict::NotStated => "-",
        PromiseVerdict::NotMeasured => "not measured",
    };
    let mut out = String::new();
    for row in rows {
        let line = format!(
            "{}\n  stated:   {:<12} {}\n  aim:      {:<12} {}\n  measured: {}\n  by:       {}\n\n",
            row.promise,
            word(&row.stated.verdict),
            row.stated.text,
            word(&row.aim.verdict),
            row.aim.text,
            row.measured,
            row.drills.join(", ")
        );
        out.push_str(&line);
    }
    out
}
