//! Handlers at work on messages, and their reports.

use std::time::Duration;

use meridian_checker::queue::{Handed, QueueEvent, Report as Reported, ReportAnswer, Verdict};
use meridian_queue::{Answer, MessageKey, Report};

use super::{Listener, Step, ns};
use crate::clock::{Instant, MS, SECOND};
use crate::message::{Message, OfListener};

const REPORT_AGAIN: Instant = SECOND;

/// A handler at work on a message.
pub(super) struct Work {
    pub(super) attempt: u32,
    pub(super) message: u64,
    pub(super) report_at: Instant,
    pub(super) report: Report,
    /// It does not stop when its message is released.
    pub(super) goes_on: bool,
    /// Where in the history its report is, once it was sent, and the call.
    pub(super) reported: Option<(usize, u64)>,
}

impl Listener {
    pub(super) fn take(
        &mut self,
        step: &mut Step<'_>,
        key: MessageKey,
        (message, attempt): (u64, u32),
        lease: Option<Duration>,
    ) {
        self.held.insert(key);
        self.handed_at = step.now;
        if let Some(poll) = &mut self.poll {
            poll.got(step.now, self.as_of, lease);
        }
        step.history.push(QueueEvent::Handed(Handed {
            at_ns: ns(step.now),
            listener: self.number,
            message,
            id: key.id.to_string(),
            attempt,
        }));
        let takes = match step.rng.below(20) {
            0..13 => step.rng.between(1, 400) * MS,
            13..18 => step.rng.between(500, 5000) * MS,
            _ => step.rng.between(5, 12) * SECOND,
        };
        let report = match step.rng.below(20) {
            0..15 => Report::Done,
            15..18 => Report::Failed { retry_after: None },
            _ => {
                let retry_after = Some(Duration::from_millis(step.rng.below(1500)));
                Report::Failed { retry_after }
            }
        };
        let (report_at, goes_on) = (step.now + takes, step.rng.chance(300));
        let work = Work { attempt, message, report_at, report, goes_on, reported: None };
        self.work.insert(key, work);
    }

    /// Each report again until it is answered.
    pub(super) fn report_what_is_due(&mut self, step: &mut Step<'_>) {
        let leader = self.session.as_ref().map(|session| session.node);
        for (key, work) in &mut self.work {
            if step.now < work.report_at {
                continue;
            }
            let verdict = if work.report == Report::Done { Verdict::Ack } else { Verdict::Nack };
            let (_, call) = *work.reported.get_or_insert_with(|| {
                step.numbers.call += 1;
                step.history.push(QueueEvent::Report(Reported {
                    listener: self.number,
                    message: work.message,
                    attempt: work.attempt,
                    verdict,
                    invoked_ns: ns(step.now),
                    completed_ns: None,
                    answer: None,
                }));
                (step.history.len() - 1, step.numbers.call)
            });
            work.report_at = step.now + REPORT_AGAIN;
            let any = || step.rng.pick(&(step.voters)(self.gateway)).copied();
            let Some(to) = leader.or_else(any) else { continue };
            let report =
                OfListener::Reports { call, listener: self.id, key: *key, report: work.report };
            step.sent.push((self.gateway, to, Message::OfListener(report)));
        }
    }

    pub(super) fn answered(&mut self, step: &mut Step<'_>, call: u64, answer: Option<Answer>) {
        let is_it = |work: &Work| work.reported.is_some_and(|(_, of)| of == call);
        let Some((key, work)) = self.work.iter_mut().find(|(_, work)| is_it(work)) else { return };
        let Some(answer) = answer else {
            work.report_at = step.now + step.rng.between(20, 200) * MS;
            return;
        };
        let (key, at) = (*key, work.reported.map(|(at, _)| at));
        if let Some(QueueEvent::Report(report)) = at.and_then(|at| step.history.get_mut(at)) {
            report.completed_ns = Some(ns(step.now));
            report.answer = Some(match answer {
                Answer::Done => ReportAnswer::Done,
                Answer::Late => ReportAnswer::Late,
            });
        }
        self.work.remove(&key);
    }
}
