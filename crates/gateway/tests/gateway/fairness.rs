//! Limits on what a client can take from other clients: connections, requests, bytes.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::Request;
use hyper::body::Frame;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_gateway::Options;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::support::{MAIN_TEXT, Plan, READER, Server, WRITER, all, set, until};

fn read(token: &str) -> hyper::http::request::Builder {
    Request::post("http://kv.test:4512/kv/strong/snapshot_read")
        .header("authorization", format!("Bearer {token}"))
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", MAIN_TEXT)
}

#[tokio::test]
async fn idle_connections_of_strangers_make_room() {
    let server = Server::with(Options { max_connections: 8, ..Options::default() }).await;
    let mut strangers = Vec::new();
    for _ in 0..8 {
        strangers.push(server.connect().await);
    }
    // Each client finds room, and keeps its connection once it has shown its token.
    let mut clients = Vec::new();
    for http2 in [false, true, false, true] {
        let mut client = if http2 { server.http2().await } else { server.http1().await };
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
        clients.push(client);
    }
    for _ in 0..16 {
        strangers.push(server.connect().await);
    }
    let mut client = server.http1().await;
    assert_eq!(client.read(&all()).await.unwrap().status, 200);
    for client in &mut clients {
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
    }
    let mut closed = 0;
    for stranger in &mut strangers {
        let ended = tokio::time::timeout(Duration::from_millis(10), stranger.read_u8()).await;
        closed += usize::from(matches!(ended, Ok(Err(_))));
    }
    assert!(closed >= 16, "{closed} of {} were closed", strangers.len());
}

#[tokio::test]
async fn newcomer_costs_one_connection_however_long_none_waited_before() {
    let server = Server::with(Options { max_connections: 20, ..Options::default() }).await;
    let mut clients = Vec::new();
    for _ in 0..20 {
        let (mut client, gate) = server.gated().await;
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
        clients.push((client, gate));
    }
    // The first connection is used again: the next one is then the least recently used.
    tokio::time::sleep(Duration::from_millis(2)).await;
    assert_eq!(clients[0].0.read(&all()).await.unwrap().status, 200);
    // Evicted connections end as late as they may.
    clients.iter().for_each(|(_, gate)| gate.set_open(false));
    // No socket waits meanwhile, which must not save up evictions.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let mut newcomer = Server::http1_over(server.connect_from(2).await).await;
    assert_eq!(newcomer.read(&all()).await.unwrap().status, 200);
    let mut closed = Vec::new();
    for (number, (client, gate)) in clients.iter_mut().enumerate() {
        gate.set_open(true);
        if client.read(&all()).await.is_err() {
            closed.push(number);
        }
    }
    assert_eq!(closed, [1]);
}

#[tokio::test]
async fn write_that_came_as_its_connection_was_evicted_is_answered() {
    for _ in 0..20 {
        let server = Server::with(Options { max_connections: 2, ..Options::default() }).await;
        let (mut client, gate) = server.gated().await;
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
        let mut other = server.http2().await;
        assert_eq!(other.read(&all()).await.unwrap().status, 200);
        server.memory.plan(Plan::Hold);
        gate.set_open(false);
        let mut newcomer = Server::http1_over(server.connect_from(2).await).await;
        let newcomer = tokio::spawn(async move { newcomer.read(&all()).await.unwrap().status });
        until(|| gate.holds()).await;
        // The client does not know yet that the connection closes.
        let write = tokio::spawn(async move { client.write(&set("a", "1")).await });
        let has_begun = || server.memory.writes_begun.load(Ordering::SeqCst) == 1;
        until(|| has_begun() || write.is_finished()).await;
        if !has_begun() {
            // Too late: the connection had ended.
            continue;
        }
        // Another connection makes the room.
        let soon = Duration::from_secs(10);
        assert_eq!(timeout(soon, newcomer).await.unwrap().unwrap(), 200);
        // Far longer than the time for an evicted connection.
        tokio::time::sleep(Duration::from_millis(200)).await;
        until(|| {
            server.memory.release.notify_waiters();
            server.memory.committed() == 1
        })
        .await;
        gate.set_open(true);
        assert_eq!(timeout(soon, write).await.unwrap().unwrap().unwrap().status, 200);
        return;
    }
    panic!("no write came in time");
}

#[tokio::test]
async fn requests_whose_bodies_never_come_leave_room_for_another_token() {
    let options = Options {
        max_concurrent_requests: 64,
        max_streams_per_connection: 64,
        ..Options::default()
    };
    let server = Server::with(options).await;
    let (mut sender, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(server.connect().await)).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    let mut open = Vec::new();
    for _ in 0..64 {
        let never = StreamBody::new(futures_pending());
        sender.ready().await.unwrap();
        open.push(tokio::spawn(sender.send_request(read(READER).body(never.boxed()).unwrap())));
    }
    // Requests beyond the token's part are refused, and the others wait for their bodies.
    until(|| open.iter().filter(|request| request.is_finished()).count() == 64 - 36).await;
    let mut owner = server.http1().await;
    for _ in 0..10 {
        assert_eq!(owner.read(&all()).await.unwrap().status, 200);
        assert_eq!(owner.write(&set("k", "v")).await.unwrap().status, 200);
    }
}

/// A body that never comes.
fn futures_pending()
-> impl futures::Stream<Item = Result<Frame<Bytes>, std::convert::Infallible>> + Send + Sync {
    futures::stream::pending()
}

#[tokio::test]
async fn unserved_shard_leaves_its_token_the_other_shards_and_the_metadata() {
    let options = Options {
        max_concurrent_requests: 64,
        max_streams_per_connection: 200,
        ..Options::default()
    };
    let server = Server::with(options).await;
    server.memory.plan(Plan::Hold);
    let io = TokioIo::new(server.connect().await);
    let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    let mut open = Vec::new();
    let body = Bytes::from(set("k", "v").encode_to_vec());
    for _ in 0..100 {
        sender.ready().await.unwrap();
        let write = read(WRITER)
            .uri("http://kv.test:4512/kv/strong/atomic_write")
            .body(Full::new(body.clone()));
        open.push(tokio::spawn(sender.send_request(write.unwrap())));
    }
    let refused = || open.iter().filter(|request| request.is_finished()).count();
    until(|| refused() as u64 + server.memory.writes_begun.load(Ordering::SeqCst) == 100).await;
    assert!(refused() > 50, "{} of 100 were refused", refused());
    server.memory.plan(Plan::Work);
    let mut client = server.http1().await;
    let authorization = format!("Bearer {WRITER}");
    let mut headers = vec![
        ("authorization", authorization.as_str()),
        ("x-denokv-version", "3"),
        ("x-denokv-database-id", MAIN_TEXT),
    ];
    client
        .post("/kv/strong/atomic_write", &headers, body.clone())
        .await
        .unwrap()
        .refuses(503, "Too many requests");
    headers[2].1 = "cdcdcdcd-cdcd-cdcd-cdcd-cdcdcdcdcdcd";
    assert_eq!(client.post("/kv/strong/atomic_write", &headers, body).await.unwrap().status, 200);
    let exchange = r#"{"supportedVersions":[1,2,3]}"#;
    assert_eq!(client.post("/db/main", &headers[..1], exchange).await.unwrap().status, 200);
    // A metadata request takes no more than its few bytes.
    let padded = format!("{exchange}{}", " ".repeat(5000));
    client
        .post("/db/main", &headers[..1], padded)
        .await
        .unwrap()
        .refuses(400, "limit of 4096 bytes");
}

#[tokio::test]
async fn unread_answers_leave_room_for_another_token() {
    let server = Server::with(Options { max_answers_bytes: 8 << 20, ..Options::default() }).await;
    let mut owner = server.http1().await;
    for n in 0..16 {
        let key: &'static str = Box::leak(format!("k{n}").into_boxed_str());
        assert_eq!(owner.write(&set(key, vec![7; 65_000])).await.unwrap().status, 200);
    }
    // A client that reads no byte of its answers: the window of each stream stays shut.
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(0);
    let (mut sender, connection) =
        builder.handshake(TokioIo::new(server.connect().await)).await.unwrap();
    tokio::spawn(async { drop(connection.await) });
    let (mut held, mut refused) = (Vec::new(), 0);
    for _ in 0..16 {
        sender.ready().await.unwrap();
        let request = read(READER).body(Full::new(Bytes::from(all().encode_to_vec()))).unwrap();
        let answer = sender.send_request(request).await.unwrap();
        refused += usize::from(answer.status() == 503);
        held.push(answer);
    }
    assert!((8..16).contains(&refused), "{refused} of 16 answers of a megabyte were refused");
    assert_eq!(owner.read(&all()).await.unwrap().status, 200);
    // An abandoned answer gives its share back.
    drop(held);
    drop(sender);
    until(|| true).await;
    let mut reader = server.http1().await;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while reader.data("/kv/strong/snapshot_read", READER, &all()).await.unwrap().status != 200 {
        assert!(tokio::time::Instant::now() < deadline, "the bytes were never given back");
    }
}

#[tokio::test]
async fn bodies_in_progress_leave_room_for_another_token() {
    let server = Server::with(Options { max_bodies_bytes: 1 << 20, ..Options::default() }).await;
    let body = vec![0; 200_000];
    let mut open = Vec::new();
    for _ in 0..8 {
        let mut stream = server.connect().await;
        let head = format!(
            "POST /kv/strong/atomic_write HTTP/1.1\r\nhost: kv.test\r\nauthorization: Bearer {READER_WRITES}\r\n\
             x-denokv-version: 3\r\nx-denokv-database-id: {MAIN_TEXT}\r\ncontent-length: 300000\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&body).await.unwrap();
        open.push(stream);
    }
    let mut owner = server.http1().await;
    assert_eq!(
        owner
            .data("/kv/strong/atomic_write", WRITER, &set("k", vec![0; 60_000]))
            .await
            .unwrap()
            .status,
        200
    );
    // Three bodies are read at most. The clients of all others get an answer.
    let mut refused = 0;
    for mut stream in open.split_off(3) {
        stream.write_all(&body[..100_000]).await.unwrap();
        let mut status = [0; 12];
        timeout(Duration::from_secs(10), stream.read_exact(&mut status)).await.unwrap().unwrap();
        refused += usize::from(&status == b"HTTP/1.1 503");
    }
    assert!((2..=5).contains(&refused), "{refused} of 5 bodies were refused");
}

/// Any token will do that may write and is not the owner's.
const READER_WRITES: &str = crate::support::SECOND_WRITER;

#[tokio::test]
async fn a_head_without_end_is_not_kept() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    stream.write_all(b"POST / HTTP/1.1\r\nhost: kv.test\r\nx-filler: ").await.unwrap();
    let mut sent = 0usize;
    let filler = [b'x'; 4096];
    // The server hangs up long before what hyper would keep by itself.
    while sent < 300 << 10 && stream.write_all(&filler).await.is_ok() {
        sent += filler.len();
        let mut byte = [0];
        if let Ok(read) =
            tokio::time::timeout(Duration::from_millis(1), stream.read(&mut byte)).await
        {
            drop(read);
            return;
        }
    }
    panic!("{sent} bytes of a head were taken");
}
