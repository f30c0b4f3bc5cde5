//! The queue of one database: what is due, what is leased, and what is being logged.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use meridian_types::{DatabaseId, MessageId, Position};

use crate::event::{
    Action, Answer, Lane, ListenerId, MessageKey, Moment, Opening, Outcome, Refused, Report,
    SessionId, Ticket,
};
use crate::leases::{GRACE, Lease, Leases, MAX_LEASES, Settling, State};
use crate::listeners::{Listeners, MAX_CREDITS, MAX_LISTENERS};
use crate::moved::Moved;
use crate::window::Window;

/// How long a new leader waits for listeners to say what they hold, before it hands out messages
/// that an earlier leader may have handed out.
pub const HOLD: Duration = Duration::from_secs(3);
/// Settlements that are logged at a time, at most.
pub const MAX_SETTLEMENTS: usize = 500;
/// Messages that are handed out at a time, at most; then it is the turn of other databases.
const QUANTUM: usize = 64;
/// Rows that are read at a time, at most.
const READ_ROWS: usize = 128;
/// The shard's time may go on faster than the monotonic clock, so that what will be due is looked
/// for this often.
const LOOK: Duration = Duration::from_secs(1);
/// The leases of a shard are all taken: when it is tried again.
const FULL_PAUSE: Duration = Duration::from_millis(100);

/// Messages that listeners may hold from before this term.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Hold {
    pub(crate) began: Position,
    pub(crate) until: Duration,
}

/// The parts that all queues of a shard have in common, while one event is dealt with.
pub(crate) struct Context<'a> {
    pub(crate) moment: Moment,
    pub(crate) hold: Hold,
    /// Leases that the shard may give beyond those that there are.
    pub(crate) room: usize,
    pub(crate) moved: &'a mut Moved,
    pub(crate) actions: &'a mut Vec<Action>,
}

impl Hold {
    /// Whether a listener may hold the message, and had no time yet to say so.
    fn keeps_back(&self, key: &MessageKey, now: Duration) -> bool {
        now < self.until && key.id.enqueued.position() <= self.began
    }
}

impl Context<'_> {
    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.actions.push(Action::Answer { ticket, answer });
    }
}

#[derive(Debug)]
pub(crate) struct Queue {
    database: DatabaseId,
    window: Window,
    leases: Leases,
    listeners: Listeners,
    deliveries: Settlements,
    failures: Settlements,
}

/// Of one [`Lane`].
#[derive(Debug, Default)]
struct Settlements {
    /// Messages whose outcome is decided and not yet being logged.
    decided: VecDeque<MessageId>,
    logging: Vec<MessageId>,
}

impl Queue {
    pub(crate) fn new(database: DatabaseId) -> Self {
        Self {
            database,
            window: Window::new(),
            leases: Leases::default(),
            listeners: Listeners::default(),
            deliveries: Settlements::default(),
            failures: Settlements::default(),
        }
    }

    pub(crate) fn leases(&self) -> usize {
        self.leases.len()
    }

    pub(crate) fn listeners(&self) -> usize {
        self.listeners.len()
    }

    pub(crate) fn put(&mut self, key: MessageKey) {
        if let Some(settling) = self.leases.settling(key.id) {
            settling.moved_to = Some(key);
        } else if self.leases.has_row(&key) {
            // It is known already.
        } else if self.listeners.is_empty() {
            self.window.leave_unread(key);
        } else {
            self.window.put(key);
        }
    }

    /// Also: a message that was to be delivered has no row any more.
    pub(crate) fn deleted(&mut self, key: MessageKey, context: &mut Context<'_>) {
        self.window.delete(key);
        if self.leases.has_row(&key) && self.leases.settling(key.id).is_none() {
            self.unlease(key.id, context);
        }
    }

    pub(crate) fn read(&mut self, rows: &[MessageKey], next: Option<MessageKey>) {
        let leases = &self.leases;
        self.window.read(rows, next, |row| leases.has_row(row));
        if self.listeners.is_empty() {
            self.window.forget();
        }
    }

    pub(crate) fn opened(&mut self, opening: &Opening, context: &mut Context<'_>) {
        let Opening { listener, session, credits, lease, resumed, .. } = *opening;
        if let Some(before) = self.listeners.get(listener) {
            let (session, reason) = (before.session, Refused::Replaced);
            context.actions.push(Action::Refuse { session, reason });
        } else if self.listeners.len() >= MAX_LISTENERS {
            let reason = Refused::TooManyListeners;
            context.actions.push(Action::Refuse { session, reason });
            return;
        }
        let held: BTreeMap<MessageId, MessageKey> =
            opening.held.iter().take(MAX_CREDITS as usize).map(|key| (key.id, *key)).collect();
        let own: Vec<MessageId> = self.leases.of(listener).collect();
        let count = u32::try_from(own.len()).unwrap_or(u32::MAX);
        self.listeners.open(listener, session, credits, lease, count);
        let until = lease.map(|lease| context.moment.now + lease);
        let state = || until.map_or(State::Live, State::Until);
        for id in
            own.into_iter().filter(|id| self.leases.settling(*id).is_none()).collect::<Vec<_>>()
        {
            if held.get(&id).is_some_and(|key| self.leases.has_row(key)) {
                self.leases.lengthen(id, state());
            } else if resumed {
                self.withdraw(id);
            } else {
                self.settle(id, Outcome::Failed { retry_after: None }, Vec::new());
            }
        }
        let mut claimed = Vec::new();
        for key in held.into_values() {
            if self.may_hold(&key, context) {
                self.lease(key, listener, state());
                claimed.push(key);
            } else if !self.leases.is_held(&key, listener) {
                context.actions.push(Action::Release { session, key });
            }
        }
        if !claimed.is_empty() {
            // Its messages may have been settled before this term.
            let database = self.database;
            context.actions.push(Action::Check { database, keys: claimed });
        }
    }

    pub(crate) fn closed(&mut self, listener: ListenerId, session: SessionId, now: Duration) {
        if self.listeners.get(listener).is_none_or(|found| found.session != session) {
            return;
        }
        self.listeners.close(listener);
        for id in self.leases.of(listener).collect::<Vec<_>>() {
            if matches!(self.leases.get(id), Some(Lease { state: State::Live, .. })) {
                self.leases.set(id, State::Until(now + GRACE));
            }
        }
        if self.listeners.is_empty() {
            self.window.forget();
        }
    }

    pub(crate) fn reported(
        &mut self,
        listener: ListenerId,
        (ticket, key, report): (Ticket, MessageKey, Report),
        context: &mut Context<'_>,
    ) {
        match report {
            Report::Done => self.reported_done(listener, ticket, key, context),
            Report::Failed { retry_after } => {
                let outcome = Outcome::Failed { retry_after };
                self.reported_failed(listener, ticket, key, outcome, context);
            }
            Report::Extended { by } => {
                let end = context.moment.now + by;
                let is_own = self.leases.is_held(&key, listener);
                let answer = match self.leases.get(key.id).map(|lease| &lease.state) {
                    Some(State::Live) if is_own => Answer::Done,
                    Some(State::Until(_)) if is_own => {
                        self.leases.lengthen(key.id, State::Until(end));
                        Answer::Done
                    }
                    None if self.may_hold(&key, context) => {
                        self.lease(key, listener, State::Until(end));
                        let (database, keys) = (self.database, vec![key]);
                        context.actions.push(Action::Check { database, keys });
                        Answer::Done
                    }
                    _ => Answer::Late,
                };
                context.answer(ticket, answer);
            }
        }
    }

    /// It counts where it comes from the holder.
    fn reported_failed(
        &mut self,
        listener: ListenerId,
        ticket: Ticket,
        key: MessageKey,
        outcome: Outcome,
        context: &mut Context<'_>,
    ) {
        let is_own = self.leases.is_held(&key, listener);
        match self.leases.settling(key.id) {
            // The same report again, or another about the same attempt.
            Some(settling) if is_own && settling.outcome != Outcome::Delivered => {
                settling.tickets.push(ticket);
                return;
            }
            Some(_) => return context.answer(ticket, Answer::Late),
            None => {}
        }
        if !is_own {
            if !self.may_hold(&key, context) {
                return context.answer(ticket, Answer::Late);
            }
            self.lease(key, listener, State::Live);
        }
        self.settle(key.id, outcome, vec![ticket]);
    }

    /// It counts whichever listener holds the message by now, and wherever its row is.
    fn reported_done(
        &mut self,
        listener: ListenerId,
        ticket: Ticket,
        key: MessageKey,
        context: &mut Context<'_>,
    ) {
        match self.leases.settling(key.id) {
            Some(settling) => match settling.outcome {
                Outcome::Delivered => settling.tickets.push(ticket),
                Outcome::Failed { .. } => settling.done_after_all.push(ticket),
            },
            None => {
                if self.leases.get(key.id).is_none() {
                    let due_ms = context.moved.due_ms(key.id).unwrap_or(key.due_ms);
                    self.lease(MessageKey { due_ms, id: key.id }, listener, State::Live);
                }
                self.settle(key.id, Outcome::Delivered, vec![ticket]);
            }
        }
    }

    /// Whether a listener may hold a message that has no lease here: a message that an earlier
    /// leader handed out. A lease that ran out here has moved its message.
    fn may_hold(&self, key: &MessageKey, context: &Context<'_>) -> bool {
        self.leases.get(key.id).is_none()
            && !context.moved.knows(key.id)
            && self.leases.len() < MAX_LEASES
    }

    fn lane(&mut self, lane: Lane) -> &mut Settlements {
        match lane {
            Lane::Deliveries => &mut self.deliveries,
            Lane::Failures => &mut self.failures,
        }
    }

    pub(crate) fn settled(&mut self, lane: Lane, context: &mut Context<'_>) {
        for id in std::mem::take(&mut self.lane(lane).logging) {
            let Some(Lease { key, holder, state: State::Settling(settling) }) =
                self.unlease(id, context)
            else {
                continue;
            };
            // Rows that were read before may have it yet.
            self.window.delete(key);
            settling.tickets.into_iter().for_each(|ticket| context.answer(ticket, Answer::Done));
            let Some(moved) = settling.moved_to else {
                let done = settling.done_after_all.into_iter();
                done.for_each(|ticket| context.answer(ticket, Answer::Done));
                continue;
            };
            context.moved.insert(moved);
            if settling.done_after_all.is_empty() {
                self.put(moved);
                continue;
            }
            self.lease(moved, holder, State::Live);
            self.settle(id, Outcome::Delivered, settling.done_after_all);
        }
    }

    /// Does what the time, and what has happened, allow. When to do so again.
    pub(crate) fn advance(&mut self, context: &mut Context<'_>) -> Option<Duration> {
        while let Some((end, id)) = self.leases.first_end()
            && end <= context.moment.now
        {
            self.settle(id, Outcome::Failed { retry_after: None }, Vec::new());
        }
        self.hand_out(context);
        let credit = usize::try_from(self.listeners.credit()).unwrap_or(usize::MAX);
        if credit > 0 && self.window.wants_read(context.moment.time_ms) {
            let wanted = credit.saturating_mul(2).clamp(8, READ_ROWS);
            if let Some((from, limit)) = self.window.begin_read(wanted) {
                context.actions.push(Action::Read { database: self.database, from, limit });
            }
        }
        for lane in [Lane::Deliveries, Lane::Failures] {
            self.log(lane, context);
        }
        self.alarm(context)
    }

    fn log(&mut self, lane: Lane, context: &mut Context<'_>) {
        let settlements = self.lane(lane);
        if !settlements.logging.is_empty() || settlements.decided.is_empty() {
            return;
        }
        let count = settlements.decided.len().min(MAX_SETTLEMENTS);
        let logging: Vec<MessageId> = settlements.decided.drain(..count).collect();
        let outcome = |id: &MessageId| match self.leases.get(*id)? {
            Lease { key, state: State::Settling(settling), .. } => Some((*key, settling.outcome)),
            Lease { .. } => None,
        };
        let settlements = logging.iter().filter_map(outcome).collect();
        context.actions.push(Action::Settle { database: self.database, lane, settlements });
        self.lane(lane).logging = logging;
    }

    fn hand_out(&mut self, context: &mut Context<'_>) {
        let room = context.room.min(MAX_LEASES.saturating_sub(self.leases.len())).min(QUANTUM);
        let credit = usize::try_from(self.listeners.credit()).unwrap_or(usize::MAX);
        let time_ms = context.moment.time_ms;
        let free = self.next_free(context).take_while(|key| key.due_ms <= time_ms);
        let keys: Vec<MessageKey> = free.take(room.min(credit)).collect();
        for key in keys {
            let Some((listener, session, lease)) = self.listeners.next() else { return };
            let until = lease.map(|lease| context.moment.now + lease);
            self.lease(key, listener, until.map_or(State::Live, State::Until));
            context.room -= 1;
            context.actions.push(Action::Deliver { session, key, until });
        }
    }

    /// The known messages that no listener holds, or may hold, in order.
    fn next_free(&self, context: &Context<'_>) -> impl Iterator<Item = MessageKey> {
        let (leases, hold, now) = (&self.leases, context.hold, context.moment.now);
        self.window
            .known()
            .filter(move |key| leases.get(key.id).is_none() && !hold.keeps_back(key, now))
    }

    fn alarm(&self, context: &Context<'_>) -> Option<Duration> {
        let Moment { now, time_ms } = context.moment;
        let end = self.leases.first_end().map(|(end, _)| end);
        if self.listeners.credit() == 0 {
            return end;
        }
        let at = |due_ms: u64| {
            if due_ms > time_ms {
                context.moment.of_time(due_ms).min(now + LOOK)
            } else if context.room == 0 || self.leases.len() >= MAX_LEASES {
                now + FULL_PAUSE
            } else {
                now
            }
        };
        let free = self.next_free(context).next().map(|key| at(key.due_ms));
        // Rows that are due and unread are read when there is room for them.
        let unread = self.window.unread().filter(|key| key.due_ms > time_ms);
        let unread = unread.map(|key| at(key.due_ms));
        let held_back = (now < context.hold.until && self.window.known().next().is_some())
            .then_some(context.hold.until);
        end.into_iter().chain(free).chain(unread).chain(held_back).min()
    }

    fn lease(&mut self, key: MessageKey, holder: ListenerId, state: State) {
        self.window.take(key);
        self.leases.insert(key, holder, state);
        self.listeners.leased(holder);
    }

    /// Its holder has the message no more, and is told so.
    fn unlease(&mut self, id: MessageId, context: &mut Context<'_>) -> Option<Lease> {
        let lease = self.leases.remove(id)?;
        self.listeners.released(lease.holder);
        if let Some(listener) = self.listeners.get(lease.holder) {
            let (session, key) = (listener.session, lease.key);
            context.actions.push(Action::Release { session, key });
        }
        Some(lease)
    }

    /// A message did not reach its holder: as if it had not been handed out.
    fn withdraw(&mut self, id: MessageId) {
        if let Some(lease) = self.leases.remove(id) {
            self.listeners.released(lease.holder);
            self.put(lease.key);
        }
    }

    fn settle(&mut self, id: MessageId, outcome: Outcome, tickets: Vec<Ticket>) {
        let settling = Settling { outcome, tickets, moved_to: None, done_after_all: Vec::new() };
        self.leases.set(id, State::Settling(settling));
        self.lane(outcome.lane()).decided.push_back(id);
    }
}
