//! Each rule by itself. Reads are answered from the rows that the test says there are, at once.

use std::collections::BTreeSet;

use meridian_queue::{
    Action, Answer, Dispatcher, Event, GRACE, HOLD, Incarnation, Lane, ListenerId, MAX_CREDITS,
    MAX_LISTENERS, MessageKey, Moment, Opening, Outcome, Refused, Report, RowChange, SessionId,
    Ticket, WINDOW,
};
use meridian_types::{DatabaseId, Epoch, Position, QueueId};

use super::{DATABASE, OTHER, key, listener, ms, opening};

/// A leader with rows, in a term that began behind sequence 100.
pub(crate) struct Leader {
    pub(crate) dispatcher: Dispatcher,
    pub(crate) rows: BTreeSet<(QueueId, MessageKey)>,
    pub(crate) now_ms: u64,
    pub(crate) reads: Vec<MessageKey>,
}

impl Leader {
    pub(crate) fn new(rows: &[MessageKey]) -> Self {
        let start = Moment { now: ms(0), time_ms: 0 };
        let began = Position::new(Epoch::FIRST, 100);
        let rows = rows.iter().map(|key| (DATABASE.into(), *key)).collect();
        Self { dispatcher: Dispatcher::new(start, began), rows, now_ms: 0, reads: Vec::new() }
    }

    pub(crate) fn moment(&self) -> Moment {
        Moment { now: ms(self.now_ms), time_ms: self.now_ms }
    }

    /// All that follows from an event, reads and checks included.
    pub(crate) fn step(&mut self, event: Event) -> Vec<Action> {
        let mut actions = self.dispatcher.step(self.moment(), event);
        let is_look =
            |action: &Action| matches!(action, Action::Read { .. } | Action::Check { .. });
        while let Some(at) = actions.iter().position(is_look) {
            let seen = match actions.remove(at) {
                Action::Read { queue, from, limit } => self.read(queue, from, limit),
                Action::Check { queue, keys } => self.checked(queue, keys),
                _ => unreachable!(),
            };
            actions.extend(self.dispatcher.step(self.moment(), seen));
        }
        actions
    }

    fn read(&mut self, queue: QueueId, from: MessageKey, limit: usize) -> Event {
        self.reads.push(from);
        let mut rows = self.rows.range((queue.clone(), from)..);
        let mut rows = rows.by_ref().take_while(|row| row.0 == queue);
        let found = rows.by_ref().take(limit).map(|row| row.1).collect();
        let next = rows.next().map(|row| row.1);
        Event::Read { queue: queue.clone(), rows: found, next }
    }

    pub(crate) fn checked(&self, queue: QueueId, mut keys: Vec<MessageKey>) -> Event {
        keys.retain(|key| !self.rows.contains(&(queue.clone(), *key)));
        Event::Checked { queue, gone: keys }
    }

    pub(crate) fn at(&mut self, now_ms: u64) -> Vec<Action> {
        self.now_ms = now_ms;
        self.step(Event::Tick)
    }

    pub(crate) fn open(&mut self, opening: Opening) -> Vec<Action> {
        self.step(Event::Opened(opening))
    }

    pub(crate) fn enqueue(
        &mut self,
        queue: impl Into<QueueId>,
        keys: &[MessageKey],
    ) -> Vec<Action> {
        let queue = queue.into();
        self.rows.extend(keys.iter().map(|key| (queue.clone(), *key)));
        let put = |key: &MessageKey| RowChange::Put(queue.clone(), *key);
        self.step(Event::Applied(keys.iter().map(put).collect()))
    }

    pub(crate) fn report(&mut self, number: u8, key: MessageKey, report: Report) -> Vec<Action> {
        let reports = vec![(Ticket(key.due_ms), key, report)];
        self.step(Event::Reported { queue: DATABASE.into(), listener: listener(number), reports })
    }

    pub(crate) fn close(&mut self, number: u8, session: u64) -> Vec<Action> {
        self.close_of(DATABASE.into(), number, session)
    }

    pub(crate) fn close_of(&mut self, queue: QueueId, number: u8, session: u64) -> Vec<Action> {
        let (listener, session) = (listener(number), SessionId(session));
        self.step(Event::Closed { queue, listener, session })
    }

    /// The settlements that were asked for commit; failed messages are due a second later.
    pub(crate) fn commit(&mut self, actions: &[Action]) -> Vec<Action> {
        let Some(settlements) = settlements(actions) else { return Vec::new() };
        let delivered = settlements.iter().all(|(_, outcome)| *outcome == Outcome::Delivered);
        let lane = if delivered { Lane::Deliveries } else { Lane::Failures };
        let mut changes = Vec::new();
        for (key, outcome) in settlements {
            if !self.rows.remove(&(DATABASE.into(), key)) {
                continue;
            }
            changes.push(RowChange::Deleted(DATABASE.into(), key));
            if outcome != Outcome::Delivered {
                let moved = MessageKey { due_ms: self.now_ms + 1000, ..key };
                self.rows.insert((DATABASE.into(), moved));
                changes.push(RowChange::Moved(DATABASE.into(), moved));
            }
        }
        let mut actions = self.step(Event::Applied(changes));
        actions.extend(self.step(Event::Settled { queue: DATABASE.into(), lane }));
        actions
    }
}

pub(crate) fn delivered(actions: &[Action]) -> Vec<(u64, MessageKey)> {
    let delivered = |action: &Action| match action {
        Action::Deliver { session, key, .. } => Some((session.0, *key)),
        _ => None,
    };
    actions.iter().filter_map(delivered).collect()
}

pub(crate) fn settlements(actions: &[Action]) -> Option<Vec<(MessageKey, Outcome)>> {
    actions.iter().find_map(|action| match action {
        Action::Settle { settlements, .. } => Some(settlements.clone()),
        _ => None,
    })
}

pub(crate) fn answers(actions: &[Action]) -> Vec<Answer> {
    let answer = |action: &Action| match action {
        Action::Answer { answer, .. } => Some(*answer),
        _ => None,
    };
    actions.iter().filter_map(answer).collect()
}

pub(crate) const FAILED: Outcome = Outcome::Failed { retry_after: None };
pub(crate) const AGAIN: Report = Report::Failed { retry_after: None };

#[test]
fn messages_go_out_by_due_time_then_in_the_order_of_commits() {
    let mut leader = Leader::new(&[]);
    leader.now_ms = 50;
    leader.enqueue(DATABASE, &[key(30, 101), key(10, 103), key(30, 102), key(60, 104)]);
    let actions = leader.open(opening(DATABASE, 1, 1, 10));
    assert_eq!(delivered(&actions), [(1, key(10, 103)), (1, key(30, 101)), (1, key(30, 102))]);
    assert_eq!(leader.dispatcher.wake_at(), Some(ms(60)), "one is not due yet");
    assert_eq!(delivered(&leader.at(60)), [(1, key(60, 104))]);
}

#[test]
fn listener_holds_no_more_than_its_credits_and_gets_the_next_when_one_is_settled() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 2));
    let actions = leader.enqueue(DATABASE, &[key(0, 101), key(0, 102), key(0, 103)]);
    assert_eq!(delivered(&actions), [(1, key(0, 101)), (1, key(0, 102))]);
    let reported = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(settlements(&reported), Some(vec![(key(0, 101), Outcome::Delivered)]));
    assert_eq!((delivered(&reported), answers(&reported)), (vec![], vec![]), "not logged yet");
    let committed = leader.commit(&reported);
    assert_eq!(answers(&committed), [Answer::Done]);
    assert_eq!(delivered(&committed), [(1, key(0, 103))]);
}

#[test]
fn listeners_of_a_queue_take_turns() {
    let mut leader = Leader::new(&[]);
    (1..=3).for_each(|number| drop(leader.open(opening(DATABASE, number, number.into(), 10))));
    let keys: Vec<_> = (101..=106).map(|sequence| key(0, sequence)).collect();
    let turns: Vec<u64> =
        delivered(&leader.enqueue(DATABASE, &keys)).iter().map(|(session, _)| *session).collect();
    assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
}

#[test]
fn database_with_a_long_queue_leaves_the_others_their_turns() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1000));
    leader.open(opening(OTHER, 2, 2, 1000));
    let changes = |database: DatabaseId, count| {
        (0..count).map(move |sequence| RowChange::Put(database.into(), key(0, 101 + sequence)))
    };
    let all = changes(DATABASE, 500).chain(changes(OTHER, 500)).collect();
    let mut first = [None, None];
    let mut actions = leader.step(Event::Applied(all));
    let mut sessions = Vec::new();
    while !actions.is_empty() {
        sessions.extend(delivered(&actions).iter().map(|(session, _)| *session));
        actions = leader.step(Event::Tick);
    }
    assert_eq!(sessions.len(), 1000);
    for (at, session) in sessions.iter().enumerate() {
        first[usize::try_from(*session).unwrap() - 1].get_or_insert(at);
    }
    assert!(first[0] < Some(100) && first[1] < Some(100), "{first:?}");
}

#[test]
fn message_is_leased_while_its_session_lives_however_long() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.open(opening(DATABASE, 2, 2, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    assert_eq!(leader.at(24 * 3_600_000), []);
}

#[test]
fn broken_session_costs_an_attempt_after_the_grace_and_not_before() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    leader.open(opening(DATABASE, 2, 2, 1));
    leader.close(1, 1);
    let grace = u64::try_from(GRACE.as_millis()).unwrap();
    assert_eq!(leader.dispatcher.wake_at(), Some(GRACE));
    assert_eq!(leader.at(grace - 1), []);
    let over = leader.at(grace);
    assert_eq!(settlements(&over), Some(vec![(key(0, 101), FAILED)]));
    leader.commit(&over);
    assert_eq!(delivered(&leader.at(grace + 1000)), [(2, key(grace + 1000, 101))]);
}

#[test]
fn listener_that_comes_back_within_the_grace_goes_on_with_what_it_holds() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 2));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    leader.close(1, 1);
    leader.now_ms = 4000;
    let back = Opening { held: vec![key(0, 101)], ..opening(DATABASE, 1, 5, 2) };
    assert_eq!(leader.open(back), []);
    assert_eq!(leader.close(1, 1), [], "the session before is over already");
    assert_eq!(leader.at(60_000), []);
    let reported = leader.report(1, key(0, 101), Report::Done);
    assert_eq!(answers(&leader.commit(&reported)), [Answer::Done]);
}

#[test]
fn what_a_listener_does_not_name_was_lost_with_it_or_never_reached_it() {
    // A session that its gateway did not hear of is of the same incarnation, and none before it.
    for (incarnation, resumed, attempts) in [(2, false, 1), (1, true, 0), (1, false, 0)] {
        let mut leader = Leader::new(&[]);
        leader.open(opening(DATABASE, 1, 1, 1));
        leader.enqueue(DATABASE, &[key(0, 101)]);
        leader.close(1, 1);
        let incarnation = Incarnation(incarnation);
        let back = leader.open(Opening { incarnation, resumed, ..opening(DATABASE, 1, 2, 1) });
        assert_eq!(settlements(&back).map_or(0, |settled| settled.len()), attempts);
        let again: &[_] = if attempts == 0 { &[(2, key(0, 101))] } else { &[] };
        assert_eq!(delivered(&back), again);
    }
}

#[test]
fn second_session_of_a_listener_takes_the_place_of_the_first() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 2));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    let held = vec![key(0, 101)];
    let actions = leader.open(Opening { held, ..opening(DATABASE, 1, 2, 2) });
    assert_eq!(actions, [Action::Refuse { session: SessionId(1), reason: Refused::Replaced }]);
    assert_eq!(leader.close(1, 1), []);
    assert_eq!(delivered(&leader.enqueue(DATABASE, &[key(0, 102)])), [(2, key(0, 102))]);
}

/// A gateway that was cut off comes back, and does not know yet that its client has left it.
#[test]
fn session_of_an_earlier_incarnation_takes_no_place_of_a_later_one() {
    let came_back = |session, incarnation, held: &[MessageKey]| Opening {
        incarnation: Incarnation(incarnation),
        held: held.to_vec(),
        resumed: true,
        ..opening(DATABASE, 1, session, 9)
    };
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 9));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    let held = vec![key(0, 101)];
    leader.open(Opening { held, ..opening(DATABASE, 1, 2, 9) });
    assert_eq!(delivered(&leader.enqueue(DATABASE, &[key(0, 102)])), [(2, key(0, 102))]);
    let outdated = leader.open(came_back(3, 1, &[key(0, 101)]));
    assert_eq!(outdated, [Action::Refuse { session: SessionId(3), reason: Refused::Replaced }]);
    assert_eq!(leader.close(1, 3), []);
    // At the next leader both come, in any order.
    for order in [[1, 2], [2, 1]] {
        let mut leader = Leader::new(&[]);
        let refused = order.map(|incarnation| {
            let actions = leader.open(came_back(incarnation, incarnation.into(), &[]));
            actions.contains(&Action::Refuse { session: SessionId(1), reason: Refused::Replaced })
        });
        assert_eq!(refused, [false, true], "the first incarnation's session ends");
    }
}

#[test]
fn new_leader_waits_for_what_may_be_held_and_hands_out_new_messages_at_once() {
    let (held, old, new) = (key(0, 1), key(0, 2), key(0, 101));
    let mut leader = Leader::new(&[held, old, new]);
    assert_eq!(delivered(&leader.open(opening(DATABASE, 1, 1, 9))), [(1, new)]);
    let opened = leader.open(Opening { held: vec![held], ..opening(DATABASE, 2, 2, 9) });
    assert_eq!(opened, []);
    let hold = u64::try_from(HOLD.as_millis()).unwrap();
    assert_eq!(leader.at(hold - 1), []);
    assert_eq!(leader.dispatcher.wake_at(), Some(HOLD));
    assert_eq!(delivered(&leader.at(hold)), [(2, old)], "and no attempt was counted");
}

#[test]
fn claim_of_a_message_that_another_holds_is_released() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101)]);
    let claim = Opening { held: vec![key(0, 101)], ..opening(DATABASE, 2, 2, 1) };
    let release = Action::Release { session: SessionId(2), key: key(0, 101) };
    assert_eq!(leader.open(claim), [release]);
    let late = leader.report(2, key(0, 101), AGAIN);
    assert_eq!(answers(&late), [Answer::Late]);
}

#[test]
fn polled_message_is_leased_for_its_time_and_as_much_longer_as_is_asked_for() {
    let mut leader = Leader::new(&[]);
    leader.open(Opening { lease: Some(ms(30_000)), ..opening(DATABASE, 1, 1, 1) });
    let actions = leader.enqueue(DATABASE, &[key(0, 101)]);
    let until = Some(ms(30_000));
    assert_eq!(actions, [Action::Deliver { session: SessionId(1), key: key(0, 101), until }]);
    assert_eq!(leader.close(1, 1), []);
    leader.now_ms = 29_000;
    let extended = leader.report(1, key(0, 101), Report::Extended { by: ms(20_000) });
    assert_eq!(answers(&extended), [Answer::Done]);
    assert_eq!(leader.at(48_999), []);
    assert_eq!(settlements(&leader.at(49_000)), Some(vec![(key(0, 101), FAILED)]));
}

#[test]
fn message_that_is_gone_frees_its_credit_and_is_not_settled() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101), key(0, 102)]);
    let gone = leader.step(Event::Gone { queue: DATABASE.into(), keys: vec![key(0, 101)] });
    assert_eq!(settlements(&gone), None);
    assert_eq!(delivered(&gone), [(1, key(0, 102))]);
    let cancelled =
        leader.step(Event::Applied(vec![RowChange::Deleted(DATABASE.into(), key(0, 102))]));
    assert_eq!(cancelled, [Action::Release { session: SessionId(1), key: key(0, 102) }]);
}

#[test]
fn rows_are_never_read_again_from_the_head_of_the_queue() {
    let keys: Vec<_> = (101..3101).map(|sequence| key(0, sequence)).collect();
    let mut leader = Leader::new(&keys);
    let mut actions = leader.open(opening(DATABASE, 1, 1, 100));
    let mut order = Vec::new();
    while order.len() < keys.len() {
        let messages = delivered(&actions);
        order.extend(messages.iter().map(|(_, key)| *key));
        let reports = messages.iter().map(|(_, key)| (Ticket(0), *key, Report::Done)).collect();
        let reported = Event::Reported { queue: DATABASE.into(), listener: listener(1), reports };
        let reported = leader.step(reported);
        actions = leader.commit(&reported);
        let mut last = actions.clone();
        while settlements(&last).is_some() {
            last = leader.commit(&last);
            actions.extend(last.clone());
        }
        actions.extend(leader.step(Event::Tick));
        actions
            .extend(reported.into_iter().filter(|action| matches!(action, Action::Deliver { .. })));
    }
    assert_eq!(order, keys);
    assert_eq!(leader.reads.iter().filter(|from| **from == MessageKey::FIRST).count(), 1);
    assert!(leader.reads.is_sorted(), "{:?}", leader.reads);
}

#[test]
fn poller_that_comes_again_and_again_reads_on_from_the_lowest_row() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1));
    leader.enqueue(DATABASE, &[key(0, 101), key(5, 102)]);
    let done = leader.report(1, key(0, 101), Report::Done);
    leader.commit(&done);
    leader.close(1, 1);
    leader.now_ms = 10;
    leader.reads.clear();
    assert_eq!(delivered(&leader.open(opening(DATABASE, 2, 2, 1))), [(2, key(5, 102))]);
    assert_eq!(leader.reads, [key(5, 102)]);
}

#[test]
fn delayed_messages_beyond_the_window_are_rows_and_no_memory() {
    let mut leader = Leader::new(&[]);
    leader.open(opening(DATABASE, 1, 1, 1000));
    // The later due, the earlier enqueued: each comes below those that are known.
    let count = 4 * WINDOW as u64;
    for sequence in 0..count {
        leader.enqueue(DATABASE, &[key(10_000 + count - sequence, 101 + sequence)]);
    }
    leader.now_ms = 10_000 + 2 * count;
    let mut due = Vec::new();
    let mut actions = leader.step(Event::Tick);
    while !actions.is_empty() {
        due.extend(delivered(&actions).iter().map(|(_, key)| key.due_ms));
        actions = leader.step(Event::Tick);
    }
    assert_eq!(due, (10_001..=11_000).collect::<Vec<_>>(), "as many as it has credits for");
}

#[test]
fn row_that_was_deleted_while_it_was_read_is_not_handed_out() {
    let mut leader = Leader::new(&[]);
    let read = leader.dispatcher.step(leader.moment(), Event::Opened(opening(DATABASE, 1, 1, 9)));
    assert!(matches!(read[..], [Action::Read { .. }]), "{read:?}");
    leader.step(Event::Applied(vec![
        RowChange::Put(DATABASE.into(), key(0, 103)),
        RowChange::Deleted(DATABASE.into(), key(0, 101)),
    ]));
    let rows = vec![key(0, 101), key(0, 102)];
    let actions = leader.step(Event::Read { queue: DATABASE.into(), rows, next: None });
    let out = [(1, key(0, 102)), (1, key(0, 103))];
    assert_eq!(delivered(&actions), out, "the other came behind what was read");
}

#[test]
fn listeners_and_credits_are_bounded() {
    let mut leader = Leader::new(&[]);
    let id = |number: usize| {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&(number as u64).to_be_bytes());
        ListenerId(id)
    };
    for number in 0..MAX_LISTENERS {
        let opening = Opening { listener: id(number), ..opening(DATABASE, 0, 1, 0) };
        assert_eq!(leader.open(opening), []);
    }
    let session = SessionId(7);
    let one_more = Opening { listener: id(MAX_LISTENERS), session, ..opening(DATABASE, 0, 7, 0) };
    let refused = Action::Refuse { session, reason: Refused::TooManyListeners };
    assert_eq!(leader.open(one_more), [refused]);
    leader.open(opening(OTHER, 1, 1, u32::MAX));
    for sequence in 0..2 * u64::from(MAX_CREDITS) {
        leader.enqueue(OTHER, &[key(0, 101 + sequence)]);
    }
    let more = leader.enqueue(OTHER, &[key(0, 5000)]);
    assert_eq!(delivered(&more), [], "{MAX_CREDITS} are held");
}
