use super::*;
use crate::loss::{LossSummary, Verdict};
use crate::report::tests::{claim, sound_run};
use crate::report::{QueueJudgement, Replication};

/// Runs that keep every promise.
fn good() -> Runs {
    let mut runs = Runs::new();
    for drill in DRILLS {
        let mut run = sound_run(drill);
        for measure in &mut run.measures {
            let round_trip =
                if measure.region == 0 { 0.0 } else { run.round_trips_ms[measure.region] };
            let p50 = match measure.kind {
                Kind::EventualRead => 0.1,
                Kind::StrongRead | Kind::Write => round_trip + 0.5,
            };
            measure.before.p50_ms = p50;
            measure.during.p50_ms = p50;
            measure.max_extra_ms = 40.0;
        }
        if matches!(drill, "two-dc-loss" | "region-loss" | "partition" | "throttled-loss") {
            run.claims.push(claim(Verdict::True));
            run.loss = LossSummary { transactions: 10, window_ms: 300.0 };
        }
        if drill == "queue-failover" {
            run.queue = Some(QueueJudgement::default());
        }
        if drill == "replication" {
            run.pressure_per_second = Some(5000.0);
            run.replication.push(Replication {
                region: 1,
                probes: 90,
                p50_ms: 48.0,
                p99_ms: 120.0,
                one_way_ms: 45.0,
                p99_beyond_ms: 75.0,
            });
        }
        runs.insert(drill.to_owned(), vec![run]);
    }
    runs
}

fn first<'a>(runs: &'a mut Runs, drill: &str) -> &'a mut RunReport {
    &mut runs.get_mut(drill).unwrap()[0]
}

/// The promises that are missed after a change to one run.
fn missed(
    drill: &str,
    change: impl Fn(&mut RunReport),
) -> Vec<(&'static str, PromiseVerdict, PromiseVerdict)> {
    let mut runs = good();
    change(first(&mut runs, drill));
    let missed = rows(&runs).into_iter().filter(Row::is_missed);
    missed.map(|row| (row.promise, row.stated.verdict, row.aim.verdict)).collect()
}

#[test]
fn good_runs_keep_every_promise() {
    for row in rows(&good()) {
        assert!(!row.is_missed(), "{row:?}");
        assert_ne!(row.aim.verdict, PromiseVerdict::NotMeasured, "{row:?}");
    }
}

#[test]
fn without_runs_nothing_is_measured() {
    for row in rows(&Runs::new()) {
        assert!(!row.is_missed() && row.aim.verdict == PromiseVerdict::NotMeasured, "{row:?}");
    }
}

#[test]
fn missed_promises_are_named() {
    use PromiseVerdict::{Met, Missed, NotStated};
    let slow = |run: &mut RunReport| run.measures[0].gap.ms = 1200.0;
    assert_eq!(missed("dc-loss", slow), [("loss of one primary data center", Met, Missed)]);
    let failing = |run: &mut RunReport| run.failed_requests.extend([(2, 1)]);
    assert_eq!(missed("dc-loss", failing), [("loss of one primary data center", Met, Missed)]);
    let losing = |run: &mut RunReport| run.loss = LossSummary { transactions: 1, window_ms: 3.0 };
    assert_eq!(missed("dc-loss", losing).len(), 2);
    assert_eq!(missed("switchover", losing), [("planned switchover", NotStated, Missed)]);
    let touched = |run: &mut RunReport| run.measures[1].max_extra_ms = 120.0;
    assert_eq!(
        missed("replica-loss", touched),
        [("loss of any data centers of a replica region", Met, Missed)]
    );
    let long = |run: &mut RunReport| run.loss.window_ms = 61_000.0;
    assert_eq!(
        missed("partition", long),
        [("loss of two or more primary data centers", Missed, Missed)]
    );
    let manual = |run: &mut RunReport| run.claims.clear();
    assert_eq!(
        missed("region-loss", manual),
        [("loss of two or more primary data centers", Met, Missed)]
    );
    let stale = |run: &mut RunReport| run.judgement.clean = false;
    assert_eq!(missed("calm", stale), [("consistency", Missed, Missed)]);
    let lost = |run: &mut RunReport| {
        let queue = run.queue.get_or_insert_default();
        queue.violations.insert("at least once".to_owned(), 1);
    };
    let promise = "messages of queues, over the loss of their leader";
    assert_eq!(missed("queue-failover", lost), [(promise, Missed, Missed)]);
    let few = |run: &mut RunReport| run.converged = 5;
    assert_eq!(missed("calm", few), [("copies", Missed, Missed)]);
}

#[test]
fn slow_machine_leaves_the_aim_unmeasured() {
    let mut runs = good();
    first(&mut runs, "replication").pressure_per_second = Some(3000.0);
    let row =
        rows(&runs).into_iter().find(|row| row.promise == "replication to other regions").unwrap();
    assert_eq!(
        (row.stated.verdict, row.aim.verdict),
        (PromiseVerdict::Met, PromiseVerdict::NotMeasured)
    );
    assert!(row.measured.contains("3000 writes/s"), "{}", row.measured);
}

#[test]
fn the_worst_of_twenty_runs_counts() {
    let mut runs = good();
    let run = runs["dc-loss"][0].clone();
    let mut twenty = vec![run; 20];
    twenty[13].measures[0].gap.ms = 4000.0;
    runs.insert("dc-loss".to_owned(), twenty);
    let row = rows(&runs)
        .into_iter()
        .find(|row| row.promise == "loss of one primary data center")
        .unwrap();
    assert!(row.measured.contains("RTO 4000 ms at p99 of 20 runs"), "{}", row.measured);
}
