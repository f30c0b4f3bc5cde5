//! Reports that wait until what they say is logged.

use std::collections::HashMap;

use meridian_queue::{Answer, MessageKey, Report, Ticket};
use tokio::sync::oneshot;

use super::NotListening;

/// Of single messages, at most.
const MAX_WAITING: usize = 50_000;
/// Half of them may be failures, which a disk that is low does not take: successes, which free it,
/// have the rest.
const MAX_FAILURES: usize = MAX_WAITING / 2;

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
    tickets: HashMap<Ticket, Waiting>,
    /// How many of the tickets are of failures.
    failures: usize,
}

/// The report of a ticket.
struct Waiting {
    caller: u64,
    /// Which of the caller's reports it is.
    index: usize,
    is_failure: bool,
}

impl Reports {
    /// The reports with a ticket each. `None`: the caller was refused, or has asked for nothing.
    pub(super) fn begin(
        &mut self,
        reports: Vec<(MessageKey, Report)>,
        reply: oneshot::Sender<Result<Vec<Answer>, NotListening>>,
    ) -> Vec<(Ticket, MessageKey, Report)> {
        let failures = reports.iter().filter(|(_, report)| is_failure(report)).count();
        let count = reports.len();
        if !self.has_room(count, failures) {
            self.forget_callers_that_left();
        }
        if !self.has_room(count, failures) {
            let reason = "too many reports wait at the leader";
            drop(reply.send(Err(NotListening::Unavailable(reason))));
            return Vec::new();
        }
        if reports.is_empty() {
            drop(reply.send(Ok(Vec::new())));
            return Vec::new();
        }
        self.failures += failures;
        let caller = self.next;
        // A report without an answer has changed nothing.
        let answers = vec![Answer::Late; reports.len()];
        self.callers.insert(caller, Caller { answers, missing: reports.len(), reply });
        let ticketed = reports.into_iter().enumerate().map(|(index, (key, report))| {
            let ticket = Ticket(self.next);
            self.next += 1;
            let is_failure = is_failure(&report);
            self.tickets.insert(ticket, Waiting { caller, index, is_failure });
            (ticket, key, report)
        });
        ticketed.collect()
    }

    fn has_room(&self, reports: usize, failures: usize) -> bool {
        self.tickets.len() + reports <= MAX_WAITING
            && (failures == 0 || self.failures + failures <= MAX_FAILURES)
    }

    /// They ask again, and their reports go on.
    fn forget_callers_that_left(&mut self) {
        self.callers.retain(|_, caller| !caller.reply.is_closed());
        let callers = &self.callers;
        self.tickets.retain(|_, waiting| callers.contains_key(&waiting.caller));
        self.failures = self.tickets.values().filter(|waiting| waiting.is_failure).count();
    }

    pub(super) fn answered(&mut self, ticket: Ticket, answer: Answer) {
        let Some(Waiting { caller: number, index, is_failure }) = self.tickets.remove(&ticket)
        else {
            return;
        };
        self.failures -= usize::from(is_failure);
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

fn is_failure(report: &Report) -> bool {
    matches!(report, Report::Failed { .. })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    type Reply = oneshot::Receiver<Result<Vec<Answer>, NotListening>>;

    fn begin(reports: &mut Reports, count: usize, report: Report) -> (Vec<Ticket>, Reply) {
        let (reply, replied) = oneshot::channel();
        let begun = reports.begin(vec![(MessageKey::FIRST, report); count], reply);
        (begun.into_iter().map(|(ticket, ..)| ticket).collect(), replied)
    }

    #[test]
    fn failures_that_wait_for_a_disk_leave_room_for_successes_which_free_it() {
        let mut reports = Reports::default();
        let failed = Report::Failed { retry_after: Some(Duration::ZERO) };
        let (failures, _waits) = begin(&mut reports, MAX_FAILURES, failed);
        assert_eq!(failures.len(), MAX_FAILURES);
        let (tickets, mut refused) = begin(&mut reports, 1, failed);
        assert!(tickets.is_empty());
        assert!(matches!(refused.try_recv(), Ok(Err(NotListening::Unavailable(_)))));
        let (successes, mut done) = begin(&mut reports, MAX_WAITING - MAX_FAILURES, Report::Done);
        assert_eq!(successes.len(), MAX_WAITING - MAX_FAILURES);
        let (tickets, _refused) = begin(&mut reports, 1, Report::Done);
        assert!(tickets.is_empty(), "all together are bounded as well");
        successes.into_iter().for_each(|ticket| reports.answered(ticket, Answer::Done));
        assert!(done.try_recv().is_ok());
        let (tickets, _refused) = begin(&mut reports, 1, failed);
        assert!(tickets.is_empty(), "the room of successes is not theirs");
        reports.answered(failures[0], Answer::Late);
        assert_eq!(begin(&mut reports, 1, failed).0.len(), 1);
        assert_eq!(begin(&mut reports, 1, Report::Done).0.len(), 1);
    }

    /// They report again, and again, while a disk takes nothing.
    #[test]
    fn callers_that_left_leave_room_for_others() {
        let mut reports = Reports::default();
        let failed = Report::Failed { retry_after: None };
        for _ in 0..3 * (MAX_WAITING / 1000) {
            let report = if reports.failures < MAX_FAILURES { failed } else { Report::Done };
            assert_eq!(begin(&mut reports, 1000, report).0.len(), 1000);
        }
        let (waits, mut replied) = begin(&mut reports, 1000, failed);
        for _ in 0..3 * (MAX_WAITING / 1000) {
            drop(begin(&mut reports, 1000, Report::Done));
        }
        waits.into_iter().for_each(|ticket| reports.answered(ticket, Answer::Done));
        assert!(replied.try_recv().is_ok(), "a caller that waits keeps its place");
    }
}
