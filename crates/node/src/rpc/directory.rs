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
        // Where certificates come from elsewhere, the node does not have the key of their authority.
        if self.directory.known().cluster.trust.authorities.is_empty() {
            let text = "the cluster has no authority of its own: operators come by certificates";
            return Err(Status::permission_denied(text));
        }
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
mod tests;
