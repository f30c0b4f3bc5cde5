//! An attacker without a token.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncWriteExt;

use super::wire::{connect, converse, hold, http2, request, whole};
use super::{Target, again};

/// More connections than a gateway accepts.
const SOCKETS: usize = 9_000;
/// Connections to each of the other gateways.
const FEW_SOCKETS: usize = 500;

/// Opens all connections that one gateway has room for, and some to each of the others; opens them
/// again when they are closed.
pub(super) async fn sockets(target: Arc<Target>) {
    let mut addresses: Vec<String> = vec![];
    for (at, gateway) in target.gateways.iter().enumerate() {
        addresses.extend(std::iter::repeat_n(
            gateway.clone(),
            if at == 0 { SOCKETS } else { FEW_SOCKETS },
        ));
    }
    again(addresses.len(), move |at| {
        let address = addresses[at].clone();
        async move { hold(&address, b"").await }
    })
    .await;
}

/// Sends as much of a head as a gateway keeps, on as many connections as it accepts.
pub(super) async fn long_heads(target: Arc<Target>) {
    let head = Arc::new(format!("POST / HTTP/1.1\r\nHost: kv\r\nX-Long: {}", "x".repeat(30_000)));
    again(SOCKETS, move |_| {
        let (address, head) = (target.gateways[0].clone(), Arc::clone(&head));
        async move { hold(&address, head.as_bytes()).await }
    })
    .await;
}

/// Sends a byte of the head now and then.
pub(super) async fn heads(target: Arc<Target>) {
    again(200, move |at| {
        let address = target.gateways[at % target.gateways.len()].clone();
        async move {
            let Some(mut stream) = connect(&address).await else { return };
            let head = b"POST /kv/strong/atomic_write HTTP/1.1\r\nHost: kv\r\nX-Slow: ".iter();
            for byte in head.chain(std::iter::repeat(&b'x')) {
                if stream.write_all(&[*byte]).await.is_err() {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    })
    .await;
}

/// Guesses on connections that stay open.
pub(super) async fn guesses(target: Arc<Target>) {
    again(64, move |at| {
        let tokens = ["", "wrong", "a-token-of-no-client", "a-token-for-drills-onl"];
        let clients: Vec<_> = target.clients(tokens[at % tokens.len()]).collect();
        async move {
            for client in clients {
                for path in [
                    "/",
                    "/db/default",
                    "/db/second",
                    "/db/none",
                    "/kv/strong/snapshot_read",
                    "/kv/x",
                ] {
                    drop(
                        client
                            .post(
                                path,
                                &client.headers(),
                                Bytes::from_static(b"{\"supportedVersions\":[3]}"),
                            )
                            .await,
                    );
                }
            }
        }
    })
    .await;
}

/// Resets streams as fast as possible.
pub(super) async fn resets(target: Arc<Target>) {
    again(4, move |at| {
        let address = target.gateways[at % target.gateways.len()].clone();
        async move {
            let Some(mut requests) = http2(&address).await else { return };
            while requests.ready().await.is_ok() {
                let path = "/kv/strong/snapshot_read";
                let Some(request) = request(&address, path, None, whole(Bytes::new())) else {
                    return;
                };
                drop(requests.send_request(request));
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
}

pub(super) async fn noise(target: Arc<Target>) {
    let noise: Vec<u8> =
        (0..65_536u32).map(|at| at.wrapping_mul(2_654_435_761).to_be_bytes()[0]).collect();
    let long = format!("POST / HTTP/1.1\r\nHost: k\r\nX-Long: {}\r\n\r\n", "x".repeat(1 << 20))
        .into_bytes();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let oversized = [&preface[..], b"\xff\xff\xff\0\0\0\0\0\x01", &[0; 4096]].concat();
    let bad = [&preface[..], &noise[..1024]].concat();
    let lengths =
        b"POST / HTTP/1.1\r\nHost: k\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab".to_vec();
    let kinds = Arc::new([noise, long, oversized, bad, lengths]);
    again(20, move |at| {
        let address = target.gateways[at % target.gateways.len()].clone();
        let kinds = Arc::clone(&kinds);
        async move { converse(&address, &kinds[at % kinds.len()]).await }
    })
    .await;
}

pub(super) async fn metrics(target: Arc<Target>) {
    again(500, move |at| {
        let address = target.metrics[at % target.metrics.len()].clone();
        async move {
            if at < 10 {
                return converse(
                    &address,
                    b"GET /metrics HTTP/1.1\r\nHost: m\r\nConnection: close\r\n\r\n",
                )
                .await;
            }
            hold(&address, b"GET /metrics HTTP/1.1\r\nHost: ").await;
        }
    })
    .await;
}
