//! A report as text.

use std::fmt::Write;

use super::report::{Operation, Quantiles, RegionReport, Replication, Report};

/// A client with a longer round trip to a gateway than this is not beside it.
const BESIDE_MS: f64 = 2.0;

pub(super) fn render(report: &Report) -> String {
    let width = report
        .regions
        .iter()
        .map(|region| region.region.chars().count())
        .fold("REGION".len(), usize::max);
    let mut text = format!(
        "From the gateway of each region, {} requests a row, one at a time, in ms:\n\n{:width$}  {:<14} {:>9} {:>9} {:>9} {:>9}  {}\n",
        report.requests, "REGION", "OPERATION", "P50", "P99", "MAX", "OVER OWN", "WAN ROUND TRIPS"
    );
    for region in &report.regions {
        for (operation, quantiles) in rows(region) {
            let wan = match (operation, region.wan_round_trips) {
                (Operation::EventualRead, _) => "0".to_owned(),
                (_, Some(round_trips)) => round_trips.to_string(),
                (_, None) => "-".to_owned(),
            };
            let over = quantiles.p50_ms - region.round_trip.p50_ms;
            // Writing to a string cannot fail, here and below.
            writeln!(
                text,
                "{:width$}  {:<14} {:>9.3} {:>9.3} {:>9.3} {over:>9.3}  {wan}",
                region.region,
                operation.name(),
                quantiles.p50_ms,
                quantiles.p99_ms,
                quantiles.max_ms,
            )
            .ok();
        }
    }
    footnotes(&mut text, report);
    if let Some(replication) = &report.replication {
        render_replication(&mut text, replication, width);
    }
    text
}

fn rows(region: &RegionReport) -> [(Operation, Quantiles); 3] {
    [
        (Operation::EventualRead, region.eventual_read),
        (Operation::StrongRead, region.strong_read),
        (Operation::Write, region.write),
    ]
}

fn footnotes(text: &mut String, report: &Report) {
    text.push_str(
        "\nThis client's own round trip to each gateway is in every number; OVER OWN is the p50 without it:\n",
    );
    for region in &report.regions {
        let Quantiles { p50_ms, p99_ms, max_ms } = region.round_trip;
        writeln!(
            text,
            "  {}: p50 {p50_ms:.3}, p99 {p99_ms:.3}, max {max_ms:.3} to {}",
            region.region, region.url
        )
        .ok();
    }
    let far: Vec<&str> = report
        .regions
        .iter()
        .filter(|region| region.round_trip.p50_ms > BESIDE_MS)
        .map(|region| region.region.as_str())
        .collect();
    if far.is_empty() {
        text.push_str(
            "The client is beside every gateway: each row is the latency of an application in that region.\n",
        );
    } else {
        writeln!(
            text,
            "The client is not beside the gateway of {}: latencies of an application there are lower.",
            far.join(", ")
        )
        .ok();
    }
    if let Some(primary) = &report.primary_region {
        let leader = report
            .preferred_leader
            .as_ref()
            .map(|leader| format!(", by {leader} if possible"))
            .unwrap_or_default();
        writeln!(text, "Strong reads and writes are decided in {primary}{leader}.").ok();
    }
}

fn render_replication(text: &mut String, replication: &Replication, width: usize) {
    writeln!(
        text,
        "\nReplication: from the acknowledgement of a write in {} until an eventual read shows it, {} writes, in ms:\n\n\
         {:width$}  {:<14} {:>9} {:>9} {:>9}",
        replication.from_region, replication.writes, "REGION", "", "P50", "P99", "MAX"
    )
    .ok();
    for region in &replication.regions {
        let Quantiles { p50_ms, p99_ms, max_ms } = region.delay;
        writeln!(
            text,
            "{:width$}  {:<14} {p50_ms:>9.3} {p99_ms:>9.3} {max_ms:>9.3}",
            region.region, ""
        )
        .ok();
    }
    text.push_str(
        "\nThe read that shows it is in these numbers; reads begin 1 to 2 ms after the answer of the last.\n",
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::latency::report::tests::example;

    #[test]
    fn a_client_beside_every_gateway() {
        let expected = "\
From the gateway of each region, 200 requests a row, one at a time, in ms:

REGION    OPERATION            P50       P99       MAX  OVER OWN  WAN ROUND TRIPS
region-1  eventual read      0.250     0.500     0.750     0.125  0
region-1  strong read        0.375     0.750     1.125     0.250  0
region-1  write              1.375     2.750     4.125     1.250  0
region-2  eventual read      0.250     0.500     0.750     0.125  0
region-2  strong read       90.500   181.000   271.500    90.375  1
region-2  write             91.500   183.000   274.500    91.375  1

This client's own round trip to each gateway is in every number; OVER OWN is the p50 without it:
  region-1: p50 0.125, p99 0.250, max 0.375 to http://region-1/db/default
  region-2: p50 0.125, p99 0.250, max 0.375 to http://region-2/db/default
The client is beside every gateway: each row is the latency of an application in that region.
Strong reads and writes are decided in region-1, by region-1-a if possible.

Replication: from the acknowledgement of a write in region-1 until an eventual read shows it, 50 writes, in ms:

REGION                         P50       P99       MAX
region-1                     0.250     0.500     0.750
region-2                    46.000    92.000   138.000

The read that shows it is in these numbers; reads begin 1 to 2 ms after the answer of the last.
";
        assert_eq!(render(&example()), expected);
    }

    #[test]
    fn a_client_far_from_a_gateway_and_nothing_known() {
        let mut report = example();
        report.regions[1].round_trip.p50_ms = 80.0;
        report.regions[1].wan_round_trips = None;
        (report.primary_region, report.preferred_leader, report.replication) = (None, None, None);
        let text = render(&report);
        assert!(text.contains(
            "The client is not beside the gateway of region-2: latencies of an application there are lower.\n"
        ));
        assert!(
            text.contains("region-2  strong read       90.500   181.000   271.500    10.500  -\n")
        );
        assert!(
            text.contains("region-2  eventual read      0.250     0.500     0.750   -79.750  0\n")
        );
        assert!(!text.contains("decided") && !text.contains("Replication"));
    }
}
