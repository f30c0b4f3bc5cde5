//! Queues over HTTP: what listeners hear, and what becomes of their reports.

use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use meridian_gateway::{
    Heard, ListFrom, ListedLetter, ListedTotals, Listen, Listened, Options, QueueList, QueuePage,
    QueuedMessage, Reports,
};
use meridian_queue::{Answer, ListenerId, MessageKey, Report};
use meridian_types::{MessageId, QueueId, QueueName, Settlement, Verdict, Versionstamp};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::support::{Client, MAIN, MAIN_TEXT, Plan, READER, Reply, SECOND_WRITER, Server, WRITER};

const LONG: Duration = Duration::from_secs(20);
const LISTENER: &str = "07070707-0707-0707-0707-070707070707";
const ID: &str = "050505050505050505050000";

/// The other side of a listener.
pub(crate) struct Leading {
    pub(crate) listen: Listen,
    pub(crate) tell: mpsc::Sender<Heard>,
    pub(crate) enough: oneshot::Receiver<Vec<MessageKey>>,
}

/// The queues behind a gateway.
#[derive(Default)]
pub(crate) struct Queues {
    /// A test takes them, and plays the leader.
    listeners: Mutex<Vec<Leading>>,
    reports: Mutex<Vec<Reports>>,
    lists: Mutex<Vec<QueueList>>,
    /// The answer to whatever is listed.
    page: Mutex<QueuePage>,
    settled: Mutex<Vec<Settlement>>,
}

impl Queues {
    pub(crate) fn listen(&self, listen: Listen) -> Listened {
        let ((tell, mut heard), (enough, is_enough)) = (mpsc::channel(8), oneshot::channel());
        let heard = futures::stream::poll_fn(move |context| heard.poll_recv(context)).boxed();
        self.listeners.lock().unwrap().push(Leading { listen, tell, enough: is_enough });
        Listened { heard, enough }
    }

    pub(crate) fn is_listened_to(&self) -> bool {
        self.listeners() > 0
    }

    pub(crate) fn listeners(&self) -> usize {
        self.listeners.lock().unwrap().len()
    }

    /// Gives the oldest listener a message.
    pub(crate) async fn deliver(&self) {
        self.tell(Heard::Messages(vec![message(8)])).await;
    }

    /// Tells the oldest listener.
    pub(crate) async fn tell(&self, heard: Heard) {
        let tell = self.listeners.lock().unwrap()[0].tell.clone();
        tell.send(heard).await.unwrap();
    }

    pub(crate) fn list(&self, list: QueueList) -> QueuePage {
        self.lists.lock().unwrap().push(list);
        self.page.lock().unwrap().clone()
    }

    pub(crate) fn settle(&self, settlements: &[Settlement]) {
        self.settled.lock().unwrap().extend_from_slice(settlements);
    }

    /// Failures come too late.
    pub(crate) fn report(&self, reports: Reports) -> Vec<Answer> {
        let answer = |(_, report): &(MessageKey, Report)| match report {
            Report::Failed { .. } => Answer::Late,
            Report::Done | Report::Extended { .. } => Answer::Done,
        };
        let answers = reports.reports.iter().map(answer).collect();
        self.reports.lock().unwrap().push(reports);
        answers
    }
}

fn key(due_ms: u64) -> MessageKey {
    MessageKey { due_ms, id: MessageId { enqueued: Versionstamp([5; 10]), index: 0 } }
}

fn message(due_ms: u64) -> QueuedMessage {
    let payload = Bytes::from_static(b"\xff\x0f0");
    QueuedMessage { key: key(due_ms), attempt: 1, payload, enqueued_ms: 3, lease: None }
}

fn headers(authorization: &str) -> [(&str, &str); 3] {
    [
        ("authorization", authorization),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ]
}

async fn ask(client: &mut Client, path: &str, token: &str, body: &Value) -> Reply {
    let authorization = format!("Bearer {token}");
    let path = format!("/kv/queue/{path}");
    client.post(&path, &headers(&authorization), body.to_string()).await.unwrap()
}

async fn listen(client: &mut Client, body: &Value) -> Incoming {
    let authorization = format!("Bearer {WRITER}");
    let body = body.to_string().into();
    let request = client.request("/kv/queue/listen", &headers(&authorization), body);
    let answer = client.begin(request).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    answer.into_body()
}

/// All that has come up to this line.
async fn until(body: &mut Incoming, line: &str) -> Vec<Value> {
    let read = async {
        let mut read = Vec::new();
        while !String::from_utf8_lossy(&read).contains(line) {
            let frame = body.frame().await.expect("the stream goes on").unwrap();
            read.extend(frame.into_data().unwrap());
        }
        read
    };
    let read = tokio::time::timeout(LONG, read).await.unwrap();
    let lines = read.split_inclusive(|byte| *byte == b'\n');
    lines.map(|line| serde_json::from_slice(line).unwrap()).collect()
}

async fn leading(server: &Server) -> Leading {
    loop {
        if let Some(leading) = server.memory.queues.listeners.lock().unwrap().pop() {
            return leading;
        }
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn listener_hears_messages_over_both_versions_of_http_until_it_leaves() {
    let server = Server::start().await;
    for mut client in [server.http1().await, server.http2().await] {
        let held = json!([{ "id": ID, "due": 4 }]);
        let asked = json!({ "listener": LISTENER, "credits": 7, "held": held });
        let mut body = listen(&mut client, &asked).await;
        let Leading { listen, tell, .. } = leading(&server).await;
        assert_eq!((listen.queue, listen.listener), (MAIN.into(), ListenerId([7; 16])));
        assert_eq!((listen.credits, listen.lease, listen.held), (7, None, vec![key(4)]));
        tell.send(Heard::Messages(vec![message(8), message(9)])).await.unwrap();
        tell.send(Heard::Released(vec![key(8)])).await.unwrap();
        let lines = until(&mut body, "release").await;
        let of = |wanted: &str| -> Vec<&Value> {
            lines.iter().filter(|line| line["type"] == wanted).collect()
        };
        assert_eq!(of("open"), [&json!({ "type": "open", "listener": LISTENER })]);
        let due: Vec<&Value> = of("message").iter().map(|line| &line["due"]).collect();
        assert_eq!(due, [8, 9]);
        assert_eq!(of("release"), [&json!({ "type": "release", "id": ID, "due": 8 })]);
        assert_eq!(of("ping").len(), 1, "at once");
        drop(body);
        client.driver.abort();
        tokio::time::timeout(LONG, tell.closed()).await.expect("its leader hears of it");
    }
}

#[tokio::test]
async fn listener_is_told_why_it_is_over() {
    let server = Server::start().await;
    let mut client = server.http2().await;
    let mut body = listen(&mut client, &json!({})).await;
    let Leading { tell, .. } = leading(&server).await;
    tell.send(Heard::Ended("too many listeners are open".to_owned())).await.unwrap();
    let lines = until(&mut body, "\"end\"").await;
    assert_eq!(lines.last().unwrap()["reason"], "too many listeners are open");
    let rest = tokio::time::timeout(LONG, body.collect()).await.unwrap().unwrap();
    assert!(rest.to_bytes().is_empty());
}

#[tokio::test]
async fn messages_that_listeners_say_they_hold_are_bounded_in_memory() {
    let options = Options { max_answers_bytes: 1 << 20, ..Options::default() };
    let server = Server::with(options).await;
    let mut client = server.http2().await;
    let held: Vec<Value> = (0..1000).map(|due| json!({ "id": ID, "due": due })).collect();
    let asked = json!({ "held": held });
    let mut open = Vec::new();
    let refused = loop {
        let body = asked.to_string().into();
        let authorization = format!("Bearer {WRITER}");
        let request = client.request("/kv/queue/listen", &headers(&authorization), body);
        let answer = client.begin(request).await.unwrap();
        if answer.status() != 200 {
            break answer.status();
        }
        open.push(answer.into_body());
    };
    assert_eq!((refused.as_u16(), open.len()), (503, 12), "three quarters of all are one token's");
    drop(open);
    drop(listen(&mut client, &json!({})).await);
}

#[tokio::test]
async fn poll_answers_what_comes_together_and_keeps_no_more() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let asked = json!({ "max": 3, "leaseMs": 500 });
    let polling = tokio::spawn(async move { ask(&mut client, "poll", WRITER, &asked).await });
    let Leading { listen, tell, enough } = leading(&server).await;
    assert_eq!((listen.credits, listen.lease), (3, Some(Duration::from_millis(500))));
    tell.send(Heard::Messages(vec![message(8), message(9)])).await.unwrap();
    tell.send(Heard::Released(vec![key(8)])).await.unwrap();
    let answer = polling.await.unwrap().json();
    assert_eq!(answer["listener"].as_str().map(str::len), Some(36));
    let due: Vec<&Value> =
        answer["messages"].as_array().unwrap().iter().map(|message| &message["due"]).collect();
    assert_eq!(due, [9]);
    assert_eq!(enough.await, Ok(vec![key(9)]));
}

#[tokio::test]
async fn poll_without_messages_is_empty_when_its_time_is_over() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let answer = ask(&mut client, "poll", WRITER, &json!({ "waitMs": 1 })).await.json();
    assert_eq!(answer["messages"], json!([]));
    assert_eq!(leading(&server).await.enough.await, Ok(vec![]));
}

#[tokio::test]
async fn poll_whose_token_was_revoked_meanwhile_gets_no_messages_and_they_go_back() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let asked = json!({ "max": 1 });
    let polling =
        tokio::spawn(async move { ask(&mut client, "poll", SECOND_WRITER, &asked).await });
    let Leading { tell, enough, .. } = leading(&server).await;
    server.revoked.store(true, Ordering::SeqCst);
    tell.send(Heard::Messages(vec![message(8)])).await.unwrap();
    polling.await.unwrap().refuses(401, "Invalid access token.");
    assert!(enough.await.is_err(), "it is to want none");
}

/// Sooner than the connection is cut.
#[tokio::test]
async fn poll_is_answered_when_the_gateway_stops() {
    let mut server = Server::start().await;
    let mut client = server.http1().await;
    let polling = tokio::spawn(async move { ask(&mut client, "poll", WRITER, &json!({})).await });
    let Leading { tell, enough, .. } = leading(&server).await;
    server.stop.take().unwrap().send(()).unwrap();
    assert_eq!(polling.await.unwrap().json()["messages"], json!([]));
    assert_eq!(enough.await, Ok(vec![]));
    drop(tell);
    server.serving.await.unwrap();
}

#[tokio::test]
async fn client_that_leaves_a_poll_keeps_nothing() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let driver = client.driver.abort_handle();
    let polling = tokio::spawn(async move { ask(&mut client, "poll", WRITER, &json!({})).await });
    // Its leader has not ended it.
    let Leading { enough, tell: _tell, .. } = leading(&server).await;
    driver.abort();
    assert!(tokio::time::timeout(LONG, enough).await.unwrap().is_err(), "it is to want none");
    assert!(polling.await.is_err());
}

fn emails() -> QueueId {
    QueueId { database: MAIN, name: "emails".parse().unwrap() }
}

#[tokio::test]
async fn reports_are_answered_one_by_one() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let reports = json!([
        { "id": ID, "due": 8, "verdict": "ack" },
        { "id": ID, "due": 9, "verdict": "nack", "delayMs": 5 },
    ]);
    let body = json!({ "listener": LISTENER, "reports": reports });
    let answer = ask(&mut client, "report", WRITER, &body).await.json();
    assert_eq!(answer, json!({ "results": ["done", "late"] }));
    let reported = server.memory.queues.reports.lock().unwrap().pop().unwrap();
    assert_eq!((reported.queue, reported.listener), (MAIN.into(), ListenerId([7; 16])));
    let retry_after = Some(Duration::from_millis(5));
    let expected = [(key(8), Report::Done), (key(9), Report::Failed { retry_after })];
    assert_eq!(reported.reports, expected);
    let named = json!({ "listener": LISTENER, "queue": "emails", "reports": [] });
    ask(&mut client, "report", WRITER, &named).await.json();
    let reported = server.memory.queues.reports.lock().unwrap().pop().unwrap();
    assert_eq!(reported.queue, emails());
    server.memory.plan(Plan::Unavailable);
    ask(&mut client, "report", WRITER, &body).await.refuses(503, "no leader");
}

#[tokio::test]
async fn message_with_an_id_is_one_write_however_often_it_comes() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let with = |id: &str| json!({ "payload": "/w8w", "id": id });
    for id in ["a", "a", "b"] {
        let answer = ask(&mut client, "enqueue", WRITER, &with(id)).await.json();
        let (id, stamp) =
            (answer["id"].as_str().unwrap(), answer["versionstamp"].as_str().unwrap());
        assert_eq!(id, format!("{stamp}0000"));
    }
    ask(&mut client, "enqueue", WRITER, &json!({ "payload": "/w8w" })).await.json();
    let ids = server.memory.request_ids.lock().unwrap().clone();
    assert_eq!(ids[0], ids[1]);
    assert!(ids[1] != ids[2] && ids[2] != ids[3]);
}

#[tokio::test]
async fn queues_want_a_token_that_may_use_them_and_what_they_know() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    for path in ["listen", "poll", "report", "enqueue"] {
        let refused = ask(&mut client, path, READER, &json!({})).await;
        refused.refuses(403, "does not have the permission");
        ask(&mut client, path, "unknown", &json!({})).await.refuses(401, "Invalid access token.");
        let odd = json!({ "unheard": "of" });
        ask(&mut client, path, WRITER, &odd).await.refuses(400, "is not the JSON");
    }
    let odd = json!({ "unheard": "of" });
    ask(&mut client, "change", READER, &json!({})).await.refuses(403, "permission `manage`");
    for (path, token) in [("change", WRITER), ("list", READER)] {
        ask(&mut client, path, "unknown", &json!({})).await.refuses(401, "Invalid access token.");
        ask(&mut client, path, token, &odd).await.refuses(400, "is not the JSON");
    }
    ask(&mut client, "peek", WRITER, &json!({})).await.refuses(404, "Nothing is served here.");
    let large = json!({ "payload": "x".repeat(300_000) });
    ask(&mut client, "enqueue", WRITER, &large).await.refuses(400, "exceeds the limit");
}

#[tokio::test]
async fn reader_sees_what_is_in_a_queue() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let letter = ListedLetter {
        queue: QueueName::UNNAMED,
        number: 4,
        id: key(0).id,
        failed: 6,
        enqueued_ms: 5,
        died_ms: 9,
        payload_bytes: 3,
        payload: Some(Bytes::from_static(b"\xff\x0f0")),
    };
    let totals = ListedTotals { undelivered: 8, leased: 2, dead: 1 };
    *server.memory.queues.page.lock().unwrap() =
        QueuePage { dead_letters: vec![letter], totals, is_paused: true, ..QueuePage::default() };
    let asked = json!({ "dead": true, "after": 3, "limit": 7, "payload": true });
    let answer = ask(&mut client, "list", READER, &asked).await.json();
    assert_eq!((&answer["totals"]["leased"], &answer["after"]), (&json!(2), &json!(4)));
    assert_eq!(answer["deadLetters"][0]["payload"], "/w8w");
    assert_eq!(answer["paused"], true);
    let QueueList { queue, from, limit, whole } =
        server.memory.queues.lists.lock().unwrap().pop().unwrap();
    assert_eq!((queue, limit, whole), (MAIN.into(), 7, true));
    assert_eq!(from, ListFrom::DeadLetters { first: 4 });
    ask(&mut client, "list", READER, &json!({ "queue": "emails" })).await.json();
    assert_eq!(server.memory.queues.lists.lock().unwrap().pop().unwrap().queue, emails());
    server.memory.plan(Plan::Unavailable);
    ask(&mut client, "list", READER, &json!({})).await.refuses(503, "no leader");
}

/// However many ask, what waits for them is bounded.
#[tokio::test]
async fn page_of_a_queue_has_its_room_before_it_is_asked_for() {
    let server = Server::with(Options { max_answers_bytes: 1 << 19, ..Options::default() }).await;
    let mut client = server.http1().await;
    let refused = ask(&mut client, "list", READER, &json!({})).await;
    refused.refuses(503, "Too many bytes of answers are in progress");
    assert!(server.memory.queues.lists.lock().unwrap().is_empty());
}

#[tokio::test]
async fn change_of_a_queue_is_one_write() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let body = json!({
        "cancel": [{ "id": ID, "due": 8 }],
        "redrive": [{ "id": ID, "number": 4 }],
    });
    let answer = ask(&mut client, "change", WRITER, &body).await.json();
    assert_eq!(answer["versionstamp"].as_str().map(str::len), Some(20));
    let of =
        |due_ms, verdict| Settlement { queue: QueueName::UNNAMED, id: key(0).id, due_ms, verdict };
    let expected = [of(8, Verdict::Cancelled), of(0, Verdict::Redriven { number: 4 })];
    assert_eq!(*server.memory.queues.settled.lock().unwrap(), expected);
    assert_eq!(server.memory.committed(), 1);
    server.memory.plan(Plan::Reject("Queue backlog limit exceeded"));
    ask(&mut client, "change", WRITER, &body).await.refuses(400, "backlog limit");
    server.memory.plan(Plan::Unavailable);
    ask(&mut client, "change", WRITER, &body).await.refuses(503, "no leader");
}
