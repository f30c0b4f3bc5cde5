//! One term in which this node leads a group: the frame of every leader, whatever it leads.
//!
//! A term has two halves. Until an entry of the term is applied here, the state may lack what
//! earlier terms committed: requests are held or declined, and nothing is decided. From then on a
//! session carries the term, until leadership is lost or the session ends it.
//!
//! What may be dropped, and what not: the futures that wait ([`LeaderTask::before_first_entry`],
//! [`TermSession::next`]) are dropped whenever leadership is lost meanwhile, and must lose nothing
//! then. What an event leads to ([`TermSession::handle`]) is never dropped half done.

use std::ops::ControlFlow;

use meridian_consensus::RaftGroup;

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

/// What a leader knows and does in one term. It dies with the term.
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
    let lost = group.leadership_changed(Some(term));
    tokio::pin!(lost);
    let mut applied = group.applied();
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
