//! One term in which this node leads a group: the frame of every leader, whatever it leads.
//!
//! A term has two halves. Until an entry of the term is applied here, the state may lack what
//! earlier terms committed: requests are held or declined, and nothing is decided. From then on a
//! session carries the term, until leadership is lost or the session ends it.
//!
//! Cancellation: the futures that wait ([`LeaderTask::before_first_entry`], [`TermSession::next`])
//! are dropped whenever leadership is lost meanwhile, and must lose nothing then. The work on an
//! event ([`TermSession::handle`]) is never dropped half done.

use std::ops::ControlFlow;

use meridian_consensus::RaftGroup;
use meridian_storage::AppliedMark;
use tokio::sync::watch;

/// The task of a node that leads a group from time to time.
pub(crate) trait LeaderTask {
    /// How a term ended.
    type End;
    type Session<'a>: TermSession<End = Self::End>
    where
        Self: 'a;

    /// Deals with one request, or with the time that passes. `None`: no handle is left to send
    /// requests. May be dropped at any await.
    async fn before_first_entry(&mut self) -> Option<()>;

    /// Everything in the log up to the start of the term is applied.
    fn begin(&mut self, term: u64) -> Self::Session<'_>;
}

/// The state and the work of a leader in one term. It dies with the term.
pub(crate) trait TermSession {
    type Event;
    type End;

    /// Waits for something to do. `None`: no handle is left to send requests. May be dropped at any
    /// await and called again.
    async fn next(&mut self) -> Option<Self::Event>;

    /// Carries out what an event leads to. Leadership may be lost meanwhile; that is not looked at
    /// before it is done. A break ends the term.
    async fn handle(&mut self, event: Self::Event) -> ControlFlow<Self::End>;

    /// Leadership is lost: answers the callers whose requests were under way.
    fn leave(&mut self) -> Self::End;
}

/// How leading in one term ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Led<End> {
    /// Leadership was lost before the session began: nothing was done.
    NotBegun,
    Ended(End),
    /// No handle is left to send requests.
    Closed,
}

/// Leads in this term.
pub(crate) async fn lead<T: LeaderTask>(group: &RaftGroup, term: u64, task: &mut T) -> Led<T::End> {
    lead_until(group.leadership_changed(Some(term)), group.applied(), term, task).await
}

/// Until leadership is `lost`.
async fn lead_until<T: LeaderTask>(
    lost: impl Future<Output = ()>,
    mut applied: watch::Receiver<AppliedMark>,
    term: u64,
    task: &mut T,
) -> Led<T::End> {
    tokio::pin!(lost);
    while applied.borrow_and_update().term < term {
        tokio::select! {
            () = &mut lost => return Led::NotBegun,
            changed = applied.changed() => if changed.is_err() {
                return Led::Closed;
            },
            held = task.before_first_entry() => if held.is_none() {
                return Led::Closed;
            },
        }
    }
    let mut session = task.begin(term);
    loop {
        let event = tokio::select! {
            // Loss goes before all else: what is answered after it could be another leader's to
            // say.
            biased;
            () = &mut lost => return Led::Ended(session.leave()),
            event = session.next() => event,
        };
        let Some(event) = event else { return Led::Closed };
        if let ControlFlow::Break(end) = session.handle(event).await {
            return Led::Ended(end);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;

    use futures::FutureExt;
    use parking_lot::Mutex;
    use tokio::sync::{mpsc, oneshot};

    use super::*;

    const TERM: u64 = 7;

    /// Writes down what it is made to do. The request `wait` takes long, and `end` ends the term.
    struct Recorder {
        requests: mpsc::UnboundedReceiver<&'static str>,
        goes_on: Option<oneshot::Receiver<()>>,
        done: Arc<Mutex<Vec<String>>>,
    }

    impl Recorder {
        fn note(&self, what: impl Into<String>) {
            self.done.lock().push(what.into());
        }
    }

    impl LeaderTask for Recorder {
        type End = &'static str;
        type Session<'a> = Recorded<'a>;

        async fn before_first_entry(&mut self) -> Option<()> {
            let request = self.requests.recv().await?;
            self.note(format!("holds {request}"));
            Some(())
        }

        fn begin(&mut self, term: u64) -> Recorded<'_> {
            self.note(format!("begins term {term}"));
            Recorded(self)
        }
    }

    struct Recorded<'a>(&'a mut Recorder);

    impl TermSession for Recorded<'_> {
        type Event = &'static str;
        type End = &'static str;

        async fn next(&mut self) -> Option<&'static str> {
            self.0.requests.recv().await
        }

        async fn handle(&mut self, event: &'static str) -> ControlFlow<&'static str> {
            self.0.note(format!("takes {event}"));
            if let Some(goes_on) = self.0.goes_on.take_if(|_| event == "wait") {
                drop(goes_on.await);
            }
            self.0.note(format!("has done {event}"));
            if event == "end" { ControlFlow::Break("by itself") } else { ControlFlow::Continue(()) }
        }

        fn leave(&mut self) -> &'static str {
            self.0.note("leaves");
            "left"
        }
    }

    /// The surroundings of a leader.
    struct Outside {
        applied: watch::Sender<AppliedMark>,
        requests: mpsc::UnboundedSender<&'static str>,
        lost: oneshot::Sender<()>,
        goes_on: oneshot::Sender<()>,
        done: Arc<Mutex<Vec<String>>>,
    }

    impl Outside {
        fn done(&self) -> Vec<String> {
            std::mem::take(&mut *self.done.lock())
        }
    }

    fn mark(term: u64) -> AppliedMark {
        AppliedMark { sequence: 40, term }
    }

    /// The last entry that is applied is of this term. Leadership is lost when the third says so.
    fn leader(applied: u64) -> (Recorder, Outside, impl Future<Output = ()>) {
        let (requests, inbox) = mpsc::unbounded_channel();
        let ((lost, loses), (goes_on, waits)) = (oneshot::channel(), oneshot::channel());
        let done = Arc::<Mutex<Vec<String>>>::default();
        let recorder = Recorder { requests: inbox, goes_on: Some(waits), done: Arc::clone(&done) };
        let applied = watch::Sender::new(mark(applied));
        (recorder, Outside { applied, requests, lost, goes_on, done }, loses.map(drop))
    }

    #[test]
    fn leadership_lost_before_the_first_entry_of_the_term_begins_no_session() {
        let (mut task, outside, lost) = leader(TERM - 1);
        let applied = outside.applied.subscribe();
        let mut leading = pin!(lead_until(lost, applied, TERM, &mut task));
        outside.requests.send("a").unwrap();
        assert_eq!(leading.as_mut().now_or_never(), None);
        // Of an earlier term.
        outside.applied.send_replace(AppliedMark { sequence: 41, term: TERM - 1 });
        assert_eq!(leading.as_mut().now_or_never(), None);
        outside.done.lock().push("loses".to_owned());
        outside.lost.send(()).unwrap();
        assert_eq!(leading.now_or_never(), Some(Led::NotBegun));
        assert_eq!(*outside.done.lock(), ["holds a", "loses"]);
    }

    #[test]
    fn session_begins_once_an_entry_of_the_term_is_applied() {
        let (mut task, outside, lost) = leader(TERM - 1);
        let applied = outside.applied.subscribe();
        let mut leading = pin!(lead_until(lost, applied, TERM, &mut task));
        outside.requests.send("a").unwrap();
        assert_eq!(leading.as_mut().now_or_never(), None);
        outside.applied.send_replace(mark(TERM));
        assert_eq!(leading.as_mut().now_or_never(), None);
        assert_eq!(outside.done(), ["holds a", "begins term 7"]);
        outside.requests.send("b").unwrap();
        assert_eq!(leading.now_or_never(), None);
        assert_eq!(outside.done(), ["takes b", "has done b"]);
    }

    #[test]
    fn leadership_lost_while_a_session_waits_ends_it_before_what_has_come_meanwhile() {
        let (mut task, outside, lost) = leader(TERM);
        let applied = outside.applied.subscribe();
        let mut leading = pin!(lead_until(lost, applied, TERM, &mut task));
        outside.requests.send("a").unwrap();
        assert_eq!(leading.as_mut().now_or_never(), None);
        assert_eq!(outside.done(), ["begins term 7", "takes a", "has done a"]);
        outside.requests.send("b").unwrap();
        outside.lost.send(()).unwrap();
        assert_eq!(leading.now_or_never(), Some(Led::Ended("left")));
        assert_eq!(*outside.done.lock(), ["leaves"]);
    }

    #[test]
    fn event_under_way_when_leadership_is_lost_is_carried_out_and_no_other_is() {
        let (mut task, outside, lost) = leader(TERM);
        let applied = outside.applied.subscribe();
        let mut leading = pin!(lead_until(lost, applied, TERM, &mut task));
        ["wait", "b"].iter().for_each(|request| outside.requests.send(request).unwrap());
        assert_eq!(leading.as_mut().now_or_never(), None);
        outside.lost.send(()).unwrap();
        assert_eq!(leading.as_mut().now_or_never(), None);
        outside.goes_on.send(()).unwrap();
        assert_eq!(leading.now_or_never(), Some(Led::Ended("left")));
        let done = ["begins term 7", "takes wait", "has done wait", "leaves"];
        assert_eq!(*outside.done.lock(), done);
    }

    #[test]
    fn session_that_ends_its_term_is_not_made_to_leave() {
        let (mut task, outside, lost) = leader(TERM);
        let applied = outside.applied.subscribe();
        let leading = lead_until(lost, applied, TERM, &mut task);
        ["end", "b"].iter().for_each(|request| outside.requests.send(request).unwrap());
        assert_eq!(leading.now_or_never(), Some(Led::Ended("by itself")));
        assert_eq!(*outside.done.lock(), ["begins term 7", "takes end", "has done end"]);
    }

    #[test]
    fn term_ends_when_no_handle_is_left() {
        for applied in [TERM - 1, TERM] {
            let (mut task, outside, lost) = leader(applied);
            let marks = outside.applied.subscribe();
            let leading = lead_until(lost, marks, TERM, &mut task);
            drop(outside.requests);
            assert_eq!(leading.now_or_never(), Some(Led::Closed), "applied: {applied}");
        }
    }
}
