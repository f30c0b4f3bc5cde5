//! The directory as other processes ask it: leases, changes, and the cluster to follow.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::Stream;
use meridian_directory::{AuthorityKey, Change, Operator, Transport};
use meridian_failover::ExecuteFailure;
use meridian_pki::{Authority, Holder};
use meridian_proto::directory::{self as wire, directory_server, execute_response};
use meridian_proto::{node_id_to_wire, shard_report_to_wire, speaks_for};
use meridian_types::Level;
use parking_lot::RwLock;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::cluster_view::view::Directory;
use crate::cluster_view::wire::{cluster_to_show, cluster_to_wire};
use crate::directory_group::leader::DirectoryVoter;
use crate::host::clock::wall_ms;
use crate::rpc::authorization::{Principal, votes_in_directory};
use crate::rpc::roles;
use crate::time_budget::FOLLOW_HEARTBEAT;

/// A node that the directory's leader has answered no question of so late may have missed
/// something, and says nothing: its followers look elsewhere. Longer than an election of the
/// directory takes.
const IN_TOUCH: Duration = Duration::from_secs(2);
/// One change at most: each is recorded, and sent to all followers.
const MAX_CHANGE_BYTES: usize = 32 << 10;
/// Changes told at once at most.
const MAX_CHANGES: u32 = 1000;

/// Serves nodes, gateways and operators what concerns the directory.
#[derive(Clone)]
pub(crate) struct DirectoryService {
    pub(crate) directory: Arc<Directory>,
    /// While this node votes in the directory.
    pub(crate) voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
}

impl DirectoryService {
    /// The parts of an order that are the directory's to give: an authority, whose key goes to its
    /// voters alone, and times.
    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn completed(&self, change: Change) -> Result<Change, Status> {
        match change {
            Change::AddAuthority { .. } => {}
            // Times are the leader's: an operator's clock may be any.
            Change::RevokeCertificates { member, .. } => {
                return Ok(Change::RevokeCertificates { member, before_ms: wall_ms() });
            }
            Change::Invite { invitation, .. } => {
                return Ok(Change::Invite { invitation, now_ms: wall_ms() });
            }
            change => return Ok(change),
        }
        let known = self.directory.known();
        let id = known.cluster.id.as_deref();
        let id = id.ok_or_else(|| Status::unavailable("the cluster has no id yet"))?;
        let made = Authority::new(id, Duration::from_millis(wall_ms()));
        let made = made.map_err(|error| Status::internal(error.to_string()))?;
        let authority = meridian_directory::Authority {
            certificate_pem: made.certificate_pem().to_owned(),
            key: Some(AuthorityKey::new(made.key_pem().to_owned())),
            issues: false,
        };
        Ok(Change::AddAuthority { authority })
    }

    fn voter(&self) -> Result<Arc<DirectoryVoter>, Status> {
        let voter = self.voter.read().clone();
        voter.ok_or_else(|| Status::failed_precondition("this node does not vote in the directory"))
    }

    /// Has the directory's leader make a change, if that is this node.
    async fn order(
        &self,
        change: Change,
        actor: String,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        let voter = self.voter()?;
        let token = match &change {
            Change::CreateToken { token } => Some(token.sha256.clone()),
            _ => None,
        };
        let result = match voter.execute(change, actor).await {
            Ok(cluster) => {
                execute_response::Result::Done(cluster_to_show(&cluster, token.as_deref()))
            }
            Err(ExecuteFailure::Refused(reason)) => execute_response::Result::Refused(reason),
            Err(ExecuteFailure::NotLeader) => {
                let leader =
                    voter.voter.group.leadership().err().and_then(|not_leading| not_leading.leader);
                execute_response::Result::NotLeader(node_id_to_wire(leader))
            }
            Err(ExecuteFailure::Unknown) => {
                return Err(Status::unknown(
                    "the directory's leader was lost: the change may have been made or not",
                ));
            }
        };
        Ok(Response::new(wire::ExecuteResponse { result: Some(result) }))
    }
}

#[tonic::async_trait]
impl directory_server::Directory for DirectoryService {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<wire::ClusterState, Status>> + Send>>;

    async fn renew(
        &self,
        request: Request<wire::RenewRequest>,
    ) -> Result<Response<wire::RenewResponse>, Status> {
        let (_, caller, request) = request.into_parts();
        speaks_for(&caller, request.node_id)?;
        let result = self.voter()?.renew(request).await;
        Ok(Response::new(wire::RenewResponse { result: Some(result) }))
    }

    async fn follow(
        &self,
        request: Request<wire::FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let (_, caller, request) = request.into_parts();
        // A gateway needs less than a node.
        let is_gateway = caller
            .get::<Principal>()
            .is_some_and(|principal| matches!(principal.holder, Some(Holder::Gateway(_))));
        let mut sent = request.known_version;
        let directory = Arc::clone(&self.directory);
        let mut known = directory.watch();
        let (states, stream) = mpsc::channel(4);
        tokio::spawn(async move {
            loop {
                let news = {
                    let known = known.borrow_and_update();
                    let cluster = &known.cluster;
                    // Version 0 is this node's configuration, which was never committed.
                    (cluster.version > sent)
                        .then(|| (cluster.version, cluster_to_wire(cluster, is_gateway)))
                };
                let is_in_touch =
                    || directory.knows_all_until(directory.now().saturating_sub(IN_TOUCH));
                let state = match news {
                    Some((version, state)) => {
                        sent = version;
                        Some(state)
                    }
                    None => is_in_touch().then(wire::ClusterState::default),
                };
                if let Some(state) = state
                    && states.send(Ok(state)).await.is_err()
                {
                    return;
                }
                tokio::select! {
                    () = states.closed() => return,
                    changed = tokio::time::timeout(FOLLOW_HEARTBEAT, known.changed()) => {
                        if let Ok(Err(_)) = changed {
                            return;
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn execute(
        &self,
        request: Request<wire::ExecuteRequest>,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        if request.change_json.len() > MAX_CHANGE_BYTES {
            return Err(Status::invalid_argument(format!(
                "field `change_json` has more than {MAX_CHANGE_BYTES} bytes"
            )));
        }
        let change: Change = serde_json::from_slice(&request.change_json)
            .map_err(|error| Status::invalid_argument(format!("field `change_json`: {error}")))?;
        let level = roles::of_change(&change)
            .ok_or_else(|| Status::permission_denied("this change is the directory's own"))?;
        let principal = extensions.get::<Principal>();
        principal.map_or(Ok(()), |principal| principal.may(level))?;
        leaves_an_operator(&change, principal)?;
        let change = self.completed(change)?;
        self.order(change, actor(principal, &request.actor)).await
    }

    async fn add_admin(
        &self,
        request: Request<wire::AddAdminRequest>,
    ) -> Result<Response<wire::ExecuteResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        votes_in_directory(&self.directory, &extensions, "adds no operator")?;
        let wire::AddAdminRequest { name, sha256, actor: said } = request;
        let (level, created_at_ms) = (Level::Admin, wall_ms());
        let operator = Operator { name, sha256, level, expires_at_ms: None, created_at_ms };
        self.order(Change::AddOperator { operator }, actor(extensions.get(), &said)).await
    }

    async fn tell_token_uses(
        &self,
        request: Request<wire::TokenUses>,
    ) -> Result<Response<wire::TokenUsesTold>, Status> {
        self.directory.token_uses().forward(&request.into_inner().uses);
        Ok(Response::new(wire::TokenUsesTold {}))
    }

    async fn inspect(
        &self,
        request: Request<wire::InspectRequest>,
    ) -> Result<Response<wire::InspectResponse>, Status> {
        let limit = request.into_inner().changes.min(MAX_CHANGES);
        let cluster = Some(cluster_to_show(&self.directory.known().cluster, None));
        let Ok(voter) = self.voter() else {
            return Ok(Response::new(wire::InspectResponse { cluster, ..Default::default() }));
        };
        let inspection = voter.inspect().await.unwrap_or_default();
        let status = voter.voter.group.status();
        let changes = voter.changes(limit).into_iter().map(|recorded| wire::ChangeRecord {
            version: recorded.version,
            time_ms: recorded.time_ms,
            actor: recorded.actor,
            change_json: serde_json::to_vec(&recorded.change.without_secrets())
                .unwrap_or_default()
                .into(),
        });
        let contacts = inspection.contacts.iter().map(|(node, contact)| wire::NodeContact {
            node_id: node.0,
            age_ms: contact.age_ms,
            reports: contact.reports.values().map(shard_report_to_wire).collect(),
        });
        let progress = inspection.progress.into_iter();
        Ok(Response::new(wire::InspectResponse {
            leader: node_id_to_wire(status.leader),
            term: status.term,
            cluster,
            changes: changes.collect(),
            progress: progress
                .map(|progress| wire::ShardProgress {
                    shard: progress.shard.0,
                    text: progress.text,
                })
                .collect(),
            contacts: contacts.collect(),
            token_uses: voter.token_uses(),
        }))
    }
}

/// A cluster that no operator can command any more stays so: a change that may lead there is ordered
/// by an operator that the cluster hears behind it, too. An entry of an operator shows nothing: its
/// token may be lost.
///
/// # Errors
/// `PERMISSION_DENIED`, with what to do first.
#[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
fn leaves_an_operator(change: &Change, principal: Option<&Principal>) -> Result<(), Status> {
    let holder = principal.and_then(|principal| principal.holder.as_ref());
    match (change, holder) {
        (
            Change::SetTransport { transport: Transport::Require },
            Some(Holder::Operator { level: Level::Admin, .. }),
        ) => Ok(()),
        (Change::SetTransport { transport: Transport::Require }, _) => {
            Err(Status::permission_denied(
                "operators alone command the cluster from then on, and this call shows none: \
                 `meridian operators add NAME --level admin` and `meridian login` come first, and \
                 then this with --context",
            ))
        }
        (Change::RemoveOperator { name }, Some(Holder::Operator { name: own, .. }))
            if name == own =>
        {
            Err(Status::permission_denied(
                "another operator of level `admin` has to remove this one, and so shows that it \
                 can command the cluster",
            ))
        }
        _ => Ok(()),
    }
}

/// The author of a change for the record: as the connection proves, and as the caller says, which
/// is bounded and without what a terminal would obey.
fn actor(principal: Option<&Principal>, said: &str) -> String {
    const MAX_CHARACTERS: usize = 128;
    let shown = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    let said: String = said.chars().take(MAX_CHARACTERS).map(shown).collect();
    match principal {
        Some(principal) if principal.holder.is_some() => format!("{principal}: {said}"),
        _ => said,
    }
}

#[cfg(test)]
mod tests {
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
        let dial = move |node| {
            Some(if node == nearest { address.clone() } else { "127.0.0.1:9".to_owned() })
        };
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
        let dial = move |node| {
            Some(if node == nearest { addresses.0.clone() } else { addresses.1.clone() })
        };
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
        until("it never hears the news", Box::new(move || known.known().cluster.version == 7))
            .await;
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
        directory
            .renewed(directory.now(), &Lease { ttl: Duration::from_secs(60), shards: Vec::new() });
        let service = DirectoryService { directory, voter: Arc::default() };
        let text = |state: wire::ClusterState| String::from_utf8(state.json.to_vec()).unwrap();
        let inspected = service
            .inspect(Request::new(wire::InspectRequest { changes: 9 }))
            .await
            .unwrap()
            .into_inner();
        let inspected = text(inspected.cluster.unwrap());
        assert!(
            inspected.contains("\"ci\"")
                && !inspected.contains(&hash)
                && !inspected.contains("5eed")
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
}
