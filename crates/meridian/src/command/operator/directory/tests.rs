//! Against a directory of three nodes in this process, which keeps a real [`Cluster`].

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use meridian_directory::Authority;
use meridian_net::Listener;
use meridian_net::tls::{self, Identity, PemFile, Versions};
use meridian_pki::{self as pki, Holder, KeyAndRequest, Subject, pem_fingerprint};
use meridian_proto::directory::directory_server;
use meridian_proto::node_id_to_wire;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tonic::{Request, Response, Status};

use super::*;
use crate::command::operator::{format, samples};

/// The state of the nodes.
struct State {
    cluster: Cluster,
    changes: Vec<wire::ChangeRecord>,
    leader: Option<NodeId>,
    /// The next change is made, and then its call fails as if the leader had been lost.
    lose_answer: bool,
    /// No caller proves to be an operator.
    refuses: bool,
    asked: Vec<NodeId>,
}

struct Fake {
    node: NodeId,
    state: Arc<Mutex<State>>,
}

#[tonic::async_trait]
impl directory_server::Directory for Fake {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::ClusterState, Status>> + Send>>;

    async fn renew(
        &self,
        _: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn follow(
        &self,
        _: Request<wire::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn execute(
        &self,
        request: Request<wire::ExecuteRequest>,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        let mut state = self.state.lock();
        state.asked.push(self.node);
        if !state.cluster.directory_voters.contains(&self.node) {
            return Err(Status::failed_precondition("this node does not vote in the directory"));
        }
        if state.leader != Some(self.node) {
            let result = Some(execute_response::Result::NotLeader(node_id_to_wire(state.leader)));
            return Ok(Response::new(wire::ExecuteResponse { result }));
        }
        let request = request.into_inner();
        let change = serde_json::from_slice(&request.change_json).unwrap();
        let result = match state.cluster.after(&change) {
            Ok(after) => {
                let version = after.version;
                state.cluster = after;
                let wire::ExecuteRequest { change_json, actor } = request;
                state.changes.push(wire::ChangeRecord { version, time_ms: 1, actor, change_json });
                if std::mem::take(&mut state.lose_answer) {
                    return Err(Status::unknown("the directory's leader was lost"));
                }
                execute_response::Result::Done(wire::ClusterState { json: json(&state.cluster) })
            }
            Err(refused) => execute_response::Result::Refused(refused.to_string()),
        };
        Ok(Response::new(wire::ExecuteResponse { result: Some(result) }))
    }

    async fn add_admin(
        &self,
        _: Request<wire::AddAdminRequest>,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn tell_token_uses(
        &self,
        _: Request<wire::TokenUses>,
    ) -> Result<Response<wire::TokenUsesTold>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn inspect(
        &self,
        _: Request<wire::InspectRequest>,
    ) -> Result<Response<wire::InspectResponse>, Status> {
        let state = self.state.lock();
        if state.refuses {
            return Err(Status::unauthenticated("the call needs an operator"));
        }
        let mut response = wire::InspectResponse {
            cluster: Some(wire::ClusterState { json: json(&state.cluster) }),
            ..Default::default()
        };
        if state.cluster.directory_voters.contains(&self.node) {
            response.leader = node_id_to_wire(state.leader);
            response.changes = state.changes.iter().rev().cloned().collect();
        }
        if state.leader == Some(self.node) {
            response.contacts =
                vec![wire::NodeContact { node_id: 1, age_ms: 5, reports: Vec::new() }];
        }
        Ok(Response::new(response))
    }
}

fn json(cluster: &Cluster) -> bytes::Bytes {
    serde_json::to_vec(cluster).unwrap().into()
}

/// Nodes 1 and 4, which vote in the directory, and 2, which does not; node 4 leads.
async fn serve() -> (Arc<Mutex<State>>, Vec<String>) {
    let mut cluster = samples::cluster();
    let mut listeners = Vec::new();
    for node in [1, 2, 4].map(NodeId) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        cluster.nodes.get_mut(&node).unwrap().rpc_address =
            listener.local_addr().unwrap().to_string();
        listeners.push((node, listener));
    }
    // No server listens there.
    for node in [3, 5, 6].map(NodeId) {
        cluster.nodes.get_mut(&node).unwrap().rpc_address = format!("127.0.0.1:{node}");
    }
    let addresses =
        listeners.iter().map(|(_, listener)| listener.local_addr().unwrap().to_string()).collect();
    let state = Arc::new(Mutex::new(State {
        cluster,
        changes: Vec::new(),
        leader: Some(NodeId(4)),
        lose_answer: false,
        refuses: false,
        asked: Vec::new(),
    }));
    for (node, listener) in listeners {
        let service =
            directory_server::DirectoryServer::new(Fake { node, state: Arc::clone(&state) });
        let incoming = futures::stream::unfold(listener, |listener| async {
            let connection = listener.accept().await.map(|(connection, _)| connection);
            Some((connection, listener))
        });
        tokio::spawn(
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
        );
    }
    (state, addresses)
}

fn directory(seeds: &[&String]) -> Directory {
    Directory::with(seeds.iter().map(|seed| (*seed).clone()).collect(), Access::open())
}

fn add_region(name: &str) -> Change {
    Change::AddRegion { name: name.to_owned() }
}

#[tokio::test]
async fn any_node_leads_to_the_leader() {
    let (_, addresses) = serve().await;
    for seed in &addresses {
        let view = directory(&[seed]).inspect(10).await.unwrap();
        assert_eq!(
            (view.leader, view.leader_address.as_deref()),
            (Some(NodeId(4)), Some(addresses[2].as_str()))
        );
    }
}

#[tokio::test]
async fn without_a_leader_the_newest_cluster_is_shown_and_without_nodes_the_reasons() {
    let (state, addresses) = serve().await;
    state.lock().leader = None;
    let view = directory(&[&addresses[1]]).inspect(0).await.unwrap();
    assert_eq!((view.leader, view.leader_address), (None, None));
    assert_eq!(view.cluster.version, 7);
    let error = directory(&[&"127.0.0.1:1".to_owned()]).inspect(0).await.unwrap_err().to_string();
    assert!(
        error.contains("no node of the cluster answers") && error.contains("127.0.0.1:1: "),
        "{error}"
    );
}

#[tokio::test]
async fn changes_go_to_the_leader_and_follow_it() {
    let (state, addresses) = serve().await;
    let mut directory = directory(&[&addresses[1]]);
    let cluster = directory.execute(&add_region("region-4")).await.unwrap();
    assert!(cluster.regions.contains(&"region-4".to_owned()));
    assert_eq!(state.lock().asked, [NodeId(4)]);
    assert_eq!(state.lock().changes[0].actor, actor());

    state.lock().leader = Some(NodeId(1));
    directory.execute(&add_region("region-5")).await.unwrap();
    assert_eq!(state.lock().asked, [4, 4, 1].map(NodeId));

    let error = directory.execute(&add_region("region-5")).await.unwrap_err().to_string();
    assert!(error.starts_with("refused: ") && error.contains("region-5"), "{error}");
    assert_eq!(state.lock().changes.len(), 2);
}

#[tokio::test]
async fn change_with_a_lost_answer_is_found_in_the_record_and_not_repeated() {
    let (state, addresses) = serve().await;
    state.lock().lose_answer = true;
    let cluster = directory(&[&addresses[0]]).execute(&add_region("region-4")).await.unwrap();
    assert!(cluster.regions.contains(&"region-4".to_owned()));
    assert_eq!(state.lock().changes.len(), 1);
}

#[tokio::test]
async fn context_names_the_nodes_of_today_after_any_command() {
    let (state, addresses) = serve().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("operator.toml");
    let context = Context {
        cluster: "00ff00ff00ff00ff".to_owned(),
        nodes: vec![addresses[1].clone()],
        authorities: "a certificate".to_owned(),
        identity: None,
        token: Some("secret".to_owned()),
    };
    context.save(&path).unwrap();
    let named = async || {
        let context = Context::load(&path).unwrap();
        let mut directory =
            Directory { context: Some((path.clone(), context)), ..directory(&[&addresses[1]]) };
        directory.inspect(0).await.unwrap();
        Context::load(&path).unwrap()
    };
    // A cluster whose authority is the operator's own: so is the file.
    assert_eq!(named().await, context);
    let certificate_pem = context.authorities.clone();
    let authority = Authority { certificate_pem, key: None, issues: true };
    state.lock().cluster.trust.authorities = vec![authority];
    let at = |number: usize| addresses[number].clone();
    let down = |node: u64| format!("127.0.0.1:{node}");
    // Voters of the directory come first.
    let nodes = vec![at(0), at(2), down(6), at(1), down(3), down(5)];
    assert_eq!(named().await, Context { nodes, ..context.clone() });
    state.lock().cluster.nodes.get_mut(&NodeId(3)).unwrap().removed = true;
    assert!(named().await.nodes.iter().all(|node| *node != down(3)));
}

const CLUSTER: &str = "00ff00ff00ff00ff";

/// The address of a node with a certificate of this authority, which says nothing once TLS is there.
async fn node_of(authority: &pki::Authority, now: Duration) -> String {
    let asked = KeyAndRequest::new().unwrap();
    let subject = Subject { cluster: CLUSTER.to_owned(), holder: Holder::Node(NodeId(1)) };
    let hour = Duration::from_secs(3600);
    let issued = authority.issue(&asked.request, &subject, now, hour).unwrap();
    let pem = issued.chain_pem + &asked.key_pem;
    let file = PemFile::new("node.pem".into(), pem.into_bytes());
    let identity = Identity::from_pem(&file, &file).unwrap();
    let config = tls::public_server(vec![identity], Versions::Tls13, &[b"h2".as_slice()]);
    let server = tls::Server::new(config.unwrap()).unwrap();
    let mut listener = Listener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_address().unwrap().to_string();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await;
            drop(server.accept(stream, Duration::from_secs(5)).await);
        }
    });
    address
}

#[tokio::test]
async fn operator_that_is_refused_or_believes_a_replaced_authority_is_told_a_way_on() {
    let now = Duration::from_millis(format::now_ms());
    let authority = || pki::Authority::new(CLUSTER, now).unwrap();
    let (before, today) = (authority(), authority());
    let address = node_of(&today, now).await;
    let pem = before.certificate_pem();
    let file = PemFile::new("authority.pem".into(), pem.as_bytes().to_vec());
    let context = Access::secure(CLUSTER.to_owned(), &file, None).unwrap();
    let login = Access::pinned(CLUSTER.to_owned(), pem_fingerprint(pem).unwrap()).unwrap();
    for access in [context, login] {
        let mut directory = Directory::with(vec![address.clone()], access);
        let error = directory.inspect(0).await.unwrap_err().to_string();
        assert!(error.contains("may have been replaced"), "{error}");
        assert!(error.contains("operators login-token"), "{error}");
    }
    let (state, addresses) = serve().await;
    state.lock().refuses = true;
    let error = directory(&[&addresses[0]]).inspect(0).await.unwrap_err().to_string();
    assert!(error.contains("meridian login") && error.contains("--context"), "{error}");
}
