//! Change feeds, as clients see them: lines and events, where they begin and end, limits and
//! shares.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use meridian_gateway::{NoChanges, Options, Unavailable};
use meridian_proto::kv_connect as pb;
use meridian_types::{Epoch, Position, Versionstamp};
use meridian_values::json::base64url;
use serde_json::{Value, json};
use tokio::time::timeout;

use crate::support::{
    Client, MAIN_TEXT, OTHERS, READER, SECOND_WRITER, Server, WRITER, all, set, until,
};

const LONG: Duration = Duration::from_secs(20);
const START: &str = "?after=00000000000000000000";

fn request(
    client: &Client,
    query: &str,
    token: &str,
    more: &[(&str, &str)],
) -> Request<Full<Bytes>> {
    let authorization = format!("Bearer {token}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    let headers: Vec<_> = headers.iter().chain(more).copied().collect();
    let mut request = client.request(&format!("/kv/changes{query}"), &headers, Bytes::new());
    *request.method_mut() = hyper::Method::GET;
    request
}

struct Feed {
    response: Response<Incoming>,
    received: Vec<u8>,
}

impl Feed {
    async fn open(client: &mut Client, query: &str, token: &str) -> Self {
        Self::open_with(client, query, token, &[]).await
    }

    async fn open_with(
        client: &mut Client,
        query: &str,
        token: &str,
        headers: &[(&str, &str)],
    ) -> Self {
        let request = request(client, query, token, headers);
        Self { response: client.begin(request).await.unwrap(), received: Vec::new() }
    }

    fn header(&self, name: &str) -> &str {
        self.response.headers()[name].to_str().unwrap()
    }

    /// The next line, or event, that ends with this; `None` at the end.
    async fn text(&mut self, end: &str) -> Option<String> {
        loop {
            let text = String::from_utf8_lossy(&self.received).into_owned();
            if let Some((first, rest)) = text.split_once(end) {
                let (first, rest) = (first.to_owned(), rest.as_bytes().to_vec());
                self.received = rest;
                return Some(first);
            }
            let frame = timeout(LONG, self.response.body_mut().frame()).await.expect("a frame")?;
            self.received.extend_from_slice(frame.unwrap().data_ref().expect("data"));
        }
    }

    async fn line(&mut self) -> Option<Value> {
        self.text("\n").await.map(|line| serde_json::from_str(&line).unwrap())
    }

    /// The next line that is no bookmark.
    async fn next(&mut self) -> Value {
        loop {
            let line = self.line().await.expect("the feed goes on");
            if line.get("bookmark").is_none() {
                return line;
            }
        }
    }
}

fn stamp(sequence: u64) -> String {
    Versionstamp::new(Position::new(Epoch(1), sequence), 0).to_hex()
}

fn bookmark(sequence: u64) -> Value {
    let stamp = Versionstamp::behind(Position::new(Epoch(1), sequence));
    json!({ "bookmark": stamp.to_hex() })
}

fn sets(sequence: u64, key: &str, value: &str) -> Value {
    let (key, value) = (base64url(key.as_bytes()), base64url(value.as_bytes()));
    let change = json!({ "op": "set", "key": key, "encoding": "BYTES", "value": value });
    json!({ "versionstamp": stamp(sequence), "changes": [change] })
}

#[tokio::test]
async fn feed_tells_whole_transactions_of_its_prefix_in_order_and_goes_on_from_each() {
    let server = Server::start().await;
    let mut writer = server.http2().await;
    writer.write(&set("a1", "one")).await.unwrap();
    writer.write(&set("b", "of another prefix")).await.unwrap();
    let mutations = [set("a2", "two"), set("b", "x"), set("a3", "three")];
    let mutations = mutations.into_iter().flat_map(|write| write.mutations).collect();
    writer.write(&pb::AtomicWrite { mutations, ..Default::default() }).await.unwrap();
    let whole = |sequence| {
        let change = |key: &str, value: &str| sets(sequence, key, value)["changes"][0].clone();
        let changes = [change("a2", "two"), change("a3", "three")];
        json!({ "versionstamp": stamp(sequence), "changes": changes })
    };
    for mut client in [server.http1().await, server.http2().await] {
        let mut feed = Feed::open(&mut client, &format!("{START}&prefix=YQ"), READER).await;
        assert_eq!(feed.response.status(), StatusCode::OK);
        assert_eq!(feed.header("content-type"), "application/x-ndjson");
        assert_eq!(feed.header("x-accel-buffering"), "no");
        assert_eq!(feed.header("cache-control"), "no-store");
        assert_eq!(feed.line().await.unwrap(), sets(1, "a1", "one"));
        assert_eq!(feed.line().await.unwrap(), whole(3));
        assert_eq!(feed.line().await.unwrap(), bookmark(3), "all was told");
    }
    let mut client = server.http2().await;
    let query = format!("?prefix=YQ&after={}", stamp(1));
    let mut feed = Feed::open(&mut client, &query, READER).await;
    assert_eq!(feed.next().await, whole(3));
    let key = Bytes::from_static(b"a1");
    let mutation_type = pb::MutationType::MDelete.into();
    let delete = pb::Mutation { key, mutation_type, ..Default::default() };
    let delete = pb::AtomicWrite { mutations: vec![delete], ..Default::default() };
    writer.write(&delete).await.unwrap();
    let deleted = json!([{ "op": "delete", "key": "YTE" }]);
    assert_eq!(feed.next().await, json!({ "versionstamp": stamp(4), "changes": deleted }));
}

#[tokio::test]
async fn feed_without_a_start_begins_now_and_without_following_ends_at_a_bookmark() {
    let server = Server::start().await;
    let (mut client, mut writer) = (server.http2().await, server.http2().await);
    writer.write(&set("a", "before")).await.unwrap();
    let mut feed = Feed::open(&mut client, "", READER).await;
    assert_eq!(feed.line().await.unwrap(), bookmark(1));
    writer.write(&set("a", "after")).await.unwrap();
    assert_eq!(feed.line().await.unwrap(), sets(2, "a", "after"));

    let mut ending = Feed::open(&mut client, "?follow=false", READER).await;
    assert_eq!(ending.line().await, Some(bookmark(2)));
    // A feed that is cut does not say so.
    assert_eq!(ending.line().await.unwrap()["end"], "told");
    assert_eq!(ending.line().await, None);
    let mut ending = Feed::open(&mut client, &format!("{START}&follow=false"), READER).await;
    assert_eq!(ending.line().await.unwrap(), sets(1, "a", "before"));
    assert_eq!(ending.line().await.unwrap(), sets(2, "a", "after"));
    assert_eq!(ending.line().await, Some(bookmark(2)));
    assert_eq!(ending.line().await.unwrap()["end"], "told");
    assert_eq!(ending.line().await, None);
}

#[tokio::test]
async fn feed_that_is_to_end_where_a_failover_lost_the_log_ends_with_what_is_left() {
    let server = Server::start().await;
    let (mut client, mut writer) = (server.http2().await, server.http2().await);
    writer.write(&set("a", "one")).await.unwrap();
    let lost = Versionstamp::behind(Position::new(Epoch(1), 120));
    server.memory.logged.lost.lock().unwrap().push(lost);
    let mut ending = Feed::open(&mut client, &format!("{START}&follow=false"), READER).await;
    assert_eq!(ending.line().await.unwrap(), sets(1, "a", "one"));
    assert_eq!(ending.next().await["end"], "told");
    assert_eq!(ending.line().await, None);
}

#[tokio::test]
async fn events_go_on_from_the_last_that_the_client_has_had() {
    let server = Server::start().await;
    let (mut client, mut writer) = (server.http1().await, server.http2().await);
    writer.write(&set("a", "one")).await.unwrap();
    writer.write(&set("a", "two")).await.unwrap();
    let (first, accept) = (stamp(1), ("accept", "text/event-stream"));
    let headers = [accept, ("last-event-id", first.as_str())];
    let mut feed = Feed::open_with(&mut client, START, READER, &headers).await;
    assert_eq!(feed.header("content-type"), "text/event-stream");
    let event = feed.text("\n\n").await.unwrap();
    assert_eq!(event, format!("id: {}\ndata: {}", stamp(2), feed_json(&sets(2, "a", "two"))));
    let event = feed.text("\n\n").await.unwrap();
    assert!(event.starts_with("event: bookmark\nid: 0001000000000002ffff\ndata: {"), "{event}");
}

/// In the order of a line's fields.
fn feed_json(transaction: &Value) -> String {
    let change = &transaction["changes"][0];
    format!(
        "{{\"versionstamp\":{},\"changes\":[{{\"op\":{},\"key\":{},\"encoding\":{},\"value\":{}}}]}}",
        transaction["versionstamp"],
        change["op"],
        change["key"],
        change["encoding"],
        change["value"]
    )
}

#[tokio::test]
async fn feed_that_cannot_begin_is_refused_before_it_begins() {
    let server = Server::start().await;
    let mut client = server.http2().await;
    let floor = Versionstamp::behind(Position::new(Epoch(1), 9));
    let no_leader = Unavailable { reason: "no leader".to_owned() };
    for (why, status, text) in [
        (
            NoChanges::Gone { floor },
            410,
            "only those behind 0001000000000009ffff. Take a snapshot:",
        ),
        (NoChanges::NotOfHistory, 410, "that a failover lost. Take a snapshot:"),
        (NoChanges::Ahead { newest: floor }, 400, "ahead of the database, which stands at"),
        (no_leader.into(), 503, "no leader"),
    ] {
        server.memory.logged.no_changes.lock().unwrap().push(why);
        let request = request(&client, START, READER, &[]);
        client.send(request).await.unwrap().refuses(status, text);
    }
    for (query, token, status) in
        [("?afer=1", READER, 400), ("", "a stranger", 401), ("", OTHERS, 401)]
    {
        let request = request(&client, query, token, &[]);
        assert_eq!(client.send(request).await.unwrap().status.as_u16(), status, "{query} {token}");
    }
}

#[tokio::test]
async fn feed_outlives_what_cannot_be_had_now_and_ends_with_its_reason_where_it_cannot_go_on() {
    let server = Server::start().await;
    let (mut client, mut writer) = (server.http2().await, server.http2().await);
    let mut feed = Feed::open(&mut client, "", READER).await;
    assert_eq!(feed.line().await.unwrap(), bookmark(0));
    let outage = || NoChanges::Unavailable(Unavailable { reason: "no leader".to_owned() });
    *server.memory.logged.no_changes.lock().unwrap() = vec![outage(), outage()];
    writer.write(&set("a", "one")).await.unwrap();
    assert_eq!(feed.next().await, sets(1, "a", "one"));
    server.memory.logged.no_changes.lock().unwrap().push(NoChanges::NotOfHistory);
    writer.write(&set("a", "two")).await.unwrap();
    let mut line = feed.next().await;
    if line == sets(2, "a", "two") {
        line = feed.next().await;
    }
    assert_eq!(line["end"], "not_of_history");
    assert!(line["message"].as_str().unwrap().contains("Take a snapshot"), "{line}");
    assert_eq!(feed.line().await, None);
}

#[tokio::test]
async fn feed_ends_with_its_token_before_it_tells_anything_more() {
    let server = Server::start().await;
    let (mut client, mut writer) = (server.http2().await, server.http2().await);
    let mut ending = Feed::open(&mut client, "", READER).await;
    let mut going_on = Feed::open(&mut client, "", WRITER).await;
    assert_eq!(ending.line().await.unwrap(), bookmark(0));
    server.revoked.store(true, Ordering::SeqCst);
    writer.write(&set("a", "a secret")).await.unwrap();
    assert_eq!(ending.next().await["end"], "no_access");
    assert_eq!(ending.line().await, None);
    assert_eq!(going_on.next().await, sets(1, "a", "a secret"));
}

#[tokio::test]
async fn feeds_of_one_token_leave_room_for_another_and_take_none_of_requests() {
    let options = Options { max_change_feeds: 8, max_concurrent_requests: 8, ..Options::default() };
    let server = Server::with(options).await;
    let mut client = server.http2().await;
    let mut open = Vec::new();
    for _ in 0..6 {
        open.push(Feed::open(&mut client, "", WRITER).await);
    }
    let refused = request(&client, "", WRITER, &[]);
    client.send(refused).await.unwrap().refuses(503, "Too many change feeds");
    let other = Feed::open(&mut client, "", SECOND_WRITER).await;
    assert_eq!(other.response.status(), StatusCode::OK);
    for _ in 0..9 {
        assert_eq!(client.write(&set("a", "1")).await.unwrap().status, StatusCode::OK);
    }
    // A client that leaves gives its share back.
    drop((open, other));
    let again = async {
        while Feed::open(&mut client, "", WRITER).await.response.status() != StatusCode::OK {}
    };
    timeout(LONG, again).await.expect("room for a feed");
}

#[tokio::test]
async fn feeds_that_catch_up_and_wait_for_nodes_keep_no_room_from_reads() {
    let options = Options { max_answers_bytes: 8 << 20, ..Options::default() };
    let server = Server::with(options).await;
    let (mut client, mut writer) = (server.http2().await, server.http2().await);
    let value = "x".repeat(60_000);
    for key in 0..30 {
        writer.write(&set(format!("k{key}").leak(), value.clone())).await.unwrap();
    }
    server.memory.logged.holds_large.send_replace(true);
    let mut feeds = Vec::new();
    for _ in 0..20 {
        let mut feed = Feed::open(&mut client, START, WRITER).await;
        assert!(feed.line().await.unwrap().get("bookmark").is_some(), "what comes is large");
        feeds.push(feed);
    }
    let waits = || {
        let asked = server.memory.logged.asked.lock().unwrap();
        asked.iter().any(|(_, max_bytes)| *max_bytes > 16 << 10)
    };
    until(waits).await;
    for token in [WRITER, READER].repeat(10) {
        let mut reader = server.http1().await;
        let answer = reader.data("/kv/strong/snapshot_read", token, &all()).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{}", String::from_utf8_lossy(&answer.body));
    }
    server.memory.logged.holds_large.send_replace(false);
    let told = feeds.into_iter().map(|mut feed| {
        let value = &value;
        async move {
            for key in 0..30 {
                assert_eq!(feed.next().await, sets(key + 1, &format!("k{key}"), value));
            }
        }
    });
    futures::future::join_all(told).await;
}

#[tokio::test]
async fn client_that_takes_nothing_is_read_ahead_for_by_little_and_misses_nothing() {
    let server = Server::start().await;
    let (mut slow, gate) = server.gated().await;
    let mut stuck = Feed::open(&mut slow, "", READER).await;
    assert_eq!(stuck.line().await.unwrap(), bookmark(0));
    gate.set_open(false);
    let mut writer = server.http2().await;
    let value = |round: u64| format!("{round:03}").repeat(20_000);
    for round in 1..=100 {
        writer.write(&set("a", value(round))).await.unwrap();
    }
    until(|| gate.holds()).await;
    let furthest = || {
        let asked = server.memory.logged.asked.lock().unwrap();
        asked.iter().filter_map(|(after, _)| after.map(|after| after.position().sequence)).max()
    };
    // Connections have windows, and the gateway little more than one piece for each feed.
    assert!(furthest() < Some(60), "{:?} of 100", furthest());
    gate.set_open(true);
    for round in 1..=100 {
        assert_eq!(stuck.next().await, sets(round, "a", &value(round)));
    }
    let asked = server.memory.logged.asked.lock().unwrap();
    assert!(asked.iter().all(|(_, max_bytes)| *max_bytes <= 256 << 10));
}

#[tokio::test]
async fn feed_at_the_end_of_a_busy_log_asks_in_its_own_time_and_misses_nothing() {
    let server = Server::start().await;
    let (mut client, mut writer) = (server.http2().await, server.http2().await);
    let mut feed = Feed::open(&mut client, "", READER).await;
    assert_eq!(feed.line().await.unwrap(), bookmark(0));
    let began = std::time::Instant::now();
    for round in 1..=100 {
        writer.write(&set("a", round.to_string())).await.unwrap();
    }
    for round in 1..=100 {
        assert_eq!(feed.next().await, sets(round, "a", &round.to_string()));
    }
    let at_most = began.elapsed().as_millis() / 20 + 3;
    let asked = server.memory.logged.asked.lock().unwrap().len();
    assert!(asked as u128 <= at_most, "{asked} questions, at most {at_most}");
}

#[tokio::test]
async fn feeds_end_between_lines_when_the_server_stops() {
    let mut server = Server::start().await;
    let (mut first, mut second) = (server.http1().await, server.http2().await);
    let mut over_http1 = Feed::open(&mut first, "", WRITER).await;
    let mut over_http2 = Feed::open(&mut second, "", WRITER).await;
    assert!(over_http1.line().await.is_some() && over_http2.line().await.is_some());
    server.stop.take().unwrap().send(()).unwrap();
    for mut feed in [over_http1, over_http2] {
        while feed.line().await.is_some() {}
        assert!(feed.received.is_empty());
    }
    timeout(LONG, &mut server.serving).await.expect("the server stops").unwrap();
}
