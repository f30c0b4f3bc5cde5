//! One queue: what is due, what is leased, and what is being logged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_types::{MessageId, Position, QueueId};

use crate::claims::{Claim, Claims};
use crate::event::{
    Action, Answer, Incarnation, Lane, ListenerId, MessageKey, Moment, Opening, Outcome, Refused,
    SessionId, Ticket,
};
use crate::leases::{Lease, Leases, Settlements, State};
use crate::listeners::{Listener, Listeners, MAX_CREDITS};
use crate::moved::Moved;
use crate::window::Window;

/// How long a new leader waits for listeners to say what they hold, before it hands out messages
/// that an earlier leader may have handed out. As long as a listener whose stream broke is waited for
/// by a leader that stays.
pub const HOLD: Duration = Duration::from_secs(5);
/// Messages that are handed out at a time, at most; then it is the turn of other queues.
const QUANTUM: usize = 64;
/// Rows that are read at a time, at most.
const READ_ROWS: usize = 128;
/// The shard's time may go on faster than the monotonic clock, so that what will be due is looked
/// for this often.
const LOOK: Duration = Duration::from_secs(1);
/// The time of an earlier leader, by which a message was due, may be ahead of this one's by so much.
const AHEAD_MS: u64 = 1000;
/// All leases are taken that the queue may have: when it is tried again.
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
    /// The queue hands out nothing.
    pub(crate) is_paused: bool,
    /// Leases that the queue may have beyond those that it has: by the bounds of its shard and of
    /// its database.
    pub(crate) room: usize,
    /// And for messages that a leader before has handed out.
    pub(crate) room_for_claims: usize,
    pub(crate) moved: &'a Moved,
    pub(crate) actions: &'a mut Vec<Action>,
}

impl Hold {
    /// Whether a listener may hold the message, and had no time yet to say so.
    fn keeps_back(&self, key: &MessageKey, now: Duration) -> bool {
        now < self.until && key.id.enqueued.position() <= self.began
    }
}

impl Context<'_> {
    pub(crate) fn answer(&mut self, ticket: Ticket, answer: Answer) {
        self.actions.push(Action::Answer { ticket, answer });
    }
}

#[derive(Debug)]
pub(crate) struct Queue {
    pub(crate) id: QueueId,
    pub(crate) window: Window,
    pub(crate) leases: Leases,
    pub(crate) claims: Claims,
    listeners: Listeners,
    /// Rows that listeners say are done, without a lease or with a failed one, and the reports that are
    /// answered when that has committed. As many as the driver lets reports wait.
    pub(crate) acked: BTreeMap<MessageKey, Vec<Ticket>>,
    pub(crate) deliveries: Settlements,
    pub(crate) failures: Settlements,
}

impl Queue {
    pub(crate) fn new(id: QueueId) -> Self {
        Self {
            id,
            window: Window::new(),
            leases: Leases::default(),
            claims: Claims::default(),
            listeners: Listeners::default(),
            acked: BTreeMap::new(),
            deliveries: Settlements::default(),
            failures: Settlements::default(),
        }
    }

    /// Whether nothing is known of it but from where on its rows are unread.
    pub(crate) fn is_idle(&self) -> bool {
        let is_settling =
            |lane: &Settlements| !(lane.decided.is_empty() && lane.logging.is_empty());
        self.listeners.is_empty()
            && self.leases() == 0
            && self.acked.is_empty()
            && !self.claims.is_checking()
            && !self.window.is_reading()
            && !is_settling(&self.deliveries)
            && !is_settling(&self.failures)
    }

    /// Claims count: they may become leases.
    pub(crate) fn leases(&self) -> usize {
        self.leases.len() + self.claims.len()
    }

    /// Of the message that no listener holds.
    pub(crate) fn first_due_ms(&self) -> Option<u64> {
        self.window.known().next().map(|key| key.due_ms)
    }

    pub(crate) fn is_leased(&self, key: &MessageKey) -> bool {
        self.leases.has_row(key) || self.claims.contains(key)
    }

    pub(crate) fn listener(&self, listener: ListenerId) -> Option<&Listener> {
        self.listeners.get(listener)
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

    pub(crate) fn deleted(&mut self, key: MessageKey, context: &mut Context<'_>) {
        self.window.delete(key);
        self.unclaim(&key, context);
        if self.leases.has_row(&key) && self.leases.settling(key.id).is_none() {
            self.unlease(key.id, context);
        }
    }

    /// A message that was to be delivered has no row any more.
    pub(crate) fn not_delivered(&mut self, key: MessageKey, context: &mut Context<'_>) {
        self.window.delete(key);
        if self.leases.has_row(&key)
            && self.leases.settling(key.id).is_none()
            && let Some(lease) = self.leases.remove(key.id)
        {
            self.listeners.returned(lease.holder);
            self.tell_released(lease.holder, key, context);
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
        let Opening { listener, session, incarnation, credits, lease, resumed, .. } = *opening;
        if let Some(before) = self.listeners.get(listener) {
            let is_outdated = resumed && incarnation < before.incarnation;
            let session = if is_outdated { session } else { before.session };
            context.actions.push(Action::Refuse { session, reason: Refused::Replaced });
            if is_outdated {
                return;
            }
        }
        let held: BTreeSet<MessageKey> =
            opening.held.iter().take(MAX_CREDITS as usize).copied().collect();
        let count = self.leases.of(listener).count() + self.claims.of(listener).len();
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.listeners.open(listener, (session, incarnation), credits, lease, count);
        let now = context.moment.now;
        let state = || State::begun(now, lease);
        self.resume(listener, incarnation, &held, &state(), context);
        for key in held {
            if self.may_hold(&key, context) {
                let (state, extended) = (state(), Vec::new());
                let claim = Claim { holder: listener, incarnation, state, extended };
                self.claim(key, claim, context);
            } else if !self.leases.is_held(&key, listener) && !self.claims.is_held(&key, listener) {
                context.actions.push(Action::Release { session, key });
            }
        }
    }

    /// Leases and claims of a listener from its sessions before: `held` goes on.
    fn resume(
        &mut self,
        listener: ListenerId,
        incarnation: Incarnation,
        held: &BTreeSet<MessageKey>,
        state: &State,
        context: &mut Context<'_>,
    ) {
        for id in self.leases.of(listener).collect::<Vec<_>>() {
            let Some(lease) = self.leases.get(id) else { continue };
            if matches!(lease.state, State::Settling(_)) {
                // It is reported already.
            } else if held.contains(&lease.key) {
                self.leases.resume(id, incarnation, state);
            } else if lease.incarnation == incarnation {
                self.withdraw(id);
            } else {
                self.settle(id, Outcome::Failed { retry_after: None }, Vec::new());
            }
        }
        for key in self.claims.of(listener) {
            let Some(claim) = self.claims.get_mut(&key) else { continue };
            if held.contains(&key) {
                claim.state.lengthen(state);
                claim.incarnation = incarnation;
            } else if matches!(claim.state, State::Settling(_)) {
                // It is reported already.
            } else if claim.incarnation == incarnation {
                self.unclaim(&key, context);
            } else {
                claim.state = State::Until(context.moment.now);
            }
        }
    }

    pub(crate) fn closed(&mut self, listener: ListenerId, session: SessionId, now: Duration) {
        if self.listeners.get(listener).is_none_or(|found| found.session != session) {
            return;
        }
        self.listeners.close(listener);
        for id in self.leases.of(listener).collect::<Vec<_>>() {
            self.leases.change(id, |state| state.break_off(now));
        }
        for key in self.claims.of(listener) {
            if let Some(claim) = self.claims.get_mut(&key) {
                claim.state.break_off(now);
            }
        }
        if self.listeners.is_empty() {
            self.window.forget();
        }
    }

    /// Does what the time, and what has happened, allow. When to do so again.
    pub(crate) fn advance(&mut self, context: &mut Context<'_>) -> Option<Duration> {
        while let Some((end, id)) = self.leases.first_end()
            && end <= context.moment.now
        {
            self.settle(id, Outcome::Failed { retry_after: None }, Vec::new());
        }
        if !context.is_paused {
            self.hand_out(context);
        }
        if self.looks_for_rows() && self.window.wants_read(context.moment.time_ms) {
            let credit = usize::try_from(self.listeners.credit()).unwrap_or(usize::MAX);
            let wanted = credit.saturating_mul(2).clamp(8, READ_ROWS);
            if let Some((from, limit)) = self.window.begin_read(wanted) {
                context.actions.push(Action::Read { queue: self.id.clone(), from, limit });
            }
        }
        if let Some(keys) = self.claims.begin_check() {
            context.actions.push(Action::Check { queue: self.id.clone(), keys });
        }
        for lane in [Lane::Deliveries, Lane::Failures] {
            self.log(lane, context);
        }
        self.alarm(context)
    }

    /// For listeners that have room; and for the first message that waits while none has, since
    /// operators see how long it does.
    fn looks_for_rows(&self) -> bool {
        self.listeners.credit() > 0
            || !self.listeners.is_empty() && self.window.known().next().is_none()
    }

    fn hand_out(&mut self, context: &mut Context<'_>) {
        let room = context.room.min(QUANTUM);
        let credit = usize::try_from(self.listeners.credit()).unwrap_or(usize::MAX);
        let time_ms = context.moment.time_ms;
        let free = self.next_free(context).take_while(|key| key.due_ms <= time_ms);
        let keys: Vec<MessageKey> = free.take(room.min(credit)).collect();
        for key in keys {
            // A row that is known by two keys for once is handed out under the first.
            if self.leases.get(key.id).is_some() {
                continue;
            }
            let Some((holder, session, incarnation, lease)) = self.listeners.next() else { return };
            let until = lease.map(|lease| context.moment.now + lease);
            self.window.take(key);
            let state = State::begun(context.moment.now, lease);
            self.leases.insert(Lease { key, holder, incarnation, state });
            self.listeners.leased(holder);
            context.room -= 1;
            context.actions.push(Action::Deliver { session, key, until });
        }
    }

    /// The known messages that no listener holds, or may hold, in order.
    fn next_free(&self, context: &Context<'_>) -> impl Iterator<Item = MessageKey> {
        let (hold, now) = (context.hold, context.moment.now);
        self.window.known().filter(move |key| {
            let is_kept_back = self.claims.contains(key) || self.acked.contains_key(key);
            self.leases.get(key.id).is_none() && !is_kept_back && !hold.keeps_back(key, now)
        })
    }

    fn alarm(&self, context: &Context<'_>) -> Option<Duration> {
        let Moment { now, time_ms } = context.moment;
        let end = self.leases.first_end().map(|(end, _)| end);
        if !self.looks_for_rows() {
            return end;
        }
        let at = |due_ms: u64| {
            if due_ms > time_ms {
                context.moment.of_time(due_ms).min(now + LOOK)
            } else if context.room == 0 {
                now + FULL_PAUSE
            } else {
                now
            }
        };
        let free = self.next_free(context).next().filter(|_| !context.is_paused);
        let free = free.map(|key| at(key.due_ms));
        // Rows that are due and unread are read when there is room for them.
        let unread = self.window.unread().filter(|key| key.due_ms > time_ms);
        let unread = unread.map(|key| at(key.due_ms));
        let held_back = (now < context.hold.until && self.window.known().next().is_some())
            .then_some(context.hold.until);
        end.into_iter().chain(free).chain(unread).chain(held_back).min()
    }

    /// Whether a listener may hold a message that has no lease here: a message that an earlier
    /// leader handed out. A lease that ran out here has moved its message.
    pub(crate) fn may_hold(&self, key: &MessageKey, context: &Context<'_>) -> bool {
        let handed_out_ms = context.moment.time_ms + AHEAD_MS;
        key.id.enqueued.position() <= context.hold.began
            && key.due_ms <= handed_out_ms
            && self.leases.get(key.id).is_none()
            && !self.claims.contains(key)
            && !context.moved.knows(key.id)
            && context.room_for_claims > 0
    }

    pub(crate) fn claim(&mut self, key: MessageKey, claim: Claim, context: &mut Context<'_>) {
        context.room = context.room.saturating_sub(1);
        context.room_for_claims = context.room_for_claims.saturating_sub(1);
        self.listeners.leased(claim.holder);
        self.claims.insert(key, claim);
    }

    /// It claims nothing: its reports come too late.
    fn unclaim(&mut self, key: &MessageKey, context: &mut Context<'_>) {
        let Some(Claim { holder, state, extended, .. }) = self.claims.remove(key) else { return };
        self.listeners.returned(holder);
        let failed = if let State::Settling(failed) = state { failed.tickets } else { Vec::new() };
        let late = extended.into_iter().chain(failed);
        late.for_each(|ticket| context.answer(ticket, Answer::Late));
        self.tell_released(holder, *key, context);
    }

    /// The claimed rows that were looked for are leased, where they are there.
    pub(crate) fn checked(&mut self, gone: &[MessageKey], context: &mut Context<'_>) {
        let gone: BTreeSet<&MessageKey> = gone.iter().collect();
        for key in self.claims.end_check() {
            if gone.contains(&key) || self.leases.get(key.id).is_some() {
                self.unclaim(&key, context);
                continue;
            }
            let Some(Claim { holder, incarnation, state, extended }) = self.claims.remove(&key)
            else {
                continue;
            };
            extended.into_iter().for_each(|ticket| context.answer(ticket, Answer::Done));
            if let State::Settling(settling) = &state {
                self.lane(settling.outcome.lane()).decided.push_back(key);
            }
            self.window.take(key);
            self.leases.insert(Lease { key, holder, incarnation, state });
        }
    }

    /// Its holder has the message no more, and is told so.
    pub(crate) fn unlease(&mut self, id: MessageId, context: &mut Context<'_>) -> Option<Lease> {
        let lease = self.leases.remove(id)?;
        self.listeners.released(lease.holder);
        self.tell_released(lease.holder, lease.key, context);
        Some(lease)
    }

    fn tell_released(&self, holder: ListenerId, key: MessageKey, context: &mut Context<'_>) {
        if let Some(listener) = self.listeners.get(holder) {
            let session = listener.session;
            context.actions.push(Action::Release { session, key });
        }
    }

    /// A message did not reach its holder: as if it had not been handed out.
    fn withdraw(&mut self, id: MessageId) {
        if let Some(lease) = self.leases.remove(id) {
            self.listeners.returned(lease.holder);
            self.put(lease.key);
        }
    }
}
