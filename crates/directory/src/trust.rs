//! Trust within the cluster: how its processes talk to each other, the authorities that they
//! believe, operators, gateways, and invitations to join.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use meridian_types::{Level, NodeId};
use serde::{Deserialize, Serialize};

/// How processes of the cluster talk to each other. Each way can be had from its neighbours alone,
/// so that no two nodes are more than a step apart where each step waits for all of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Transport {
    /// In the clear, and every call is believed.
    #[default]
    Off,
    /// TLS is accepted, and not used.
    Allow,
    /// TLS is used where the other side has it; connections in the clear are accepted.
    Prefer,
    /// Mutual TLS alone, and every call needs its role.
    Require,
}

impl Transport {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Allow => "allow",
            Self::Prefer => "prefer",
            Self::Require => "require",
        }
    }

    /// Whether processes dial with TLS.
    #[must_use]
    pub fn dials_tls(self) -> bool {
        self >= Self::Prefer
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The time before which no certificate of a gateway holds that was removed.
pub(crate) const REMOVED: u64 = u64::MAX;

/// The key of an authority, as PEM. Its `Debug` form does not show it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AuthorityKey(String);

impl AuthorityKey {
    #[must_use]
    pub fn new(pem: String) -> Self {
        Self(pem)
    }

    /// The key, to sign with.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for AuthorityKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AuthorityKey")
    }
}

/// An authority whose certificates the cluster believes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Authority {
    pub certificate_pem: String,
    /// The directory's voters alone have it. `None` elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<AuthorityKey>,
    /// It issues new certificates. One does.
    pub issues: bool,
}

/// An operator that shows a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Operator {
    pub name: String,
    /// SHA-256 of the token, in hex.
    pub sha256: String,
    pub level: Level,
    /// Wall clock, milliseconds since the Unix epoch. `None`: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at_ms: Option<u64>,
    pub created_at_ms: u64,
}

/// A process that is to get a certificate.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Member {
    Node(NodeId),
    Gateway(String),
}

/// An invitation to a process: a join token, as the cluster knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Invitation {
    pub member: Member,
    /// SHA-256 of the token's secret, in hex.
    pub sha256: String,
    /// Wall clock, milliseconds since the Unix epoch.
    pub expires_at_ms: u64,
    /// SHA-256 of the request that it was used with, in hex. The same request may come again, since
    /// its answer may have been lost; no other is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub used_by: Option<String>,
}

/// Trust within the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    #[serde(default)]
    pub transport: Transport,
    /// All are believed. Empty where processes have certificates of an operator's own authority.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub authorities: Vec<Authority>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub operators: BTreeMap<u64, Operator>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_operator_id: u64,
    /// Gateways that may have certificates, with the time in milliseconds since the Unix epoch
    /// before which none holds.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gateways: BTreeMap<String, u64>,
    /// Nodes of which certificates were revoked: those that hold from before the time, in
    /// milliseconds since the Unix epoch, are refused.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub revoked_before_ms: BTreeMap<NodeId, u64>,
    /// By number, which is never given twice.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub invitations: BTreeMap<u64, Invitation>,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub last_invitation_id: u64,
    /// The voters that the directory gets once all of them have joined: it is founded by one node.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub founders: BTreeSet<NodeId>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde wants it so")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Trust {
    /// Whether nothing was ever set.
    pub(crate) fn is_new(&self) -> bool {
        *self == Self::default()
    }

    /// For all but the directory's voters.
    pub(crate) fn hide_keys(&mut self) {
        self.authorities.iter_mut().for_each(|authority| authority.key = None);
    }

    /// For people.
    pub(crate) fn hide_hashes(&mut self) {
        self.operators.values_mut().for_each(|operator| operator.sha256.clear());
        self.invitations.values_mut().for_each(|invitation| invitation.sha256.clear());
    }

    /// No process joins as the member by an invitation from before.
    pub(crate) fn forget_invitations_of(&mut self, member: &Member) {
        self.invitations.retain(|_, invitation| invitation.member != *member);
    }

    /// The time in milliseconds since the Unix epoch before which no certificate of a member holds;
    /// 0: none was revoked.
    #[must_use]
    pub fn revoked_before_ms(&self, member: &Member) -> u64 {
        let revoked = match member {
            Member::Node(id) => self.revoked_before_ms.get(id),
            Member::Gateway(name) => self.gateways.get(name),
        };
        revoked.copied().unwrap_or(0)
    }

    /// The gateways that were not removed.
    pub fn present_gateways(&self) -> impl Iterator<Item = &String> {
        let present = self.gateways.iter().filter(|(_, revoked)| **revoked != REMOVED);
        present.map(|(name, _)| name)
    }

    /// The authority that issues, with its key. `None`: certificates come from elsewhere, or this
    /// is no voter's view.
    #[must_use]
    pub fn issuing(&self) -> Option<(&Authority, &AuthorityKey)> {
        let issuer = self.issuer()?;
        Some((issuer, issuer.key.as_ref()?))
    }

    /// The authority that issues. `None`: certificates come from elsewhere.
    #[must_use]
    pub fn issuer(&self) -> Option<&Authority> {
        self.authorities.iter().find(|authority| authority.issues)
    }

    /// The certificates of all authorities, as one PEM text. Empty: there is none.
    #[must_use]
    pub fn authorities_pem(&self) -> String {
        self.authorities.iter().map(|authority| authority.certificate_pem.as_str()).collect()
    }
}
