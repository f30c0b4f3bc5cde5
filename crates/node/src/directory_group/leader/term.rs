//! The directory leader's task: one session for each term in which this node leads.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use meridian_failover::{ExecuteFailure, LeaderEvent};
use tokio::sync::mpsc;
use tokio::time::Interval;

use super::decline::decline;
use super::session::{Internal, Session};
use super::{LeaderParts, Request};
use crate::write::leader_term::{self, LeaderTask, Led, TermSession};

/// How often a leader compares the group's members with the cluster's wishes.
const MEMBERS: Duration = Duration::from_secs(1);

/// The leader's task on one voter.
pub(super) struct Task {
    parts: Arc<LeaderParts>,
    inbox: mpsc::Receiver<Request>,
}

impl Task {
    pub(super) fn new(parts: Arc<LeaderParts>, inbox: mpsc::Receiver<Request>) -> Self {
        Self { parts, inbox }
    }

    /// Ends when no handle is left to send requests.
    pub(super) async fn run(mut self) {
        let group = self.parts.voter.group.clone();
        loop {
            match group.leadership() {
                Ok(leadership) => match leader_term::lead(&group, leadership.term, &mut self).await
                {
                    Led::NotBegun | Led::Ended(()) => {}
                    Led::Closed => return,
                },
                Err(_) => tokio::select! {
                    biased;
                    () = group.leadership_changed(None) => {}
                    request = self.inbox.recv() => match request {
                        // Another may lead since the request before.
                        Some(request) => decline(request, group.leadership().err().and_then(|other| other.leader)),
                        None => return,
                    },
                },
            }
        }
    }
}

impl LeaderTask for Task {
    type End = ();
    type Session<'a> = Term<'a>;

    async fn before_first_entry(&mut self) -> Option<()> {
        decline(self.inbox.recv().await?, None);
        Some(())
    }

    fn begin(&mut self, term: u64) -> Term<'_> {
        let (internal, events) = mpsc::unbounded_channel();
        let mut session = Session::new(Arc::clone(&self.parts), term, internal);
        session.step(LeaderEvent::Begun);
        Term { session, inbox: &mut self.inbox, events, members: tokio::time::interval(MEMBERS) }
    }
}

/// A session, and what it is fed from.
pub(super) struct Term<'a> {
    session: Session,
    inbox: &'a mut mpsc::Receiver<Request>,
    events: mpsc::UnboundedReceiver<Internal>,
    members: Interval,
}

/// The events that a term waits for.
pub(super) enum Event {
    Internal(Internal),
    Request(Request),
    /// The leader is to look at the time.
    Due,
    Members,
}

impl TermSession for Term<'_> {
    type Event = Event;
    type End = ();

    async fn next(&mut self) -> Option<Event> {
        let due_in = self.session.due_in();
        Some(tokio::select! {
            biased;
            Some(event) = self.events.recv() => Event::Internal(event),
            request = self.inbox.recv() => Event::Request(request?),
            () = tokio::time::sleep(due_in) => Event::Due,
            _ = self.members.tick() => Event::Members,
        })
    }

    async fn handle(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::Internal(Internal::Committed { next, reply }) => {
                if let Err(known) = self.session.committed(next, reply) {
                    self.session.leave(known);
                    return ControlFlow::Break(());
                }
            }
            Event::Internal(Internal::Answer(answer)) => {
                self.session.step(LeaderEvent::Answered(answer));
            }
            Event::Request(request) => self.session.serve(request),
            Event::Due => self.session.step(LeaderEvent::Tick),
            Event::Members => {
                self.session.change_members();
                self.session.step(LeaderEvent::DeletionsDue);
            }
        }
        ControlFlow::Continue(())
    }

    fn leave(&mut self) {
        self.session.leave(ExecuteFailure::Unknown);
    }
}
