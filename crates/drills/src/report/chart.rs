//! Charts on the time line of a fault, as SVG.

use std::fmt;

use meridian_types::NodeId;

use super::escape::Escaped;
use super::{MarkKind, RunReport};
use crate::workload::Kind;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 12.0;
const TOP: f64 = 8.0;
const BOTTOM: f64 = 22.0;
/// The width of a bar of throughput.
const BIN_MS: f64 = 250.0;
/// Shorter latencies are drawn at this height: a logarithm has no zero.
const LEAST_LATENCY_MS: f64 = 0.05;
/// A longer time without a point interrupts the line.
const HOLE_MS: f64 = 1000.0;
const MAX_BINS: u32 = 10_000;
/// The largest power of ten on the axis, in ms: no latency of a drill is longer.
const MAX_POWER: i32 = 6;

/// The mapping of a value to a height.
#[derive(Debug, Clone, Copy)]
enum Scale {
    /// From 0 to the value.
    Linear(f64),
    /// Powers of ten, from the first to the second.
    Log(i32, i32),
}

/// A chart while it is drawn.
struct Chart<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    report: &'a RunReport,
    height: f64,
    scale: Scale,
}

/// The answers of one kind: their times and latencies.
pub(super) fn latency(out: &mut fmt::Formatter<'_>, report: &RunReport, kind: Kind) -> fmt::Result {
    let dots = || report.dots.iter().filter(|dot| dot.kind == kind);
    let most = dots().map(|dot| dot.latency_ms).fold(1.0, f64::max);
    let power = (1..MAX_POWER).find(|power| 10_f64.powi(*power) >= most);
    let scale = Scale::Log(-2, power.unwrap_or(MAX_POWER));
    let mut chart = Chart { out, report, height: 200.0, scale };
    chart.begin(&format!("latency of {kind}, ms"))?;
    for region in 0..report.topology.len() {
        write!(chart.out, "<path class=\"dots c{region}\" d=\"")?;
        for dot in dots().filter(|dot| dot.region == region) {
            let (x, y) = (chart.x(dot.at_ms), chart.y(dot.latency_ms.max(LEAST_LATENCY_MS)));
            write!(chart.out, "M{x:.1} {y:.1}h0")?;
        }
        writeln!(chart.out, "\"/>")?;
    }
    chart.end()
}

/// Answers per second of each kind.
pub(super) fn throughput(
    out: &mut fmt::Formatter<'_>,
    report: &RunReport,
    answers: &[(Kind, f64)],
) -> fmt::Result {
    let bins = || {
        (0..MAX_BINS)
            .map(|bin| report.warm_ms + f64::from(bin) * BIN_MS)
            .take_while(|at| *at < report.end_ms)
    };
    let series = Kind::ALL.map(|kind| {
        let mut ends: Vec<f64> =
            answers.iter().filter(|(of, _)| *of == kind).map(|(_, at_ms)| *at_ms).collect();
        ends.sort_by(f64::total_cmp);
        let before = |at_ms: f64| ends.partition_point(|end| *end < at_ms);
        let per_second =
            |from: f64| (before(from + BIN_MS) - before(from)) as f64 * 1000.0 / BIN_MS;
        bins().map(|from| (from + BIN_MS / 2.0, per_second(from))).collect::<Vec<_>>()
    });
    let most = series.iter().flatten().map(|(_, per_second)| *per_second).fold(1.0, f64::max);
    let mut chart = Chart { out, report, height: 140.0, scale: Scale::Linear(round_up(most)) };
    chart.begin("answers per second")?;
    for (number, points) in series.into_iter().enumerate() {
        chart.line(number, points.into_iter())?;
    }
    chart.end()
}

/// The lag of each subscriber of the leader.
pub(super) fn lag(out: &mut fmt::Formatter<'_>, report: &RunReport) -> fmt::Result {
    let most = report
        .snapshots
        .iter()
        .flat_map(|snapshot| snapshot.lag_ms.values())
        .copied()
        .max()
        .unwrap_or(0);
    let scale = Scale::Linear(round_up((most as f64).max(10.0)));
    let mut chart = Chart { out, report, height: 140.0, scale };
    chart.begin("lag of the leader's subscribers, ms")?;
    for node in lagging_nodes(report) {
        let region = region_of(&report.topology, node);
        let points = report
            .snapshots
            .iter()
            .filter_map(|snapshot| Some((snapshot.at_ms, *snapshot.lag_ms.get(&node)? as f64)));
        chart.line(region, points)?;
    }
    chart.end()
}

/// Every node that ever subscribed to a leader.
fn lagging_nodes(report: &RunReport) -> Vec<NodeId> {
    let mut nodes: Vec<NodeId> =
        report.snapshots.iter().flat_map(|snapshot| snapshot.lag_ms.keys().copied()).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes
}

/// Nodes are numbered through all regions.
fn region_of(topology: &[usize], node: NodeId) -> usize {
    let mut last = 0;
    let found = topology.iter().position(|count| {
        last += u64::try_from(*count).unwrap_or(0);
        node.0 <= last
    });
    found.unwrap_or(topology.len())
}

/// 1, 2 or 5 of a power of ten, not below the value.
fn round_up(value: f64) -> f64 {
    let power = 10_f64.powf(value.max(1.0).log10().floor());
    [1.0, 2.0, 5.0]
        .into_iter()
        .map(|step| step * power)
        .find(|step| *step >= value)
        .unwrap_or(10.0 * power)
}

impl Chart<'_, '_> {
    fn x(&self, at_ms: f64) -> f64 {
        let (from, to) = (self.report.warm_ms, self.report.end_ms.max(self.report.warm_ms + 1.0));
        LEFT + (at_ms.clamp(from, to) - from) / (to - from) * (WIDTH - LEFT - RIGHT)
    }

    fn y(&self, value: f64) -> f64 {
        let share = match self.scale {
            Scale::Linear(most) => value / most,
            Scale::Log(least, most) => (value.log10() - f64::from(least)) / f64::from(most - least),
        };
        self.height - BOTTOM - share.clamp(0.0, 1.0) * (self.height - TOP - BOTTOM)
    }

    /// The frame, the grid and the marks.
    fn begin(&mut self, title: &str) -> fmt::Result {
        let (height, floor) = (self.height, self.height - BOTTOM);
        writeln!(self.out, "<h4>{}</h4>", Escaped(title))?;
        writeln!(
            self.out,
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{}\">",
            Escaped(title)
        )?;
        let values: Vec<f64> = match self.scale {
            Scale::Linear(most) => (0..=4).map(|quarter| most * f64::from(quarter) / 4.0).collect(),
            Scale::Log(least, most) => (least..=most).map(|power| 10_f64.powi(power)).collect(),
        };
        for value in values {
            let y = self.y(value);
            writeln!(self.out, "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/>", WIDTH - RIGHT)?;
            writeln!(
                self.out,
                "<text class=\"left\" x=\"{:.1}\" y=\"{:.1}\">{value}</text>",
                LEFT - 6.0,
                y + 4.0
            )?;
        }
        let (from_s, to_s) = (
            (self.report.warm_ms - self.report.fault_ms) / 1000.0,
            (self.report.end_ms - self.report.fault_ms) / 1000.0,
        );
        let step = round_up(((to_s - from_s) / 12.0).max(1.0));
        let mut at_s = (from_s / step).ceil() * step;
        while at_s <= to_s {
            let x = self.x(self.report.fault_ms + at_s * 1000.0);
            writeln!(
                self.out,
                "<text class=\"below\" x=\"{x:.1}\" y=\"{:.1}\">{at_s:+} s</text>",
                height - 6.0
            )?;
            at_s += step;
        }
        for mark in &self.report.marks {
            let class = match mark.kind {
                MarkKind::Fault => "fault",
                MarkKind::Heal => "heal",
                MarkKind::Phase => "phase",
            };
            let x = self.x(mark.at_ms);
            let title = Escaped(&mark.text);
            writeln!(
                self.out,
                "<path class=\"mark {class}\" d=\"M{x:.1} {TOP}V{floor:.1}\"><title>{title}</title></path>"
            )?;
        }
        Ok(())
    }

    fn line(&mut self, colour: usize, points: impl Iterator<Item = (f64, f64)>) -> fmt::Result {
        let points: Vec<_> = points.filter(|(at_ms, _)| *at_ms >= self.report.warm_ms).collect();
        if points.is_empty() {
            return Ok(());
        }
        write!(self.out, "<path class=\"line c{colour}\" d=\"")?;
        let mut last_ms = f64::NEG_INFINITY;
        for (at_ms, value) in points {
            let (x, y) = (self.x(at_ms), self.y(value));
            write!(self.out, "{}{x:.1} {y:.1}", if at_ms - last_ms > HOLE_MS { 'M' } else { 'L' })?;
            last_ms = at_ms;
        }
        writeln!(self.out, "\"/>")
    }

    fn end(&mut self) -> fmt::Result {
        writeln!(self.out, "</svg>")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_end_at_round_values() {
        for (value, round) in
            [(0.0, 1.0), (1.0, 1.0), (1.5, 2.0), (3.0, 5.0), (7.0, 10.0), (130.0, 200.0)]
        {
            assert_eq!(round_up(value), round);
        }
    }

    #[test]
    fn nodes_are_counted_through_the_regions() {
        assert_eq!(
            [1, 3, 4, 5, 6, 7, 8].map(|node| region_of(&[3, 2, 2], NodeId(node))),
            [0, 0, 1, 1, 2, 2, 3]
        );
    }
}
