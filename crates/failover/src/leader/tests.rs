//! Which renewals get a lease, and how changes are committed in one term.

use meridian_directory::testing::{self, DATABASE, SHARD, at};
use meridian_directory::{Phase, Plan};
use meridian_types::CommitProgress;

use super::*;

const INCARNATION: &str = "0aff";

type Leader = DirectoryLeader<&'static str>;
type Actions = Vec<LeaderAction<&'static str>>;

/// Version 5 of a named cluster that knows the folder of node 1, and of no other.
fn cluster() -> Cluster {
    let mut cluster =
        Cluster { version: 5, id: Some("0123456789abcdef".to_owned()), ..testing::cluster() };
    cluster.nodes.get_mut(&NodeId(1)).unwrap().incarnation = Some(INCARNATION.to_owned());
    cluster
}

fn leader_of(committed: Option<Cluster>) -> Leader {
    let first = Cluster { version: 0, ..testing::cluster() };
    let id = "fedcba9876543210".to_owned();
    DirectoryLeader::new(ControllerConfig::default(), secs(100), committed.map(Arc::new), first, id)
}

fn leader() -> Leader {
    leader_of(Some(cluster()))
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn renewal(node: u64) -> Renewal {
    let incarnation = INCARNATION.to_owned();
    Renewal { node: NodeId(node), incarnation, reports: Vec::new(), lost: Vec::new() }
}

/// A second later than the leader began.
fn renew(leader: &mut Leader, renewal: Renewal) -> (Renewed, Actions) {
    leader.renew(secs(101), 1, renewal)
}

fn step(leader: &mut Leader, event: LeaderEvent<&'static str>) -> Actions {
    leader.step(secs(101), 1, event)
}

fn execute(leader: &mut Leader, region: &str, caller: &'static str) -> Actions {
    let (change, actor) = (new_region(region), "a test".to_owned());
    step(leader, LeaderEvent::Execute { change, actor, caller })
}

fn new_region(name: &str) -> Change {
    Change::AddRegion { name: name.to_owned() }
}

fn leased(renewed: Renewed) -> Vec<(ShardId, Epoch)> {
    let Renewed::Granted { lease, .. } = renewed else { panic!("no lease: {renewed:?}") };
    lease.shards
}

/// The proposal, and the changes that lead there.
fn proposed(actions: &Actions) -> Option<(Arc<Cluster>, Vec<Change>)> {
    let mut proposals = actions.iter().filter_map(|action| match action {
        LeaderAction::Propose { next, made } => {
            Some((Arc::clone(next), made.iter().map(|made| made.change.clone()).collect()))
        }
        _ => None,
    });
    let first = proposals.next();
    assert!(proposals.next().is_none(), "one at a time: {actions:?}");
    first
}

fn made(actions: &Actions) -> Vec<Change> {
    proposed(actions).map_or_else(Vec::new, |(_, changes)| changes)
}

fn answered(actions: &Actions) -> Vec<(&'static str, Executed)> {
    let answer = |action: &LeaderAction<&'static str>| match action {
        LeaderAction::Answer { caller, executed } => Some((*caller, executed.clone())),
        _ => None,
    };
    actions.iter().filter_map(answer).collect()
}

#[test]
fn lease_goes_to_the_data_folder_that_the_cluster_knows_and_to_no_other() {
    let mut leader = leader();
    let (renewed, actions) = renew(&mut leader, renewal(1));
    assert_eq!((leased(renewed), actions), (vec![(SHARD, Epoch(1))], vec![]));
    // Neither a folder that was wiped, nor another node that takes this one's id.
    let wiped = Renewal { incarnation: "0afe".to_owned(), ..renewal(1) };
    let mut removed = cluster();
    removed.nodes.get_mut(&NodeId(1)).unwrap().removed = true;
    let mut after_removal = leader_of(Some(removed));
    for (of, asks, why) in [
        (&mut leader, wiped, "another data folder"),
        (&mut leader_of(Some(cluster())), renewal(99), "is not in the cluster"),
        (&mut after_removal, renewal(1), "was removed"),
    ] {
        let (renewed, actions) = renew(of, asks);
        let Renewed::Refused(reason) = renewed else { panic!("not refused: {renewed:?}") };
        assert!(reason.contains(why), "{reason}");
        assert_eq!(actions, []);
    }
    assert_eq!(leader.contacts(secs(101)).len(), 1);
    assert_eq!(after_removal.contacts(secs(101)).len(), 0, "a refused node is in no contact");
}

#[test]
fn new_node_gets_a_lease_once_its_incarnation_is_committed() {
    let mut leader = leader();
    let record = Change::RecordIncarnation { node: NodeId(2), incarnation: INCARNATION.to_owned() };
    let (renewed, actions) = renew(&mut leader, renewal(2));
    let (next, changes) = proposed(&actions).unwrap();
    assert_eq!((renewed, changes), (Renewed::NotYet, vec![record]));
    // It asks again while that is in flight.
    let (renewed, actions) = renew(&mut leader, renewal(2));
    assert_eq!((renewed, actions), (Renewed::NotYet, vec![]));
    assert!(leader.contacts(secs(101)).is_empty());
    step(&mut leader, LeaderEvent::Committed(next));
    assert_eq!(leased(renew(&mut leader, renewal(2)).0), [(SHARD, Epoch(1))]);
}

#[test]
fn cluster_without_a_name_grants_no_lease() {
    let mut leader = leader_of(Some(Cluster { id: None, ..cluster() }));
    for is_first in [true, false] {
        let (renewed, actions) = renew(&mut leader, renewal(1));
        assert_eq!(renewed, Renewed::NotYet);
        let name = Change::NameCluster { id: "fedcba9876543210".to_owned() };
        assert_eq!(made(&actions), if is_first { vec![name] } else { vec![] });
    }
    let (next, _) =
        proposed(&step(&mut leader_of(None), LeaderEvent::Begun)).expect("the first cluster");
    assert_eq!((next.version, &next.nodes), (1, &testing::cluster().nodes));
    let (renewed, actions) = renew(&mut leader_of(None), renewal(1));
    assert_eq!(renewed, Renewed::NotYet, "nothing is committed yet");
    assert_eq!(proposed(&actions).map(|(next, made)| (next.version, made)), Some((1, vec![])));
}

#[test]
fn no_lease_is_granted_on_an_epoch_that_is_being_sealed() {
    let mut cluster = cluster();
    let plan = Plan { to: None, planned: false, since_ms: 1, cause: "a test".to_owned() };
    cluster.shards.get_mut(&SHARD).unwrap().phase = Phase::Sealing(plan);
    assert_eq!(leased(renew(&mut leader_of(Some(cluster)), renewal(1)).0), []);
}

#[test]
fn the_latest_contact_with_each_node_is_kept() {
    let mut cluster = cluster();
    cluster.nodes.get_mut(&NodeId(2)).unwrap().incarnation = Some(INCARNATION.to_owned());
    let mut leader = leader_of(Some(cluster));
    for (node, transactions) in [(1, 1), (2, 2), (1, 3)] {
        let progress = CommitProgress::new(transactions, 0);
        let reports = vec![ShardReport::new(SHARD, Epoch(1), at(1, 40), progress)];
        leased(renew(&mut leader, Renewal { reports, ..renewal(node) }).0);
    }
    let reported = leader.contacts(secs(102)).into_iter().map(|(node, contact)| {
        (node.0, contact.age_ms, contact.reports[&SHARD].progress.transactions)
    });
    assert_eq!(reported.collect::<Vec<_>>(), [(1, 1000, 3), (2, 1000, 2)]);
}

#[test]
fn lost_tail_is_recorded_once_and_not_of_a_node_that_has_shown_it() {
    let mut cluster = cluster();
    let shard = cluster.shards.get_mut(&SHARD).unwrap();
    let mut report = testing::report(2, at(1, 100), "b");
    (report.old_voters, shard.epoch) = ([1, 2, 3].map(NodeId).into(), Epoch(2));
    shard.reports = vec![report];
    let tail = LostTail {
        shard: SHARD,
        epoch: Epoch(2),
        transactions: 3,
        at_most: 4,
        last_time_ms: 5_500,
    };
    let mut leader = leader_of(Some(cluster));
    let shows = Renewal { lost: vec![tail], ..renewal(1) };
    let (_, actions) = renew(&mut leader, shows.clone());
    let (next, changes) = proposed(&actions).unwrap();
    assert!(
        matches!(changes[..], [Change::ShowLoss { node: NodeId(1), at_most: 4, .. }]),
        "{changes:?}"
    );
    // Twice while it is in flight, and again when it is committed.
    (0..2).for_each(|_| assert_eq!(renew(&mut leader, shows.clone()).1, []));
    let again = made(&step(&mut leader, LeaderEvent::Committed(next)));
    assert_eq!(again, [], "it is made once");
    let of_other = LostTail { epoch: Epoch(3), ..tail };
    let mut later = leader_of(leader.committed().map(|cluster| Cluster::clone(cluster)));
    for lost in [tail, of_other] {
        assert_eq!(renew(&mut later, Renewal { lost: vec![lost], ..renewal(1) }).1, []);
    }
}

#[test]
fn a_decision_takes_the_place_of_the_one_before_and_goes_before_what_others_want() {
    let (mut changes, mut actions) = (Changes::default(), Actions::new());
    changes.want(new_region("r"));
    changes.want(new_region("r"));
    changes.decided(vec![new_region("old")], 5);
    changes.decided(vec![new_region("new")], 5);
    changes.propose(Some(&cluster()), &cluster(), &mut actions);
    assert_eq!(made(&actions), [new_region("new"), new_region("r")]);
}

#[test]
fn what_was_decided_upon_another_version_is_not_made() {
    for (decided_at, is_made) in [(4, false), (5, true), (6, false)] {
        let (mut changes, mut actions) = (Changes::default(), Actions::new());
        changes.want(new_region("r"));
        changes.decided(vec![new_region("decided")], decided_at);
        changes.propose(Some(&cluster()), &cluster(), &mut actions);
        let wanted = if is_made { vec!["decided", "r"] } else { vec!["r"] };
        let wanted: Vec<_> = wanted.into_iter().map(new_region).collect();
        assert_eq!(made(&actions), wanted, "decided upon version {decided_at}");
        // One at a time: the next is made from what this one leaves.
        actions.clear();
        changes.want(new_region("later"));
        changes.propose(Some(&cluster()), &cluster(), &mut actions);
        assert_eq!(actions, []);
    }
}

#[test]
fn decision_made_while_a_change_is_in_flight_is_dropped_with_its_version() {
    let mut leader = leader();
    let (next, _) = proposed(&execute(&mut leader, "r", "first")).unwrap();
    leader.changes.decided(vec![new_region("stale")], 5);
    let actions = step(&mut leader, LeaderEvent::Committed(next));
    assert_eq!(made(&actions), [], "it was decided upon version 5, and there is version 6");
}

#[test]
fn change_is_answered_when_it_is_committed_and_the_next_is_made_of_it() {
    let mut leader = leader();
    let (next, changes) = proposed(&execute(&mut leader, "r", "first")).unwrap();
    assert_eq!((next.version, changes), (6, vec![new_region("r")]));
    assert_eq!(execute(&mut leader, "s", "second"), [], "one is in flight");
    assert_eq!(leader.committed().unwrap().version, 5);
    let actions = step(&mut leader, LeaderEvent::Committed(Arc::clone(&next)));
    assert_eq!(answered(&actions), [("first", Ok(Arc::clone(&next)))]);
    let (later, _) = proposed(&actions).unwrap();
    let regions: Vec<_> = later.regions.iter().skip(3).map(String::as_str).collect();
    assert_eq!((later.version, regions), (7, vec!["r", "s"]));
    assert_eq!(leader.committed(), Some(&next));
}

#[test]
fn change_that_is_refused_is_answered_with_the_reason_and_holds_up_none() {
    let mut leader = leader();
    execute(&mut leader, "r", "first");
    execute(&mut leader, "a", "taken");
    execute(&mut leader, "s", "second");
    let actions = step(&mut leader, LeaderEvent::NotCommitted);
    assert_eq!(made(&actions), [new_region("s")]);
    let [(first, not_made), (taken, refused)] = &answered(&actions)[..] else {
        panic!("{actions:?}")
    };
    assert_eq!((*first, not_made), ("first", &Err(ExecuteFailure::NotLeader)));
    assert_eq!(*taken, "taken");
    assert!(matches!(refused, Err(ExecuteFailure::Refused(_))), "{refused:?}");
    assert!(actions.iter().any(|action| matches!(action, LeaderAction::TooLate { .. })));
}

#[test]
fn leader_that_leaves_says_what_is_known_of_the_change_in_flight_and_declines_the_others() {
    for known in [ExecuteFailure::Unknown, ExecuteFailure::NotLeader] {
        let mut leader = leader();
        execute(&mut leader, "r", "first");
        execute(&mut leader, "s", "second");
        let actions = leader.leave(known.clone());
        let told = [("first", Err(known)), ("second", Err(ExecuteFailure::NotLeader))];
        assert_eq!(answered(&actions), told);
        assert_eq!(leader.leave(ExecuteFailure::Unknown), [], "each is answered once");
    }
}

#[test]
fn commit_that_is_told_when_none_is_in_flight_answers_and_changes_nothing() {
    let mut leader = leader();
    let stray = Arc::new(Cluster { version: 9, ..cluster() });
    assert_eq!(step(&mut leader, LeaderEvent::Committed(stray)), []);
    assert_eq!(step(&mut leader, LeaderEvent::NotCommitted), []);
    assert_eq!(leader.committed().unwrap().version, 5);
}

#[test]
fn silence_of_a_region_is_decided_upon_and_proposed_in_one_step() {
    let mut cluster = cluster();
    cluster.nodes.values_mut().for_each(|node| node.incarnation = Some(INCARNATION.to_owned()));
    let mut leader = leader_of(Some(cluster));
    let (mut now, mut sealed) = (secs(100), None);
    while sealed.is_none() && now < secs(120) {
        now += Duration::from_millis(50);
        let mut actions = leader.step(now, 1, LeaderEvent::Tick);
        for node in 4..=7 {
            let report = ShardReport::new(SHARD, Epoch(1), at(1, 100), CommitProgress::NONE);
            let renewal = Renewal { reports: vec![report], ..renewal(node) };
            actions.extend(leader.renew(now, 1, renewal).1);
        }
        sealed = proposed(&actions);
    }
    let (next, changes) = sealed.expect("the region was silent for twenty seconds");
    assert!(matches!(changes[..], [Change::Seal { planned: false, .. }]), "{changes:?}");
    let actions = leader.step(now, 1, LeaderEvent::Committed(next));
    let asked = actions.iter().filter_map(|action| match action {
        LeaderAction::Seal { node, shard, epoch, planned: false } => Some((node.0, *shard, *epoch)),
        _ => None,
    });
    let reachable = (4..=7).map(|node| (node, SHARD, Epoch(1)));
    let asked: Vec<_> = asked.collect();
    assert!(reachable.clone().all(|node| asked.contains(&node)), "{asked:?}");
}

#[test]
fn a_deletion_that_no_node_holds_up_is_ended() {
    let mut cluster = cluster().after(&Change::DeleteDatabase { id: DATABASE }).unwrap();
    cluster.nodes.values_mut().for_each(|node| node.incarnation = Some(INCARNATION.to_owned()));
    let mut leader = leader_of(Some(cluster));
    assert_eq!(step(&mut leader, LeaderEvent::DeletionsDue), [], "no node has reported yet");
    let report = ShardReport::new(SHARD, Epoch(1), at(1, 0), CommitProgress::NONE);
    let dropped = ShardReport { dropped: vec![DATABASE], ..report };
    for node in 1..=7 {
        leased(renew(&mut leader, Renewal { reports: vec![dropped.clone()], ..renewal(node) }).0);
    }
    let actions = step(&mut leader, LeaderEvent::DeletionsDue);
    assert_eq!(made(&actions), [Change::EndDeletion { id: DATABASE }]);
}

#[test]
fn directory_gets_the_voters_that_found_it_once_all_of_them_have_joined() {
    let mut cluster = cluster();
    let founders = [NodeId(1), NodeId(4), NodeId(6)];
    cluster.directory_voters = [NodeId(1)].into();
    cluster.trust.founders = founders.into();
    let wants_voters = |cluster: &Cluster| {
        let (_, actions) = renew(&mut leader_of(Some(cluster.clone())), renewal(1));
        actions.into_iter().find_map(|action| match action {
            LeaderAction::Propose { next, .. } => Some(next.directory_voters.clone()),
            _ => None,
        })
    };
    for founder in founders {
        assert_eq!(wants_voters(&cluster), None);
        cluster.nodes.get_mut(&founder).unwrap().incarnation = Some(INCARNATION.to_owned());
    }
    assert_eq!(wants_voters(&cluster), Some(founders.into()));
    cluster.trust.founders.clear();
    assert_eq!(wants_voters(&cluster), None);
}
