//! Claims, and reports on messages that an earlier leader handed out.

use meridian_queue::{
    Action, Answer, Event, HOLD, Incarnation, ListenerId, MAX_CHECKED, MAX_LISTENERS,
    MAX_LISTENERS_IN_ALL, MessageKey, Opening, Outcome, Refused, Report, RowChange, SessionId,
    Ticket,
};
use meridian_types::{DatabaseId, MessageId};

use super::scenarios::{AGAIN, FAILED, Leader, answers, delivered, settlements};
use super::{DATABASE, key, listener, ms, opening};

const EXTENDED: Report = Report::Extended { by: ms(1000) };

fn claiming(number: u8, credits: u32, held: &[MessageKey]) -> Opening {
    Opening { held: held.to_vec(), ..opening(DATABASE, number, number.into(), credits) }
}

/// A listener claims messages, which are not looked for before the test says so.
fn claim(leader: &mut Leader, opening: Opening) -> Vec<Action> {
    leader.dispatcher.step(leader.moment(), Event::Opened(opening))
}

fn release(number: u8, key: MessageKey) -> Action {
    Action::Release { session: SessionId(number.into()), key }
}

fn checks(actions: &[Action]) -> Vec<Vec<MessageKey>> {
    let check = |action: &Action| match action {
        Action::Check { keys, .. } => Some(keys.clone()),
        _ => None,
    };
    actions.iter().filter_map(check).collect()
}

fn hold_ms() -> u64 {
    u64::try_from(HOLD.as_millis()).unwrap()
}

/// It was acknowledged to the leader before, which could not say so to the listener.
#[test]
fn claim_of_a_message_that_is_settled_takes_no_credit() {
    let mut leader = Leader::new(&[]);
    let claimed = claim(&mut leader, claiming(1, 1, &[key(0, 1)]));
    assert_eq!(checks(&claimed), [[key(0, 1)]]);
    leader.step(Event::Read { queue: DATABASE.into(), rows: vec![], next: None });
    assert_eq!(delivered(&leader.enqueue(DATABASE, &[key(0, 101)])), [], "it may be held");
    let gone = leader.step(leader.checked(DATABASE.into(), vec![key(0, 1)]));
    assert!(gone.contains(&release(1, key(0, 1))), "{gone:?}");
    assert_eq!(delivered(&gone), [(1, key(0, 101))]);
}

#[test]
fn claim_of_a_place_without_a_row_never_stands_beside_the_row_of_its_message() {
    let mut leader = Leader::new(&[key(10, 51)]);
    leader.open(opening(DATABASE, 1, 1, 9));
    leader.open(opening(DATABASE, 2, 2, 9));
    let reports = vec![(Ticket(1), key(9, 51), EXTENDED)];
    let extended = Event::Reported { queue: DATABASE.into(), listener: listener(1), reports };
    let extended = leader.dispatcher.step(leader.moment(), extended);
    assert_eq!((checks(&extended), answers(&extended)), (vec![vec![key(9, 51)]], vec![]));
    let (incarnation, resumed) = (Incarnation(1), true);
    let back = leader.open(Opening { incarnation, resumed, ..opening(DATABASE, 1, 3, 9) });
    assert_eq!(answers(&back), [Answer::Late]);
    leader.now_ms = hold_ms() + 20;
    let out: Vec<_> = delivered(&leader.step(Event::Tick)).iter().map(|(_, key)| *key).collect();
    assert_eq!(out, [key(10, 51)]);
}

#[test]
fn claim_of_a_place_that_a_message_has_left_takes_nothing_from_its_holder() {
    for has_acked in [false, true] {
        let (stale, moved) = (key(0, 1), key(5, 1));
        let mut leader = Leader::new(&[moved]);
        leader.now_ms = 10;
        claim(&mut leader, claiming(1, 9, &[stale]));
        leader.step(Event::Read { queue: DATABASE.into(), rows: vec![moved], next: None });
        let claimed = claim(&mut leader, claiming(2, 9, &[moved]));
        assert!(!claimed.contains(&release(2, moved)), "{claimed:?}");
        let mut reported = Vec::new();
        if has_acked {
            reported = leader.report(2, moved, Report::Done);
            assert_eq!(settlements(&reported), Some(vec![(moved, Outcome::Delivered)]));
        }
        let checked = leader.step(leader.checked(DATABASE.into(), vec![stale]));
        assert!(checked.contains(&release(1, stale)), "{checked:?}");
        assert!(!checked.contains(&release(2, moved)), "{checked:?}");
        assert_eq!(delivered(&leader.at(hold_ms() + 10)), [], "it is held");
        if has_acked {
            let committed = leader.commit(&reported);
            assert_eq!((answers(&committed), leader.rows.len()), (vec![Answer::Done], 0));
        }
    }
}

#[test]
fn acknowledgement_of_a_place_that_a_message_has_left_keeps_no_other_from_its_own() {
    let (stale, moved) = (key(0, 1), key(5, 1));
    let mut leader = Leader::new(&[moved]);
    let first = leader.report(1, stale, Report::Done);
    assert_eq!(settlements(&first), Some(vec![(stale, Outcome::Delivered)]));
    assert_eq!(leader.open(claiming(2, 9, &[moved])), []);
    let second = leader.report(2, moved, Report::Done);
    assert_eq!(answers(&second), [], "the other report says nothing of it");
    let committed = leader.commit(&first);
    assert_eq!(answers(&committed), [], "the message is there still");
    assert_eq!(settlements(&committed), Some(vec![(moved, Outcome::Delivered)]));
    let both = leader.commit(&committed);
    assert_eq!((answers(&both), leader.rows.len()), (vec![Answer::Done; 2], 0));
}

#[test]
fn acknowledgement_of_a_place_that_a_message_has_left_settles_it_where_it_is_held() {
    let (stale, moved) = (key(0, 1), key(5, 1));
    let mut leader = Leader::new(&[moved]);
    let first = leader.report(1, stale, Report::Done);
    leader.open(claiming(2, 9, &[moved]));
    let found = leader.commit(&first);
    assert_eq!(settlements(&found), Some(vec![(moved, Outcome::Delivered)]));
    let committed = leader.commit(&found);
    assert_eq!((answers(&committed), leader.rows.len()), (vec![Answer::Done], 0));
}

#[test]
fn failure_and_extension_of_what_has_no_row_come_too_late() {
    for report in [AGAIN, EXTENDED] {
        let mut leader = Leader::new(&[key(9, 1)]);
        let reported = leader.report(1, key(0, 1), report);
        assert_eq!(reported, [Action::Answer { ticket: Ticket(0), answer: Answer::Late }]);
    }
}

#[test]
fn what_an_earlier_leader_handed_out_may_be_reported_before_it_is_claimed() {
    for (report, outcome) in [(Report::Done, Outcome::Delivered), (AGAIN, FAILED)] {
        let mut leader = Leader::new(&[key(0, 1)]);
        let reported = leader.report(1, key(0, 1), report);
        assert_eq!(settlements(&reported), Some(vec![(key(0, 1), outcome)]));
        assert_eq!(leader.open(claiming(1, 1, &[key(0, 1)])), []);
        let committed = leader.commit(&reported);
        assert!(committed.contains(&release(1, key(0, 1))), "{committed:?}");
        assert_eq!(answers(&committed), [Answer::Done]);
    }
}

#[test]
fn failure_that_is_reported_twice_while_its_message_is_looked_for_counts_once() {
    let mut leader = Leader::new(&[key(0, 1)]);
    let reports = vec![(Ticket(1), key(0, 1), AGAIN), (Ticket(2), key(0, 1), AGAIN)];
    let reported = Event::Reported { queue: DATABASE.into(), listener: listener(1), reports };
    let reported = leader.step(reported);
    assert_eq!(settlements(&reported), Some(vec![(key(0, 1), FAILED)]));
    assert_eq!(answers(&leader.commit(&reported)), [Answer::Done, Answer::Done]);
}

#[test]
fn claimed_row_that_is_deleted_while_it_is_looked_for_is_not_leased() {
    let mut leader = Leader::new(&[key(0, 1)]);
    claim(&mut leader, claiming(1, 1, &[key(0, 1)]));
    let found = leader.checked(DATABASE.into(), vec![key(0, 1)]);
    let deleted = RowChange::Deleted(DATABASE.into(), key(0, 1));
    leader.rows.clear();
    let deleted = leader.dispatcher.step(leader.moment(), Event::Applied(vec![deleted]));
    assert!(deleted.contains(&release(1, key(0, 1))), "{deleted:?}");
    claim(&mut leader, claiming(2, 1, &[key(0, 1)]));
    let checked = leader.step(found);
    assert!(checked.contains(&release(2, key(0, 1))), "its row is looked for anew: {checked:?}");
}

#[test]
fn claims_are_looked_for_a_few_at_a_time_and_all_are_leased() {
    let keys: Vec<_> = (0..3 * u16::try_from(MAX_CHECKED).unwrap())
        .map(|index| MessageKey { due_ms: 0, id: MessageId { index, ..key(0, 1).id } })
        .collect();
    let mut leader = Leader::new(&keys);
    let mut actions = claim(&mut leader, claiming(1, 1000, &keys));
    let mut looked_for = Vec::new();
    while let [one] = &checks(&actions)[..] {
        assert!(one.len() <= MAX_CHECKED);
        looked_for.extend(one.clone());
        let other = leader.dispatcher.step(leader.moment(), Event::Tick);
        assert_eq!(checks(&other), [[]; 0], "one at a time");
        let checked = leader.checked(DATABASE.into(), one.clone());
        actions = leader.dispatcher.step(leader.moment(), checked);
    }
    assert_eq!(looked_for, keys);
    leader.step(Event::Read { queue: DATABASE.into(), rows: keys, next: None });
    assert_eq!(delivered(&leader.at(hold_ms())), []);
}

#[test]
fn claim_that_an_extension_made_lasts_as_long_as_was_asked_for_beyond_the_session() {
    let mut leader = Leader::new(&[key(0, 1)]);
    let extended = leader.report(1, key(0, 1), Report::Extended { by: ms(60_000) });
    assert_eq!(answers(&extended), [Answer::Done]);
    leader.open(claiming(1, 1, &[key(0, 1)]));
    leader.close(1, 1);
    assert_eq!(settlements(&leader.at(59_999)), None);
    assert_eq!(settlements(&leader.at(60_000)), Some(vec![(key(0, 1), FAILED)]));
}

#[test]
fn extension_of_a_streamed_message_outlasts_the_grace_of_its_broken_stream() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    let extended = leader.report(1, key(0, 101), Report::Extended { by: ms(60_000) });
    assert_eq!(answers(&extended), [Answer::Done]);
    leader.close(1, 1);
    assert_eq!(settlements(&leader.at(59_999)), None);
    assert_eq!(settlements(&leader.at(60_000)), Some(vec![(key(0, 101), FAILED)]));
}

#[test]
fn listener_that_comes_back_to_a_full_shard_takes_its_own_place() {
    let mut leader = Leader::new(&[]);
    let id = |number: usize| ListenerId((number as u128).to_be_bytes());
    let of = |number: usize, session| Opening {
        listener: id(number),
        ..opening(DatabaseId([u8::try_from(number / MAX_LISTENERS).unwrap(); 16]), 0, session, 0)
    };
    for number in 0..MAX_LISTENERS_IN_ALL {
        assert_eq!(leader.open(of(number, 1)), []);
    }
    let refuse = |session, reason| [Action::Refuse { session: SessionId(session), reason }];
    let one_more = leader.open(of(MAX_LISTENERS_IN_ALL, 2));
    assert_eq!(one_more, refuse(2, Refused::TooManyListeners));
    assert_eq!(leader.open(of(5, 3)), refuse(1, Refused::Replaced));
}

#[test]
fn poller_gets_another_message_for_a_message_that_was_gone() {
    let mut leader = Leader::new(&[]);
    leader.open(Opening { lease: Some(ms(30_000)), ..opening(DATABASE, 1, 1, 1) });
    leader.enqueue(DATABASE, &[key(0, 101), key(0, 102)]);
    let gone = leader.step(Event::Gone { queue: DATABASE.into(), keys: vec![key(0, 101)] });
    assert_eq!(delivered(&gone), [(1, key(0, 102))]);
}

/// Reports cost nothing: a client may guess what others were never handed.
#[test]
fn message_that_no_earlier_leader_can_have_handed_out_is_not_claimed_by_reports() {
    let (old, new, not_due) = (key(0, 1), key(0, 101), key(90_000, 2));
    for report in [AGAIN, EXTENDED] {
        let mut leader = Leader::new(&[old, not_due]);
        leader.enqueue(DATABASE, &[new]);
        for (number, key) in [(1, new), (2, not_due)] {
            assert_eq!(answers(&leader.report(number, key, report)), [Answer::Late], "{key:?}");
        }
        let open = leader.open(claiming(3, 9, &[not_due]));
        assert!(open.contains(&release(3, not_due)), "{open:?}");
        leader.at(hold_ms());
        assert_eq!(answers(&leader.report(4, old, report)), [Answer::Late], "the time is over");
    }
}
