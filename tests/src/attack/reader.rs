//! An attacker with a token for reading one database.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use http_body_util::BodyExt;
use hyper::StatusCode;
use meridian_proto::kv_connect as pb;
use meridian_types::Consistency;
use prost::Message;

use super::wire::{Never, http2, largest_read, request, whole};
use super::{Target, again, stored};
use crate::KvClient;
use crate::kv_connect::{CallError, Reply, SECOND_DATABASE, range, set};

const WRITE: &str = "/kv/strong/atomic_write";
const READ: &str = "/kv/strong/snapshot_read";

/// Eight connections with as many streams as one may have.
pub(super) async fn bodies(target: Arc<Target>) {
    const STREAMS: usize = 1024;
    again(8, move |at| {
        let (target, gateways) = (Arc::clone(&target), target.gateways.len());
        async move {
            // Half of them at one gateway.
            let address = &target.gateways[if at % 2 == 0 { 0 } else { at % gateways }];
            let Some(mut requests) = http2(address).await else { return };
            let mut answers = FuturesUnordered::new();
            for _ in 0..STREAMS {
                let Some(request) = request(address, READ, Some(&target.reader), Never.boxed())
                else {
                    return;
                };
                if requests.ready().await.is_err() {
                    break;
                }
                answers.push(requests.send_request(request));
            }
            while answers.next().await.is_some() {}
        }
    })
    .await;
}

pub(super) async fn scans(target: Arc<Target>) {
    let clients: Vec<KvClient> = target.clients(&target.reader).collect();
    again(32, move |at| {
        let client = clients[at % clients.len()].clone();
        async move {
            // The range of an absent key ends in a lone `ff`, before which all the deleted keys
            // lie.
            let end = [stored::DELETED, b"\xff"].concat();
            let consistency = if at % 4 == 0 { Consistency::Eventual } else { Consistency::Strong };
            drop(client.read(consistency, vec![range(stored::DELETED, &end, 1)]).await);
        }
    })
    .await;
}

pub(super) async fn lists(target: Arc<Target>) {
    let clients: Vec<KvClient> = target.clients(&target.reader).collect();
    again(12, move |at| {
        let client = clients[at % clients.len()].clone();
        async move { drop(client.post(READ, &client.headers(), largest_read()).await) }
    })
    .await;
}

pub(super) async fn resets(target: Arc<Target>) {
    again(4, move |at| {
        let target = Arc::clone(&target);
        async move {
            let address = &target.gateways[at % target.gateways.len()];
            let Some(mut requests) = http2(address).await else { return };
            while requests.ready().await.is_ok() {
                let Some(request) =
                    request(address, READ, Some(&target.reader), whole(largest_read()))
                else {
                    return;
                };
                // Some requests reach the database.
                let answer = requests.send_request(request);
                drop(tokio::time::timeout(Duration::from_millis(at as u64), answer).await);
            }
        }
    })
    .await;
}

/// Under attack a gateway may have no room for a request, or end its connection.
///
/// # Panics
/// When a request beyond the attacker's rights is answered otherwise.
fn assert_refused(answer: Result<Reply, CallError>, status: StatusCode) {
    let Ok(reply) = answer else { return };
    let is_refused = [status, StatusCode::SERVICE_UNAVAILABLE].contains(&reply.status);
    assert!(is_refused, "{} in the place of {status}: {}", reply.status, reply.text());
}

/// Requests beyond its rights, and requests that make no sense.
pub(super) async fn probes(target: Arc<Target>) {
    let clients: Vec<KvClient> = target.clients(&target.reader).collect();
    again(32, move |at| {
        let client = clients[at % clients.len()].clone();
        async move {
            let write = pb::AtomicWrite { mutations: vec![set(b"k", b"v")], ..Default::default() };
            let write = Bytes::from(write.encode_to_vec());
            let answer = client.post(WRITE, &client.headers(), write.clone()).await;
            assert_refused(answer, StatusCode::FORBIDDEN);
            let garbage = Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0f");
            drop(client.post(READ, &client.headers(), garbage).await);
            drop(client.post(READ, &client.headers(), vec![0; 1 << 20].into()).await);
            for path in [
                "/db/second",
                "/db/none",
                "/databases/00000000-0000-4000-8000-000000000002/connect",
            ] {
                let asked = Bytes::from_static(br#"{"supportedVersions":[3]}"#);
                let answer = client.post(path, &client.headers(), asked).await;
                assert_refused(answer, StatusCode::UNAUTHORIZED);
            }
            let mut headers = client.headers();
            headers.retain(|(name, _)| *name != "x-denokv-database-id");
            headers.push(("x-denokv-database-id", SECOND_DATABASE.to_string()));
            assert_refused(client.post(WRITE, &headers, write).await, StatusCode::UNAUTHORIZED);
        }
    })
    .await;
}
