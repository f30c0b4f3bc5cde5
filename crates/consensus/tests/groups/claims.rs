//! Members that went mad, and nodes that are none.

use std::sync::Arc;

use meridian_consensus::Peers;
use meridian_proto::raft::raft_client::RaftClient;
use meridian_proto::{log, raft};
use meridian_types::NodeId;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::{CALLER, at, equal, leader, write};
use crate::wire::Wire;

/// The answers of `node` to every call that stands for election or leads, of this node and term.
async fn claim(
    channel: Channel,
    node: NodeId,
    term: u64,
    claimant: NodeId,
) -> Vec<Result<(), Status>> {
    let mut client = RaftClient::with_interceptor(channel, move |mut request: Request<()>| {
        request.metadata_mut().insert(CALLER, claimant.0.into());
        Ok(request)
    });
    let group = Some(raft::Group { shard: crate::support::SHARD.0, epoch: 1, target: node.0 });
    let vote = |committed| Some(log::Vote { term, node_id: claimant.0, committed });
    let append = raft::AppendRequest { group, vote: vote(true), ..Default::default() };
    let mut answers = vec![client.append(append.clone()).await.map(drop)];
    let stream = client.stream_append(futures::stream::iter([append])).await.unwrap();
    answers.push(stream.into_inner().message().await.map(drop));
    let request = raft::VoteRequest {
        group,
        vote: vote(false),
        leadership_transfer: true,
        ..Default::default()
    };
    answers.push(client.vote(request).await.map(drop));
    answers.push(client.pre_vote(request).await.map(drop));
    let install = raft::InstallSnapshotRequest { group, vote: vote(true), ..Default::default() };
    answers.push(client.install_snapshot(install).await.map(drop));
    let transfer = raft::TransferLeaderRequest {
        group,
        from_leader: vote(true),
        to: claimant.0,
        ..Default::default()
    };
    answers.push(client.transfer_leader(transfer).await.map(drop));
    answers
}

/// Three nodes with a group, which refuse all of these claims, of a node and a term, and go on as if
/// nothing had been claimed.
async fn refused(claims: impl Fn(NodeId, u64) -> (NodeId, u64), code: Code) {
    // On a machine that stands still for some time a member stands for election by itself.
    for _ in 0..5 {
        if leads_on(&claims, code).await {
            return;
        }
    }
    panic!("a member is made to stand for election");
}

/// Whether the leader leads on in its term.
async fn leads_on(claims: impl Fn(NodeId, u64) -> (NodeId, u64), code: Code) -> bool {
    let wire = Arc::new(Wire::default());
    let nodes = crate::seal::three(&wire).await;
    let last = write(&nodes, 2, "before").await;
    equal(&nodes, at(1, last)).await;
    wire.names_voters(false);
    let (led, term) = {
        let leading = leader(&nodes).await;
        (leading.id, leading.group().status().term)
    };
    for node in &nodes {
        let (claimant, claimed) = claims(led, term);
        for answer in claim(wire.channel(node.id).unwrap(), node.id, claimed, claimant).await {
            assert_eq!(answer.unwrap_err().code(), code);
        }
    }
    let last = write(&nodes, 2, "after").await;
    equal(&nodes, at(1, last)).await;
    let leading = leader(&nodes).await;
    (leading.id, leading.group().status().term) == (led, term)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_term_that_no_group_reaches_moves_no_member() {
    for claimed in [u64::MAX, 1 << 40] {
        refused(|led, _| (led, claimed), Code::InvalidArgument).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_does_not_vote_in_a_group_neither_leads_it_nor_is_voted_for() {
    refused(|_, term| (NodeId(4), term + 1), Code::PermissionDenied).await;
}
