//! A preview of a failover: its effect and its loss, as far as they can be known before anything is
//! sealed, for operators before they order one.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_directory::{Cluster, Shard};
use meridian_types::{NodeId, Position, ShardId, ShardReport};

use crate::target::{TargetChoice, data_centers};

/// When a node last renewed its lease, and what it reported then.
#[derive(Debug, Clone, Default)]
pub struct Contact {
    pub age_ms: u64,
    pub reports: BTreeMap<ShardId, ShardReport>,
}

/// A node and its latest report of the shard.
#[derive(Debug, Clone)]
pub struct Holder {
    pub node: NodeId,
    pub age_ms: u64,
    pub report: ShardReport,
}

/// The least loss: transactions that were committed and are on no node that answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KnownLoss {
    pub transactions: u64,
    /// From the newest batch that survives to the newest that was reported, by the leader's clock.
    pub window_ms: u64,
}

/// The expected outcome of a failover, by the reports that the directory's leader has.
#[derive(Debug, Clone)]
pub struct FailoverPreview {
    /// As ordered, or as the controller would choose. `None`: it would wait, sealed, until a region
    /// can take over.
    pub to: Option<String>,
    /// The node with the newest commit that was ever reported.
    pub newest: Option<Holder>,
    /// Of the nodes that answer, the one with the newest. The target gets it from there.
    pub survivor: Option<Holder>,
    /// `None`: nothing is known of the old region.
    pub loss: Option<KnownLoss>,
    /// Voters of the epoch that answer.
    pub voters_up: usize,
    /// Of each region, how many data centers answer.
    pub data_centers_up: BTreeMap<String, usize>,
}

impl FailoverPreview {
    /// `reachable_within`: as the [controller's](crate::ControllerConfig). `to`: as ordered.
    pub fn new(
        cluster: &Cluster,
        id: ShardId,
        shard: &Shard,
        contacts: &BTreeMap<NodeId, Contact>,
        reachable_within: Duration,
        to: Option<&str>,
    ) -> Self {
        let is_fresh = |age_ms: u64| Duration::from_millis(age_ms) <= reachable_within;
        // Batches that an earlier failover lost are in no history any more.
        let holders = contacts.iter().filter_map(|(node, contact)| {
            let report = contact.reports.get(&id)?;
            let is_present = cluster.nodes.get(node).is_some_and(|node| !node.removed);
            (is_present && shard.in_history(report.position)).then(|| Holder {
                node: *node,
                age_ms: contact.age_ms,
                report: report.clone(),
            })
        });
        let holders: Vec<Holder> = holders.collect();
        let newest =
            holders.iter().max_by_key(|holder| (holder.report.position, holder.report.leads));
        let survivors = || holders.iter().filter(|holder| is_fresh(holder.age_ms));
        let survivor = survivors().max_by_key(|holder| holder.report.position);
        let is_up =
            |node: NodeId| contacts.get(&node).is_some_and(|contact| is_fresh(contact.age_ms));
        let position = |node: NodeId| -> Option<Position> {
            let holder = survivors().find(|holder| holder.node == node)?;
            Some(holder.report.position)
        };
        let chosen =
            TargetChoice::default().choose(cluster, &shard.primary_region, is_up, position);
        let from_old_region = holders.iter().any(|holder| shard.voters.contains(&holder.node));
        let loss = newest.zip(survivor).filter(|_| from_old_region).map(|(newest, survivor)| {
            let (newest, survivor) = (newest.report.progress, survivor.report.progress);
            KnownLoss {
                transactions: newest.transactions.saturating_sub(survivor.transactions),
                window_ms: newest.time_ms.saturating_sub(survivor.time_ms),
            }
        });
        let up = |region: &String| (region.clone(), data_centers(cluster, region, is_up));
        Self {
            to: to.map(str::to_owned).or(chosen),
            newest: newest.cloned(),
            survivor: survivor.cloned(),
            loss,
            voters_up: shard.voters.iter().filter(|voter| is_up(**voter)).count(),
            data_centers_up: cluster.regions.iter().map(up).collect(),
        }
    }
}
