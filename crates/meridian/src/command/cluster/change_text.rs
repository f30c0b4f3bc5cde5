use meridian_directory::{
    Change, Cluster, FailoverMode, FailoverReport, Loss, Rpo, RpoMode, TokenScope,
};
use meridian_types::DatabaseId;

use crate::command::operator::{amounts, selection};

/// A recorded change in words, with the names that things have now. One that this version does not
/// know: as it was recorded.
pub(super) fn describe(json: &[u8], cluster: &Cluster) -> String {
    match serde_json::from_slice(json) {
        Ok(change) => words(&change, cluster),
        Err(_) => String::from_utf8_lossy(json).into_owned(),
    }
}

fn words(change: &Change, cluster: &Cluster) -> String {
    let node = |id: &u64| selection::node_name(cluster, *id);
    let nodes = |ids| selection::node_names(cluster, ids);
    let database = |id: &DatabaseId| {
        let known = cluster.databases.get(id);
        known.map_or_else(
            || format!("database {id}"),
            |database| format!("database {}", database.name),
        )
    };
    let to = |to: &Option<String>| {
        to.as_ref().map_or_else(|| "wherever most is".to_owned(), |to| format!("to {to}"))
    };
    match change {
        Change::NameCluster { id } => format!("the cluster got its id {id}"),
        Change::RecordIncarnation { node: id, .. } => {
            format!("{} spoke for the first time", node(id))
        }
        Change::Seal { shard, epoch, to: target, planned: true, .. } => {
            format!("shard {shard}: epoch {epoch} sealed for its switchover {}", to(target))
        }
        Change::Seal { shard, epoch, to: target, planned: false, cause, .. } => {
            format!("shard {shard}: epoch {epoch} sealed, failing over {}: {cause}", to(target))
        }
        Change::Promote { shard, report, .. } => {
            let (epoch, from, target) = (report.epoch, &report.from_region, &report.to_region);
            let loss = loss(report);
            format!("shard {shard}: epoch {epoch} begins in {target}, {from} was before, {loss}")
        }
        Change::Activate { shard, epoch } => format!("shard {shard}: epoch {epoch} is open"),
        Change::ConfirmVoters { shard, .. } => {
            format!("shard {shard}: its group has the voters named")
        }
        Change::ShowLoss { shard, epoch, node: id, transactions, at_most, .. } => {
            let shown = amounts::count(*transactions, "transaction");
            let undecided = match at_most.saturating_sub(*transactions) {
                0 => String::new(),
                more => format!(" and {more} that nobody decided"),
            };
            format!(
                "shard {shard}: {} showed {shown}{undecided} that epoch {epoch} left behind",
                node(id)
            )
        }
        Change::BeginSwitchover { shard, to } => format!("shard {shard}: switchover to {to}"),
        Change::CancelSwitchover { shard } => format!("shard {shard}: switchover cancelled"),
        Change::ForceFailover { shard, epoch, to: target, cause, .. } => {
            format!(
                "shard {shard}: failover of epoch {epoch} {} ordered, allowing data loss: {cause}",
                to(target)
            )
        }
        Change::AddRegion { name } => format!("region {name} added"),
        Change::RemoveRegion { name } => format!("region {name} removed"),
        Change::AddNode { node } => {
            format!(
                "node {} added in {}, data center {}, at {}",
                node.name, node.region, node.data_center, node.rpc_address
            )
        }
        Change::RemoveNode { node: id } => format!("node {id} ({}) removed for good", node(id)),
        Change::ReplaceNode { old, new } => {
            format!(
                "node {old} ({}) replaced for good by {} at {}",
                node(old),
                new.name,
                new.rpc_address
            )
        }
        Change::SetVoters { shard, voters } => format!("shard {shard}: voters {}", nodes(voters)),
        Change::SetDirectoryVoters { voters } => format!("directory: voters {}", nodes(voters)),
        Change::CreateDatabase { id, database, own_shard } => {
            let own = if *own_shard { ", in a shard of its own" } else { "" };
            format!(
                "database {} ({id}) created, primary region {}{own}",
                database.name, database.primary_region
            )
        }
        Change::DeleteDatabase { id } => format!("{} deleted", database(id)),
        Change::EndDeletion { id } => format!("{} is gone from every node", database(id)),
        Change::SetDatabase { id, failover: mode, rpo: bound, primary_region } => {
            let settings = [
                mode.map(|mode| format!("failover {}", failover(mode))),
                bound.map(|bound| format!("RPO {}", rpo(&bound))),
                primary_region.as_ref().map(|region| format!("primary region {region}")),
            ];
            let settings: Vec<String> = settings.into_iter().flatten().collect();
            format!("{} set: {}", database(id), settings.join(", "))
        }
        Change::CreateToken { token } => {
            let scope = match &token.scope {
                TokenScope::All => "all databases".to_owned(),
                TokenScope::Databases(ids) => {
                    ids.iter().map(database).collect::<Vec<_>>().join(", ")
                }
            };
            format!(
                "token {:?} created for {scope}, {}",
                token.label,
                if token.write { "read-write" } else { "read" }
            )
        }
        Change::RevokeToken { id } => format!("token {id} revoked"),
    }
}

/// `at least 3 transactions (120 ms) lost`.
pub(crate) fn loss(report: &FailoverReport) -> String {
    let Loss { transactions, window_ms, exact, at_most, .. } = &report.loss;
    let window = amounts::duration(*window_ms);
    match (*transactions, exact, report.is_bounded()) {
        (0, true, _) => "nothing lost".to_owned(),
        (0, false, false) => "no loss known yet".to_owned(),
        (lost, true, _) => format!("{} ({window}) lost", amounts::count(lost, "transaction")),
        (lost, false, false) => {
            format!("at least {} ({window}) lost", amounts::count(lost, "transaction"))
        }
        (0, false, true) => format!("at most {} lost", amounts::count(*at_most, "transaction")),
        (lost, false, true) => {
            format!("{lost} to {} ({window}) lost", amounts::count(*at_most, "transaction"))
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
pub(crate) fn rpo(rpo: &Rpo) -> String {
    let (soft, max) = (amounts::duration(rpo.soft_ms), amounts::duration(rpo.max_ms));
    match rpo.mode {
        RpoMode::Off => "off".to_owned(),
        RpoMode::Warn => format!("warn, from {soft} and {max}"),
        RpoMode::Enforce => format!("enforce, slowed from {soft}, refused from {max}"),
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::{Epoch, ShardId};

    use super::*;
    use crate::command::operator::samples::{cluster, report};

    fn text(change: &Change) -> String {
        describe(&serde_json::to_vec(change).unwrap(), &cluster())
    }

    #[test]
    fn changes_are_told_with_names() {
        let voters = Change::SetVoters { shard: ShardId(1), voters: [1, 2, 9].into() };
        assert_eq!(text(&voters), "shard 1: voters region-1-a, region-1-b, node 9");
        let id = "00000000-0000-4000-8000-000000000001".parse().unwrap();
        assert_eq!(text(&Change::DeleteDatabase { id }), "database default deleted");
        let set = Change::SetDatabase {
            id,
            failover: Some(FailoverMode::Manual),
            rpo: Some(Rpo::default()),
            primary_region: None,
        };
        assert_eq!(
            text(&set),
            "database default set: failover manual, RPO enforce, slowed from 500 ms, refused from 1.0 s"
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
            "shard 1: epoch 2 sealed, failing over wherever most is: no quorum"
        );
    }

    #[test]
    fn a_change_of_a_later_version_is_shown_as_recorded() {
        assert_eq!(describe(b"{\"Later\":{\"x\":1}}", &cluster()), "{\"Later\":{\"x\":1}}");
    }

    #[test]
    fn losses_say_how_sure_they_are() {
        let text = |transactions, at_most, window_ms, exact, shown_by: &[u64]| {
            let shown_by = shown_by.iter().copied().collect();
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
