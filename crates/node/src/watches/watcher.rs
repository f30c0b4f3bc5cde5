//! One watch of keys of this node's state. It keeps no queue: its news are of when they are asked for.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures::Stream;

use super::shared::Shared;
use super::signal::{Signal, WatcherId};
use super::table::Told;
use super::{News, Shown, WatchedKey};
use crate::read::refusal::ReadRefusal;

/// Its news, until the state leaves the shard's history. The first come also where nothing is other
/// than it was shown.
pub(crate) struct Watcher {
    shared: Arc<Shared>,
    id: WatcherId,
    signal: Arc<Signal>,
    keys: Box<[WatchedKey]>,
    shown: Box<[Shown]>,
    is_first: bool,
}

impl Watcher {
    pub(super) fn new(
        shared: Arc<Shared>,
        id: WatcherId,
        signal: Arc<Signal>,
        keys: Box<[WatchedKey]>,
        shown: Box<[Shown]>,
    ) -> Self {
        Self { shared, id, signal, keys, shown, is_first: true }
    }
}

impl Watcher {
    /// These news could not be sent: what they told of is told again, as it is by then.
    pub(crate) fn take_back(&mut self, news: &News) {
        for (shown, told) in self.shown.iter_mut().zip(&news.values) {
            if told.is_some() {
                *shown = None;
            }
        }
        self.is_first = true;
        self.signal.raise();
    }
}

impl Stream for Watcher {
    type Item = Result<News, ReadRefusal>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<News, ReadRefusal>>> {
        if !self.signal.take(context) {
            return Poll::Pending;
        }
        let Self { shared, id, signal, keys, shown, is_first } = &mut *self;
        match shared.tell((*id, &*signal), keys, shown, *is_first) {
            Told::News(news) => {
                *is_first = false;
                Poll::Ready(Some(Ok(news)))
            }
            Told::Nothing | Told::Reading => Poll::Pending,
            Told::Lost => Poll::Ready(Some(Err(ReadRefusal::OtherEpoch))),
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.shared.leave(self.id, &self.keys);
    }
}
