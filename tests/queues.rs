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
use std::process::Stdio;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use meridian_proto::kv_connect as pb;
use meridian_tests::cluster::binary;
use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, READ_ONLY_TOKEN, TOKEN, clients, poll};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;

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

    async fn released(&mut self) -> Value {
        loop {
            let line = self.next().await;
            match line["type"].as_str().unwrap() {
                "release" => return line,
                "ping" => {}
                other => panic!("{other}: {line}"),
            }
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

/// `meridian queue`, as an operator gives it.
async fn operator(url: &str, arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(binary());
    command.arg("queue").args(arguments).env("DENO_KV_DEFAULT_PATH", url);
    command.env("DENO_KV_ACCESS_TOKEN", TOKEN).kill_on_drop(true).stdin(Stdio::null());
    let output = command.output().await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

async fn done(url: &str, arguments: &[&str]) -> Vec<Value> {
    let (succeeded, out, error) = operator(url, arguments).await;
    assert!(succeeded && error.is_empty(), "{arguments:?}: {error}");
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn id(message: &Value) -> &str {
    message["id"].as_str().unwrap()
}

/// `"a"`, as V8 writes it.
const PAYLOAD: &str = "/w8iAWE=";

/// By gateways of three regions, before and after the shard has another leader.
#[tokio::test]
async fn operator_sees_cancels_and_moves_messages_over_a_change_of_leaders() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let [near, far, farthest] = &gateways(&cluster)[..] else { panic!("three regions") };
    let now = near.call("enqueue", json!({ "payload": PAYLOAD })).await;
    let hour = json!({ "payload": PAYLOAD, "delayMs": 3_600_000, "keysIfUndelivered": ["AmEA"] });
    let later = near.call("enqueue", hour.clone()).await;
    let latest = near.call("enqueue", hour).await;

    let listed = done(&far.url, &["ls"]).await;
    let ids: Vec<&str> = listed.iter().map(id).collect();
    assert_eq!(ids, [id(&now), id(&later), id(&latest)]);
    assert_eq!((&listed[0]["leased"], &listed[1]["keys"]), (&json!(false), &json!(1)));
    assert_eq!(done(&farthest.url, &["ls", "--limit", "1"]).await, listed[..1]);
    let whole = done(&near.url, &["peek", id(&later)]).await;
    assert_eq!(whole[0]["value"], json!({ "type": "string", "value": "a" }));
    assert_eq!(whole[0]["keysIfUndelivered"][0][0]["value"], "a");
    let (_, shown, _) = operator(&far.url, &["peek", "--output", "inspect"]).await;
    assert!(shown.starts_with(id(&now)) && shown.ends_with("\"a\"\n"), "{shown}");

    // The message that a listener holds.
    let mut lines = far.listen(5).await;
    assert_eq!(lines.message().await["id"], now["id"]);
    assert_eq!(done(&near.url, &["ls", "--limit", "1"]).await[0]["leased"], true);
    assert_eq!(
        done(&near.url, &["count"]).await,
        [
            json!({ "undelivered": 3, "leased": 1, "dead": 0, "firstDue": listed[0]["due"], "paused": false })
        ]
    );
    let cancelled = done(&near.url, &["cancel", id(&now), id(&latest)]).await;
    assert_eq!(cancelled, [json!({ "cancelled": 2 })]);
    assert_eq!(lines.released().await["id"], now["id"]);

    let leader = cluster.leader(1).await;
    let gateway = cluster.node_ids().into_iter().rfind(|id| *id != leader).unwrap();
    let url = cluster.url(gateway);
    cluster.kill(leader);
    // A message that waited an hour goes to the listener whose gateway has found the next leader.
    assert_eq!(done(&url, &["ls"]).await.len(), 1);
    assert_eq!(done(&url, &["run-now", id(&later)]).await, [json!({ "moved": 1, "due": 0 })]);
    let message = lines.message().await;
    assert_eq!((&message["id"], &message["attempt"]), (&later["id"], &json!(1)));
    let queue = Queue::at(url.clone());
    assert_eq!(queue.report(&lines.listener, &message, "ack").await, "done");
    let none = json!({ "undelivered": 0, "leased": 0, "dead": 0, "paused": false });
    assert_eq!(done(&url, &["count"]).await, [none]);
    let (succeeded, out, error) = operator(&url, &["cancel", id(&later)]).await;
    assert!(!succeeded && error.contains(id(&later)), "{error}");
    assert_eq!(out, "{\"cancelled\":0}\n");
}

#[tokio::test]
async fn dead_letters_are_listed_redriven_and_purged() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let [near, far, farthest] = &gateways(&cluster)[..] else { panic!("three regions") };
    let mut lines = near.listen(5).await;
    let mut dies = async |queue: &Queue| {
        let message = json!({ "payload": PAYLOAD, "backoffMs": [1] });
        let enqueued = queue.call("enqueue", message).await;
        for attempt in [1, 2] {
            let message = lines.message().await;
            assert_eq!((&message["id"], &message["attempt"]), (&enqueued["id"], &json!(attempt)));
            assert_eq!(queue.report(&lines.listener, &message, "nack").await, "done");
        }
        enqueued
    };
    let first = dies(near).await;
    let second = dies(far).await;
    let letters = done(&farthest.url, &["ls", "--dead"]).await;
    assert_eq!((id(&letters[0]), id(&letters[1])), (id(&first), id(&second)));
    assert_eq!((&letters[1]["number"], &letters[1]["attempts"]), (&json!(1), &json!(2)));
    let shown = done(&far.url, &["peek", "--dead", "1"]).await;
    assert_eq!(shown[0]["value"]["value"], "a");

    let redriven = done(&farthest.url, &["redrive", "1"]).await;
    assert_eq!(redriven, [json!({ "redriven": 1 })]);
    let message = lines.message().await;
    assert_eq!((&message["id"], &message["attempt"]), (&second["id"], &json!(1)));
    assert_eq!(far.report(&lines.listener, &message, "ack").await, "done");
    let (succeeded, _, error) = operator(&far.url, &["redrive", "1"]).await;
    assert!(!succeeded && error.contains("there is no dead letter 1"), "{error}");

    for _ in 0..3 {
        let later = json!({ "payload": PAYLOAD, "delayMs": 3_600_000 });
        near.call("enqueue", later).await;
    }
    let (succeeded, _, unasked) = operator(&near.url, &["purge"]).await;
    assert!(!succeeded && unasked.contains("3 messages of http"), "{unasked}");
    let purged = done(&near.url, &["purge", "--yes"]).await;
    assert_eq!(purged, [json!({ "removed": 3, "left": 0 })]);
    let purged = done(&far.url, &["purge", "--dead", "--yes"]).await;
    assert_eq!(purged, [json!({ "removed": 1, "left": 0 })]);
    assert_eq!(done(&near.url, &["ls", "--dead"]).await, Vec::<Value>::new());
}

#[tokio::test]
async fn token_that_may_only_read_lists_a_queue_and_changes_nothing() {
    let cluster = Cluster::start(ClusterOptions::default()).await;
    let [near, far, _] = &gateways(&cluster)[..] else { panic!("three regions") };
    let enqueued = near.call("enqueue", json!({ "payload": PAYLOAD, "delayMs": 60_000 })).await;
    let reader = async |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.arg("queue").args(arguments).env("DENO_KV_DEFAULT_PATH", &far.url);
        command.env("DENO_KV_ACCESS_TOKEN", READ_ONLY_TOKEN).kill_on_drop(true);
        let output = command.stdin(Stdio::null()).output().await.unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let (succeeded, listed) = reader(&["ls"]).await;
    assert!(succeeded && listed.contains(id(&enqueued)), "{listed}");
    for arguments in [&["cancel", id(&enqueued)][..], &["run-now", id(&enqueued)], &["purge"]] {
        let (succeeded, said) = reader(arguments).await;
        assert!(!succeeded && said.contains("permission `manage`"), "{arguments:?}: {said}");
    }
    assert_eq!(done(&near.url, &["ls"]).await.len(), 1);
}

/// The killed process reports nothing: of its message, its write alone can have said that it is done.
#[tokio::test]
async fn killed_handler_has_done_its_message_with_its_write_or_not_at_all() {
    let cluster = Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await;
    let command = |mode: &str, names: &[&str]| {
        let url = cluster.url(1);
        let mut command = clients::deno_with_module(&url);
        command.arg(clients::program("module_acknowledge.ts")).args([mode, &url]).args(names);
        command
    };
    for mode in ["before", "behind"] {
        let mut command = command(mode, &[mode]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).kill_on_drop(true);
        let mut program = command.spawn().unwrap();
        let mut lines = BufReader::new(program.stdout.take().unwrap()).lines();
        let said = tokio::time::timeout(clients::DEADLINE, lines.next_line()).await;
        assert_eq!(said.expect("a word").unwrap().as_deref(), Some("held"), "{mode}");
        program.kill().await.unwrap();
    }
    let effects = clients::run(command("after", &["before", "behind"])).await;
    assert_eq!(effects.trim(), "1 1");
}

async fn counts(url: &str, wanted: Value) {
    poll::until("the leader knows", DEADLINE, async || {
        let counted = operator(url, &["count"]).await;
        let mut figures: Value = serde_json::from_str(&counted.1).unwrap_or_default();
        figures.as_object_mut().map(|figures| figures.remove("firstDue"));
        if figures == wanted { Ok(()) } else { Err(counted) }
    })
    .await;
}

/// Its listener's stream goes on through both.
#[tokio::test]
async fn paused_queue_hands_out_nothing_over_a_change_of_leaders_until_it_is_resumed() {
    let mut cluster = Cluster::start(ClusterOptions::default()).await;
    let far = Queue::at(cluster.url(6));
    let mut lines = far.listen(5).await;
    let said = cluster.order(6, &["queue", "pause", "default", "--output", "inspect"]).await;
    assert!(said.starts_with("the queue of database default is paused"), "{said}");
    let empty = json!({ "undelivered": 0, "leased": 0, "dead": 0, "paused": true });
    counts(&far.url, empty).await;
    let enqueued = far.call("enqueue", json!({ "payload": PAYLOAD })).await;
    let waits = json!({ "undelivered": 1, "leased": 0, "dead": 0, "paused": true });
    counts(&far.url, waits.clone()).await;

    let leader = cluster.leader(1).await;
    cluster.kill(leader);
    // The next leader has a session of the listener, and has waited for claims.
    far.call("enqueue", json!({ "payload": PAYLOAD, "delayMs": 3_600_000 })).await;
    let polled = far.call("poll", json!({ "waitMs": 7000 })).await;
    assert_eq!(polled["messages"], json!([]));
    counts(&far.url, json!({ "undelivered": 2, "leased": 0, "dead": 0, "paused": true })).await;
    let listed = cluster.order(6, &["databases", "list"]).await;
    assert!(listed.contains("paused"), "{listed}");

    let said = cluster.order(6, &["queue", "resume", "default", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&said).unwrap()["paused"], false);
    let message = lines.message().await;
    assert_eq!((&message["id"], &message["attempt"]), (&enqueued["id"], &json!(1)));
    assert_eq!(far.report(&lines.listener, &message, "ack").await, "done");
    counts(&far.url, json!({ "undelivered": 1, "leased": 0, "dead": 0, "paused": false })).await;
}

/// Each listener in a process of its own; one queue has none.
#[tokio::test]
async fn named_queues_reach_their_own_listeners_over_a_change_of_leaders() {
    let mut cluster = Cluster::start(ClusterOptions { topology: &[3], ..Default::default() }).await;
    let leader = cluster.leader(1).await;
    let url = cluster.url(cluster.node_ids().into_iter().find(|id| *id != leader).unwrap());
    let command = |arguments: &[&str]| {
        let mut command = clients::deno_with_module(&url);
        command.arg(clients::program("module_names.ts")).args(arguments).kill_on_drop(true);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        command
    };
    clients::run(command(&["enqueue", &url, "first"])).await;
    let queues = [("emails", "emails"), ("reports", "reports"), ("", "unnamed")];
    let mut listeners = Vec::new();
    for (queue, said) in queues {
        let [first, second] = [format!("{said} first"), format!("{said} second")];
        let mut program = command(&["listen", &url, queue, &first, &second]).spawn().unwrap();
        let lines = BufReader::new(program.stdout.take().unwrap()).lines();
        listeners.push((program, lines, [first, second]));
    }
    let next = async |lines: &mut tokio::io::Lines<_>| {
        tokio::time::timeout(clients::DEADLINE, lines.next_line()).await.expect("a word").unwrap()
    };
    for (_, lines, [first, _]) in &mut listeners {
        assert_eq!(next(lines).await.as_ref(), Some(&*first));
    }
    cluster.kill(leader);
    clients::run(command(&["enqueue", &url, "second"])).await;
    for (program, lines, [first, second]) in &mut listeners {
        // A report may be lost with the leader, and its message comes again.
        let mut said = next(lines).await;
        while said.as_ref() == Some(first) {
            said = next(lines).await;
        }
        assert_eq!(said.as_ref(), Some(&*second));
        assert!(program.wait().await.unwrap().success());
    }

    let unnamed = |more: &[(&str, Value)]| {
        let mut counted = json!({ "undelivered": 0, "leased": 0, "dead": 0, "paused": false });
        more.iter().for_each(|(field, value)| counted[field] = value.clone());
        counted
    };
    let left =
        |undelivered: u64| json!([{ "queue": "unheard", "undelivered": undelivered, "leased": 0 }]);
    counts(&url, unnamed(&[("queues", left(2))])).await;
    assert!(done(&url, &["ls"]).await.is_empty(), "of the unnamed queue");
    let listed = done(&url, &["ls", "--queue", "unheard"]).await;
    assert_eq!(listed.len(), 2);
    done(&url, &["cancel", "--queue", "unheard", id(&listed[0])]).await;
    counts(&url, unnamed(&[("queues", left(1))])).await;
    done(&url, &["purge", "--queue", "unheard", "--yes"]).await;
    counts(&url, unnamed(&[])).await;
}
