//! Switchovers: nothing is lost, and a target that does not get there is left.

use super::scenario::Scenario;
use super::*;

const CANCEL: Change = Change::CancelSwitchover { shard: SHARD };

fn begun(to: &str) -> Scenario {
    let mut scenario = Scenario::new();
    scenario.order(Change::BeginSwitchover { shard: SHARD, to: to.to_owned() });
    scenario
}

/// Until the shard is sealed.
fn sealed(to: &str) -> Scenario {
    let mut scenario = begun(to);
    while !matches!(scenario.shard().phase, Phase::Sealing(_)) {
        scenario.step();
    }
    scenario
}

fn outcome(scenario: &Scenario) -> (&str, Position, bool) {
    let report = scenario.shard().reports.last().unwrap();
    assert_eq!((report.loss.transactions, report.loss.exact), (0, report.planned));
    (&report.to_region, report.base, report.planned)
}

fn seals(scenario: &Scenario) -> Vec<NodeId> {
    let nodes = scenario.actions.iter().filter_map(|action| match action {
        Action::Seal { node, planned: true, .. } => Some(*node),
        _ => None,
    });
    nodes.collect()
}

#[test]
fn a_replica_that_has_left_the_history_is_not_near() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    scenario.run_until_active(2);
    // As it was before it missed that failover, and it does not lag by what it knows.
    scenario.actor(6).position = at(1, 120);
    scenario.run(500);
    scenario.order(Change::BeginSwitchover { shard: SHARD, to: "c".to_owned() });
    scenario.run(10_000);
    assert_eq!(scenario.shard().phase, Phase::SwitchingOver { to: "c".to_owned() });
    assert_eq!(
        scenario.text(),
        "switchover to c: 1 of its data centers lag by at most 1.0 s, 2 are wanted"
    );
    scenario.actor(6).position = at(1, 100);
    scenario.run_until_active(3);
}

#[test]
fn it_waits_until_the_group_has_the_voters_that_the_cluster_names() {
    let mut scenario = Scenario::new();
    scenario.actor(1).is_settled = false;
    scenario.order(Change::SetVoters { shard: SHARD, voters: BTreeSet::from([2, 3].map(NodeId)) });
    scenario.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
    // Node 1, which is to go, leads meanwhile: it has its lease, and is heard.
    scenario.run(10_000);
    assert_eq!(scenario.shard().phase, Phase::SwitchingOver { to: "b".to_owned() });
    assert_eq!(scenario.text(), "switchover to b: waits until the voters have changed");
    let lease = |scenario: &mut Scenario| {
        scenario.controller.renew(scenario.now, &scenario.cluster, NodeId(1)).shards
    };
    assert_eq!(lease(&mut scenario), [(SHARD, Epoch(1))]);
    scenario.actor(1).leads = false;
    (scenario.actor(2).leads, scenario.actor(2).is_settled) = (true, true);
    scenario.run_until_active(2);
    assert!(
        matches!(scenario.changes.first(), Some(Change::ConfirmVoters { version: 2, .. })),
        "{:?}",
        scenario.changes
    );
    assert_eq!(lease(&mut scenario), []);
    assert_eq!(outcome(&scenario), ("b", at(1, 100), true));
}

#[test]
fn a_primary_that_fails_during_the_preparation_fails_over() {
    let mut scenario = Scenario::new();
    scenario.actor(5).lag_ms = 60_000;
    scenario.run(500);
    scenario.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
    scenario.run(1000);
    scenario.actor(7).position = at(1, 110);
    scenario.down(&[1, 2, 3]);
    scenario.run_until_active(2);
    let report = scenario.shard().reports.last().unwrap();
    assert_eq!((report.planned, report.to_region.as_str(), report.base), (false, "c", at(1, 110)));
}

#[test]
fn a_switchover_says_what_it_waits_for_and_asks_those_again_that_it_waits_for() {
    let mut scenario = begun("b");
    scenario.actor(1).drains = false;
    for id in [1, 2, 3] {
        scenario.actor(id).has_tail = false;
    }
    (scenario.actor(2).seals, scenario.actor(3).seals) = (false, false);
    while !matches!(scenario.shard().phase, Phase::Sealing(_)) {
        scenario.step();
    }
    let after = |scenario: &mut Scenario| {
        scenario.actions.clear();
        scenario.run(400);
        scenario.text()
    };
    assert_eq!(after(&mut scenario), "switchover to b: the leader finishes what it began");
    // It was asked before it had drained.
    scenario.actor(1).drains = true;
    assert_eq!(
        after(&mut scenario),
        "switchover to b: waits until a majority of the voters is sealed"
    );
    scenario.actor(2).seals = true;
    assert_eq!(
        after(&mut scenario),
        "switchover to b: 0 of its 2 voters have everything up to 1.100"
    );
    for id in [1, 2, 3] {
        scenario.actor(id).has_tail = true;
    }
    assert_eq!(
        after(&mut scenario),
        "switchover to b: waits until leases run out or are given up by n3"
    );
    assert_eq!(
        seals(&scenario).iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([&NodeId(3)]),
        "those that answered are not asked"
    );
    scenario.actor(3).seals = true;
    let took = scenario.run_until_active(2);
    assert!(took < Duration::from_millis(600), "{took:?}");
    assert_eq!(outcome(&scenario), ("b", at(1, 100), true));
}

#[test]
fn a_leader_that_is_there_and_takes_long_to_drain_is_waited_for() {
    let mut scenario = begun("b");
    scenario.actor(1).drains = false;
    scenario.run(20_000);
    assert!(
        matches!(scenario.changes[..], [Change::Seal { planned: true, .. }]),
        "{:?}",
        scenario.changes
    );
    scenario.actor(1).drains = true;
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("b", at(1, 100), true));
}

#[test]
fn a_drained_leader_that_voters_have_left_for_another_is_not_enough() {
    let mut scenario = sealed("b");
    let successor = scenario.actor(2);
    (successor.leads, successor.term, successor.position, successor.drains) =
        (true, 9, at(1, 140), false);
    scenario.actor(3).term = 9;
    scenario.run(2000);
    assert_eq!(scenario.shard().epoch, Epoch(1));
    assert_eq!(scenario.text(), "switchover to b: waits until a majority of the voters is sealed");
    scenario.actor(2).drains = true;
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("b", at(1, 140), true));
}

#[test]
fn a_target_pulls_from_the_leader_that_drained() {
    let mut scenario = Scenario::new();
    (scenario.actor(1).leads, scenario.actor(2).leads) = (false, true);
    scenario.actor(2).has_tail = false;
    scenario.run(1000);
    scenario.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
    while !matches!(scenario.shard().phase, Phase::Sealing(_)) {
        scenario.step();
    }
    scenario.run(800);
    assert_eq!(scenario.pulls(), BTreeSet::from([4, 5].map(|node| (NodeId(node), NodeId(2)))));
    // Nothing comes of it: the others have it as well.
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("b", at(1, 100), true));
}

#[test]
fn of_two_nodes_in_a_targets_data_center_the_reachable_most_advanced_votes() {
    for is_down in [true, false] {
        let mut scenario = Scenario::new();
        let second = scenario.add_node("b", "b1");
        if is_down {
            scenario.down(&[4]);
        } else {
            scenario.actor(4).position = at(1, 90);
        }
        scenario.run(2000);
        scenario.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
        scenario.run_until_active(2);
        assert_eq!(outcome(&scenario), ("b", at(1, 100), true));
        assert_eq!(scenario.shard().voters, BTreeSet::from([5, second].map(NodeId)));
        assert_eq!(scenario.asked_to_pull(), BTreeSet::from([5, second].map(NodeId)));
    }
}

#[test]
fn a_drained_leader_counts_only_if_no_later_term_can_have_committed() {
    let mut scenario = sealed("b");
    // The others have elected 2 meanwhile, which has committed more.
    let successor = scenario.actor(2);
    (successor.leads, successor.term, successor.position) = (true, 9, at(1, 140));
    scenario.actor(3).term = 9;
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("b", at(1, 140), true));
}

#[test]
fn a_cancelled_switchover_goes_home_with_the_same_voters() {
    let mut scenario = sealed("b");
    scenario.order(CANCEL);
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("a", at(1, 100), true));
    assert_eq!(scenario.shard().voters, BTreeSet::from([1, 2, 3].map(NodeId)));
}

#[test]
fn a_target_that_fails_after_the_seal_sends_the_shard_home() {
    let mut scenario = sealed("b");
    scenario.down(&[4, 5]);
    scenario.run_until_active(2);
    assert!(scenario.changes.contains(&CANCEL));
    assert_eq!(outcome(&scenario), ("a", at(1, 100), true));
}

#[test]
fn a_primary_that_fails_after_the_seal_and_before_it_drained_fails_over() {
    let mut scenario = begun("b");
    scenario.actor(1).drains = false;
    while !matches!(scenario.shard().phase, Phase::Sealing(_)) {
        scenario.step();
    }
    scenario.actor(6).position = at(1, 105);
    scenario.down(&[1, 2, 3]);
    scenario.run_until_active(2);
    assert!(!scenario.changes.contains(&CANCEL), "no node is left at home");
    let report = scenario.shard().reports.last().unwrap();
    assert_eq!((report.planned, report.to_region.as_str(), report.base), (false, "c", at(1, 105)));
}

#[test]
fn in_manual_mode_it_waits_for_an_operator_instead() {
    let mut scenario = begun("b");
    let manual =
        meridian_directory::Database { failover: FailoverMode::Manual, ..database("slow", "a") };
    scenario.cluster.databases.insert(DatabaseId([2; 16]), manual);
    scenario.actor(1).drains = false;
    while !matches!(scenario.shard().phase, Phase::Sealing(_)) {
        scenario.step();
    }
    scenario.down(&[1, 2, 3]);
    scenario.run(30_000);
    assert!(matches!(scenario.shard().phase, Phase::Sealing(Plan { planned: true, .. })));
    assert!(scenario.text().contains("a failover has to be ordered"), "{}", scenario.text());
}

#[test]
fn the_directory_leader_may_die_at_each_step_of_a_switchover() {
    for steps in 0..40 {
        let mut scenario = begun("c");
        scenario.actor(1).position = at(1, 130);
        for _ in 0..steps {
            scenario.step();
        }
        scenario.new_controller();
        scenario.run_until_active(2);
        assert_eq!(outcome(&scenario), ("c", at(1, 130), true), "after {steps} steps");
    }
}

#[test]
fn an_answer_to_a_planned_seal_is_no_answer_to_a_failover() {
    let mut scenario = sealed("b");
    let cause = "by hand".to_owned();
    scenario.order(Change::ForceFailover {
        shard: SHARD,
        epoch: Epoch(1),
        to: None,
        since_ms: 1,
        cause,
    });
    let answer = SealAnswer {
        shard: SHARD,
        epoch: Epoch(1),
        planned: true,
        position: at(1, 100),
        transactions: 200,
        time_ms: 1000,
        term: Some(7),
        drained_leader: false,
    };
    let actions = scenario.controller.step(
        scenario.now,
        &scenario.cluster,
        1,
        Event::Sealed { node: NodeId(2), answer },
    );
    assert!(actions.contains(&Action::Seal {
        node: NodeId(2),
        shard: SHARD,
        epoch: Epoch(1),
        planned: false
    }));
    scenario.run(200);
    let asked =
        |action: &&Action| matches!(action, Action::Seal { node: NodeId(2), planned: false, .. });
    assert_eq!(
        scenario.actions.iter().filter(asked).count(),
        0,
        "it was asked above, and again later"
    );
    scenario.run(500);
    assert!(scenario.actions.iter().any(|action| asked(&action)));
}
