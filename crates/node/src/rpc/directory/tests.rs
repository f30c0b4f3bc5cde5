use std::time::Instant;

use meridian_config::{DEV_DEFAULT_DATABASE, DevLayout};
use meridian_directory::{Cluster, Invitation, Member, Operator, Token, TokenScope};
use meridian_failover::Lease;
use meridian_gateway::{Access, Catalogue as _};
use meridian_proto::directory::directory_server::Directory as _;
use meridian_types::{Epoch, Level, NodeId, Permissions, ShardId};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::TcpListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::*;
use crate::cluster_view::client::Follower;
use crate::network::peers::PeerChannels;
use crate::testing::{WEBHOOK_KEY, from_node, webhook};

fn founded() -> Cluster {
    DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap()
}

/// Of a node that does not vote in the directory: a call that is let through fails of that.
fn service(cluster: Cluster) -> DirectoryService {
    let directory = Arc::new(Directory::new(cluster, Access::default(), None));
    DirectoryService { directory, voter: Arc::default() }
}

fn ana(level: Level) -> Holder {
    Holder::Operator { level, name: "ana".to_owned() }
}

/// The end of an order by `ana`, or by a caller that shows no proof.
async fn ordered(change: &Change, level: Option<Level>) -> Status {
    let change_json = serde_json::to_vec(change).unwrap().into();
    let order = wire::ExecuteRequest { change_json, actor: String::new() };
    let order = match level {
        Some(level) => proved(ana(level), order),
        None => Request::new(order),
    };
    service(founded()).execute(order).await.unwrap_err()
}

/// A call of a holder that has proved itself.
fn proved<T>(holder: Holder, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Principal::for_test(holder, None));
    request
}

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
    let mut cluster = Cluster { version: 1, ..founded() };
    cluster.nodes.get_mut(&NodeId(1)).unwrap().incarnation = Some("5eed".to_owned());
    cluster.databases.get_mut(&DEV_DEFAULT_DATABASE).unwrap().webhooks.push(webhook());
    let hash = "ab".repeat(32);
    let (label, scope) = ("ci".to_owned(), TokenScope::All);
    let token = Token::new(label, hash.clone(), scope, Permissions::ALL);
    cluster.tokens.insert(1, token);
    let service = service(cluster);
    let (directory, ttl) = (&service.directory, Duration::from_secs(60));
    directory.renewed(directory.now(), &Lease { ttl, shards: Vec::new() });
    let text = |state: wire::ClusterState| String::from_utf8(state.json.to_vec()).unwrap();
    // Whether it has the name of a token, its hash, a node's folder, and the key of a webhook.
    let tells =
        |text: &str| ["\"ci\"", &hash, "5eed", WEBHOOK_KEY].map(|secret| text.contains(secret));
    let request = proved(ana(Level::Admin), wire::InspectRequest { changes: 9 });
    let inspected = service.inspect(request).await.unwrap().into_inner();
    assert_eq!(tells(&text(inspected.cluster.unwrap())), [true, false, false, false]);
    for (follower, has_key) in
        [(Holder::Gateway("edge".to_owned()), false), (Holder::Node(NodeId(2)), true)]
    {
        let request = proved(follower.clone(), wire::FollowRequest { known_version: 0 });
        let mut followed = service.follow(request).await.unwrap().into_inner();
        let told = tells(&text(followed.next().await.unwrap().unwrap()));
        assert_eq!(told, [true, true, false, has_key], "{follower}");
    }
}

#[tokio::test]
async fn order_is_let_through_from_no_operator_of_a_smaller_level_than_it_takes() {
    let another = Operator {
        name: "bo".to_owned(),
        sha256: "ab".repeat(32),
        level: Level::Admin,
        expires_at_ms: None,
        created_at_ms: 1,
    };
    let admits = Change::AddOperator { operator: another };
    let refused = ordered(&admits, Some(Level::Operate)).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    let text = "operator/operate/ana may not do this: it takes an operator of level `admin`";
    assert!(refused.message().contains(text), "{refused}");
    assert_eq!(ordered(&admits, Some(Level::Admin)).await.code(), Code::FailedPrecondition);
    let (shard, epoch) = (ShardId(1), Epoch(1));
    let operates = ordered(&Change::CancelSwitchover { shard }, Some(Level::Operate)).await;
    assert_eq!(operates.code(), Code::FailedPrecondition, "{operates}");
    let of_the_directory = ordered(&Change::Activate { shard, epoch }, Some(Level::Admin)).await;
    assert_eq!(of_the_directory.code(), Code::PermissionDenied, "{of_the_directory}");
}

#[tokio::test]
async fn change_that_may_leave_no_operator_is_ordered_by_an_operator_that_stays() {
    let closes = Change::SetTransport { transport: Transport::Require };
    let refused = ordered(&closes, None).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    assert!(refused.message().contains("this call shows none"), "{refused}");
    let prepares = Change::SetTransport { transport: Transport::Prefer };
    let removes = |name: &str| Change::RemoveOperator { name: name.to_owned() };
    let refused = ordered(&removes("ana"), Some(Level::Admin)).await;
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused}");
    for (change, level) in
        [(closes, Some(Level::Admin)), (removes("bo"), Some(Level::Admin)), (prepares, None)]
    {
        let let_through = ordered(&change, level).await;
        assert_eq!(let_through.code(), Code::FailedPrecondition, "{let_through}");
    }
}

/// Nodes 1, 4 and 6 of the seven vote.
#[tokio::test]
async fn voter_of_the_directory_alone_adds_an_admin_without_an_operator() {
    let layout = DevLayout::new(&[3, 2, 2]);
    let other = layout.found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let mut cluster = other.clone();
    let certificate_pem = "an authority's".to_owned();
    let authority = meridian_directory::Authority { certificate_pem, key: None, issues: true };
    cluster.trust.authorities.push(authority);
    for (cluster, node, code) in [
        (&cluster, 1, Code::FailedPrecondition),
        (&cluster, 2, Code::PermissionDenied),
        // Of an authority of the operator's.
        (&other, 1, Code::PermissionDenied),
    ] {
        let (name, sha256) = ("bo".to_owned(), "ab".repeat(32));
        let request = wire::AddAdminRequest { name, sha256, actor: String::new() };
        let answer = service(cluster.clone()).add_admin(from_node(node, request)).await;
        assert_eq!(answer.unwrap_err().code(), code, "node {node}");
    }
}

#[tokio::test]
async fn node_renews_the_lease_of_no_other() {
    let service = service(founded());
    let renews = async |node_id| {
        let renewal = wire::RenewRequest { node_id, ..Default::default() };
        service.renew(from_node(1, renewal)).await.unwrap_err().code()
    };
    assert_eq!(renews(1).await, Code::FailedPrecondition);
    assert_eq!(renews(2).await, Code::PermissionDenied);
}

#[test]
fn times_of_an_order_are_the_leaders_whatever_the_operator_says() {
    let service = service(founded());
    let member = Member::Node(NodeId(1));
    for said_ms in [0, u64::MAX] {
        let (member, expires_at_ms) = (member.clone(), said_ms);
        let invitation = Invitation {
            member: member.clone(),
            sha256: "ab".repeat(32),
            expires_at_ms,
            used_by: None,
        };
        let before_ms = wall_ms();
        let revokes = Change::RevokeCertificates { member, before_ms: said_ms };
        let invites = Change::Invite { invitation, now_ms: said_ms };
        let completed = [revokes, invites].map(|change| service.completed(change).unwrap());
        let [
            Change::RevokeCertificates { before_ms: revoked_ms, .. },
            Change::Invite { now_ms, invitation },
        ] = completed
        else {
            panic!("it has become another change");
        };
        for time_ms in [revoked_ms, now_ms] {
            assert!((before_ms..=wall_ms()).contains(&time_ms), "{time_ms}");
        }
        assert_eq!(invitation.expires_at_ms, said_ms);
    }
}

#[test]
fn author_in_the_record_is_proved_and_the_callers_own_words_are_bounded_and_clean() {
    let ana = Principal::for_test(ana(Level::Admin), None);
    let recorded = actor(Some(&ana), "\u{1b}[2Jroot\nbo");
    assert_eq!(recorded, "operator/admin/ana: \u{fffd}[2Jroot\u{fffd}bo");
    assert_eq!(actor(None, "bo"), "bo");
    assert_eq!(actor(None, &"é".repeat(1000)), "é".repeat(128));
}
