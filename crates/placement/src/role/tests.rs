use meridian_directory::{Plan, VoterChange};

use super::*;

const NODE: NodeId = NodeId(1);

fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

/// In its second epoch, which began behind 5; nodes 1 to 3 vote.
fn shard(phase: Phase) -> Shard {
    Shard {
        epoch: Epoch(2),
        phase,
        primary_region: "a".to_owned(),
        voters: BTreeSet::from([1, 2, 3].map(NodeId)),
        preferred_leader: Some(NODE),
        changing: None,
        bases: vec![(Epoch(1), Position::ZERO), (Epoch(2), at(1, 5))],
        reports: Vec::new(),
    }
}

/// The same, and this node does not vote.
fn elsewhere(phase: Phase) -> Shard {
    Shard {
        voters: BTreeSet::from([4, 5].map(NodeId)),
        preferred_leader: Some(NodeId(4)),
        ..shard(phase)
    }
}

fn sealing(planned: bool) -> Phase {
    Phase::Sealing(Plan { to: None, planned, since_ms: 1, cause: "a test".to_owned() })
}

fn local(position: Position) -> Local {
    Local { position, group: None, seal: None }
}

/// The first actions, and those once the old groups are examined; each named by its variant.
fn story(shard: &Shard, role: Role, local: Local) -> (Vec<String>, Vec<String>) {
    let mut change = RoleChange::new(NODE);
    let first = change.step(RoleEvent::View { shard, role, group: local.group });
    (names(&first), names(&change.step(RoleEvent::Examined(local))))
}

fn names(actions: &[RoleAction]) -> Vec<String> {
    let name = |action: &RoleAction| {
        let text = format!("{action:?}");
        text.split([' ', '(', '{']).next().unwrap().to_owned()
    };
    actions.iter().map(name).collect()
}

fn the_vote(actions: &[RoleAction]) -> &Vote {
    let mut votes = actions.iter().filter_map(|action| match action {
        RoleAction::Vote(vote) => Some(vote),
        _ => None,
    });
    votes.next().unwrap()
}

#[test]
fn node_that_starts_elsewhere_examines_old_groups_and_follows() {
    let (first, then) = story(&elsewhere(Phase::Active), Role::None, local(at(1, 5)));
    assert_eq!(first, ["ExamineOldGroups"]);
    assert_eq!(then, ["JoinReplicaLog", "Follow", "TakeUp"]);
}

#[test]
fn node_beyond_the_base_keeps_what_diverged_before_it_follows() {
    let (_, then) = story(&elsewhere(Phase::Active), Role::None, local(at(1, 6)));
    assert_eq!(then, ["KeepDivergence", "JoinReplicaLog", "Follow", "TakeUp"]);
}

#[test]
fn voter_beyond_the_base_keeps_what_diverged_and_is_seeded_afresh() {
    let (_, then) = story(&shard(Phase::Forming), Role::None, local(at(1, 6)));
    let expected = ["KeepDivergence", "EmptyReplicaLog", "PrepareToBeSeeded", "Vote", "TakeUp"];
    assert_eq!(then, expected);
}

#[test]
fn founder_reaches_the_base_founds_the_group_and_stands_first() {
    let shard = shard(Phase::Forming);
    let mut change = RoleChange::new(NODE);
    let view = || RoleEvent::View { shard: &shard, role: Role::None, group: None };
    change.step(view());
    let then = change.step(RoleEvent::Examined(local(at(1, 3))));
    assert_eq!(names(&then), ["JoinReplicaLog", "ReachBase", "Found"]);
    assert!(!change.is_at_rest());
    assert_eq!(change.step(view()), [], "one change of role at a time");
    let end = change.step(RoleEvent::Formed { founder: true });
    assert_eq!(names(&end), ["Vote", "TakeUp"]);
    let vote = the_vote(&end);
    assert!(vote.founder && vote.answers && vote.stands_first);
    assert!(change.is_at_rest());
}

#[test]
fn founder_that_did_not_reach_the_base_joins_to_be_seeded() {
    let shard = shard(Phase::Forming);
    let mut change = RoleChange::new(NODE);
    change.step(RoleEvent::View { shard: &shard, role: Role::None, group: None });
    change.step(RoleEvent::Examined(local(at(1, 3))));
    let end = change.step(RoleEvent::Formed { founder: false });
    assert_eq!(names(&end), ["PrepareToBeSeeded", "Vote", "TakeUp"]);
    assert!(!the_vote(&end).founder && !the_vote(&end).stands_first);
}

#[test]
fn no_node_founds_a_group_that_is_not_being_formed_or_that_its_state_is_of() {
    let seeded = ["PrepareToBeSeeded", "Vote", "TakeUp"];
    let (_, then) = story(&shard(Phase::Active), Role::None, local(at(1, 5)));
    assert_eq!(then, seeded);
    let member = Local { group: Some(Epoch(2)), ..local(at(2, 7)) };
    let (_, then) = story(&shard(Phase::Forming), Role::None, member);
    assert_eq!(then, seeded);
}

#[test]
fn voter_and_replica_stay_while_the_epoch_stays() {
    let voter = Role::Voter { epoch: Epoch(2), is_member: true };
    assert!(story(&shard(sealing(false)), voter, local(at(2, 7))).0.is_empty());
    let replica = Role::Replica { epoch: Epoch(2) };
    assert!(story(&elsewhere(Phase::Active), replica, local(at(2, 7))).0.is_empty());
}

#[test]
fn replica_follows_on_into_the_next_epoch() {
    let replica = Role::Replica { epoch: Epoch(1) };
    let (first, then) = story(&elsewhere(Phase::Active), replica, local(at(1, 5)));
    assert_eq!(first, ["FollowOn"]);
    assert!(then.is_empty());
}

#[test]
fn replica_that_is_to_vote_stops_first() {
    let replica = Role::Replica { epoch: Epoch(1) };
    let (first, _) = story(&shard(Phase::Forming), replica, local(at(1, 5)));
    assert_eq!(first, ["StopReplica", "ExamineOldGroups"]);
}

#[test]
fn voter_of_an_earlier_epoch_leaves_a_group_that_does_not_go_on() {
    let voter = Role::Voter { epoch: Epoch(1), is_member: true };
    let mut change = RoleChange::new(NODE);
    let shard = shard(Phase::Forming);
    let group = Some(Epoch(1));
    let first = change.step(RoleEvent::View { shard: &shard, role: voter, group });
    assert_eq!(first[0], RoleAction::LeaveGroup { goes_on: false });
    let then = change.step(RoleEvent::Examined(Local { group, ..local(at(1, 5)) }));
    assert_eq!(names(&then), ["JoinReplicaLog", "ReachBase", "Found"]);
}

#[test]
fn voter_that_is_taken_out_leaves_when_the_group_goes_on_without_it() {
    let voter = |is_member| Role::Voter { epoch: Epoch(2), is_member };
    let leaves = |shard: &Shard, is_member| {
        let (first, then) = story(shard, voter(is_member), local(at(2, 7)));
        assert!(first.is_empty() || then.last().unwrap() == "TakeUp");
        !first.is_empty()
    };
    let mut changing = elsewhere(Phase::Active);
    changing.changing =
        Some(VoterChange { former: vec![BTreeSet::from([1, 2, 3].map(NodeId))], version: 2 });
    assert!(!leaves(&changing, true), "it may be needed yet");
    assert!(leaves(&changing, false), "its own log says that it votes no more");
    assert!(!leaves(&elsewhere(sealing(true)), true), "it is asked at the end of the epoch");
    assert!(leaves(&elsewhere(Phase::Active), true), "the change is through");
}

#[test]
fn member_that_was_taken_out_while_it_was_down_goes_through_the_group_once_more() {
    let member = Local { group: Some(Epoch(2)), ..local(at(2, 7)) };
    let (first, then) = story(&elsewhere(Phase::Active), Role::None, member);
    assert_eq!(first, ["ExamineOldGroups"]);
    assert_eq!(then, ["PrepareToBeSeeded", "Vote", "TakeUp"]);
}

#[test]
fn role_is_taken_up_sealed_where_the_node_promised_it_or_will_be_asked_to() {
    let seal = |planned| Some(Seal { epoch: Epoch(2), planned });
    for (phase, seal, expected) in [
        (Phase::Active, None, None),
        (Phase::Active, seal(true), Some(true)),
        (Phase::Active, seal(false), Some(false)),
        (sealing(true), None, Some(true)),
        (sealing(false), None, Some(false)),
        // The promised seal counts.
        (sealing(true), seal(false), Some(false)),
    ] {
        let found = Local { seal, ..local(at(1, 5)) };
        let mut change = RoleChange::new(NODE);
        let shard = shard(phase.clone());
        change.step(RoleEvent::View { shard: &shard, role: Role::None, group: None });
        let actions = change.step(RoleEvent::Examined(found));
        let sealed = expected
            .map(|planned| [RoleAction::Fence(Epoch(2)), RoleAction::SealVoter { planned }]);
        let (end, vote) = (sealed.into_iter().flatten().chain([RoleAction::TakeUp]), 2);
        assert_eq!(actions[vote..], end.collect::<Vec<_>>(), "{phase:?}, {seal:?}");
        assert_eq!(the_vote(&actions).answers, seal.is_none_or(|seal| seal.planned));

        let (_, replica) = story(&elsewhere(phase.clone()), Role::None, found);
        let fenced = expected.is_some();
        assert_eq!(replica.contains(&"Fence".to_owned()), fenced, "{phase:?}, {seal:?}");
        // For a switchover a replica goes on taking what the leader finishes.
        let closed = expected == Some(false);
        assert_eq!(replica.contains(&"SealReplica".to_owned()), closed, "{phase:?}, {seal:?}");
    }
}
