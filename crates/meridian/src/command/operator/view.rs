use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result};
use meridian_directory::{Cluster, Shard};
use meridian_failover::ControllerConfig;
use meridian_proto::directory as wire;
use meridian_types::{DatabaseId, Epoch, NodeId, Position, ShardId};

/// What the directory said when it was asked.
#[derive(Debug, Clone)]
pub(crate) struct View {
    pub(crate) cluster: Cluster,
    /// Of the directory, as whoever answered knows it.
    pub(crate) leader: Option<NodeId>,
    pub(crate) term: u64,
    /// Where the leader answered. `None`: another node did, which knows neither progress nor
    /// contacts, and may know an old cluster.
    pub(crate) leader_address: Option<String>,
    /// The latest changes of those that were asked for, oldest first.
    pub(crate) changes: Vec<wire::ChangeRecord>,
    pub(crate) progress: BTreeMap<ShardId, String>,
    pub(crate) contacts: BTreeMap<NodeId, Contact>,
}

/// When a node last renewed its lease, and what it said then.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contact {
    pub(crate) age_ms: u64,
    pub(crate) reports: BTreeMap<ShardId, Report>,
    /// Of the databases that are being deleted, those whose data the node has dropped.
    pub(crate) dropped: BTreeSet<DatabaseId>,
    /// Nodes that applied something else than this one, and at which position that was first seen.
    pub(crate) differs: Vec<(ShardId, NodeId, Position)>,
    /// Why it does not store what others send it.
    pub(crate) refuses: BTreeMap<ShardId, String>,
}

/// What a node said of one shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) epoch: Epoch,
    pub(crate) position: Position,
    pub(crate) transactions: u64,
    pub(crate) time_ms: u64,
    pub(crate) leads: bool,
    pub(crate) lag_ms: u64,
}

/// Whether a node that was heard of so long ago counts as reachable, as the failover controller
/// sees it.
pub(crate) fn is_fresh(age_ms: u64) -> bool {
    Duration::from_millis(age_ms) <= ControllerConfig::default().reachable_within
}

impl View {
    /// `leader_address`: where the answer is from, if the leader gave it.
    pub(super) fn read(
        response: wire::InspectResponse,
        leader_address: Option<String>,
    ) -> Result<Self> {
        let json = response.cluster.map(|cluster| cluster.json).unwrap_or_default();
        let cluster = serde_json::from_slice(&json)
            .context("it describes the cluster as this version cannot read")?;
        let mut changes = response.changes;
        changes.sort_by_key(|change| change.version);
        let contact = |contact: wire::NodeContact| {
            let dropped = contact.reports.iter().flat_map(|report| &report.dropped);
            let dropped =
                dropped.filter_map(|id| id.as_ref().try_into().ok().map(DatabaseId)).collect();
            let differs = contact.reports.iter().flat_map(divergences).collect();
            let refuses = contact.reports.iter().filter(|report| !report.refuses.is_empty());
            let refuses =
                refuses.map(|report| (ShardId(report.shard), report.refuses.clone())).collect();
            let reports = contact.reports.into_iter().filter_map(report).collect();
            (
                contact.node_id,
                Contact { age_ms: contact.age_ms, reports, dropped, differs, refuses },
            )
        };
        Ok(Self {
            cluster,
            leader: Some(response.leader).filter(|leader| *leader != 0),
            term: response.term,
            leader_address,
            changes,
            progress: response
                .progress
                .into_iter()
                .map(|step| (ShardId(step.shard), step.text))
                .collect(),
            contacts: response.contacts.into_iter().map(contact).collect(),
        })
    }

    /// Nodes that are reachable and speak of the shard, with what they say.
    pub(crate) fn fresh_reports(
        &self,
        shard: ShardId,
    ) -> impl Iterator<Item = (NodeId, Report)> + '_ {
        let fresh = self.contacts.iter().filter(|(_, contact)| is_fresh(contact.age_ms));
        fresh.filter_map(move |(node, contact)| {
            contact.reports.get(&shard).map(|report| (*node, *report))
        })
    }

    /// Who leads the shard in its present epoch and is reachable.
    pub(crate) fn leader_of(&self, id: ShardId, shard: &Shard) -> Option<NodeId> {
        let mut leaders = self
            .fresh_reports(id)
            .filter(|(_, report)| report.leads && report.epoch == shard.epoch);
        leaders.next().map(|(node, _)| node)
    }

    /// How far each replica region is behind, by its best node that is reachable and follows the
    /// present epoch.
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

/// `None` for what no node of this version says.
fn report(wire: wire::ShardReport) -> Option<(ShardId, Report)> {
    let report = Report {
        epoch: Epoch(u16::try_from(wire.epoch).ok()?),
        position: position(wire.position?)?,
        transactions: wire.transactions,
        time_ms: wire.time_ms,
        leads: wire.leads,
        lag_ms: wire.lag_ms,
    };
    Some((ShardId(wire.shard), report))
}

fn divergences(report: &wire::ShardReport) -> impl Iterator<Item = (ShardId, NodeId, Position)> {
    let shard = ShardId(report.shard);
    report
        .divergences
        .iter()
        .filter_map(move |other| Some((shard, other.node_id, position(other.position?)?)))
}

fn position(wire: meridian_proto::shipping::Position) -> Option<Position> {
    Some(Position::new(Epoch(u16::try_from(wire.epoch).ok()?), wire.sequence))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::{cluster, view};

    #[test]
    fn leader_and_lags_are_of_the_present_epoch_and_of_nodes_that_are_reachable() {
        let mut view = view();
        let shard = cluster().shards[&ShardId(1)].clone();
        assert_eq!(view.leader_of(ShardId(1), &shard), Some(1));
        assert_eq!(
            view.lags(ShardId(1), &shard),
            BTreeMap::from([("region-2", 20), ("region-3", 90)])
        );
        view.contacts.get_mut(&6).unwrap().reports.get_mut(&ShardId(1)).unwrap().epoch = Epoch(9);
        view.contacts.get_mut(&1).unwrap().age_ms = 60_000;
        assert_eq!(view.leader_of(ShardId(1), &shard), None);
        assert_eq!(view.lags(ShardId(1), &shard), BTreeMap::from([("region-2", 20)]));
    }
}
