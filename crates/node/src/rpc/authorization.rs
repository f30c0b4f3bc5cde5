//! The caller of a call, as its connection or its token proves, and whether it may make the call.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use meridian_directory::{Cluster, Transport};
use meridian_net::Caller;
use meridian_pki::{Claims, Holder, Secret};
use meridian_proto::CallingNode;
use meridian_types::Level;
use tonic::codegen::http::HeaderMap;
use tonic::codegen::http::header::AUTHORIZATION;
use tonic::{Extensions, Status};

use crate::cluster_view::view::Directory;
use crate::host::clock::wall_ms;
use crate::rpc::roles::Need;

/// The author of a call that was let through; an extension of it.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    /// `None`: the transport asks for no proof.
    pub(crate) holder: Option<Holder>,
    /// Of the certificate, if the holder comes by one.
    pub(crate) claims: Option<Arc<Claims>>,
    address: Option<SocketAddr>,
}

impl Principal {
    /// # Errors
    /// `PERMISSION_DENIED`: an order needs more than this caller may do.
    pub(crate) fn may(&self, level: Level) -> Result<(), Status> {
        match &self.holder {
            Some(holder) if !Need::Operator(level).is_met_by(holder) => {
                Err(denied(holder, Need::Operator(level)))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
impl Principal {
    /// By a token, or by a certificate with these claims.
    pub(crate) fn for_test(holder: Holder, claims: Option<Claims>) -> Self {
        Self { holder: Some(holder), claims: claims.map(Arc::new), address: None }
    }
}

impl fmt::Display for Principal {
    /// For the record of changes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.holder {
            Some(holder) => write!(f, "{holder}")?,
            None => f.write_str("not authenticated")?,
        }
        match self.address {
            Some(address) => write!(f, " from {}", address.ip().to_canonical()),
            None => Ok(()),
        }
    }
}

fn denied(met: &Holder, need: Need) -> Status {
    Status::permission_denied(format!("{met} may not do this: it takes {}", need.in_words()))
}

/// Whether a call comes from a voter of the directory, present or former (which may lead it yet), as
/// far as this node knows.
/// `refusal`: what becomes of another node, in the text of the error.
///
/// # Errors
/// `PERMISSION_DENIED`.
#[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
pub(crate) fn votes_in_directory(
    directory: &Directory,
    caller: &Extensions,
    refusal: &str,
) -> Result<(), Status> {
    let Some(CallingNode(node)) = caller.get::<CallingNode>() else { return Ok(()) };
    match directory.known().cluster.may_vote_in_directory(*node) {
        true => Ok(()),
        false => Err(Status::permission_denied(format!(
            "node {node} does not vote in the directory, and {refusal}"
        ))),
    }
}

/// The view of a node, by which it judges callers.
#[derive(Clone, Copy)]
pub(crate) struct Judge<'a> {
    pub(crate) cluster: &'a Cluster,
    /// The id of the cluster that this node has a certificate of. `None`: it has no certificate.
    pub(crate) own: Option<&'a str>,
    /// Since the Unix epoch.
    pub(crate) now: Duration,
}

impl<'a> Judge<'a> {
    /// At this moment. `own`: of this node's certificate, if it has one.
    pub(crate) fn new(cluster: &'a Cluster, own: Option<&'a Claims>) -> Self {
        let own = own.map(|claims| claims.subject.cluster.as_str());
        Self { cluster, own, now: Duration::from_millis(wall_ms()) }
    }

    /// The caller, if it may make a call that needs this. `caller`: the connection's; `None` for a
    /// call within the process.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` or `PERMISSION_DENIED`, with what was met and what is wanted.
    pub(crate) fn let_through(
        self,
        caller: Option<&Caller>,
        headers: &HeaderMap,
        need: Need,
    ) -> Result<Principal, Status> {
        let address = caller.and_then(|caller| caller.address);
        let holder = self.holder(caller, headers)?;
        match &holder {
            _ if need == Need::Nothing => {}
            Some(holder) if need.is_met_by(holder) => {}
            Some(holder) => return Err(denied(holder, need)),
            None if self.cluster.trust.transport < Transport::Require => {}
            None => {
                let how = match caller.is_some_and(|caller| caller.has_tls) {
                    true => "this connection shows none",
                    false => "this connection is in the clear",
                };
                return Err(Status::unauthenticated(format!(
                    "the call needs {}, over mutual TLS: {how}",
                    need.in_words()
                )));
            }
        }
        let claims = caller.and_then(|caller| caller.claims.clone()).and_then(Result::ok);
        Ok(Principal { holder, claims, address })
    }

    /// The holder that the caller proves to be. `None`: it shows nothing.
    fn holder(
        self,
        caller: Option<&Caller>,
        headers: &HeaderMap,
    ) -> Result<Option<Holder>, Status> {
        let caller = caller.filter(|caller| caller.has_tls);
        match caller.and_then(|caller| caller.claims.as_ref()) {
            Some(Ok(claims)) => {
                self.is_valid(claims).map_err(Status::unauthenticated)?;
                return Ok(Some(claims.subject.holder.clone()));
            }
            Some(Err(nameless)) => return Err(Status::unauthenticated(nameless.to_string())),
            None => {}
        }
        match headers.get(AUTHORIZATION) {
            None => Ok(None),
            // In the clear it would have been told to all on the way.
            Some(_) if caller.is_none() => Ok(None),
            Some(value) => {
                let token = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
                let malformed = || Status::unauthenticated("the operator's token is malformed");
                self.operator(token.ok_or_else(malformed)?).map(Some)
            }
        }
    }

    /// Whether a connection may stay open, by the claims of its certificate; `None`: it is in the
    /// clear, where streams of other processes would outlive the transport that let them in.
    pub(crate) fn may_stay(self, claims: Option<&Claims>) -> bool {
        match claims {
            Some(claims) => self.is_valid(claims).is_ok(),
            None => self.cluster.trust.transport < Transport::Require,
        }
    }

    /// Whether a certificate that an authority vouches for is believed still.
    ///
    /// # Errors
    /// Why not, for people.
    pub(crate) fn is_valid(self, claims: &Claims) -> Result<(), String> {
        let Claims { subject, not_before, not_after, .. } = claims;
        if let Some(own) = self.own.filter(|own| *own != subject.cluster) {
            return Err(format!(
                "this node is of cluster {own}, and the certificate is of cluster {}",
                subject.cluster
            ));
        }
        // It was valid when the connection began.
        if *not_after < self.now {
            return Err(format!("the certificate of {} has expired", subject.holder));
        }
        let trust = &self.cluster.trust;
        let revoked_before_ms = match &subject.holder {
            Holder::Node(id) => {
                if self.cluster.present_node(*id).is_none() {
                    return Err(format!("there is no node {id} in the cluster, or it was removed"));
                }
                trust.revoked_before_ms.get(id).copied()
            }
            // With authorities of their own, operators decide on gateways by what they issue.
            Holder::Gateway(name) => match trust.gateways.get(name) {
                None if !trust.authorities.is_empty() => {
                    return Err(format!("there is no gateway {name} in the cluster"));
                }
                revoked => revoked.copied(),
            },
            // The cluster's own authority issues none.
            Holder::Operator { .. } | Holder::Observer(_) if !trust.authorities.is_empty() => {
                return Err(format!("{} comes by a token in this cluster", subject.holder));
            }
            Holder::Operator { .. } | Holder::Observer(_) => None,
        };
        let revoked_before = Duration::from_millis(revoked_before_ms.unwrap_or(0));
        if *not_before < revoked_before {
            return Err(format!("the certificate of {} was revoked", subject.holder));
        }
        Ok(())
    }

    /// The operator of this token.
    fn operator(self, token: &str) -> Result<Holder, Status> {
        let digest = Secret::digest(token);
        let operators = self.cluster.trust.operators.values();
        let found = operators.filter(|operator| operator.sha256 == digest).find(|operator| {
            let now_ms = self.now.as_millis();
            operator.expires_at_ms.is_none_or(|expires| u128::from(expires) > now_ms)
        });
        let operator = found.ok_or_else(|| {
            Status::unauthenticated("the operator's token is not known, or has expired")
        })?;
        Ok(Holder::Operator { level: operator.level, name: operator.name.clone() })
    }
}

#[cfg(test)]
mod tests;
