//! News of this node on their way to another process.
//!
//! A message that was encoded for a connection counts until the connection has room for more, which
//! it has once the other process receives: so many watches of large values, of a process that does
//! not receive, take no more than a part of this node's memory. Where there is no room for news,
//! the watch waits for it with nothing, and then has the news as they are by then.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream};
use meridian_gateway::size_of_news;
use meridian_memory::{ByteBudget, Exhausted, Held};
use meridian_proto::shard as wire;
use tonic::Status;

use crate::routing::watch_news::to_wire;
use crate::watches::{News, Watcher};

/// Until it is asked again for room, in the order of asking.
const ROOM_TIMEOUT: Duration = Duration::from_secs(60);

/// The answer to a watch of another process. What is `beside` lives as long as the watch does.
pub(crate) struct Sending<B> {
    watcher: Watcher,
    budget: ByteBudget,
    room: Room,
    _beside: B,
}

enum Room {
    /// Nothing is on its way.
    None,
    /// There was none for news, which are asked for again.
    Waiting(BoxFuture<'static, Result<Held, Exhausted>>),
    /// For news that are asked for.
    Ready(Held),
    /// Of a message that was just encoded: the connection takes it before it has room for another.
    Encoded(Held),
    Taken(Held),
}

impl<B> Sending<B> {
    pub(crate) fn new(watcher: Watcher, budget: ByteBudget, beside: B) -> Self {
        Self { watcher, budget, room: Room::None, _beside: beside }
    }

    /// Whether there is room for these news. If not, it is waited for.
    fn keep(&mut self, news: &News) -> bool {
        let bytes = usize::try_from(size_of_news(&news.values)).unwrap_or(usize::MAX);
        let bytes = bytes.min(self.budget.total_bytes());
        let held = match std::mem::replace(&mut self.room, Room::None) {
            Room::Ready(mut held) => {
                held.shrink_to(bytes);
                held.try_grow(bytes - held.bytes()).map(|()| held)
            }
            _ => self.budget.try_take(bytes),
        };
        let is_kept = held.is_ok();
        self.room = held.map_or_else(
            |_| {
                let budget = self.budget.clone();
                Room::Waiting(async move { budget.take(bytes, ROOM_TIMEOUT).await }.boxed())
            },
            Room::Encoded,
        );
        is_kept
    }
}

impl<B: Unpin> Stream for Sending<B> {
    type Item = Result<wire::WatchNews, Status>;

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<wire::WatchNews, Status>>> {
        let this = &mut *self;
        loop {
            match std::mem::replace(&mut this.room, Room::None) {
                Room::Encoded(held) => {
                    this.room = Room::Taken(held);
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                Room::Waiting(mut waiting) => match waiting.poll_unpin(context) {
                    Poll::Ready(room) => this.room = room.map_or(Room::None, Room::Ready),
                    Poll::Pending => {
                        this.room = Room::Waiting(waiting);
                        return Poll::Pending;
                    }
                },
                Room::Ready(held) => this.room = Room::Ready(held),
                Room::Taken(held) => drop(held),
                Room::None => {}
            }
            let told = ready!(Pin::new(&mut this.watcher).poll_next(context));
            let news = match told {
                None => return Poll::Ready(None),
                Some(Ok(news)) => news,
                Some(Err(refusal)) => {
                    let status = Status::failed_precondition(refusal.to_string());
                    return Poll::Ready(Some(Err(status)));
                }
            };
            if this.keep(&news) {
                return Poll::Ready(Some(Ok(to_wire(&news))));
            }
            this.watcher.take_back(&news);
        }
    }
}

#[cfg(test)]
mod tests;
