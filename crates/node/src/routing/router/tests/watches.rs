//! Watches: which node feeds one, what the next node is asked for, and what is told of it.

use std::task::{Context, Waker};

use bytes::Bytes;
use futures::future::poll_fn;
use meridian_gateway::{NoRoom, Room, WatchNews, WatchedValue, Watching};
use meridian_types::{Entry, Value, ValueEncoding, Versionstamp};

use super::*;
use crate::watches::News;
use world::{Fed, Time, Voters, run_beside};

type RoutedWatch = super::RoutedWatch<Arc<Voters>, Time>;

fn watch(consistency: Consistency) -> Watch {
    let keys = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
    Watch { database: DEV_DEFAULT_DATABASE, consistency, keys, room: Room::alone(1 << 20) }
}

fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

fn stamp(position: Position) -> Versionstamp {
    Versionstamp::new(position, 0)
}

fn value(written: Position) -> Option<WatchedValue> {
    let value = Value { encoding: ValueEncoding::Bytes, data: Bytes::from_static(b"v") };
    let key = Bytes::from_static(b"a");
    Some(WatchedValue::present(Entry { key, value, versionstamp: stamp(written) }))
}

fn absent() -> Option<WatchedValue> {
    Some(WatchedValue::absent())
}

fn news(position: Position, values: WatchNews) -> News {
    News { position, values }
}

impl World {
    /// The nodes tell this first from now on.
    fn first(&self, position: Position, values: WatchNews) {
        *self.voters.first_news.lock() = news(position, values);
    }

    /// The node that feeds the watch.
    fn fed_by(&self) -> NodeId {
        self.voters.watches.lock().last().unwrap().0
    }

    /// The versions of keys, and the oldest sequence, that the last node was asked to go on behind.
    fn asked_behind(&self) -> (Vec<Option<Option<Versionstamp>>>, u64) {
        let watches = self.voters.watches.lock();
        let (_, wanted, _) = watches.last().unwrap();
        (wanted.shown.clone(), wanted.min_sequence)
    }

    fn feed(&self, fed: Fed) {
        let watches = self.voters.watches.lock();
        watches.last().unwrap().2.unbounded_send(fed).unwrap();
    }

    async fn begin(&self, consistency: Consistency) -> RoutedWatch {
        self.router.watch(watch(consistency)).await.unwrap()
    }
}

async fn told(watch: &mut RoutedWatch) -> WatchNews {
    let told = poll_fn(|context| watch.poll_news(context)).await;
    told.expect("the watch goes on").expect("room for news")
}

fn is_quiet(watch: &mut RoutedWatch) -> bool {
    watch.poll_news(&mut Context::from_waker(Waker::noop())).is_pending()
}

#[test]
fn strong_watch_begins_behind_a_strong_read_and_an_eventual_one_behind_what_was_served() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![value(at(1, 3)), absent()]);
        let mut strong = world.begin(Consistency::Strong).await;
        assert_eq!(world.voters.calls(), 1, "the leader is asked where it stands");
        assert_eq!(world.asked_behind(), (vec![None, None], 1));
        assert_eq!(told(&mut strong).await, [value(at(1, 3)), absent()]);
        let mut eventual = world.begin(Consistency::Eventual).await;
        assert_eq!(world.voters.calls(), 1, "no node is asked");
        assert_eq!(world.asked_behind(), (vec![None, None], 9), "as the gateway has told before");
        assert_eq!(told(&mut eventual).await.len(), 2);
    });
}

#[test]
fn watch_whose_node_is_lost_goes_on_with_another_behind_what_it_told() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![value(at(1, 3)), absent()]);
        let mut watch = world.begin(Consistency::Eventual).await;
        assert_eq!(told(&mut watch).await.len(), 2);
        world.feed(Ok(news(at(1, 12), vec![value(at(1, 12)), None])));
        assert_eq!(told(&mut watch).await, [value(at(1, 12)), None]);
        let lost = world.fed_by();
        world.voters.link(lost.0, Link::Refused);
        world.feed(Err(Failed::Unknown("the connection broke".to_owned())));
        world.first(at(1, 15), vec![value(at(1, 12)), value(at(1, 14))]);
        assert_eq!(told(&mut watch).await, [None, value(at(1, 14))], "what is new alone");
        assert_ne!(world.fed_by(), lost);
        let shown = vec![Some(Some(stamp(at(1, 12)))), Some(None)];
        assert_eq!(world.asked_behind(), (shown, 12));
    });
}

#[test]
fn watch_outlives_an_outage_and_tells_the_last_state_then() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![absent(), absent()]);
        let mut watch = world.begin(Consistency::Eventual).await;
        assert_eq!(told(&mut watch).await.len(), 2);
        let nodes: Vec<NodeId> = (1..=7).map(NodeId).collect();
        nodes.iter().for_each(|node| world.voters.link(node.0, Link::Silent));
        world.feed(Err(Failed::Unknown("the connection broke".to_owned())));
        let time = world.time.clone();
        let ends = async {
            time.sleep(60 * DEADLINE).await;
            nodes.iter().for_each(|node| world.voters.link(node.0, Link::Up));
            world.first(at(1, 99), vec![absent(), value(at(1, 98))]);
        };
        let ((), told) = futures::join!(ends, told(&mut watch));
        assert_eq!(told, [None, value(at(1, 98))]);
    });
}

#[test]
fn watch_that_no_node_serves_in_time_is_refused_before_it_begins() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.refusing.lock().extend((1..=7).map(NodeId));
        let began = time.now();
        let refused = router.watch(watch(Consistency::Eventual)).await.err().unwrap();
        assert!(refused.reason.contains("it has not caught up"), "{}", refused.reason);
        let took = time.now() - began;
        assert!(took <= DEADLINE + Duration::from_secs(3), "{took:?}");
    });
}

#[test]
fn what_a_failover_took_back_is_told_as_it_is_now() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 100), vec![value(at(1, 95)), value(at(1, 80))]);
        let mut watch = world.begin(Consistency::Eventual).await;
        assert_eq!(told(&mut watch).await.len(), 2);
        world.learns(|cluster| {
            let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
            shard.epoch = Epoch(2);
            shard.bases.push((Epoch(2), at(1, 90)));
        });
        world.feed(Err(Failed::NotDone("it has left the history".to_owned())));
        world.first(at(2, 91), vec![absent(), value(at(1, 80))]);
        assert_eq!(told(&mut watch).await, [absent(), None]);
        assert_eq!(world.asked_behind().1, 90);
        assert!(is_quiet(&mut watch));
    });
}

/// After a failover with loss, which this gateway hears of late.
#[test]
fn watch_that_was_told_of_an_epoch_is_fed_by_no_node_of_the_one_before() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![value(at(1, 3)), absent()]);
        let mut watch = world.begin(Consistency::Eventual).await;
        told(&mut watch).await;
        world.feed(Ok(news(at(2, 12), vec![value(at(2, 12)), None])));
        assert_eq!(told(&mut watch).await, [value(at(2, 12)), None]);
        let epoch = |node| Epoch(if node == 5 { 2 } else { 1 });
        *world.voters.epochs.lock() = (1..=7).map(|node| (NodeId(node), epoch(node))).collect();
        world.feed(Err(Failed::Unknown("the connection broke".to_owned())));
        world.first(at(2, 15), vec![value(at(2, 12)), value(at(2, 14))]);
        assert_eq!(told(&mut watch).await, [None, value(at(2, 14))]);
        assert_eq!(world.fed_by(), NodeId(5));
        world.begin(Consistency::Eventual).await;
        assert_eq!(world.fed_by(), NodeId(5), "also a watch that begins later");
    });
}

/// By a node that has not heard of the next epoch.
#[test]
fn what_was_lost_is_not_told_once_it_is_known_to_be_lost() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 85), vec![absent(), absent()]);
        let mut watch = world.begin(Consistency::Eventual).await;
        told(&mut watch).await;
        world.learns(|cluster| {
            let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
            shard.epoch = Epoch(2);
            shard.bases.push((Epoch(2), at(1, 90)));
        });
        world.feed(Ok(news(at(1, 89), vec![value(at(1, 89)), None])));
        assert_eq!(told(&mut watch).await, [value(at(1, 89)), None], "it is in the history");
        world.feed(Ok(news(at(1, 95), vec![value(at(1, 95)), None])));
        world.first(at(2, 91), vec![value(at(1, 89)), value(at(2, 91))]);
        assert_eq!(told(&mut watch).await, [None, value(at(2, 91))]);
        world.feed(Ok(news(at(1, 90), vec![value(at(1, 90)), None])));
        world.first(at(2, 92), vec![value(at(2, 92)), value(at(2, 91))]);
        assert_eq!(told(&mut watch).await, [value(at(2, 92)), None], "of an epoch before");
    });
}

#[test]
fn first_news_that_were_lost_before_the_client_took_them_are_not_told() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 95), vec![value(at(1, 95)), absent()]);
        let mut watch = world.begin(Consistency::Eventual).await;
        world.learns(|cluster| {
            let shard = cluster.shards.values_mut().next().unwrap();
            shard.epoch = Epoch(2);
            shard.bases.push((Epoch(2), at(1, 90)));
        });
        world.first(at(2, 91), vec![absent(), value(at(2, 91))]);
        assert_eq!(told(&mut watch).await, [absent(), value(at(2, 91))]);
    });
}

#[test]
fn news_that_are_taken_back_are_asked_for_once_more() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![value(at(1, 3)), absent()]);
        let mut watch = world.begin(Consistency::Eventual).await;
        told(&mut watch).await;
        world.feed(Ok(news(at(1, 12), vec![value(at(1, 12)), None])));
        let unsent = told(&mut watch).await;
        watch.take_back(&unsent);
        world.first(at(1, 20), vec![value(at(1, 19)), absent()]);
        assert_eq!(told(&mut watch).await, [value(at(1, 19)), None]);
        assert_eq!(world.asked_behind().0, [None, Some(None)]);
    });
}

#[test]
fn first_news_count_until_they_are_told_and_are_fetched_again_where_there_was_no_room() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![value(at(1, 3)), absent()]);
        let bytes = meridian_gateway::size_of_news(&vec![value(at(1, 3)), absent()]);
        let room = Room::alone(2 * bytes);
        let begin = async || {
            let watch = Watch { room: room.clone(), ..watch(Consistency::Eventual) };
            world.router.watch(watch).await.unwrap()
        };
        let mut watch = begin().await;
        let mut without_room = begin().await;
        assert_eq!(room.take(bytes).err(), Some(NoRoom(bytes)), "the first has most of it");
        let told_none = poll_fn(|context| without_room.poll_news(context)).await;
        assert_eq!(told_none, Some(Err(NoRoom(bytes))));
        let begun = world.voters.watches.lock().len();
        assert_eq!(told(&mut watch).await.len(), 2);
        assert_eq!(world.voters.watches.lock().len(), begun, "none is fetched unasked");
        world.first(at(1, 10), vec![value(at(1, 10)), absent()]);
        assert_eq!(told(&mut without_room).await, [value(at(1, 10)), absent()]);
        assert!(room.take(bytes).is_ok(), "it was told");
    });
}

#[test]
fn watch_that_went_to_another_node_comes_back_to_the_one_of_its_process() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![absent(), absent()]);
        let began = world.time.now();
        let mut watch = world.begin(Consistency::Eventual).await;
        told(&mut watch).await;
        assert_eq!(world.fed_by(), NodeId(2));
        world.voters.link(2, Link::Refused);
        world.feed(Err(Failed::Unknown("it stops".to_owned())));
        world.first(at(1, 10), vec![value(at(1, 10)), absent()]);
        told(&mut watch).await;
        assert_ne!(world.fed_by(), NodeId(2));
        world.voters.link(2, Link::Up);
        world.first(at(1, 11), vec![value(at(1, 11)), absent()]);
        assert_eq!(told(&mut watch).await, [value(at(1, 11)), None]);
        assert_eq!(world.fed_by(), NodeId(2));
        let took = world.time.now() - began;
        assert!(took < Duration::from_secs(150), "{took:?}");
    });
}

#[test]
fn watches_of_a_gateway_without_a_node_look_for_the_nearest_now_and_then() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![absent(), absent()]);
        let began = world.time.now();
        let mut watches = Vec::new();
        for _ in 0..20 {
            let mut watch = world.begin(Consistency::Eventual).await;
            told(&mut watch).await;
            watches.push(watch);
        }
        world.first(at(1, 10), vec![value(at(1, 10)), absent()]);
        let all = watches.iter_mut().map(|watch| async {
            assert_eq!(told(watch).await, [value(at(1, 10)), None]);
            world.time.now() - began
        });
        let mut came = futures::future::join_all(all).await;
        came.sort();
        let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
        assert!(came[0] >= minutes(10) && came[19] < minutes(21), "{came:?}");
        assert!(came[19] - came[0] > minutes(2), "they come a few at a time: {came:?}");
    });
}

#[test]
fn watch_ends_with_its_database() {
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![absent(), absent()]);
        let mut watch = world.begin(Consistency::Eventual).await;
        told(&mut watch).await;
        world.learns(|cluster| drop(cluster.databases.remove(&DEV_DEFAULT_DATABASE)));
        world.feed(Err(Failed::NotDone("no such shard".to_owned())));
        assert_eq!(poll_fn(|context| watch.poll_news(context)).await, None);
    });
}

#[test]
fn many_watches_that_lose_their_node_look_for_another_one_after_the_other() {
    const WATCHES: usize = 300;
    run(AT_ONCE, |world| async move {
        world.first(at(1, 9), vec![absent(), absent()]);
        let mut watches = Vec::new();
        for _ in 0..WATCHES {
            let mut watch = world.begin(Consistency::Eventual).await;
            told(&mut watch).await;
            watches.push(watch);
        }
        let feeds = std::mem::take(&mut *world.voters.watches.lock());
        for (.., feed) in &feeds {
            drop(feed.unbounded_send(Err(Failed::Unknown("lost".to_owned()))));
        }
        world.first(at(1, 10), vec![value(at(1, 10)), absent()]);
        let began = world.time.now();
        let all = watches.iter_mut().map(|watch| async {
            assert_eq!(told(watch).await, [value(at(1, 10)), None]);
            world.time.now() - began
        });
        let took = futures::future::join_all(all).await;
        let at_once = took.iter().filter(|took| **took < Duration::from_millis(100)).count();
        // About 140; all of them, if the pauses did not grow with their number.
        assert!(at_once < WATCHES * 3 / 4, "{at_once} at once");
        assert!(took.iter().all(|took| *took < Duration::from_secs(1)), "{took:?}");
    });
}
