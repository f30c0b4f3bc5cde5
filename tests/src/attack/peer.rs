//! An attacker that reaches the ports of nodes for each other: a stranger without a certificate, and
//! a node that is faulty, or whose certificate was stolen.

use std::sync::Arc;
use std::time::Duration;

use meridian_proto::directory::directory_client::DirectoryClient;
use meridian_proto::directory::failover_client::FailoverClient;
use meridian_proto::directory::{ReadLogRequest, RenewRequest};
use meridian_proto::raft::raft_client::RaftClient;
use meridian_proto::shipping::shipping_client::ShippingClient;
use meridian_proto::{raft, shipping};
use meridian_types::NodeId;
use tonic::transport::{Channel, Endpoint};

use super::wire::{converse, hold};
use super::{Target, again};
use crate::as_node;

const PATIENCE: Duration = Duration::from_secs(180);
/// Of the bystander's database.
const SHARD: u32 = 2;

async fn stranger(address: &str, cluster: &str) -> Option<Channel> {
    let origin = format!("http://{cluster}.meridian").parse().ok()?;
    Endpoint::from_shared(format!("http://{address}")).ok()?.origin(origin).connect().await.ok()
}

/// With the certificate of the first node.
fn thief(target: &Target, node: u64, address: &str) -> Channel {
    let to = (NodeId(node), address);
    as_node::channel(&target.identities, "region-1-a", to, &target.cluster)
}

/// A candidate's vote, and a leader's entry, of an impossible term.
async fn mad_term(channel: Channel, target: u64) {
    for term in [u64::MAX, 1 << 40] {
        let group = Some(raft::Group { shard: SHARD, epoch: 1, target });
        let vote = |committed| Some(meridian_proto::log::Vote { term, node_id: 1, committed });
        let mut rafts = RaftClient::new(channel.clone());
        let append = raft::AppendRequest { group, vote: vote(true), ..Default::default() };
        drop(rafts.append(append).await);
        let request = raft::VoteRequest {
            group,
            vote: vote(false),
            leadership_transfer: true,
            ..Default::default()
        };
        drop(rafts.vote(request).await);
    }
}

pub(super) async fn foreign(target: Arc<Target>) {
    again(target.nodes.len(), move |at| {
        let (node, address) = target.nodes[at].clone();
        let target = Arc::clone(&target);
        async move {
            let Some(channel) = stranger(&address, &target.cluster).await else {
                return;
            };
            mad_term(channel.clone(), node).await;
            let renewal = RenewRequest { node_id: node, ..Default::default() };
            drop(DirectoryClient::new(channel.clone()).renew(renewal).await);
            let position = Some(shipping::Position { epoch: u32::MAX, sequence: u64::MAX });
            let status = shipping::Status {
                shard: SHARD,
                node_id: 1,
                epoch: 1,
                durable: position,
                ..Default::default()
            };
            let announce =
                shipping::AnnounceRequest { statuses: vec![status], ..Default::default() };
            drop(ShippingClient::new(channel).announce(futures::stream::iter([announce])).await);
        }
    })
    .await;
}

pub(super) async fn terms(target: Arc<Target>) {
    again(target.nodes.len(), move |at| {
        let (node, address) = target.nodes[at].clone();
        let channel = thief(&target, node, &address);
        async move {
            mad_term(channel, node).await;
        }
    })
    .await;
}

/// Transfers of new and present states, which are not read.
pub(super) async fn states(target: Arc<Target>) {
    again(target.nodes.len(), move |at| {
        let (node, address) = target.nodes[at].clone();
        let channel = thief(&target, node, &address);
        async move {
            let mut client = ShippingClient::new(channel);
            let mut streams = Vec::new();
            for number in 0..200 {
                let request = shipping::FetchStateRequest {
                    shard: 1 + number % 2,
                    epoch: 1,
                    ..Default::default()
                };
                streams.extend(client.fetch_state(request).await);
            }
            tokio::time::sleep(PATIENCE).await;
            drop(streams);
        }
    })
    .await;
}

/// Answers of two megabytes, many at a time.
pub(super) async fn logs(target: Arc<Target>) {
    again(target.nodes.len(), move |at| {
        let (node, address) = target.nodes[at].clone();
        let channel = thief(&target, node, &address);
        async move {
            let client = FailoverClient::new(channel);
            let calls = (0..300).map(|_| {
                let mut client = client.clone();
                async move {
                    let after = Some(shipping::Position { epoch: 1, sequence: 0 });
                    let through = Some(shipping::Position { epoch: 1, sequence: 1 << 40 });
                    let request = ReadLogRequest { shard: 1, after, through };
                    client.read_log(request).await
                }
            });
            drop(futures::future::join_all(calls).await);
        }
    })
    .await;
}

pub(super) async fn sockets(target: Arc<Target>) {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let oversized = Arc::new([&preface[..], b"\xff\xff\xff\0\0\0\0\0\x01", &[0; 4096]].concat());
    again(3000, move |at| {
        let (_, address) = target.nodes[at % target.nodes.len()].clone();
        let oversized = Arc::clone(&oversized);
        async move {
            if at % 50 == 0 {
                converse(&address, &oversized).await
            } else {
                hold(&address, b"").await
            }
        }
    })
    .await;
}
