//! The rules, one function each.

use meridian_types::MessageId;

use super::course::{Breaks, Course, courses};
use super::{
    Enqueue, EnqueueOutcome, Handed, QueueHistory, QueueRule, QueueStatistics, QueueVerdict,
    QueueViolation, TRANSIT_NS, Verdict,
};
use crate::allowance::{Allowance, LostWindows};

/// Due times are whole milliseconds of clocks of one machine.
const CLOCK_TOLERANCE_NS: u64 = 5_000_000;

/// One message under judgement.
struct Case<'a> {
    number: u64,
    enqueue: &'a Enqueue,
    course: &'a Course<'a>,
    breaks: &'a Breaks,
    violations: &'a mut Vec<QueueViolation>,
}

pub(super) fn check(history: &QueueHistory, allowance: &Allowance) -> QueueVerdict {
    let (courses, breaks) = courses(history);
    let windows = LostWindows::of(allowance);
    let newest = allowance.lost.iter().map(|window| window.epoch).max();
    let mut violations = Vec::new();
    let mut statistics = QueueStatistics::default();
    for (number, course) in &courses {
        let [enqueue] = course.enqueues[..] else {
            let text = format!("{} enqueues of it were invoked", course.enqueues.len());
            violations.push(QueueViolation { rule: QueueRule::WellFormed, message: *number, text });
            continue;
        };
        let mut case =
            Case { number: *number, enqueue, course, breaks: &breaks, violations: &mut violations };
        case.well_formed();
        case.enqueued(&windows);
        let version = match &enqueue.outcome {
            EnqueueOutcome::Enqueued { versionstamp, .. } => Some(*versionstamp),
            _ => None,
        };
        let is_lost = version.is_some_and(|version| windows.losing(version).is_some());
        if history.is_drained && version.is_some() && !is_lost {
            case.at_least_once();
        }
        // A failover that loses a tail may set back what became of older messages.
        if newest.is_none_or(|newest| version.is_some_and(|v| v.position().epoch >= newest)) {
            case.one_listener();
            case.acknowledged();
            case.attempts();
            case.dead_letters();
        }
        statistics.enqueued += usize::from(version.is_some());
        statistics.handed += course.handed.len();
        statistics.done += usize::from(course.done().next().is_some());
        statistics.dead += usize::from(course.death().is_some());
        statistics.duplicates += case.duplicates();
        statistics.lost_as_admitted += usize::from(is_lost);
    }
    QueueVerdict { violations, statistics }
}

impl Case<'_> {
    fn violated(&mut self, rule: QueueRule, text: String) {
        self.violations.push(QueueViolation { rule, message: self.number, text });
    }

    fn well_formed(&mut self) {
        let Enqueue { invoked_ns, completed_ns, .. } = *self.enqueue;
        let early = self.course.handed.iter().any(|handed| handed.at_ns < invoked_ns);
        if early || completed_ns.is_some_and(|completed_ns| completed_ns < invoked_ns) {
            self.violated(QueueRule::WellFormed, "it ended before it began".to_owned());
        }
        let course = self.course;
        let unasked = course.reports.iter().find(|report| {
            course.reported(report).is_none()
                || report.completed_ns.is_some_and(|completed| completed < report.invoked_ns)
        });
        if let Some(report) = unasked {
            self.violated(QueueRule::WellFormed, format!("a report on nothing: {report:?}"));
        }
    }

    /// An enqueue that a failover has lost may be repeated: the message has another id then.
    fn enqueued(&mut self, windows: &LostWindows) {
        let mut ids: Vec<&str> =
            self.course.handed.iter().map(|handed| handed.id.as_str()).collect();
        match &self.enqueue.outcome {
            EnqueueOutcome::Enqueued { id, .. } => ids.push(id),
            EnqueueOutcome::NotEnqueued => {
                if !ids.is_empty() || self.course.death().is_some() {
                    let text = "its enqueue was refused, and it was handed out or died";
                    self.violated(QueueRule::Enqueued, text.to_owned());
                }
            }
            EnqueueOutcome::Unknown => {}
        }
        let is_lost = |id: &str| {
            let id = id.parse::<MessageId>();
            id.is_ok_and(|id| windows.losing(id.enqueued).is_some())
        };
        ids.retain(|id| !is_lost(id));
        ids.sort_unstable();
        ids.dedup();
        if ids.len() > 1 {
            self.violated(QueueRule::Enqueued, format!("it has several ids: {ids:?}"));
        }
    }

    fn at_least_once(&mut self) {
        let is_spent =
            self.course.handed.iter().any(|handed| handed.attempt >= self.enqueue.attempts);
        // Without keys nothing shows a death but that the last attempt was made.
        let may_be_dead = match self.enqueue.dead_keys {
            0 => is_spent,
            _ => self.course.death().is_some(),
        };
        if !self.course.may_be_done() && !may_be_dead {
            let times = self.course.handed.len();
            let text = format!("it was handed out {times} times, and neither done nor died");
            self.violated(QueueRule::AtLeastOnce, text);
        }
    }

    fn one_listener(&mut self) {
        let course = self.course;
        for (at, first) in course.handed.iter().enumerate() {
            let until = course.held_until(first, self.breaks);
            for other in course.handed.iter().skip(at + 1) {
                let was_on_its_way = other.attempt < first.attempt;
                if !was_on_its_way && until.is_none_or(|until| other.at_ns < until) {
                    let text = format!("{other:?} while another holds it: {first:?}");
                    self.violated(QueueRule::OneListener, text);
                }
            }
        }
    }

    fn acknowledged(&mut self) {
        let course = self.course;
        for (report, completed_ns) in course.done() {
            let was_sure = course.was_sure(report, self.breaks);
            let is_again = |other: &&&Handed| {
                let is_sure = was_sure && other.attempt >= report.attempt;
                let transit_ns = if is_sure { 0 } else { TRANSIT_NS };
                // The attempt may have failed before it was acknowledged: then the next one counts.
                let may_be_next = !was_sure && other.attempt > report.attempt;
                other.at_ns > completed_ns.saturating_add(transit_ns) && !may_be_next
            };
            if let Some(other) = course.handed.iter().find(is_again) {
                let text = format!("it was done, and was handed out again: {other:?}");
                self.violated(QueueRule::Acknowledged, text);
            }
        }
    }

    fn attempts(&mut self) {
        let due_ns = self.enqueue.invoked_ns.saturating_add(self.enqueue.delay_ns);
        let course = self.course;
        for handed in &course.handed {
            if handed.at_ns.saturating_add(CLOCK_TOLERANCE_NS) < due_ns {
                self.violated(QueueRule::Attempts, format!("it came before its time: {handed:?}"));
            }
            if handed.attempt == 0 || handed.attempt > self.enqueue.attempts {
                let text = format!("it has {} attempts: {handed:?}", self.enqueue.attempts);
                self.violated(QueueRule::Attempts, text);
            } else if handed.attempt > 1
                && !course.may_have_failed(handed.attempt - 1, handed.at_ns, self.breaks)
            {
                let text = format!("no attempt had failed before: {handed:?}");
                self.violated(QueueRule::Attempts, text);
            }
        }
    }

    fn dead_letters(&mut self) {
        let (course, keys) = (self.course, self.enqueue.dead_keys);
        for read in &course.dead_reads {
            if read.set != 0 && read.set != keys {
                let text = format!("{} of its {keys} keys are set", read.set);
                self.violated(QueueRule::DeadLetters, text);
            }
        }
        let Some(death) = course.death() else { return };
        let died_ns = death.completed_ns;
        if course.done().any(|(report, _)| course.was_sure(report, self.breaks)) {
            self.violated(QueueRule::DeadLetters, "it was done, and died".to_owned());
        }
        if !course.may_have_failed(self.enqueue.attempts, died_ns, self.breaks) {
            let text = "it died before its last attempt had failed".to_owned();
            self.violated(QueueRule::DeadLetters, text);
        }
        let transit_ns = if self.breaks.any_by(died_ns) { TRANSIT_NS } else { 0 };
        let again = |handed: &&&Handed| handed.at_ns > died_ns.saturating_add(transit_ns);
        if let Some(handed) = course.handed.iter().find(again) {
            let text = format!("it was dead, and was handed out: {handed:?}");
            self.violated(QueueRule::DeadLetters, text);
        }
    }

    /// Hand-outs of attempts that had not failed by a report of their holders.
    fn duplicates(&self) -> usize {
        let refused = |attempt: u32| {
            let mut reports = self.course.reports.iter();
            reports.any(|report| report.attempt == attempt && report.verdict == Verdict::Nack)
        };
        let handed = self.course.handed.iter().skip(1);
        handed.filter(|handed| handed.attempt < 2 || !refused(handed.attempt - 1)).count()
    }
}
