//! Failovers: what is kept, which region goes on, and what is waited for.

use super::scenario::Scenario;
use super::*;

fn force(scenario: &mut Scenario, to: Option<&str>) {
    let (to, cause) = (to.map(str::to_owned), "by hand".to_owned());
    scenario.order(Change::ForceFailover {
        shard: SHARD,
        epoch: scenario.shard().epoch,
        to,
        since_ms: 1,
        cause,
    });
}

/// The last failover or switchover: where to, the base, and what it says was lost.
fn outcome(scenario: &Scenario) -> (String, Position, u64) {
    let report = scenario.shard().reports.last().unwrap();
    (report.to_region.clone(), report.base, report.loss.transactions)
}

#[test]
fn a_region_that_lost_its_quorum_is_replaced_by_the_most_advanced_one() {
    let mut scenario = Scenario::new();
    scenario.actor(1).position = at(1, 130);
    scenario.run(500);
    scenario.actor(6).position = at(1, 120);
    scenario.down(&[1, 2, 3]);
    let took = scenario.run_until_active(2);
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(outcome(&scenario), ("c".to_owned(), at(1, 120), 20));
    let report = &scenario.shard().reports[0];
    assert_eq!((report.loss.window_ms, report.loss.exact, report.planned), (100, false, false));
    assert_eq!(report.loss.at_most, 20, "as far as is known by then");
    assert_eq!(
        (report.base_transactions, report.old_voters.clone()),
        (240, BTreeSet::from([1, 2, 3].map(NodeId)))
    );
    assert!(report.sealed_at_ms < report.promoted_at_ms);
    assert_eq!(scenario.shard().voters, BTreeSet::from([6, 7].map(NodeId)));
    assert_eq!(scenario.actors[&NodeId(7)].position, at(1, 120));
    assert_eq!(
        scenario.asked_to_pull(),
        BTreeSet::from([7].map(NodeId)),
        "no other node has to have it now"
    );
}

#[test]
fn a_leader_that_comes_and_goes_is_given_its_time() {
    let mut scenario = Scenario::new();
    for leader in [2, 3, 1, 2] {
        scenario.actors.values_mut().for_each(|actor| actor.leads = false);
        scenario.run(3000);
        scenario.actor(leader).leads = true;
        scenario.run(1000);
    }
    assert_eq!(scenario.changes, []);
    assert_eq!(scenario.text(), "");
}

/// Until `b` was chosen to pull what only node 3 has, which does not give it.
fn pulling_in_vain() -> Scenario {
    let mut scenario = Scenario::new();
    scenario.actor(3).position = at(1, 150);
    scenario.actor(3).has_tail = false;
    scenario.down(&[1, 2]);
    while !scenario.text().contains("voters of b") {
        scenario.step();
    }
    scenario
}

#[test]
fn a_region_that_was_chosen_has_its_time_to_pull() {
    let mut scenario = pulling_in_vain();
    scenario.run(3500);
    scenario.actor(3).has_tail = true;
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("b".to_owned(), at(1, 150), 0));
    assert_eq!(scenario.asked_to_pull(), BTreeSet::from([4, 5].map(NodeId)));
}

#[test]
fn a_region_that_was_chosen_and_has_two_data_centers_no_more_is_left_for_another() {
    let mut scenario = pulling_in_vain();
    scenario.down(&[5]);
    scenario.run(2000);
    assert!(scenario.text().contains("voters of c"), "{}", scenario.text());
    scenario.actor(3).has_tail = true;
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("c".to_owned(), at(1, 150), 0));
}

#[test]
fn a_replica_pulls_what_it_lacks_before_its_region_goes_on_wherever_else_it_lies() {
    let mut scenario = Scenario::new();
    for id in [3, 6] {
        scenario.actor(id).position = at(1, 150);
    }
    scenario.down(&[1, 2]);
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("c".to_owned(), at(1, 150), 0));
    assert_eq!(scenario.asked_to_pull(), BTreeSet::from([7].map(NodeId)));
}

#[test]
fn of_five_voters_three_have_the_base_before_their_region_goes_on() {
    let mut scenario = Scenario::new();
    scenario.order(Change::AddRegion { name: "d".to_owned() });
    let added = [1, 2, 3, 4, 5].map(|number| scenario.add_node("d", &format!("d{number}")));
    for id in &added[..2] {
        scenario.actor(*id).position = at(1, 120);
    }
    scenario.run(1000);
    scenario.down(&[1, 2, 3]);
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("d".to_owned(), at(1, 120), 0));
    assert_eq!(scenario.shard().voters, BTreeSet::from(added.map(NodeId)));
}

#[test]
fn of_two_nodes_in_a_data_center_the_reachable_one_votes() {
    let mut scenario = Scenario::new();
    let second = scenario.add_node("b", "b1");
    scenario.run(1000);
    scenario.down(&[1, 2, 3, 4]);
    scenario.run_until_active(2);
    assert_eq!(scenario.shard().voters, BTreeSet::from([5, second].map(NodeId)));
}

#[test]
fn a_survivor_that_has_no_tail_to_give_is_passed_over_for_another() {
    let mut scenario = Scenario::new();
    (scenario.actor(2).position, scenario.actor(3).position) = (at(1, 150), at(1, 150));
    scenario.actor(2).has_tail = false;
    scenario.down(&[1]);
    for id in [2, 3] {
        scenario.actor(id).leads = false;
    }
    // They answer: by itself it would give them time.
    force(&mut scenario, None);
    let took = scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("b".to_owned(), at(1, 150), 0));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn of_equals_the_first_named_region_is_chosen() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("b".to_owned(), at(1, 100), 0));
}

#[test]
fn a_region_with_one_data_center_is_never_chosen_by_itself() {
    let mut scenario = Scenario::new();
    scenario.actor(4).position = at(1, 900);
    scenario.down(&[1, 2, 3, 5, 7]);
    scenario.run(20_000);
    assert_eq!(scenario.changes, []);
    assert!(
        scenario.text().ends_with("no other region has two data centers in reach"),
        "{}",
        scenario.text()
    );
    scenario.up(&[7]);
    scenario.run_until_active(2);
    // Region c takes over with b's batches.
    assert_eq!(outcome(&scenario), ("c".to_owned(), at(1, 900), 0));
}

#[test]
fn a_region_that_an_operator_names_pulls_what_others_have_before_it_goes_on() {
    let mut scenario = Scenario::new();
    scenario.actor(4).position = at(1, 900);
    scenario.down(&[1, 2, 3]);
    force(&mut scenario, Some("c"));
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("c".to_owned(), at(1, 900), 0));
}

#[test]
fn of_a_region_that_an_operator_names_all_vote_if_a_majority_is_there() {
    let mut scenario = Scenario::new();
    scenario.down(&[1]);
    force(&mut scenario, Some("a"));
    scenario.run_until_active(2);
    assert_eq!(
        (outcome(&scenario).0.as_str(), &scenario.shard().voters),
        ("a", &BTreeSet::from([1, 2, 3].map(NodeId)))
    );
}

#[test]
fn what_a_leader_was_heard_to_have_is_waited_for_while_a_quorum_of_its_region_answers() {
    for comes_back in [true, false] {
        let mut scenario = Scenario::new();
        scenario.actor(1).position = at(1, 150);
        scenario.run(1000);
        scenario.down(&[1]);
        force(&mut scenario, None);
        scenario.run(10_000);
        let text = "sealed: 100 transactions are missing that a voter of a has; waits for them up to 30.0 s";
        assert_eq!((scenario.shard().epoch, scenario.text().as_str()), (Epoch(1), text));
        if comes_back {
            scenario.up(&[1]);
            scenario.run_until_active(2);
            assert_eq!(outcome(&scenario), ("b".to_owned(), at(1, 150), 0));
        } else {
            scenario.run(19_000);
            assert_eq!(scenario.shard().epoch, Epoch(1));
            scenario.run_until_active(2);
            assert_eq!(outcome(&scenario), ("b".to_owned(), at(1, 100), 100), "not for ever");
        }
    }
}

#[test]
fn the_directory_leader_may_die_at_each_step() {
    let mut deaths = 0;
    for steps in 0..160 {
        let mut scenario = Scenario::new();
        scenario.actor(6).position = at(1, 120);
        scenario.down(&[1, 2, 3]);
        for _ in 0..steps {
            scenario.step();
        }
        deaths += usize::from(scenario.shard().phase != Phase::Active);
        scenario.new_controller();
        scenario.run_until_active(2);
        assert_eq!(outcome(&scenario).1, at(1, 120), "after {steps} steps");
        scenario.run(10_000);
        assert_eq!((scenario.shard().epoch, &scenario.shard().phase), (Epoch(2), &Phase::Active));
    }
    assert!(deaths > 2);
}

#[test]
fn directory_leader_that_slept_judges_no_node_by_its_own_silence() {
    let mut scenario = Scenario::new();
    scenario.now += Duration::from_secs(60);
    scenario.step();
    scenario.run(450);
    assert_eq!(scenario.changes, []);
    scenario.run(10_000);
    assert_eq!(scenario.changes, []);
}

#[test]
fn the_only_holder_of_the_base_may_vanish_and_what_others_have_is_kept() {
    let mut scenario = Scenario::new();
    scenario.actor(3).position = at(1, 150);
    scenario.actor(4).position = at(1, 110);
    scenario.down(&[1, 2]);
    while scenario.shard().phase == Phase::Active {
        scenario.step();
    }
    // It answers, and is gone before a node could pull.
    scenario.step();
    scenario.down(&[3]);
    let (mut seen, mut asked_at) = (0, scenario.now);
    while scenario.shard().epoch == Epoch(1) {
        scenario.step();
        let asked = |action: &Action| matches!(action, Action::Drain { through, .. } if *through == at(1, 150));
        if scenario.actions[seen..].iter().any(asked) {
            asked_at = scenario.now;
        }
        seen = scenario.actions.len();
    }
    let waited = scenario.now - asked_at;
    assert!(
        waited >= ControllerConfig::default().drain_lasts,
        "one may be pulling still after {waited:?}"
    );
    scenario.run_until_active(2);
    let (region, base, lost) = outcome(&scenario);
    assert_eq!((region.as_str(), base), ("b", at(1, 110)));
    assert_eq!(lost, 80, "the reported commits are known to be lost");
}

#[test]
fn while_a_promotion_is_on_its_way_no_node_is_drained_beyond_its_base() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3, 6]);
    while scenario.shard().phase == Phase::Active {
        scenario.step();
    }
    scenario.holds_back = true;
    scenario.run(1000);
    // One with more comes back when it is too late, and what it answers, too.
    scenario.actor(6).position = at(1, 140);
    scenario.up(&[6]);
    scenario.run(1000);
    scenario.act(Action::Seal { node: NodeId(6), shard: SHARD, epoch: Epoch(1), planned: false });
    scenario.run(500);
    let proposed: BTreeSet<_> = scenario
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Commit { changes } => Some(changes),
            _ => None,
        })
        .flatten()
        .filter_map(|change| match change {
            Change::Promote { report, .. } => Some(report.base),
            _ => None,
        })
        .collect();
    assert_eq!(proposed, BTreeSet::from([at(1, 100)]));
    assert!(!scenario.actions.iter().any(|action| matches!(action, Action::Drain { .. })));
    // Some other change comes first.
    scenario.order(Change::AddRegion { name: "d".to_owned() });
    scenario.holds_back = false;
    scenario.run_until_active(2);
    assert_eq!(scenario.asked_to_pull(), BTreeSet::new());
    assert_eq!(outcome(&scenario).1, at(1, 100));
}

#[test]
fn a_promotion_that_is_not_possible_any_more_is_decided_anew() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    while scenario.shard().phase == Phase::Active {
        scenario.step();
    }
    scenario.holds_back = true;
    scenario.run(5000);
    let promotes = |action: &Action| match action {
        Action::Commit { changes } => {
            changes.iter().any(|change| matches!(change, Change::Promote { .. }))
        }
        _ => false,
    };
    assert!(scenario.actions.iter().any(promotes));
    // An operator takes a node away that was to vote.
    scenario.down(&[5]);
    scenario.order(Change::RemoveNode { node: NodeId(5) });
    scenario.holds_back = false;
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario).0, "c");
}

#[test]
fn a_region_that_cannot_form_its_group_is_left_again() {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    while scenario.shard().phase != Phase::Forming {
        scenario.step();
    }
    scenario.down(&[4, 5]);
    scenario.run_until_active(3);
    assert_eq!(outcome(&scenario), ("c".to_owned(), at(1, 100), 0));
}

/// The primary's region is all that can be chosen: its leader is lost, its other voters lack what b
/// and c have, each of which has lost one of its two data centers.
fn only_home_is_left(holders: &[u64]) -> Scenario {
    let mut scenario = Scenario::new();
    scenario.down(&[1, 2, 3]);
    for id in holders {
        scenario.actor(*id).position = at(1, 130);
    }
    while scenario.shard().phase == Phase::Active {
        scenario.step();
    }
    scenario.down(&[5, 7]);
    scenario.up(&[2, 3]);
    scenario
}

#[test]
fn voters_of_the_region_that_failed_pull_what_they_lack_once_it_is_chosen_again() {
    // Or one of them has it.
    for holders in [&[4, 6][..], &[2, 4, 6]] {
        let mut scenario = only_home_is_left(holders);
        scenario.run_until_active(2);
        assert_eq!(outcome(&scenario), ("a".to_owned(), at(1, 130), 0));
        assert_eq!(
            scenario.asked_to_pull(),
            BTreeSet::new(),
            "their state is their old group's until then"
        );
    }
}

#[test]
fn before_it_is_chosen_again_the_base_lies_in_two_data_centers() {
    let mut scenario = only_home_is_left(&[4]);
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("a".to_owned(), at(1, 130), 0));
    assert_eq!(scenario.pulls(), BTreeSet::from([(NodeId(6), NodeId(4))]), "from the only one");
    // Where that cannot be, only an operator goes on.
    let mut scenario = only_home_is_left(&[4]);
    scenario.down(&[6]);
    scenario.run(20_000);
    assert!(matches!(scenario.shard().phase, Phase::Sealing(_)));
    let text = "sealed at 1.130: 0 of the 3 voters of a have it; n2, n3 can pull it once two data centers hold it";
    assert_eq!(scenario.text(), text);
    force(&mut scenario, Some("a"));
    scenario.run_until_active(2);
    assert_eq!(outcome(&scenario), ("a".to_owned(), at(1, 130), 0));
}

#[test]
fn the_shards_of_a_lost_region_fail_over_together() {
    let mut scenario = Scenario::new();
    scenario.add_shards(49);
    scenario.run(2000);
    assert_eq!(scenario.commits, 0);
    scenario.down(&[1, 2, 3]);
    let took = scenario.run_until_active(2);
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(scenario.changes.len(), 150);
    // Answers and leaders come one by one: not all fit into the first list of each step.
    assert!(scenario.commits <= 8, "{} commits", scenario.commits);
    // Each was decided knowing those before it: what one node led is shared by those of the next
    // region.
    let leads = |node| {
        let shards = scenario.cluster.shards.values();
        shards.filter(|shard| shard.preferred_leader == Some(NodeId(node))).count()
    };
    assert_eq!([leads(4), leads(5)], [25, 25]);
    assert!(
        scenario
            .cluster
            .shards
            .values()
            .all(|shard| shard.reports.len() == 1 && shard.base() == at(1, 100))
    );
}

#[test]
fn what_does_not_fit_into_one_entry_follows_in_the_next() {
    let mut scenario = Scenario::new();
    scenario.add_shards(2000);
    scenario.run(2000);
    scenario.down(&[1, 2, 3]);
    while scenario.cluster.shards.values().any(|shard| shard.phase == Phase::Active) {
        let before = (scenario.commits, scenario.changes.len());
        scenario.step();
        let bytes: usize = scenario.changes[before.1..].iter().map(Change::size).sum();
        assert!(scenario.commits <= before.0 + 1 && bytes <= MAX_CHANGES_BYTES, "{bytes}");
    }
    assert!((2..=4).contains(&scenario.commits), "{}", scenario.commits);
}

#[test]
fn a_shard_that_cannot_get_on_keeps_no_other_back() {
    let mut scenario = Scenario::new();
    scenario.add_shards(1);
    // All epochs of the first were used.
    let shard = scenario.cluster.shards.get_mut(&SHARD).unwrap();
    shard.epoch = Epoch(u16::MAX);
    shard.bases.push((Epoch(u16::MAX), at(1, 100)));
    scenario.run(2000);
    scenario.down(&[1, 2, 3]);
    scenario.run(8000);
    assert_eq!(scenario.text(), "all epochs of this shard were used");
    assert_eq!(scenario.cluster.shards[&ShardId(2)].phase, Phase::Active);
    assert_eq!(scenario.cluster.shards[&ShardId(2)].epoch, Epoch(2));
}

#[test]
fn what_was_proposed_for_one_version_is_not_proposed_again_at_once() {
    let scenario = Scenario::new();
    let mut commits = 0;
    let frozen = scenario.cluster.clone();
    let mut controller = Controller::new(ControllerConfig::default(), scenario.now);
    let progress = CommitProgress::new(1, 1);
    let epoch = frozen.shards[&SHARD].epoch;
    let report =
        ShardReport { leads: true, ..ShardReport::new(SHARD, epoch, at(1, 100), progress) };
    assert_eq!(frozen.shards[&SHARD].phase, Phase::Active);
    let mut frozen = frozen;
    frozen.shards.get_mut(&SHARD).unwrap().phase = Phase::Forming;
    for step in 0..20 {
        let now = scenario.now + MS * 50 * step;
        let leader = frozen.shards[&SHARD].preferred_leader.unwrap();
        let event = Event::Reported { node: leader, reports: vec![report.clone()] };
        let actions = controller.step(now, &frozen, 0, event);
        commits += actions.iter().filter(|action| matches!(action, Action::Commit { .. })).count();
    }
    assert_eq!(commits, 4);
}
