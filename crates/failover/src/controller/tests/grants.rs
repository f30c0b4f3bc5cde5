//! Leases as the controller grants and counts them.

use super::*;

fn controller() -> Controller {
    Controller::new(ControllerConfig::default(), Duration::from_secs(100))
}

/// The report of a leader.
fn leads() -> ShardReport {
    let progress = CommitProgress::new(200, 1);
    ShardReport { leads: true, ..ShardReport::new(SHARD, Epoch(1), at(1, 100), progress) }
}

#[test]
fn voters_are_granted_the_epoch_in_every_phase_but_sealing() {
    let mut cluster = cluster();
    let mut controller = controller();
    let mut granted = |cluster: &Cluster, node| {
        controller.renew(Duration::from_secs(101), cluster, NodeId(node)).shards
    };
    let phases = [Phase::Forming, Phase::Active, Phase::SwitchingOver { to: "b".to_owned() }];
    for phase in phases {
        cluster.shards.get_mut(&SHARD).unwrap().phase = phase;
        assert_eq!(granted(&cluster, 2), [(SHARD, Epoch(1))]);
        assert_eq!(granted(&cluster, 4), []);
    }
    cluster.nodes.get_mut(&NodeId(2)).unwrap().removed = true;
    assert_eq!(granted(&cluster, 2), []);
    let plan = Plan { to: None, planned: true, since_ms: 1, cause: String::new() };
    cluster.shards.get_mut(&SHARD).unwrap().phase = Phase::Sealing(plan);
    assert_eq!(granted(&cluster, 1), []);
}

#[test]
fn a_lease_is_out_for_its_ttl_and_the_drift_whatever_is_granted_after_it() {
    let mut grants = Grants::new(MS * 3150, Duration::ZERO);
    let holders = |grants: &Grants, ms: u32| -> Vec<NodeId> {
        grants.may_hold(MS * ms, SHARD, Epoch(1), (1..=3).map(NodeId)).collect()
    };
    assert_eq!(
        holders(&grants, 3149),
        [1, 2, 3].map(NodeId),
        "a predecessor's grants are not known"
    );
    assert!(holders(&grants, 3150).is_empty());
    grants.grant(MS * 5000, NodeId(2), &[(SHARD, Epoch(1))]);
    // A later lease without the shard does not take back the earlier one.
    grants.grant(MS * 6000, NodeId(2), &[]);
    assert_eq!(holders(&grants, 8149), [NodeId(2)]);
    grants.forget(MS * 8149);
    assert_eq!(holders(&grants, 8149), [NodeId(2)]);
    assert!(holders(&grants, 8150).is_empty());
    grants.forget(MS * 8150);
    assert_eq!(
        grants.granted_at(NodeId(2), SHARD, Epoch(1)),
        None,
        "a lease that is over takes no memory"
    );
}

#[test]
fn a_lease_is_over_for_the_controller_when_it_is_on_a_clock_that_is_a_tenth_slow() {
    let (mut controller, granted_at) = (controller(), Duration::from_secs(110));
    let lease = controller.renew(granted_at, &cluster(), NodeId(2));
    let lasts = lease.ttl * 10 / 9;
    let may_hold = |ms| {
        controller
            .grants
            .may_hold(granted_at + ms, SHARD, Epoch(1), (1..=3).map(NodeId))
            .collect::<Vec<_>>()
    };
    assert_eq!(may_hold(lasts), [NodeId(2)], "the node may still hold it");
    let config = ControllerConfig::default();
    assert!(may_hold(config.failover_after).is_empty(), "a failover waits for the margin");
}

#[test]
fn a_leader_without_a_lease_is_no_leader() {
    let mut controller = controller();
    let cluster = cluster();
    let report = leads();
    let follower = ShardReport { leads: false, ..report.clone() };
    for step in 0..400 {
        let now = Duration::from_secs(100) + MS * 100 * step;
        for id in (1..=7).map(NodeId) {
            let report = if id == NodeId(1) { report.clone() } else { follower.clone() };
            let event = Event::Reported { node: id, reports: vec![report] };
            let actions = controller.step(now, &cluster, 0, event);
            if actions.iter().any(
                |action| matches!(action, Action::Commit { changes } if matches!(changes[..], [Change::Seal { .. }])),
            ) {
                // Its region answers.
                assert!(step >= 300);
                return;
            }
        }
    }
    panic!("it was taken for healthy");
}

#[test]
fn a_removed_voter_keeps_its_lease_until_that_runs_out() {
    let mut controller = controller();
    let mut cluster = cluster();
    let later = Duration::from_secs(200);
    controller.step(later, &cluster, 0, Event::Tick);
    controller.renew(later, &cluster, NodeId(1));
    cluster =
        cluster.after(&Change::ReplaceNode { old: NodeId(1), new: node(8, "a", "a1") }).unwrap();
    let cause = "by hand".to_owned();
    let force =
        Change::ForceFailover { shard: SHARD, epoch: Epoch(1), to: None, since_ms: 1, cause };
    cluster = cluster.after(&force).unwrap();
    let promoted_at = (0..100).map(|step| later + MS * 100 * step).find(|&now| {
        let answer = |node: NodeId| SealAnswer {
            shard: SHARD,
            epoch: Epoch(1),
            planned: false,
            position: at(1, 5),
            transactions: 5,
            time_ms: 5,
            term: (node.0 <= 3).then_some(1),
            drained_leader: false,
        };
        let mut actions = Vec::new();
        for node in (2..=8).map(NodeId) {
            actions.extend(controller.step(
                now,
                &cluster,
                0,
                Event::Reported { node, reports: vec![] },
            ));
            actions.extend(controller.step(
                now,
                &cluster,
                0,
                Event::Sealed { node, answer: answer(node) },
            ));
        }
        actions.iter().any(|action| matches!(action, Action::Commit { .. }))
    });
    assert_eq!(promoted_at, Some(later + MS * 3400));
}

#[test]
fn what_goes_with_leases_is_of_the_present_epoch_and_nothing_is_said_of_what_is_not_known() {
    let (mut cluster, mut controller) = (cluster(), controller());
    let now = Duration::from_secs(101);
    controller.step(now, &cluster, 1, Event::Tick);
    assert_eq!(controller.progress_hints(&cluster), []);
    controller.step(now, &cluster, 1, Event::Reported { node: NodeId(1), reports: vec![leads()] });
    let known =
        ProgressHint { shard: SHARD, epoch: Epoch(1), progress: CommitProgress::new(200, 1) };
    assert_eq!(controller.progress_hints(&cluster), [known]);
    cluster.shards.get_mut(&SHARD).unwrap().epoch = Epoch(2);
    assert_eq!(controller.progress_hints(&cluster), []);
}

#[test]
fn a_controller_that_has_not_looked_for_a_while_says_so() {
    let (cluster, mut controller) = (cluster(), controller());
    let (now, late) = (Duration::from_secs(101), ControllerConfig::default().reachable_within + MS);
    controller.step(now, &cluster, 1, Event::Tick);
    let said = |later| {
        controller.progress(now + later, &cluster).into_iter().map(|progress| progress.text)
    };
    assert!(said(Duration::ZERO).all(|text| text != "not judged yet"));
    assert_eq!(said(late).collect::<Vec<_>>(), ["not judged yet"]);
}
