//! Slow is not lost: what a controller takes for the loss of a region, and what not.

use super::scenario::Scenario;
use super::*;

/// No voter leads, though all are up.
fn leaderless(scenario: &mut Scenario) {
    scenario.actors.values_mut().for_each(|actor| actor.leads = false);
}

fn config() -> ControllerConfig {
    ControllerConfig::default()
}

/// Until the group has its new voters, those before may decide in it just as well.
#[test]
fn voters_before_a_change_that_is_not_through_answer_for_the_region_too() {
    let mut scenario = Scenario::new();
    scenario.cluster.version += 1;
    let version = scenario.cluster.version;
    let shard = scenario.cluster.shards.values_mut().next().unwrap();
    let former = std::mem::replace(&mut shard.voters, [NodeId(1)].into());
    shard.changing = Some(meridian_directory::VoterChange { former: vec![former], version });
    scenario.actors.values_mut().for_each(|actor| actor.is_settled = false);
    scenario.down(&[1]);
    leaderless(&mut scenario);
    scenario.run(20_000);
    assert_eq!(scenario.changes, []);
    assert!(
        scenario.text().contains("but n2, n3 answer: starved rather than lost"),
        "{}",
        scenario.text()
    );
}

#[test]
fn steps_are_further_apart_while_no_shard_waits_and_never_so_far_that_it_counts_as_starved() {
    let mut scenario = Scenario::new();
    assert_eq!(scenario.controller.steps_within(), IDLE_STEP);
    scenario.down(&[1, 2, 3]);
    while scenario.text().is_empty() {
        assert_eq!(scenario.controller.steps_within(), IDLE_STEP);
        scenario.step();
    }
    while scenario.shard().phase == Phase::Active {
        assert_eq!(scenario.controller.steps_within(), STEP);
        scenario.step();
    }
    // With as much for what comes late.
    assert!(IDLE_STEP * 2 < config().max_step_gap);
}

#[test]
fn renewals_that_come_late_are_answers() {
    let mut scenario = Scenario::new();
    leaderless(&mut scenario);
    // All nodes of all regions are starved alike.
    scenario.renews_every = 3000;
    scenario.run(25_000);
    assert_eq!(scenario.changes, []);
}

#[test]
fn single_voter_that_answers_is_no_quorum_and_holds_nothing_up() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2]);
    leaderless(&mut scenario);
    let took = scenario.run_until_active(2);
    assert!(took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn voters_that_answer_and_never_seal_hold_a_failover_up_for_a_while_only() {
    let mut scenario = Scenario::new();
    scenario.actor(2).position = at(1, 150);
    for id in [1, 2, 3] {
        scenario.actor(id).seals = false;
    }
    leaderless(&mut scenario);
    let took = scenario.run_until_active(2);
    let bound = config().starved_after * 2;
    assert!(took > bound && took < bound + Duration::from_secs(6), "{took:?}");
    assert_eq!(
        scenario.shard().reports[0].loss.transactions,
        100,
        "the reported commits are known to be lost"
    );
}

#[test]
fn a_failover_that_began_waits_for_voters_that_turn_out_to_be_alive() {
    let mut scenario = Scenario::new();
    scenario.actor(1).position = at(1, 150);
    scenario.run(500);
    scenario.down(&[1, 2, 3]);
    while scenario.shard().phase == Phase::Active {
        scenario.step();
    }
    // They were silent for four seconds, and are back; the most advanced seals last.
    scenario.up(&[1, 2, 3]);
    (1..=7).for_each(|id| scenario.actor(id).seals = false);
    scenario.run(1000);
    (2..=7).for_each(|id| scenario.actor(id).seals = true);
    scenario.run(9000);
    assert!(matches!(scenario.shard().phase, Phase::Sealing(_)));
    assert!(
        scenario.text().contains("n1 answer the directory and have not sealed"),
        "{}",
        scenario.text()
    );
    scenario.actor(1).seals = true;
    scenario.run_until_active(2);
    assert_eq!(scenario.shard().reports[0].base, at(1, 150));
}

#[test]
fn a_controller_whose_steps_came_late_judges_when_it_has_listened_for_long_enough() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    for _ in 0..8 {
        scenario.run(600);
        scenario.now += MS * 900;
    }
    assert_eq!(scenario.changes, []);
    assert!(scenario.text().contains("was starved itself"), "{}", scenario.text());
    let took = scenario.run_until_active(2);
    assert!(took > Duration::from_secs(4) && took < Duration::from_secs(6), "{took:?}");
}

#[test]
fn controller_counts_as_starved_after_a_gap_and_forgets_reports_after_a_triple_one() {
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
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    let began = scenario.now;
    while scenario.shard().epoch == Epoch(1) {
        scenario.run(600);
        scenario.now += MS * 900;
        assert!(
            scenario.now - began < config().starved_after + Duration::from_secs(2),
            "{}",
            scenario.text()
        );
    }
    assert!(scenario.now - began >= config().starved_after);
}

#[test]
fn a_controller_that_does_not_hear_its_own_node_believes_no_silence() {
    let mut scenario = Scenario::new();
    // It runs on a node of b, and the ways to it are closed.
    scenario.controller =
        Controller::new(ControllerConfig { own_node: Some(NodeId(4)), ..config() }, scenario.now);
    scenario.run(5000);
    scenario.down(&[1, 2, 3, 4]);
    scenario.up(&[]);
    scenario.run(12_000);
    assert_eq!(scenario.changes, []);
    scenario.up(&[4]);
    scenario.run(3000);
    assert_eq!(scenario.changes, []);
    scenario.run_until_active(2);
}

#[test]
fn voters_that_are_slow_to_found_a_group_have_longer_than_a_loss_takes() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    scenario.forms = false;
    while scenario.shard().phase != Phase::Forming {
        scenario.step();
    }
    scenario.step();
    assert_eq!(scenario.text(), "waits for its first leader");
    scenario.run(7950);
    assert_eq!((scenario.shard().epoch, &scenario.shard().phase), (Epoch(2), &Phase::Forming));
    assert!(
        scenario.text().contains("but n4, n5 answer: starved rather than lost"),
        "{}",
        scenario.text()
    );
    scenario.run(3000);
    assert_eq!(scenario.shard().epoch, Epoch(3));
}

#[test]
fn voters_of_a_group_that_was_never_founded_have_nothing_to_be_waited_for() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    scenario.forms = false;
    while scenario.shard().phase != Phase::Forming {
        scenario.step();
    }
    // They pull what they lack, or try to, and have no part in the shard meanwhile.
    (scenario.actor(4).seals, scenario.actor(5).seals) = (false, false);
    scenario.run(11_000);
    assert!(matches!(scenario.shard().phase, Phase::Sealing(_)));
    scenario.run(3000);
    assert_eq!((scenario.shard().epoch, scenario.shard().primary_region.as_str()), (Epoch(3), "c"));
}

#[test]
fn what_a_leader_acknowledged_while_its_group_was_forming_is_waited_for() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    scenario.forms = false;
    while scenario.shard().phase != Phase::Forming {
        scenario.step();
    }
    // Leases are granted by then. One led and acknowledged, and was lost from leadership before it
    // said so.
    (scenario.actor(4).position, scenario.actor(5).position) = (at(2, 110), at(2, 110));
    (scenario.actor(4).seals, scenario.actor(5).seals) = (false, false);
    scenario.run(16_000);
    assert!(matches!(scenario.shard().phase, Phase::Sealing(_)), "{:?}", scenario.shard());
    assert!(
        scenario.text().contains("n4, n5 answer the directory and have not sealed"),
        "{}",
        scenario.text()
    );
    (scenario.actor(4).seals, scenario.actor(5).seals) = (true, true);
    scenario.forms = true;
    scenario.run_until_active(3);
    let report = scenario.shard().reports.last().unwrap();
    assert_eq!((report.base, report.loss.transactions), (at(2, 110), 0));
}
