//! Recorded changes in words.

use meridian_directory::{
    Change, Cluster, Database, FailoverMode, FailoverReport, Loss, Member, Node, QuotaOwner, Rpo,
    RpoMode, Token, TokenScope, WebhookSettings,
};
use meridian_types::{DatabaseId, Epoch, NodeId, ShardId, V8Format};

use crate::command::operator::{format, resolve};
use crate::command::quotas;

/// A recorded change in words, with the present names of nodes and databases. A change that this
/// version does not know is shown as it was recorded.
pub(super) fn describe(json: &[u8], cluster: &Cluster) -> String {
    match serde_json::from_slice(json) {
        Ok(change) => words(&change, cluster),
        Err(_) => String::from_utf8_lossy(json).into_owned(),
    }
}

#[allow(clippy::too_many_lines, reason = "one arm for each change")]
fn words(change: &Change, cluster: &Cluster) -> String {
    let node = |id: &NodeId| resolve::node_name(cluster, *id);
    let nodes = |ids| resolve::node_names(cluster, ids);
    match change {
        Change::NameCluster { id } => format!("cluster id set to {id}"),
        Change::RecordIncarnation { node: id, .. } => {
            format!("{} contacted the directory for the first time", node(id))
        }
        Change::Seal { shard, epoch, to, planned: true, .. } => {
            format!("shard {shard}: epoch {epoch} sealed for its switchover {}", target(to))
        }
        Change::Seal { shard, epoch, to, planned: false, cause, .. } => {
            format!("shard {shard}: epoch {epoch} sealed; will fail over {}: {cause}", target(to))
        }
        Change::Promote { shard, report, .. } => promoted(*shard, report),
        Change::Activate { shard, epoch } => format!("shard {shard}: epoch {epoch} is open"),
        Change::ConfirmVoters { shard, .. } => format!("shard {shard}: change of voters complete"),
        Change::ShowLoss { shard, epoch, node: id, transactions, at_most, .. } => {
            let lost = loss_shown(*transactions, *at_most, *epoch);
            format!("shard {shard}: {} reported {lost}", node(id))
        }
        Change::BeginSwitchover { shard, to } => format!("shard {shard}: switchover to {to}"),
        Change::CancelSwitchover { shard } => format!("shard {shard}: switchover cancelled"),
        Change::ForceFailover { shard, epoch, to, cause, .. } => {
            let to = target(to);
            format!(
                "shard {shard}: failover of epoch {epoch} {to} ordered, allowing data loss: {cause}"
            )
        }
        Change::AddRegion { name } => format!("region {name} added"),
        Change::RemoveRegion { name } => format!("region {name} removed"),
        Change::AddNode { node } => added(node),
        Change::RemoveNode { node: id } => format!("node {id} ({}) removed permanently", node(id)),
        Change::ReplaceNode { old, new } => {
            let (name, address) = (&new.name, &new.rpc_address);
            format!("node {old} ({}) replaced permanently by {name} at {address}", node(old))
        }
        Change::SetVoters { shard, voters } => format!("shard {shard}: voters {}", nodes(voters)),
        Change::SetDirectoryVoters { voters } => format!("directory: voters {}", nodes(voters)),
        Change::CreateDatabase { id, database, own_shard } => created(*id, database, *own_shard),
        Change::DeleteDatabase { id } => format!("{} deleted", name_of(cluster, id)),
        Change::EndDeletion { id } => format!("{} is gone from every node", name_of(cluster, id)),
        Change::SetDatabase { id, failover, rpo, primary_region, v8_format, queue_paused } => {
            let mut settings = settings(*failover, *rpo, primary_region.as_deref(), *v8_format);
            settings.extend(queue_paused.map(|is_paused| format!("queue {}", paused(is_paused))));
            format!("{} set: {}", name_of(cluster, id), settings.join(", "))
        }
        Change::SetQuotas { of, set, remove } => {
            let of = match of {
                QuotaOwner::Database(id) => name_of(cluster, id),
                QuotaOwner::Token(id) => format!("token {id}"),
            };
            let removed = remove.iter().map(|quota| format!("no {quota}"));
            let set = (!set.is_empty()).then(|| quotas::text(set));
            let all: Vec<_> = set.into_iter().chain(removed).collect();
            format!("quotas of {of} set: {}", all.join(", "))
        }
        Change::SetWebhook { id, settings, .. } => {
            format!("webhook of {} set: {}", name_of(cluster, id), webhook(settings))
        }
        Change::RotateWebhookKey { id, .. } => {
            format!("webhook of {}: the next key is the current one", name_of(cluster, id))
        }
        Change::RemoveWebhook { id, .. } => format!("webhook of {} removed", name_of(cluster, id)),
        Change::CreateToken { token } => token_created(cluster, token),
        Change::RotateToken { id, previous_until_ms: Some(until_ms), .. } => {
            let until = format::time(*until_ms);
            format!("token {id} has a new secret; the one before works until {until}")
        }
        Change::RotateToken { id, previous_until_ms: None, .. } => {
            format!("token {id} has a new secret; the one before ended")
        }
        Change::RevokeToken { id } => format!("token {id} revoked"),
        Change::SetTransport { transport } => {
            format!("transport between processes set to {transport}")
        }
        Change::AddAuthority { .. } => "certificate authority added".to_owned(),
        Change::IssueWith { number } => format!("certificates come from authority {number}"),
        Change::RemoveAuthority { number } => format!("certificate authority {number} removed"),
        Change::AddOperator { operator } => {
            format!("operator {} added: may {}", operator.name, operator.level)
        }
        Change::SetOperatorToken { name, expires_at_ms, .. } => {
            let until = expires_at_ms.map(|at| format!(", up to {}", format::time(at)));
            format!("operator {name} has another login token{}", until.unwrap_or_default())
        }
        Change::RemoveOperator { name } => format!("operator {name} removed"),
        Change::AddGateway { name } => format!("gateway {name} added"),
        Change::RemoveGateway { name } => format!("gateway {name} removed"),
        Change::RevokeCertificates { member: of, .. } => {
            format!("certificates of {} revoked", member(cluster, of))
        }
        Change::Invite { invitation, .. } => {
            format!("join token made for {}", member(cluster, &invitation.member))
        }
        Change::UseInvitation { id, .. } => format!("join token {id} used"),
    }
}

fn member(cluster: &Cluster, member: &Member) -> String {
    match member {
        Member::Node(id) => resolve::node_name(cluster, *id),
        Member::Gateway(name) => format!("gateway {name}"),
    }
}

fn target(to: &Option<String>) -> String {
    to.as_ref().map_or_else(|| "to the most advanced region".to_owned(), |to| format!("to {to}"))
}

fn name_of(cluster: &Cluster, id: &DatabaseId) -> String {
    match cluster.databases.get(id) {
        Some(database) => format!("database {}", database.name),
        None => format!("database {id}"),
    }
}

fn promoted(shard: ShardId, report: &FailoverReport) -> String {
    let (epoch, from, to) = (report.epoch, &report.from_region, &report.to_region);
    format!("shard {shard}: epoch {epoch} begins in {to}, moved from {from}, {}", loss(report))
}

fn loss_shown(transactions: u64, at_most: u64, epoch: Epoch) -> String {
    let shown = format::count(transactions, "transaction");
    let undecided = match at_most.saturating_sub(transactions) {
        0 => String::new(),
        more => format!(", and {more} of unknown outcome"),
    };
    format!("{shown} lost before epoch {epoch}{undecided}")
}

fn added(node: &Node) -> String {
    let Node { name, region, data_center, rpc_address, .. } = node;
    format!("node {name} added in {region}, data center {data_center}, at {rpc_address}")
}

fn created(id: DatabaseId, database: &Database, own_shard: bool) -> String {
    let Database { name, primary_region, .. } = database;
    let own = if own_shard { ", in a shard of its own" } else { "" };
    format!("database {name} ({id}) created, primary region {primary_region}{own}")
}

fn settings(
    mode: Option<FailoverMode>,
    bound: Option<Rpo>,
    region: Option<&str>,
    format: Option<V8Format>,
) -> Vec<String> {
    let settings = [
        mode.map(|mode| format!("failover {}", failover(mode))),
        bound.map(|bound| format!("RPO {}", rpo(&bound))),
        region.map(|region| format!("primary region {region}")),
        format.map(|format| format!("V8 format {}", v8_format(format))),
    ];
    settings.into_iter().flatten().collect()
}

fn webhook(settings: &WebhookSettings) -> String {
    let WebhookSettings { url, concurrency, timeout_ms, key, next_key } = settings;
    let settings = [
        url.clone(),
        concurrency.map(|concurrency| format!("{concurrency} requests at a time")),
        timeout_ms.map(|timeout_ms| format!("{} each", format::duration(timeout_ms))),
        key.as_ref().map(|key| format!("key {}", key.fingerprint())),
        next_key.as_ref().map(|key| format!("next key {}", key.fingerprint())),
    ];
    settings.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn token_created(cluster: &Cluster, token: &Token) -> String {
    let scope = match &token.scope {
        TokenScope::All => "all databases".to_owned(),
        TokenScope::Databases(ids) => {
            ids.iter().map(|id| name_of(cluster, id)).collect::<Vec<_>>().join(", ")
        }
    };
    let keys = match token.prefixes.len() {
        0 => String::new(),
        1 => ", keys of 1 prefix".to_owned(),
        number => format!(", keys of {number} prefixes"),
    };
    let access = super::super::tokens::access(token.permissions);
    format!("token {:?} created for {scope}{keys}, {access}", token.label)
}

/// `at least 3 transactions (120 ms) lost`.
pub(crate) fn loss(report: &FailoverReport) -> String {
    let Loss { transactions, window_ms, exact, at_most, .. } = &report.loss;
    let window = format::duration(*window_ms);
    match (*transactions, exact, report.is_bounded()) {
        (0, true, _) => "nothing lost".to_owned(),
        (0, false, false) => "no loss known yet".to_owned(),
        (lost, true, _) => format!("{} ({window}) lost", format::count(lost, "transaction")),
        (lost, false, false) => {
            format!("at least {} ({window}) lost", format::count(lost, "transaction"))
        }
        (0, false, true) => format!("at most {} lost", format::count(*at_most, "transaction")),
        (lost, false, true) => {
            format!("{lost} to {} ({window}) lost", format::count(*at_most, "transaction"))
        }
    }
}

pub(crate) fn failover(mode: FailoverMode) -> &'static str {
    match mode {
        FailoverMode::Auto => "auto",
        FailoverMode::Manual => "manual",
    }
}

/// `enforce, slowed from 500 ms, refused from 1.0 s`.
pub(crate) fn v8_format(format: V8Format) -> &'static str {
    match format {
        V8Format::Portable => "portable",
        V8Format::AsSent => "as-sent",
    }
}

fn paused(is_paused: bool) -> &'static str {
    if is_paused { "paused" } else { "runs" }
}

/// `paused, webhook`.
pub(crate) fn queue(database: &Database) -> String {
    let webhook = if database.webhooks.is_empty() { "" } else { ", webhook" };
    format!("{}{webhook}", paused(database.queue_paused))
}

pub(crate) fn rpo(rpo: &Rpo) -> String {
    let (soft, max) = (format::duration(rpo.soft_ms), format::duration(rpo.max_ms));
    match rpo.mode {
        RpoMode::Off => "off".to_owned(),
        RpoMode::Warn => format!("warn, from {soft} and {max}"),
        RpoMode::Enforce => format!("enforce, slowed from {soft}, refused from {max}"),
    }
}

#[cfg(test)]
mod tests {
    use meridian_directory::WebhookKey;
    use meridian_types::Quota;

    use super::*;
    use crate::command::operator::samples::{cluster, report};

    fn text(change: &Change) -> String {
        describe(&serde_json::to_vec(change).unwrap(), &cluster())
    }

    #[test]
    fn changes_are_described_with_names() {
        let voters = Change::SetVoters { shard: ShardId(1), voters: [1, 2, 9].map(NodeId).into() };
        assert_eq!(text(&voters), "shard 1: voters region-1-a, region-1-b, node 9");
        let id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        assert_eq!(text(&Change::DeleteDatabase { id }), "database default deleted");
        let set = Change::SetDatabase {
            id,
            failover: Some(FailoverMode::Manual),
            rpo: Some(Rpo::default()),
            primary_region: None,
            v8_format: Some(V8Format::AsSent),
            queue_paused: Some(true),
        };
        assert_eq!(
            text(&set),
            "database default set: failover manual, RPO enforce, slowed from 500 ms, refused from 1.0 s, V8 format as-sent, queue paused"
        );
        let settings = WebhookSettings {
            url: Some("https://example.com/".to_owned()),
            timeout_ms: Some(5000),
            key: Some(WebhookKey::new(&[7; 32]).unwrap()),
            ..WebhookSettings::default()
        };
        assert_eq!(
            text(&Change::SetWebhook { id, queue: String::new(), settings }),
            "webhook of database default set: https://example.com/, 5.0 s each, key 4bb06f8e"
        );
        let quotas = Change::SetQuotas {
            of: QuotaOwner::Database(id),
            set: [(Quota::Keys, 5.try_into().unwrap())].into_iter().collect(),
            remove: [Quota::Watches].into(),
        };
        assert_eq!(text(&quotas), "quotas of database default set: keys 5, no watches");
        let (name, sha256) = ("ana".to_owned(), String::new());
        let token = Change::SetOperatorToken { name, sha256, expires_at_ms: Some(1000) };
        assert_eq!(
            text(&token),
            "operator ana has another login token, up to 1970-01-01T00:00:01.000Z"
        );
        let seal = Change::Seal {
            shard: ShardId(1),
            epoch: Epoch(2),
            to: None,
            planned: false,
            since_ms: 1,
            cause: "no quorum".to_owned(),
        };
        assert_eq!(
            text(&seal),
            "shard 1: epoch 2 sealed; will fail over to the most advanced region: no quorum"
        );
    }

    #[test]
    fn a_change_of_a_later_version_is_shown_as_recorded() {
        assert_eq!(describe(b"{\"Later\":{\"x\":1}}", &cluster()), "{\"Later\":{\"x\":1}}");
    }

    #[test]
    fn losses_are_described_with_their_certainty() {
        let text = |transactions, at_most, window_ms, exact, shown_by: &[u64]| {
            let shown_by = shown_by.iter().copied().map(NodeId).collect();
            loss(&report(Loss { transactions, window_ms, exact, shown_by, at_most }))
        };
        assert_eq!(text(0, 0, 0, true, &[]), "nothing lost");
        assert_eq!(text(0, 0, 0, false, &[]), "no loss known yet");
        assert_eq!(text(1, 1, 120, false, &[4]), "at least 1 transaction (120 ms) lost");
        assert_eq!(text(3, 3, 1200, true, &[1, 2]), "3 transactions (1.2 s) lost");
        assert_eq!(text(3, 5, 1200, false, &[1]), "at least 3 transactions (1.2 s) lost");
        assert_eq!(text(0, 3, 0, false, &[1, 2]), "at most 3 transactions lost");
        assert_eq!(text(3, 5, 1200, false, &[1, 2]), "3 to 5 transactions (1.2 s) lost");
    }
}
