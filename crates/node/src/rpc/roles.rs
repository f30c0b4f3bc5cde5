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
    use meridian_types::NodeId;

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
}
