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
use meridian_gateway::{Kept, NoRoom, Read, Room, Unavailable, Watch, WatchNews, Watching};
use meridian_types::{Consistency, DatabaseId, Epoch, EpochHistory, NodeId, Position, ShardId};
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
/// A node feeds a watch for so long where a nearer one is to: the node of this process, or one of
/// this region.
const AFAR: Duration = Duration::from_secs(60);
/// A node of this region feeds a watch of a gateway without a node for so long, and up to twice
/// that; then the nearest is asked. So those that a node has lost for a while come back a few at a
/// time.
const BESIDE: Duration = Duration::from_secs(600);

/// A watch of one client.
pub(crate) struct RoutedWatch<N, C> {
    router: Arc<Router<N, C>>,
    place: Place,
    course: Course,
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
    Moving(BoxFuture<'static, Result<Begun, Unavailable>>),
    /// The database is no more.
    Ended,
}

/// The point that a watch has come to.
#[derive(Clone)]
struct Course {
    shown: Vec<Shown>,
    position: Position,
    room: Room,
}

/// A node that has begun to feed a watch, or would have.
type Begun = Result<Fed, NoRoom>;

struct Fed {
    node: NodeId,
    first: News,
    /// In which the first news are kept.
    kept: Kept,
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
        let Watch { database, consistency, keys, room } = watch;
        let position = match consistency {
            Consistency::Strong => {
                let nothing = Read { database, consistency, ranges: Vec::new() };
                router.read_at(nothing).await?.1
            }
            Consistency::Eventual => Position::ZERO,
        };
        let (shard, _) = router.shard(database)?;
        let place = Place { database, shard, keys: keys.into() };
        let course = Course { shown: vec![None; place.keys.len()], position, room };
        let begun = Arc::clone(&router).feed(place.clone(), course.clone(), Some(until)).await?;
        // Told when it is first asked for.
        let feed = Feed::Moving(ready(Ok(begun)).boxed());
        Ok(Self { router, place, course, feed })
    }

    /// Whether a state at this position is older than what was told, or was lost: a node that has
    /// not heard of the present epoch goes on to tell of the one before.
    fn is_over(&self, position: Position) -> bool {
        position.epoch < self.course.position.epoch
            || self.router.has_left(self.place.shard, position)
    }

    /// The part of these news that is news to the client, if any is.
    fn tell(&mut self, news: News) -> Option<WatchNews> {
        self.course.position = news.position;
        self.router.record_served(self.place.shard, news.position);
        let told = news.values.into_iter().zip(&mut self.course.shown);
        let told = told.map(|(value, shown)| {
            let value = value?;
            let is_news = shown.replace(value.versionstamp()) != Some(value.versionstamp());
            is_news.then_some(value)
        });
        Some(told.collect::<WatchNews>()).filter(|told| told.iter().any(Option::is_some))
    }

    fn look_for_another(&mut self) {
        let router = Arc::clone(&self.router);
        let feed = router.feed(self.place.clone(), self.course.clone(), None);
        self.feed = Feed::Moving(feed.boxed());
    }
}

impl<N: Nodes, C: Clock> Watching for RoutedWatch<N, C> {
    fn poll_news(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
        loop {
            let news = match &mut self.feed {
                Feed::Ended => return Poll::Ready(None),
                Feed::Moving(moving) => match std::task::ready!(moving.poll_unpin(context)) {
                    Ok(Ok(Fed { node, first, kept, news })) => {
                        // It may have waited for the client for long.
                        if self.is_over(first.position) {
                            self.look_for_another();
                            continue;
                        }
                        self.feed = Feed::From(node, news);
                        drop(kept);
                        first
                    }
                    Ok(Err(none)) => {
                        self.look_for_another();
                        return Poll::Ready(Some(Err(none)));
                    }
                    Err(Unavailable { reason }) => {
                        tracing::debug!(reason, "a watch ends");
                        self.feed = Feed::Ended;
                        continue;
                    }
                },
                Feed::From(node, news) => {
                    let (node, next) = (*node, std::task::ready!(news.poll_next_unpin(context)));
                    match next {
                        Some(Ok(news)) if !self.is_over(news.position) => news,
                        ended => {
                            if let Some(Err(failed)) = ended {
                                self.router.record(self.place.shard, node, Err(&failed));
                                tracing::debug!(%node, ?failed, "a watch looks for another node");
                            }
                            metrics::counter!("meridian_gateway_moved_watches_total").increment(1);
                            self.look_for_another();
                            continue;
                        }
                    }
                }
            };
            if let Some(told) = self.tell(news) {
                return Poll::Ready(Some(Ok(told)));
            }
        }
    }

    /// The values are gone: a node is asked for them once more.
    fn take_back(&mut self, news: &WatchNews) {
        for (told, shown) in news.iter().zip(&mut self.course.shown) {
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
        place: Place,
        course: Course,
        until: Option<Duration>,
    ) -> Result<Begun, Unavailable> {
        let moving = until.is_none().then(|| Moving::count(&self.watches_moving));
        if let Some(moving) = &moving {
            self.clock.sleep_until(self.clock.now() + moving.pause()).await;
        }
        let mut rounds = 0;
        loop {
            let known = self.directory.watch();
            let shard = self.shard(place.database)?;
            let reason = match self.feed_from_any(&place, shard, &course, until).await {
                Ok(begun) => return Ok(begun),
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
        course: &Course,
        until: Option<Duration>,
    ) -> Result<Begun, String> {
        let mut reason = "no node is known".to_owned();
        for node in self.readers(shard.0, Consistency::Eventual) {
            if until.is_some_and(|until| self.clock.now() >= until) {
                break;
            }
            let position = course.position;
            let shard = (shard.0, self.not_before(position, shard));
            let min_sequence = self.not_older_than(position, shard).max(self.min_sequence(shard));
            let (keys, shown) = (Arc::clone(&place.keys), course.shown.clone());
            let wanted = Wanted { database: place.database, keys, shown, min_sequence };
            // Whether it has left makes no difference.
            let (working, departure) = (Notify::new(), Departure::default());
            departure.leave();
            let call = self.nodes.watch(node, shard, wanted, course.room.clone());
            let asked = self.within(node, Duration::MAX, &working, &departure, call).await;
            let result = asked.as_ref().map(drop);
            // A node may wait for the position that it is to begin with: that is no silence.
            if !matches!(result, Err(Failed::Unknown(_))) {
                self.record(shard.0, node, result);
                let (now, eventual) = (self.clock.now(), Consistency::Eventual);
                self.refusals.record(now, node, shard.0, eventual, result);
            }
            match asked {
                Ok(Err(none)) => return Ok(Err(none)),
                Ok(Ok((first, ..))) if self.has_left(shard.0, first.position) => {
                    reason = "a node tells of what was lost".to_owned();
                }
                Ok(Ok((first, kept, news))) => {
                    let news = self.for_a_while(node, news);
                    return Ok(Ok(Fed { node, first, kept, news }));
                }
                Err(failed) => reason = text(failed),
            }
        }
        Err(reason)
    }

    /// The epoch that a node must be in to tell nothing older than this position, or than what this
    /// gateway has served: this process may have seen a state of an epoch that it has not heard of.
    fn not_before(&self, position: Position, (shard, known): (ShardId, Epoch)) -> Epoch {
        let served = self.served.lock().get(&shard).map_or(known, |served| served.epoch);
        known.max(position.epoch).max(served)
    }

    /// Whether the state at this position is none of the shard's history, as far as this process
    /// knows.
    fn has_left(&self, shard: ShardId, position: Position) -> bool {
        let known = self.directory.known();
        let info = known.cluster.shards.get(&shard).filter(|info| position.epoch < info.epoch);
        info.is_some_and(|info| EpochHistory::new(info.bases.clone()).leaves(position).is_some())
    }

    fn is_near(&self, node: NodeId) -> bool {
        let known = self.directory.known();
        known.cluster.present_node(node).is_some_and(|node| node.region == self.region)
    }

    /// The news of this node, until the watch is to look for a nearer one.
    fn for_a_while(self: &Arc<Self>, node: NodeId, news: NewsStream) -> NewsStream {
        let lasts = match self.local_node {
            Some(here) if here == node => return news,
            None if self.is_near(node) => rand::random_range(BESIDE..2 * BESIDE),
            // Watches that moved together ask again one after the other.
            _ => rand::random_range(AFAR..2 * AFAR),
        };
        let (router, end) = (Arc::clone(self), self.clock.now() + lasts);
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
        Failed::NotDone(reason)
        | Failed::Busy(reason)
        | Failed::Unreachable(reason)
        | Failed::Unknown(reason) => reason,
    }
}
