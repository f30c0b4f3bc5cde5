use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Waker;

use bytes::Bytes;
use meridian_gateway::WatchedValue;
use meridian_types::{Entry, Epoch, Position, Value, ValueEncoding, Versionstamp};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::*;
use crate::testing::until;

const ROOM: u64 = 10_000;

fn value(sequence: u64, bytes: usize) -> Option<WatchedValue> {
    let value = Value { encoding: ValueEncoding::Bytes, data: vec![7; bytes].into() };
    let versionstamp = Versionstamp::new(Position::new(Epoch(1), sequence), 0);
    Some(WatchedValue::present(Entry { key: Bytes::from_static(b"a"), value, versionstamp }))
}

fn news(sequence: u64) -> News {
    let position = Position::new(Epoch(1), sequence);
    News { position, values: vec![value(sequence, 10), None] }
}

/// Endless news, and how many of them were received.
fn endless() -> (impl Stream<Item = Result<News, Failed>> + Send + 'static, Arc<AtomicUsize>) {
    let received = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&received);
    let news = futures::stream::iter(1..).then(move |sequence| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            tokio::task::yield_now().await;
            Ok(news(sequence))
        }
    });
    (news, received)
}

/// An inbox that is filled by hand.
fn fed(room: &Room) -> (mpsc::UnboundedSender<Result<News, Failed>>, Inbox) {
    let (feed, news) = mpsc::unbounded_channel();
    (feed, Inbox::of(UnboundedReceiverStream::new(news), room.clone()))
}

fn is_empty(room: &Room) -> bool {
    room.take(ROOM / 4 * 3).is_ok()
}

#[tokio::test]
async fn news_of_a_stream_that_has_ended_are_kept_no_longer_than_others() {
    let room = Room::alone(ROOM);
    let (feed, mut inbox) = fed(&room);
    let large = News { values: vec![value(1, 5000), None], ..news(1) };
    feed.send(Ok(large)).unwrap();
    feed.send(Err(Failed::Unknown("lost".to_owned()))).unwrap();
    until("they are kept", async || !is_empty(&room)).await;
    until("they are kept no more", async || is_empty(&room)).await;
    assert!(matches!(inbox.next().await, Some(Err(Failed::Unknown(_)))));
}

#[tokio::test]
async fn client_that_takes_what_comes_hears_of_it_and_of_the_end() {
    let room = Room::alone(ROOM);
    let (feed, mut inbox) = fed(&room);
    for sequence in 1..=100 {
        feed.send(Ok(news(sequence))).unwrap();
        assert_eq!(inbox.next().await.unwrap().unwrap(), news(sequence));
    }
    feed.send(Ok(news(101))).unwrap();
    feed.send(Err(Failed::Unknown("lost".to_owned()))).unwrap();
    assert_eq!(inbox.next().await.unwrap().unwrap(), news(101));
    assert!(matches!(inbox.next().await, Some(Err(Failed::Unknown(_)))));
    assert!(inbox.next().await.is_none());
    assert!(is_empty(&room));
}

#[tokio::test]
async fn news_that_a_slow_client_has_not_taken_are_merged_to_the_last_state() {
    let room = Room::alone(ROOM);
    let position = |sequence| Position::new(Epoch(1), sequence);
    let first = News { position: position(1), values: vec![value(1, 10), value(1, 10)] };
    let later = (2..=1000).map(|sequence| News {
        position: position(sequence),
        values: vec![None, value(sequence, 10)],
    });
    let all: Vec<_> = std::iter::once(first).chain(later).map(Ok).collect();
    // All of them come before the client takes something.
    let mut inbox = Inbox::of(futures::stream::iter(all), room.clone());
    until("all came", async || inbox.shared.state.lock().is_over).await;
    let last = News { position: position(1000), values: vec![value(1, 10), value(1000, 10)] };
    assert_eq!(inbox.next().await.unwrap().unwrap(), last, "of each key the last");
    assert!(inbox.next().await.is_none() && is_empty(&room));
}

#[tokio::test]
async fn client_that_takes_nothing_has_nothing_kept_for_it_and_receives_no_more() {
    let (endless, received) = endless();
    let room = Room::alone(ROOM);
    let mut inbox = Inbox::of(endless, room.clone());
    let shared = Arc::clone(&inbox.shared);
    until("it is given up", async || shared.state.lock().is_over).await;
    assert!(shared.state.lock().waits.is_none() && is_empty(&room));
    let before = received.load(Ordering::SeqCst);
    tokio::task::yield_now().await;
    assert_eq!(received.load(Ordering::SeqCst), before);
    let ended = Pin::new(&mut inbox).poll_next(&mut Context::from_waker(Waker::noop()));
    assert!(matches!(ended, Poll::Ready(None)), "another watch is begun now");
    assert_eq!(inbox.lacked(), None);
}

#[tokio::test]
async fn news_count_among_the_answers_of_the_client_and_end_where_there_is_no_room() {
    let room = Room::alone(ROOM);
    let large = || {
        let news = News { position: Position::ZERO, values: vec![value(1, 5000)] };
        Inbox::of(futures::stream::iter([Ok(news)]), room.clone())
    };
    let mut inbox = large();
    until("they came", async || inbox.shared.state.lock().is_over).await;
    assert!(!is_empty(&room) && room.take(5000).is_err());
    let (_, kept) = inbox.next_kept().await.unwrap().unwrap();
    assert!(room.take(5000).is_err(), "until they are told");
    let mut without_room = large();
    assert!(without_room.next_kept().await.is_none());
    assert!(without_room.lacked().is_some_and(|NoRoom(bytes)| bytes >= 5000));
    drop(kept);
    assert!(is_empty(&room));
}
