//! Reports that wait until what they say is logged.

use std::collections::HashMap;

use meridian_queue::{Answer, MessageKey, Report, Ticket};
use meridian_types::DatabaseId;
use tokio::sync::oneshot;

use super::NotListening;

/// Of single messages, at most. They count until they are logged, also where their callers have left:
/// the dispatcher knows of them for as long.
const MAX_WAITING: usize = 50_000;
/// Of one database.
const MAX_OF_DATABASE: usize = 10_000;
/// Half of them may be failures, which a disk that is low does not take: successes, which free it,
/// have the rest.
const MAX_FAILURES: usize = MAX_OF_DATABASE / 2;

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
    /// Of the databases that have any.
    of_database: HashMap<DatabaseId, Count>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    reports: usize,
    failures: usize,
}

/// The report of a ticket.
struct Waiting {
    database: DatabaseId,
    caller: u64,
    /// Which of the caller's reports it is.
    index: usize,
    is_failure: bool,
}

impl Reports {
    /// The reports with a ticket each. `None`: the caller was refused, or has asked for nothing.
    pub(super) fn begin(
        &mut self,
        database: DatabaseId,
        reports: Vec<(MessageKey, Report)>,
        reply: oneshot::Sender<Result<Vec<Answer>, NotListening>>,
    ) -> Vec<(Ticket, MessageKey, Report)> {
        let failures = reports.iter().filter(|(_, report)| is_failure(report)).count();
        let count = reports.len();
        if !self.has_room(database, count, failures) {
            let reason = "too many reports wait at the leader";
            drop(reply.send(Err(NotListening::Unavailable(reason))));
            return Vec::new();
        }
        if reports.is_empty() {
            drop(reply.send(Ok(Vec::new())));
            return Vec::new();
        }
        let of_database = self.of_database.entry(database).or_default();
        of_database.reports += count;
        of_database.failures += failures;
        let caller = self.next;
        // A report without an answer has changed nothing.
        let answers = vec![Answer::Late; reports.len()];
        self.callers.insert(caller, Caller { answers, missing: reports.len(), reply });
        let ticketed = reports.into_iter().enumerate().map(|(index, (key, report))| {
            let ticket = Ticket(self.next);
            self.next += 1;
            let is_failure = is_failure(&report);
            self.tickets.insert(ticket, Waiting { database, caller, index, is_failure });
            (ticket, key, report)
        });
        ticketed.collect()
    }

    fn has_room(&self, database: DatabaseId, reports: usize, failures: usize) -> bool {
        let of_database = self.of_database.get(&database).copied().unwrap_or_default();
        self.tickets.len() + reports <= MAX_WAITING
            && of_database.reports + reports <= MAX_OF_DATABASE
            && (failures == 0 || of_database.failures + failures <= MAX_FAILURES)
    }

    pub(super) fn answered(&mut self, ticket: Ticket, answer: Answer) {
        let Some(waiting) = self.tickets.remove(&ticket) else { return };
        let Waiting { database, caller: number, index, is_failure } = waiting;
        if let Some(of_database) = self.of_database.get_mut(&database) {
            of_database.reports -= 1;
            of_database.failures -= usize::from(is_failure);
            if *of_database == Count::default() {
                self.of_database.remove(&database);
            }
        }
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

    const FAILED: Report = Report::Failed { retry_after: Some(Duration::ZERO) };

    fn begin(reports: &mut Reports, of: u8, count: usize, report: Report) -> (Vec<Ticket>, Reply) {
        let (reply, replied) = oneshot::channel();
        let database = DatabaseId([of; 16]);
        let begun = reports.begin(database, vec![(MessageKey::FIRST, report); count], reply);
        (begun.into_iter().map(|(ticket, ..)| ticket).collect(), replied)
    }

    #[test]
    fn failures_that_wait_for_a_disk_leave_room_for_successes_which_free_it() {
        let mut reports = Reports::default();
        let (failures, _waits) = begin(&mut reports, 1, MAX_FAILURES, FAILED);
        assert_eq!(failures.len(), MAX_FAILURES);
        let (tickets, mut refused) = begin(&mut reports, 1, 1, FAILED);
        assert!(tickets.is_empty());
        assert!(matches!(refused.try_recv(), Ok(Err(NotListening::Unavailable(_)))));
        let rest = MAX_OF_DATABASE - MAX_FAILURES;
        let (successes, mut done) = begin(&mut reports, 1, rest, Report::Done);
        assert_eq!(successes.len(), rest);
        let (tickets, _refused) = begin(&mut reports, 1, 1, Report::Done);
        assert!(tickets.is_empty(), "all together are bounded as well");
        successes.into_iter().for_each(|ticket| reports.answered(ticket, Answer::Done));
        assert!(done.try_recv().is_ok());
        let (tickets, _refused) = begin(&mut reports, 1, 1, FAILED);
        assert!(tickets.is_empty(), "the room of successes is not theirs");
        reports.answered(failures[0], Answer::Late);
        assert_eq!(begin(&mut reports, 1, 1, FAILED).0.len(), 1);
        assert_eq!(begin(&mut reports, 1, 1, Report::Done).0.len(), 1);
    }

    /// Clients that report what was never theirs, and leave before they are answered.
    #[test]
    fn one_database_has_a_part_of_the_reports_that_wait_and_those_without_callers_count() {
        let mut reports = Reports::default();
        let mut tickets = Vec::new();
        while let (some, reply) = begin(&mut reports, 1, 1000, Report::Done)
            && !some.is_empty()
        {
            tickets.extend(some);
            drop(reply);
        }
        assert_eq!(tickets.len(), MAX_OF_DATABASE);
        for other in 2..=5 {
            let (some, _reply) = begin(&mut reports, other, MAX_OF_DATABASE, Report::Done);
            assert_eq!(some.len(), MAX_OF_DATABASE);
        }
        let (refused, _reply) = begin(&mut reports, 6, 1, Report::Done);
        assert!(refused.is_empty(), "all together are bounded as well");
        tickets.into_iter().for_each(|ticket| reports.answered(ticket, Answer::Done));
        assert_eq!(reports.of_database.len(), 4, "a database without reports is forgotten");
        assert_eq!(begin(&mut reports, 6, 1, Report::Done).0.len(), 1);
    }
}
