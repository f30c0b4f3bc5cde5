//! Watches: each is fed by one node at a time, near by where there is one, and by another when that
//! one is lost, falls silent, or leaves the shard's history.
//!
//! The version told of each key stays with the watch, and so does the position that it has come to:
//! the next node tells of keys that differ from it, and of no older state.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, ready};
use futures::{FutureExt, StreamExt};
use meridian_gateway::{Read, Unavailable, Watch, WatchNews, Watching};
use meridian_types::{Consistency, DatabaseId, Epoch, NodeId, Position, ShardId};
use tokio::sync::Notify;

use super::budget::pause;
use super::{Router, unavailable};
use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use crate::routing::nodes::{NewsStream, Nodes, Wanted};
use crate::watches::{News, Shown};

/// Thousands of watches may lose their node at once: they look for another within this time for each
/// of them, and the longest of them all.
const SPREAD: Duration = Duration::from_millis(2);
const MAX_SPREAD: Duration = Duration::from_secs(2);
/// A node of another region feeds a watch for so long; then a nearer one may.
const AFAR: Duration = Duration::from_secs(60);

/// A watch of one client.
pub(crate) struct RoutedWatch<N, C> {
    router: Arc<Router<N, C>>,
    place: Place,
    shown: Vec<Shown>,
    position: Position,
    feed: Feed,
}

/// The watched keys, and the shard that holds them.
#[derive(Clone)]
struct Place {
    database: DatabaseId,
    shard: ShardId,
    keys: Arc<[Bytes]>,
}

enum Feed {
    From(NodeId, NewsStream),
    Moving(BoxFuture<'static, Result<Fed, Unavailable>>),
    /// The database is no more.
    Ended,
}

/// A node that has begun to feed a watch.
struct Fed {
    node: NodeId,
    first: News,
    news: NewsStream,
}

impl<N: Nodes, C: Clock> RoutedWatch<N, C> {
    /// Where it is strong, a read of nothing tells the position that the first news have to show: as
    /// every strong read, of a state with all that was acknowledged when it began.
    pub(super) async fn begin(
        router: Arc<Router<N, C>>,
        watch: Watch,
    ) -> Result<Self, Unavailable> {
        let until = router.clock.now() + router.deadline;
        let Watch { database, consistency, keys } = watch;
        let position = match consistency {
            Consistency::Strong => {
                let nothing = Read { database, consistency, ranges: Vec::new() };
                router.read_at(nothing).await?.1
            }
            Consistency::Eventual => Position::ZERO,
        };
        let (shard, _) = router.shard(database)?;
        let place = Place { database, shard, keys: keys.into() };
        let shown = vec![None; place.keys.len()];
        let began = (place.clone(), shown.clone(), position);
        let fed = Arc::clone(&router).feed(began, Some(until)).await?;
        // Told when it is first asked for.
        let feed = Feed::Moving(ready(Ok(fed)).boxed());
        Ok(Self { router, place, shown, position, feed })
    }

    /// The part of these news that is news to the client, if any is.
    fn tell(&mut self, news: News) -> Option<WatchNews> {
        self.position = news.position;
        self.router.record_served(self.place.shard, news.position);
        let told = news.values.into_iter().zip(&mut self.shown);
        let told = told.map(|(value, shown)| {
            let value = value?;
            let is_news = shown.replace(value.versionstamp()) != Some(value.versionstamp());
            is_news.then_some(value)
        });
        Some(told.collect::<WatchNews>()).filter(|told| told.iter().any(Option::is_some))
    }

    fn look_for_another(&mut self) {
        let (router, place) = (Arc::clone(&self.router), self.place.clone());
        let (shown, position) = (self.shown.clone(), self.position);
        self.feed = Feed::Moving(router.feed((place, shown, position), None).boxed());
    }
}

impl<N: Nodes, C: Clock> Watching for RoutedWatch<N, C> {
    fn poll_news(&mut self, context: &mut Context<'_>) -> Poll<Option<WatchNews>> {
        loop {
            let news = match &mut self.feed {
                Feed::Ended => return Poll::Ready(None),
                Feed::Moving(moving) => match std::task::ready!(moving.poll_unpin(context)) {
                    Ok(Fed { node, first, news }) => {
                        self.feed = Feed::From(node, news);
                        first
                    }
                    Err(Unavailable { reason }) => {
                        tracing::debug!(reason, "a watch ends");
                        self.feed = Feed::Ended;
                        continue;
                    }
                },
                Feed::From(node, news) => match std::task::ready!(news.poll_next_unpin(context)) {
                    Some(Ok(news)) => news,
                    ended => {
                        if let (Some(Err(failed)), node) = (ended, *node) {
                            self.router.record(self.place.shard, node, Err(&failed));
                            tracing::debug!(%node, ?failed, "a watch looks for another node");
                        }
                        metrics::counter!("meridian_gateway_moved_watches_total").increment(1);
                        self.look_for_another();
                        continue;
                    }
                },
            };
            if let Some(told) = self.tell(news) {
                return Poll::Ready(Some(told));
            }
        }
    }

    /// The values are gone: a node is asked for them once more.
    fn take_back(&mut self, news: &WatchNews) {
        for (told, shown) in news.iter().zip(&mut self.shown) {
            if told.is_some() {
                *shown = None;
            }
        }
        self.look_for_another();
    }
}

impl<N: Nodes, C: Clock> Router<N, C> {
    /// A node that has news of a watch which has come to a position. `until`: of a watch that has
    /// told nothing yet; a later one goes on until a node is found, or the database is gone.
    async fn feed(
        self: Arc<Self>,
        (place, shown, position): (Place, Vec<Shown>, Position),
        until: Option<Duration>,
    ) -> Result<Fed, Unavailable> {
        let moving = until.is_none().then(|| Moving::count(&self.watches_moving));
        if let Some(moving) = &moving {
            self.clock.sleep_until(self.clock.now() + moving.pause()).await;
        }
        let mut rounds = 0;
        loop {
            let known = self.directory.watch();
            let shard = self.shard(place.database)?;
            let reason = match self.feed_from_any(&place, shard, (&shown, position), until).await {
                Ok(fed) => return Ok(fed),
                Err(reason) => reason,
            };
            let next = self.clock.now() + pause(rounds);
            rounds += 1;
            if until.is_some_and(|until| next >= until) {
                let reason = format!("shard {} cannot be watched now: {reason}", shard.0);
                return Err(unavailable(reason));
            }
            tokio::select! {
                () = self.clock.sleep_until(next) => {}
                () = self.moved(place.database, shard, known) => rounds = 0,
            }
        }
    }

    /// The first node that has news, of those near by and then of others; or why none has.
    async fn feed_from_any(
        self: &Arc<Self>,
        place: &Place,
        shard: (ShardId, Epoch),
        (shown, position): (&[Shown], Position),
        until: Option<Duration>,
    ) -> Result<Fed, String> {
        let mut reason = "no node is known".to_owned();
        for node in self.readers(shard.0, Consistency::Eventual) {
            if until.is_some_and(|until| self.clock.now() >= until) {
                break;
            }
            let min_sequence = self.not_older_than(position, shard).max(self.min_sequence(shard));
            let (keys, shown) = (Arc::clone(&place.keys), shown.to_vec());
            let wanted = Wanted { database: place.database, keys, shown, min_sequence };
            // Whether it has left makes no difference.
            let (working, departure) = (Notify::new(), Departure::default());
            departure.leave();
            let call = self.nodes.watch(node, shard, wanted);
            let asked = self.within(node, Duration::MAX, &working, &departure, call).await;
            let result = asked.as_ref().map(drop);
            // A node may wait for the position that it is to begin with: that is no silence.
            if !matches!(result, Err(Failed::Unknown(_))) {
                self.record(shard.0, node, result);
                let (now, eventual) = (self.clock.now(), Consistency::Eventual);
                self.refusals.record(now, node, shard.0, eventual, result);
            }
            match asked {
                Ok((first, news)) => {
                    let news = if self.is_near(node) { news } else { self.for_a_while(news) };
                    return Ok(Fed { node, first, news });
                }
                Err(failed) => reason = text(failed),
            }
        }
        Err(reason)
    }

    fn is_near(&self, node: NodeId) -> bool {
        let known = self.directory.known();
        known.cluster.present_node(node).is_some_and(|node| node.region == self.region)
    }

    /// Then the watch looks for another node, and a near one comes first.
    fn for_a_while(self: &Arc<Self>, news: NewsStream) -> NewsStream {
        let (router, end) = (Arc::clone(self), self.clock.now() + AFAR);
        news.take_until(async move { router.clock.sleep_until(end).await }.boxed()).boxed()
    }
}

/// A watch that looks for another node, until this is dropped.
struct Moving(Arc<AtomicU32>);

impl Moving {
    fn count(all: &Arc<AtomicU32>) -> Self {
        all.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(all))
    }

    /// Before it looks: longer, the more of them there are.
    fn pause(&self) -> Duration {
        let spread = SPREAD.saturating_mul(self.0.load(Ordering::Relaxed).max(1));
        rand::random_range(Duration::ZERO..spread.min(MAX_SPREAD))
    }
}

impl Drop for Moving {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn text(failed: Failed) -> String {
    match failed {
        Failed::NotLeader(_) => "a node does not serve it".to_owned(),
        Failed::NotDone(reason) | Failed::Unreachable(reason) | Failed::Unknown(reason) => reason,
    }
}
