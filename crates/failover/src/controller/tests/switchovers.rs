use super::story::Story;
use super::*;

const CANCEL: Change = Change::CancelSwitchover { shard: SHARD };

fn begun(to: &str) -> Story {
    let mut story = Story::new();
    story.order(Change::BeginSwitchover { shard: SHARD, to: to.to_owned() });
    story
}

/// Until the shard is sealed.
fn sealed(to: &str) -> Story {
    let mut story = begun(to);
    while !matches!(story.shard().phase, Phase::Sealing(_)) {
        story.step();
    }
    story
}

fn outcome(story: &Story) -> (&str, Position, bool) {
    let report = story.shard().reports.last().unwrap();
    assert_eq!((report.loss.transactions, report.loss.exact), (0, report.planned));
    (&report.to_region, report.base, report.planned)
}

fn seals(story: &Story) -> Vec<NodeId> {
    let nodes = story.actions.iter().filter_map(|action| match action {
        Action::Seal { node, planned: true, .. } => Some(*node),
        _ => None,
    });
    nodes.collect()
}

#[test]
fn a_switchover_loses_nothing_and_takes_less_than_a_second() {
    let mut story = sealed("b");
    let sealed_at = story.now;
    story.actor(1).position = at(1, 130);
    story.actor(4).position = at(1, 120);
    story.run_until_active(2);
    assert!(story.now - sealed_at < Duration::from_millis(1000), "{:?}", story.now - sealed_at);
    assert_eq!(outcome(&story), ("b", at(1, 130), true));
    assert_eq!(seals(&story)[0], 1, "the leader first");
    assert_eq!(seals(&story).iter().collect::<BTreeSet<_>>(), BTreeSet::from([&1, &2, &3]));
}

#[test]
fn it_waits_until_the_target_is_near_and_may_be_cancelled() {
    let mut story = Story::new();
    for id in [4, 5] {
        story.actor(id).lag_ms = 60_000;
    }
    story.run(500);
    story.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
    story.run(30_000);
    assert_eq!(story.shard().phase, Phase::SwitchingOver { to: "b".to_owned() });
    assert_eq!(
        story.text(),
        "switchover to b: 0 of its data centers lag by at most 1.0 s, 2 are wanted"
    );
    story.order(CANCEL);
    story.run(1000);
    assert_eq!((&story.shard().phase, story.shard().epoch), (&Phase::Active, Epoch(1)));
}

#[test]
fn a_replica_that_has_left_the_history_is_not_near() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    story.run_until_active(2);
    // As it was before it missed that failover, and it does not lag by what it knows.
    story.actor(6).position = at(1, 120);
    story.run(500);
    story.order(Change::BeginSwitchover { shard: SHARD, to: "c".to_owned() });
    story.run(10_000);
    assert_eq!(story.shard().phase, Phase::SwitchingOver { to: "c".to_owned() });
    assert_eq!(
        story.text(),
        "switchover to c: 1 of its data centers lag by at most 1.0 s, 2 are wanted"
    );
    story.actor(6).position = at(1, 100);
    story.run_until_active(3);
}

#[test]
fn it_waits_until_the_group_has_the_voters_that_the_cluster_names() {
    let mut story = Story::new();
    story.actor(1).is_settled = false;
    story.order(Change::SetVoters { shard: SHARD, voters: BTreeSet::from([2, 3]) });
    story.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
    // Node 1, which is to go, leads meanwhile: it has its lease, and is heard.
    story.run(10_000);
    assert_eq!(story.shard().phase, Phase::SwitchingOver { to: "b".to_owned() });
    assert_eq!(story.text(), "switchover to b: waits until the voters have changed");
    let lease = |story: &mut Story| story.controller.renew(story.now, &story.cluster, 1).shards;
    assert_eq!(lease(&mut story), [(SHARD, Epoch(1))]);
    story.actor(1).leads = false;
    (story.actor(2).leads, story.actor(2).is_settled) = (true, true);
    story.run_until_active(2);
    assert!(
        matches!(story.changes.first(), Some(Change::ConfirmVoters { version: 2, .. })),
        "{:?}",
        story.changes
    );
    assert_eq!(lease(&mut story), []);
    assert_eq!(outcome(&story), ("b", at(1, 100), true));
}

#[test]
fn a_primary_that_fails_during_the_preparation_fails_over() {
    let mut story = Story::new();
    story.actor(5).lag_ms = 60_000;
    story.run(500);
    story.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
    story.run(1000);
    story.actor(7).position = at(1, 110);
    story.down(&[1, 2, 3]);
    story.run_until_active(2);
    let report = story.shard().reports.last().unwrap();
    assert_eq!((report.planned, report.to_region.as_str(), report.base), (false, "c", at(1, 110)));
}

#[test]
fn a_switchover_says_what_it_waits_for_and_asks_those_again_that_it_waits_for() {
    let mut story = begun("b");
    story.actor(1).drains = false;
    for id in [1, 2, 3] {
        story.actor(id).has_tail = false;
    }
    (story.actor(2).seals, story.actor(3).seals) = (false, false);
    while !matches!(story.shard().phase, Phase::Sealing(_)) {
        story.step();
    }
    let after = |story: &mut Story| {
        story.actions.clear();
        story.run(400);
        story.text()
    };
    assert_eq!(after(&mut story), "switchover to b: the leader finishes what it began");
    // It was asked before it had drained.
    story.actor(1).drains = true;
    assert_eq!(
        after(&mut story),
        "switchover to b: waits until a majority of the voters is sealed"
    );
    story.actor(2).seals = true;
    assert_eq!(after(&mut story), "switchover to b: 0 of its 2 voters have everything up to 1.100");
    for id in [1, 2, 3] {
        story.actor(id).has_tail = true;
    }
    assert_eq!(
        after(&mut story),
        "switchover to b: waits until leases run out or are given up by n3"
    );
    assert_eq!(
        seals(&story).iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([&3]),
        "those that answered are not asked"
    );
    story.actor(3).seals = true;
    let took = story.run_until_active(2);
    assert!(took < Duration::from_millis(600), "{took:?}");
    assert_eq!(outcome(&story), ("b", at(1, 100), true));
}

#[test]
fn a_leader_that_is_there_and_takes_long_to_drain_is_waited_for() {
    let mut story = begun("b");
    story.actor(1).drains = false;
    story.run(20_000);
    assert!(
        matches!(story.changes[..], [Change::Seal { planned: true, .. }]),
        "{:?}",
        story.changes
    );
    story.actor(1).drains = true;
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b", at(1, 100), true));
}

#[test]
fn a_drained_leader_that_voters_have_left_for_another_is_not_enough() {
    let mut story = sealed("b");
    let successor = story.actor(2);
    (successor.leads, successor.term, successor.position, successor.drains) =
        (true, 9, at(1, 140), false);
    story.actor(3).term = 9;
    story.run(2000);
    assert_eq!(story.shard().epoch, Epoch(1));
    assert_eq!(story.text(), "switchover to b: waits until a majority of the voters is sealed");
    story.actor(2).drains = true;
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b", at(1, 140), true));
}

#[test]
fn a_target_pulls_from_the_leader_that_drained() {
    let mut story = Story::new();
    (story.actor(1).leads, story.actor(2).leads) = (false, true);
    story.actor(2).has_tail = false;
    story.run(1000);
    story.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
    while !matches!(story.shard().phase, Phase::Sealing(_)) {
        story.step();
    }
    story.run(800);
    assert_eq!(story.pulls(), BTreeSet::from([(4, 2), (5, 2)]));
    // Nothing comes of it: the others have it as well.
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b", at(1, 100), true));
}

#[test]
fn of_two_nodes_in_a_data_center_of_the_target_the_one_that_is_there_and_has_most_votes() {
    for is_down in [true, false] {
        let mut story = Story::new();
        let second = story.add_node("b", "b1");
        if is_down {
            story.down(&[4]);
        } else {
            story.actor(4).position = at(1, 90);
        }
        story.run(2000);
        story.order(Change::BeginSwitchover { shard: SHARD, to: "b".to_owned() });
        story.run_until_active(2);
        assert_eq!(outcome(&story), ("b", at(1, 100), true));
        assert_eq!(story.shard().voters, BTreeSet::from([5, second]));
        assert_eq!(story.asked_to_pull(), BTreeSet::from([5, second]));
    }
}

#[test]
fn a_leader_that_is_lost_while_it_drains_is_replaced_by_the_other_voters_and_nothing_is_lost() {
    let mut story = begun("b");
    story.actor(1).drains = false;
    while !matches!(story.shard().phase, Phase::Sealing(_)) {
        story.step();
    }
    story.run(300);
    assert_eq!(
        seals(&story).iter().collect::<BTreeSet<_>>(),
        BTreeSet::from([&1]),
        "the others may still vote"
    );
    story.down(&[1]);
    let successor = story.actor(2);
    (successor.leads, successor.term, successor.position) = (true, 8, at(1, 131));
    story.actor(3).term = 8;
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b", at(1, 131), true));
}

#[test]
fn a_drained_leader_counts_only_if_no_later_term_can_have_committed() {
    let mut story = sealed("b");
    // The others have elected 2 meanwhile, which has committed more.
    let successor = story.actor(2);
    (successor.leads, successor.term, successor.position) = (true, 9, at(1, 140));
    story.actor(3).term = 9;
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b", at(1, 140), true));
}

#[test]
fn a_cancelled_switchover_goes_home_with_the_same_voters() {
    let mut story = sealed("b");
    story.order(CANCEL);
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("a", at(1, 100), true));
    assert_eq!(story.shard().voters, BTreeSet::from([1, 2, 3]));
}

#[test]
fn a_target_that_fails_after_the_seal_sends_the_shard_home() {
    let mut story = sealed("b");
    story.down(&[4, 5]);
    story.run_until_active(2);
    assert!(story.changes.contains(&CANCEL));
    assert_eq!(outcome(&story), ("a", at(1, 100), true));
}

#[test]
fn a_primary_that_fails_after_the_seal_and_before_it_drained_fails_over() {
    let mut story = begun("b");
    story.actor(1).drains = false;
    while !matches!(story.shard().phase, Phase::Sealing(_)) {
        story.step();
    }
    story.actor(6).position = at(1, 105);
    story.down(&[1, 2, 3]);
    story.run_until_active(2);
    assert!(!story.changes.contains(&CANCEL), "there is nobody to go home to");
    let report = story.shard().reports.last().unwrap();
    assert_eq!((report.planned, report.to_region.as_str(), report.base), (false, "c", at(1, 105)));
}

#[test]
fn in_manual_mode_it_waits_for_an_operator_instead() {
    let mut story = begun("b");
    let manual =
        meridian_directory::Database { failover: FailoverMode::Manual, ..database("slow", "a") };
    story.cluster.databases.insert(DatabaseId([2; 16]), manual);
    story.actor(1).drains = false;
    while !matches!(story.shard().phase, Phase::Sealing(_)) {
        story.step();
    }
    story.down(&[1, 2, 3]);
    story.run(30_000);
    assert!(matches!(story.shard().phase, Phase::Sealing(Plan { planned: true, .. })));
    assert!(story.text().contains("a failover has to be ordered"), "{}", story.text());
}

#[test]
fn the_directory_leader_may_die_at_each_step_of_a_switchover() {
    for steps in 0..40 {
        let mut story = begun("c");
        story.actor(1).position = at(1, 130);
        for _ in 0..steps {
            story.step();
        }
        story.new_controller();
        story.run_until_active(2);
        assert_eq!(outcome(&story), ("c", at(1, 130), true), "after {steps} steps");
    }
}

#[test]
fn an_answer_to_a_planned_seal_is_no_answer_to_a_failover() {
    let mut story = sealed("b");
    let cause = "by hand".to_owned();
    story.order(Change::ForceFailover {
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
    let actions =
        story.controller.step(story.now, &story.cluster, 1, Event::Sealed { node: 2, answer });
    assert!(actions.contains(&Action::Seal {
        node: 2,
        shard: SHARD,
        epoch: Epoch(1),
        planned: false
    }));
    story.run(200);
    let asked = |action: &&Action| matches!(action, Action::Seal { node: 2, planned: false, .. });
    assert_eq!(
        story.actions.iter().filter(asked).count(),
        0,
        "it was asked above, and again later"
    );
    story.run(500);
    assert!(story.actions.iter().any(|action| asked(&action)));
}
