//! One term of the proposer: what it waits for, and in what order it proposes.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use meridian_consensus::ProposalFailure;
use tokio::sync::{mpsc, watch};
use tokio::time::Interval;

use super::backlog::{Backlog, Queued};
use super::expiry::Expiry;
use super::internal::InternalWriter;
use super::session::{Session, TermEnd};
use crate::write::leader_term::TermSession;

/// Before a leader proposes again what Raft has refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// The requests of one shard at this node: in the queue, and taken from it.
pub(super) struct Inbox {
    pub(super) requests: mpsc::Receiver<Queued>,
    pub(super) backlog: Backlog,
}

impl Inbox {
    /// With it all that came meanwhile: they make one batch.
    fn accept(&mut self, queued: Queued) {
        self.backlog.push(queued);
        while !self.backlog.is_full()
            && let Ok(next) = self.requests.try_recv()
        {
            self.backlog.push(next);
        }
    }
}

/// A session, and what it is fed from.
pub(super) struct Term<'a> {
    pub(super) term: u64,
    pub(super) session: Session<'a>,
    pub(super) inbox: &'a mut Inbox,
    pub(super) expiry: &'a mut Expiry,
    /// Outlives the term: when the next one proposes, after a batch was refused.
    pub(super) not_before: &'a mut Instant,
    pub(super) ticks: &'a mut Interval,
    pub(super) seal: watch::Receiver<bool>,
    pub(super) drained: &'a watch::Sender<Option<u64>>,
    pub(super) sealed: bool,
    /// After a batch was refused: evaluate no more, let those in flight end, and begin anew. What
    /// was refused, as it is while a quorum has not answered for a moment, is tried again then.
    pub(super) refused: bool,
}

/// The events that a term waits for.
#[allow(clippy::large_enum_variant, reason = "there is one at a time")]
pub(super) enum Event {
    /// The oldest batch in flight was applied, or failed.
    Completed(Result<(), ProposalFailure>),
    Request(Queued),
    Tick,
    /// A batch that waited, for replication or for more requests, may begin.
    Due,
    Seal,
}

impl TermSession for Term<'_> {
    type Event = Event;
    type End = TermEnd;

    async fn next(&mut self) -> Option<Event> {
        let begins_at = self.begins_at();
        let Self { session, inbox, seal, ticks, .. } = self;
        let (slowed, not_before) = (session.is_slowed(), session.not_before);
        let (is_idle, is_waited_for) = (session.is_idle(), !inbox.backlog.is_empty());
        Some(tokio::select! {
            biased;
            result = session.oldest(), if !is_idle => Event::Completed(result),
            queued = inbox.requests.recv(), if !inbox.backlog.is_full() => Event::Request(queued?),
            _ = ticks.tick() => Event::Tick,
            () = tokio::time::sleep_until(not_before.into()), if slowed && is_waited_for => Event::Due,
            () = tokio::time::sleep_until(begins_at.unwrap_or(not_before).into()), if begins_at.is_some() => Event::Due,
            changed = seal.changed() => {
                changed.ok()?;
                Event::Seal
            }
        })
    }

    async fn handle(&mut self, event: Event) -> ControlFlow<TermEnd> {
        match event {
            Event::Completed(result) => {
                if self.session.completed(result).is_err() {
                    return ControlFlow::Break(self.session.leave());
                }
                self.inbox.backlog.batch_committed();
            }
            Event::Request(queued) => self.inbox.accept(queued),
            Event::Tick => {
                self.inbox.backlog.give_up();
                self.session.look_at_clocks();
            }
            Event::Due | Event::Seal => {}
        }
        self.propose().await?;
        if self.refused && self.session.is_idle() {
            return ControlFlow::Break(TermEnd::Drained);
        }
        self.look_at_seal();
        ControlFlow::Continue(())
    }

    fn leave(&mut self) -> TermEnd {
        self.session.leave()
    }
}

impl Term<'_> {
    /// When a batch of requests begins, if one may.
    fn begins_at(&self) -> Option<Instant> {
        let may = !self.sealed && !self.refused && self.session.has_room();
        self.session.begins_at(&self.inbox.backlog).filter(|_| may)
    }

    /// A leader that is sealed refuses what waits, and says when nothing is in flight any more.
    pub(super) fn look_at_seal(&mut self) {
        self.sealed = *self.seal.borrow_and_update();
        if self.sealed {
            self.inbox.backlog.refuse_as_sealed();
            if self.session.is_idle() {
                self.drained.send_replace(Some(self.term));
            }
        }
    }

    /// Proposes batches for as long as more may be in flight and something is due.
    async fn propose(&mut self) -> ControlFlow<TermEnd> {
        while !self.sealed && !self.refused && self.session.has_room() {
            match self.propose_one().await {
                None => break,
                Some(Ok(())) => {}
                Some(Err(ProposalFailure::NotAppended | ProposalFailure::TooLarge { .. })) => {
                    self.refused = true;
                    self.inbox.backlog.put_back(std::mem::take(&mut self.session.declined));
                    *self.not_before = Instant::now() + REFUSED_PAUSE;
                }
                // To lead in this term again could give its number out twice.
                Some(Err(ProposalFailure::Unknown)) => {
                    self.session.leave();
                    return ControlFlow::Break(TermEnd::Left);
                }
            }
        }
        ControlFlow::Continue(())
    }

    /// One batch: of databases to drop, of an internal writer, or of requests. `None`: nothing is
    /// due.
    async fn propose_one(&mut self) -> Option<Result<(), ProposalFailure>> {
        let to_drop = self.session.to_drop();
        if !to_drop.is_empty() {
            return Some(self.session.drop_databases(to_drop).await);
        }
        if self.expiry.is_due(Instant::now()) && self.session.admits(self.expiry) {
            return Some(self.session.propose_internal(self.expiry, &mut self.inbox.backlog).await);
        }
        match self.session.begins_at(&self.inbox.backlog) {
            Some(at) if at <= Instant::now() => {
                Some(self.session.propose(&mut self.inbox.backlog).await)
            }
            _ => None,
        }
    }
}
