//! Warnings for operators, the worst first.

use std::collections::{BTreeMap, BTreeSet};

use meridian_directory::{Cluster, Phase, RpoMode, Shard};
use meridian_types::{NodeId, ShardId};

use super::change_text;
use crate::command::operator::{View, format, is_fresh, no_leader, resolve};

pub(super) fn of(view: &View, now_ms: u64) -> Vec<String> {
    let mut warnings = Vec::new();
    if view.leader_address.is_none() {
        warnings.push(format!(
            "the directory has no reachable leader ({}): no changes and no failovers until it has one; nodes serve as \
             long as their epoch leases last",
            no_leader(view)
        ));
    }
    if view.cluster.version == 0 {
        warnings.push(
            "the directory has not started yet: this is the cluster of a node's configuration"
                .to_owned(),
        );
    }
    divergence_warnings(view, &mut warnings);
    for (id, shard) in &view.cluster.shards {
        shard_warnings(view, *id, shard, now_ms, &mut warnings);
    }
    directory_warnings(view, &mut warnings);
    refusal_warnings(view, &mut warnings);
    node_warnings(view, now_ms, &mut warnings);
    queue_warnings(&view.cluster, &mut warnings);
    for (id, shard) in &view.cluster.shards {
        lasting_warnings(&view.cluster, *id, shard, &mut warnings);
    }
    warnings
}

/// Nodes that should hold the same data and do not. Both may report it.
fn divergence_warnings(view: &View, warnings: &mut Vec<String>) {
    let mut found = BTreeMap::new();
    for (node, contact) in &view.contacts {
        for (shard, report) in &contact.reports {
            for (other, position) in &report.divergences {
                let pair = (*shard, *node.min(other), *node.max(other));
                let first = found.entry(pair).or_insert(*position);
                *first = position.min(first).to_owned();
            }
        }
    }
    for ((shard, one, other), position) in found {
        let [one, other] = [one, other].map(|node| resolve::node_name(&view.cluster, node));
        warnings.push(format!(
            "shard {shard}: {one} and {other} applied different batches, the first at {position} or before. A node that \
             differs from a third node too serves data that was never committed: stop it, and give it an empty data folder"
        ));
    }
}

/// Nodes that fall behind because the data sent to them is damaged on the way, or of a later
/// format.
fn refusal_warnings(view: &View, warnings: &mut Vec<String>) {
    for (node, contact) in view.contacts.iter().filter(|(_, contact)| is_fresh(contact.age_ms)) {
        let refusals = contact
            .reports
            .iter()
            .filter_map(|(shard, report)| Some((shard, report.refuses.as_ref()?)));
        for (shard, why) in refusals {
            let node = resolve::node_name(&view.cluster, *node);
            warnings.push(format!(
                "shard {shard}: {node} rejects replicated data and falls behind: {why}"
            ));
        }
    }
}

/// Conditions that keep a shard from serving, or its data from being safe, now.
fn shard_warnings(
    view: &View,
    id: ShardId,
    shard: &Shard,
    now_ms: u64,
    warnings: &mut Vec<String>,
) {
    match &shard.phase {
        Phase::Sealing(plan) => {
            let age = format::duration(now_ms.saturating_sub(plan.since_ms));
            warnings.push(format!(
                "shard {id} has been sealed for {age} and takes no writes: {}",
                plan.cause
            ));
        }
        Phase::Forming => {
            warnings.push(format!("shard {id} is being opened and takes no writes yet"))
        }
        Phase::Active | Phase::SwitchingOver { .. } => {}
    }
    if view.leader_address.is_none() {
        return;
    }
    let up = reachable(view, &shard.voters);
    if up * 2 <= shard.voters.len() {
        let manual = match view.cluster.fails_over_by_itself(id) {
            true => String::new(),
            false => format!(
                ". Failover of one of its databases is set to manual: `meridian failover {id}` shows what a failover would lose"
            ),
        };
        let voters = shard.voters.len();
        warnings.push(format!(
            "shard {id} has no quorum: {up} of its {voters} voters are reachable{manual}"
        ));
    } else if view.leader_of(id, shard).is_none()
        && matches!(shard.phase, Phase::Active | Phase::SwitchingOver { .. })
    {
        warnings.push(format!("shard {id} has no leader"));
    }
    if shard.changing.is_some() {
        warnings.push(format!("shard {id} is changing its voters"));
    }
    rpo_warnings(view, id, shard, warnings);
}

fn rpo_warnings(view: &View, id: ShardId, shard: &Shard, warnings: &mut Vec<String>) {
    let bounded = view.cluster.databases.values().filter(|database| database.shard == id);
    let bounded: Vec<_> = bounded.filter(|database| database.rpo.mode != RpoMode::Off).collect();
    let has_replicas = view
        .cluster
        .nodes
        .values()
        .any(|node| !node.removed && node.region != shard.primary_region);
    if bounded.is_empty() || !has_replicas || shard.phase != Phase::Active {
        return;
    }
    let Some(lag) = view.lags(id, shard).into_values().min() else {
        warnings.push(format!(
            "no other region replicates shard {id}: a failover would lose data without bound"
        ));
        return;
    };
    for database in bounded {
        let rpo = database.rpo;
        let effect = match (lag > rpo.max_ms, lag > rpo.soft_ms, rpo.mode) {
            (true, _, RpoMode::Enforce) => "its writes are refused",
            (false, true, RpoMode::Enforce) => "its writes are slowed",
            (true, ..) => "writes continue (mode warn)",
            _ => continue,
        };
        let (name, lag) = (&database.name, format::duration(lag));
        let bound =
            format::duration(if effect.contains("slowed") { rpo.soft_ms } else { rpo.max_ms });
        warnings
            .push(format!("RPO of database {name} exceeded: the closest region is {lag} behind, bound {bound}; {effect}"));
    }
}

/// A queue whose pause was forgotten fills up.
fn queue_warnings(cluster: &Cluster, warnings: &mut Vec<String>) {
    for database in cluster.databases.values().filter(|database| database.queue_paused) {
        let name = &database.name;
        warnings.push(format!(
            "the queue of database {name} is paused: `meridian queue resume {name}` ends that"
        ));
    }
}

fn directory_warnings(view: &View, warnings: &mut Vec<String>) {
    let cluster = &view.cluster;
    let voters = &cluster.directory_voters;
    let names = resolve::node_names(cluster, voters);
    if view.leader_address.is_some() {
        let up = reachable(view, voters);
        if up < voters.len() {
            warnings.push(format!(
                "{up} of the {} voters of the directory are reachable ({names})",
                voters.len()
            ));
        }
    }
    if resolve::is_weak(voters.len()) {
        warnings.push(format!(
            "the directory has {} ({names}): {WEAK}",
            format::count(voters.len() as u64, "voter")
        ));
    }
    let with_nodes =
        cluster.regions.iter().filter(|region| cluster.nodes_of(region).next().is_some()).count();
    let used: BTreeSet<&str> =
        voters.iter().filter_map(|id| Some(cluster.nodes.get(id)?.region.as_str())).collect();
    if with_nodes >= 3 && used.len() < 3 {
        warnings.push(format!("the directory's voters ({names}) are in fewer than three regions"));
    }
}

fn node_warnings(view: &View, now_ms: u64, warnings: &mut Vec<String>) {
    if view.leader_address.is_none() {
        return;
    }
    for (id, node) in view.cluster.nodes.iter().filter(|(_, node)| !node.removed) {
        if let Some(before_ms) = view.revoked_ms(*id, now_ms) {
            let (name, time) = (&node.name, format::time(before_ms));
            warnings.push(format!(
                "the certificates of {name} from before {time} are refused, and the directory's leader has not heard of \
                 it since: it comes back with another one (`meridian nodes join-token {name}`)"
            ));
            continue;
        }
        match view.contacts.get(id).map(|contact| contact.age_ms) {
            Some(age) if is_fresh(age) => {}
            Some(age) => {
                warnings.push(format!("{} was last seen {} ago", node.name, format::duration(age)))
            }
            None if node.incarnation.is_none() => {
                warnings.push(format!("{} has not contacted the directory yet", node.name))
            }
            None => warnings
                .push(format!("{} has not contacted the directory's present leader", node.name)),
        }
    }
}

/// Lasting conditions that should be changed.
fn lasting_warnings(cluster: &Cluster, id: ShardId, shard: &Shard, warnings: &mut Vec<String>) {
    if resolve::is_weak(shard.voters.len()) {
        warnings.push(format!(
            "shard {id} has {}: {WEAK}",
            format::count(shard.voters.len() as u64, "voter")
        ));
    }
    let databases = cluster.databases.values().filter(|database| database.shard == id);
    let elsewhere = databases.filter(|database| database.primary_region != shard.primary_region);
    for database in elsewhere.take(if shard.phase == Phase::Active { usize::MAX } else { 0 }) {
        warnings.push(format!(
            "shard {id} is in {}, and its database {} belongs in {}: `meridian failback {id}` moves it",
            shard.primary_region, database.name, database.primary_region
        ));
    }
    let elsewhere =
        |region: &&String| **region != shard.primary_region && data_centers(cluster, region) >= 2;
    let others = cluster.regions.iter().any(|region| *region != shard.primary_region);
    if others
        && cluster.fails_over_by_itself(id)
        && !cluster.regions.iter().any(|region| elsewhere(&region))
    {
        warnings.push(format!(
            "shard {id} cannot fail over automatically: no other region has two data centers"
        ));
    }
    if let Some(report) = shard.reports.last().filter(|report| !report.is_bounded()) {
        warnings.push(format!(
            "the failover of shard {id} to epoch {}: {}; exact once a majority of the old voters is back",
            report.epoch,
            change_text::loss(report),
        ));
    }
}

const WEAK: &str = "an odd number from three on survives more losses";

fn reachable(view: &View, nodes: &BTreeSet<NodeId>) -> usize {
    let is_up =
        |node: &&NodeId| view.contacts.get(node).is_some_and(|contact| is_fresh(contact.age_ms));
    nodes.iter().filter(is_up).count()
}

fn data_centers(cluster: &Cluster, region: &str) -> usize {
    cluster.nodes_of(region).map(|(_, node)| &node.data_center).collect::<BTreeSet<_>>().len()
}

#[cfg(test)]
mod tests {
    use meridian_directory::{FailoverMode, Loss, Plan};

    use super::*;
    use crate::command::operator::samples::{report, view, view_without};

    fn has(view: &View, text: &str) {
        let warnings = of(view, 10_000);
        assert!(warnings.iter().any(|warning| warning.contains(text)), "`{text}` in {warnings:#?}");
    }

    #[test]
    fn healthy_cluster_has_no_warnings() {
        assert_eq!(of(&view(), 0), Vec::<String>::new());
    }

    #[test]
    fn a_directory_without_a_leader_comes_first() {
        let mut view = view();
        view.leader_address = None;
        view.contacts.clear();
        let warnings = of(&view, 0);
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        assert!(
            warnings[0].contains("region-1-a at 127.0.0.1:4612 does not answer"),
            "{warnings:#?}"
        );
    }

    #[test]
    fn lost_region_is_reported_with_its_consequences() {
        let mut view = view_without("region-1", 4500);
        has(&view, "shard 1 has no quorum: 0 of its 3 voters are reachable");
        has(&view, "region-1-b was last seen 4.5 s ago");
        has(&view, "2 of the 3 voters of the directory are reachable");
        for database in view.cluster.databases.values_mut() {
            database.failover = FailoverMode::Manual;
        }
        has(&view, "`meridian failover 1` shows what a failover would lose");
        let plan = Plan {
            to: None,
            planned: false,
            since_ms: 4000,
            cause: "region-1 has no quorum".to_owned(),
        };
        view.cluster.shards.get_mut(&ShardId(1)).unwrap().phase = Phase::Sealing(plan);
        has(&view, "shard 1 has been sealed for 6.0 s and takes no writes: region-1 has no quorum");
    }

    #[test]
    fn lag_beyond_a_bound_is_reported_with_its_effect_on_writes() {
        let lagging = |lag| {
            let mut view = view();
            for contact in view.contacts.values_mut() {
                contact.reports.get_mut(&ShardId(1)).unwrap().lag_ms = lag;
            }
            view
        };
        has(
            &lagging(700),
            "RPO of database default exceeded: the closest region is 700 ms behind, bound 500 ms; its writes are slowed",
        );
        has(&lagging(2500), "2.5 s behind, bound 1.0 s; its writes are refused");
        let mut warned = lagging(2500);
        for database in warned.cluster.databases.values_mut() {
            database.rpo.mode = RpoMode::Warn;
        }
        has(&warned, "writes continue (mode warn)");
        for database in warned.cluster.databases.values_mut() {
            database.rpo.mode = RpoMode::Off;
        }
        assert_eq!(of(&warned, 0), Vec::<String>::new());
        let mut alone = view_without("region-2", 9000);
        alone.contacts.remove(&NodeId(6));
        has(&alone, "no other region replicates shard 1");
        has(&alone, "region-3-a has not contacted the directory's present leader");
    }

    #[test]
    fn node_whose_certificates_were_revoked_is_not_only_said_to_be_away() {
        let mut view = view_without("region-3", 8000);
        view.cluster.trust.revoked_before_ms.insert(NodeId(6), 2000);
        has(
            &view,
            "the certificates of region-3-a from before 1970-01-01T00:00:02.000Z are refused",
        );
        assert!(!of(&view, 10_000).iter().any(|warning| warning.contains("was last seen")));
        // It is back, with another certificate.
        view.contacts.get_mut(&NodeId(6)).unwrap().age_ms = 200;
        assert_eq!(of(&view, 10_000), Vec::<String>::new());
    }

    #[test]
    fn queue_that_is_paused_is_named() {
        let mut view = view();
        view.cluster.databases.values_mut().next().unwrap().queue_paused = true;
        has(&view, "the queue of database default is paused");
    }

    #[test]
    fn diverged_nodes_are_named_once_with_shard_and_position() {
        let mut view = view();
        let at = |sequence| meridian_types::Position::new(meridian_types::Epoch(1), sequence);
        let mut diverges = |node, other, position| {
            let contact = view.contacts.get_mut(&NodeId(node)).unwrap();
            contact
                .reports
                .get_mut(&ShardId(1))
                .unwrap()
                .divergences
                .push((NodeId(other), position));
        };
        diverges(1, 5, at(42));
        diverges(5, 1, at(40));
        let warnings = of(&view, 0);
        assert_eq!(warnings.len(), 1, "{warnings:#?}");
        has(
            &view,
            "shard 1: region-1-a and region-2-b applied different batches, the first at 1.40 or before",
        );
    }

    #[test]
    fn node_that_rejects_replicated_data_is_named_with_the_reason() {
        let mut view = view();
        let contact = view.contacts.get_mut(&NodeId(5)).unwrap();
        contact.reports.get_mut(&ShardId(1)).unwrap().refuses =
            Some("it is of format 2".to_owned());
        has(
            &view,
            "shard 1: region-2-b rejects replicated data and falls behind: it is of format 2",
        );
        view.contacts.get_mut(&NodeId(5)).unwrap().age_ms = 60_000;
        assert!(!of(&view, 0).iter().any(|warning| warning.contains("rejects")));
    }

    #[test]
    fn weak_quorums_and_misplaced_shards_are_reported() {
        let mut view = view();
        view.cluster.directory_voters = [1, 4].map(NodeId).into();
        has(&view, "the directory has 2 voters (region-1-a, region-2-a)");
        has(&view, "are in fewer than three regions");
        view.cluster.nodes.get_mut(&NodeId(5)).unwrap().removed = true;
        has(&view, "shard 1 cannot fail over automatically: no other region has two data centers");
        let shard = view.cluster.shards.get_mut(&ShardId(2)).unwrap();
        shard.voters.remove(&NodeId(3));
        shard.primary_region = "region-2".to_owned();
        shard.reports.push(report(Loss { transactions: 4, window_ms: 80, ..Loss::default() }));
        has(&view, "shard 2 has 2 voters");
        has(&view, "its database second belongs in region-1: `meridian failback 2`");
        has(
            &view,
            "the failover of shard 2 to epoch 2: at least 4 transactions (80 ms) lost; exact once a majority",
        );
    }
}
