//! Certificates for processes of the cluster, issued by the directory's leader.

use std::sync::Arc;

use meridian_directory::{Change, Cluster, Member};
use meridian_failover::ExecuteFailure;
use meridian_pki::{Holder, Secret, sha256_hex};
use meridian_proto::directory::{self as wire, certify_response, membership_server};
use meridian_types::NodeId;
use parking_lot::RwLock;
use tokio::sync::Semaphore;
use tonic::{Request, Response, Status};

use crate::cluster_view::certificates::issue;
use crate::cluster_view::view::Directory;
use crate::cluster_view::wire::cluster_to_wire;
use crate::directory_group::leader::DirectoryVoter;
use crate::host::clock::wall_ms;
use crate::rpc::authorization::{Judge, Principal};

/// A request for a certificate, with the secret of an invitation: strangers send them.
const MAX_MESSAGE_BYTES: usize = 16 << 10;
/// Joins carried out at a time. Each is a change of the directory.
const JOINS: usize = 4;

/// Serves certificates.
#[derive(Clone)]
pub(crate) struct MembershipService {
    pub(crate) directory: Arc<Directory>,
    /// While this node votes in the directory.
    pub(crate) voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
    joins: Arc<Semaphore>,
}

/// Why there is no certificate here.
enum Not {
    Refused(String),
    /// This node does not lead the directory.
    Here,
}

impl MembershipService {
    pub(crate) fn new(
        directory: Arc<Directory>,
        voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
    ) -> Self {
        Self { directory, voter, joins: Arc::new(Semaphore::new(JOINS)) }
    }

    pub(crate) fn into_server(self) -> membership_server::MembershipServer<Self> {
        membership_server::MembershipServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// The leader of the directory, if that is this node, with the cluster as it is committed.
    async fn leader(&self) -> Result<(Arc<DirectoryVoter>, Cluster), Not> {
        let voter = self.voter.read().clone().ok_or(Not::Here)?;
        voter.voter.confirm().await.map_err(|_| Not::Here)?;
        let cluster = voter.committed().ok_or(Not::Here)?;
        Ok((voter, cluster))
    }

    async fn join(
        &self,
        secret: &str,
        request: &[u8],
        principal: Option<&Principal>,
    ) -> Result<wire::Certified, Not> {
        let (voter, cluster) = self.leader().await?;
        let refused = |text: &str| Not::Refused(text.to_owned());
        let sha256 = Secret::digest(secret);
        let mut invitations = cluster.trust.invitations.iter();
        let (id, invitation) = invitations
            .find(|(_, invitation)| invitation.sha256 == sha256)
            .ok_or_else(|| refused("the join token is not known: it was never made, or is void"))?;
        if invitation.expires_at_ms <= wall_ms() {
            return Err(refused("the join token has expired"));
        }
        let holder = match &invitation.member {
            Member::Node(node) => Holder::Node(*node),
            Member::Gateway(name) => Holder::Gateway(name.clone()),
        };
        // Before it is used: a request that cannot be answered uses nothing.
        let certified = certified(&cluster, holder, request)?;
        let digest = sha256_hex(request);
        if invitation.used_by.as_ref() != Some(&digest) {
            let change = Change::UseInvitation { id: *id, request: digest };
            let actor = principal.map(ToString::to_string).unwrap_or_default();
            match voter.execute(change, format!("join: {actor}")).await {
                Ok(_) => {}
                Err(ExecuteFailure::Refused(reason)) => return Err(Not::Refused(reason)),
                // The process asks again, with the same request.
                Err(ExecuteFailure::NotLeader | ExecuteFailure::Unknown) => return Err(Not::Here),
            }
        }
        Ok(certified)
    }

    /// The holder of the caller's certificate, or the node that an open cluster knows by its folder.
    fn holder(
        cluster: &Cluster,
        principal: Option<&Principal>,
        request: &wire::CertifyRequest,
    ) -> Result<Holder, Not> {
        if let Some(holder) = principal.and_then(|principal| principal.holder.clone()) {
            return Ok(holder);
        }
        let incarnation: String =
            request.incarnation.iter().map(|byte| format!("{byte:02x}")).collect();
        let id = NodeId(request.node_id);
        let known = cluster.present_node(id).and_then(|node| node.incarnation.as_ref());
        match known.filter(|known| **known == incarnation) {
            Some(_) => Ok(Holder::Node(id)),
            None => Err(Not::Refused(format!("this is not node {id}, as the cluster knows it"))),
        }
    }

    fn answer(&self, certified: Result<wire::Certified, Not>) -> Response<wire::CertifyResponse> {
        let result = match certified {
            Ok(certified) => certify_response::Result::Certified(certified),
            Err(Not::Refused(reason)) => certify_response::Result::Refused(reason),
            Err(Not::Here) => certify_response::Result::Ask(wire::Ask { addresses: self.others() }),
        };
        Response::new(wire::CertifyResponse { result: Some(result) })
    }

    /// The addresses at which the directory's leader may be: its own, or those of all voters.
    fn others(&self) -> Vec<String> {
        let known = self.directory.known();
        let voter = self.voter.read().clone();
        let leader = voter.and_then(|voter| voter.voter.group.status().leader);
        let voters = known.cluster.directory_voters.iter().copied();
        let asked = leader.map_or_else(|| voters.collect(), |leader| vec![leader]);
        let nodes = asked.into_iter().filter_map(|id| known.cluster.present_node(id));
        nodes.map(|node| node.rpc_address.clone()).collect()
    }
}

/// The certificate that the cluster's authority issues.
fn certified(cluster: &Cluster, holder: Holder, request: &[u8]) -> Result<wire::Certified, Not> {
    let is_gateway = matches!(holder, Holder::Gateway(_));
    let (subject, chain_pem) = issue(cluster, holder, request).map_err(Not::Refused)?;
    Ok(wire::Certified {
        chain_pem,
        authorities_pem: cluster.trust.authorities_pem(),
        subject: subject.to_string(),
        cluster: Some(cluster_to_wire(cluster, is_gateway)),
    })
}

#[tonic::async_trait]
impl membership_server::Membership for MembershipService {
    async fn join(
        &self,
        request: Request<wire::JoinRequest>,
    ) -> Result<Response<wire::CertifyResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let Ok(_permit) = self.joins.try_acquire() else {
            return Err(Status::resource_exhausted("too many processes join at this time"));
        };
        let wire::JoinRequest { secret, request } = request;
        let joined = self.join(&secret, &request, extensions.get::<Principal>()).await;
        if let Err(Not::Refused(reason)) = &joined {
            metrics::counter!("meridian_refused_joins_total").increment(1);
            // The process that asks says so itself; any that reaches this port can ask without end.
            tracing::debug!(reason, "a process that wanted to join was refused");
        }
        Ok(self.answer(joined))
    }

    async fn certify(
        &self,
        request: Request<wire::CertifyRequest>,
    ) -> Result<Response<wire::CertifyResponse>, Status> {
        let (_, extensions, request) = request.into_parts();
        let certify = async {
            let (_, cluster) = self.leader().await?;
            let principal = extensions.get::<Principal>();
            // A certificate that was revoked since the call came gets no successor.
            if let Some(claims) = principal.and_then(|principal| principal.claims.as_ref()) {
                let own = cluster.id.as_deref();
                let judge = Judge { own, ..Judge::new(&cluster, None) };
                judge.is_valid(claims).map_err(Not::Refused)?;
            }
            let holder = Self::holder(&cluster, principal, &request)?;
            certified(&cluster, holder, &request.request)
        };
        // The process knows its cluster, whose state may be large.
        let certified =
            certify.await.map(|certified| wire::Certified { cluster: None, ..certified });
        Ok(self.answer(certified))
    }
}

#[cfg(test)]
mod tests;
