//! A shard's leader, its log and its listeners, all from a seed: what the driver does, late or in
//! vain, and what must hold whatever happens.

mod lies;
mod operator;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_queue::{
    Action, Answer, Dispatcher, Event, GRACE, HOLD, Incarnation, Lane, ListenerId, MessageKey,
    Moment, Opening, Outcome, Report, RowChange, SessionId, Ticket,
};
use meridian_types::{DatabaseId, Epoch, MessageId, Position, QueueId, Versionstamp};

use super::rng::Rng;
use super::{DATABASE, OTHER, ms, named};

/// A mistake of a driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bug {
    /// A new leader takes no message for a held one.
    NoHold,
    /// A report is answered before it has committed.
    SettledBeforeTheCommit,
    /// A session that breaks is not noticed.
    BrokenSessionsAreForgotten,
}

const CREDITS: u32 = 4;
const MAX_ATTEMPTS: u32 = 5;
const CLIENTS: usize = 6;

struct Client {
    queue: QueueId,
    listener: ListenerId,
    session: Option<SessionId>,
    held: BTreeMap<MessageKey, Holding>,
    /// While it has no session: when that broke, and when it begins the next.
    broken_at: u64,
    back_at: u64,
    /// The client itself lived through.
    resumes: bool,
    incarnation: u128,
}

#[derive(Clone, Copy)]
struct Holding {
    since: u64,
    reports_at: u64,
    report: Report,
    is_reported: bool,
}

pub(crate) struct World {
    rng: Rng,
    bug: Option<Bug>,
    dispatcher: Dispatcher,
    now_ms: u64,
    term_began: (u64, Position),
    sequence: u64,
    rows: BTreeMap<(QueueId, MessageKey), u32>,
    /// Events on their way to the dispatcher, and when they come.
    events: BTreeMap<(u64, u64), Event>,
    commits: BTreeMap<(u64, u64), Logging>,
    numbers: u64,
    applied_at: u64,
    clients: Vec<Client>,
    tickets: BTreeMap<Ticket, (usize, MessageKey)>,
    /// Extensions of messages at places where they are not.
    hollow: BTreeSet<Ticket>,
    ever: BTreeSet<MessageId>,
    told: BTreeSet<MessageId>,
    done: BTreeSet<MessageId>,
    /// Rows that an operator has moved: their listeners do not hold them any more.
    taken: BTreeSet<MessageKey>,
    paused: BTreeSet<DatabaseId>,
    /// How often an attempt of the message may have failed.
    failures: BTreeMap<MessageId, u32>,
    pub(crate) delivered: usize,
}

/// Settlements that are being logged.
type Logging = (QueueId, Lane, Vec<(MessageKey, Outcome)>);
type Checked = Result<(), String>;

fn check(holds: bool, violation: &str) -> Checked {
    if holds { Ok(()) } else { Err(violation.to_owned()) }
}

impl World {
    pub(crate) fn new(seed: u64, bug: Option<Bug>) -> Self {
        let moment = Moment { now: ms(0), time_ms: 0 };
        let client = |number: usize| Client {
            queue: match number {
                0 | 3 => OTHER.into(),
                4 | 5 => named("named"),
                _ => DATABASE.into(),
            },
            listener: ListenerId([u8::try_from(number).unwrap(); 16]),
            session: None,
            held: BTreeMap::new(),
            broken_at: 0,
            back_at: 0,
            resumes: false,
            incarnation: 0,
        };
        Self {
            rng: Rng::new(seed),
            bug,
            dispatcher: Dispatcher::new(moment, Position::ZERO),
            now_ms: 10_000,
            term_began: (0, Position::ZERO),
            sequence: 0,
            rows: BTreeMap::new(),
            events: BTreeMap::new(),
            commits: BTreeMap::new(),
            numbers: 0,
            applied_at: 0,
            clients: (0..CLIENTS).map(client).collect(),
            tickets: BTreeMap::new(),
            hollow: BTreeSet::new(),
            ever: BTreeSet::new(),
            told: BTreeSet::new(),
            done: BTreeSet::new(),
            taken: BTreeSet::new(),
            paused: BTreeSet::new(),
            failures: BTreeMap::new(),
            delivered: 0,
        }
    }

    /// Half a minute with faults, and as long as it takes to settle all that is left.
    pub(crate) fn run(&mut self) -> Checked {
        let end = self.now_ms + 30_000;
        while self.now_ms < end {
            self.now_ms += 1 + self.rng.below(40);
            match self.rng.below(100) {
                0..15 => self.enqueue(),
                30..34 => self.break_a_session(),
                34 if self.rng.chance(300) => self.change_leaders(),
                35 => self.cancel(),
                39 => self.run_now(),
                40 => self.pause_or_resume()?,
                36..39 => self.extend_without_a_row(),
                _ => {}
            }
            self.happen()?;
        }
        self.paused.clear();
        self.step(Event::Paused(BTreeSet::new()))?;
        let end = self.now_ms + 300_000;
        while self.now_ms < end && !(self.rows.is_empty() && self.commits.is_empty()) {
            self.now_ms += 20;
            self.happen()?;
        }
        check(self.rows.is_empty(), "a message is lost: it has a row, and no listener gets it")
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn moment(&self) -> Moment {
        Moment { now: ms(self.now_ms), time_ms: self.now_ms }
    }

    fn later(&mut self, within_ms: u64, event: Event) {
        let at = self.now_ms + self.rng.below(within_ms);
        let number = self.number();
        self.events.insert((at, number), event);
    }

    /// In order, however late.
    fn tell_applied(&mut self, changes: Vec<RowChange>) {
        self.applied_at = self.applied_at.max(self.now_ms + self.rng.below(30));
        let number = self.number();
        self.events.insert((self.applied_at, number), Event::Applied(changes));
    }

    fn enqueue(&mut self) {
        let queue = match self.rng.below(10) {
            0..3 => OTHER.into(),
            3..6 => named("named"),
            _ => QueueId::from(DATABASE),
        };
        let due_ms = match self.rng.below(4) {
            0 => self.now_ms + self.rng.below(5000),
            1 => self.now_ms - self.rng.below(3000),
            _ => self.now_ms,
        };
        self.sequence += 1;
        let position = Position::new(Epoch::FIRST, self.sequence);
        let changes = (0..=self.rng.below(8)).map(|index| {
            let index = u16::try_from(index).unwrap();
            let id = MessageId { enqueued: Versionstamp::new(position, 0), index };
            MessageKey { due_ms, id }
        });
        let keys: Vec<MessageKey> = changes.collect();
        self.rows.extend(keys.iter().map(|key| ((queue.clone(), *key), 0)));
        let put = |key| RowChange::Put(queue.clone(), key);
        self.tell_applied(keys.into_iter().map(put).collect());
    }

    fn break_a_session(&mut self) {
        let number = usize::try_from(self.rng.below(CLIENTS as u64)).unwrap();
        let (back_in, resumes) = (self.rng.below(8000), self.rng.chance(500));
        let now_ms = self.now_ms;
        let client = &mut self.clients[number];
        let Some(session) = client.session.take() else { return };
        (client.broken_at, client.back_at, client.resumes) = (now_ms, now_ms + back_in, resumes);
        for key in client.held.keys() {
            *self.failures.entry(key.id).or_default() += 1;
        }
        let (queue, listener) = (client.queue.clone(), client.listener);
        if !resumes {
            client.held.clear();
            // A process that starts anew is another listener.
            client.listener = ListenerId((u128::from(session.0) << 8).to_be_bytes());
        }
        if self.bug != Some(Bug::BrokenSessionsAreForgotten) {
            self.later(200, Event::Closed { queue, listener, session });
        }
    }

    /// Settlements under way have committed or never will; the knowledge of the dispatcher is gone.
    fn change_leaders(&mut self) {
        self.events.clear();
        for (_, (queue, lane, settlements)) in std::mem::take(&mut self.commits) {
            if self.rng.chance(500) {
                self.commit(queue, lane, settlements);
            }
        }
        self.events.clear();
        self.sequence += 1;
        let began = Position::new(Epoch::FIRST, self.sequence);
        self.term_began = (self.now_ms, began);
        let began = if self.bug == Some(Bug::NoHold) { Position::ZERO } else { began };
        self.dispatcher = Dispatcher::new(self.moment(), began);
        self.dispatcher.step(self.moment(), Event::Paused(self.paused.clone()));
        self.told = self.rows.keys().map(|(_, key)| key.id).collect();
        self.tickets.clear();
        for client in &mut self.clients {
            client.held.values_mut().for_each(|holding| holding.is_reported = false);
            if client.session.take().is_some() {
                let back_in = self.rng.below(2500);
                client.broken_at = self.now_ms;
                (client.back_at, client.resumes) = (self.now_ms + back_in, true);
            }
        }
    }

    fn commit(&mut self, queue: QueueId, lane: Lane, settlements: Vec<(MessageKey, Outcome)>) {
        let mut changes = Vec::new();
        for (key, outcome) in settlements {
            let Some(attempts) = self.rows.remove(&(queue.clone(), key)) else { continue };
            changes.push(RowChange::Deleted(queue.clone(), key));
            if outcome == Outcome::Delivered || attempts + 1 >= MAX_ATTEMPTS {
                self.done.insert(key.id);
            } else {
                // Never at the place where it was.
                let due_ms = self.now_ms.max(key.due_ms + 1) + self.rng.below(1500);
                let moved = MessageKey { due_ms, ..key };
                self.rows.insert((queue.clone(), moved), attempts + 1);
                changes.push(RowChange::Moved(queue.clone(), moved));
            }
        }
        self.tell_applied(changes);
        if self.bug != Some(Bug::SettledBeforeTheCommit) {
            let number = self.number();
            self.events.insert((self.applied_at, number), Event::Settled { queue, lane });
        }
    }

    /// All that is due by now.
    fn happen(&mut self) -> Checked {
        while let Some(((at, number), _)) = self.commits.first_key_value()
            && *at <= self.now_ms
        {
            let (queue, lane, settlements) = self.commits.remove(&(*at, *number)).unwrap();
            for (key, outcome) in &settlements {
                let attempts = self.rows.get(&(queue.clone(), *key)).copied();
                let failures = self.failures.get(&key.id).copied().unwrap_or_default();
                let is_counted = *outcome != Outcome::Delivered && attempts.is_some();
                let may_fail = attempts.unwrap_or_default() < failures;
                check(!is_counted || may_fail, "an attempt is counted that did not fail")?;
            }
            self.commit(queue, lane, settlements);
        }
        while let Some((key, _)) = self.events.first_key_value()
            && key.0 <= self.now_ms
        {
            let event = self.events.remove(&{ *key }).unwrap();
            if let Event::Applied(changes) = &event {
                self.told.extend(changes.iter().filter_map(|change| match change {
                    RowChange::Put(_, key) | RowChange::Moved(_, key) => Some(key.id),
                    RowChange::Deleted(..) => None,
                }));
            }
            self.step(event)?;
        }
        (0..CLIENTS).try_for_each(|number| self.client_acts(number))?;
        self.step(Event::Tick)
    }

    fn client_acts(&mut self, number: usize) -> Checked {
        let session = SessionId(self.number());
        let false_claims =
            if self.clients[number].session.is_none() { self.false_claims(number) } else { vec![] };
        let client = &mut self.clients[number];
        if client.session.is_none() {
            if client.back_at > self.now_ms {
                return Ok(());
            }
            client.session = Some(session);
            if !client.resumes {
                client.incarnation += 1;
            }
            let opening = Opening {
                queue: client.queue.clone(),
                listener: client.listener,
                session,
                credits: CREDITS,
                lease: None,
                held: client.held.keys().copied().chain(false_claims).collect(),
                incarnation: Incarnation(client.incarnation),
                resumed: client.resumes,
            };
            return self.step(Event::Opened(opening));
        }
        let (queue, listener) = (client.queue.clone(), client.listener);
        let due: Vec<_> = client
            .held
            .iter_mut()
            .filter(|(_, holding)| !holding.is_reported && holding.reports_at <= self.now_ms)
            .map(|(key, holding)| {
                holding.is_reported = true;
                (*key, holding.report)
            })
            .collect();
        for (key, report) in due {
            if matches!(report, Report::Failed { .. }) {
                *self.failures.entry(key.id).or_default() += 1;
            }
            let ticket = Ticket(self.number());
            self.tickets.insert(ticket, (number, key));
            let (queue, reports) = (queue.clone(), vec![(ticket, key, report)]);
            self.later(30, Event::Reported { queue, listener, reports });
        }
        Ok(())
    }

    fn step(&mut self, event: Event) -> Checked {
        let moment = self.moment();
        let actions = self.dispatcher.step(moment, event);
        actions.into_iter().try_for_each(|action| self.carry_out(action))
    }

    fn carry_out(&mut self, action: Action) -> Checked {
        match action {
            Action::Read { queue, from, limit } => {
                let mut rows = self.rows.range((queue.clone(), from)..);
                let own =
                    |((of, key), _): (&(QueueId, MessageKey), &u32)| (*of == queue).then_some(*key);
                let found = rows.by_ref().take(limit).map_while(own).collect();
                let next = rows.next().and_then(own);
                self.later(60, Event::Read { queue, rows: found, next });
            }
            Action::Settle { queue, lane, settlements } => {
                if self.bug == Some(Bug::SettledBeforeTheCommit) {
                    self.later(2, Event::Settled { queue: queue.clone(), lane });
                }
                let at = self.now_ms + self.rng.below(400);
                let number = self.number();
                self.commits.insert((at, number), (queue, lane, settlements));
            }
            Action::Check { queue, keys } => {
                let is_gone = |key: &MessageKey| !self.rows.contains_key(&(queue.clone(), *key));
                let keys = keys.into_iter().filter(is_gone).collect();
                self.later(60, Event::Checked { queue, gone: keys });
            }
            Action::Deliver { session, key, .. } => self.deliver(session, key)?,
            Action::Release { session, key } => {
                let of = self.clients.iter_mut().find(|client| client.session == Some(session));
                of.map(|client| client.held.remove(&key));
            }
            Action::Answer { ticket, answer } => self.answered(ticket, answer)?,
            Action::Refuse { .. } => {}
        }
        Ok(())
    }

    fn answered(&mut self, ticket: Ticket, answer: Answer) -> Checked {
        let is_hollow = self.hollow.contains(&ticket) && answer == Answer::Done;
        check(!is_hollow, "an extension of a message that is not there is done")?;
        let Some((number, key)) = self.tickets.remove(&ticket) else { return Ok(()) };
        let holding = self.clients[number].held.remove(&key);
        let is_done = holding.is_some_and(|holding| holding.report == Report::Done);
        if !is_done || answer != Answer::Done {
            return Ok(());
        }
        let lives = self.rows.keys().any(|(_, row)| row.id == key.id);
        if !lives {
            self.done.insert(key.id);
        }
        // Where a message has moved to is not known to the leader of a later term.
        let is_known = holding.is_some_and(|holding| holding.since >= self.term_began.0);
        let row = (self.clients[number].queue.clone(), key);
        let remains = if is_known { lives } else { self.rows.contains_key(&row) };
        check(!remains, "a success is answered and the message is there still")
    }

    fn deliver(&mut self, session: SessionId, key: MessageKey) -> Checked {
        let is_new = self.ever.insert(key.id);
        let Some(number) = self.clients.iter().position(|client| client.session == Some(session))
        else {
            // The session broke, which the leader is yet to hear.
            *self.failures.entry(key.id).or_default() += 1;
            return Ok(());
        };
        let row = (self.clients[number].queue.clone(), key);
        let queue = &row.0;
        check(key.due_ms <= self.now_ms, "a message is handed out before it is due")?;
        check(!self.paused.contains(&queue.database), "a paused queue hands out a message")?;
        if !self.rows.contains_key(&row) {
            self.later(30, Event::Gone { queue: queue.clone(), keys: vec![key] });
            return Ok(());
        }
        check(!self.done.contains(&key.id), "a message is handed out that was settled")?;
        if is_new {
            self.check_order(&row)?;
        }
        for client in &self.clients {
            let is_held = client.held.iter().any(|(held, holding)| {
                let may_hold = !holding.is_reported && !self.taken.contains(held);
                held.id == key.id && may_hold && self.may_go_on(client)
            });
            check(!is_held, "a message has two holders")?;
        }
        self.delivered += 1;
        let fails = self.rng.chance(200);
        let report = if fails { Report::Failed { retry_after: None } } else { Report::Done };
        let reports_at = self.now_ms + self.rng.below(3000);
        let now_ms = self.now_ms;
        let client = &mut self.clients[number];
        client.held.insert(key, Holding { since: now_ms, reports_at, report, is_reported: false });
        check(client.held.len() <= CREDITS as usize, "a listener holds more than its credits")
    }

    /// Whether the client may count on what it holds.
    fn may_go_on(&self, client: &Client) -> bool {
        let since = |at: u64| Duration::from_millis(self.now_ms - at);
        let is_back_in_time =
            since(client.broken_at) < GRACE && client.broken_at > self.term_began.0;
        let is_asked = client.broken_at == self.term_began.0 && since(self.term_began.0) < HOLD;
        client.session.is_some() || is_back_in_time || is_asked
    }

    /// No message that this leader may hand out, and that never was, comes before this one.
    fn check_order(&self, row: &(QueueId, MessageKey)) -> Checked {
        let (began_at, began) = self.term_began;
        let is_over = ms(self.now_ms - began_at) >= HOLD;
        let first = (row.0.clone(), MessageKey::FIRST);
        let mut before = self.rows.range(&first..row);
        let is_passed_over = before.any(|((_, row), _)| {
            let may_go = is_over || row.id.enqueued.position() > began;
            may_go && self.told.contains(&row.id) && !self.ever.contains(&row.id)
        });
        check(!is_passed_over, "a message is handed out before an earlier one")
    }
}
