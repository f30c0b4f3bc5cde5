//! Slow is not lost: what a controller takes for the loss of a region, and what not.

use super::story::Story;
use super::*;

/// Nobody leads, though all are up.
fn leaderless(story: &mut Story) {
    story.actors.values_mut().for_each(|actor| actor.leads = false);
}

fn config() -> ControllerConfig {
    ControllerConfig::default()
}

#[test]
fn a_region_whose_voters_answer_is_given_time_to_elect_a_leader() {
    let mut story = Story::new();
    leaderless(&mut story);
    story.run(25_000);
    assert_eq!(story.changes, []);
    assert!(
        story.text().contains("but n1, n2, n3 answer: starved rather than lost"),
        "{}",
        story.text()
    );
    story.actor(2).leads = true;
    story.run(1000);
    assert_eq!((story.changes.len(), story.text().as_str()), (0, ""));
}

/// Until the group has its new voters, those before may decide in it just as well.
#[test]
fn voters_before_a_change_that_is_not_through_answer_for_the_region_too() {
    let mut story = Story::new();
    story.cluster.version += 1;
    let version = story.cluster.version;
    let shard = story.cluster.shards.values_mut().next().unwrap();
    let former = std::mem::replace(&mut shard.voters, [1].into());
    shard.changing = Some(meridian_directory::VoterChange { former: vec![former], version });
    story.actors.values_mut().for_each(|actor| actor.is_settled = false);
    story.down(&[1]);
    leaderless(&mut story);
    story.run(20_000);
    assert_eq!(story.changes, []);
    assert!(
        story.text().contains("but n2, n3 answer: starved rather than lost"),
        "{}",
        story.text()
    );
}

#[test]
fn steps_are_further_apart_while_no_shard_waits_and_never_so_far_that_it_counts_as_starved() {
    let mut story = Story::new();
    assert_eq!(story.controller.steps_within(), IDLE_STEP);
    story.down(&[1, 2, 3]);
    while story.text().is_empty() {
        assert_eq!(story.controller.steps_within(), IDLE_STEP);
        story.step();
    }
    while story.shard().phase == Phase::Active {
        assert_eq!(story.controller.steps_within(), STEP);
        story.step();
    }
    // With as much for what comes late.
    assert!(IDLE_STEP * 2 < config().max_step_gap);
}

#[test]
fn renewals_that_come_late_are_answers() {
    let mut story = Story::new();
    leaderless(&mut story);
    // All nodes of all regions are starved alike.
    story.renews_every = 3000;
    story.run(25_000);
    assert_eq!(story.changes, []);
}

#[test]
fn a_region_that_answers_and_never_elects_is_left_in_the_end_with_all_that_it_has() {
    let mut story = Story::new();
    leaderless(&mut story);
    story.actor(2).position = at(1, 150);
    let took = story.run_until_active(2);
    assert!(
        took > config().starved_after && took < config().starved_after + Duration::from_secs(5),
        "{took:?}"
    );
    let report = story.shard().reports.last().unwrap();
    assert_eq!(
        (report.to_region.as_str(), report.base, report.loss.transactions),
        ("b", at(1, 150), 0)
    );
}

#[test]
fn one_that_answers_is_no_quorum_and_holds_nothing_up() {
    let mut story = Story::new();
    story.down(&[1, 2]);
    leaderless(&mut story);
    let took = story.run_until_active(2);
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn voters_that_answer_and_never_seal_hold_a_failover_up_for_a_while_only() {
    let mut story = Story::new();
    story.actor(2).position = at(1, 150);
    for id in [1, 2, 3] {
        story.actor(id).seals = false;
    }
    leaderless(&mut story);
    let took = story.run_until_active(2);
    let bound = config().starved_after * 2;
    assert!(took > bound && took < bound + Duration::from_secs(6), "{took:?}");
    assert_eq!(
        story.shard().reports[0].loss.transactions,
        100,
        "what they said they had is known to be lost"
    );
}

#[test]
fn a_failover_that_began_waits_for_voters_that_turn_out_to_be_alive() {
    let mut story = Story::new();
    story.actor(1).position = at(1, 150);
    story.run(500);
    story.down(&[1, 2, 3]);
    while story.shard().phase == Phase::Active {
        story.step();
    }
    // They were silent for four seconds, and are back; the one that has most seals last.
    story.up(&[1, 2, 3]);
    (1..=7).for_each(|id| story.actor(id).seals = false);
    story.run(1000);
    (2..=7).for_each(|id| story.actor(id).seals = true);
    story.run(9000);
    assert!(matches!(story.shard().phase, Phase::Sealing(_)));
    assert!(
        story.text().contains("n1 answer the directory and have not sealed"),
        "{}",
        story.text()
    );
    story.actor(1).seals = true;
    story.run_until_active(2);
    assert_eq!(story.shard().reports[0].base, at(1, 150));
}

#[test]
fn a_controller_whose_steps_came_late_judges_when_it_has_listened_for_long_enough() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    for _ in 0..8 {
        story.run(600);
        story.now += MS * 900;
    }
    assert_eq!(story.changes, []);
    assert!(story.text().contains("was starved itself"), "{}", story.text());
    let took = story.run_until_active(2);
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn a_controller_was_starved_by_a_longer_gap_than_it_may_have_and_forgets_what_it_heard_by_one_thrice_as_long()
 {
    let (cluster, began, longest) = (cluster(), Duration::from_secs(100), config().max_step_gap);
    for (gap, is_disturbed, forgets) in [
        (longest, false, false),
        (longest + MS, true, false),
        (longest * 3, true, false),
        (longest * 3 + MS, true, true),
        (longest * 9, true, true),
    ] {
        let mut controller = Controller::new(config(), began);
        for now in [began, began + gap] {
            controller.step(now, &cluster, 1, Event::Tick);
        }
        let last = |is: bool| if is { began + gap } else { began };
        assert_eq!(controller.disturbed_at, last(is_disturbed), "{gap:?}");
        assert_eq!(controller.watches[&SHARD].healthy_at, last(forgets), "{gap:?}");
    }
}

#[test]
fn a_controller_that_is_always_starved_judges_in_the_end() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    let began = story.now;
    while story.shard().epoch == Epoch(1) {
        story.run(600);
        story.now += MS * 900;
        assert!(
            story.now - began < config().starved_after + Duration::from_secs(2),
            "{}",
            story.text()
        );
    }
    assert!(story.now - began >= config().starved_after);
}

#[test]
fn a_controller_that_does_not_hear_its_own_node_believes_no_silence() {
    let mut story = Story::new();
    // It runs on a node of b, and the ways to it are closed.
    story.controller =
        Controller::new(ControllerConfig { own_node: Some(4), ..config() }, story.now);
    story.run(5000);
    story.down(&[1, 2, 3, 4]);
    story.up(&[]);
    story.run(12_000);
    assert_eq!(story.changes, []);
    story.up(&[4]);
    story.run(3000);
    assert_eq!(story.changes, []);
    story.run_until_active(2);
}

#[test]
fn voters_that_are_slow_to_found_a_group_have_longer_than_a_loss_takes() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    story.forms = false;
    while story.shard().phase != Phase::Forming {
        story.step();
    }
    story.step();
    assert_eq!(story.text(), "waits for its first leader");
    story.run(7950);
    assert_eq!((story.shard().epoch, &story.shard().phase), (Epoch(2), &Phase::Forming));
    assert!(
        story.text().contains("but n4, n5 answer: starved rather than lost"),
        "{}",
        story.text()
    );
    story.run(3000);
    assert_eq!(story.shard().epoch, Epoch(3));
}

#[test]
fn voters_of_a_group_that_was_never_founded_have_nothing_to_be_waited_for() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    story.forms = false;
    while story.shard().phase != Phase::Forming {
        story.step();
    }
    // They pull what they lack, or try to, and have no part in the shard meanwhile.
    (story.actor(4).seals, story.actor(5).seals) = (false, false);
    story.run(11_000);
    assert!(matches!(story.shard().phase, Phase::Sealing(_)));
    story.run(3000);
    assert_eq!((story.shard().epoch, story.shard().primary_region.as_str()), (Epoch(3), "c"));
}

#[test]
fn what_a_leader_acknowledged_while_its_group_was_forming_is_waited_for() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    story.forms = false;
    while story.shard().phase != Phase::Forming {
        story.step();
    }
    // Leases are granted by then. One led and acknowledged, and was lost from leadership before it
    // said so.
    (story.actor(4).position, story.actor(5).position) = (at(2, 110), at(2, 110));
    (story.actor(4).seals, story.actor(5).seals) = (false, false);
    story.run(16_000);
    assert!(matches!(story.shard().phase, Phase::Sealing(_)), "{:?}", story.shard());
    assert!(
        story.text().contains("n4, n5 answer the directory and have not sealed"),
        "{}",
        story.text()
    );
    (story.actor(4).seals, story.actor(5).seals) = (true, true);
    story.forms = true;
    story.run_until_active(3);
    let report = story.shard().reports.last().unwrap();
    assert_eq!((report.base, report.loss.transactions), (at(2, 110), 0));
}
