//! A webhook through real processes: set by an operator's command, served by the node that leads,
//! and by the next one when that is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hmac::{Hmac, Mac};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, TOKEN, poll};
use serde_json::{Value, json};
use sha2::Sha256;
use tempfile::NamedTempFile;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Mutex, watch};

const DEADLINE: Duration = Duration::from_secs(60);

/// A program that takes webhooks: it believes what is signed with its key.
struct Receiver {
    url: String,
    /// How often each message came, by its `webhook-id`.
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
    /// Nothing is answered while this is false.
    answers: watch::Sender<bool>,
}

impl Receiver {
    async fn start(key: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (seen, (answers, answer)) = (Arc::default(), watch::channel(true));
        let shared = Arc::clone(&seen);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (seen, answer) = (Arc::clone(&shared), answer.clone());
                let service = service_fn(move |request| {
                    take(request, key, Arc::clone(&seen), answer.clone())
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Self { url, seen, answers }
    }

    async fn count(&self) -> usize {
        self.seen.lock().await.len()
    }
}

async fn take(
    request: Request<Incoming>,
    key: &[u8],
    seen: Arc<Mutex<BTreeMap<String, u32>>>,
    mut answer: watch::Receiver<bool>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let header = |name: &str| head.headers[name].to_str().unwrap().to_owned();
    let id = header("webhook-id");
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(format!("{id}.{}.", header("webhook-timestamp")).as_bytes());
    mac.update(&body);
    let expected = format!("v1,{}", STANDARD.encode(mac.finalize().into_bytes()));
    let status = if header("webhook-signature").split(' ').any(|signed| signed == expected) {
        let message: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!((&message["value"], &message["database"]), (&json!("a"), &json!("default")));
        assert!(id.ends_with(message["id"].as_str().unwrap()), "{id}");
        *seen.lock().await.entry(id).or_default() += 1;
        204
    } else {
        401
    };
    answer.wait_for(|answers| *answers).await.unwrap();
    Ok(Response::builder().status(status).body(Full::default()).unwrap())
}

async fn ask(url: &str, path: &str, body: Value) -> Value {
    let client = Client::builder(TokioExecutor::new()).build_http::<Full<Bytes>>();
    let request = Request::post(format!("{url}/kv/queue/{path}"))
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", DEFAULT_DATABASE.to_string())
        .body(Full::new(body.to_string().into()))
        .unwrap();
    let answer = client.request(request).await.unwrap();
    let status = answer.status();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
    serde_json::from_slice(&body).unwrap()
}

/// `"a"`, as V8 writes it.
const PAYLOAD: &str = "/w8iAWE=";

async fn enqueue(url: &str, count: usize) {
    for _ in 0..count {
        ask(url, "enqueue", json!({ "payload": PAYLOAD })).await;
    }
}

/// Waits until every message is acknowledged, and the acknowledgement is logged.
async fn until_all_are_acknowledged(url: &str) {
    poll::until("nothing is left", DEADLINE, async || {
        let totals = ask(url, "list", json!({})).await["totals"].clone();
        if totals["undelivered"] == 0 { Ok(()) } else { Err(totals) }
    })
    .await;
}

fn file(key: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    write!(file, "whsec_{}", STANDARD.encode(key)).unwrap();
    file
}

const KEY: &[u8] = &[7; 32];

#[tokio::test]
async fn webhook_gets_every_message_over_the_loss_of_a_leader_and_none_again_that_it_acknowledged()
{
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let (receiver, key) = (Receiver::start(KEY).await, file(KEY));
    let path = key.path().to_str().unwrap();
    let set = ["queue", "webhook", "set", "default", "--url", &receiver.url, "--key-file", path];
    let said = cluster.order(6, &[&set[..], &["--concurrency", "5", "--json"]].concat()).await;
    let shown: Value = serde_json::from_str(&said).unwrap();
    assert_eq!((&shown["key"], &shown["concurrency"]), (&json!("4bb06f8e"), &json!(5)));

    let leader = cluster.leader(1).await;
    let gateway = cluster.node_ids().into_iter().rfind(|id| *id != leader).unwrap();
    let url = cluster.url(gateway);
    enqueue(&url, 20).await;
    until_all_are_acknowledged(&url).await;
    let acknowledged = receiver.seen.lock().await.clone();
    assert_eq!(acknowledged.len(), 20);

    receiver.answers.send_replace(false);
    enqueue(&url, 20).await;
    poll::until("five are there", DEADLINE, async || {
        let count = receiver.count().await;
        if count == 25 { Ok(()) } else { Err(count) }
    })
    .await;
    cluster.kill(leader);
    receiver.answers.send_replace(true);
    until_all_are_acknowledged(&url).await;
    let seen = receiver.seen.lock().await.clone();
    assert_eq!(seen.len(), 40);
    for (id, times) in acknowledged {
        assert_eq!((times, seen[&id]), (1, 1), "{id}");
    }
    // Those that were under way come again, and no others.
    assert!(seen.values().filter(|times| **times > 1).count() <= 5, "{seen:?}");
    for node in cluster.node_ids() {
        let log = cluster.log(node);
        assert!(!log.contains(&STANDARD.encode(KEY)), "node {node} logs the key");
    }
}

#[tokio::test]
async fn webhook_of_a_named_queue_gets_the_messages_of_that_queue_and_of_no_other() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (receiver, key) = (Receiver::start(KEY).await, file(KEY));
    let path = key.path().to_str().unwrap();
    let webhook = ["queue", "webhook", "--queue", "emails"];
    let set = ["set", "default", "--url", &receiver.url, "--key-file", path];
    let said = cluster.order(6, &[&webhook[..], &set[..]].concat()).await;
    assert!(said.contains("\"queue\":\"emails\""), "{said}");
    let url = cluster.url(6);
    enqueue(&url, 2).await;
    for _ in 0..3 {
        ask(&url, "enqueue", json!({ "payload": PAYLOAD, "queue": "emails" })).await;
    }
    poll::until("nothing of it is left", DEADLINE, async || {
        let totals = ask(&url, "list", json!({ "queue": "emails" })).await["totals"].clone();
        if totals["undelivered"] == 0 { Ok(()) } else { Err(totals) }
    })
    .await;
    assert_eq!(receiver.count().await, 3);
    assert_eq!(ask(&url, "list", json!({})).await["totals"]["undelivered"], 2);
    // The queue without a name has none.
    let said = cluster.order(6, &["queue", "webhook", "show", "default", "--json"]).await;
    let shown: Value = serde_json::from_str(&said).unwrap();
    assert_eq!(shown["queue"], "emails");
    let (done, said) = cluster.meridian(6, &["queue", "webhook", "rotate", "default"]).await;
    assert!(!done && said.contains("has no webhook"), "{said}");
}

/// Also where the shard's leadership is handed over meanwhile.
#[tokio::test]
async fn webhook_changes_its_key_its_leader_and_ends_without_a_message_that_fails() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (receiver, old, new) = (Receiver::start(KEY).await, file(&[1; 32]), file(KEY));
    let path = |file: &NamedTempFile| file.path().to_str().unwrap().to_owned();
    let webhook = async |arguments: &[&str]| {
        let command = [&["queue", "webhook"], arguments, &["--json"]].concat();
        let said = cluster.order(6, &command).await;
        said.lines().map(|line| serde_json::from_str(line).unwrap()).collect::<Vec<Value>>()
    };
    let (old, new) = (path(&old), path(&new));
    let set = ["set", "default", "--url", &receiver.url, "--key-file", &old];
    webhook(&[&set[..], &["--next-key-file", &new]].concat()).await;
    let url = cluster.url(6);
    enqueue(&url, 3).await;
    until_all_are_acknowledged(&url).await;
    let [rotated] = &webhook(&["rotate", "default"]).await[..] else { panic!("one webhook") };
    assert_eq!((&rotated["key"], rotated.get("nextKey")), (&json!("4bb06f8e"), None));
    let leader = cluster.leader(1).await;
    let heir = cluster.region(0).into_iter().find(|node| *node != leader).unwrap();
    enqueue(&url, 10).await;
    cluster.transfer_leadership(1, leader, heir).await.unwrap();
    enqueue(&url, 10).await;
    until_all_are_acknowledged(&url).await;
    let seen = receiver.seen.lock().await.clone();
    assert!(seen.len() == 23 && seen.values().all(|times| *times == 1), "{seen:?}");
    assert!(cluster.order(6, &["databases", "list"]).await.contains("runs, webhook"));
    assert_eq!(webhook(&["remove", "default"]).await, Vec::<Value>::new());
    enqueue(&url, 1).await;
    let polled = ask(&url, "poll", json!({})).await;
    assert_eq!(polled["messages"][0]["attempt"], 1);
}

#[tokio::test]
async fn endpoint_that_is_down_is_named_by_the_status_of_its_node_until_it_is_back() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let (receiver, key) = (Receiver::start(KEY).await, file(KEY));
    // Bound, so that no other program listens there, and refused by the system.
    let bound = TcpSocket::new_v4().unwrap();
    bound.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let path = key.path().to_str().unwrap();
    let down = format!("http://{}/", bound.local_addr().unwrap());
    let set = ["queue", "webhook", "set", "default", "--url", &down, "--key-file", path];
    cluster.order(6, &set).await;
    let url = cluster.url(6);
    let leader = cluster.leader(1).await;
    let backoff = json!({ "payload": PAYLOAD, "backoffMs": [1000, 1000, 1000, 1000, 1000] });
    ask(&url, "enqueue", backoff).await;
    let fails = async || {
        let warnings = cluster.status(leader).await.unwrap().warnings;
        warnings.into_iter().find(|warning| warning.contains("the webhook of database default"))
    };
    poll::until("it is said", DEADLINE, async || match fails().await {
        Some(warning) if warning.contains("Connection refused") => Ok(()),
        other => Err(other),
    })
    .await;
    cluster.order(6, &["queue", "webhook", "set", "default", "--url", &receiver.url]).await;
    until_all_are_acknowledged(&url).await;
    assert_eq!(receiver.count().await, 1);
    poll::until("it is well", DEADLINE, async || fails().await.map_or(Ok(()), Err)).await;
}
