//! Outcomes of deliveries, in whatever order they are reported and logged.

use meridian_queue::{Action, Answer, Outcome, Report, SessionId, Ticket};

use super::scenarios::{AGAIN, FAILED, Leader, answers, delivered, settlements};
use super::*;

/// A message whose lease ran out, and that was handed out again at 7000 ms.
fn handed_out_again() -> (Leader, MessageKey) {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    leader.close(1, 1);
    let expired = leader.at(5000);
    leader.commit(&expired);
    leader.open(opening(DATABASE, 2, 2, 1));
    let again = key(6000, 101);
    assert_eq!(delivered(&leader.at(7000)), [(2, again)]);
    (leader, again)
}

#[test]
fn success_after_the_lease_ran_out_is_a_success() {
    let (mut leader, again) = handed_out_again();
    let reported = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(settlements(&reported), Some(vec![(again, Outcome::Delivered)]));
    let committed = leader.commit(&reported);
    assert_eq!(answers(&committed), [Answer::Done]);
    assert!(committed.contains(&Action::Release { session: SessionId(2), key: again }));
    let repeated = leader.report(2, again, Report::Done);
    assert_eq!(answers(&leader.commit(&repeated)), [Answer::Done], "it is done");
}

#[test]
fn failure_and_extension_after_the_lease_ran_out_are_nothing() {
    let (mut leader, _) = handed_out_again();
    for report in [AGAIN, Report::Extended { by: ms(1000) }] {
        let late = leader.report(1, key(0, 101), report);
        assert_eq!(late, [Action::Answer { ticket: Ticket(0), answer: Answer::Late }]);
    }
}

#[test]
fn success_that_comes_while_the_failure_is_logged_is_logged_behind_it() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    leader.close(1, 1);
    let expired = leader.at(5000);
    let success = leader.report(1, key(0, 101), Report::Done);
    let committed = leader.commit(&expired);
    assert_eq!(answers(&committed), [], "it follows the message");
    let moved = leader.commit(&success);
    assert_eq!((answers(&moved), delivered(&moved)), (vec![], vec![]));
    let committed = if settlements(&committed).is_some() { committed } else { moved };
    assert_eq!(settlements(&committed), Some(vec![(key(6000, 101), Outcome::Delivered)]));
    leader.open(opening(DATABASE, 2, 2, 1));
    assert_eq!(delivered(&leader.at(7000)), [], "no listener gets it again");
    assert_eq!(answers(&leader.commit(&committed)), [Answer::Done]);
}

/// A disk that is low takes what only removes rows.
#[test]
fn success_that_is_logged_before_a_failure_of_the_same_message_counts() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    leader.close(1, 1);
    let expired = leader.at(5000);
    assert_eq!(settlements(&expired), Some(vec![(key(0, 101), FAILED)]));
    let success = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(settlements(&success), Some(vec![(key(0, 101), Outcome::Delivered)]));
    assert_eq!(leader.report(1, key(0, 101), Report::Done), [], "it is under way");
    assert_eq!(answers(&leader.commit(&success)), [Answer::Done, Answer::Done]);
    assert_eq!(leader.commit(&expired), [], "no row is left that could fail");
    leader.open(opening(DATABASE, 2, 2, 1));
    assert_eq!(delivered(&leader.at(60_000)), []);
}

#[test]
fn repeated_report_is_answered_like_the_first() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    let first = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(leader.report(1, key(0, 101), Report::Done), [], "while it is logged");
    assert_eq!(answers(&leader.commit(&first)), [Answer::Done, Answer::Done]);
    let again = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(answers(&leader.commit(&again)), [Answer::Done], "and when it is gone");
}

#[test]
fn failure_goes_with_the_delay_that_the_listener_asks_for() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    let retry_after = Some(ms(77));
    let failed = leader.report(1, key(0, 101), Report::Failed { retry_after });
    assert_eq!(settlements(&failed), Some(vec![(key(0, 101), Outcome::Failed { retry_after })]));
}
