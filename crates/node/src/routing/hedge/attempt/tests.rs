//! Scenarios: what happens, and what is to be done then. No node is asked and no time passes.

use super::*;

const PATIENCE: Duration = Duration::from_millis(100);

/// Every node is waited for equally long; these say nothing at all.
#[derive(Default)]
struct Nodes {
    silent: Vec<NodeId>,
}

impl Patience for Nodes {
    fn patience(&self, _: NodeId) -> Duration {
        PATIENCE
    }

    fn is_silent(&self, node: NodeId, _: Duration) -> bool {
        self.silent.contains(&node)
    }
}

/// An attempt, and the time that has passed in it.
struct Scenario {
    attempt: Attempt,
    nodes: Nodes,
    now: Duration,
}

impl Scenario {
    fn of_nodes(nodes: &[u64]) -> Self {
        let bounds = Bounds { at_a_time: 2, refusal_is_free: false };
        let attempt = Attempt::new(nodes.iter().copied().map(NodeId).collect(), None, bounds);
        Self { attempt, nodes: Nodes::default(), now: Duration::from_secs(1) }
    }

    fn then(&mut self, event: Event) -> Step {
        self.attempt.step(self.now, event, &self.nodes)
    }

    /// Time passes until the machine is to be woken.
    fn later(&mut self) -> Step {
        self.now = self.attempt.wakes_at(&self.nodes).expect("it waits for nothing but events");
        self.then(Event::Woken)
    }

    fn fails(&mut self, node: u64, failed: Failed) -> Step {
        self.then(Event::Failed { node: NodeId(node), failed })
    }

    fn answers(&mut self, node: u64, binds: bool) -> Step {
        self.then(Event::Answered { node: NodeId(node), binds })
    }
}

fn ask(node: u64, overlaps: bool, late: Option<u64>) -> Step {
    Step::Ask(Try { node: NodeId(node), overlaps, late: late.map(NodeId) })
}

fn refused() -> Failed {
    Failed::NotDone("the disk is full".to_owned())
}

fn broke() -> Failed {
    Failed::Unknown("the connection broke".to_owned())
}

#[test]
fn late_node_is_hedged_once_paid_for_and_named_as_late_by_the_answer() {
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    assert_eq!(scenario.then(Event::Begun), ask(1, false, None));
    let asked = scenario.now;
    assert_eq!(scenario.later(), Step::Pay);
    assert_eq!(scenario.now, asked + PATIENCE);
    assert_eq!(scenario.then(Event::Paid(true)), ask(2, true, Some(1)));
    assert_eq!(scenario.answers(2, true), Step::Accept { late: vec![NodeId(1)] });
}

#[test]
fn hedge_that_is_not_paid_for_is_asked_for_again_after_as_long() {
    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.then(Event::Begun);
    assert_eq!(scenario.later(), Step::Pay);
    assert_eq!(scenario.then(Event::Paid(false)), Step::Wait);
    let refused_at = scenario.now;
    assert_eq!(scenario.later(), Step::Pay);
    assert_eq!(scenario.now, refused_at + PATIENCE);
}

#[test]
fn no_third_node_is_asked_while_two_are_at_work_and_one_is_once_they_are_silent() {
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    scenario.then(Event::Begun);
    scenario.later();
    assert_eq!(scenario.then(Event::Paid(true)), ask(2, true, Some(1)));
    assert_eq!(scenario.later(), Step::Wait);
    let looked = scenario.now;
    scenario.nodes.silent = vec![NodeId(1)];
    assert_eq!(scenario.later(), Step::Pay);
    assert_eq!(scenario.now, looked + LOOK_AGAIN);
    assert_eq!(scenario.then(Event::Paid(true)), ask(3, true, Some(1)));
}

#[test]
fn named_leader_is_asked_at_once_and_for_nothing_and_only_once() {
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    scenario.then(Event::Begun);
    assert_eq!(scenario.fails(1, Failed::NotLeader(Some(NodeId(3)))), ask(3, false, None));
    assert_eq!(scenario.fails(3, Failed::NotLeader(Some(NodeId(1)))), ask(1, false, None));
    // Both were asked as the leader: the next is one of the others, and costs.
    assert_eq!(scenario.fails(1, Failed::NotLeader(Some(NodeId(3)))), Step::Pay);
    assert_eq!(scenario.then(Event::Paid(true)), ask(2, false, None));
}

#[test]
fn refusal_at_once_is_free_once_in_an_attempt_where_bounds_say_so() {
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    scenario.attempt.bounds.refusal_is_free = true;
    scenario.then(Event::Begun);
    assert_eq!(scenario.fails(1, refused()), ask(2, false, None));
    assert_eq!(scenario.fails(2, refused()), Step::Pay);
    let nothing = Step::Nothing {
        reason: "the disk is full".to_owned(),
        unknown: None,
        lost: None,
        busy: false,
    };
    assert_eq!(scenario.then(Event::Paid(false)), nothing);
}

#[test]
fn leader_that_says_that_the_database_has_its_share_ends_the_attempt_and_no_other_is_asked() {
    let busy = || Failed::Busy("its share".to_owned());
    let nothing =
        Step::Nothing { reason: "its share".to_owned(), unknown: None, lost: None, busy: true };
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    scenario.then(Event::Begun);
    assert_eq!(scenario.fails(1, busy()), nothing);
    // A node that was asked beside it, and only waits for a leader, is given up once it is late.
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    scenario.then(Event::Begun);
    scenario.later();
    assert_eq!(scenario.then(Event::Paid(true)), ask(2, true, Some(1)));
    assert_eq!(scenario.fails(1, busy()), Step::Wait);
    assert_eq!(scenario.then(Event::Found(Some(NodeId(1)))), Step::Wait);
    assert_eq!(scenario.later(), Step::GiveUp(NodeId(2)));
    let unreachable = Failed::Unreachable("no connection".to_owned());
    let step = scenario.then(Event::GivenUp { node: NodeId(2), failed: unreachable });
    assert!(matches!(step, Step::Nothing { unknown: None, busy: true, .. }), "{step:?}");
}

#[test]
fn late_refusal_is_not_free() {
    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.attempt.bounds.refusal_is_free = true;
    scenario.then(Event::Begun);
    scenario.now += PATIENCE;
    assert_eq!(scenario.fails(1, refused()), Step::Pay);
}

#[test]
fn unknown_try_marks_the_next_as_overlapping_and_the_outcome_as_unknown() {
    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.then(Event::Begun);
    assert_eq!(scenario.fails(1, broke()), Step::Pay);
    assert_eq!(scenario.then(Event::Paid(true)), ask(2, true, Some(1)));
    let nothing = Step::Nothing {
        reason: "the disk is full".to_owned(),
        unknown: Some("the connection broke".to_owned()),
        lost: Some(NodeId(1)),
        busy: false,
    };
    assert_eq!(scenario.fails(2, refused()), nothing);
}

#[test]
fn answer_that_does_not_bind_counts_only_while_no_other_node_was_asked() {
    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.then(Event::Begun);
    assert_eq!(scenario.answers(1, false), Step::Accept { late: vec![] });

    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.then(Event::Begun);
    scenario.later();
    scenario.then(Event::Paid(true));
    assert_eq!(scenario.answers(1, false), Step::Wait);
    assert_eq!(scenario.answers(2, false), Step::Accept { late: vec![] });
}

#[test]
fn late_node_is_given_up_once_all_others_know_of_no_leader() {
    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.then(Event::Begun);
    scenario.later();
    scenario.then(Event::Paid(true));
    assert_eq!(scenario.attempt.wakes_at(&scenario.nodes), None, "another may yet know it");
    assert_eq!(scenario.fails(2, Failed::NotLeader(None)), Step::Wait);
    assert_eq!(scenario.later(), Step::GiveUp(NodeId(1)));
    let nothing = Step::Nothing {
        reason: "it has no leader at present".to_owned(),
        unknown: Some("the connection broke".to_owned()),
        lost: Some(NodeId(2)),
        busy: false,
    };
    assert_eq!(scenario.then(Event::GivenUp { node: NodeId(1), failed: broke() }), nothing);
}

#[test]
fn late_node_that_another_names_as_the_leader_is_waited_for() {
    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.then(Event::Begun);
    scenario.later();
    scenario.then(Event::Paid(true));
    assert_eq!(scenario.fails(2, Failed::NotLeader(Some(NodeId(1)))), Step::Wait);
    assert_eq!(scenario.attempt.wakes_at(&scenario.nodes), None);
    assert_eq!(scenario.answers(1, true), Step::Accept { late: vec![] });
}

#[test]
fn leader_that_another_operation_finds_is_asked_unless_it_is_asked_already() {
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    scenario.then(Event::Begun);
    assert_eq!(scenario.then(Event::Found(Some(NodeId(1)))), Step::Wait);
    assert_eq!(scenario.then(Event::Found(None)), Step::Wait);
    assert_eq!(scenario.then(Event::Found(Some(NodeId(3)))), ask(3, true, Some(1)));
    assert_eq!(scenario.fails(3, Failed::NotLeader(None)), Step::Wait);
    assert_eq!(
        scenario.then(Event::Found(Some(NodeId(3)))),
        Step::Wait,
        "it was asked as the leader"
    );
}

#[test]
fn moved_shard_gives_up_late_nodes_and_asks_no_other() {
    let mut scenario = Scenario::of_nodes(&[1, 2, 3]);
    scenario.then(Event::Begun);
    assert_eq!(scenario.then(Event::Moved), Step::Wait);
    assert_eq!(scenario.later(), Step::GiveUp(NodeId(1)));
    let unreachable = Failed::Unreachable("no connection".to_owned());
    let nothing = Step::Nothing {
        reason: "it has no leader at present".to_owned(),
        unknown: None,
        lost: Some(NodeId(1)),
        busy: false,
    };
    assert_eq!(scenario.then(Event::GivenUp { node: NodeId(1), failed: unreachable }), nothing);
}

#[test]
fn leader_named_after_the_shard_moved_is_not_asked() {
    let mut scenario = Scenario::of_nodes(&[1, 2]);
    scenario.then(Event::Begun);
    scenario.then(Event::Moved);
    let step = scenario.fails(1, Failed::NotLeader(Some(NodeId(3))));
    assert!(matches!(step, Step::Nothing { unknown: None, .. }), "{step:?}");
}

#[test]
fn attempt_without_nodes_ends_at_once() {
    let step = Scenario::of_nodes(&[]).then(Event::Begun);
    assert!(matches!(step, Step::Nothing { unknown: None, lost: None, .. }), "{step:?}");
}
