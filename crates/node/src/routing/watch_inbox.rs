//! News of another node on their way to a client, which takes them at its own pace.
//!
//! They are received whether or not the client takes them: what lies in a connection that is shared
//! would hold up the news of all others. News that come before the client has taken those that are
//! here are merged with them: one state waits here, and the states between are lost. It has room
//! among the client's answers, and waits for a moment. For a client that does not take it nothing
//! is kept: the watch at the other node ends, and another is begun once the client takes something
//! again.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use futures::{Stream, StreamExt};
use meridian_gateway::{Kept, NoRoom, Room, size_of_news};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::network::call_failure::Failed;
use crate::watches::News;

/// A client that takes what comes has taken it by then.
const TAKEN_WITHIN: Duration = Duration::from_secs(1);

/// The client's end. To drop it ends the stream that it is filled from.
pub(crate) struct Inbox {
    shared: Arc<Shared>,
    _stop: DropGuard,
}

struct Shared {
    state: Mutex<State>,
    waker: AtomicWaker,
    taken: Notify,
    room: Room,
}

#[derive(Default)]
struct State {
    waits: Option<(News, Kept)>,
    /// How the stream has ended, if by a failure.
    failed: Option<Failed>,
    lacked: Option<NoRoom>,
    is_over: bool,
}

impl Inbox {
    /// Is filled from `news` as they come. Within a runtime.
    pub(crate) fn of(
        news: impl Stream<Item = Result<News, Failed>> + Send + 'static,
        room: Room,
    ) -> Self {
        let (state, waker, taken) = (Mutex::default(), AtomicWaker::new(), Notify::new());
        let shared = Arc::new(Shared { state, waker, taken, room });
        let stop = CancellationToken::new();
        let filling = Arc::clone(&shared).fill(news.boxed());
        drop(tokio::spawn(stop.clone().run_until_cancelled_owned(filling)));
        Self { shared, _stop: stop.drop_guard() }
    }

    /// The next news, with the room that they are kept in.
    pub(crate) async fn next_kept(&mut self) -> Option<Result<(News, Kept), Failed>> {
        poll_fn(|context| self.shared.poll(context)).await
    }

    /// The room that was lacking, where it has ended for want of it.
    pub(crate) fn lacked(&self) -> Option<NoRoom> {
        self.shared.state.lock().lacked
    }
}

impl Shared {
    async fn fill(self: Arc<Self>, mut news: impl Stream<Item = Result<News, Failed>> + Unpin) {
        let mut until = None;
        loop {
            let next = tokio::select! {
                biased;
                () = self.taken.notified() => {
                    let more = self.state.lock().waits.is_some();
                    until = more.then(|| Instant::now() + TAKEN_WITHIN);
                    continue;
                }
                () = sleep_until(until) => {
                    self.state.lock().waits = None;
                    break;
                }
                next = news.next() => next,
            };
            let goes_on = match next {
                Some(Ok(news)) => self.put(news),
                Some(Err(failed)) => {
                    self.state.lock().failed = Some(failed);
                    false
                }
                None => false,
            };
            if !goes_on {
                break;
            }
            until.get_or_insert_with(|| Instant::now() + TAKEN_WITHIN);
            self.waker.wake();
        }
        self.state.lock().is_over = true;
        self.waker.wake();
        // The last news wait no longer than others.
        if self.state.lock().waits.is_some() {
            tokio::select! {
                () = self.taken.notified() => {}
                () = sleep_until(until) => {}
            }
            self.state.lock().waits = None;
        }
    }

    /// Whether there was room for it.
    fn put(&self, mut news: News) -> bool {
        let mut state = self.state.lock();
        let kept = match state.waits.take() {
            Some((before, mut kept)) => {
                news.follow(before);
                kept.resize(size_of_news(&news.values)).map(|()| kept)
            }
            None => self.room.take(size_of_news(&news.values)),
        };
        state.lacked = kept.as_ref().err().copied();
        state.waits = kept.ok().map(|kept| (news, kept));
        state.waits.is_some()
    }

    fn poll(&self, context: &Context<'_>) -> Poll<Option<Result<(News, Kept), Failed>>> {
        self.waker.register(context.waker());
        let mut state = self.state.lock();
        if let Some(waits) = state.waits.take() {
            self.taken.notify_one();
            return Poll::Ready(Some(Ok(waits)));
        }
        if let Some(failed) = state.failed.take() {
            return Poll::Ready(Some(Err(failed)));
        }
        if state.is_over { Poll::Ready(None) } else { Poll::Pending }
    }
}

async fn sleep_until(until: Option<Instant>) {
    match until {
        Some(until) => tokio::time::sleep_until(until).await,
        None => std::future::pending().await,
    }
}

impl Stream for Inbox {
    type Item = Result<News, Failed>;

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<News, Failed>>> {
        self.shared.poll(context).map(|next| next.map(|next| next.map(|(news, _)| news)))
    }
}

#[cfg(test)]
mod tests;
