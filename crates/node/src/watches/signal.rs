//! How a watch hears that there may be news: by one bit, and no queue.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::Context;

use futures::task::AtomicWaker;

pub(super) struct Signal {
    raised: AtomicBool,
    waker: AtomicWaker,
}

impl Signal {
    /// A watch that begins has news.
    pub(super) fn raised() -> Self {
        Self { raised: AtomicBool::new(true), waker: AtomicWaker::new() }
    }

    pub(super) fn raise(&self) {
        if !self.raised.swap(true, Ordering::AcqRel) {
            self.waker.wake();
        }
    }

    /// Whether it was raised since it was last taken. If not, `context` is woken when it is.
    pub(super) fn take(&self, context: &Context<'_>) -> bool {
        self.waker.register(context.waker());
        self.raised.swap(false, Ordering::AcqRel)
    }
}

/// A watch, by a number that is larger than those of the watches before it.
pub(super) type WatcherId = u64;

/// The signals of some watches, in their order. Most keys have one watch, and some have thousands:
/// a list takes less memory than a map does for one, and is as fast for thousands.
#[derive(Default)]
pub(super) struct Signals(Vec<(WatcherId, Arc<Signal>)>);

impl Signals {
    pub(super) fn insert(&mut self, id: WatcherId, signal: &Arc<Signal>) {
        if let Err(at) = self.0.binary_search_by_key(&id, |(id, _)| *id) {
            self.0.insert(at, (id, Arc::clone(signal)));
        }
    }

    pub(super) fn remove(&mut self, id: WatcherId) {
        if let Ok(at) = self.0.binary_search_by_key(&id, |(id, _)| *id) {
            self.0.remove(at);
            if self.0.len() < self.0.capacity() / 4 {
                self.0.shrink_to(self.0.len() * 2);
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those from this one on.
    pub(super) fn starting_at(
        &self,
        id: WatcherId,
    ) -> impl Iterator<Item = (WatcherId, &Arc<Signal>)> {
        let before = self.0.partition_point(|(before, _)| *before < id);
        self.0.iter().skip(before).map(|(id, signal)| (*id, signal))
    }

    pub(super) fn into_all(self) -> impl Iterator<Item = Arc<Signal>> {
        self.0.into_iter().map(|(_, signal)| signal)
    }
}
