//! Watches, as clients see them: framing, limits, shares, and how they end.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::{Response, StatusCode};
use meridian_gateway::Options;
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use prost::Message;
use tokio::time::timeout;

use crate::support::{
    Client, MAIN_TEXT, OTHERS, Plan, READER, SECOND_WRITER, Server, WRITER, all, set, until,
};

const STRONG: &str = "/kv/strong/watch";
const EVENTUAL: &str = "/kv/eventual/watch";
const LONG: Duration = Duration::from_secs(20);

fn keys(keys: &[&'static str]) -> pb::Watch {
    let key = |key: &&'static str| pb::WatchKey { key: Bytes::from_static(key.as_bytes()) };
    pb::Watch { keys: keys.iter().map(key).collect() }
}

/// A stream of messages, each behind its length.
struct Stream {
    response: Response<Incoming>,
    received: BytesMut,
}

impl Stream {
    async fn open(client: &mut Client, path: &str, token: &str, watch: &pb::Watch) -> Self {
        let authorization = format!("Bearer {token}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("x-denokv-version", "3"),
            ("x-denokv-database-id", MAIN_TEXT),
        ];
        let request = client.request(path, &headers, watch.encode_to_vec().into());
        let response = client.begin(request).await.unwrap();
        Self { response, received: BytesMut::new() }
    }

    /// The next message, a ping as an empty one; `None` at the end of the stream.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            let length = self.received.first_chunk().map(|length| u32::from_le_bytes(*length));
            if let Some(length) = length.map(|length| length as usize)
                && self.received.len() >= 4 + length
            {
                self.received.advance(4);
                return Some(self.received.split_to(length).freeze());
            }
            let frame = timeout(LONG, self.response.body_mut().frame()).await.expect("a frame")?;
            self.received.extend_from_slice(frame.unwrap().data_ref().expect("data"));
        }
    }

    /// The value of each key of the next message that is no ping: `None` where it has not changed,
    /// and an empty one where it is absent.
    async fn news(&mut self) -> Vec<Option<String>> {
        loop {
            let message = self.next().await.expect("the stream goes on");
            if message.is_empty() {
                continue;
            }
            let output = pb::WatchOutput::decode(message).unwrap();
            assert_eq!(output.status(), pb::SnapshotReadStatus::SrSuccess);
            let value = |key: pb::WatchKeyOutput| {
                let value = key.entry_if_changed.map(|entry| entry.value).unwrap_or_default();
                key.changed.then(|| String::from_utf8(value.to_vec()).unwrap())
            };
            return output.keys.into_iter().map(value).collect();
        }
    }

    async fn ends(&mut self) {
        while let Some(message) = self.next().await {
            assert!(message.is_empty(), "{message:?}");
        }
    }
}

fn told(values: &[Option<&str>]) -> Vec<Option<String>> {
    values.iter().map(|value| value.map(str::to_owned)).collect()
}

#[tokio::test]
async fn watch_begins_with_a_ping_and_all_keys_and_then_tells_of_what_has_changed() {
    let server = Server::start().await;
    for (mut client, path) in [(server.http1().await, STRONG), (server.http2().await, EVENTUAL)] {
        let mut writer = server.http2().await;
        writer.write(&set("b", "first")).await.unwrap();
        let mut stream = Stream::open(&mut client, path, READER, &keys(&["a", "b", "b"])).await;
        let header = |name: &str| stream.response.headers()[name].to_str().unwrap().to_owned();
        assert_eq!(stream.response.status(), StatusCode::OK);
        assert_eq!(header("content-type"), "application/octet-stream");
        assert_eq!(header("x-accel-buffering"), "no");
        assert_eq!(stream.next().await.unwrap(), "", "a ping at once");
        let first = [Some(""), Some("first"), Some("first")];
        assert_eq!(stream.news().await, told(&first), "{path}");
        writer.write(&set("b", "second")).await.unwrap();
        assert_eq!(stream.news().await, told(&[Some(""), Some("second"), Some("second")]));
        writer.write(&set("c", "of another key")).await.unwrap();
        writer.write(&set("a", "third")).await.unwrap();
        assert_eq!(stream.news().await, told(&[Some("third"), Some("second"), Some("second")]));
        let delete = pb::Mutation {
            key: Bytes::from_static(b"a"),
            mutation_type: pb::MutationType::MDelete.into(),
            ..Default::default()
        };
        let delete = pb::AtomicWrite { mutations: vec![delete], ..Default::default() };
        writer.write(&delete).await.unwrap();
        assert_eq!(stream.news().await, told(&[Some(""), Some("second"), Some("second")]));
    }
    let asked = server.memory.reads.lock().unwrap().clone();
    assert_eq!(asked, [Consistency::Strong, Consistency::Eventual]);
}

#[tokio::test]
async fn watch_of_no_keys_is_one_message() {
    let server = Server::start().await;
    let mut client = server.http1().await;
    let mut stream = Stream::open(&mut client, STRONG, WRITER, &keys(&[])).await;
    assert_eq!(stream.next().await.unwrap(), "");
    assert_eq!(stream.news().await, told(&[]));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn watch_beyond_a_limit_is_refused_and_one_at_the_limit_is_served() {
    let server = Server::start().await;
    let mut client = server.http2().await;
    let of = |bytes: usize| pb::Watch { keys: vec![pb::WatchKey { key: vec![7; bytes].into() }] };
    let eleven = keys(&["k"; 11]);
    for (watch, text) in [
        (&eleven, "The number of keys of one watch exceeds the limit of 10."),
        (&of(2050), "The size of a key to watch exceeds the limit of 2049 bytes."),
    ] {
        client.data(STRONG, WRITER, watch).await.unwrap().refuses(400, text);
    }
    // The message of a write is none of a watch.
    let body = Bytes::from_static(b"\x0a\x7f");
    let authorization = format!("Bearer {WRITER}");
    let headers = [
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    client.post(STRONG, &headers, body).await.unwrap().refuses(400, "Request protobuf is invalid");
    for watch in [keys(&["k"; 10]), of(2049)] {
        let mut stream = Stream::open(&mut client, STRONG, WRITER, &watch).await;
        assert_eq!(stream.news().await.len(), watch.keys.len());
    }
}

#[tokio::test]
async fn watch_that_cannot_begin_is_refused_before_its_stream_begins() {
    let server = Server::start().await;
    let mut client = server.http2().await;
    let watch = keys(&["a"]);
    client.data(STRONG, "a stranger", &watch).await.unwrap().refuses(401, "Invalid access token.");
    client.data(STRONG, OTHERS, &watch).await.unwrap().refuses(401, "Invalid access token.");
    server.memory.plan(Plan::Unavailable);
    client.data(EVENTUAL, READER, &watch).await.unwrap().refuses(503, "no leader");
}

#[tokio::test]
async fn watch_ends_with_its_token_and_those_of_other_tokens_go_on() {
    let server = Server::start().await;
    let mut client = server.http2().await;
    let mut ending = Stream::open(&mut client, STRONG, READER, &keys(&["a"])).await;
    let mut going_on = Stream::open(&mut client, STRONG, WRITER, &keys(&["a"])).await;
    ending.news().await;
    going_on.news().await;
    server.revoked.store(true, Ordering::SeqCst);
    client.write(&set("a", "a secret")).await.unwrap();
    ending.ends().await;
    assert_eq!(going_on.news().await, told(&[Some("a secret")]));
}

#[tokio::test]
async fn watches_of_one_token_leave_room_for_another_and_take_none_of_requests() {
    let options = Options { max_watches: 8, max_concurrent_requests: 8, ..Options::default() };
    let server = Server::with(options).await;
    let mut client = server.http2().await;
    let mut open = Vec::new();
    for _ in 0..6 {
        let mut stream = Stream::open(&mut client, STRONG, WRITER, &keys(&["a"])).await;
        stream.news().await;
        open.push(stream);
    }
    let refused = client.data(STRONG, WRITER, &keys(&["a"])).await.unwrap();
    refused.refuses(503, "Too many watches");
    let mut other = Stream::open(&mut client, STRONG, SECOND_WRITER, &keys(&["a"])).await;
    other.news().await;
    for _ in 0..9 {
        let read = client.read(&all()).await.unwrap();
        assert_eq!(read.status, StatusCode::OK, "{}", read.text());
    }
    // A client that leaves gives its share back.
    drop((open, other));
    let again = async {
        loop {
            let reply = Stream::open(&mut client, STRONG, WRITER, &keys(&["a"])).await;
            if reply.response.status() == StatusCode::OK {
                return;
            }
        }
    };
    timeout(LONG, again).await.expect("room for a watch");
}

#[tokio::test]
async fn client_that_takes_nothing_holds_up_no_other_and_hears_the_last_state() {
    const KEYS: [&str; 10] = ["a"; 10];
    let server = Server::start().await;
    let (mut slow, gate) = server.gated().await;
    let mut stuck = Stream::open(&mut slow, STRONG, READER, &keys(&KEYS)).await;
    assert_eq!(stuck.news().await.len(), 10);
    gate.set_open(false);
    let mut client = server.http2().await;
    let mut writer = server.http2().await;
    let mut watching = Stream::open(&mut client, STRONG, WRITER, &keys(&["a"])).await;
    watching.news().await;
    for round in 0..50 {
        let value = format!("{round:03}").repeat(20_000);
        writer.write(&set("a", value.clone())).await.unwrap();
        assert_eq!(watching.news().await, [Some(value)]);
    }
    until(|| gate.holds()).await;
    writer.write(&set("a", "the last")).await.unwrap();
    gate.set_open(true);
    let mut messages = 0;
    while stuck.news().await != told(&[Some("the last"); 10]) {
        messages += 1;
    }
    assert!(messages < 50, "the states between were not kept: {messages}");
}

#[tokio::test]
async fn watches_end_between_messages_when_the_server_stops() {
    let mut server = Server::start().await;
    let (mut first, mut second) = (server.http1().await, server.http2().await);
    let mut over_http1 = Stream::open(&mut first, STRONG, WRITER, &keys(&["a"])).await;
    let mut over_http2 = Stream::open(&mut second, STRONG, WRITER, &keys(&["a"])).await;
    over_http1.news().await;
    over_http2.news().await;
    server.stop.take().unwrap().send(()).unwrap();
    over_http1.ends().await;
    over_http2.ends().await;
    timeout(LONG, &mut server.serving).await.expect("the server stops").unwrap();
}
