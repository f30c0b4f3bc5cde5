//! Queues of one database with names: none of them is another's, or holds another up.

use std::collections::BTreeSet;

use meridian_queue::{
    Action, Event, ListenerId, MAX_CREDITS, MAX_IDLE, MAX_LEASES, MAX_LISTENERS, MIN_LEASES,
    MessageKey, Opening, Outcome, Refused, Report, SessionId, Ticket,
};
use meridian_types::MessageId;
use meridian_types::limits::MAX_QUEUE_NAMES;

use super::scenarios::{Leader, delivered, settlements};
use super::{DATABASE, OTHER, key, listener, named, opening};

fn id(number: usize) -> ListenerId {
    ListenerId((number as u128).to_be_bytes())
}

/// All that is delivered, also later.
fn all_delivered(leader: &mut Leader, mut actions: Vec<Action>) -> Vec<(u64, MessageKey)> {
    let mut all = Vec::new();
    while !delivered(&actions).is_empty() {
        all.extend(delivered(&actions));
        actions = leader.step(Event::Tick);
    }
    all
}

fn keys(first: u64, count: usize) -> Vec<MessageKey> {
    (first..).take(count).map(|sequence| key(0, sequence)).collect()
}

#[test]
fn message_goes_to_listeners_of_its_queue_alone() {
    let mut leader = Leader::new(&[]);
    let queues = [DATABASE.into(), named("a"), named("b"), OTHER.into()];
    for (number, queue) in (1..).zip(&queues) {
        assert_eq!(leader.open(opening(queue.clone(), number, number.into(), 9)), []);
    }
    for (number, queue) in (1..).zip(&queues) {
        let message = key(0, 100 + number);
        assert_eq!(delivered(&leader.enqueue(queue.clone(), &[message])), [(number, message)]);
        assert_eq!(leader.dispatcher.leases(queue), 1);
    }
    assert_eq!(delivered(&leader.enqueue(named("c"), &[key(0, 200)])), [], "it has no listener");
}

#[test]
fn report_on_the_message_of_another_queue_settles_nothing_of_it() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(named("a"), 1, 1, 9));
    leader.enqueue(named("a"), &[key(0, 101)]);
    let reports = vec![(Ticket(0), key(0, 101), Report::Done)];
    let wrong = Event::Reported { queue: named("b"), listener: listener(1), reports };
    let actions = leader.step(wrong);
    let settled = vec![(key(0, 101), Outcome::Delivered)];
    assert_eq!(settlements(&actions), Some(settled), "of a row that is not there");
    assert!(matches!(&actions[..], [Action::Settle { queue, .. }] if *queue == named("b")));
    assert!(leader.dispatcher.is_leased(&named("a"), &key(0, 101)));
}

/// Its listeners take all leases that the database may have, and report nothing.
#[test]
fn queue_whose_listeners_are_slow_leaves_leases_to_every_other_of_its_database() {
    let mut leader = Leader::new(&[]);
    let slow = MAX_LEASES / MAX_CREDITS as usize + 1;
    for number in 0..slow {
        leader.open(Opening { listener: id(number), ..opening(DATABASE, 0, 1, MAX_CREDITS) });
    }
    let actions = leader.enqueue(DATABASE, &keys(101, MAX_LEASES + MIN_LEASES));
    assert_eq!(all_delivered(&mut leader, actions).len(), MAX_LEASES);
    for name in ["a", "b"] {
        leader.open(Opening { listener: id(slow), ..opening(named(name), 0, 2, MAX_CREDITS) });
        let actions = leader.enqueue(named(name), &keys(50_000, MIN_LEASES + 1));
        assert_eq!(all_delivered(&mut leader, actions).len(), MIN_LEASES, "{name}");
    }
    leader.open(opening(OTHER, 3, 3, MAX_CREDITS));
    let actions = leader.enqueue(OTHER, &keys(60_000, MIN_LEASES + 1));
    assert_eq!(all_delivered(&mut leader, actions).len(), MIN_LEASES + 1, "of another database");
}

/// Clients may invent names, and claim what was never there.
/// That leader gave the unnamed queue all leases first, and then each named one its own.
#[test]
fn leases_of_the_leader_before_go_on_in_whichever_order_their_listeners_come() {
    let mut leader = Leader::new(&[]);
    let message = |number: usize| {
        let enqueued = key(0, 1).id.enqueued;
        MessageKey { due_ms: 0, id: MessageId { enqueued, index: u16::try_from(number).unwrap() } }
    };
    let mut held = (0..MAX_LEASES + MIN_LEASES).map(message);
    let mut opening = |queue: &str, number: u8, count: usize| {
        let queue = if queue.is_empty() { DATABASE.into() } else { named(queue) };
        let held = held.by_ref().take(count).collect::<Vec<_>>();
        leader.rows.extend(held.iter().map(|key| (queue.clone(), *key)));
        let opening = opening(queue, number, number.into(), MAX_CREDITS);
        let actions = leader.open(Opening { held, resumed: true, ..opening });
        actions.iter().filter(|action| matches!(action, Action::Release { .. })).count()
    };
    assert_eq!(opening("a", 1, MIN_LEASES), 0);
    for number in 2..2 + MAX_LEASES / MAX_CREDITS as usize {
        let number = u8::try_from(number).unwrap();
        assert_eq!(opening("", number, MAX_CREDITS as usize), 0, "{number}");
    }
}

#[test]
fn names_multiply_neither_the_leases_nor_the_listeners_of_a_database() {
    let mut leader = Leader::new(&[]);
    let held = keys(1, MAX_CREDITS as usize);
    for number in 0..MAX_LISTENERS {
        let queue = named(&number.to_string());
        let opening = Opening {
            listener: id(number),
            held: held.clone(),
            ..opening(queue, 0, 1, MAX_CREDITS)
        };
        // No row is looked for yet.
        leader.dispatcher.step(leader.moment(), Event::Opened(opening));
    }
    let names = MAX_QUEUE_NAMES + 1;
    assert_eq!(leader.dispatcher.leases_in_all(), MAX_LEASES + names * MIN_LEASES);
    let (number, session) = (MAX_LISTENERS, SessionId(7));
    let one_more = Opening { listener: id(number), ..opening(named("one more"), 0, 7, 1) };
    let refused = Action::Refuse { session, reason: Refused::TooManyListeners };
    assert_eq!(leader.open(one_more), [refused]);
    assert_eq!(delivered(&leader.open(opening(OTHER, 1, 1, 1))), []);
    assert_eq!(delivered(&leader.enqueue(OTHER, &[key(0, 101)])), [(1, key(0, 101))]);
}

#[test]
fn pause_of_a_database_is_one_of_all_its_queues() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(named("a"), 1, 1, 9));
    leader.step(Event::Paused(BTreeSet::from([DATABASE])));
    assert_eq!(delivered(&leader.enqueue(named("a"), &[key(0, 101)])), []);
    leader.open(opening(named("b"), 2, 2, 9));
    assert_eq!(delivered(&leader.enqueue(named("b"), &[key(0, 102)])), []);
    let mut resumed = delivered(&leader.step(Event::Paused(BTreeSet::new())));
    resumed.sort_unstable();
    assert_eq!(resumed, [(1, key(0, 101)), (2, key(0, 102))]);
}

#[test]
fn idle_names_are_forgotten_and_those_with_anything_to_do_are_not() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(named("held"), 1, 1, 1));
    leader.enqueue(named("held"), &[key(0, 101)]);
    leader.close_of(named("held"), 1, 1);
    leader.now_ms = 1;
    // Each is known once its listener has left, and idle.
    for number in 0..2 * MAX_IDLE {
        let queue = named(&number.to_string());
        leader.open(opening(queue.clone(), 2, 2, 1));
        leader.close_of(queue, 2, 2);
    }
    let failed = leader.at(5000);
    let outcome = Outcome::Failed { retry_after: None };
    assert_eq!(settlements(&failed), Some(vec![(key(0, 101), outcome)]), "its lease is over");
    // A forgotten queue is read from the front, and any other from where its reads had come to.
    leader.reads.clear();
    for (number, queue) in (0..).zip([named("0"), named(&(2 * MAX_IDLE - 1).to_string())]) {
        leader.rows.insert((queue.clone(), key(0, 102)));
        let opened = leader.open(opening(queue, 3, 3, 1));
        assert_eq!(delivered(&opened).len(), 1 - number, "the other knows that it was empty");
    }
    assert_eq!(leader.reads, [MessageKey::FIRST]);
}
