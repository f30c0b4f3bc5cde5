//! The one way from a cluster to the next: what changes there are, and how each is made or refused.

use std::collections::{BTreeMap, BTreeSet};

use meridian_types::{DatabaseId, Epoch, NodeId, Quota, Quotas, ShardId, V8Format};
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, Node};
use crate::database::{Database, FailoverMode, Rpo};
use crate::refused::{Refused, ensure};
use crate::report::FailoverReport;
use crate::shard::{Plan, Shard};
use crate::token::Token;
use crate::trust::{Authority, Invitation, Member, Operator, Transport};
use crate::webhook::WebhookSettings;

mod databases;
mod names;
mod nodes;
mod quotas;
mod shards;
mod tokens;
mod trust;

/// The one way from a [`Cluster`] to the next. Sent by operators and by the controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    // By the controller.
    /// The cluster gets the id that tells it from others.
    NameCluster {
        id: String,
    },
    /// A node spoke for the first time.
    RecordIncarnation {
        node: NodeId,
        incarnation: String,
    },
    /// `SwitchingOver`, `Active` or `Forming` to `Sealing`. A planned `Sealing` that cannot end
    /// becomes a failover.
    Seal {
        shard: ShardId,
        epoch: Epoch,
        to: Option<String>,
        planned: bool,
        since_ms: u64,
        cause: String,
    },
    /// `Sealing` to `Forming` of the next epoch. The commit point.
    Promote {
        shard: ShardId,
        voters: BTreeSet<NodeId>,
        preferred_leader: Option<NodeId>,
        report: FailoverReport,
    },
    /// `Forming` to `Active`: a leader of this epoch has reported.
    Activate {
        shard: ShardId,
        epoch: Epoch,
    },
    /// A leader has reported that its group's voters are those that the cluster names since
    /// `version`.
    #[serde(rename = "SettleVoters")]
    ConfirmVoters {
        shard: ShardId,
        epoch: Epoch,
        version: u64,
    },
    /// A node has shown what it had beyond the base of `epoch`: `transactions` that are known to
    /// have been committed, `at_most` with those that are undecided.
    ShowLoss {
        shard: ShardId,
        epoch: Epoch,
        node: NodeId,
        transactions: u64,
        at_most: u64,
        last_time_ms: u64,
    },
    /// Every node has dropped the database's data.
    EndDeletion {
        id: DatabaseId,
    },

    // By operators.
    /// `Active` to `SwitchingOver`.
    BeginSwitchover {
        shard: ShardId,
        to: String,
    },
    /// `SwitchingOver` to `Active`; a planned `Sealing` goes back to its own region in a new epoch.
    CancelSwitchover {
        shard: ShardId,
    },
    /// An operator orders a failover of a shard that has lost its primary region, knowing what is
    /// lost. Where the shard is sealed already, the order changes its target.
    ForceFailover {
        shard: ShardId,
        epoch: Epoch,
        to: Option<String>,
        since_ms: u64,
        cause: String,
    },
    AddRegion {
        name: String,
    },
    RemoveRegion {
        name: String,
    },
    /// Gets the next id, and joins as a replica of every shard; `SetVoters` makes it a voter.
    AddNode {
        node: Node,
    },
    /// Refused while it votes anywhere.
    RemoveNode {
        node: NodeId,
    },
    /// `AddNode`, takes the old node's place among all voters, and `RemoveNode`, at once.
    ReplaceNode {
        old: NodeId,
        new: Node,
    },
    /// Of an `Active` shard: its leader changes the group's membership accordingly.
    SetVoters {
        shard: ShardId,
        voters: BTreeSet<NodeId>,
    },
    SetDirectoryVoters {
        voters: BTreeSet<NodeId>,
    },
    /// `database.shard` is chosen by the change: a shard of the primary region with the fewest
    /// databases, and a new shard if there is none or `own_shard` is said.
    CreateDatabase {
        id: DatabaseId,
        database: Database,
        own_shard: bool,
    },
    /// The database is gone for clients; it stays among those that are being deleted until
    /// `EndDeletion`.
    DeleteDatabase {
        id: DatabaseId,
    },
    SetDatabase {
        id: DatabaseId,
        failover: Option<FailoverMode>,
        rpo: Option<Rpo>,
        primary_region: Option<String>,
        #[serde(default)]
        v8_format: Option<V8Format>,
        #[serde(default)]
        queue_paused: Option<bool>,
    },
    /// Sets these quotas, and removes those; others stay. The directory's leader of a version without
    /// quotas knows no such change, and refuses it.
    SetQuotas {
        of: QuotaOwner,
        set: Quotas,
        remove: BTreeSet<Quota>,
    },
    /// Sets the webhook of a queue, or what is said of it. The directory's leader of a version
    /// without webhooks knows no such change, and refuses it.
    SetWebhook {
        id: DatabaseId,
        queue: String,
        settings: WebhookSettings,
    },
    /// The next key of a webhook becomes the current one.
    RotateWebhookKey {
        id: DatabaseId,
        queue: String,
    },
    RemoveWebhook {
        id: DatabaseId,
        queue: String,
    },
    CreateToken {
        token: Token,
    },
    /// A token gets another secret. Its present secret is valid, too, up to `previous_until_ms` of the
    /// wall clock; `None`: no more.
    RotateToken {
        id: u64,
        /// As [`Token::sha256`].
        sha256: String,
        previous_until_ms: Option<u64>,
    },
    RevokeToken {
        id: u64,
    },
    SetTransport {
        transport: Transport,
    },
    /// The directory's leader makes the authority, when an operator orders one.
    AddAuthority {
        authority: Authority,
    },
    /// Certificates come from this authority from now on; authorities count from 0, oldest first.
    IssueWith {
        number: usize,
    },
    RemoveAuthority {
        number: usize,
    },
    AddOperator {
        operator: Operator,
    },
    /// A new token in the place of an operator's present one, which is refused from now on. The
    /// directory's leader of a version before it knows no such change, and refuses it.
    SetOperatorToken {
        name: String,
        /// As [`Operator::sha256`].
        sha256: String,
        expires_at_ms: Option<u64>,
    },
    RemoveOperator {
        name: String,
    },
    AddGateway {
        name: String,
    },
    RemoveGateway {
        name: String,
    },
    /// Certificates that hold from before `before_ms` are refused from now on, and the invitations
    /// of the process are void.
    RevokeCertificates {
        member: Member,
        before_ms: u64,
    },
    Invite {
        invitation: Invitation,
        now_ms: u64,
    },
    /// By the directory's leader: a process has shown the secret of an invitation, with the request
    /// of this SHA-256.
    UseInvitation {
        id: u64,
        request: String,
    },
}

/// The database or token that quotas bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum QuotaOwner {
    Database(DatabaseId),
    Token(u64),
}

impl Change {
    /// For the record of changes: without keys, and without the hash of a token, of which a short
    /// secret could be guessed.
    #[must_use]
    pub fn without_keys(&self) -> Self {
        let mut change = self.clone();
        match &mut change {
            Self::SetWebhook { settings, .. } => settings.hide_keys(),
            Self::CreateToken { token } => token.hide_hashes(None),
            Self::RotateToken { sha256, .. } | Self::SetOperatorToken { sha256, .. } => {
                sha256.clear();
            }
            Self::AddAuthority { authority } => authority.key = None,
            Self::AddOperator { operator } => operator.sha256.clear(),
            Self::Invite { invitation, .. } => invitation.sha256.clear(),
            _ => {}
        }
        change
    }

    /// For logs and people: also without that by which the directory knows a node.
    #[must_use]
    pub fn without_secrets(&self) -> Self {
        let mut change = self.without_keys();
        match &mut change {
            Change::RecordIncarnation { incarnation, .. } => incarnation.clear(),
            Change::AddNode { node } | Change::ReplaceNode { new: node, .. } => {
                node.incarnation = None
            }
            _ => {}
        }
        change
    }

    /// The change as it was ordered: without the parts that are the directory's leader's to fill in,
    /// which are an authority and times.
    #[must_use]
    pub fn without_leaders_part(&self) -> Self {
        let mut change = self.clone();
        match &mut change {
            Self::AddAuthority { authority } => {
                *authority = Authority { certificate_pem: String::new(), key: None, issues: false };
            }
            Self::RevokeCertificates { before_ms, .. } => *before_ms = 0,
            Self::Invite { now_ms, .. } => *now_ms = 0,
            _ => {}
        }
        change
    }

    /// The shard that is all that this change touches.
    fn only_shard(&self) -> Option<ShardId> {
        match self {
            Self::Seal { shard, .. }
            | Self::Promote { shard, .. }
            | Self::Activate { shard, .. }
            | Self::ConfirmVoters { shard, .. }
            | Self::ShowLoss { shard, .. }
            | Self::CancelSwitchover { shard } => Some(*shard),
            _ => None,
        }
    }

    /// About how many bytes it takes where it is written down.
    pub fn size(&self) -> usize {
        const FIXED: usize = 600;
        let text = match self {
            Self::Seal { to, cause, .. } => to.as_ref().map_or(0, String::len) + cause.len(),
            Self::Promote { voters, report, .. } => {
                let former: usize = report.former_voters.iter().map(BTreeSet::len).sum();
                let ids = voters.len() + report.old_voters.len() + former;
                report.from_region.len() + report.to_region.len() + report.cause.len() + 20 * ids
            }
            Self::SetWebhook { settings, .. } => settings.url.as_ref().map_or(0, String::len),
            Self::CreateToken { token } => token.size(),
            Self::AddAuthority { authority } => 2 * authority.certificate_pem.len(),
            _ => 0,
        };
        FIXED + text
    }
}

impl Cluster {
    /// The cluster after `change`; its version is one higher.
    ///
    /// # Errors
    /// [`Refused`], saying what is in the way. A change that finds its own result (a repeated
    /// `Promote`) is refused too: the caller looks at the cluster again.
    pub fn after(&self, change: &Change) -> Result<Cluster, Refused> {
        let mut next = self.clone();
        next.make(change)?;
        ensure(next != *self, || "that is how it is already".to_owned())?;
        for (id, shard) in
            next.shards.iter().filter(|(id, shard)| self.shards.get(id) != Some(*shard))
        {
            next.check_voters(*id, shard)?;
        }
        next.version += 1;
        Ok(next)
    }

    /// Makes `change` in place: as [`after`](Self::after), without a copy of everything where one
    /// shard is all that changes. Nothing has changed where it is refused.
    ///
    /// # Errors
    /// [`Refused`], as there.
    pub fn apply(&mut self, change: &Change) -> Result<(), Refused> {
        let Some(id) = change.only_shard() else {
            *self = self.after(change)?;
            return Ok(());
        };
        let before = self.shards.get(&id).cloned();
        let made = self.make(change).and_then(|()| {
            let now = self.shards.get(&id);
            ensure(now != before.as_ref(), || "that is how it is already".to_owned())?;
            now.map_or(Ok(()), |shard| self.check_voters(id, shard))
        });
        match (made, before) {
            (Ok(()), _) => {
                self.version += 1;
                Ok(())
            }
            (Err(refused), before) => {
                if let Some(before) = before {
                    self.shards.insert(id, before);
                }
                Err(refused)
            }
        }
    }

    #[allow(clippy::too_many_lines, reason = "one arm for each change")]
    fn make(&mut self, change: &Change) -> Result<(), Refused> {
        match change {
            Change::NameCluster { id } => self.name_cluster(id),
            Change::RecordIncarnation { node, incarnation } => {
                self.record_incarnation(*node, incarnation)
            }
            Change::Seal { shard, epoch, to, planned, since_ms, cause } => {
                let plan = Plan {
                    to: to.clone(),
                    planned: *planned,
                    since_ms: *since_ms,
                    cause: cause.clone(),
                };
                self.seal(*shard, *epoch, plan)
            }
            Change::Promote { shard, voters, preferred_leader, report } => {
                self.promote(*shard, voters, *preferred_leader, report)
            }
            Change::Activate { shard, epoch } => self.activate(*shard, *epoch),
            Change::ConfirmVoters { shard, epoch, version } => {
                self.confirm_voters(*shard, *epoch, *version)
            }
            Change::ShowLoss { shard, epoch, node, transactions, at_most, last_time_ms } => {
                self.show_loss(*shard, *epoch, *node, *transactions..=*at_most, *last_time_ms)
            }
            Change::BeginSwitchover { shard, to } => self.begin_switchover(*shard, to),
            Change::CancelSwitchover { shard } => self.cancel_switchover(*shard),
            Change::ForceFailover { shard, epoch, to, since_ms, cause } => {
                let plan = Plan {
                    to: to.clone(),
                    planned: false,
                    since_ms: *since_ms,
                    cause: cause.clone(),
                };
                self.force_failover(*shard, *epoch, plan)
            }
            Change::AddRegion { name } => self.add_region(name),
            Change::RemoveRegion { name } => self.remove_region(name),
            Change::AddNode { node } => self.add_node(node).map(drop),
            Change::RemoveNode { node } => self.remove_node(*node),
            Change::ReplaceNode { old, new } => self.replace_node(*old, new),
            Change::SetVoters { shard, voters } => self.set_voters(*shard, voters),
            Change::SetDirectoryVoters { voters } => self.set_directory_voters(voters),
            Change::CreateDatabase { id, database, own_shard } => {
                self.create_database(*id, database, *own_shard)
            }
            Change::DeleteDatabase { id } => self.delete_database(*id),
            Change::EndDeletion { id } => self.end_deletion(*id),
            Change::SetDatabase { id, failover, rpo, primary_region, v8_format, queue_paused } => {
                let region = primary_region.as_deref();
                self.set_database(*id, *failover, *rpo, region, *v8_format, *queue_paused)
            }
            Change::SetQuotas { of, set, remove } => self.set_quotas(*of, set, remove),
            Change::SetWebhook { id, queue, settings } => self.set_webhook(*id, queue, settings),
            Change::RotateWebhookKey { id, queue } => self.rotate_webhook_key(*id, queue),
            Change::RemoveWebhook { id, queue } => self.remove_webhook(*id, queue),
            Change::CreateToken { token } => self.create_token(token),
            Change::RotateToken { id, sha256, previous_until_ms } => {
                self.rotate_token(*id, sha256, *previous_until_ms)
            }
            Change::RevokeToken { id } => self.revoke_token(*id),
            Change::SetTransport { transport } => self.set_transport(*transport),
            Change::AddAuthority { authority } => self.add_authority(authority),
            Change::IssueWith { number } => self.issue_with(*number),
            Change::RemoveAuthority { number } => self.remove_authority(*number),
            Change::AddOperator { operator } => self.add_operator(operator),
            Change::SetOperatorToken { name, sha256, expires_at_ms } => {
                self.set_operator_token(name, sha256, *expires_at_ms)
            }
            Change::RemoveOperator { name } => self.remove_operator(name),
            Change::AddGateway { name } => self.add_gateway(name),
            Change::RemoveGateway { name } => self.remove_gateway(name),
            Change::RevokeCertificates { member, before_ms } => {
                self.revoke_certificates(member, *before_ms)
            }
            Change::Invite { invitation, now_ms } => self.invite(invitation, *now_ms),
            Change::UseInvitation { id, request } => self.use_invitation(*id, request),
        }
    }

    /// Voters lie in the primary region, each in a data center of its own: else a commit by a
    /// majority would not lie in two of them.
    fn check_voters(&self, id: ShardId, shard: &Shard) -> Result<(), Refused> {
        let region = &shard.primary_region;
        ensure(!shard.voters.is_empty(), || format!("shard {id} would have no voters"))?;
        let mut taken = BTreeMap::new();
        for voter in &shard.voters {
            let node = self.live_node(*voter)?;
            ensure(node.region == *region, || {
                format!(
                    "{} is in region {}, but shard {id} has its primary in {region}",
                    node.name, node.region
                )
            })?;
            if let Some(other) = taken.insert(&node.data_center, &node.name) {
                let (name, place) = (&node.name, &node.data_center);
                return Err(Refused(format!(
                    "{other} and {name} are both in data center {place}: only one may vote"
                )));
            }
        }
        ensure(shard.preferred_leader.is_none_or(|leader| shard.voters.contains(&leader)), || {
            format!("the preferred leader of shard {id} does not vote in it")
        })
    }
}

#[cfg(test)]
mod tests;
