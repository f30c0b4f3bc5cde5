//! The role that each call needs: one table of all methods.

use meridian_directory::{Change, QuotaOwner};
use meridian_pki::Holder;
use meridian_proto::admin::admin_server;
use meridian_proto::changes::changes_server;
use meridian_proto::directory::{directory_server, failover_server, membership_server};
use meridian_proto::queue::queue_server;
use meridian_proto::raft::raft_server;
use meridian_proto::shard::shard_server;
use meridian_proto::shipping::shipping_server;
use meridian_types::Level;

/// The role that a caller has to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// A node of the cluster: the log, votes, leases and seals.
    Peer,
    /// A gateway, on behalf of tokens that it has checked. Each node is one, too.
    Gateway,
    /// A monitor; operators and nodes as well.
    Observer,
    Operator(Level),
    /// Anything that reaches the port: the call brings its own proof.
    Nothing,
}

const METHODS: &[(&str, &[(&str, Need)])] = &[
    (
        raft_server::SERVICE_NAME,
        &[
            ("StreamAppend", Need::Peer),
            ("Append", Need::Peer),
            ("Vote", Need::Peer),
            ("PreVote", Need::Peer),
            ("TransferLeader", Need::Peer),
            ("Join", Need::Peer),
            ("InstallSnapshot", Need::Peer),
        ],
    ),
    (
        shipping_server::SERVICE_NAME,
        &[("Subscribe", Need::Peer), ("FetchState", Need::Peer), ("Announce", Need::Peer)],
    ),
    (
        failover_server::SERVICE_NAME,
        &[
            ("Seal", Need::Peer),
            ("Drain", Need::Peer),
            ("ReadLog", Need::Peer),
            ("ReadState", Need::Peer),
        ],
    ),
    (
        shard_server::SERVICE_NAME,
        &[
            ("Write", Need::Gateway),
            ("Read", Need::Gateway),
            ("Watch", Need::Gateway),
            ("ReadPosition", Need::Peer),
        ],
    ),
    (changes_server::SERVICE_NAME, &[("Next", Need::Gateway)]),
    (
        queue_server::SERVICE_NAME,
        &[("Listen", Need::Gateway), ("Report", Need::Gateway), ("List", Need::Gateway)],
    ),
    (
        directory_server::SERVICE_NAME,
        &[
            ("Renew", Need::Peer),
            ("Follow", Need::Gateway),
            ("TellTokenUses", Need::Gateway),
            // The change itself may need more: see `of_change`.
            ("Execute", Need::Operator(Level::Operate)),
            // Of a voter of the directory, which holds the authority's key as it is.
            ("AddAdmin", Need::Peer),
            ("Inspect", Need::Operator(Level::View)),
        ],
    ),
    (
        membership_server::SERVICE_NAME,
        &[
            // It brings the secret of an invitation.
            ("Join", Need::Nothing),
            ("Certify", Need::Gateway),
        ],
    ),
    (
        admin_server::SERVICE_NAME,
        &[
            ("Status", Need::Observer),
            ("TransferLeadership", Need::Operator(Level::Operate)),
            ("ListOrphans", Need::Operator(Level::View)),
            // They hold what clients wrote.
            ("ReadOrphans", Need::Operator(Level::Admin)),
            ("RotateKeys", Need::Operator(Level::Admin)),
            ("Usage", Need::Operator(Level::View)),
        ],
    ),
];

/// `None`: there is no such method.
pub(crate) fn of_path(path: &str) -> Option<Need> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    let (_, methods) = METHODS.iter().find(|(name, _)| *name == service)?;
    methods.iter().find(|(name, _)| *name == method).map(|(_, need)| *need)
}

/// How much an operator has to be allowed for a change. `None`: it is no operator's to order.
pub(crate) fn of_change(change: &Change) -> Option<Level> {
    Some(match change {
        Change::NameCluster { .. }
        | Change::RecordIncarnation { .. }
        | Change::Seal { .. }
        | Change::Promote { .. }
        | Change::Activate { .. }
        | Change::ConfirmVoters { .. }
        | Change::ShowLoss { .. }
        | Change::EndDeletion { .. }
        | Change::UseInvitation { .. } => return None,
        Change::BeginSwitchover { .. }
        | Change::CancelSwitchover { .. }
        | Change::ForceFailover { .. }
        | Change::SetVoters { .. }
        | Change::SetDirectoryVoters { .. }
        | Change::SetDatabase { .. }
        | Change::SetQuotas { of: QuotaOwner::Database(_), .. } => Level::Operate,
        Change::AddRegion { .. }
        | Change::RemoveRegion { .. }
        | Change::AddNode { .. }
        | Change::RemoveNode { .. }
        | Change::ReplaceNode { .. }
        | Change::CreateDatabase { .. }
        | Change::DeleteDatabase { .. }
        | Change::SetWebhook { .. }
        | Change::RotateWebhookKey { .. }
        | Change::RemoveWebhook { .. }
        | Change::CreateToken { .. }
        | Change::SetQuotas { of: QuotaOwner::Token(_), .. }
        | Change::RotateToken { .. }
        | Change::RevokeToken { .. }
        | Change::SetTransport { .. }
        | Change::AddAuthority { .. }
        | Change::IssueWith { .. }
        | Change::RemoveAuthority { .. }
        | Change::AddOperator { .. }
        | Change::SetOperatorToken { .. }
        | Change::RemoveOperator { .. }
        | Change::AddGateway { .. }
        | Change::RemoveGateway { .. }
        | Change::RevokeCertificates { .. }
        | Change::Invite { .. } => Level::Admin,
    })
}

impl Need {
    pub(crate) fn is_met_by(self, holder: &Holder) -> bool {
        match (self, holder) {
            (Self::Nothing, _)
            | (Self::Peer | Self::Gateway | Self::Observer, Holder::Node(_))
            | (Self::Gateway, Holder::Gateway(_))
            | (Self::Observer, Holder::Observer(_) | Holder::Operator { .. }) => true,
            (Self::Operator(needed), Holder::Operator { level, .. }) => *level >= needed,
            _ => false,
        }
    }

    /// The role in words, for a caller that does not have it.
    pub(crate) fn in_words(self) -> String {
        match self {
            Self::Peer => "a node's certificate".to_owned(),
            Self::Gateway => "a gateway's or a node's certificate".to_owned(),
            Self::Observer => {
                "an observer's, an operator's or a node's certificate, or an operator's token"
                    .to_owned()
            }
            Self::Operator(level) => format!("an operator of level `{level}`"),
            Self::Nothing => "nothing".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use meridian_directory::testing::{DATABASE, SHARD, database, node, report};
    use meridian_directory::{
        Authority, Invitation, Member, Operator, Token, TokenScope, Transport, WebhookSettings,
    };
    use meridian_types::{Epoch, NodeId, Permissions, Position, Quotas};

    use super::*;

    /// All methods of all services, as the definitions have them: `/package.Service/Method`.
    fn defined() -> Vec<String> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto");
        let mut paths = Vec::new();
        for file in std::fs::read_dir(folder).unwrap() {
            let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
            let (mut package, mut service) = (String::new(), String::new());
            for line in text.lines().map(str::trim_start) {
                let word = |prefix: &str, end: char| {
                    line.strip_prefix(prefix)?.split(end).next().map(|word| word.trim().to_owned())
                };
                package = word("package ", ';').unwrap_or(package);
                service = word("service ", '{').unwrap_or(service);
                if let Some(method) = word("rpc ", '(') {
                    paths.push(format!("/{package}.{service}/{method}"));
                }
            }
        }
        paths
    }

    #[test]
    fn every_method_that_is_defined_has_its_role_and_no_other_has_one() {
        let defined = defined();
        assert!(defined.len() > 25, "{defined:?}");
        for path in &defined {
            assert!(of_path(path).is_some(), "{path} has no role");
        }
        let listed: usize = METHODS.iter().map(|(_, methods)| methods.len()).sum();
        assert_eq!(listed, defined.len());
        for path in ["", "/", "/x", "/x/y", "/meridian.raft.v1.Raft", "/meridian.raft.v1.Raft/"] {
            assert_eq!(of_path(path), None, "{path}");
        }
    }

    #[test]
    fn role_opens_its_own_calls_and_those_of_lesser_ones_alone() {
        let operator = |level| Holder::Operator { level, name: "ana".to_owned() };
        let node = Holder::Node(NodeId(1));
        let (gateway, observer) =
            (Holder::Gateway("edge".to_owned()), Holder::Observer("prometheus".to_owned()));
        let needs = [
            Need::Peer,
            Need::Gateway,
            Need::Observer,
            Need::Operator(Level::View),
            Need::Operator(Level::Operate),
            Need::Operator(Level::Admin),
        ];
        for (holder, met) in [
            (node, [true, true, true, false, false, false]),
            (gateway, [false, true, false, false, false, false]),
            (observer, [false, false, true, false, false, false]),
            (operator(Level::View), [false, false, true, true, false, false]),
            (operator(Level::Operate), [false, false, true, true, true, false]),
            (operator(Level::Admin), [false, false, true, true, true, true]),
        ] {
            assert_eq!(needs.map(|need| need.is_met_by(&holder)), met, "{holder}");
        }
    }

    /// The changes that the controller and the directory's leader make.
    fn of_the_directory() -> Vec<Change> {
        let (shard, epoch, node, text) = (SHARD, Epoch(1), NodeId(1), String::new);
        let to = None;
        vec![
            Change::NameCluster { id: text() },
            Change::RecordIncarnation { node, incarnation: text() },
            Change::Seal { shard, epoch, to, planned: false, since_ms: 0, cause: text() },
            Change::Promote {
                shard,
                voters: BTreeSet::new(),
                preferred_leader: None,
                report: report(2, Position::ZERO, "b"),
            },
            Change::Activate { shard, epoch },
            Change::ConfirmVoters { shard, epoch, version: 1 },
            Change::ShowLoss { shard, epoch, node, transactions: 0, at_most: 0, last_time_ms: 0 },
            Change::EndDeletion { id: DATABASE },
            Change::UseInvitation { id: 1, request: text() },
        ]
    }

    fn for_operate() -> Vec<Change> {
        let (shard, epoch, voters, text) = (SHARD, Epoch(1), BTreeSet::new(), String::new);
        let of = QuotaOwner::Database(DATABASE);
        vec![
            Change::BeginSwitchover { shard, to: text() },
            Change::CancelSwitchover { shard },
            Change::ForceFailover { shard, epoch, to: None, since_ms: 0, cause: text() },
            Change::SetVoters { shard, voters: voters.clone() },
            Change::SetDirectoryVoters { voters },
            Change::SetDatabase {
                id: DATABASE,
                failover: None,
                rpo: None,
                primary_region: None,
                v8_format: None,
                queue_paused: None,
            },
            Change::SetQuotas { of, set: Quotas::default(), remove: BTreeSet::new() },
        ]
    }

    fn for_admin() -> Vec<Change> {
        let (id, text, member) = (DATABASE, String::new, Member::Node(NodeId(1)));
        let operator = Operator {
            name: text(),
            sha256: text(),
            level: Level::View,
            expires_at_ms: None,
            created_at_ms: 0,
        };
        let invitation =
            Invitation { member: member.clone(), sha256: text(), expires_at_ms: 0, used_by: None };
        let authority = Authority { certificate_pem: text(), key: None, issues: false };
        let of = QuotaOwner::Token(1);
        vec![
            Change::AddRegion { name: text() },
            Change::RemoveRegion { name: text() },
            Change::AddNode { node: node(8, "a", "a4") },
            Change::RemoveNode { node: NodeId(8) },
            Change::ReplaceNode { old: NodeId(1), new: node(8, "a", "a1") },
            Change::CreateDatabase { id, database: database("x", "a"), own_shard: false },
            Change::DeleteDatabase { id },
            Change::SetWebhook { id, queue: text(), settings: WebhookSettings::default() },
            Change::RotateWebhookKey { id, queue: text() },
            Change::RemoveWebhook { id, queue: text() },
            Change::CreateToken {
                token: Token::new(text(), text(), TokenScope::All, Permissions::ALL),
            },
            Change::SetQuotas { of, set: Quotas::default(), remove: BTreeSet::new() },
            Change::RotateToken { id: 1, sha256: text(), previous_until_ms: None },
            Change::RevokeToken { id: 1 },
            Change::SetTransport { transport: Transport::Off },
            Change::AddAuthority { authority },
            Change::IssueWith { number: 0 },
            Change::RemoveAuthority { number: 0 },
            Change::AddOperator { operator },
            Change::SetOperatorToken { name: text(), sha256: text(), expires_at_ms: None },
            Change::RemoveOperator { name: text() },
            Change::AddGateway { name: text() },
            Change::RemoveGateway { name: text() },
            Change::RevokeCertificates { member, before_ms: 0 },
            Change::Invite { invitation, now_ms: 0 },
        ]
    }

    #[test]
    fn every_change_takes_the_level_of_this_table_and_none_is_left_out() {
        let mut listed = BTreeSet::new();
        for (changes, level) in [
            (of_the_directory(), None),
            (for_operate(), Some(Level::Operate)),
            (for_admin(), Some(Level::Admin)),
        ] {
            for change in changes {
                assert_eq!(of_change(&change), level, "{change:?}");
                let json = serde_json::to_value(&change).unwrap();
                listed.extend(json.as_object().unwrap().keys().cloned());
            }
        }
        // An error about a change that there is not names all that there are, each in backticks.
        let error = serde_json::from_str::<Change>(r#""""#).unwrap_err().to_string();
        let all: BTreeSet<String> =
            error.split('`').skip(3).step_by(2).map(str::to_owned).collect();
        assert_eq!(listed, all, "{error}");
    }
}
