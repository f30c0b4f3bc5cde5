//! Changes of a shard: its phases, its voters, what it lost.

use super::*;

fn seal(epoch: u16, to: Option<&str>, planned: bool) -> Change {
    let (shard, epoch, to) = (SHARD, Epoch(epoch), to.map(str::to_owned));
    Change::Seal { shard, epoch, to, planned, since_ms: 6_000, cause: "a test".to_owned() }
}

fn begin(to: &str) -> Change {
    Change::BeginSwitchover { shard: SHARD, to: to.to_owned() }
}

const CANCEL: Change = Change::CancelSwitchover { shard: SHARD };

fn promote(epoch: u16, base: Position, to: &str, voters: &[u64]) -> Change {
    let report = report(epoch, base, to);
    Change::Promote {
        shard: SHARD,
        voters: ids(voters),
        preferred_leader: voters.first().copied().map(NodeId),
        report,
    }
}

fn activate(epoch: u16) -> Change {
    Change::Activate { shard: SHARD, epoch: Epoch(epoch) }
}

fn force(epoch: u16, to: Option<&str>) -> Change {
    let (shard, epoch, to) = (SHARD, Epoch(epoch), to.map(str::to_owned));
    Change::ForceFailover { shard, epoch, to, since_ms: 9_000, cause: "by hand".to_owned() }
}

fn phase(cluster: &Cluster) -> &Phase {
    &cluster.shards[&SHARD].phase
}

fn planned(to: &str) -> Cluster {
    done(&done(&cluster(), &begin(to)), &seal(1, Some(to), true))
}

#[test]
fn a_shard_is_sealed_promoted_and_activated() {
    let next = done(&cluster(), &seal(1, None, false));
    let plan = Plan { to: None, planned: false, since_ms: 6_000, cause: "a test".to_owned() };
    assert_eq!(*phase(&next), Phase::Sealing(plan));
    assert_eq!(
        refused(&next, &seal(1, None, false)),
        "shard 1 is sealed (epoch 1), since a has failed: it cannot be sealed"
    );
    let next = done(&next, &promote(2, at(1, 50), "b", &[4, 5]));
    let shard = &next.shards[&SHARD];
    assert_eq!(
        (shard.epoch, &shard.phase, shard.primary_region.as_str()),
        (Epoch(2), &Phase::Forming, "b")
    );
    assert_eq!((shard.voters.clone(), shard.preferred_leader), (ids(&[4, 5]), Some(NodeId(4))));
    assert_eq!(shard.bases, [(Epoch(1), Position::ZERO), (Epoch(2), at(1, 50))]);
    assert_eq!(
        shard.reports,
        [FailoverReport { old_voters: ids(&[1, 2, 3]), ..report(2, at(1, 50), "b") }]
    );
    let again = refused(&next, &promote(2, at(1, 50), "b", &[4, 5]));
    assert_eq!(again, "shard 1 is being opened in b (epoch 2): it cannot be promoted");
    assert_eq!(
        refused(&next, &activate(1)),
        "shard 1 is being opened in b (epoch 2), not in epoch 1"
    );
    let next = done(&next, &activate(2));
    assert_eq!(*phase(&next), Phase::Active);
    assert_eq!(
        refused(&next, &activate(2)),
        "shard 1 is active in b (epoch 2): it cannot be activated"
    );
    assert_eq!(
        refused(&next, &seal(1, None, false)),
        "shard 1 is active in b (epoch 2), not in epoch 1"
    );
}

#[test]
fn a_promotion_names_voters_base_and_region_that_can_be() {
    let sealed = done(&cluster(), &seal(1, None, false));
    let refused = |change: &Change| refused(&sealed, change);
    let message = "shard 1 is in epoch 1: the next one is not 3";
    assert_eq!(refused(&promote(3, at(1, 50), "b", &[4, 5])), message);
    let message = "2.50 is not in the history of epoch 1 of shard 1";
    assert_eq!(refused(&promote(2, at(2, 50), "b", &[4, 5])), message);
    let message = "n6 is in region c, but shard 1 has its primary in b";
    assert_eq!(refused(&promote(2, at(1, 50), "b", &[4, 6])), message);
    assert_eq!(refused(&promote(2, at(1, 50), "b", &[])), "shard 1 would have no voters");
    assert_eq!(refused(&promote(2, at(1, 50), "d", &[4, 5])), "there is no region d");
    let Change::Promote { report, .. } = promote(2, at(1, 50), "b", &[4, 5]) else {
        unreachable!()
    };
    let outsider = Change::Promote {
        shard: SHARD,
        voters: ids(&[4, 5]),
        preferred_leader: Some(NodeId(6)),
        report,
    };
    assert_eq!(refused(&outsider), "the preferred leader of shard 1 does not vote in it");
    let mut two_in_one = done(&sealed, &Change::AddNode { node: node(8, "b", "b1") });
    let message = "n4 and n8 are both in data center b1: only one may vote";
    assert_eq!(super::refused(&two_in_one, &promote(2, at(1, 50), "b", &[4, 8])), message);
    two_in_one.nodes.get_mut(&NodeId(5)).unwrap().removed = true;
    let message = "node 5 (n5) was removed";
    assert_eq!(super::refused(&two_in_one, &promote(2, at(1, 50), "b", &[4, 5])), message);
    let to_c = done(&cluster(), &seal(1, Some("c"), false));
    let message = "shard 1 is sealed (epoch 1), since a has failed: the report says something else";
    assert_eq!(super::refused(&to_c, &promote(2, at(1, 50), "b", &[4, 5])), message);
}

#[test]
fn batches_lost_by_an_earlier_failover_are_outside_the_history_even_in_a_newer_epoch() {
    let mut next = done(&cluster(), &seal(1, None, false));
    next = done(&next, &promote(2, at(1, 90), "b", &[4, 5]));
    next = done(&next, &seal(2, None, false));
    let Change::Promote { voters, preferred_leader, report, .. } =
        promote(3, at(1, 80), "c", &[6, 7])
    else {
        unreachable!()
    };
    let report = FailoverReport { from_region: "b".to_owned(), ..report };
    next = done(&next, &Change::Promote { shard: SHARD, voters, preferred_leader, report });
    let shard = &next.shards[&SHARD];
    for (position, expected) in [
        (Position::ZERO, true),
        (at(1, 80), true),
        (at(1, 81), false),
        (at(1, 90), false),
        (at(2, 91), false),
        (at(3, 80), false),
        (at(3, 81), true),
        (at(4, 90), false),
    ] {
        assert_eq!(shard.in_history(position), expected, "{position}");
    }
}

#[test]
fn only_the_latest_reports_are_kept_and_all_bases() {
    let mut next = cluster();
    for epoch in 2..=110 {
        let region = next.shards[&SHARD].primary_region.clone();
        next = done(&next, &seal(epoch - 1, None, false));
        let report = FailoverReport { from_region: region, ..report(epoch, at(1, 5), "b") };
        next = done(
            &next,
            &Change::Promote { shard: SHARD, voters: ids(&[4, 5]), preferred_leader: None, report },
        );
    }
    let shard = &next.shards[&SHARD];
    assert_eq!(
        (shard.reports.len(), shard.reports[0].epoch, shard.bases.len()),
        (16, Epoch(95), 110)
    );
}

#[test]
fn a_switchover_is_prepared_sealed_as_planned_and_may_be_cancelled_until_then() {
    let next = done(&cluster(), &begin("b"));
    assert_eq!(*phase(&next), Phase::SwitchingOver { to: "b".to_owned() });
    let message = "shard 1 is being switched over from a to b: it cannot be switched over now";
    assert_eq!(refused(&next, &begin("c")), message);
    let message = "shard 1 is being switched over from a to b: it cannot be sealed";
    assert_eq!(refused(&next, &seal(1, Some("c"), true)), message);
    assert_eq!(*phase(&done(&next, &CANCEL)), Phase::Active);
    assert!(matches!(
        phase(&done(&next, &seal(1, Some("b"), true))),
        Phase::Sealing(Plan { planned: true, .. })
    ));
    let cluster = cluster();
    assert_eq!(refused(&cluster, &begin("a")), "shard 1 has its primary in a already");
    assert_eq!(refused(&cluster, &begin("d")), "there is no region d");
    let message = "shard 1 is active in a (epoch 1): it cannot be sealed";
    assert_eq!(refused(&cluster, &seal(1, Some("b"), true)), message);
}

#[test]
fn a_sealed_switchover_that_is_cancelled_goes_home_in_a_new_epoch() {
    let next = done(&planned("b"), &CANCEL);
    assert!(
        matches!(phase(&next), Phase::Sealing(Plan { planned: true, to: Some(to), .. }) if to == "a")
    );
    let message =
        "shard 1 is sealed for its switchover from a to b: it cannot be switched over now";
    assert_eq!(refused(&planned("b"), &begin("c")), message);
    let message = "shard 1 is sealed, and goes back to a: there is no switchover to cancel";
    assert_eq!(refused(&next, &CANCEL), message);
}

#[test]
fn it_is_too_late_to_cancel_after_the_commit_point() {
    let Change::Promote { voters, preferred_leader, report, .. } =
        promote(2, at(1, 50), "b", &[4, 5])
    else {
        unreachable!()
    };
    let report = FailoverReport { planned: true, ..report };
    let next =
        done(&planned("b"), &Change::Promote { shard: SHARD, voters, preferred_leader, report });
    let message =
        "too late: shard 1 is being opened in b (epoch 2); to go back, switch it over to a";
    assert_eq!(refused(&next, &CANCEL), message);
    let message = "too late: shard 1 is active in b (epoch 2); to go back, switch it over to a";
    assert_eq!(refused(&done(&next, &activate(2)), &CANCEL), message);
    let message = "shard 1 is active in a (epoch 1): there is no switchover to cancel";
    assert_eq!(refused(&cluster(), &CANCEL), message);
    let message =
        "shard 1 is sealed (epoch 1), since a has failed: there is no switchover to cancel";
    assert_eq!(refused(&done(&cluster(), &seal(1, None, false)), &CANCEL), message);
}

#[test]
fn after_a_failover_or_a_switchover_that_went_home_there_is_none_to_cancel() {
    let failed =
        done(&done(&cluster(), &seal(1, None, false)), &promote(2, at(1, 50), "b", &[4, 5]));
    let message = "shard 1 is being opened in b (epoch 2): there is no switchover to cancel";
    assert_eq!(refused(&failed, &CANCEL), message);
    let Change::Promote { voters, preferred_leader, report, .. } =
        promote(2, at(1, 50), "a", &[1, 2, 3])
    else {
        unreachable!()
    };
    let report = FailoverReport { planned: true, ..report };
    let home = Change::Promote { shard: SHARD, voters, preferred_leader, report };
    let message = "shard 1 is being opened in a (epoch 2): there is no switchover to cancel";
    assert_eq!(refused(&done(&done(&planned("b"), &CANCEL), &home), &CANCEL), message);
}

#[test]
fn a_planned_sealing_that_cannot_end_becomes_a_failover_and_never_the_reverse() {
    let next = done(&planned("b"), &seal(1, None, false));
    assert!(matches!(phase(&next), Phase::Sealing(Plan { planned: false, to: None, .. })));
    assert!(next.after(&seal(1, Some("b"), true)).is_err());
}

#[test]
fn an_operator_can_force_a_failover_and_redirect_one() {
    let next = done(&cluster(), &force(1, Some("c")));
    let plan = |to: &str, since_ms| Plan {
        to: Some(to.to_owned()),
        planned: false,
        since_ms,
        cause: "by hand".into(),
    };
    assert_eq!(*phase(&next), Phase::Sealing(plan("c", 9_000)));
    assert!(matches!(
        phase(&done(&planned("b"), &force(1, None))),
        Phase::Sealing(Plan { planned: false, to: None, since_ms: 9_000, .. })
    ));
    let sealed = done(&cluster(), &seal(1, None, false));
    assert_eq!(*phase(&done(&sealed, &force(1, Some("b")))), Phase::Sealing(plan("b", 6_000)));
    assert_eq!(
        refused(&cluster(), &force(2, None)),
        "shard 1 is active in a (epoch 1), not in epoch 2"
    );
    assert_eq!(refused(&cluster(), &force(1, Some("d"))), "there is no region d");
}

#[test]
fn old_voters_show_what_was_lost_until_a_majority_has() {
    let mut next = done(&cluster(), &seal(1, None, false));
    next = done(&next, &promote(2, at(1, 50), "b", &[4, 5]));
    let show = |node, transactions, at_most, last_time_ms| Change::ShowLoss {
        shard: SHARD,
        epoch: Epoch(2),
        node: NodeId(node),
        transactions,
        at_most,
        last_time_ms,
    };
    let loss = |cluster: &Cluster| cluster.shards[&SHARD].reports[0].loss.clone();
    let expected = |transactions, at_most, exact, shown_by: &[u64]| {
        let window_ms = if transactions == 2 { 200 } else { 900 };
        Loss { transactions, window_ms, exact, shown_by: ids(shown_by), at_most }
    };
    // A replica that was ahead of the base has its word, and does not count for exactness.
    next = done(&next, &show(6, 2, 2, 5_200));
    assert_eq!(loss(&next), expected(2, 2, false, &[6]));
    next = done(&next, &show(1, 7, 7, 5_900));
    assert_eq!(loss(&next), expected(7, 7, false, &[1, 6]));
    assert_eq!(refused(&next, &show(1, 7, 7, 5_900)), "that is how it is already");
    let exact = done(&next, &show(3, 0, 5, 0));
    assert_eq!(loss(&exact), expected(7, 7, true, &[1, 3, 6]));
    assert_eq!(
        refused(&exact, &show(2, 9, 9, 9_000)),
        "what epoch 2 of shard 1 lost is known exactly"
    );
    // Undecided batches bound the loss, and a later word may settle it.
    next = done(&next, &show(3, 0, 8, 9_000));
    assert_eq!(loss(&next), expected(7, 8, false, &[1, 3, 6]));
    let unsettled = done(&next, &show(2, 7, 99, 5_900));
    assert_eq!(loss(&unsettled), expected(7, 8, false, &[1, 2, 3, 6]));
    next = done(&next, &show(2, 8, 9, 5_900));
    assert_eq!(loss(&next), expected(8, 8, true, &[1, 2, 3, 6]));
    let unknown = Change::ShowLoss {
        shard: SHARD,
        epoch: Epoch(9),
        node: NodeId(1),
        transactions: 1,
        at_most: 1,
        last_time_ms: 1,
    };
    assert_eq!(refused(&next, &unknown), "shard 1 keeps no report of epoch 9");
}

#[test]
fn voters_change_only_while_active_and_within_the_primary_region() {
    let next = done(&cluster(), &Change::AddNode { node: node(8, "a", "a4") });
    let set = |voters: &[u64]| Change::SetVoters { shard: SHARD, voters: ids(voters) };
    let changed = done(&next, &set(&[2, 3, 8]));
    let shard = &changed.shards[&SHARD];
    assert_eq!((shard.voters.clone(), shard.preferred_leader), (ids(&[2, 3, 8]), Some(NodeId(2))));
    assert_eq!(
        refused(&next, &set(&[1, 2, 4])),
        "n4 is in region b, but shard 1 has its primary in a"
    );
    assert_eq!(refused(&next, &set(&[])), "shard 1 would have no voters");
    assert_eq!(refused(&next, &set(&[1, 2, 3])), "that is how it is already");
    let switching = done(&next, &begin("b"));
    let message = "shard 1 is being switched over from a to b: its voters cannot change now";
    assert_eq!(refused(&switching, &set(&[2, 3, 8])), message);
}

#[test]
fn until_the_group_has_its_new_voters_any_of_both_sets_may_decide() {
    let next = done(&cluster(), &Change::AddNode { node: node(8, "a", "a4") });
    let set = |voters: &[u64]| Change::SetVoters { shard: SHARD, voters: ids(voters) };
    let former = |cluster: &Cluster| cluster.shards[&SHARD].former_voters().to_vec();
    let once = done(&next, &set(&[2, 3, 8]));
    assert_eq!(former(&once), [ids(&[1, 2, 3])]);
    let removed = Change::RemoveNode { node: NodeId(1) };
    assert_eq!(
        refused(&once, &removed),
        "n1 still votes in shard 1: wait until its voters have changed"
    );
    let twice = done(&once, &set(&[2, 3]));
    assert_eq!(former(&twice), [ids(&[1, 2, 3]), ids(&[2, 3, 8])]);
    let back = done(&twice, &set(&[1, 2, 3]));
    assert_eq!(former(&back), [ids(&[2, 3, 8]), ids(&[2, 3])]);

    let settle =
        |epoch, version| Change::ConfirmVoters { shard: SHARD, epoch: Epoch(epoch), version };
    // A leader's confirmation from before the second change of voters.
    let message = format!(
        "shard 1 is active in a (epoch 1): no change of its voters is of version {}",
        once.version
    );
    assert_eq!(refused(&twice, &settle(1, once.version)), message);
    let settled = done(&twice, &settle(1, twice.version));
    assert_eq!((former(&settled), &settled.shards[&SHARD].voters), (vec![], &ids(&[2, 3])));
    assert!(settled.after(&Change::RemoveNode { node: NodeId(8) }).is_ok());

    let replaced = Change::ReplaceNode { old: NodeId(3), new: node(9, "a", "a3") };
    assert_eq!(former(&done(&settled, &replaced)), [ids(&[2, 3])]);
}

#[test]
fn a_loss_during_a_change_of_voters_is_bounded_by_a_majority_of_each_set() {
    let mut next = done(&cluster(), &Change::AddNode { node: node(8, "a", "a4") });
    next = done(&next, &Change::SetVoters { shard: SHARD, voters: ids(&[3, 8]) });
    next = done(&next, &seal(1, None, false));
    next = done(&next, &promote(2, at(1, 50), "b", &[4, 5]));
    let report = |cluster: &Cluster| cluster.shards[&SHARD].reports[0].clone();
    assert_eq!(
        (report(&next).old_voters, report(&next).former_voters),
        (ids(&[3, 8]), vec![ids(&[1, 2, 3])])
    );
    assert_eq!(next.shards[&SHARD].changing, None);
    for (node, transactions) in [(NodeId(3), 0), (NodeId(8), 0), (NodeId(2), 7)] {
        assert!(!report(&next).is_bounded() && !report(&next).loss.exact, "before {node}");
        let (shard, epoch, at_most, last_time_ms) = (SHARD, Epoch(2), transactions, 5_900);
        next = done(
            &next,
            &Change::ShowLoss { shard, epoch, node, transactions, at_most, last_time_ms },
        );
    }
    assert!(report(&next).is_bounded());
    assert_eq!((report(&next).loss.transactions, report(&next).loss.exact), (7, true));
    let judges: Vec<_> = (1..=8).filter(|node| report(&next).is_judged_by(NodeId(*node))).collect();
    assert_eq!(judges, [1, 2, 3, 8], "the voters that may have decided");
}
