//! Reports on the messages of one queue, and the settlements that follow from them.

use meridian_types::MessageId;

use crate::claims::Claim;
use crate::event::{
    Action, Answer, Incarnation, Lane, ListenerId, MessageKey, Outcome, Report, Ticket,
};
use crate::leases::{Lease, Settlements, Settling, State};
use crate::queue::{Context, Queue};

/// Settlements that are logged at a time, at most: of the largest messages, each of which is read to
/// be settled, no more bytes than a transaction may write.
pub const MAX_SETTLEMENTS: usize = 64;

impl Queue {
    pub(crate) fn reported(
        &mut self,
        listener: ListenerId,
        (ticket, key, report): (Ticket, MessageKey, Report),
        context: &mut Context<'_>,
    ) {
        match report {
            Report::Done => self.reported_done(ticket, key, context),
            Report::Failed { retry_after } => {
                let outcome = Outcome::Failed { retry_after };
                self.reported_failed(listener, ticket, key, outcome, context);
            }
            Report::Extended { by } => {
                let until = State::Until(context.moment.now + by);
                self.reported_extended(listener, ticket, key, until, context);
            }
        }
    }

    /// It counts where it comes from the holder.
    fn reported_extended(
        &mut self,
        listener: ListenerId,
        ticket: Ticket,
        key: MessageKey,
        until: State,
        context: &mut Context<'_>,
    ) {
        if self.leases.is_held(&key, listener) && self.leases.settling(key.id).is_none() {
            self.leases.change(key.id, |state| state.lengthen(&until));
            return context.answer(ticket, Answer::Done);
        }
        if self.claims.is_held(&key, listener)
            && let Some(claim) = self.claims.get_mut(&key)
            && !matches!(claim.state, State::Settling(_))
        {
            claim.state.lengthen(&until);
            claim.extended.push(ticket);
        } else if self.may_report(&key, context) {
            let (incarnation, extended) = (self.incarnation(listener), vec![ticket]);
            let claim = Claim { holder: listener, incarnation, state: until, extended };
            self.claim(key, claim, context);
        } else {
            context.answer(ticket, Answer::Late);
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
        let own_claim = self.claims.get_mut(&key).filter(|claim| claim.holder == listener);
        let settling = match own_claim {
            Some(Claim { state: State::Settling(settling), .. }) => Some(settling),
            Some(claim) => {
                claim.state = decided(outcome, vec![ticket]);
                return;
            }
            None if self.leases.is_held(&key, listener) => self.leases.settling(key.id),
            None => {
                if !self.may_report(&key, context) {
                    return context.answer(ticket, Answer::Late);
                }
                let (incarnation, extended) = (self.incarnation(listener), Vec::new());
                let state = decided(outcome, vec![ticket]);
                let claim = Claim { holder: listener, incarnation, state, extended };
                return self.claim(key, claim, context);
            }
        };
        match settling {
            // The same report again, or another about the same attempt.
            Some(settling) if settling.outcome != Outcome::Delivered => {
                settling.tickets.push(ticket);
            }
            Some(_) => context.answer(ticket, Answer::Late),
            None => self.settle(key.id, outcome, vec![ticket]),
        }
    }

    /// Whether a listener that has not claimed the message may say that it holds it: while this
    /// leader waits for claims.
    fn may_report(&self, key: &MessageKey, context: &Context<'_>) -> bool {
        let is_asked = context.moment.now < context.hold.until;
        is_asked && self.may_hold(key, context) && !self.acked.contains_key(key)
    }

    /// It counts whichever listener holds the message by now, and wherever its row is; also where a
    /// failure is being logged, which a disk that is low does not take: what commits first counts.
    fn reported_done(&mut self, ticket: Ticket, key: MessageKey, context: &mut Context<'_>) {
        let Some(row) = self.leases.get(key.id).map(|lease| lease.key) else {
            let due_ms = context.moved.due_ms(key.id).unwrap_or(key.due_ms);
            return self.log_success(ticket, MessageKey { due_ms, ..key });
        };
        let Some(settling) = self.leases.settling(key.id) else {
            return self.settle(key.id, Outcome::Delivered, vec![ticket]);
        };
        match settling.outcome {
            Outcome::Delivered => settling.tickets.push(ticket),
            // It follows the message, once that is known to have moved.
            Outcome::Failed { .. } if settling.moved_to.is_some() => {
                self.acked.entry(row).or_default().push(ticket);
            }
            Outcome::Failed { .. } => self.log_success(ticket, row),
        }
    }

    fn log_success(&mut self, ticket: Ticket, row: MessageKey) {
        let tickets = self.acked.entry(row).or_default();
        if tickets.is_empty() {
            self.deliveries.decided.push_back(row);
        }
        tickets.push(ticket);
    }

    fn incarnation(&self, listener: ListenerId) -> Incarnation {
        self.listener(listener).map(|listener| listener.incarnation).unwrap_or_default()
    }

    pub(crate) fn settle(&mut self, id: MessageId, outcome: Outcome, tickets: Vec<Ticket>) {
        if let Some(key) = self.leases.get(id).map(|lease| lease.key) {
            self.leases.change(id, |state| *state = decided(outcome, tickets));
            self.lane(outcome.lane()).decided.push_back(key);
        }
    }

    pub(crate) fn lane(&mut self, lane: Lane) -> &mut Settlements {
        match lane {
            Lane::Deliveries => &mut self.deliveries,
            Lane::Failures => &mut self.failures,
        }
    }

    /// Of a lease whose outcome is decided, or of an acknowledgement without a lease.
    fn outcome(&mut self, key: &MessageKey, lane: Lane) -> Option<Outcome> {
        let is_acked = lane == Lane::Deliveries && self.acked.contains_key(key);
        let is_leased = self.leases.has_row(key);
        let settling = self.leases.settling(key.id).filter(|_| is_leased);
        let outcome = settling.map(|settling| settling.outcome);
        let outcome = outcome.filter(|outcome| outcome.lane() == lane);
        outcome.or(is_acked.then_some(Outcome::Delivered))
    }

    pub(crate) fn log(&mut self, lane: Lane, context: &mut Context<'_>) {
        if !self.lane(lane).logging.is_empty() {
            return;
        }
        let mut settlements = Vec::new();
        while settlements.len() < MAX_SETTLEMENTS
            && let Some(key) = self.lane(lane).decided.pop_front()
        {
            settlements.extend(self.outcome(&key, lane).map(|outcome| (key, outcome)));
        }
        if !settlements.is_empty() {
            self.lane(lane).logging = settlements.iter().map(|(key, _)| *key).collect();
            context.actions.push(Action::Settle { queue: self.id.clone(), lane, settlements });
        }
    }

    pub(crate) fn settled(&mut self, lane: Lane, context: &mut Context<'_>) {
        for key in std::mem::take(&mut self.lane(lane).logging) {
            let is_leased = self.leases.has_row(&key);
            let settling = self.leases.settling(key.id).filter(|_| is_leased);
            // Behind a success no row is left that could fail; a row that has moved had failed before.
            let is_over = settling.map(|settling| {
                settling.outcome.lane() == lane
                    || (lane == Lane::Deliveries && settling.moved_to.is_none())
            });
            match is_over {
                Some(true) => {
                    if let Some(Lease { state: State::Settling(settling), .. }) =
                        self.unlease(key.id, context)
                    {
                        self.lease_settled(key, settling, context);
                    }
                }
                None if lane == Lane::Deliveries => self.acks_settled(key, context),
                Some(false) | None => {}
            }
        }
    }

    fn lease_settled(&mut self, key: MessageKey, settling: Settling, context: &mut Context<'_>) {
        let Settling { outcome, tickets, moved_to } = settling;
        // Rows that were read before may have it yet.
        self.window.delete(key);
        if let Some(moved) = moved_to {
            self.put(moved);
        }
        let is_done = outcome == Outcome::Delivered;
        for ticket in tickets {
            if is_done {
                self.ack_settled(ticket, key, context);
            } else {
                context.answer(ticket, Answer::Done);
            }
        }
        self.acks_settled(key, context);
    }

    fn acks_settled(&mut self, key: MessageKey, context: &mut Context<'_>) {
        for ticket in self.acked.remove(&key).unwrap_or_default() {
            self.ack_settled(ticket, key, context);
        }
    }

    /// It is done, unless the message is elsewhere by now.
    fn ack_settled(&mut self, ticket: Ticket, key: MessageKey, context: &mut Context<'_>) {
        let has_moved = context.moved.due_ms(key.id).is_some_and(|due_ms| due_ms != key.due_ms);
        if has_moved || self.leases.get(key.id).is_some() {
            self.reported_done(ticket, key, context);
        } else {
            context.answer(ticket, Answer::Done);
        }
    }
}

fn decided(outcome: Outcome, tickets: Vec<Ticket>) -> State {
    State::Settling(Settling { outcome, tickets, moved_to: None })
}
