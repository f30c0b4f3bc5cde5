//! Queues through real processes: from the gateway of one region to listeners of another, and over
//! the loss of a leader.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use meridian_proto::kv_connect as pb;
use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, TOKEN, clients, poll};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

/// A client of one gateway's queues.
#[derive(Clone)]
struct Queue {
    client: Client<HttpConnector, Full<Bytes>>,
    url: String,
}

impl Queue {
    fn at(url: String) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build(HttpConnector::new()), url }
    }

    async fn ask(&self, path: &str, body: &Value) -> hyper::Response<Incoming> {
        let request = Request::post(format!("{}/kv/queue/{path}", self.url))
            .header("authorization", format!("Bearer {TOKEN}"))
            .header("x-denokv-version", "3")
            .header("x-denokv-database-id", DEFAULT_DATABASE.to_string())
            .body(Full::new(body.to_string().into()))
            .unwrap();
        self.client.request(request).await.unwrap()
    }

    async fn call(&self, path: &str, body: Value) -> Value {
        let answer = self.ask(path, &body).await;
        let status = answer.status();
        let body = answer.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    async fn listen(&self, credits: u32) -> Lines {
        let answer = self.ask("listen", &json!({ "credits": credits })).await;
        assert_eq!(answer.status(), 200);
        let mut lines = Lines { body: answer.into_body(), read: Vec::new(), listener: Value::Null };
        let open = lines.next().await;
        assert_eq!(open["type"], "open");
        lines.listener = open["listener"].clone();
        lines
    }

    async fn report(&self, listener: &Value, message: &Value, verdict: &str) -> Value {
        let report = json!({ "id": message["id"], "due": message["due"], "verdict": verdict });
        let body = json!({ "listener": listener, "reports": [report] });
        self.call("report", body).await["results"][0].clone()
    }
}

/// The stream of a listener.
struct Lines {
    body: Incoming,
    read: Vec<u8>,
    listener: Value,
}

impl Lines {
    async fn next(&mut self) -> Value {
        loop {
            if let Some(end) = self.read.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return serde_json::from_slice(&line).unwrap();
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.unwrap();
            self.read.extend(frame.expect("the stream goes on").unwrap().into_data().unwrap());
        }
    }

    async fn message(&mut self) -> Value {
        loop {
            let line = self.next().await;
            match line["type"].as_str().unwrap() {
                "message" => return line,
                "ping" | "release" => {}
                other => panic!("{other}: {line}"),
            }
        }
    }
}

/// The last node of each region: a voter that need not lead, a replica, and the third region's only
/// node.
fn gateways(cluster: &Cluster) -> Vec<Queue> {
    let nodes = (0..cluster.regions()).filter_map(|region| cluster.region(region).pop());
    nodes.map(|node| Queue::at(cluster.url(node))).collect()
}

#[tokio::test]
async fn messages_of_npm_reach_listeners_of_every_region() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    for queue in gateways(&cluster) {
        let mut command = clients::node();
        command.arg(clients::program("queue.mjs")).arg(cluster.url(1)).arg(queue.url);
        command.arg(DEFAULT_DATABASE.to_string());
        clients::run(command).await;
    }
    cluster.assert_all_run();
}

#[tokio::test]
async fn message_is_polled_refused_and_dies_into_its_keys() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let [near, far, farthest] = &gateways(&cluster)[..] else { panic!("three regions") };
    let message = json!({
        "payload": "/w9iAA==",
        "backoffMs": [1],
        "keysIfUndelivered": ["AmRlYWQA"],
        "id": "once",
    });
    let first = far.call("enqueue", message.clone()).await;
    assert_eq!(near.call("enqueue", message).await, first, "the same id, the same message");
    for attempt in [1, 2] {
        let polled = farthest.call("poll", json!({ "max": 5 })).await;
        let [message] = &polled["messages"].as_array().unwrap()[..] else { panic!("{polled}") };
        assert_eq!((&message["id"], &message["attempt"]), (&first["id"], &json!(attempt)));
        assert_eq!(near.report(&polled["listener"], message, "extend").await, "done");
        assert_eq!(near.report(&polled["listener"], message, "nack").await, "done");
        assert_eq!(near.report(&json!(STRANGER), message, "nack").await, "late");
    }
    let empty = farthest.call("poll", json!({ "waitMs": 0 })).await;
    assert_eq!(empty["messages"], json!([]));
    let dead = cluster.client(1, DEFAULT_DATABASE).get(b"\x02dead\0").await.unwrap().unwrap();
    assert_eq!(dead.encoding, pb::ValueEncoding::VeV8 as i32);
    assert_eq!(dead.value, Bytes::from_static(b"\xff\x0fb\0"));
}

const STRANGER: &str = "00000000-0000-0000-0000-000000000000";

/// The messages that are held while the leader dies are not handed out again: their gateways live.
#[tokio::test]
async fn lost_leader_loses_no_message_and_hands_out_none_twice() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let leader = cluster.leader(1).await;
    let alive: Vec<_> = cluster.node_ids().into_iter().filter(|id| *id != leader).collect();
    let queues: Vec<Queue> = alive.iter().map(|id| Queue::at(cluster.url(*id))).collect();
    let (writer, [first, .., last]) = (queues[0].clone(), &queues[..]) else { panic!() };
    let mut listeners = [first.listen(20).await, last.listen(20).await];
    let mut enqueued = BTreeSet::new();
    for _ in 0..60 {
        let answer = writer.call("enqueue", json!({ "payload": "/w8w" })).await;
        enqueued.insert(answer["id"].as_str().unwrap().to_owned());
    }
    let mut got: BTreeMap<String, u32> = BTreeMap::new();
    let mut count = |message: &Value| {
        *got.entry(message["id"].as_str().unwrap().to_owned()).or_default() += 1;
    };
    // Each holds as many as it may.
    let mut held = [Vec::new(), Vec::new()];
    for (lines, held) in listeners.iter_mut().zip(&mut held) {
        for _ in 0..20 {
            let message = lines.message().await;
            count(&message);
            held.push(message);
        }
    }
    cluster.kill(leader);
    for (lines, held) in listeners.iter().zip(&held) {
        for message in held {
            assert_eq!(writer.report(&lines.listener, message, "ack").await, "done");
        }
    }
    let mut left = 20;
    while left > 0 {
        let [one, other] = &mut listeners;
        let (message, listener) = tokio::select! {
            message = one.message() => (message, one.listener.clone()),
            message = other.message() => (message, other.listener.clone()),
        };
        count(&message);
        assert_eq!(writer.report(&listener, &message, "ack").await, "done");
        left -= 1;
    }
    assert_eq!(got.keys().cloned().collect::<BTreeSet<_>>(), enqueued);
    assert!(got.values().all(|times| *times == 1), "{got:?}");
    poll::until("nothing is left", DEADLINE, async || {
        let polled = last.call("poll", json!({ "waitMs": 4000 })).await;
        if polled["messages"] == json!([]) { Ok(()) } else { Err(polled) }
    })
    .await;
}
