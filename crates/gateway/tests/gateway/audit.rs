//! The audit log: the line of each request, what is never in it, and what becomes of requests when it
//! cannot be written.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::Method;
use meridian_gateway::{Audit, AuditSettings, Options, Sample, TrustedProxies, WhenFull, digest};
use meridian_proto::kv_connect as pb;
use prost::Message;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Client, MAIN_TEXT, OTHERS, Plan, READER, Server, WRITER, all, set, until};

mod in_progress;

/// With all requests, and without keys and values.
fn plain() -> AuditSettings {
    let (file, sample, when_full) = (PathBuf::new(), Sample::ALL, WhenFull::Drop);
    AuditSettings { file, sample, keys: false, values: false, when_full }
}

/// A server with an audit log, whose folder goes with it.
struct Audited {
    server: Server,
    folder: TempDir,
}

impl Audited {
    async fn start(settings: AuditSettings) -> Self {
        Self::with(settings, Options::default()).await
    }

    async fn with(settings: AuditSettings, options: Options) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = AuditSettings { file: folder.path().join("audit.jsonl"), ..settings };
        let audit = Some(Audit::open(settings, "amsterdam-a").unwrap());
        Self { server: Server::with(Options { audit, ..options }).await, folder }
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("audit.jsonl")
    }

    /// The file of a server that has stopped: every line is in it then.
    async fn text(mut self) -> String {
        drop(self.server.stop.take());
        self.server.serving.await.unwrap();
        std::fs::read_to_string(self.folder.path().join("audit.jsonl")).unwrap()
    }

    /// Its lines, but for the first.
    async fn lines(self) -> Vec<Value> {
        lines(&self.text().await)
    }
}

/// Each line is JSON by itself, of this gateway, with its time.
fn lines(text: &str) -> Vec<Value> {
    let line = |line: &str| {
        let line: Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let time = line["time"].as_str().unwrap();
        assert!(time.len() == "2026-11-29T20:45:40.123Z".len() && time.ends_with('Z'), "{time}");
        assert_eq!(line["gateway"], "amsterdam-a");
        line
    };
    let lines: Vec<Value> = text.lines().map(line).collect();
    lines.into_iter().filter(|line| line.get("audit").is_none()).collect()
}

fn file_lines(path: &Path) -> usize {
    std::fs::read_to_string(path).unwrap_or_default().lines().count()
}

fn fingerprint(token: &str) -> String {
    digest(token)[..4].iter().map(|byte| format!("{byte:02x}")).collect()
}

async fn ask(server: &Server, token: &str, method: Method, path: &str, body: &[u8]) -> u16 {
    let mut client = server.http1().await;
    let authorization = format!("Bearer {token}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
        ("user-agent", "a \"program\""),
    ];
    let headers = if token.is_empty() { &headers[1..] } else { &headers[..] };
    let mut request = client.request(path, headers, Bytes::copy_from_slice(body));
    *request.method_mut() = method;
    let mut response = client.begin(request).await.unwrap();
    let status = response.status().as_u16();
    if !response.headers().contains_key("x-accel-buffering") {
        while response.body_mut().frame().await.is_some() {}
    }
    status
}

async fn post(server: &Server, token: &str, path: &str, body: &[u8]) -> u16 {
    ask(server, token, Method::POST, path, body).await
}

fn conflicting(key: &'static str) -> pb::AtomicWrite {
    let check = pb::Check { key: key.into(), versionstamp: Bytes::from_static(&[9; 10]) };
    pb::AtomicWrite { checks: vec![check], ..set(key, "v") }
}

fn watch(keys: &[&'static str]) -> Vec<u8> {
    let key = |key: &&'static str| pb::WatchKey { key: Bytes::from_static(key.as_bytes()) };
    pb::Watch { keys: keys.iter().map(key).collect() }.encode_to_vec()
}

/// Whether the line has these fields.
fn has(line: &Value, fields: &Value) -> bool {
    fields.as_object().unwrap().iter().all(|(name, value)| line[name] == *value)
}

#[track_caller]
fn one_has(lines: &[Value], fields: &Value) -> Value {
    let found: Vec<&Value> = lines.iter().filter(|line| has(line, fields)).collect();
    let [line] = found[..] else { panic!("{} lines have {fields}: {lines:#?}", found.len()) };
    line.clone()
}

#[tokio::test]
async fn each_request_has_a_line_with_its_token_its_database_its_counts_and_its_outcome() {
    let audited = Audited::start(plain()).await;
    let server = &audited.server;
    let write = set("k", "value").encode_to_vec();
    assert_eq!(post(server, WRITER, "/kv/strong/atomic_write", &write).await, 200);
    let conflict = conflicting("k").encode_to_vec();
    assert_eq!(post(server, WRITER, "/kv/strong/atomic_write", &conflict).await, 200);
    let read = all().encode_to_vec();
    assert_eq!(post(server, READER, "/kv/strong/snapshot_read", &read).await, 200);
    assert_eq!(post(server, READER, "/kv/eventual/snapshot_read", &read).await, 200);
    assert_eq!(post(server, WRITER, "/db/main?consistency=eventual", b"").await, 200);
    let message = json!({ "payload": "/w8w" }).to_string();
    assert_eq!(post(server, WRITER, "/kv/queue/enqueue", message.as_bytes()).await, 200);
    assert_eq!(post(server, WRITER, "/kv/queue/poll", br#"{"waitMs":1}"#).await, 200);
    assert_eq!(post(server, WRITER, "/kv/queue/list", b"").await, 200);
    assert_eq!(post(server, WRITER, "/kv/queue/change", b"{}").await, 200);
    let report = json!({ "listener": "00000000000000000000000000000000", "reports": [] });
    let report = report.to_string();
    assert_eq!(post(server, WRITER, "/kv/queue/report", report.as_bytes()).await, 200);
    assert_eq!(ask(server, "", Method::GET, "/.meridian/v1/server", b"").await, 200);
    server.memory.plan(Plan::Reject("no sum"));
    assert_eq!(post(server, WRITER, "/kv/strong/atomic_write", &write).await, 400);
    server.memory.plan(Plan::Unavailable);
    assert_eq!(post(server, READER, "/kv/strong/snapshot_read", &read).await, 503);

    let lines = audited.lines().await;
    assert_eq!(lines.len(), 13, "{lines:#?}");
    let committed = one_has(
        &lines,
        &json!({
            "operation": "atomic_write", "outcome": "committed", "status": 200, "checks": 0,
            "mutations": 1, "enqueues": 0, "settlements": 0, "bytes_in": write.len(),
            "token": fingerprint(WRITER), "database": "main", "database_id": MAIN_TEXT,
            "address": "127.0.0.1", "user_agent": "a \"program\"",
        }),
    );
    assert_eq!(committed["versionstamp"].as_str().unwrap().len(), 20);
    assert!(
        committed["duration_us"].as_u64().is_some() && committed["bytes_out"].as_u64() > Some(0)
    );
    assert!(committed.get("token_label").is_none() && committed.get("answered").is_none());
    one_has(&lines, &json!({ "outcome": "conflict", "failed_checks": 1, "checks": 1 }));
    let strong = json!({ "operation": "snapshot_read", "consistency": "strong", "outcome": "ok" });
    let strong = one_has(&lines, &strong);
    let expected = json!({
        "ranges": 1, "keys": 1, "token_id": 7, "token_label": "a\nreader", "token": fingerprint(READER),
    });
    assert!(has(&strong, &expected), "{strong}");
    one_has(&lines, &json!({ "operation": "snapshot_read", "consistency": "eventual" }));
    let metadata =
        json!({ "operation": "metadata", "consistency": "eventual", "database": "main" });
    one_has(&lines, &metadata);
    one_has(&lines, &json!({ "operation": "enqueue", "enqueues": 1, "outcome": "committed" }));
    for operation in ["poll", "list_queue", "report"] {
        one_has(&lines, &json!({ "operation": operation, "messages": 0, "outcome": "ok" }));
    }
    one_has(&lines, &json!({ "operation": "change_queue", "outcome": "committed" }));
    one_has(&lines, &json!({ "operation": "file", "outcome": "ok" }));
    one_has(&lines, &json!({ "outcome": "refused", "reason": "rejected", "status": 400 }));
    one_has(&lines, &json!({ "outcome": "refused", "reason": "unavailable", "status": 503 }));
}

#[tokio::test]
async fn refused_requests_have_lines_with_the_reason_whatever_the_sample() {
    let audited =
        Audited::start(AuditSettings { sample: Sample::new(0.0).unwrap(), ..plain() }).await;
    let (server, read) = (&audited.server, all().encode_to_vec());
    let data = "/kv/strong/snapshot_read";
    assert_eq!(post(server, WRITER, data, &read).await, 200);
    for (token, reason) in [("", "missing"), ("unknown", "unknown"), (OTHERS, "database")] {
        assert_eq!(post(server, token, data, &read).await, 401, "{reason}");
    }
    let write = set("k", "v").encode_to_vec();
    assert_eq!(post(server, READER, "/kv/strong/atomic_write", &write).await, 403);
    assert_eq!(post(server, WRITER, data, b"\xff").await, 400);
    assert_eq!(post(server, WRITER, "/nothing", b"").await, 404);
    server.memory.plan(Plan::Unknown);
    let mut client = server.http1().await;
    assert!(client.write(&set("k", "v")).await.is_err());

    let lines = audited.lines().await;
    assert_eq!(lines.len(), 7, "{lines:#?}");
    for (reason, status, token) in [
        ("missing", 401, Value::Null),
        ("unknown", 401, fingerprint("unknown").into()),
        ("database", 401, fingerprint(OTHERS).into()),
        ("forbidden", 403, fingerprint(READER).into()),
        ("invalid", 400, fingerprint(WRITER).into()),
        ("path", 404, fingerprint(WRITER).into()),
    ] {
        let fields =
            json!({ "reason": reason, "status": status, "token": token, "outcome": "refused" });
        one_has(&lines, &fields);
    }
    let unknown = one_has(&lines, &json!({ "outcome": "unknown", "answered": false }));
    assert_eq!(unknown["operation"], "atomic_write");
}

#[tokio::test]
async fn streams_have_a_line_when_they_begin_and_one_when_they_end() {
    let audited = Audited::start(plain()).await;
    let server = &audited.server;
    let authorization = format!("Bearer {READER}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    let mut client = server.http1().await;
    let request = client.request("/kv/strong/watch", &headers, watch(&["a", "b"]).into());
    let mut response = client.begin(request).await.unwrap();
    assert!(response.body_mut().frame().await.is_some());
    let file = audited.file();
    until(|| file_lines(&file) == 2).await;
    client.driver.abort();
    until(|| file_lines(&file) == 3).await;
    // A feed that has told all ends by itself.
    let mut client = server.http1().await;
    let mut request = client.request("/kv/changes?follow=false", &headers, Bytes::new());
    *request.method_mut() = Method::GET;
    let response = client.begin(request).await.unwrap();
    response.into_body().collect().await.unwrap();
    assert_eq!(post(server, WRITER, "/kv/queue/listen", b"{}").await, 200);

    let lines = audited.lines().await;
    let of_watch = |outcome: &str| json!({ "operation": "watch", "keys": 2, "outcome": outcome });
    let began = one_has(&lines, &of_watch("began"));
    let closed = one_has(&lines, &of_watch("closed"));
    assert!(began["stream"].is_u64() && began["stream"] == closed["stream"], "{began} {closed}");
    assert!(closed["bytes_out"].as_u64() > Some(0) && closed["consistency"] == "strong");
    assert!(closed["token_label"] == "a\nreader" && closed.get("bytes_in").is_none());
    one_has(&lines, &json!({ "operation": "changes", "outcome": "ended" }));
    one_has(&lines, &json!({ "operation": "listen", "outcome": "began" }));
    one_has(&lines, &json!({ "operation": "listen", "outcome": "closed" }));
}

#[tokio::test]
async fn write_whose_client_has_left_has_its_outcome_and_a_read_says_that_it_was_abandoned() {
    let audited = Audited::start(plain()).await;
    let server = &audited.server;
    server.memory.plan(Plan::Hold);
    let mut client = server.http1().await;
    let authorization = format!("Bearer {WRITER}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    let write = set("k", "v").encode_to_vec().into();
    let request = client.request("/kv/strong/atomic_write", &headers, write);
    let writing = tokio::spawn(async move { client.send(request).await.map(drop) });
    let begun = || server.memory.writes_begun.load(std::sync::atomic::Ordering::SeqCst) == 1;
    until(begun).await;
    writing.abort();
    assert!(writing.await.unwrap_err().is_cancelled());
    // It polls long, and leaves.
    let mut client = server.http1().await;
    let request = client.request("/kv/queue/poll", &headers, Bytes::new());
    let polling = tokio::spawn(async move { client.send(request).await.map(drop) });
    until(|| server.memory.queues.is_listened_to()).await;
    polling.abort();
    let file = audited.file();
    until(|| file_lines(&file) == 2).await;
    // The connection of the writer may close after its write.
    server.memory.release.notify_one();

    let lines = audited.lines().await;
    let abandoned = json!({ "operation": "poll", "outcome": "abandoned", "answered": false });
    one_has(&lines, &abandoned);
    one_has(&lines, &json!({ "operation": "atomic_write", "outcome": "committed" }));
}

/// One marker in each place where a client can put something.
async fn marked(server: &Server) {
    let write = {
        let mut write = conflicting("\u{2}mark-key\u{0}");
        write.mutations[0].value.as_mut().unwrap().data = "mark-value".into();
        write.encode_to_vec()
    };
    post(server, WRITER, "/kv/strong/atomic_write", &write).await;
    let start = Bytes::from_static(b"\x02mark-start\0");
    let end = Bytes::from_static(b"\x02mark-start\0\xff");
    let range = pb::ReadRange { start, end, limit: 9, reverse: true };
    let read = pb::SnapshotRead { ranges: vec![range] }.encode_to_vec();
    post(server, "mark-token", "/kv/strong/snapshot_read", &read).await;
    post(server, WRITER, "/kv/strong/snapshot_read", &read).await;
    post(server, WRITER, "/kv/strong/watch", &watch(&["\u{2}mark-watched\u{0}"])).await;
    post(server, WRITER, "/db/mark-name", b"mark-body").await;
    post(server, WRITER, "/mark-path", b"").await;
    let queue = json!({ "queue": "mark-queue", "waitMs": 1 }).to_string();
    post(server, WRITER, "/kv/queue/poll", queue.as_bytes()).await;
    // The payload is the text "mark-payload".
    let payload = "/w8iDG1hcmstcGF5bG9hZA==";
    let keys = ["Am1hcmsta2lzAA=="];
    let enqueue = json!({ "queue": "mark-queue", "payload": payload, "keysIfUndelivered": keys });
    post(server, WRITER, "/kv/queue/enqueue", enqueue.to_string().as_bytes()).await;
    // Base64 of `["mark-prefix"]`.
    let feed = "/kv/changes?follow=false&prefix=Am1hcmstcHJlZml4AA";
    assert_eq!(ask(server, WRITER, Method::GET, feed, b"").await, 200);
}

#[tokio::test]
async fn nothing_that_clients_store_or_send_is_in_the_log_unless_operators_ask_for_it() {
    for (keys, values) in [(false, false), (true, false), (true, true)] {
        let audited = Audited::start(AuditSettings { keys, values, ..plain() }).await;
        marked(&audited.server).await;
        let text = audited.text().await;
        // The requests are there, ten and the ends of two streams at least.
        assert!(lines(&text).len() >= 11, "{text}");
        let is_there = |mark: &str| text.contains(mark);
        for secret in ["mark-token", WRITER, "mark-name", "mark-body", "mark-path", "Bearer"] {
            assert!(!is_there(secret), "{secret}: {text}");
        }
        for key in
            ["mark-key", "mark-start", "mark-watched", "mark-queue", "mark-kis", "mark-prefix"]
        {
            assert_eq!(is_there(key), keys, "{key}: {text}");
        }
        for value in ["mark-value", "mark-payload", "bWFyay12YWx1Z"] {
            let is_shown = is_there(value);
            assert!(!is_shown || values, "{value}: {text}");
        }
        if values {
            assert!(is_there("mark-payload"), "{text}");
        }
        if keys {
            let lines = lines(&text);
            let read = json!({ "operation": "snapshot_read", "outcome": "ok" });
            let range = json!({
                "start": "[ \"mark-start\" ]", "end": "[ \"mark-start\" ] ff", "limit": 9,
                "reverse": true,
            });
            assert_eq!(one_has(&lines, &read)["parts"], json!([range]));
        } else {
            assert!(!text.contains("mark"), "{text}");
        }
    }
}

#[tokio::test]
async fn hostile_texts_forge_no_line() {
    let audited = Audited::start(AuditSettings { keys: true, ..plain() }).await;
    let forged = "\u{2}a\"}\n{\"forged\":true,\"x\":\"\u{0}";
    let write = set(forged, "v").encode_to_vec();
    let mut client = audited.server.http1().await;
    let authorization = format!("Bearer {WRITER}");
    let request = client.request("/kv/strong/atomic_write", &[], write.into());
    let (mut parts, body) = request.into_parts();
    // The most that HTTP lets through: a tab, and bytes that are no UTF-8. A line break it refuses.
    let agent = b"x\",\"forged\":true,\"\t\xff\xfe\\u000a".repeat(40);
    for (name, value) in [
        ("user-agent", &agent[..]),
        ("authorization", authorization.as_bytes()),
        ("x-denokv-version", b"3"),
        ("x-denokv-database-id", MAIN_TEXT.as_bytes()),
    ] {
        parts.headers.insert(name, hyper::header::HeaderValue::from_bytes(value).unwrap());
    }
    assert!(hyper::header::HeaderValue::from_bytes(b"a\nb").is_err());
    let reply = client.send(hyper::Request::from_parts(parts, body)).await.unwrap();
    assert_eq!(reply.status, 200, "{}", reply.text());
    let lines = audited.lines().await;
    let [line] = &lines[..] else { panic!("{lines:#?}") };
    assert!(line.get("forged").is_none() && line["outcome"] == "committed");
    assert_eq!(line["parts"][0]["set"], "[ 'a\"}\\n{\"forged\":true,\"x\":\"' ]");
    assert_eq!(line["user_agent"].as_str().unwrap().chars().count(), 100);
}

#[tokio::test]
async fn address_is_that_of_the_client_behind_a_trusted_proxy() {
    let trusted_proxies = TrustedProxies::parse(&["127.0.0.1".to_owned()]).unwrap();
    for (trusted_proxies, address) in
        [(trusted_proxies, "192.0.2.7"), (TrustedProxies::default(), "127.0.0.1")]
    {
        let options = Options { trusted_proxies, ..Options::default() };
        let audited = Audited::with(plain(), options).await;
        for mut client in [audited.server.http1().await, audited.server.http2().await] {
            let headers = [("x-forwarded-for", "192.0.2.7")];
            client.post("/kv/strong/snapshot_read", &headers, "").await.unwrap().refuses(401, "");
        }
        let lines = audited.lines().await;
        assert_eq!(lines.len(), 2);
        assert!(lines.iter().all(|line| line["address"] == address), "{lines:#?}");
    }
}

#[tokio::test]
async fn file_that_is_renamed_while_requests_come_loses_no_line() {
    let audited = Audited::start(plain()).await;
    let (path, mut client) = (audited.file(), audited.server.http2().await);
    let rotated = |number: usize| audited.folder.path().join(format!("audit.{number}"));
    for number in 0..5 {
        for _ in 0..20 {
            assert_eq!(client.read(&all()).await.unwrap().status, 200);
        }
        until(|| path.exists()).await;
        std::fs::rename(&path, rotated(number)).unwrap();
    }
    let rotated: Vec<PathBuf> = (0..5).map(rotated).collect();
    assert_eq!(client.read(&all()).await.unwrap().status, 200);
    drop(client);
    let Audited { mut server, folder } = audited;
    drop(server.stop.take());
    server.serving.await.unwrap();
    let text = |path: &PathBuf| {
        let text = std::fs::read_to_string(path).unwrap();
        // It may be renamed before anything is written to it.
        assert!(text.is_empty() || text.ends_with('\n'), "{text}");
        text
    };
    let all: String = rotated.iter().chain([&path]).map(text).collect();
    drop(folder);
    assert_eq!(lines(&all).len(), 101);
}

fn on_full_disk(when_full: WhenFull) -> Options {
    let settings = AuditSettings { file: "/dev/full".into(), when_full, ..plain() };
    let audit = Audit::open(settings, "a").unwrap();
    Options { audit: Some(audit), ..Options::default() }
}

async fn fails(options: &Options) {
    let audit = options.audit.clone().unwrap();
    until(|| audit.warning().is_some()).await;
}

#[tokio::test]
async fn full_disk_stops_no_request_where_lines_may_be_dropped() {
    let options = on_full_disk(WhenFull::Drop);
    fails(&options).await;
    let warning = options.audit.as_ref().unwrap().warning().unwrap();
    assert!(
        warning.starts_with(
            "the audit log /dev/full cannot be written, and its lines are being lost: No space left"
        ),
        "{warning}"
    );
    let mut server = Server::with(options).await;
    let mut client: Client = server.http2().await;
    for _ in 0..100 {
        assert_eq!(client.write(&set("k", "v")).await.unwrap().status, 200);
    }
    drop((client, server.stop.take()));
    server.serving.await.unwrap();
}

#[tokio::test]
async fn no_operation_is_carried_out_without_its_line_where_operators_want_that() {
    let options = on_full_disk(WhenFull::Refuse);
    fails(&options).await;
    let server = Server::with(options).await;
    let write = set("k", "v").encode_to_vec();
    let text = "This gateway writes an audit log, and cannot write the line of this request now.";
    let mut client = server.http2().await;
    client.write(&set("k", "v")).await.unwrap().refuses(503, text);
    client.read(&all()).await.unwrap().refuses(503, text);
    for (path, body) in [
        ("/db/main", &b""[..]),
        ("/kv/eventual/atomic_write", &write),
        ("/kv/strong/watch", &watch(&["a"])),
        ("/kv/queue/enqueue", br#"{"payload":"/w8w"}"#),
        ("/kv/queue/listen", b"{}"),
        ("/kv/queue/poll", b"{}"),
    ] {
        assert_eq!(post(&server, WRITER, path, body).await, 503, "{path}");
    }
    assert_eq!(ask(&server, WRITER, Method::GET, "/kv/changes", b"").await, 503);
    // A stranger is told no more than ever.
    assert_eq!(post(&server, "unknown", "/kv/strong/atomic_write", &write).await, 401);
    assert_eq!(server.memory.writes_begun.load(std::sync::atomic::Ordering::SeqCst), 0);
    assert!(server.memory.reads.lock().unwrap().is_empty());
}
