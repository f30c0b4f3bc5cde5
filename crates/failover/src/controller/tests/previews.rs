//! Previews agree with the failovers of the controller that follow them.

use super::scenario::Scenario;
use super::*;
use crate::preview::{FailoverPreview, KnownLoss};

fn preview(scenario: &Scenario, to: Option<&str>) -> FailoverPreview {
    let within = ControllerConfig::default().reachable_within;
    let contacts = scenario.controller.contacts(scenario.now);
    FailoverPreview::new(&scenario.cluster, SHARD, scenario.shard(), &contacts, within, to)
}

/// Region `a` is lost; replicas have as much as `sequences` say, and some of them are lost, too.
fn lost_region(sequences: [u64; 4], down: &[u64]) -> Scenario {
    let mut scenario = Scenario::new();
    for (id, sequence) in (4..).zip(sequences) {
        scenario.actor(id).position = at(1, sequence);
    }
    scenario.run(1000);
    scenario.down(&[1, 2, 3]);
    scenario.down(down);
    scenario.run(2000);
    scenario
}

#[test]
fn the_preview_names_the_region_that_the_controller_promotes() {
    for (sequences, down, region) in [
        ([100, 100, 100, 100], &[][..], "b"),
        ([90, 80, 95, 70], &[], "c"),
        ([95, 70, 90, 80], &[], "b"),
        ([90, 80, 99, 99], &[7], "b"),
        ([99, 99, 80, 80], &[4], "c"),
    ] {
        let mut scenario = lost_region(sequences, down);
        let preview = preview(&scenario, None);
        assert_eq!(preview.to.as_deref(), Some(region), "{sequences:?}, without {down:?}");
        assert_eq!(scenario.shard().epoch, Epoch(1), "nothing was sealed yet");
        scenario.run_until_active(2);
        assert_eq!(scenario.shard().primary_region, region, "{sequences:?}, without {down:?}");
    }
}

#[test]
fn the_preview_waits_for_a_region_where_the_controller_does() {
    let mut scenario = lost_region([100; 4], &[4, 6]);
    assert_eq!(preview(&scenario, None).to, None);
    assert_eq!(preview(&scenario, Some("c")).to.as_deref(), Some("c"), "it was ordered");
    scenario.run(20_000);
    assert_eq!(scenario.shard().epoch, Epoch(1));
}

#[test]
fn the_preview_counts_what_the_controller_then_reports_as_lost() {
    let mut scenario = lost_region([90, 80, 95, 70], &[]);
    let preview = preview(&scenario, None);
    assert_eq!(preview.loss, Some(KnownLoss { transactions: 10, window_ms: 50 }));
    assert_eq!(preview.survivor.map(|holder| holder.node), Some(NodeId(6)));
    assert_eq!((preview.voters_up, &preview.data_centers_up["c"]), (0, &2));
    scenario.run_until_active(2);
    let report = scenario.shard().reports.last().unwrap();
    assert_eq!((report.loss.transactions, report.loss.window_ms), (10, 50));
}
