use std::collections::BTreeMap;

use super::*;
use crate::gap::Latencies;

fn sound_judgement() -> Judgement {
    Judgement { clean: true, operations: 9000, committed: 2000, ..Judgement::default() }
}

fn sound_snapshot(number: u32) -> Snapshot {
    Snapshot {
        at_ms: f64::from(number) * 200.0,
        leaders: BTreeMap::from([(NodeId(if number < 33 { 1 } else { 2 }), 1)]),
        answered: 7,
        lag_ms: BTreeMap::from([(NodeId(4), u64::from(number % 5) * 20), (NodeId(6), 95)]),
        lag_bytes: BTreeMap::from([(NodeId(4), 100), (NodeId(6), 0)]),
    }
}

/// A run of a drill without faults.
pub(crate) fn sound_run(drill: &str) -> RunReport {
    let latencies = Latencies { count: 100, p50_ms: 4.0, p99_ms: 9.0, max_ms: 15.0 };
    let gap = |ms, from_ms| Gap { ms, from_ms, open: false };
    let measure = |kind, region| Measure {
        kind,
        region,
        before: latencies,
        during: Latencies { max_ms: 640.0, ..latencies },
        moved: 1,
        gap_before: gap(20.0, 3000.0),
        gap: gap(612.0, 6004.0),
        max_extra_ms: 636.0,
        failed: 0,
        cut_off: 0,
    };
    RunReport {
        drill: drill.to_owned(),
        title: "A title".to_owned(),
        about: "What it is <about>".to_owned(),
        run: 1,
        seed: 7,
        topology: vec![3, 2, 2],
        wan: "90,190,dc=2".to_owned(),
        round_trips_ms: vec![2.0, 90.0, 190.0],
        home: 0,
        leader: NodeId(1),
        directory_leader: Some(NodeId(4)),
        warm_ms: 2000.0,
        fault_ms: 6000.0,
        end_ms: 17_000.0,
        marks: vec![
            Mark { at_ms: 6000.0, text: "power off node 1".to_owned(), kind: MarkKind::Fault },
            Mark { at_ms: 14_000.0, text: "heal".to_owned(), kind: MarkKind::Heal },
            Mark { at_ms: 6600.0, text: "node 2 leads epoch 1".to_owned(), kind: MarkKind::Phase },
        ],
        measures: Kind::ALL
            .into_iter()
            .flat_map(|kind| (0..3).map(move |region| measure(kind, region)))
            .collect(),
        lost_regions: vec![],
        failed_requests: BTreeMap::new(),
        failed_by_answer: BTreeMap::new(),
        cut_off_requests: 3,
        oddities: vec![],
        acknowledged: 2000,
        untold: 0,
        loss: LossSummary::default(),
        claims: vec![],
        judgement: sound_judgement(),
        queue: None,
        converged: 7,
        nodes: 7,
        pressure_per_second: None,
        replication: vec![],
        snapshots: (0..85).map(sound_snapshot).collect(),
        dots: (0_u32..200)
            .map(|number| Dot {
                kind: Kind::ALL[usize::try_from(number % 3).unwrap()],
                region: usize::try_from(number % 2).unwrap(),
                at_ms: 2000.0 + f64::from(number) * 70.0,
                latency_ms: 0.05 * f64::from(number + 1),
            })
            .collect(),
        answers: (0_u32..1000).map(|number| (Kind::Write, f64::from(number) * 17.0)).collect(),
    }
}

pub(crate) fn claim(verdict: Verdict) -> Claim {
    let report = serde_json::json!({
        "epoch": 2, "from_region": "region-1", "to_region": "region-2", "planned": false, "cause": "no quorum",
        "base": { "epoch": 1, "sequence": 120 }, "base_transactions": 300, "base_time_ms": 0,
        "sealed_at_ms": 0, "promoted_at_ms": 0,
        "loss": { "transactions": 12, "window_ms": 80, "exact": true },
    });
    let report = serde_json::from_value(report).unwrap();
    Claim { report, acknowledged_lost: 10, acknowledged_span_ms: 71.0, unacknowledged: 5, verdict }
}

#[test]
fn sound_run_is_reported_with_the_clients_view() {
    let text = run_text(&sound_run("dc-loss"));
    assert!(text.contains("node 1 leads, node 4 leads the directory"), "{text}");
    assert!(text.contains("   +0.000 s  power off node 1"), "{text}");
    assert!(text.contains("RTO of writes: 612 ms without an answer, from +0.004 s on"), "{text}");
    assert!(text.contains("RPO: 0 of 2000 acknowledged writes lost, 0 ms"), "{text}");
    assert!(text.contains("consistency: strictly serializable"), "{text}");
    assert!(!text.contains("NOT SOUND"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 160), "{text}");
}

#[test]
fn faults_of_a_run_are_reported() {
    let mut run = sound_run("region-loss");
    run.judgement = Judgement { text: "all of it".to_owned(), ..Judgement::default() };
    run.judgement.violations.insert("versionstamps".to_owned(), 2);
    run.claims.push(claim(Verdict::False("it says 12 transactions".to_owned())));
    run.queue = Some(QueueJudgement {
        violations: BTreeMap::from([("at least once".to_owned(), 3)]),
        texts: vec!["message 7 is lost".to_owned()],
        ..QueueJudgement::default()
    });
    run.converged = 6;
    run.untold = 1;
    run.oddities.push("a write was answered with AwUnspecified".to_owned());
    let text = run_text(&run);
    for part in [
        "VIOLATED",
        "versionstamps: violated 2 times",
        "NOT TRUE: it says 12",
        "only 6 of 7",
        "1 acknowledged writes were not read back",
        "odd answer",
        "at least once: violated 3 times",
        "message 7 is lost",
        "all of it",
    ] {
        assert!(text.contains(part), "{part} is not in\n{text}");
    }
    assert_eq!(run.faults().len(), 6);
}

#[test]
fn lost_regions_are_measured_and_not_judged() {
    let mut run = sound_run("region-loss");
    run.lost_regions = vec![0];
    run.failed_requests = BTreeMap::from([(0, 40), (1, 2)]);
    for measure in &mut run.measures {
        measure.gap.ms = if measure.region == 0 { 9000.0 } else { 5000.0 };
    }
    assert_eq!(run.strong_rto_ms(), 5000.0);
    assert_eq!(run.failed_judged(), 2);
    let text = run_text(&run);
    assert!(text.contains("(not judged)"), "{text}");
    assert!(
        text.contains("requests failed: 42, 2 of them in regions that were not lost"),
        "{text}"
    );
}

#[test]
fn several_runs_are_reported_a_line_each() {
    let text = runs_text(&[
        sound_run("dc-loss"),
        RunReport { run: 2, converged: 1, ..sound_run("dc-loss") },
    ]);
    assert_eq!(text.lines().count(), 4);
    assert!(text.lines().nth(2).unwrap().ends_with("NO"), "{text}");
}

#[test]
fn json_has_the_numbers() {
    let mut run = sound_run("dc-loss");
    run.claims.push(claim(Verdict::True));
    let json = serde_json::to_value(&run).unwrap();
    assert_eq!(json["drill"], "dc-loss");
    assert_eq!(json["measures"][0]["gap"]["ms"], 612.0);
    assert_eq!(json["measures"][0]["kind"], "write");
    assert_eq!(json["claims"][0]["verdict"], "true");
    assert_eq!(json["claims"][0]["report"]["loss"]["transactions"], 12);
    assert_eq!(json["looks"][40]["leaders"]["2"], 1);
    assert!(json.get("dots").is_none());
}

#[test]
fn page_is_complete_and_self_contained() {
    let mut run = sound_run("region-loss");
    run.claims.push(claim(Verdict::True));
    let page = html_page("a <drill>", &[], &[run]);
    assert!(page.starts_with("<!doctype html>") && page.trim_end().ends_with("</html>"));
    for foreign in ["http://", "https://", "src=", "href=", "@import", "url("] {
        assert!(!page.replace("http://www.w3.org/2000/svg", "").contains(foreign), "{foreign}");
    }
    assert!(page.contains("a &lt;drill&gt;") && page.contains("What it is &lt;about&gt;"));
    assert!(!page.contains("<about>") && !page.contains("NaN") && !page.contains("inf"));
    for tag in ["svg", "g", "table", "tr", "section", "html", "body", "style", "text"] {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
    assert_eq!(page.matches("<svg").count(), 5, "latency of three kinds, throughput, lag");
    // The marks of the fault are in every chart.
    assert_eq!(page.matches("class=\"mark fault\"").count(), 5);
}
