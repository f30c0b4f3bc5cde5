use std::time::Instant;

use meridian_config::DevLayout;
use meridian_directory::{Token, TokenScope};
use meridian_failover::Lease;
use meridian_gateway::{Access, Catalogue as _};
use meridian_proto::directory::directory_server::Directory as _;
use meridian_types::{Epoch, NodeId, Permissions, ShardId};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::cluster_view::client::Follower;
use crate::network::peers::PeerChannels;

/// Where a node that knows this serves it.
async fn serve(directory: &Arc<Directory>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let service = DirectoryService { directory: Arc::clone(directory), voter: Arc::default() };
    let server = tonic::transport::Server::builder()
        .add_service(directory_server::DirectoryServer::new(service));
    tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
    address
}

/// A database unknown to a cut-off node may be in the directory, which that node has lost.
#[tokio::test]
async fn gateway_is_current_once_a_node_in_touch_with_the_directory_has_nothing_newer() {
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let directory = || Arc::new(Directory::new(cluster.clone(), Access::default(), None));
    let (node, gateway) = (directory(), directory());
    // Of before it was cut off.
    node.learn(meridian_directory::Cluster { version: 7, ..cluster.clone() }).unwrap();
    let address = serve(&node).await;
    let nearest = gateway.voters_near("region-1")[0];
    // Nothing listens at the port of discarding.
    let dial =
        move |node| Some(if node == nearest { address.clone() } else { "127.0.0.1:9".to_owned() });
    let peers = Arc::new(PeerChannels::new(&cluster, Arc::new(dial)).unwrap());
    let (stop, region) = (CancellationToken::new(), "region-1".to_owned());
    let follower = Follower { directory: Arc::clone(&gateway), peers, region, node: None };
    let following = tokio::spawn(follower.run(stop.clone()));
    let started = Instant::now();
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    until("it never hears the news", &|| gateway.known().cluster.version == 7).await;
    assert!(!gateway.is_current(), "the news may be old");
    // As long as it stays: a node in touch says something meanwhile.
    until("it follows the node", &|| node.watchers() == 1).await;
    until("the stream is left open", &|| node.watchers() == 0).await;
    assert!(!gateway.is_current(), "no node has heard of the directory");
    let lease = Lease { ttl: Duration::from_secs(3), shards: Vec::new() };
    until("it is never sure", &|| {
        node.renewed(node.now(), &lease);
        gateway.is_current()
    })
    .await;
    stop.cancel();
    following.await.unwrap();
}

/// A gateway without a node follows the nearest voter, which is cut off from the directory's
/// leader, and not from the gateway.
#[tokio::test]
async fn gateway_leaves_a_node_that_has_lost_the_directory() {
    let cluster =
        DevLayout::new(&[3, 2, 2]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let news = || meridian_directory::Cluster { version: 7, ..cluster.clone() };
    let directory = || Arc::new(Directory::new(cluster.clone(), Access::default(), None));
    let lease = Lease { ttl: Duration::from_secs(3), shards: Vec::new() };
    let (cut_off, well) = (directory(), directory());
    cut_off.renewed(cut_off.now(), &lease);
    let addresses = (serve(&cut_off).await, serve(&well).await);
    let gateway = directory();
    let nearest = gateway.voters_near("region-1")[0];
    let dial =
        move |node| Some(if node == nearest { addresses.0.clone() } else { addresses.1.clone() });
    let peers = Arc::new(PeerChannels::new(&cluster, Arc::new(dial)).unwrap());
    let stop = CancellationToken::new();
    let region = "region-1".to_owned();
    let follower = Follower { directory: Arc::clone(&gateway), peers, region, node: None };
    let following = tokio::spawn(follower.run(stop.clone()));
    let started = Instant::now();
    let until = async |what: &str, mut holds: Box<dyn FnMut() -> bool>| {
        while !holds() {
            assert!(started.elapsed() < Duration::from_secs(30), "{what}");
            well.renewed(well.now(), &lease);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let streams = Arc::clone(&cut_off);
    until("it follows the nearest", Box::new(move || streams.watchers() == 1)).await;
    well.learn(news()).unwrap();
    let known = Arc::clone(&gateway);
    until("it never hears the news", Box::new(move || known.known().cluster.version == 7)).await;
    let streams = Arc::clone(&cut_off);
    until("the stream is left open", Box::new(move || streams.watchers() == 0)).await;
    stop.cancel();
    following.await.unwrap();
}

#[tokio::test]
async fn operators_and_followers_are_told_no_more_than_they_need() {
    let mut cluster =
        DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    cluster.version = 1;
    cluster.nodes.get_mut(&NodeId(1)).unwrap().incarnation = Some("5eed".to_owned());
    let hash = "ab".repeat(32);
    let (label, scope) = ("ci".to_owned(), TokenScope::All);
    let token = Token::new(label, hash.clone(), scope, Permissions::ALL);
    cluster.tokens.insert(1, token);
    let directory = Arc::new(Directory::new(cluster, Access::default(), None));
    directory.renewed(directory.now(), &Lease { ttl: Duration::from_secs(60), shards: Vec::new() });
    let service = DirectoryService { directory, voter: Arc::default() };
    let text = |state: wire::ClusterState| String::from_utf8(state.json.to_vec()).unwrap();
    let inspected = service
        .inspect(Request::new(wire::InspectRequest { changes: 9 }))
        .await
        .unwrap()
        .into_inner();
    let inspected = text(inspected.cluster.unwrap());
    assert!(
        inspected.contains("\"ci\"") && !inspected.contains(&hash) && !inspected.contains("5eed")
    );
    let follow =
        service.follow(Request::new(wire::FollowRequest { known_version: 0 })).await.unwrap();
    let followed = text(follow.into_inner().next().await.unwrap().unwrap());
    assert!(followed.contains(&hash) && !followed.contains("5eed"));
}

#[test]
fn what_leaders_and_nodes_say_is_no_operators_to_order() {
    let (shard, epoch) = (ShardId(1), Epoch(1));
    for change in [
        Change::ConfirmVoters { shard, epoch, version: 2 },
        Change::Activate { shard, epoch },
        Change::EndDeletion { id: meridian_types::DatabaseId([1; 16]) },
        Change::UseInvitation { id: 1, request: String::new() },
    ] {
        assert_eq!(roles::of_change(&change), None);
    }
    let voters = Change::SetVoters { shard, voters: [NodeId(1)].into() };
    assert!(roles::of_change(&voters).is_some());
}
