//! Input on the ports of nodes for each other: calls of another cluster, and malformed calls.

use bytes::Bytes;
use meridian_proto::directory::directory_client::DirectoryClient;
use meridian_proto::kv_connect as pb;
use meridian_proto::raft::raft_client::RaftClient;
use meridian_proto::shard::shard_client::ShardClient;
use meridian_proto::shipping::shipping_client::ShippingClient;
use meridian_proto::{raft, shard, shipping};
use meridian_tests::kv_connect::{DEFAULT_DATABASE, point, set};
use meridian_tests::{Cluster, as_node};
use meridian_types::NodeId;
use tonic::transport::Channel;

use crate::{CLAIMED_TERM, DEADLINE};

/// A channel as the first node has it, for a cluster.
fn channel(cluster: &Cluster, id: NodeId, named: &str) -> Channel {
    let identities = cluster.folder().join("identities");
    as_node::channel(&identities, "region-1-a", (id, cluster.rpc_address(id)), named)
}

/// A node serves no calls of another cluster, also from a node of its own.
pub(crate) async fn calls_of_another_cluster(cluster: &Cluster, id: NodeId) {
    let channel = channel(cluster, id, "00112233445566778899aabbccddeeff");
    let group = Some(raft::Group { shard: 1, epoch: 1, target: id.0 });
    let vote = meridian_proto::log::Vote { term: CLAIMED_TERM, node_id: 1, committed: true };
    let append = raft::AppendRequest { group, vote: Some(vote), ..Default::default() };
    let refused = RaftClient::new(channel.clone()).append(append).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition, "{refused}");
    assert!(refused.message().contains("this node is of cluster"), "{refused}");
    let fetch = shipping::FetchStateRequest { shard: 1, epoch: 1, ..Default::default() };
    let fetched = ShippingClient::new(channel.clone()).fetch_state(fetch).await;
    assert_eq!(fetched.unwrap_err().code(), tonic::Code::FailedPrecondition);
    let renewal = meridian_proto::directory::RenewRequest { node_id: 1, ..Default::default() };
    let renewed = DirectoryClient::new(channel).renew(renewal).await;
    assert_eq!(renewed.unwrap_err().code(), tonic::Code::FailedPrecondition);
}

/// Calls with wrong groups, epochs, targets and fields are refused without an effect.
pub(crate) async fn malformed_calls(cluster: &Cluster, id: NodeId) {
    let name = cluster.directory().await.id.unwrap();
    let channel = channel(cluster, id, &name);
    let shards = ShardClient::new(channel.clone())
        .max_encoding_message_size(256 << 20)
        .max_decoding_message_size(256 << 20);
    malformed_writes(shards.clone(), id).await;
    malformed_reads(shards).await;
    malformed_votes(RaftClient::new(channel.clone()), id).await;
    let shipping = ShippingClient::new(channel);
    malformed_fetches(shipping.clone()).await;
    malformed_subscriptions(shipping).await;
}

const GROUP: shard::ShardEpoch = shard::ShardEpoch { shard: 1, epoch: 1 };

async fn malformed_writes(mut shards: ShardClient<Channel>, id: NodeId) {
    let group = |shard, epoch| Some(shard::ShardEpoch { shard, epoch });
    let write = |group| shard::WriteRequest {
        group,
        database: Bytes::copy_from_slice(&DEFAULT_DATABASE.0),
        request_id: Bytes::from_static(&[7; 16]),
        transaction: Some(shard::write_request::Transaction::Write(pb::AtomicWrite {
            mutations: vec![set(b"by rpc", b"v")],
            ..Default::default()
        })),
        retry: false,
        late_leader: 0,
        pass_on: false,
        valid_until: None,
        turn: None,
    };
    let good = Some(GROUP);
    let bad = [
        write(None),
        write(group(9, 1)),
        write(group(1, 0)),
        write(group(1, 2)),
        write(group(1, u32::MAX)),
        shard::WriteRequest { database: Bytes::from_static(b"short"), ..write(good) },
        shard::WriteRequest { request_id: Bytes::new(), ..write(good) },
        shard::WriteRequest { transaction: None, ..write(good) },
    ];
    for request in bad {
        let shown = format!("{request:?}");
        match shards.write(request).await.map(|response| response.into_inner().result) {
            // A replica checks only that it does not lead; a voter only that the call does not name
            // its clock.
            Err(_)
            | Ok(Some(
                shard::write_response::Result::NotLeader(_)
                | shard::write_response::Result::ClockUnknown(_),
            )) => {}
            other => panic!("node {id}: {shown}: {other:?}"),
        }
    }
}

async fn malformed_reads(mut shards: ShardClient<Channel>) {
    let read = |ranges| shard::ReadRequest {
        group: Some(GROUP),
        database: Bytes::copy_from_slice(&DEFAULT_DATABASE.0),
        strong: false,
        ranges,
        min_sequence: 0,
    };
    shards.read(read(vec![pb::ReadRange { limit: -5, ..point(b"k") }])).await.unwrap_err();
    // Beyond the largest message that a node accepts.
    let oversized = shard::ReadRequest { database: vec![0; 100 << 20].into(), ..read(vec![]) };
    shards.read(oversized).await.unwrap_err();
}

async fn malformed_votes(mut rafts: RaftClient<Channel>, id: NodeId) {
    let target = |shard, epoch, target| Some(raft::Group { shard, epoch, target });
    let vote = meridian_proto::log::Vote { term: CLAIMED_TERM, node_id: 1, committed: false };
    let NodeId(id) = id;
    for group in [None, target(9, 1, id), target(1, 2, id), target(1, 1, id + 1), target(1, 1, 0)] {
        let request = raft::VoteRequest { group, vote: Some(vote), ..Default::default() };
        rafts.vote(request).await.unwrap_err();
        rafts.pre_vote(request).await.unwrap_err();
        rafts
            .append(raft::AppendRequest { group, vote: Some(vote), ..Default::default() })
            .await
            .unwrap_err();
    }
    rafts
        .vote(raft::VoteRequest { group: target(1, 1, id), ..Default::default() })
        .await
        .unwrap_err();
}

async fn malformed_fetches(mut shipping: ShippingClient<Channel>) {
    let fetch = |shard, epoch| shipping::FetchStateRequest { shard, epoch, ..Default::default() };
    for request in [
        fetch(9, 1),
        fetch(1, 7),
        shipping::FetchStateRequest { snapshot_id: "none".to_owned(), ..fetch(1, 1) },
    ] {
        if let Ok(stream) = shipping.fetch_state(request).await {
            stream.into_inner().message().await.unwrap_err();
        }
    }
}

async fn malformed_subscriptions(mut shipping: ShippingClient<Channel>) {
    let start = |start| shipping::SubscribeRequest {
        message: Some(shipping::subscribe_request::Message::Start(start)),
    };
    let known =
        shipping::Start { shard: 1, epoch: 1, node_id: 4, durable: None, keeps_window: true };
    let ahead = shipping::Position { epoch: 1, sequence: u64::MAX };
    for requests in [
        vec![],
        vec![shipping::SubscribeRequest { message: None }],
        vec![start(shipping::Start { shard: 9, ..known })],
        vec![start(shipping::Start { epoch: u32::MAX, ..known })],
        vec![start(shipping::Start { node_id: 99, ..known })],
        vec![start(shipping::Start { durable: Some(ahead), ..known })],
    ] {
        let Ok(stream) = shipping.subscribe(tokio_stream::iter(requests)).await else { continue };
        // The stream of answers ends with the requests.
        let mut stream = stream.into_inner();
        let ended = async { while let Ok(Some(_)) = stream.message().await {} };
        tokio::time::timeout(DEADLINE, ended).await.expect("the stream ends");
    }
    let status = shipping::Status { shard: 9, node_id: 99, epoch: u32::MAX, ..Default::default() };
    // Refused or ignored.
    let said = shipping::AnnounceRequest { statuses: vec![status], ..Default::default() };
    drop(shipping.announce(tokio_stream::once(said)).await);
}
