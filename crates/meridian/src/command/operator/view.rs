//! The cluster as the directory shows it to commands.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use meridian_directory::{Cluster, Shard};
use meridian_failover::{Contact, ControllerConfig};
use meridian_proto::{directory as wire, node_id, shard_report};
use meridian_types::{NodeId, ShardId, ShardReport};

/// An answer of the directory.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) cluster: Cluster,
    /// The directory's leader, as known to the node that answered.
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: u64,
    /// The address at which the leader answered. `None`: another node did, which has neither
    /// progress nor contacts, and may have an old cluster.
    pub(crate) leader_address: Option<String>,
    /// The latest changes, as many as were asked for, oldest first.
    pub(crate) changes: Vec<wire::ChangeRecord>,
    pub(crate) progress: BTreeMap<ShardId, String>,
    pub(crate) contacts: BTreeMap<NodeId, Contact>,
    /// By token, as far as the node that answered has them.
    pub(crate) token_uses: BTreeMap<u64, wire::TokenLastUse>,
}

/// Within so long of an order to revoke certificates, all nodes that can be reached refuse them. The
/// clocks of the directory's leader, which dates the order, and of this machine may differ, too.
const REVOKED_WITHIN_MS: u64 = 10_000;

/// Whether a node last seen `age_ms` ago counts as reachable: the rule of the failover controller.
pub(crate) fn is_fresh(age_ms: u64) -> bool {
    Duration::from_millis(age_ms) <= ControllerConfig::default().reachable_within
}

impl View {
    /// `leader_address`: the address that was asked, if the leader answered there.
    pub(super) fn read(
        response: wire::InspectResponse,
        leader_address: Option<String>,
    ) -> Result<Self> {
        let json = response.cluster.map(|cluster| cluster.json).unwrap_or_default();
        let cluster = serde_json::from_slice(&json)
            .context("this version cannot read its description of the cluster")?;
        let mut changes = response.changes;
        changes.sort_by_key(|change| change.version);
        let contact = |contact: wire::NodeContact| {
            let reports = contact.reports.into_iter().filter_map(shard_report);
            let reports = reports.map(|report| (report.shard, report)).collect();
            (NodeId(contact.node_id), Contact { age_ms: contact.age_ms, reports })
        };
        Ok(Self {
            cluster,
            leader: node_id(response.leader),
            term: response.term,
            leader_address,
            changes,
            progress: response
                .progress
                .into_iter()
                .map(|step| (ShardId(step.shard), step.text))
                .collect(),
            contacts: response.contacts.into_iter().map(contact).collect(),
            token_uses: response.token_uses.into_iter().map(|of| (of.token_id, of)).collect(),
        })
    }

    /// The time before which no certificate of a node holds, in milliseconds since the Unix epoch, if
    /// the directory's leader has not heard of the node since.
    pub(crate) fn revoked_ms(&self, node: NodeId, now_ms: u64) -> Option<u64> {
        let before_ms = *self.cluster.trust.revoked_before_ms.get(&node)?;
        let is_back = self.contacts.get(&node).is_some_and(|contact| {
            let heard_ms = now_ms.saturating_sub(contact.age_ms);
            is_fresh(contact.age_ms) || heard_ms > before_ms.saturating_add(REVOKED_WITHIN_MS)
        });
        (!is_back).then_some(before_ms)
    }

    /// The reachable nodes, with their reports on the shard.
    pub(crate) fn fresh_reports(
        &self,
        shard: ShardId,
    ) -> impl Iterator<Item = (NodeId, &ShardReport)> + '_ {
        let fresh = self.contacts.iter().filter(|(_, contact)| is_fresh(contact.age_ms));
        fresh.filter_map(move |(node, contact)| {
            contact.reports.get(&shard).map(|report| (*node, report))
        })
    }

    /// The reachable leader of the shard in its present epoch.
    pub(crate) fn leader_of(&self, id: ShardId, shard: &Shard) -> Option<NodeId> {
        let mut leaders = self
            .fresh_reports(id)
            .filter(|(_, report)| report.leads && report.epoch == shard.epoch);
        leaders.next().map(|(node, _)| node)
    }

    /// The lag of each replica region: that of its best reachable node in the present epoch.
    pub(crate) fn lags(&self, id: ShardId, shard: &Shard) -> BTreeMap<&str, u64> {
        let mut lags = BTreeMap::new();
        for (node, report) in
            self.fresh_reports(id).filter(|(_, report)| report.epoch == shard.epoch)
        {
            let region = self.cluster.nodes.get(&node).map(|node| node.region.as_str());
            if let Some(region) = region.filter(|region| *region != shard.primary_region) {
                let lag = lags.entry(region).or_insert(report.lag_ms);
                *lag = report.lag_ms.min(*lag);
            }
        }
        lags
    }
}

#[cfg(test)]
mod tests {
    use meridian_types::Epoch;

    use super::*;
    use crate::command::operator::samples::{cluster, view};

    #[test]
    fn node_counts_as_revoked_until_it_is_heard_of_again() {
        let (mut view, node, now_ms) = (view(), NodeId(5), 1_000_000);
        let mut is_revoked = |age_ms: Option<u64>| {
            view.contacts.retain(|other, _| *other != node);
            let contact = |age_ms| (node, Contact { age_ms, reports: BTreeMap::new() });
            view.contacts.extend(age_ms.map(contact));
            let before = view.revoked_ms(node, now_ms);
            view.cluster.trust.revoked_before_ms.insert(node, 900_000);
            before.is_some()
        };
        assert!(!is_revoked(None), "no certificate of it was revoked yet");
        assert!(is_revoked(None));
        // It renewed its lease before, and a moment after; it is back; and it was, and is away again.
        assert!(is_revoked(Some(150_000)) && is_revoked(Some(99_000)));
        assert!(!is_revoked(Some(200)) && !is_revoked(Some(60_000)));
    }

    #[test]
    fn leader_and_lags_come_from_reachable_nodes_of_the_present_epoch() {
        let mut view = view();
        let shard = cluster().shards[&ShardId(1)].clone();
        assert_eq!(view.leader_of(ShardId(1), &shard), Some(NodeId(1)));
        assert_eq!(
            view.lags(ShardId(1), &shard),
            BTreeMap::from([("region-2", 20), ("region-3", 90)])
        );
        view.contacts.get_mut(&NodeId(6)).unwrap().reports.get_mut(&ShardId(1)).unwrap().epoch =
            Epoch(9);
        view.contacts.get_mut(&NodeId(1)).unwrap().age_ms = 60_000;
        assert_eq!(view.leader_of(ShardId(1), &shard), None);
        assert_eq!(view.lags(ShardId(1), &shard), BTreeMap::from([("region-2", 20)]));
    }
}
