//! Reports that wait until what they say is logged.

use std::collections::HashMap;

use meridian_queue::{Answer, MessageKey, Report, Ticket};
use tokio::sync::oneshot;

use super::NotListening;

/// Of single messages, at most.
const MAX_WAITING: usize = 50_000;

/// A caller, and the answers that it has so far.
struct Caller {
    answers: Vec<Answer>,
    missing: usize,
    reply: oneshot::Sender<Result<Vec<Answer>, NotListening>>,
}

#[derive(Default)]
pub(super) struct Reports {
    next: u64,
    callers: HashMap<u64, Caller>,
    /// The caller of each ticket, and which of its reports that is.
    tickets: HashMap<Ticket, (u64, usize)>,
}

impl Reports {
    /// The reports with a ticket each. `None`: the caller was refused, or has asked for nothing.
    pub(super) fn begin(
        &mut self,
        reports: Vec<(MessageKey, Report)>,
        reply: oneshot::Sender<Result<Vec<Answer>, NotListening>>,
    ) -> Vec<(Ticket, MessageKey, Report)> {
        if self.tickets.len() + reports.len() > MAX_WAITING {
            let reason = "too many reports wait at the leader";
            drop(reply.send(Err(NotListening::Unavailable(reason))));
            return Vec::new();
        }
        if reports.is_empty() {
            drop(reply.send(Ok(Vec::new())));
            return Vec::new();
        }
        let caller = self.next;
        // A report without an answer has changed nothing.
        let answers = vec![Answer::Late; reports.len()];
        self.callers.insert(caller, Caller { answers, missing: reports.len(), reply });
        let ticketed = reports.into_iter().enumerate().map(|(index, (key, report))| {
            let ticket = Ticket(self.next);
            self.next += 1;
            self.tickets.insert(ticket, (caller, index));
            (ticket, key, report)
        });
        ticketed.collect()
    }

    pub(super) fn answered(&mut self, ticket: Ticket, answer: Answer) {
        let Some((number, index)) = self.tickets.remove(&ticket) else { return };
        let Some(caller) = self.callers.get_mut(&number) else { return };
        if let Some(place) = caller.answers.get_mut(index) {
            *place = answer;
        }
        caller.missing -= 1;
        if caller.missing == 0
            && let Some(Caller { answers, reply, .. }) = self.callers.remove(&number)
        {
            // A caller that has left asks again.
            drop(reply.send(Ok(answers)));
        }
    }
}
