//! A member that went mad.

use std::sync::Arc;

use meridian_consensus::Peers;
use meridian_proto::raft::raft_client::RaftClient;
use meridian_proto::{log, raft};
use tonic::Code;

use crate::support::{at, equal, leader, write};
use crate::wire::Wire;

#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_no_group_reaches_moves_no_member() {
    let wire = Arc::new(Wire::default());
    let nodes = crate::seal::three(&wire).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    let (led, term) = {
        let leading = leader(&nodes).await;
        (leading.id, leading.group().status().term)
    };
    for node in &nodes {
        let mut client = RaftClient::new(wire.channel(node.id).unwrap());
        let group =
            Some(raft::Group { shard: crate::support::SHARD.0, epoch: 1, target: node.id.0 });
        for claimed in [u64::MAX, 1 << 40] {
            let vote = |committed| Some(log::Vote { term: claimed, node_id: led.0, committed });
            let append = raft::AppendRequest { group, vote: vote(true), ..Default::default() };
            let mut refused = vec![client.append(append.clone()).await.map(drop)];
            let stream = client.stream_append(futures::stream::iter([append])).await.unwrap();
            refused.push(stream.into_inner().message().await.map(drop));
            let request = raft::VoteRequest {
                group,
                vote: vote(false),
                leadership_transfer: true,
                ..Default::default()
            };
            refused.push(client.vote(request).await.map(drop));
            refused.push(client.pre_vote(request).await.map(drop));
            let install =
                raft::InstallSnapshotRequest { group, vote: vote(true), ..Default::default() };
            refused.push(client.install_snapshot(install).await.map(drop));
            for refused in refused {
                assert_eq!(refused.unwrap_err().code(), Code::InvalidArgument);
            }
        }
    }
    let last = write(&nodes, 2, "after").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await;
    assert_eq!(
        (leading.id, leading.group().status().term),
        (led, term),
        "no member was made to stand for election"
    );
}
