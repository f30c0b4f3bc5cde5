//! The course of one message, and the holds that follow from it.

use std::collections::BTreeMap;

use super::{DeadRead, Enqueue, Handed, QueueEvent, QueueHistory, Report, ReportAnswer, Verdict};

/// The events of one message, in the order of times.
#[derive(Debug, Default)]
pub(super) struct Course<'a> {
    pub(super) enqueues: Vec<&'a Enqueue>,
    pub(super) handed: Vec<&'a Handed>,
    pub(super) reports: Vec<&'a Report>,
    released: Vec<(u32, u64)>,
    pub(super) dead_reads: Vec<&'a DeadRead>,
}

/// The times at which the streams of each listener were heard for the last time before a break.
#[derive(Debug, Default)]
pub(super) struct Breaks(BTreeMap<u32, Vec<u64>>);

impl Breaks {
    /// Whether any stream had broken by then: a hand-out over it may have been lost.
    pub(super) fn any_by(&self, at_ns: u64) -> bool {
        self.0.values().flatten().any(|broke| *broke <= at_ns)
    }

    fn first_from(&self, listener: u32, at_ns: u64) -> Option<u64> {
        self.0.get(&listener)?.iter().copied().filter(|broke| *broke >= at_ns).min()
    }
}

/// The courses of all messages by their numbers.
pub(super) fn courses(history: &QueueHistory) -> (BTreeMap<u64, Course<'_>>, Breaks) {
    let mut courses = BTreeMap::<u64, Course<'_>>::new();
    let mut breaks = Breaks::default();
    for event in &history.events {
        match event {
            QueueEvent::Enqueue(it) => courses.entry(it.message).or_default().enqueues.push(it),
            QueueEvent::Handed(it) => courses.entry(it.message).or_default().handed.push(it),
            QueueEvent::Report(it) => courses.entry(it.message).or_default().reports.push(it),
            QueueEvent::DeadRead(it) => courses.entry(it.message).or_default().dead_reads.push(it),
            QueueEvent::Released { at_ns, listener, message } => {
                courses.entry(*message).or_default().released.push((*listener, *at_ns));
            }
            QueueEvent::Broke { at_ns, listener } => {
                breaks.0.entry(*listener).or_default().push(*at_ns);
            }
        }
    }
    for course in courses.values_mut() {
        course.handed.sort_by_key(|handed| handed.at_ns);
        course.reports.sort_by_key(|report| report.invoked_ns);
        course.dead_reads.sort_by_key(|read| read.completed_ns);
    }
    (courses, breaks)
}

impl Course<'_> {
    /// The end of the time for which the listener surely holds the message. `None`: the end of the
    /// history.
    pub(super) fn held_until(&self, handed: &Handed, breaks: &Breaks) -> Option<u64> {
        let since = handed.at_ns;
        let reports = self.reports.iter().filter(|report| {
            (report.listener, report.attempt) == (handed.listener, handed.attempt)
                && report.invoked_ns >= since
        });
        let released = self
            .released
            .iter()
            .filter(|(listener, at_ns)| *listener == handed.listener && *at_ns >= since);
        let ends = reports
            .map(|report| report.invoked_ns)
            .chain(released.map(|(_, at_ns)| *at_ns))
            .chain(breaks.first_from(handed.listener, since));
        ends.min()
    }

    /// The hand-out that a report is about.
    pub(super) fn reported(&self, report: &Report) -> Option<&Handed> {
        let is_it = |handed: &&&Handed| {
            (handed.listener, handed.attempt) == (report.listener, report.attempt)
                && handed.at_ns <= report.invoked_ns
        };
        self.handed.iter().rfind(is_it).copied()
    }

    /// Deliveries that were acknowledged. They surely took effect where the hold was sure: an
    /// attempt that had failed before may be told so without effect.
    pub(super) fn done(&self) -> impl Iterator<Item = (&Report, u64)> {
        let done = |report: &&&Report| {
            report.verdict == Verdict::Ack && report.answer == Some(ReportAnswer::Done)
        };
        let acks = self.reports.iter().filter(done);
        acks.filter_map(|report| Some((*report, report.completed_ns?)))
    }

    /// Whether the listener surely held the message until it reported on it, and would have until it
    /// was answered: the report is on its way for so long.
    pub(super) fn was_sure(&self, report: &Report, breaks: &Breaks) -> bool {
        self.reported(report).is_some_and(|handed| {
            let broke = breaks.first_from(handed.listener, handed.at_ns);
            let is_late = broke.is_some_and(|at| report.completed_ns.is_none_or(|end| at <= end));
            !is_late && self.held_until(handed, breaks) == Some(report.invoked_ns)
        })
    }

    /// Whether a delivery may have taken effect.
    pub(super) fn may_be_done(&self) -> bool {
        self.reports.iter().any(|report| {
            report.verdict == Verdict::Ack && report.answer != Some(ReportAnswer::Late)
        })
    }

    /// Whether the attempt may have failed by then: it was refused, or its listener lost the
    /// stream or the message. If no listener was seen to have it, it was lost on its way over any
    /// stream.
    pub(super) fn may_have_failed(&self, attempt: u32, by_ns: u64, breaks: &Breaks) -> bool {
        let mut reports = self.reports.iter();
        let is_refused = reports.any(|report| {
            (report.verdict, report.attempt) == (Verdict::Nack, attempt)
                && report.invoked_ns <= by_ns
        });
        let mut holders = self.handed.iter().filter(|handed| handed.attempt == attempt).peekable();
        if is_refused || holders.peek().is_none() {
            return is_refused || breaks.any_by(by_ns);
        }
        holders.any(|handed| {
            let broke = breaks.first_from(handed.listener, handed.at_ns);
            let mut released = self.released.iter();
            broke.is_some_and(|broke| broke <= by_ns)
                || released.any(|(listener, _)| *listener == handed.listener)
        })
    }

    /// The first read that shows the message's death.
    pub(super) fn death(&self) -> Option<&DeadRead> {
        self.dead_reads.iter().find(|read| read.set > 0).copied()
    }
}
