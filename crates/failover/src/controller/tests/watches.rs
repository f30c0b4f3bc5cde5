//! The memory of one shard's sealing, answer by answer.

use super::*;
use crate::controller::watch::{Sealing, Watch};
use crate::target::TargetChoice;

fn shard(planned: bool, to: Option<&str>) -> Shard {
    let to = to.map(str::to_owned);
    let phase = Phase::Sealing(Plan { to, planned, since_ms: 1, cause: String::new() });
    Shard { phase, ..cluster().shards[&SHARD].clone() }
}

/// A failover's, since second 1.
fn sealing() -> Sealing {
    let shard = shard(false, None);
    let mut watch = Watch::new(Duration::ZERO, &shard);
    watch.follow(Duration::from_secs(1), &shard);
    watch.sealing.unwrap()
}

fn answer(position: Position, term: u64) -> SealAnswer {
    SealAnswer {
        shard: SHARD,
        epoch: Epoch(1),
        planned: false,
        position,
        transactions: position.sequence * 2,
        time_ms: position.sequence * 10,
        term: Some(term),
        drained_leader: false,
    }
}

fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

#[test]
fn an_answer_raises_what_is_known_of_a_node_and_lowers_nothing() {
    let mut sealing = sealing();
    sealing.answered(secs(2), NodeId(1), SealAnswer { planned: true, ..answer(at(1, 9), 9) });
    assert!(sealing.answers.is_empty(), "an answer to another question");
    sealing.answered(secs(2), NodeId(1), answer(at(1, 5), 3));
    assert_eq!(
        (sealing.progress_at, &sealing.answers[&NodeId(1)]),
        (secs(2), &answer(at(1, 5), 3))
    );
    // The same again is no progress, nor is a later term; a term is never left.
    sealing.answered(secs(3), NodeId(1), SealAnswer { transactions: 99, ..answer(at(1, 5), 4) });
    sealing.answered(secs(3), NodeId(1), answer(at(1, 4), 2));
    assert_eq!(
        (sealing.progress_at, &sealing.answers[&NodeId(1)]),
        (secs(2), &answer(at(1, 5), 4))
    );
    sealing.answered(secs(4), NodeId(1), answer(at(1, 6), 4));
    assert_eq!(
        (sealing.progress_at, &sealing.answers[&NodeId(1)]),
        (secs(4), &answer(at(1, 6), 4))
    );
    let drained = SealAnswer { drained_leader: true, ..answer(at(1, 6), 4) };
    sealing.answered(secs(5), NodeId(1), drained.clone());
    assert_eq!((sealing.progress_at, &sealing.answers[&NodeId(1)]), (secs(5), &drained));
    // That it has drained is progress once, and is not unsaid.
    sealing.answered(secs(6), NodeId(1), drained.clone());
    sealing.answered(secs(6), NodeId(1), answer(at(1, 6), 4));
    assert_eq!((sealing.progress_at, &sealing.answers[&NodeId(1)]), (secs(5), &drained));
}

#[test]
fn a_node_that_has_pulled_has_what_others_answered_at_that_position() {
    let mut sealing = sealing();
    sealing.answered(secs(2), NodeId(1), answer(at(1, 9), 3));
    sealing.answered(
        secs(2),
        NodeId(2),
        SealAnswer { transactions: 7, time_ms: 7, ..answer(at(1, 5), 3) },
    );
    sealing.drained(secs(3), NodeId(2), at(1, 9));
    assert_eq!(
        (sealing.progress_at, &sealing.answers[&NodeId(2)]),
        (secs(3), &answer(at(1, 9), 3))
    );
    // A report of an earlier position is no news.
    sealing.drained(secs(4), NodeId(2), at(1, 7));
    assert_eq!(
        (sealing.drained[&NodeId(2)], sealing.answers[&NodeId(2)].position),
        (at(1, 9), at(1, 9))
    );
    // Of a node that has not answered, and of a position that no answer names, only the position is
    // known.
    sealing.drained(secs(4), NodeId(3), at(1, 9));
    sealing.drained(secs(4), NodeId(1), at(1, 10));
    assert_eq!((sealing.drained[&NodeId(3)], sealing.answers.get(&NodeId(3))), (at(1, 9), None));
    assert_eq!(sealing.answers[&NodeId(1)], answer(at(1, 9), 3));
    // A node that is further is not set back.
    sealing.answered(secs(5), NodeId(4), answer(at(1, 12), 3));
    sealing.drained(secs(5), NodeId(4), at(1, 9));
    assert_eq!(sealing.answers[&NodeId(4)], answer(at(1, 12), 3));
}

#[test]
fn nodes_are_asked_again_when_they_had_their_time_to_answer() {
    let (mut sealing, retry) = (sealing(), MS * 250);
    let mut seal = |ms, node| sealing.seal_is_due(MS * ms, NodeId(node), retry);
    assert_eq!([seal(0, 1), seal(0, 1), seal(0, 2)], [true, false, true]);
    assert_eq!(
        [seal(249, 1), seal(250, 1), seal(499, 1), seal(500, 1)],
        [false, true, false, true]
    );
    let mut drain =
        |ms, node, through| sealing.drain_is_due(MS * ms, NodeId(node), at(1, through), retry);
    assert_eq!(
        [drain(0, 1, 5), drain(0, 1, 5), drain(0, 1, 6), drain(0, 2, 5)],
        [true, false, true, true]
    );
    assert_eq!([drain(249, 1, 5), drain(250, 1, 5)], [false, true]);
}

/// Or it would stand outside the history of the next epoch.
#[test]
fn a_node_that_was_asked_for_more_than_the_base_may_come_by_it_for_as_long_as_a_drain_lasts() {
    let (mut sealing, lasts) = (sealing(), secs(6));
    assert!(sealing.drain_is_due(secs(10), NodeId(1), at(1, 9), MS));
    let may_pass = |now, node, base| sealing.may_pass(now, NodeId(node), at(1, base), lasts);
    assert!(may_pass(secs(10), 1, 8) && may_pass(secs(16) - MS, 1, 8));
    assert!(!may_pass(secs(16), 1, 8), "its time is over");
    assert!(!may_pass(secs(10), 1, 9), "that is all it was asked for");
    assert!(!may_pass(secs(10), 2, 8), "another was asked");
}

#[test]
fn answers_stay_when_an_operator_says_anew_where_to_and_go_when_nothing_may_be_lost_any_more() {
    let mut watch = Watch::new(Duration::ZERO, &shard(false, None));
    watch.follow(secs(1), &shard(false, None));
    let sealing = watch.sealing.as_mut().unwrap();
    sealing.answered(secs(2), NodeId(1), answer(at(1, 5), 3));
    sealing.target = TargetChoice::kept("b");
    // The same again changes nothing.
    watch.follow(secs(3), &shard(false, None));
    let sealing = watch.sealing.as_ref().unwrap();
    assert_eq!(
        (sealing.since, sealing.progress_at, sealing.target.chosen()),
        (secs(1), secs(2), Some("b"))
    );
    watch.follow(secs(4), &shard(false, Some("c")));
    let sealing = watch.sealing.as_ref().unwrap();
    assert_eq!(
        (sealing.since, sealing.progress_at, sealing.target.chosen()),
        (secs(4), secs(4), None)
    );
    assert_eq!((sealing.plan.to.as_deref(), sealing.answers.len()), (Some("c"), 1));
    watch.follow(secs(5), &shard(true, Some("c")));
    assert!(watch.sealing.as_ref().unwrap().answers.is_empty());
    watch.follow(secs(6), &cluster().shards[&SHARD]);
    assert!(watch.sealing.is_none());
}

#[test]
fn an_epoch_may_have_had_a_leader_once_it_is_active_or_more_than_its_base_is_reported() {
    let forming = Shard {
        phase: Phase::Forming,
        epoch: Epoch(2),
        reports: vec![meridian_directory::testing::report(2, at(1, 50), "a")],
        ..cluster().shards[&SHARD].clone()
    };
    let mut watch = Watch::new(Duration::ZERO, &forming);
    watch.follow(secs(1), &forming);
    assert_eq!((watch.progress, watch.may_have_led), (CommitProgress::new(100, 5_000), false));
    watch.observe(CommitProgress::new(100, 6_000));
    watch.observe(CommitProgress::new(90, 4_000));
    assert_eq!((watch.progress, watch.may_have_led), (CommitProgress::new(100, 6_000), false));
    watch.observe(CommitProgress::new(101, 5_500));
    watch.observe(CommitProgress::new(1, 1));
    assert_eq!((watch.progress, watch.may_have_led), (CommitProgress::new(101, 6_000), true));
    watch.follow(secs(2), &forming);
    assert!(watch.may_have_led, "it is never unsaid");
    for phase in [Phase::Active, Phase::SwitchingOver { to: "b".to_owned() }] {
        let mut watch = Watch::new(Duration::ZERO, &forming);
        watch.follow(secs(1), &Shard { phase, ..forming.clone() });
        assert!(watch.may_have_led);
        watch.follow(secs(2), &forming);
        assert!(watch.may_have_led);
    }
    assert!(Watch::new(Duration::ZERO, &shard(false, None)).may_have_led);
}
