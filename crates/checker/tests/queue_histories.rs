//! Histories of a queue that is played here, from seeds: those of a right queue are clean, and each
//! bug that it may have is named.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests may; the helpers here are no test functions"
)]

mod queue_support;

use std::collections::BTreeSet;

use meridian_checker::queue::{
    DeadRead, Enqueue, EnqueueOutcome, Handed, QueueEvent, QueueHistory, QueueRule, Report,
    ReportAnswer, TRANSIT_NS, Verdict, check_queue,
};
use meridian_checker::{Allowance, LostWindow};
use meridian_types::{Epoch, MessageId, Position, Versionstamp};
use queue_support::{Bug, play};

const SEEDS: u64 = 300;

fn rules(history: &QueueHistory) -> BTreeSet<QueueRule> {
    let verdict = check_queue(history, &Allowance::default());
    verdict.violations.iter().map(|violation| violation.rule).collect()
}

#[test]
fn histories_of_a_right_queue_are_clean() {
    let (mut done, mut dead, mut duplicates) = (0, 0, 0);
    for seed in 0..SEEDS {
        let history = play(seed, None);
        let verdict = check_queue(&history, &Allowance::default());
        assert!(verdict.violations.is_empty(), "seed {seed}: {}", verdict.violations[0]);
        done += verdict.statistics.done;
        dead += verdict.statistics.dead;
        duplicates += verdict.statistics.duplicates;
    }
    assert!(done > 1000 && dead > 100 && duplicates > 100, "{done} {dead} {duplicates}");
}

#[test]
fn planted_bugs_are_named() {
    for (bug, rule) in Bug::ALL {
        let found = (0..SEEDS).find(|seed| rules(&play(*seed, Some(bug))).contains(&rule));
        assert!(found.is_some(), "{bug:?} is not found as {rule:?} in {SEEDS} seeds");
    }
}

fn stamp(epoch: u16, sequence: u64) -> Versionstamp {
    Versionstamp::new(Position::new(Epoch(epoch), sequence), 0)
}

fn enqueue(outcome: EnqueueOutcome) -> QueueEvent {
    QueueEvent::Enqueue(Enqueue {
        message: 7,
        invoked_ns: 0,
        completed_ns: Some(1),
        outcome,
        delay_ns: 0,
        attempts: 2,
        dead_keys: 2,
    })
}

fn enqueued(versionstamp: Versionstamp) -> QueueEvent {
    enqueue(EnqueueOutcome::Enqueued { id: "id".into(), versionstamp })
}

fn handed(at_ns: u64, listener: u32, attempt: u32) -> QueueEvent {
    QueueEvent::Handed(Handed { at_ns, listener, message: 7, id: "id".into(), attempt })
}

fn report(at_ns: u64, listener: u32, attempt: u32, verdict: Verdict) -> QueueEvent {
    QueueEvent::Report(Report {
        listener,
        message: 7,
        attempt,
        verdict,
        invoked_ns: at_ns,
        completed_ns: Some(at_ns + 1),
        answer: Some(ReportAnswer::Done),
    })
}

fn dead_read(at_ns: u64, set: u32) -> QueueEvent {
    let (invoked_ns, completed_ns) = (at_ns, at_ns + 1);
    QueueEvent::DeadRead(DeadRead { message: 7, invoked_ns, completed_ns, set })
}

fn drained(events: &[QueueEvent]) -> QueueHistory {
    QueueHistory { events: events.to_vec(), is_drained: true }
}

#[test]
fn message_that_a_failover_admits_to_have_lost_is_no_violation() {
    let lost = drained(&[enqueued(stamp(1, 9))]);
    assert_eq!(rules(&lost), [QueueRule::AtLeastOnce].into());
    let window = LostWindow::behind(Epoch(2), Position::new(Epoch(1), 8));
    let verdict = check_queue(&lost, &Allowance { lost: vec![window] });
    assert_eq!((verdict.violations.len(), verdict.statistics.lost_as_admitted), (0, 1));
    let kept = drained(&[enqueued(stamp(1, 8))]);
    assert_eq!(check_queue(&kept, &Allowance { lost: vec![window] }).violations.len(), 1);
}

#[test]
fn lost_acknowledgement_of_an_older_message_is_allowed_where_its_failover_lost_a_tail() {
    let again = |epoch| {
        drained(&[
            enqueued(stamp(epoch, 3)),
            handed(10, 1, 1),
            report(11, 1, 1, Verdict::Ack),
            handed(20, 2, 1),
            report(21, 2, 1, Verdict::Ack),
        ])
    };
    assert_eq!(rules(&again(1)), [QueueRule::Acknowledged].into());
    let window = LostWindow::behind(Epoch(2), Position::new(Epoch(1), 8));
    let allowance = Allowance { lost: vec![window] };
    assert!(check_queue(&again(1), &allowance).violations.is_empty());
    assert_eq!(check_queue(&again(2), &allowance).violations.len(), 1);
}

/// The acknowledgement may come when the attempt has failed already, and then changes nothing.
#[test]
fn attempt_that_is_acknowledged_after_a_break_may_be_followed_by_the_next_and_by_death_only() {
    let history = |attempt, is_broken: bool| {
        let mut events = vec![enqueued(stamp(1, 3)), handed(10, 1, 1)];
        let broke = QueueEvent::Broke { at_ns: 10, listener: 1 };
        events.extend(is_broken.then_some(broke));
        events.push(report(20, 1, 1, Verdict::Ack));
        events.push(handed(TRANSIT_NS * 2, 2, attempt));
        events
    };
    assert!(rules(&drained(&history(2, true))).is_empty());
    assert_eq!(rules(&drained(&history(1, true))), [QueueRule::Acknowledged].into());
    let without_a_failure = rules(&drained(&history(2, false)));
    assert_eq!(without_a_failure, [QueueRule::Acknowledged, QueueRule::Attempts].into());
    let died = |is_broken| {
        let mut events = history(2, is_broken);
        events.push(report(TRANSIT_NS * 2 + 1, 2, 2, Verdict::Nack));
        events.push(dead_read(TRANSIT_NS * 3, 2));
        rules(&drained(&events))
    };
    assert!(died(true).is_empty());
    assert!(died(false).contains(&QueueRule::DeadLetters));
}

#[test]
fn message_may_die_whose_hold_ended_while_its_acknowledgement_was_on_its_way() {
    let died = |broke_ns: u64| {
        let ack = QueueEvent::Report(Report {
            listener: 1,
            message: 7,
            attempt: 2,
            verdict: Verdict::Ack,
            invoked_ns: 40,
            completed_ns: Some(60),
            answer: Some(ReportAnswer::Done),
        });
        let refused = [handed(10, 1, 1), report(20, 1, 1, Verdict::Nack), handed(30, 1, 2)];
        let broke = QueueEvent::Broke { at_ns: broke_ns, listener: 1 };
        let events = [enqueued(stamp(1, 3))].into_iter().chain(refused);
        rules(&drained(&events.chain([ack, broke, dead_read(100, 2)]).collect::<Vec<_>>()))
    };
    assert!(died(50).is_empty());
    assert!(died(61).contains(&QueueRule::DeadLetters), "it was done before");
}

#[test]
fn enqueue_that_a_failover_lost_may_be_repeated_and_gives_the_message_another_id() {
    let id = |epoch, sequence| MessageId { enqueued: stamp(epoch, sequence), index: 0 }.to_string();
    let history = |first: String| {
        let (lost, versionstamp) = (handed(10, 1, 1), stamp(2, 30));
        let again = EnqueueOutcome::Enqueued { id: id(2, 30), versionstamp };
        let QueueEvent::Handed(lost) = lost else { panic!("it is one") };
        let lost = QueueEvent::Handed(Handed { id: first, ..lost });
        let QueueEvent::Handed(next) = handed(50, 2, 1) else { panic!("it is one") };
        let next = QueueEvent::Handed(Handed { id: id(2, 30), ..next });
        let broke = QueueEvent::Broke { at_ns: 15, listener: 1 };
        drained(&[enqueue(again), lost, broke, next, report(60, 2, 1, Verdict::Ack)])
    };
    let base = Position::new(Epoch(1), 20);
    let allowance = Allowance { lost: vec![LostWindow::behind(Epoch(2), base)] };
    let of = |sequence| {
        let verdict = check_queue(&history(id(1, sequence)), &allowance);
        verdict.violations.iter().map(|violation| violation.rule).collect::<Vec<_>>()
    };
    assert_eq!(of(21), []);
    assert_eq!(of(20), [QueueRule::Enqueued], "it was not lost, and is there twice");
}

#[test]
fn hand_out_on_its_way_before_a_break_is_no_second_listener() {
    let broke = QueueEvent::Broke { at_ns: 10, listener: 1 };
    let history = |late_attempt| {
        drained(&[
            enqueued(stamp(1, 3)),
            handed(10, 1, 1),
            broke.clone(),
            handed(20, 2, 2),
            handed(21, 3, late_attempt),
            report(30, 2, 2, Verdict::Ack),
        ])
    };
    assert!(rules(&history(1)).is_empty());
    assert_eq!(rules(&history(2)), [QueueRule::OneListener].into());
}

#[test]
fn death_needs_all_keys_and_all_attempts() {
    let history = |attempts: u32, set| {
        let mut events = vec![enqueued(stamp(1, 3))];
        for attempt in 1..=attempts {
            let at_ns = u64::from(attempt) * 100;
            events.push(handed(at_ns, 1, attempt));
            events.push(report(at_ns + 10, 1, attempt, Verdict::Nack));
        }
        events.push(dead_read(1000, set));
        drained(&events)
    };
    assert!(rules(&history(2, 2)).is_empty());
    assert_eq!(rules(&history(2, 1)), [QueueRule::DeadLetters].into());
    assert_eq!(rules(&history(1, 2)), [QueueRule::DeadLetters].into());
    assert_eq!(rules(&history(2, 0)), [QueueRule::AtLeastOnce].into());
    let mut later = history(2, 2);
    later.events.push(handed(2000, 2, 2));
    assert_eq!(rules(&later), [QueueRule::DeadLetters].into());
}

#[test]
fn message_that_was_refused_is_never_handed_out() {
    let history = drained(&[enqueue(EnqueueOutcome::NotEnqueued), handed(10, 1, 1)]);
    assert_eq!(rules(&history), [QueueRule::Enqueued].into());
    let unknown = drained(&[enqueue(EnqueueOutcome::Unknown), handed(10, 1, 1)]);
    assert!(rules(&unknown).is_empty());
    assert_eq!(rules(&drained(&[handed(10, 1, 1)])), [QueueRule::WellFormed].into());
}
