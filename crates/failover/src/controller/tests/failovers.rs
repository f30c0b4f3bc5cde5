use super::story::Story;
use super::*;

fn force(story: &mut Story, to: Option<&str>) {
    let (to, cause) = (to.map(str::to_owned), "by hand".to_owned());
    story.order(Change::ForceFailover {
        shard: SHARD,
        epoch: story.shard().epoch,
        to,
        since_ms: 1,
        cause,
    });
}

/// The last failover or switchover: where to, the base, and what it says was lost.
fn outcome(story: &Story) -> (String, Position, u64) {
    let report = story.shard().reports.last().unwrap();
    (report.to_region.clone(), report.base, report.loss.transactions)
}

#[test]
fn a_region_that_lost_its_quorum_is_replaced_by_the_most_advanced_one() {
    let mut story = Story::new();
    story.actor(1).position = at(1, 130);
    story.run(500);
    story.actor(6).position = at(1, 120);
    story.down(&[1, 2, 3]);
    let took = story.run_until_active(2);
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 120), 20));
    let report = &story.shard().reports[0];
    assert_eq!((report.loss.window_ms, report.loss.exact, report.planned), (100, false, false));
    assert_eq!(report.loss.at_most, 20, "as far as is known by then");
    assert_eq!(
        (report.base_transactions, report.old_voters.clone()),
        (240, BTreeSet::from([1, 2, 3]))
    );
    assert!(report.sealed_at_ms < report.promoted_at_ms);
    assert_eq!(story.shard().voters, BTreeSet::from([6, 7]));
    assert_eq!(story.actors[&7].position, at(1, 120));
    assert_eq!(story.asked_to_pull(), BTreeSet::from([7]), "nobody else has to have it now");
}

#[test]
fn a_leader_that_comes_and_goes_is_given_its_time() {
    let mut story = Story::new();
    for leader in [2, 3, 1, 2] {
        story.actors.values_mut().for_each(|actor| actor.leads = false);
        story.run(3000);
        story.actor(leader).leads = true;
        story.run(1000);
    }
    assert_eq!(story.changes, []);
    assert_eq!(story.text(), "");
}

#[test]
fn a_survivor_of_the_old_primary_gives_what_only_it_has() {
    let mut story = Story::new();
    story.actor(3).position = at(1, 150);
    story.down(&[1, 2]);
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b".to_owned(), at(1, 150), 0));
    assert!(story.pulls().iter().any(|(_, source)| *source == 3));
}

/// Until `b` was chosen to pull what only node 3 has, which does not give it.
fn pulling_in_vain() -> Story {
    let mut story = Story::new();
    story.actor(3).position = at(1, 150);
    story.actor(3).has_tail = false;
    story.down(&[1, 2]);
    while !story.text().contains("voters of b") {
        story.step();
    }
    story
}

#[test]
fn a_region_that_was_chosen_has_its_time_to_pull() {
    let mut story = pulling_in_vain();
    story.run(3500);
    story.actor(3).has_tail = true;
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b".to_owned(), at(1, 150), 0));
    assert_eq!(story.asked_to_pull(), BTreeSet::from([4, 5]));
}

#[test]
fn a_region_that_was_chosen_and_has_two_data_centers_no_more_is_left_for_another() {
    let mut story = pulling_in_vain();
    story.down(&[5]);
    story.run(2000);
    assert!(story.text().contains("voters of c"), "{}", story.text());
    story.actor(3).has_tail = true;
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 150), 0));
}

#[test]
fn a_replica_pulls_what_it_lacks_before_its_region_goes_on_wherever_else_it_lies() {
    let mut story = Story::new();
    for id in [3, 6] {
        story.actor(id).position = at(1, 150);
    }
    story.down(&[1, 2]);
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 150), 0));
    assert_eq!(story.asked_to_pull(), BTreeSet::from([7]));
}

#[test]
fn of_five_voters_three_have_the_base_before_their_region_goes_on() {
    let mut story = Story::new();
    story.order(Change::AddRegion { name: "d".to_owned() });
    let added = [1, 2, 3, 4, 5].map(|number| story.add_node("d", &format!("d{number}")));
    for id in &added[..2] {
        story.actor(*id).position = at(1, 120);
    }
    story.run(1000);
    story.down(&[1, 2, 3]);
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("d".to_owned(), at(1, 120), 0));
    assert_eq!(story.shard().voters, BTreeSet::from(added));
}

#[test]
fn of_two_nodes_in_a_data_center_the_one_that_is_there_votes() {
    let mut story = Story::new();
    let second = story.add_node("b", "b1");
    story.run(1000);
    story.down(&[1, 2, 3, 4]);
    story.run_until_active(2);
    assert_eq!(story.shard().voters, BTreeSet::from([5, second]));
}

#[test]
fn a_survivor_that_has_no_tail_to_give_is_passed_over_for_another() {
    let mut story = Story::new();
    (story.actor(2).position, story.actor(3).position) = (at(1, 150), at(1, 150));
    story.actor(2).has_tail = false;
    story.down(&[1]);
    for id in [2, 3] {
        story.actor(id).leads = false;
    }
    // They answer: by itself it would give them time.
    force(&mut story, None);
    let took = story.run_until_active(2);
    assert_eq!(outcome(&story), ("b".to_owned(), at(1, 150), 0));
    assert!(took < Duration::from_secs(10), "{took:?}");
}

#[test]
fn of_equals_the_first_named_region_is_chosen() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b".to_owned(), at(1, 100), 0));
}

#[test]
fn a_region_with_one_data_center_is_never_chosen_by_itself() {
    let mut story = Story::new();
    story.actor(4).position = at(1, 900);
    story.down(&[1, 2, 3, 5, 7]);
    story.run(20_000);
    assert_eq!(story.changes, []);
    assert!(
        story.text().ends_with("no other region has two data centers in reach"),
        "{}",
        story.text()
    );
    story.up(&[7]);
    story.run_until_active(2);
    // What b has is taken along.
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 900), 0));
}

#[test]
fn an_operator_may_name_a_region_with_one_data_center() {
    let mut story = Story::new();
    story.down(&[1, 2, 3, 5, 6, 7]);
    story.run(10_000);
    assert_eq!(story.changes, []);
    force(&mut story, Some("b"));
    story.run_until_active(2);
    assert_eq!(
        (outcome(&story).0, story.shard().voters.clone()),
        ("b".to_owned(), BTreeSet::from([4]))
    );
}

#[test]
fn a_region_that_an_operator_names_pulls_what_others_have_before_it_goes_on() {
    let mut story = Story::new();
    story.actor(4).position = at(1, 900);
    story.down(&[1, 2, 3]);
    force(&mut story, Some("c"));
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 900), 0));
}

#[test]
fn of_a_region_that_an_operator_names_all_vote_if_a_majority_is_there() {
    let mut story = Story::new();
    story.down(&[1]);
    force(&mut story, Some("a"));
    story.run_until_active(2);
    assert_eq!(
        (outcome(&story).0.as_str(), &story.shard().voters),
        ("a", &BTreeSet::from([1, 2, 3]))
    );
}

#[test]
fn what_a_leader_was_heard_to_have_is_waited_for_while_a_quorum_of_its_region_answers() {
    for comes_back in [true, false] {
        let mut story = Story::new();
        story.actor(1).position = at(1, 150);
        story.run(1000);
        story.down(&[1]);
        force(&mut story, None);
        story.run(10_000);
        let text = "sealed: 100 transactions are missing that a voter of a has; waits for them up to 30.0 s";
        assert_eq!((story.shard().epoch, story.text().as_str()), (Epoch(1), text));
        if comes_back {
            story.up(&[1]);
            story.run_until_active(2);
            assert_eq!(outcome(&story), ("b".to_owned(), at(1, 150), 0));
        } else {
            story.run(19_000);
            assert_eq!(story.shard().epoch, Epoch(1));
            story.run_until_active(2);
            assert_eq!(outcome(&story), ("b".to_owned(), at(1, 100), 100), "not for ever");
        }
    }
}

#[test]
fn a_database_in_manual_mode_keeps_its_shard_where_it_is() {
    let mut story = Story::new();
    let manual =
        meridian_directory::Database { failover: FailoverMode::Manual, ..database("slow", "a") };
    story.cluster.databases.insert(DatabaseId([2; 16]), manual);
    story.down(&[1, 2, 3]);
    story.run(20_000);
    assert_eq!(story.changes, []);
    assert!(story.text().contains("a failover has to be ordered"), "{}", story.text());
    force(&mut story, None);
    story.run_until_active(2);
    assert_eq!(outcome(&story).0, "b");
}

#[test]
fn it_waits_for_the_lease_of_a_primary_that_cannot_be_reached() {
    let mut story = Story::new();
    story.run(50);
    let granted = story.now;
    // The primary is well, and cut off from the directory at the moment of the order.
    story.actors.values_mut().filter(|actor| actor.leads).for_each(|actor| actor.up = false);
    force(&mut story, None);
    story.run(1000);
    assert_eq!(story.text(), "sealing: waits until leases run out or are given up by n1");
    story.run_until_active(2);
    assert!(story.now - granted >= Duration::from_millis(2600), "{:?}", story.now - granted);
}

#[test]
fn a_new_directory_leader_does_not_know_what_was_granted_and_waits() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    story.run(3000);
    story.new_controller();
    force(&mut story, None);
    let took = story.run_until_active(2);
    assert!(took > Duration::from_millis(3150) && took < Duration::from_secs(5), "{took:?}");
}

#[test]
fn the_directory_leader_may_die_at_each_step() {
    let mut deaths = 0;
    for steps in 0..160 {
        let mut story = Story::new();
        story.actor(6).position = at(1, 120);
        story.down(&[1, 2, 3]);
        for _ in 0..steps {
            story.step();
        }
        deaths += usize::from(story.shard().phase != Phase::Active);
        story.new_controller();
        story.run_until_active(2);
        assert_eq!(outcome(&story).1, at(1, 120), "after {steps} steps");
        story.run(10_000);
        assert_eq!((story.shard().epoch, &story.shard().phase), (Epoch(2), &Phase::Active));
    }
    assert!(deaths > 2);
}

#[test]
fn a_directory_leader_that_slept_judges_nobody_by_its_own_silence() {
    let mut story = Story::new();
    story.now += Duration::from_secs(60);
    story.step();
    story.run(450);
    assert_eq!(story.changes, []);
    story.run(10_000);
    assert_eq!(story.changes, []);
}

#[test]
fn the_only_holder_of_the_base_may_vanish_and_what_others_have_is_kept() {
    let mut story = Story::new();
    story.actor(3).position = at(1, 150);
    story.actor(4).position = at(1, 110);
    story.down(&[1, 2]);
    while story.shard().phase == Phase::Active {
        story.step();
    }
    // It answers, and is gone before anybody could pull.
    story.step();
    story.down(&[3]);
    let (mut seen, mut asked_at) = (0, story.now);
    while story.shard().epoch == Epoch(1) {
        story.step();
        let asked = |action: &Action| matches!(action, Action::Drain { through, .. } if *through == at(1, 150));
        if story.actions[seen..].iter().any(asked) {
            asked_at = story.now;
        }
        seen = story.actions.len();
    }
    let waited = story.now - asked_at;
    assert!(
        waited >= ControllerConfig::default().drain_lasts,
        "one may be pulling still after {waited:?}"
    );
    story.run_until_active(2);
    let (region, base, lost) = outcome(&story);
    assert_eq!((region.as_str(), base), ("b", at(1, 110)));
    assert_eq!(lost, 80, "what it said is known to be lost");
}

#[test]
fn while_a_promotion_is_on_its_way_nobody_is_drained_beyond_its_base() {
    let mut story = Story::new();
    story.down(&[1, 2, 3, 6]);
    while story.shard().phase == Phase::Active {
        story.step();
    }
    story.holds_back = true;
    story.run(1000);
    // One with more comes back when it is too late, and what it answers, too.
    story.actor(6).position = at(1, 140);
    story.up(&[6]);
    story.run(1000);
    story.act(Action::Seal { node: 6, shard: SHARD, epoch: Epoch(1), planned: false });
    story.run(500);
    let proposed: BTreeSet<_> = story
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
    assert!(!story.actions.iter().any(|action| matches!(action, Action::Drain { .. })));
    // Some other change comes first.
    story.order(Change::AddRegion { name: "d".to_owned() });
    story.holds_back = false;
    story.run_until_active(2);
    assert_eq!(story.asked_to_pull(), BTreeSet::new());
    assert_eq!(outcome(&story).1, at(1, 100));
}

#[test]
fn a_promotion_that_is_not_possible_any_more_is_decided_anew() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    while story.shard().phase == Phase::Active {
        story.step();
    }
    story.holds_back = true;
    story.run(5000);
    let promotes = |action: &Action| match action {
        Action::Commit { changes } => {
            changes.iter().any(|change| matches!(change, Change::Promote { .. }))
        }
        _ => false,
    };
    assert!(story.actions.iter().any(promotes));
    // An operator takes a node away that was to vote.
    story.down(&[5]);
    story.order(Change::RemoveNode { node: 5 });
    story.holds_back = false;
    story.run_until_active(2);
    assert_eq!(outcome(&story).0, "c");
}

#[test]
fn who_holds_what_an_earlier_failover_lost_has_no_say() {
    let mut story = Story::new();
    story.down(&[1, 2, 3, 4, 5]);
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 100), 0));
    // Nodes of b come back with what was not in the base, and have not learnt better yet.
    story.actor(4).position = at(1, 130);
    story.up(&[4, 5]);
    story.down(&[6, 7]);
    story.up(&[1, 2, 3]);
    story.run_until_active(3);
    assert_eq!((outcome(&story).0.as_str(), outcome(&story).1), ("a", at(1, 100)));
}

#[test]
fn a_region_that_cannot_form_its_group_is_left_again() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    while story.shard().phase != Phase::Forming {
        story.step();
    }
    story.down(&[4, 5]);
    story.run_until_active(3);
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 100), 0));
}

/// The primary's region is all that can be chosen: its leader is lost, its other voters lack what b
/// and c have, each of which has lost one of its two data centers.
fn only_home_is_left(holders: &[NodeId]) -> Story {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    for id in holders {
        story.actor(*id).position = at(1, 130);
    }
    while story.shard().phase == Phase::Active {
        story.step();
    }
    story.down(&[5, 7]);
    story.up(&[2, 3]);
    story
}

#[test]
fn voters_of_the_region_that_failed_pull_what_they_lack_once_it_is_chosen_again() {
    // Or one of them has it.
    for holders in [&[4, 6][..], &[2, 4, 6]] {
        let mut story = only_home_is_left(holders);
        story.run_until_active(2);
        assert_eq!(outcome(&story), ("a".to_owned(), at(1, 130), 0));
        assert_eq!(
            story.asked_to_pull(),
            BTreeSet::new(),
            "their state is their old group's until then"
        );
    }
}

#[test]
fn before_it_is_chosen_again_the_base_lies_in_two_data_centers() {
    let mut story = only_home_is_left(&[4]);
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("a".to_owned(), at(1, 130), 0));
    assert_eq!(story.pulls(), BTreeSet::from([(6, 4)]), "from the only one");
    // Where that cannot be, only an operator goes on.
    let mut story = only_home_is_left(&[4]);
    story.down(&[6]);
    story.run(20_000);
    assert!(matches!(story.shard().phase, Phase::Sealing(_)));
    let text = "sealed at 1.130: 0 of the 3 voters of a have it; n2, n3 can pull it once two data centers hold it";
    assert_eq!(story.text(), text);
    force(&mut story, Some("a"));
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("a".to_owned(), at(1, 130), 0));
}

#[test]
fn those_that_are_left_tell_a_new_directory_leader_how_much_is_lost() {
    let mut story = Story::new();
    story.actor(1).position = at(1, 130);
    story.run(1000);
    // The directory's leader is lost with the region; nobody is left who had what the shard's
    // leader had.
    story.down(&[1, 2, 3]);
    story.new_controller();
    story.run_until_active(2);
    assert_eq!(outcome(&story), ("b".to_owned(), at(1, 100), 60));
    assert_eq!(story.shard().reports[0].loss.window_ms, 300);
    // Of the epoch before nothing counts in the next.
    story.down(&[4, 5]);
    story.new_controller();
    story.run_until_active(3);
    assert_eq!(outcome(&story), ("c".to_owned(), at(1, 100), 0));
}

#[test]
fn two_failovers_in_a_row_keep_the_line_of_bases() {
    let mut story = Story::new();
    story.down(&[1, 2, 3]);
    story.run_until_active(2);
    for id in [4, 5] {
        story.actor(id).position = at(2, 140);
    }
    story.run(1000);
    story.up(&[1, 2, 3]);
    for id in [6, 7] {
        story.actor(id).position = at(2, 130);
    }
    story.down(&[4, 5]);
    story.run_until_active(3);
    assert_eq!(outcome(&story), ("c".to_owned(), at(2, 130), 20));
    let bases = [(Epoch(1), Position::ZERO), (Epoch(2), at(1, 100)), (Epoch(3), at(2, 130))];
    assert_eq!(story.shard().bases, bases);
}

#[test]
fn the_shards_of_a_lost_region_fail_over_together() {
    let mut story = Story::new();
    story.add_shards(49);
    story.run(2000);
    assert_eq!(story.commits, 0);
    story.down(&[1, 2, 3]);
    let took = story.run_until_active(2);
    assert!(took < Duration::from_secs(6), "{took:?}");
    assert_eq!(story.changes.len(), 150);
    // Answers and leaders come one by one: not all fit into the first list of each step.
    assert!(story.commits <= 8, "{} commits", story.commits);
    // Each was decided knowing those before it: what one node led is shared by those of the next
    // region.
    let leads = |node: NodeId| {
        let shards = story.cluster.shards.values();
        shards.filter(|shard| shard.preferred_leader == Some(node)).count()
    };
    assert_eq!([leads(4), leads(5)], [25, 25]);
    assert!(
        story
            .cluster
            .shards
            .values()
            .all(|shard| shard.reports.len() == 1 && shard.base() == at(1, 100))
    );
}

#[test]
fn what_does_not_fit_into_one_entry_follows_in_the_next() {
    let mut story = Story::new();
    story.add_shards(2000);
    story.run(2000);
    story.down(&[1, 2, 3]);
    while story.cluster.shards.values().any(|shard| shard.phase == Phase::Active) {
        let before = (story.commits, story.changes.len());
        story.step();
        let bytes: usize = story.changes[before.1..].iter().map(Change::size).sum();
        assert!(story.commits <= before.0 + 1 && bytes <= MAX_CHANGES_BYTES, "{bytes}");
    }
    assert!((2..=4).contains(&story.commits), "{}", story.commits);
}

#[test]
fn a_shard_that_cannot_get_on_keeps_no_other_back() {
    let mut story = Story::new();
    story.add_shards(1);
    // All epochs of the first were used.
    let shard = story.cluster.shards.get_mut(&SHARD).unwrap();
    shard.epoch = Epoch(u16::MAX);
    shard.bases.push((Epoch(u16::MAX), at(1, 100)));
    story.run(2000);
    story.down(&[1, 2, 3]);
    story.run(8000);
    assert_eq!(story.text(), "all epochs of this shard were used");
    assert_eq!(story.cluster.shards[&ShardId(2)].phase, Phase::Active);
    assert_eq!(story.cluster.shards[&ShardId(2)].epoch, Epoch(2));
}

#[test]
fn what_was_proposed_for_one_version_is_not_proposed_again_at_once() {
    let story = Story::new();
    let mut commits = 0;
    let frozen = story.cluster.clone();
    let mut controller = Controller::new(ControllerConfig::default(), story.now);
    let progress = CommitProgress::new(1, 1);
    let epoch = frozen.shards[&SHARD].epoch;
    let report =
        ShardReport { leads: true, ..ShardReport::new(SHARD, epoch, at(1, 100), progress) };
    assert_eq!(frozen.shards[&SHARD].phase, Phase::Active);
    let mut frozen = frozen;
    frozen.shards.get_mut(&SHARD).unwrap().phase = Phase::Forming;
    for step in 0..20 {
        let now = story.now + MS * 50 * step;
        let leader = frozen.shards[&SHARD].preferred_leader.unwrap();
        let event = Event::Reported { node: leader, reports: vec![report.clone()] };
        let actions = controller.step(now, &frozen, 0, event);
        commits += actions.iter().filter(|action| matches!(action, Action::Commit { .. })).count();
    }
    assert_eq!(commits, 4);
}
