//! News of another node on their way to a client, which takes them at its own pace.
//!
//! They are received whether or not the client takes them: what lies in a connection that is shared
//! would hold up the news of all others. So one message waits here, for a moment. A client that does
//! not take it has nothing kept for it: the watch at the other node ends, and another is begun once
//! the client takes something again.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::task::AtomicWaker;
use futures::{Stream, StreamExt};
use parking_lot::Mutex;
use tokio::sync::Notify;
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

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    waker: AtomicWaker,
    taken: Notify,
}

#[derive(Default)]
struct State {
    news: Option<Result<News, Failed>>,
    is_over: bool,
}

impl Inbox {
    /// Is filled from `news` as they come. Within a runtime.
    pub(crate) fn of(news: impl Stream<Item = Result<News, Failed>> + Send + 'static) -> Self {
        let shared = Arc::<Shared>::default();
        let stop = CancellationToken::new();
        let filling = Arc::clone(&shared).fill(news.boxed());
        drop(tokio::spawn(stop.clone().run_until_cancelled_owned(filling)));
        Self { shared, _stop: stop.drop_guard() }
    }
}

impl Shared {
    async fn fill(self: Arc<Self>, mut news: impl Stream<Item = Result<News, Failed>> + Unpin) {
        while let Some(next) = news.next().await {
            self.state.lock().news = Some(next);
            self.waker.wake();
            if tokio::time::timeout(TAKEN_WITHIN, self.taken.notified()).await.is_err() {
                self.state.lock().news = None;
                break;
            }
        }
        self.state.lock().is_over = true;
        self.waker.wake();
    }
}

impl Stream for Inbox {
    type Item = Result<News, Failed>;

    fn poll_next(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<News, Failed>>> {
        self.shared.waker.register(context.waker());
        let mut state = self.shared.state.lock();
        if let Some(news) = state.news.take() {
            self.shared.taken.notify_one();
            return Poll::Ready(Some(news));
        }
        if state.is_over { Poll::Ready(None) } else { Poll::Pending }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Waker;

    use meridian_types::{Epoch, Position};

    use super::*;
    use crate::testing::until;

    fn news(sequence: u64) -> News {
        News { position: Position::new(Epoch(1), sequence), values: Vec::new() }
    }

    /// Endless news, and how many of them were received.
    fn endless() -> (impl Stream<Item = Result<News, Failed>> + Send + 'static, Arc<AtomicUsize>) {
        let received = Arc::<AtomicUsize>::default();
        let counted = Arc::clone(&received);
        let news = futures::stream::iter(1..).map(move |sequence| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(news(sequence))
        });
        (news, received)
    }

    #[tokio::test]
    async fn client_that_takes_what_comes_gets_all_of_it() {
        let mut inbox = Inbox::of(endless().0);
        for sequence in 1..=100 {
            assert_eq!(inbox.next().await.unwrap().unwrap(), news(sequence));
        }
        let ending = futures::stream::iter([Ok(news(1)), Err(Failed::Unknown("lost".to_owned()))]);
        let mut inbox = Inbox::of(ending);
        assert!(inbox.next().await.unwrap().is_ok());
        assert!(matches!(inbox.next().await, Some(Err(Failed::Unknown(_)))));
        assert!(inbox.next().await.is_none());
    }

    #[tokio::test]
    async fn client_that_takes_nothing_has_nothing_kept_for_it_and_receives_no_more() {
        let (news, received) = endless();
        let mut inbox = Inbox::of(news);
        let shared = Arc::clone(&inbox.shared);
        until("it is given up", async || shared.state.lock().is_over).await;
        assert!(shared.state.lock().news.is_none());
        assert_eq!(received.load(Ordering::SeqCst), 1);
        let ended = Pin::new(&mut inbox).poll_next(&mut Context::from_waker(Waker::noop()));
        assert!(matches!(ended, Poll::Ready(None)), "another watch is begun now");
    }
}
