//! Listeners: what their sessions are asked for, and what their clients hear.

use meridian_gateway::{Heard, ListFrom, QueueList, QueuePage, QueuedMessage};
use meridian_queue::{Incarnation, ListenerId, MessageKey};
use meridian_types::{MessageId, Versionstamp};

use super::*;
use crate::queues::Listener;
use crate::routing::queue_calls::Told;
use crate::testing::until;
use world::{Link, ToldOne, Voters, gateway};

fn listen() -> Listen {
    let (queue, listener) = (DEV_DEFAULT_DATABASE.into(), ListenerId([7; 16]));
    let (held, incarnation) = (Vec::new(), Incarnation(5));
    Listen { queue, listener, credits: 10, lease: None, held, incarnation }
}

fn key(due_ms: u64) -> MessageKey {
    MessageKey { due_ms, id: MessageId { enqueued: Versionstamp([5; 10]), index: 0 } }
}

fn message(due_ms: u64) -> QueuedMessage {
    let payload = bytes::Bytes::from_static(b"\xff\x0f0");
    QueuedMessage { key: key(due_ms), attempt: 1, payload, enqueued_ms: 3, lease: None }
}

/// The session of this number, once it has begun, and what tells it.
async fn session(
    voters: &Voters,
    number: usize,
) -> (Listener, futures::channel::mpsc::UnboundedSender<ToldOne>) {
    let mut found = None;
    until("the session begins", async || {
        found = voters.sessions.lock().get(number).cloned();
        found.is_some()
    })
    .await;
    found.unwrap()
}

/// Parts that lie in the connection between nodes would hold up those of all other listeners.
#[tokio::test]
async fn client_that_takes_nothing_keeps_what_it_has_and_gets_no_more_until_it_takes_again() {
    let (_, voters, router) = gateway(None, Duration::ZERO);
    let Listened { mut heard, enough } = router.listen(listen());
    let (asked, tell) = session(&voters, 0).await;
    assert_eq!((asked.credits, asked.resumed, asked.held), (10, false, vec![]));
    tell.unbounded_send(Ok(Told::Messages(vec![message(1)]))).unwrap();
    assert_eq!(heard.next().await, Some(Heard::Messages(vec![message(1)])));
    tell.unbounded_send(Ok(Told::Messages(vec![message(2)]))).unwrap();
    let (asked, tell) = session(&voters, 1).await;
    // The second message never reached it, and goes to another.
    assert_eq!((asked.credits, asked.resumed, asked.held), (0, true, vec![key(1)]));
    tell.unbounded_send(Ok(Told::Released(vec![key(1)]))).unwrap();
    assert_eq!(heard.next().await, Some(Heard::Released(vec![key(1)])));
    assert_eq!(heard.next().now_or_never(), None);
    let (asked, tell) = session(&voters, 2).await;
    assert_eq!((asked.credits, asked.resumed, asked.held), (10, true, vec![]));
    for number in [3, 4] {
        tell.unbounded_send(Ok(Told::Messages(vec![message(number)]))).unwrap();
        assert_eq!(heard.next().await, Some(Heard::Messages(vec![message(number)])));
    }
    assert_eq!(voters.sessions.lock().len(), 3);
    drop(enough);
}

/// Each would ask all voters again and again, which have no place for it either.
#[tokio::test]
async fn listener_beyond_those_that_a_leader_has_room_for_is_refused_at_the_gateway() {
    let (_, voters, router) = gateway(None, Duration::ZERO);
    let of = |number: u128| Listen { listener: ListenerId(number.to_be_bytes()), ..listen() };
    let mut all: Vec<_> = (0..1000).map(|number| router.listen(of(number))).collect();
    until("all have sessions", async || voters.sessions.lock().len() == 1000).await;
    let Listened { mut heard, enough } = router.listen(of(1000));
    let ended = Heard::Ended("too many listeners are open".to_owned());
    assert_eq!(heard.next().await, Some(ended));
    assert_eq!(voters.sessions.lock().len(), 1000);
    drop(enough);
    all.truncate(999);
    until("a place is free", async || router.listeners.take(DEV_DEFAULT_DATABASE).is_some()).await;
    let _next = router.listen(of(1001));
    until("it has a session", async || voters.sessions.lock().len() == 1001).await;
}

/// The new leader waits for what listeners hold, and no longer than `HOLD`: a round of voters that
/// have lost their power would take most of it.
#[tokio::test]
async fn listener_goes_to_the_voters_of_a_new_epoch_as_soon_as_its_gateway_knows_of_it() {
    let (_, voters, router) = gateway(None, Duration::ZERO);
    for node in [1, 2, 3].map(NodeId) {
        voters.links.lock().insert(node, Link::Silent);
        // So far away that each is waited for longer than this test takes.
        router.health.took(node, Duration::from_secs(60));
    }
    let _listened = router.listen(listen());
    until("a voter is asked", async || !voters.asked_for_sessions.lock().is_empty()).await;
    let mut cluster = router.directory.known().cluster.clone();
    let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
    (shard.epoch, shard.voters) = (Epoch(2), [4, 5].map(NodeId).into());
    cluster.version += 1;
    router.directory.learn(cluster).unwrap();
    session(&voters, 0).await;
    let asked = voters.asked_for_sessions.lock().clone();
    assert_eq!(asked.iter().map(|(_, epoch)| epoch.0).collect::<Vec<_>>(), [1, 2], "{asked:?}");
}

/// Clients that keep their streams and read nothing would have all memory for messages.
#[tokio::test]
async fn messages_that_lie_ready_are_taken_back_from_a_client_that_does_not_take_them() {
    for lease in [None, Some(Duration::from_secs(30))] {
        let (_, voters, router) = gateway(None, Duration::ZERO);
        let Listened { mut heard, enough } = router.listen(Listen { lease, ..listen() });
        let (_, tell) = session(&voters, 0).await;
        assert_eq!(heard.next().now_or_never(), None, "the client is there");
        tell.unbounded_send(Ok(Told::Messages(vec![message(1), message(2)]))).unwrap();
        let (asked, _tell) = session(&voters, 1).await;
        assert_eq!((asked.credits, asked.resumed, asked.held), (0, true, vec![]));
        assert_eq!(heard.next().now_or_never(), None, "they are another's");
        let (asked, tell) = session(&voters, 2).await;
        assert_eq!((asked.credits, asked.held), (10, vec![]), "it takes again");
        tell.unbounded_send(Ok(Told::Messages(vec![message(1)]))).unwrap();
        assert_eq!(heard.next().await, Some(Heard::Messages(vec![message(1)])));
        drop(enough);
    }
}

/// The same message may be the listener's again.
#[tokio::test]
async fn client_hears_that_a_message_is_released_before_it_gets_it_again() {
    let (_, voters, router) = gateway(None, Duration::ZERO);
    let Listened { mut heard, enough } = router.listen(listen());
    let (_, tell) = session(&voters, 0).await;
    let again = [Told::Messages(vec![message(1)]), Told::Released(vec![key(1)])];
    again.clone().into_iter().chain(again).for_each(|told| tell.unbounded_send(Ok(told)).unwrap());
    let news = [Heard::Messages(vec![message(1)]), Heard::Released(vec![key(1)])];
    for news in news.clone().into_iter().chain(news) {
        assert_eq!(heard.next().await, Some(news));
    }
    drop(enough);
}

/// A leader that logs slowly still leads, and is not silent.
#[tokio::test]
async fn reports_that_are_not_answered_in_time_say_nothing_of_the_leader_to_others() {
    let (time, voters, router) = gateway(None, Duration::ZERO);
    router.leaders.answered(time.now(), ShardId(1), NodeId(1), NodeId(1));
    *voters.scripted.lock() =
        vec![Failed::NotDone("full".to_owned()), Failed::Unknown("no answer".to_owned())];
    let (queue, listener) = (DEV_DEFAULT_DATABASE.into(), ListenerId([7; 16]));
    let reports = Reports { queue, listener, reports: Vec::new() };
    tokio::select! {
        _ = router.report(reports) => panic!("nothing is logged"),
        () = until("a round is over", async || voters.reports.lock().len() > 3) => {}
    }
    assert_eq!(voters.reports.lock()[0], NodeId(1));
    assert!(!router.health.is_silent(time.now(), NodeId(1)));
    assert_eq!(router.leaders.hint(ShardId(1)), Some(NodeId(1)));
}

#[tokio::test]
async fn page_of_a_queue_comes_from_the_leader_whichever_node_is_taken_for_it() {
    let (time, voters, router) = gateway(None, Duration::ZERO);
    router.leaders.answered(time.now(), ShardId(1), NodeId(1), NodeId(1));
    voters.leader.send_replace(Some(NodeId(2)));
    let from = ListFrom::DeadLetters { first: 0 };
    let list = QueueList { queue: DEV_DEFAULT_DATABASE.into(), from, limit: 1, whole: false };
    assert_eq!(router.list_queue(list).await.unwrap(), QueuePage::default());
    assert_eq!(router.leaders.hint(ShardId(1)), Some(NodeId(2)));
}

/// A webhook's sender wishes for none before it ends: messages on their way would fail otherwise.
#[tokio::test]
async fn wish_of_a_listener_counts_from_the_next_session_and_messages_that_it_returns_go_back() {
    let (_, voters, router) = gateway(None, Duration::ZERO);
    let (Listened { mut heard, enough }, wishes) = router.attend(listen());
    let (_, tell) = session(&voters, 0).await;
    tell.unbounded_send(Ok(Told::Messages(vec![message(1), message(2)]))).unwrap();
    assert!(matches!(heard.next().await, Some(Heard::Messages(_))));
    let (granted, mut is_granted) = tokio::sync::oneshot::channel();
    wishes.send(Wish { credits: 0, returned: vec![key(2)], granted }).unwrap();
    assert!(is_granted.try_recv().is_err(), "no leader knows it yet");
    assert_eq!(is_granted.await, Ok(()));
    let (asked, tell) = session(&voters, 1).await;
    assert_eq!((asked.credits, asked.resumed, asked.held), (0, true, vec![key(1)]));
    // The listener goes on.
    tell.unbounded_send(Ok(Told::Released(vec![key(1)]))).unwrap();
    assert_eq!(heard.next().await, Some(Heard::Released(vec![key(1)])));
    let (granted, is_granted) = tokio::sync::oneshot::channel();
    wishes.send(Wish { credits: 3, returned: vec![], granted }).unwrap();
    assert_eq!(is_granted.await, Ok(()));
    let (asked, _tell) = session(&voters, 2).await;
    assert_eq!((asked.credits, asked.held), (3, vec![]));
    drop(enough);
}
