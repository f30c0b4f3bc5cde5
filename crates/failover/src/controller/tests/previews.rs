//! What operators are shown before a failover is what the controller then does.

use super::story::Story;
use super::*;
use crate::preview::{FailoverPreview, KnownLoss};

fn preview(story: &Story, to: Option<&str>) -> FailoverPreview {
    let within = ControllerConfig::default().reachable_within;
    let contacts = story.controller.contacts(story.now);
    FailoverPreview::new(&story.cluster, SHARD, story.shard(), &contacts, within, to)
}

/// Region `a` is lost; replicas have as much as `sequences` say, and some of them are lost, too.
fn lost_region(sequences: [u64; 4], down: &[NodeId]) -> Story {
    let mut story = Story::new();
    for (id, sequence) in (4..).zip(sequences) {
        story.actor(id).position = at(1, sequence);
    }
    story.run(1000);
    story.down(&[1, 2, 3]);
    story.down(down);
    story.run(2000);
    story
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
        let mut story = lost_region(sequences, down);
        let preview = preview(&story, None);
        assert_eq!(preview.to.as_deref(), Some(region), "{sequences:?}, without {down:?}");
        assert_eq!(story.shard().epoch, Epoch(1), "nothing was sealed yet");
        story.run_until_active(2);
        assert_eq!(story.shard().primary_region, region, "{sequences:?}, without {down:?}");
    }
}

#[test]
fn the_preview_waits_for_a_region_where_the_controller_does() {
    let mut story = lost_region([100; 4], &[4, 6]);
    assert_eq!(preview(&story, None).to, None);
    assert_eq!(preview(&story, Some("c")).to.as_deref(), Some("c"), "it was ordered");
    story.run(20_000);
    assert_eq!(story.shard().epoch, Epoch(1));
}

#[test]
fn the_preview_counts_what_the_controller_then_reports_as_lost() {
    let mut story = lost_region([90, 80, 95, 70], &[]);
    let preview = preview(&story, None);
    assert_eq!(preview.loss, Some(KnownLoss { transactions: 10, window_ms: 50 }));
    assert_eq!(preview.survivor.map(|holder| holder.node), Some(6));
    assert_eq!((preview.voters_up, &preview.data_centers_up["c"]), (0, &2));
    story.run_until_active(2);
    let report = story.shard().reports.last().unwrap();
    assert_eq!((report.loss.transactions, report.loss.window_ms), (10, 50));
}
