//! Keeping, dropping and draining connections, and bodies of any kind.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::support::{MAIN_TEXT, Plan, READER, Server, WRITER, all, set, until};
use meridian_gateway::Options;
use meridian_proto::kv_connect as pb;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn head(path: &str, rest: &str) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nhost: kv.test\r\nauthorization: Bearer {WRITER}\r\nx-denokv-version: 3\r\n\
         x-denokv-database-id: {MAIN_TEXT}\r\n{rest}\r\n"
    )
}

async fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    let reading = stream.read_to_end(&mut answer);
    // A reset ends the connection as much as an orderly close does.
    drop(
        tokio::time::timeout(Duration::from_secs(20), reading)
            .await
            .expect("the connection stays open"),
    );
    answer
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let server = Server::start().await;
    for mut client in [server.http1().await, server.http2().await] {
        for _ in 0..100 {
            assert_eq!(client.read(&all()).await.unwrap().status, 200);
        }
        // A refusal is no reason to lose the connection.
        client.post("/", &[], "").await.unwrap().refuses(401, "");
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
    }
}

#[tokio::test]
async fn pipelined_and_chunked_http1_requests() {
    let server = Server::start().await;
    let mut stream = server.connect().await;
    let body = all().encode_to_vec();
    let (first, second) = body.split_at(2);
    let mut requests =
        head("/kv/strong/snapshot_read", "transfer-encoding: chunked\r\n").into_bytes();
    for part in [first, second] {
        requests.extend(format!("{:x}\r\n", part.len()).into_bytes());
        requests.extend([part, b"\r\n"].concat());
    }
    requests.extend(b"0\r\n\r\n");
    let last = format!("content-length: {}\r\nconnection: close\r\n", body.len());
    requests.extend(head("/kv/strong/snapshot_read", &last).into_bytes());
    requests.extend(&body);
    stream.write_all(&requests).await.unwrap();
    let answers = String::from_utf8_lossy(&read_to_end(&mut stream).await).into_owned();
    assert_eq!(answers.matches("HTTP/1.1 200 OK").count(), 2, "{answers}");
}

#[tokio::test]
async fn an_unknown_outcome_is_never_answered() {
    let server = Server::start().await;
    server.memory.plan(Plan::Unknown);

    // HTTP/1.1: the connection closes without a byte.
    let mut stream = server.connect().await;
    let body = set("a", "1").encode_to_vec();
    let length = format!("content-length: {}\r\n", body.len());
    stream.write_all(head("/kv/strong/atomic_write", &length).as_bytes()).await.unwrap();
    stream.write_all(&body).await.unwrap();
    assert_eq!(read_to_end(&mut stream).await, b"");

    // HTTP/2: the stream is reset, and the connection with its other streams lives on.
    let mut client = server.http2().await;
    let error = client.write(&set("a", "1")).await.unwrap_err();
    assert!(format!("{error:?}").contains("Reset"), "{error:?}");
    assert_eq!(client.read(&all()).await.unwrap().status, 200);
}

#[tokio::test]
async fn a_write_goes_on_when_its_client_leaves() {
    let server = Server::start().await;
    server.memory.plan(Plan::Hold);
    for (mut client, expected) in [(server.http1().await, 1), (server.http2().await, 2)] {
        let driver = client.driver.abort_handle();
        let write = tokio::spawn(async move { client.write(&set("a", "1")).await });
        until(|| server.memory.writes_begun.load(Ordering::SeqCst) == expected).await;
        write.abort();
        driver.abort();
        assert!(write.await.unwrap_err().is_cancelled(), "the client saw no answer");
        // Other requests are served meanwhile; by the second of them, the end of the first client
        // has been noticed.
        for _ in 0..2 {
            assert_eq!(server.http1().await.read(&all()).await.unwrap().status, 200);
        }
        assert_eq!(server.memory.committed(), expected - 1);
        server.memory.release.notify_one();
        until(|| server.memory.committed() == expected).await;
    }
}

#[tokio::test]
async fn a_shutdown_waits_for_writes_and_refuses_connections() {
    let mut server = Server::start().await;
    server.memory.plan(Plan::Hold);
    let mut stays = server.http2().await;
    let mut leaves = server.http1().await;
    let driver = leaves.driver.abort_handle();
    let left = tokio::spawn(async move { leaves.write(&set("b", "1")).await });
    let answered = tokio::spawn(async move { stays.write(&set("a", "1")).await.unwrap().status });
    until(|| server.memory.writes_begun.load(Ordering::SeqCst) == 2).await;
    left.abort();
    driver.abort();
    drop(server.stop.take());
    while TcpStream::connect(server.address).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(!server.serving.is_finished());
    until(|| {
        server.memory.release.notify_waiters();
        server.memory.committed() == 2
    })
    .await;
    assert_eq!(answered.await.unwrap(), 200);
    server.serving.await.unwrap();
}

#[tokio::test]
async fn shutdown_ends_after_the_drain_timeout() {
    let drain_timeout = Duration::from_millis(50);
    let mut server = Server::with(Options { drain_timeout, ..Options::default() }).await;
    server.memory.plan(Plan::Hold);
    let mut client = server.http2().await;
    let write = tokio::spawn(async move { client.write(&set("a", "1")).await.is_err() });
    until(|| server.memory.writes_begun.load(Ordering::SeqCst) == 1).await;
    drop(server.stop.take());
    server.serving.await.unwrap();
    assert!(write.await.unwrap(), "a write in progress is not answered");
}

#[tokio::test]
async fn bodies_at_the_limit_and_over() {
    let max_body_bytes = 100_000;
    let server = Server::with(Options { max_body_bytes, ..Options::default() }).await;
    let overhead = set("k", vec![0; 65_000]).encode_to_vec().len() - 65_000;
    let sized = |length: usize| {
        // A second mutation makes up the length; its tags and lengths take as many bytes as the
        // first's.
        let mut message = set("k", vec![0; 65_000]);
        message.mutations.extend(set("k", vec![0; length - 65_000 - 2 * overhead]).mutations);
        assert_eq!(message.encode_to_vec().len(), length);
        message
    };
    for mut client in [server.http1().await, server.http2().await] {
        assert_eq!(client.write(&sized(max_body_bytes)).await.unwrap().status, 200);
        client
            .write(&sized(max_body_bytes + 1))
            .await
            .unwrap()
            .refuses(400, "limit of 100000 bytes");
        // Far over the limit the answer still arrives, as the rest is read and thrown away.
        let message = pb::AtomicWrite {
            mutations: vec![set("k", vec![0; 65_000]).mutations[0].clone(); 60],
            ..Default::default()
        };
        client.write(&message).await.unwrap().refuses(400, "limit of 100000 bytes");
        assert_eq!(client.write(&set("k", "v")).await.unwrap().status, 200);
    }
    assert_eq!(server.memory.committed(), 4);
}

#[tokio::test]
async fn missing_body_is_refused_with_a_retryable_status() {
    let body_timeout = Duration::from_millis(50);
    let server = Server::with(Options { body_timeout, ..Options::default() }).await;
    let mut stream = server.connect().await;
    stream
        .write_all(head("/kv/strong/atomic_write", "content-length: 10\r\n\r\nabc").as_bytes())
        .await
        .unwrap();
    let answer = String::from_utf8_lossy(&read_to_end(&mut stream).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    assert_eq!(server.memory.writes_begun.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn silent_and_idle_connections_are_closed() {
    let short = Duration::from_millis(50);
    let server = Server::with(Options { first_request_timeout: short, ..Options::default() }).await;
    for start in ["", "P", "PRI * HTTP/2.0\r\n", "POST / HTTP/1.1\r\nhost: kv.test\r\n"] {
        let mut stream = server.connect().await;
        stream.write_all(start.as_bytes()).await.unwrap();
        let answer = String::from_utf8_lossy(&read_to_end(&mut stream).await).into_owned();
        assert!(!answer.contains("200"), "{start:?}: {answer}");
    }

    let (first_request_timeout, idle_timeout) =
        (Duration::from_millis(500), Duration::from_millis(500));
    let server =
        Server::with(Options { first_request_timeout, idle_timeout, ..Options::default() }).await;
    for http2 in [false, true] {
        let mut client = if http2 { server.http2().await } else { server.http1().await };
        assert_eq!(client.read(&all()).await.unwrap().status, 200);
        tokio::time::timeout(Duration::from_secs(20), client.driver).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn too_many_requests_are_refused_with_503() {
    let server =
        Arc::new(Server::with(Options { max_concurrent_requests: 1, ..Options::default() }).await);
    server.memory.plan(Plan::Hold);
    let mut client = server.http2().await;
    let write = tokio::spawn(async move { client.write(&set("a", "1")).await.unwrap().status });
    until(|| server.memory.writes_begun.load(Ordering::SeqCst) == 1).await;
    let mut other = server.http1().await;
    other.read(&all()).await.unwrap().refuses(503, "Too many requests");
    server.memory.release.notify_one();
    assert_eq!(write.await.unwrap(), 200);
    assert_eq!(other.read(&all()).await.unwrap().status, 200);
}

/// The answer as seen by an HTTP/1.1 client that sends all of its body before it listens.
async fn answer_to(
    server: &Server,
    path: &str,
    token: &str,
    length: usize,
) -> std::io::Result<String> {
    let mut stream = server.connect().await;
    let head = head(path, &format!("content-length: {length}\r\nconnection: close\r\n"))
        .replace(WRITER, token);
    stream.write_all(head.as_bytes()).await?;
    for part in vec![0; length].chunks(32 << 10) {
        stream.write_all(part).await?;
        // The body's bytes lie on the server's side when the refusal is made.
        tokio::task::yield_now().await;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusal_reaches_a_client_that_sends_a_large_body_first() {
    let server =
        Arc::new(Server::with(Options { max_concurrent_requests: 1, ..Options::default() }).await);
    let write = "/kv/strong/atomic_write";
    for _ in 0..10 {
        let answer = answer_to(&server, write, READER, 500_000).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    server.memory.plan(Plan::Hold);
    let mut client = server.http2().await;
    let held = tokio::spawn(async move { client.write(&set("a", "1")).await.unwrap().status });
    until(|| server.memory.writes_begun.load(Ordering::SeqCst) == 1).await;
    for _ in 0..10 {
        let answer = answer_to(&server, write, WRITER, 500_000).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    }
    // A body that does not come is not waited for.
    let mut stream = server.connect().await;
    stream.write_all(head(write, "content-length: 500000\r\n").as_bytes()).await.unwrap();
    let answer = String::from_utf8_lossy(&read_to_end(&mut stream).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
    server.memory.release.notify_one();
    assert_eq!(held.await.unwrap(), 200);
}

#[tokio::test]
async fn connections_over_the_limit_wait() {
    let server = Server::with(Options { max_connections: 1, ..Options::default() }).await;
    let mut first = server.http1().await;
    assert_eq!(first.read(&all()).await.unwrap().status, 200);
    let mut second = server.http1().await;
    let waiting = tokio::spawn(async move { second.read(&all()).await.unwrap().status });
    assert_eq!(first.read(&all()).await.unwrap().status, 200);
    assert!(!waiting.is_finished());
    first.driver.abort();
    assert_eq!(waiting.await.unwrap(), 200);
}

#[tokio::test]
async fn bytes_that_are_not_http_end_only_their_connection() {
    let server = Server::start().await;
    for garbage in [
        &b"\0\0\0\0\r\n\r\n"[..],
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(garbage).await.unwrap();
        assert!(!read_to_end(&mut stream).await.starts_with(b"HTTP/1.1 200"));
    }
    let mut stream = server.connect().await;
    stream
        .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n garbage instead of frames, and some more")
        .await
        .unwrap();
    read_to_end(&mut stream).await;
    assert_eq!(server.http2().await.read(&all()).await.unwrap().status, 200);
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The client takes no bytes of any answer, and says so.
#[tokio::test]
async fn stranger_that_takes_no_answers_loses_its_connection() {
    let patient = Duration::from_secs(600);
    let server =
        Server::with(Options { first_request_timeout: patient, ..Options::default() }).await;
    let mut stream = server.connect().await;
    let no_window = [0, 4, 0, 0, 0, 0];
    let begin = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &no_window)];
    stream.write_all(&begin.concat()).await.unwrap();
    // GET, http, the path, the authority.
    let path = b"/.meridian/v1/deno.js";
    let head = [b"\x82\x86\x04".as_slice(), &[21], path, b"\x01\x01x"].concat();
    for number in 0..15 {
        stream.write_all(&frame(1, 5, 2 * number + 1, &head)).await.unwrap();
    }
    // All of them are answered as far as can be.
    let mut answered = 0;
    let mut read = Vec::new();
    let heads = async {
        while answered < 15 {
            assert!(stream.read_buf(&mut read).await.unwrap() > 0, "closed after {answered}");
            while read.len() >= 9 {
                let length =
                    usize::from(read[0]) << 16 | usize::from(read[1]) << 8 | usize::from(read[2]);
                if read.len() < 9 + length {
                    break;
                }
                answered += u32::from(read[3] == 1);
                read.drain(..9 + length);
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), heads).await.expect("answers");
    // All strangers together may have some more.
    let more: Vec<_> = (15..5000).map(|number| frame(1, 5, 2 * number + 1, &head)).collect();
    let (mut reads, mut writes) = stream.into_split();
    let writing = tokio::spawn(async move { drop(writes.write_all(&more.concat()).await) });
    let ended = async { while reads.read(&mut [0; 4096]).await.is_ok_and(|read| read > 0) {} };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("the connection ends");
    writing.await.unwrap();
}

#[tokio::test]
async fn client_with_a_token_may_send_thousands_of_requests_before_the_first_answer() {
    let server = Server::start().await;
    let client = server.http2().await;
    let answers = (0..3000).map(|_| {
        let mut client = client.again();
        async move { client.read(&all()).await.unwrap().status }
    });
    let statuses = futures::future::join_all(answers).await;
    assert!(statuses.iter().all(|status| *status == 200));
}
