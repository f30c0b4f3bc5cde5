//! Certificates of nodes in other hands: of a node that does not vote in a group, to lead it, and of a
//! node that was revoked.

use meridian_config::Context;
use meridian_proto::log;
use meridian_proto::raft::{self, raft_client::RaftClient};
use meridian_tests::kv_connect::DEFAULT_DATABASE;
use meridian_tests::{Cluster, ClusterOptions, as_node, poll};
use meridian_types::NodeId;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::DEADLINE;

type Client = RaftClient<Channel>;

/// Calls `node` with the certificate of the node of this name.
fn with_identity(cluster: &Cluster, name: &str, node: u64) -> Client {
    let id = Context::load(&cluster.context()).unwrap().cluster;
    let to = (NodeId(node), cluster.rpc_address(node));
    let identities = cluster.folder().join("identities");
    RaftClient::new(as_node::channel(&identities, name, to, &id))
}

/// Of node `own`, in a term that the group may come to.
fn candidacy(group: raft::Group, own: u64) -> raft::VoteRequest {
    let vote = Some(log::Vote { term: 1000, node_id: own, committed: false });
    raft::VoteRequest { group: Some(group), vote, ..Default::default() }
}

/// The answers to a candidate, to a leader, and to a node that makes a wiped member known.
async fn claims(mut client: Client, group: raft::Group, own: u64) -> [Result<(), Status>; 4] {
    let candidacy = candidacy(group, own);
    let vote = Some(log::Vote { term: 1000, node_id: own, committed: true });
    let group = Some(group);
    let append = raft::AppendRequest { group, vote, ..Default::default() };
    let wiped = raft::JoinRequest { group, node_id: 2, incarnation: "another".into() };
    [
        client.pre_vote(candidacy).await.map(drop),
        client.vote(candidacy).await.map(drop),
        client.append(append).await.map(drop),
        client.join(wiped).await.map(drop),
    ]
}

#[tokio::test]
async fn certificate_of_a_node_leads_no_group_that_the_node_does_not_vote_in() {
    let cluster =
        Cluster::start(ClusterOptions { topology: &[3, 1], ..ClusterOptions::default() }).await;
    let client = cluster.client(1, DEFAULT_DATABASE);
    client.set(b"before", b"it").await.unwrap();
    for node in 1..=3 {
        let group = raft::Group { shard: 1, epoch: 1, target: node };
        let thief = with_identity(&cluster, "region-2-a", node);
        for refused in claims(thief, group, 4).await {
            let status = refused.unwrap_err();
            assert_eq!(status.code(), Code::PermissionDenied, "{status}");
            assert!(status.message().contains("node 4 does not vote in"), "{status}");
        }
    }
    // Of a voter it would be asked further.
    let group = raft::Group { shard: 1, epoch: 1, target: 2 };
    let mut voter = with_identity(&cluster, "region-1-a", 2);
    let code = voter.pre_vote(candidacy(group, 1)).await.err().map(|status| status.code());
    assert_ne!(code, Some(Code::PermissionDenied));
    client.set(b"after", b"it").await.unwrap();
}

/// It votes in the shard, and not in the directory.
#[tokio::test]
async fn calls_of_a_node_are_refused_once_it_is_revoked() {
    let cluster =
        Cluster::start(ClusterOptions { topology: &[3, 1], ..ClusterOptions::default() }).await;
    let group = raft::Group { shard: 1, epoch: 1, target: 2 };
    let mut thief = with_identity(&cluster, "region-1-c", 2);
    let mut stands = async || thief.pre_vote(candidacy(group, 3)).await.map(drop);
    let code = stands().await.err().map(|status| status.code());
    assert_ne!(code, Some(Code::Unauthenticated));
    cluster.order(1, &["nodes", "revoke", "region-1-c"]).await;
    poll::until("its calls are refused", DEADLINE, async || match stands().await {
        Err(status) if status.code() == Code::Unauthenticated => Ok(()),
        other => Err(other),
    })
    .await;
    cluster.client(1, DEFAULT_DATABASE).set(b"without", b"it").await.unwrap();
    // It is not taken for a node that crashed, by operators and by itself.
    poll::until("it is shown as revoked", DEADLINE, async || {
        let nodes = cluster.order(1, &["nodes", "list"]).await;
        let is_shown = |line: &str| line.contains("region-1-c") && line.contains("revoked");
        if nodes.lines().any(is_shown) { Ok(()) } else { Err(nodes) }
    })
    .await;
    poll::until("its log says so", DEADLINE, async || {
        let log = cluster.log(3);
        if log.contains("the certificate of node/3 was revoked") { Ok(()) } else { Err(log) }
    })
    .await;
}
