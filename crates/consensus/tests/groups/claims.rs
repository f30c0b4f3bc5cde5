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

/// A claim to be voted for, or to lead.
struct Claim {
    /// The node that the calls come from.
    caller: NodeId,
    /// The node that they speak of.
    claimant: NodeId,
    term: u64,
}

impl Claim {
    fn of(node: NodeId, term: u64) -> Self {
        Self { caller: node, claimant: node, term }
    }
}

/// The answers of `node` to every call that makes the claim.
async fn claim(channel: Channel, node: NodeId, claim: Claim) -> Vec<Result<(), Status>> {
    let Claim { caller, claimant, term } = claim;
    let mut client = RaftClient::with_interceptor(channel, move |mut request: Request<()>| {
        request.metadata_mut().insert(CALLER, caller.0.into());
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

/// Three nodes with a group, which refuse all claims and go on as if nothing had been claimed.
/// `claims`: by the group's leader and its term.
async fn refused(claims: impl Fn(NodeId, u64) -> Claim, code: Code) {
    // On a machine that stands still for some time a member stands for election by itself.
    for _ in 0..5 {
        if leads_on(&claims, code).await {
            return;
        }
    }
    panic!("a member is made to stand for election");
}

/// Whether the leader leads on in its term.
async fn leads_on(claims: impl Fn(NodeId, u64) -> Claim, code: Code) -> bool {
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
        for answer in claim(wire.channel(node.id).unwrap(), node.id, claims(led, term)).await {
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
        refused(|led, _| Claim::of(led, claimed), Code::InvalidArgument).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn node_that_does_not_vote_in_a_group_neither_leads_it_nor_is_voted_for() {
    refused(|_, term| Claim::of(NodeId(4), term + 1), Code::PermissionDenied).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn voter_neither_stands_for_election_nor_leads_in_the_name_of_another() {
    let another = |led: NodeId| NodeId(led.0 % 3 + 1);
    let claims =
        |led: NodeId, term: u64| Claim { caller: another(led), claimant: led, term: term + 1 };
    refused(claims, Code::PermissionDenied).await;
}
