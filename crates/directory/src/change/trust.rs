//! Transport, authorities, operators, gateways and invitations.

use meridian_types::Level;

use crate::change::names::check_name;
use crate::change::{Refused, ensure};
use crate::cluster::Cluster;
use crate::trust::{Authority, Invitation, Member, Operator, REMOVED, Transport, Trust};

/// Each is a handshake's work, and a certificate in every process.
const MAX_AUTHORITIES: usize = 4;
const MAX_OPERATORS: usize = 1000;
const MAX_GATEWAYS: usize = 10_000;
/// That were not used and have not expired.
const MAX_INVITATIONS: usize = 1000;
const MAX_PEM_BYTES: usize = 16 << 10;

fn check_hash(what: &str, hash: &str) -> Result<(), Refused> {
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    ensure(is_hash, || format!("{what} is kept as its SHA-256, 64 hex digits"))
}

fn is_lasting_admin(operator: &Operator) -> bool {
    operator.level == Level::Admin && operator.expires_at_ms.is_none()
}

impl Trust {
    fn check_new_token(&self, sha256: &str) -> Result<(), Refused> {
        ensure(self.operators.values().all(|known| known.sha256 != sha256), || {
            "this token exists already: have another one made".to_owned()
        })
    }
}

impl Cluster {
    /// A step to a neighbour alone: nodes hear of it one after the other.
    pub(super) fn set_transport(&mut self, transport: Transport) -> Result<(), Refused> {
        let now = self.trust.transport;
        let steps = (now as i8 - transport as i8).abs();
        ensure(steps <= 1, || {
            format!(
                "the transport is `{now}`: it becomes `{transport}` step by step (off, allow, prefer, require)"
            )
        })?;
        self.trust.transport = transport;
        Ok(())
    }

    pub(super) fn add_authority(&mut self, authority: &Authority) -> Result<(), Refused> {
        let trust = &mut self.trust;
        ensure(authority.certificate_pem.len() <= MAX_PEM_BYTES, || {
            format!("a certificate has at most {MAX_PEM_BYTES} bytes")
        })?;
        ensure(authority.key.is_some(), || "an authority has a key".to_owned())?;
        ensure(trust.authorities.len() < MAX_AUTHORITIES, || {
            format!("there are {MAX_AUTHORITIES} authorities already: remove one")
        })?;
        // Every process has to believe it before it issues.
        let issues = trust.authorities.is_empty();
        trust.authorities.push(Authority { issues, ..authority.clone() });
        Ok(())
    }

    /// `number` counts from 0, oldest first.
    pub(super) fn issue_with(&mut self, number: usize) -> Result<(), Refused> {
        let authorities = &mut self.trust.authorities;
        ensure(number < authorities.len(), || format!("there is no authority {number}"))?;
        (0..).zip(authorities).for_each(|(at, authority)| authority.issues = at == number);
        Ok(())
    }

    pub(super) fn remove_authority(&mut self, number: usize) -> Result<(), Refused> {
        let authorities = &mut self.trust.authorities;
        let found = authorities.get(number);
        let found = found.ok_or_else(|| Refused(format!("there is no authority {number}")))?;
        ensure(!found.issues, || {
            format!("authority {number} issues certificates: have another one issue them first")
        })?;
        authorities.remove(number);
        // Their tokens name the authority that was to be believed: only a thief can use them now.
        self.trust.invitations.clear();
        Ok(())
    }

    pub(super) fn add_operator(&mut self, operator: &Operator) -> Result<(), Refused> {
        check_name("operator", &operator.name, &['@'])?;
        check_hash("an operator's token", &operator.sha256)?;
        let trust = &mut self.trust;
        ensure(trust.operators.len() < MAX_OPERATORS, || {
            format!("there are {MAX_OPERATORS} operators already")
        })?;
        let is_known = trust.operators.values().any(|other| other.name == operator.name);
        ensure(!is_known, || {
            format!(
                "there is an operator {0} already: `meridian operators login-token {0}` prints another token",
                operator.name
            )
        })?;
        trust.check_new_token(&operator.sha256)?;
        trust.last_operator_id += 1;
        trust.operators.insert(trust.last_operator_id, operator.clone());
        Ok(())
    }

    pub(super) fn set_operator_token(
        &mut self,
        name: &str,
        sha256: &str,
        expires_at_ms: Option<u64>,
    ) -> Result<(), Refused> {
        check_hash("an operator's token", sha256)?;
        self.trust.check_new_token(sha256)?;
        let mut operators = self.trust.operators.values_mut();
        let operator = operators.find(|operator| operator.name == name);
        let operator = operator.ok_or_else(|| Refused(format!("there is no operator {name}")))?;
        let lasted = is_lasting_admin(operator);
        (operator.sha256, operator.expires_at_ms) = (sha256.to_owned(), expires_at_ms);
        if lasted { self.check_lasting_admin(name) } else { Ok(()) }
    }

    pub(super) fn remove_operator(&mut self, name: &str) -> Result<(), Refused> {
        let operators = &mut self.trust.operators;
        let before = operators.len();
        operators.retain(|_, operator| operator.name != name);
        ensure(operators.len() < before, || format!("there is no operator {name}"))?;
        self.check_lasting_admin(name)
    }

    /// Where operators come by certificates, none of them is here. `name`: the operator that was
    /// changed.
    fn check_lasting_admin(&self, name: &str) -> Result<(), Refused> {
        let Trust { authorities, operators, .. } = &self.trust;
        ensure(authorities.is_empty() || operators.values().any(is_lasting_admin), || {
            format!("{name} is the last operator of level `admin` whose token does not expire")
        })
    }

    pub(super) fn add_gateway(&mut self, name: &str) -> Result<(), Refused> {
        check_name("gateway", name, &[])?;
        let gateways = &mut self.trust.gateways;
        ensure(gateways.get(name) != Some(&REMOVED), || {
            format!(
                "there was a gateway {name}, whose certificates stay refused: take another name"
            )
        })?;
        ensure(!gateways.contains_key(name), || format!("there is a gateway {name} already"))?;
        ensure(gateways.len() < MAX_GATEWAYS, || {
            format!("there are {MAX_GATEWAYS} gateways already")
        })?;
        gateways.insert(name.to_owned(), 0);
        Ok(())
    }

    pub(super) fn remove_gateway(&mut self, name: &str) -> Result<(), Refused> {
        self.check_member(&Member::Gateway(name.to_owned()))?;
        // For ever: a certificate of it may be anywhere.
        self.trust.gateways.insert(name.to_owned(), REMOVED);
        self.trust.forget_invitations_of(&Member::Gateway(name.to_owned()));
        Ok(())
    }

    pub(super) fn revoke_certificates(
        &mut self,
        member: &Member,
        before_ms: u64,
    ) -> Result<(), Refused> {
        self.check_member(member)?;
        if let Member::Node(id) = member {
            ensure(!self.directory_voters.contains(id), || {
                format!(
                    "{} votes in the directory, which would lose its vote: set other directory voters first",
                    self.name_of(*id)
                )
            })?;
        }
        let before = match member {
            Member::Node(id) => self.trust.revoked_before_ms.entry(*id).or_default(),
            Member::Gateway(name) => self.trust.gateways.entry(name.clone()).or_default(),
        };
        // A certificate that was revoked stays so.
        *before = before_ms.max(*before);
        self.trust.forget_invitations_of(member);
        Ok(())
    }

    fn check_member(&self, member: &Member) -> Result<(), Refused> {
        match member {
            Member::Node(id) => self.live_node(*id).map(drop),
            Member::Gateway(name) => {
                let known = self.trust.gateways.get(name);
                ensure(known.is_some_and(|revoked| *revoked != REMOVED), || {
                    format!("there is no gateway {name}")
                })
            }
        }
    }

    /// Those that have expired by `now_ms` are forgotten.
    pub(super) fn invite(&mut self, invitation: &Invitation, now_ms: u64) -> Result<(), Refused> {
        self.check_member(&invitation.member)?;
        check_hash("a join token", &invitation.sha256)?;
        ensure(invitation.used_by.is_none(), || "a new invitation is not used".to_owned())?;
        ensure(!self.trust.authorities.is_empty(), || {
            "the cluster has no authority of its own, so that nothing can join by a token"
                .to_owned()
        })?;
        let trust = &mut self.trust;
        trust.invitations.retain(|_, known| known.expires_at_ms > now_ms);
        ensure(trust.invitations.len() < MAX_INVITATIONS, || {
            format!("{MAX_INVITATIONS} invitations have not expired")
        })?;
        let is_new = trust.invitations.values().all(|known| known.sha256 != invitation.sha256);
        ensure(is_new, || "this join token exists already: have another one made".to_owned())?;
        trust.last_invitation_id += 1;
        trust.invitations.insert(trust.last_invitation_id, invitation.clone());
        Ok(())
    }

    pub(super) fn use_invitation(&mut self, id: u64, request: &str) -> Result<(), Refused> {
        check_hash("a request", request)?;
        let invitation = self.trust.invitations.get_mut(&id);
        let invitation = invitation.ok_or_else(|| Refused("the join token is not known".into()))?;
        ensure(invitation.used_by.as_ref().is_none_or(|used| used == request), || {
            "the join token was used already: each works once; `meridian nodes join-token` or `gateways join-token` \
             prints another"
                .to_owned()
        })?;
        invitation.used_by = Some(request.to_owned());
        Ok(())
    }
}
