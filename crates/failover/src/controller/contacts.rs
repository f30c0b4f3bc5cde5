//! The controller's last contact with each node.

use std::collections::BTreeMap;
use std::time::Duration;

use meridian_types::{Epoch, NodeId, ShardId, ShardReport};

use crate::preview::Contact;

#[derive(Debug)]
struct Renewed {
    at: Duration,
    reports: BTreeMap<ShardId, ShardReport>,
}

/// When each node last renewed, and what it said.
#[derive(Debug)]
pub(super) struct Contacts {
    reachable_within: Duration,
    nodes: BTreeMap<NodeId, Renewed>,
}

impl Contacts {
    pub(super) fn new(reachable_within: Duration) -> Self {
        Self { reachable_within, nodes: BTreeMap::new() }
    }

    pub(super) fn heard(&mut self, now: Duration, node: NodeId, reports: Vec<ShardReport>) {
        let reports = reports.into_iter().map(|report| (report.shard, report)).collect();
        self.nodes.insert(node, Renewed { at: now, reports });
    }

    pub(super) fn is_reachable(&self, now: Duration, node: NodeId) -> bool {
        self.was_heard(now, node, self.reachable_within)
    }

    pub(super) fn was_heard(&self, now: Duration, node: NodeId, within: Duration) -> bool {
        self.nodes.get(&node).is_some_and(|contact| now.saturating_sub(contact.at) <= within)
    }

    pub(super) fn all(&self, now: Duration) -> BTreeMap<NodeId, Contact> {
        let contact = |(node, renewed): (&NodeId, &Renewed)| {
            let age = now.saturating_sub(renewed.at).as_millis();
            let age_ms = u64::try_from(age).unwrap_or(u64::MAX);
            (*node, Contact { age_ms, reports: renewed.reports.clone() })
        };
        self.nodes.iter().map(contact).collect()
    }

    pub(super) fn latest(&self, node: NodeId, shard: ShardId) -> Option<&ShardReport> {
        self.nodes.get(&node)?.reports.get(&shard)
    }

    /// The node's report on the shard, if it is recent and of this epoch.
    pub(super) fn report(
        &self,
        now: Duration,
        node: NodeId,
        shard: ShardId,
        epoch: Epoch,
    ) -> Option<&ShardReport> {
        let report = self.nodes.get(&node)?.reports.get(&shard)?;
        (self.is_reachable(now, node) && report.epoch == epoch).then_some(report)
    }
}
