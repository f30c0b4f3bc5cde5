//! Messages that operators cancel, move or take out of the dead letters, also while listeners hold
//! them; and queues that they pause.

use std::collections::BTreeSet;

use meridian_queue::{
    Action, Answer, Event, MessageKey, Opening, Outcome, Report, RowChange, SessionId,
};

use super::scenarios::{AGAIN, Leader, answers, delivered, settlements};
use super::{DATABASE, OTHER, key, ms, opening};

/// Two listeners, of which the first holds a message.
fn held() -> Leader {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    assert_eq!(delivered(&leader.enqueue(DATABASE, &[key(0, 101)])), [(1, key(0, 101))]);
    leader.open(opening(DATABASE, 2, 2, 1));
    leader.now_ms = 70;
    leader
}

fn moves(leader: &mut Leader, from: MessageKey, to: MessageKey) -> Vec<Action> {
    leader.rows.remove(&(DATABASE.into(), from));
    leader.rows.insert((DATABASE.into(), to));
    let moved = [RowChange::Deleted(DATABASE.into(), from), RowChange::Moved(DATABASE.into(), to)];
    leader.step(Event::Applied(moved.into()))
}

fn release(session: u64, key: MessageKey) -> Action {
    Action::Release { session: SessionId(session), key }
}

/// Whichever listener holds it by then.
fn is_done_at(leader: &mut Leader, row: MessageKey, reported: &[Action]) {
    assert_eq!(settlements(reported), Some(vec![(row, Outcome::Delivered)]));
    assert_eq!(answers(reported), [], "not before it is logged");
    assert_eq!(answers(&leader.commit(reported)), [Answer::Done]);
    assert!(leader.rows.is_empty());
}

#[test]
fn held_message_that_is_cancelled_is_released_and_a_late_report_changes_nothing() {
    let mut leader = held();
    leader.rows.clear();
    let cancelled =
        leader.step(Event::Applied(vec![RowChange::Deleted(DATABASE.into(), key(0, 101))]));
    assert_eq!(cancelled, [release(1, key(0, 101))]);
    for late in [AGAIN, Report::Extended { by: ms(1000) }] {
        assert_eq!(answers(&leader.report(1, key(0, 101), late)), [Answer::Late]);
    }
    // It cannot be told from a success that is reported again.
    let done = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(answers(&leader.commit(&done)), [Answer::Done]);
    assert_eq!(delivered(&leader.at(100_000)), []);
}

#[test]
fn held_message_that_is_moved_is_released_and_goes_to_the_next_listener() {
    let mut leader = held();
    let moved = moves(&mut leader, key(0, 101), key(70, 101));
    assert_eq!(moved[0], release(1, key(0, 101)));
    assert_eq!(delivered(&moved), [(2, key(70, 101))]);
    assert_eq!(answers(&leader.report(1, key(0, 101), AGAIN)), [Answer::Late]);
    let done = leader.report(1, key(0, 101), Report::Done);
    is_done_at(&mut leader, key(70, 101), &done);
}

/// Else it would be answered as done, and handed out again.
#[test]
fn success_on_a_message_that_was_moved_and_waits_settles_it_where_it_is() {
    let mut leader = held();
    assert_eq!(delivered(&moves(&mut leader, key(0, 101), key(900, 101))), []);
    assert_eq!(answers(&leader.report(1, key(0, 101), AGAIN)), [Answer::Late]);
    let done = leader.report(1, key(0, 101), Report::Done);
    is_done_at(&mut leader, key(900, 101), &done);
    assert_eq!(delivered(&leader.at(1000)), []);
}

#[test]
fn success_that_is_logged_when_its_message_moves_is_logged_again_where_it_is() {
    let mut leader = held();
    let done = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(delivered(&moves(&mut leader, key(0, 101), key(70, 101))), []);
    let again = leader.commit(&done);
    is_done_at(&mut leader, key(70, 101), &again);
}

#[test]
fn failure_that_is_logged_when_its_message_moves_costs_no_attempt() {
    let mut leader = held();
    let failed = leader.report(1, key(0, 101), AGAIN);
    assert_eq!(delivered(&moves(&mut leader, key(0, 101), key(70, 101))), []);
    let committed = leader.commit(&failed);
    assert_eq!(answers(&committed), [Answer::Done]);
    assert_eq!(delivered(&committed).len(), 1, "where it has moved to, and not a second later");
    assert!(leader.rows.contains(&(DATABASE.into(), key(70, 101))));
}

#[test]
fn dead_letter_that_is_a_message_again_is_settled_by_a_success_on_its_last_attempt() {
    let mut leader = held();
    // It dies; an operator takes it out of the dead letters, and no listener has room for it.
    leader.rows.clear();
    leader.step(Event::Applied(vec![RowChange::Deleted(DATABASE.into(), key(0, 101))]));
    leader.close(1, 1);
    leader.close(2, 2);
    leader.rows.insert((DATABASE.into(), key(71, 101)));
    leader.step(Event::Applied(vec![RowChange::Moved(DATABASE.into(), key(71, 101))]));
    assert_eq!(answers(&leader.report(1, key(0, 101), AGAIN)), [Answer::Late]);
    let done = leader.report(1, key(0, 101), Report::Done);
    is_done_at(&mut leader, key(71, 101), &done);
}

#[test]
fn message_counts_as_leased_while_a_listener_holds_it() {
    let mut leader = held();
    let leased = |leader: &Leader, key| leader.dispatcher.is_leased(&DATABASE.into(), &key);
    assert!(leased(&leader, key(0, 101)) && !leased(&leader, key(1, 101)));
    assert_eq!(leader.dispatcher.leases(&DATABASE.into()), 1);
    assert_eq!((leader.dispatcher.leases_in_all(), leader.dispatcher.first_due_ms()), (1, None));
    moves(&mut leader, key(0, 101), key(900, 101));
    let first_due = leader.dispatcher.first_due_ms();
    assert_eq!((leader.dispatcher.leases_in_all(), first_due), (0, Some(900)));
    assert!(!leased(&leader, key(0, 101)) && !leased(&leader, key(900, 101)));
    assert_eq!(
        (leader.dispatcher.leases(&DATABASE.into()), leader.dispatcher.leases(&OTHER.into())),
        (0, 0)
    );
}

/// Whatever was read when the last credit was spent.
#[test]
fn first_message_that_is_due_is_known_while_no_listener_has_room() {
    for unread in [key(0, 102), key(500, 102)] {
        let mut leader = Leader::new(&[key(0, 101)]);
        let opened = Event::Opened(opening(DATABASE, 1, 1, 1));
        let opened = leader.dispatcher.step(leader.moment(), opened);
        assert!(matches!(opened[..], [Action::Read { .. }]), "{opened:?}");
        // The read ended at its last row, and there may be others behind it.
        let (rows, next) = (vec![key(0, 101)], Some(unread));
        let read = leader.step(Event::Read { queue: DATABASE.into(), rows, next });
        assert_eq!(delivered(&read), [(1, key(0, 101))]);
        assert_eq!(leader.dispatcher.first_due_ms(), None);
        let waiting = MessageKey { due_ms: unread.due_ms + 100, ..key(0, 103) };
        leader.enqueue(DATABASE, &[waiting]);
        while let Some(at) = leader.dispatcher.wake_at() {
            leader.at(u64::try_from(at.as_millis()).unwrap());
        }
        assert_eq!(leader.dispatcher.first_due_ms(), Some(waiting.due_ms));
    }
}

fn pause(leader: &mut Leader) -> Vec<Action> {
    leader.step(Event::Paused(BTreeSet::from([DATABASE])))
}

fn resume(leader: &mut Leader) -> Vec<Action> {
    leader.step(Event::Paused(BTreeSet::new()))
}

#[test]
fn paused_queue_hands_out_nothing_and_takes_all_else() {
    let mut leader = held();
    assert_eq!(pause(&mut leader), []);
    assert!(leader.dispatcher.is_paused(DATABASE) && !leader.dispatcher.is_paused(OTHER));
    assert_eq!(delivered(&leader.enqueue(DATABASE, &[key(0, 102), key(500, 103)])), []);
    assert_eq!(delivered(&leader.open(opening(DATABASE, 3, 3, 1))), [], "a new listener");
    assert_eq!(delivered(&leader.at(6000)), [], "neither what was due nor what is by now");
    assert_eq!(leader.dispatcher.wake_at(), None, "there is nothing to try again");
    assert_eq!(leader.dispatcher.first_due_ms(), Some(0), "it waits, and that is seen");
    let done = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(answers(&leader.commit(&done)), [Answer::Done]);
    leader.open(opening(OTHER, 4, 4, 1));
    let other = leader.enqueue(OTHER, &[key(0, 104)]);
    assert_eq!(delivered(&other), [(4, key(0, 104))], "of another database");
    let mut resumed = delivered(&resume(&mut leader));
    resumed.sort_by_key(|(_, key)| *key);
    assert_eq!(
        resumed.iter().map(|(_, key)| *key).collect::<Vec<_>>(),
        [key(0, 102), key(500, 103)]
    );
}

/// It costs the attempt, as ever.
#[test]
fn lease_that_ends_while_its_queue_is_paused_has_failed() {
    let mut leader = held();
    pause(&mut leader);
    leader.close(1, 1);
    let failed = leader.at(70_000);
    let outcome = Outcome::Failed { retry_after: None };
    assert_eq!(settlements(&failed), Some(vec![(key(0, 101), outcome)]));
    assert_eq!(delivered(&leader.commit(&failed)), []);
    assert_eq!(delivered(&leader.at(100_000)), []);
    assert_eq!(delivered(&resume(&mut leader)), [(2, key(71_000, 101))]);
}

#[test]
fn listeners_of_a_paused_queue_go_on_at_the_next_leader_with_what_they_hold() {
    let mut leader = Leader::new(&[key(0, 50), key(0, 51)]);
    pause(&mut leader);
    let held = vec![key(0, 50)];
    leader.open(Opening { held, ..opening(DATABASE, 1, 1, 2) });
    assert!(leader.dispatcher.is_leased(&DATABASE.into(), &key(0, 50)));
    assert_eq!(delivered(&leader.at(100_000)), [], "also once the leader has waited for claims");
    let done = leader.report(1, key(0, 50), Report::Done);
    assert_eq!(answers(&leader.commit(&done)), [Answer::Done]);
    assert_eq!(delivered(&resume(&mut leader)), [(1, key(0, 51))]);
}
