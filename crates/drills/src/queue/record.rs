//! The events of a queue's clients, while they are recorded.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use meridian_checker::queue::{DeadRead, Enqueue, QueueEvent};

#[derive(Debug)]
pub(super) struct Record {
    origin: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    events: Vec<QueueEvent>,
    messages: u64,
    /// Deaths that are recorded, by the message and what was found: later reads say no more.
    deaths: BTreeSet<(u64, u32)>,
    last_message: Instant,
}

/// The place of an event that is completed later.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place(usize);

impl Record {
    pub(super) fn new(origin: Instant) -> Self {
        let (events, deaths) = (Vec::new(), BTreeSet::new());
        let inner = Inner { events, messages: 0, deaths, last_message: Instant::now() };
        Self { origin, inner: Mutex::new(inner) }
    }

    pub(super) fn now_ns(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The invocation of an enqueue of a new message, which gets the next number.
    pub(super) fn enqueue(&self, enqueue: impl FnOnce(u64, u64) -> Enqueue) -> (Place, u64) {
        let mut inner = self.lock();
        inner.messages += 1;
        let message = inner.messages;
        inner.events.push(QueueEvent::Enqueue(enqueue(message, self.now_ns())));
        (Place(inner.events.len() - 1), message)
    }

    pub(super) fn push(&self, event: impl FnOnce(u64) -> QueueEvent) -> Place {
        let mut inner = self.lock();
        let event = event(self.now_ns());
        if matches!(event, QueueEvent::Handed(_)) {
            inner.last_message = Instant::now();
        }
        inner.events.push(event);
        Place(inner.events.len() - 1)
    }

    pub(super) fn complete(&self, place: Place, complete: impl FnOnce(&mut QueueEvent, u64)) {
        if let Some(event) = self.lock().events.get_mut(place.0) {
            complete(event, self.now_ns());
        }
    }

    pub(super) fn died(&self, read: DeadRead) {
        let mut inner = self.lock();
        if inner.deaths.insert((read.message, read.set)) {
            inner.events.push(QueueEvent::DeadRead(read));
        }
    }

    /// The messages so far, which are numbered from 1.
    pub(super) fn messages(&self) -> u64 {
        self.lock().messages
    }

    pub(super) fn since_the_last_message(&self) -> Duration {
        self.lock().last_message.elapsed()
    }

    pub(super) fn events(&self) -> Vec<QueueEvent> {
        self.lock().events.clone()
    }

    /// A panic with the lock held leaves whole events.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
