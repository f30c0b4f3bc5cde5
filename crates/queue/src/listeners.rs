//! The listeners of a queue, and whose turn it is.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use crate::event::{Incarnation, ListenerId, SessionId};

/// Messages that a listener may hold at a time, at most.
pub const MAX_CREDITS: u32 = 1000;
/// Listeners of one database at a time, at most.
pub const MAX_LISTENERS: usize = 1000;

#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) session: SessionId,
    pub(crate) incarnation: Incarnation,
    lease: Option<Duration>,
    credits: u32,
    /// Messages that are leased to it.
    held: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Listeners {
    all: BTreeMap<ListenerId, Listener>,
    /// Those that may hold more than they do.
    free: BTreeSet<ListenerId>,
    /// Got a message last.
    last: Option<ListenerId>,
    /// The messages that `free` may hold in all.
    credit: u64,
}

impl Listeners {
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    pub(crate) fn get(&self, listener: ListenerId) -> Option<&Listener> {
        self.all.get(&listener)
    }

    /// How many more messages may be handed out.
    pub(crate) fn credit(&self) -> u64 {
        self.credit
    }

    /// `held`: what is leased to the listener already.
    pub(crate) fn open(
        &mut self,
        listener: ListenerId,
        (session, incarnation): (SessionId, Incarnation),
        credits: u32,
        lease: Option<Duration>,
        held: u32,
    ) {
        self.close(listener);
        let credits = credits.min(MAX_CREDITS);
        self.all.insert(listener, Listener { session, incarnation, lease, credits, held: 0 });
        self.credit += u64::from(credits);
        if credits > 0 {
            self.free.insert(listener);
        }
        (0..held).for_each(|_| self.leased(listener));
    }

    pub(crate) fn close(&mut self, listener: ListenerId) {
        if let Some(Listener { credits, held, .. }) = self.all.remove(&listener) {
            self.credit -= u64::from(credits.saturating_sub(held));
            self.free.remove(&listener);
        }
    }

    /// The listener that gets the next message: the next in line after the last.
    /// With its session, and for how long it gets a lease.
    pub(crate) fn next(
        &mut self,
    ) -> Option<(ListenerId, SessionId, Incarnation, Option<Duration>)> {
        let behind = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let mut line = self.free.range((behind, Bound::Unbounded)).chain(&self.free);
        let next = line.next().copied()?;
        self.last = Some(next);
        let Listener { session, incarnation, lease, .. } = *self.all.get(&next)?;
        Some((next, session, incarnation, lease))
    }

    /// The listener has one message more.
    pub(crate) fn leased(&mut self, listener: ListenerId) {
        let Some(found) = self.all.get_mut(&listener) else { return };
        if found.held < found.credits {
            self.credit -= 1;
        }
        found.held += 1;
        if found.held >= found.credits {
            self.free.remove(&listener);
        }
    }

    /// And one less. A listener whose messages are leased for a time gets no other for it: it has
    /// asked for so many, and left.
    pub(crate) fn released(&mut self, listener: ListenerId) {
        if self.all.get(&listener).is_some_and(|found| found.lease.is_none()) {
            self.returned(listener);
        }
    }

    /// And one less that it never got.
    pub(crate) fn returned(&mut self, listener: ListenerId) {
        let Some(found) = self.all.get_mut(&listener) else { return };
        found.held = found.held.saturating_sub(1);
        if found.held < found.credits {
            self.credit += 1;
            self.free.insert(listener);
        }
    }
}
