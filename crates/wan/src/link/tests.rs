use std::io::ErrorKind;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::*;
use crate::LANE_CAPACITY_BYTES;

const LONG: Duration = Duration::from_secs(30);
/// A thing that must not happen is waited for this long; it can only pass wrongly, never fail
/// wrongly.
const WHILE: Duration = Duration::from_millis(150);

fn round_trip(milliseconds: u64) -> LinkProfile {
    LinkProfile::of_round_trip(Duration::from_millis(milliseconds))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn link_to(target: SocketAddr, profile: LinkProfile) -> Link {
    Link::start("127.0.0.1:0".parse().unwrap(), target, profile, 42).await.unwrap()
}

/// Both ends of a connection through a link.
async fn pair(profile: LinkProfile) -> (Link, TcpStream, TcpStream) {
    let (listener, target) = listen().await;
    let link = link_to(target, profile).await;
    let client = TcpStream::connect(link.address()).await.unwrap();
    let (server, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
    client.set_nodelay(true).unwrap();
    server.set_nodelay(true).unwrap();
    (link, client, server)
}

async fn expect(from: &mut TcpStream, expected: &[u8]) {
    let mut buffer = vec![0; expected.len()];
    timeout(LONG, from.read_exact(&mut buffer)).await.unwrap().unwrap();
    assert_eq!(buffer, expected);
}

async fn expect_silence(from: &mut TcpStream) {
    let mut buffer = [0; 1];
    assert!(timeout(WHILE, from.read(&mut buffer)).await.is_err(), "nothing was to arrive");
}

async fn expect_reset(from: &mut TcpStream) {
    let mut buffer = [0; 1];
    let error = timeout(LONG, from.read(&mut buffer)).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}

/// Bytes in which a misplaced one shows.
fn pattern(length: usize) -> Vec<u8> {
    let mut random = SplitMix(length as u64);
    std::iter::repeat_with(|| random.next().to_le_bytes()).flatten().take(length).collect()
}

#[tokio::test]
async fn an_echo_takes_a_round_trip_and_the_set_up_another() {
    let (listener, target) = listen().await;
    tokio::spawn(async move {
        let (mut server, _) = listener.accept().await.unwrap();
        let (mut reader, mut writer) = server.split();
        tokio::io::copy(&mut reader, &mut writer).await.unwrap();
    });
    let link = link_to(target, round_trip(40)).await;
    let start = Instant::now();
    let mut client = TcpStream::connect(link.address()).await.unwrap();
    client.write_all(b"first").await.unwrap();
    expect(&mut client, b"first").await;
    assert!(start.elapsed() >= Duration::from_millis(80), "{:?}", start.elapsed());
    let start = Instant::now();
    client.write_all(b"second").await.unwrap();
    expect(&mut client, b"second").await;
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(40) && took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn delay_does_not_limit_throughput() {
    const LENGTH: usize = 8 * 1024 * 1024;
    let (_link, mut client, mut server) = pair(round_trip(200)).await;
    let start = Instant::now();
    let sent = pattern(LENGTH);
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client
    });
    expect(&mut server, &expected).await;
    // Chunk by chunk, 64 KiB each, it would take 128 delays: 12.8 s.
    let took = start.elapsed();
    assert!(took >= Duration::from_millis(100) && took < Duration::from_secs(6), "{took:?}");
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn order_is_kept_under_jitter_and_changes() {
    let jittery = LinkProfile { jitter: Duration::from_millis(4), ..round_trip(4) };
    let (link, mut client, mut server) = pair(jittery).await;
    let sent = pattern(400_000);
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        for (index, chunk) in sent.chunks(1000).enumerate() {
            match index % 100 {
                30 => link.set(round_trip(0)),
                60 => link.set(jittery),
                80 => link.cut(Direction::Forward),
                85 => link.heal(),
                _ => {}
            }
            client.write_all(chunk).await.unwrap();
            tokio::task::yield_now().await;
        }
        (link, client)
    });
    expect(&mut server, &expected).await;
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn a_rate_is_kept() {
    let (_link, mut client, mut server) =
        pair(LinkProfile { bytes_per_second: Some(1_000_000), ..LinkProfile::default() }).await;
    let start = Instant::now();
    let sent = pattern(300_000);
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client
    });
    expect(&mut server, &expected).await;
    assert!(start.elapsed() >= Duration::from_millis(290), "{:?}", start.elapsed());
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn one_direction_is_cut_and_healed() {
    let (link, mut client, mut server) = pair(round_trip(2)).await;
    link.cut(Direction::Forward);
    client.write_all(b"held").await.unwrap();
    server.write_all(b"the other way").await.unwrap();
    expect(&mut client, b"the other way").await;
    expect_silence(&mut server).await;
    link.heal();
    expect(&mut server, b"held").await;
    link.cut(Direction::Backward);
    server.write_all(b"held too").await.unwrap();
    client.write_all(b"onwards").await.unwrap();
    expect(&mut server, b"onwards").await;
    expect_silence(&mut client).await;
    link.heal();
    expect(&mut client, b"held too").await;
}

#[tokio::test]
async fn bytes_under_way_are_cut_too() {
    let (link, mut client, mut server) = pair(round_trip(100)).await;
    client.write_all(b"under way").await.unwrap();
    link.cut(Direction::Both);
    expect_silence(&mut server).await;
    link.heal();
    expect(&mut server, b"under way").await;
}

#[tokio::test]
async fn a_cut_is_bounded_in_memory() {
    let (link, mut client, mut server) = pair(round_trip(0)).await;
    link.cut(Direction::Forward);
    let sent = pattern(LANE_CAPACITY_BYTES).repeat(3);
    let expected = sent.clone();
    let mut sending = tokio::spawn(async move {
        client.write_all(&sent).await.unwrap();
        client
    });
    assert!(timeout(2 * WHILE, &mut sending).await.is_err(), "a sender waits for a full link");
    link.heal();
    expect(&mut server, &expected).await;
    drop(sending.await.unwrap());
}

#[tokio::test]
async fn new_connections_hang_while_any_direction_is_cut() {
    let (listener, target) = listen().await;
    let link = link_to(target, round_trip(2)).await;
    for direction in [Direction::Forward, Direction::Backward, Direction::Both] {
        link.cut(direction);
        let mut client = TcpStream::connect(link.address()).await.unwrap();
        client.write_all(b"hello").await.unwrap();
        let mut gave_up = TcpStream::connect(link.address()).await.unwrap();
        gave_up.write_all(b"never mind").await.unwrap();
        gave_up.shutdown().await.unwrap();
        expect_reset(&mut gave_up).await;
        assert!(timeout(WHILE, listener.accept()).await.is_err());
        link.heal();
        let (mut server, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
        expect(&mut server, b"hello").await;
        assert!(
            timeout(WHILE, listener.accept()).await.is_err(),
            "a client that gave up is not seen"
        );
    }
}

#[tokio::test]
async fn a_long_cut_resets() {
    let (link, mut client, mut server) = pair(round_trip(2)).await;
    link.cut(Direction::Backward);
    let mut hanging = TcpStream::connect(link.address()).await.unwrap();
    expect_silence(&mut client).await;
    link.set_reset_after(Some(Duration::from_millis(50)));
    expect_reset(&mut client).await;
    expect_reset(&mut server).await;
    expect_reset(&mut hanging).await;
}

#[tokio::test]
async fn a_half_close_is_propagated() {
    let (_link, mut client, mut server) = pair(round_trip(10)).await;
    client.write_all(b"question").await.unwrap();
    client.shutdown().await.unwrap();
    let mut question = Vec::new();
    timeout(LONG, server.read_to_end(&mut question)).await.unwrap().unwrap();
    assert_eq!(question, b"question");
    server.write_all(b"answer").await.unwrap();
    drop(server);
    let mut answer = Vec::new();
    timeout(LONG, client.read_to_end(&mut answer)).await.unwrap().unwrap();
    assert_eq!(answer, b"answer");
}

#[tokio::test]
async fn a_short_connection_is_delivered() {
    let (listener, target) = listen().await;
    let link = link_to(target, round_trip(20)).await;
    let mut client = TcpStream::connect(link.address()).await.unwrap();
    client.write_all(b"brief").await.unwrap();
    drop(client);
    let (mut server, _) = timeout(LONG, listener.accept()).await.unwrap().unwrap();
    let mut received = Vec::new();
    timeout(LONG, server.read_to_end(&mut received)).await.unwrap().unwrap();
    assert_eq!(received, b"brief");
}

#[tokio::test]
async fn a_reset_is_propagated_both_ways() {
    let (_link, client, mut server) = pair(round_trip(10)).await;
    client.set_zero_linger().unwrap();
    drop(client);
    expect_reset(&mut server).await;
    let (_link, mut client, server) = pair(round_trip(10)).await;
    server.set_zero_linger().unwrap();
    drop(server);
    expect_reset(&mut client).await;
}

#[tokio::test]
async fn a_receiver_that_is_gone_resets_the_sender() {
    let (_link, mut client, server) = pair(round_trip(2)).await;
    drop(server);
    expect(&mut client, b"").await;
    let sending = async { while client.write_all(&[0; 1000]).await.is_ok() {} };
    timeout(LONG, sending).await.unwrap();
}

#[tokio::test]
async fn a_refusal_takes_a_round_trip() {
    let (listener, target) = listen().await;
    drop(listener);
    let link = link_to(target, round_trip(40)).await;
    let start = Instant::now();
    let mut client = TcpStream::connect(link.address()).await.unwrap();
    expect_reset(&mut client).await;
    assert!(start.elapsed() >= Duration::from_millis(40), "{:?}", start.elapsed());
}

#[tokio::test]
async fn dropping_stops_it() {
    let (link, mut client, mut server) = pair(round_trip(2)).await;
    let address = link.address();
    client.write_all(b"here").await.unwrap();
    expect(&mut server, b"here").await;
    drop(link);
    expect_reset(&mut client).await;
    expect_reset(&mut server).await;
    let refused = async { while TcpStream::connect(address).await.is_ok() {} };
    timeout(LONG, refused).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once() {
    let (listener, target) = listen().await;
    tokio::spawn(async move {
        while let Ok((mut server, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut reader, mut writer) = server.split();
                tokio::io::copy(&mut reader, &mut writer).await.unwrap();
            });
        }
    });
    let link =
        link_to(target, LinkProfile { jitter: Duration::from_millis(2), ..round_trip(4) }).await;
    let (done, mut all_done) = mpsc::channel(1);
    for length in 1..=100_usize {
        let (address, done) = (link.address(), done.clone());
        tokio::spawn(async move {
            let mut client = TcpStream::connect(address).await.unwrap();
            for round in 0..5 {
                let sent = pattern(length * 100 + round);
                client.write_all(&sent).await.unwrap();
                expect(&mut client, &sent).await;
            }
            done.send(()).await.unwrap();
        });
    }
    drop(done);
    let mut count = 0;
    while timeout(LONG, all_done.recv()).await.unwrap().is_some() {
        count += 1;
    }
    assert_eq!(count, 100);
}
