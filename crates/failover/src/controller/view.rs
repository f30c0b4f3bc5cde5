//! All that one shard is judged by at one moment, and the questions that both ways to end an epoch ask.

use std::collections::BTreeSet;
use std::time::Duration;

use meridian_directory::{Change, Cluster, FailoverReport, Loss, Shard, majority};
use meridian_types::{Epoch, NodeId, Position, ShardId, ShardReport};

use crate::controller::contacts::Contacts;
use crate::controller::grants::Grants;
use crate::controller::watch::{Sealing, Watch};
use crate::controller::{ControllerConfig, SealAnswer};
use crate::target;

/// The decision on the next step of one shard.
#[derive(Debug)]
#[allow(
    clippy::large_enum_variant,
    reason = "one is made for each shard and step, and taken apart at once"
)]
pub(super) enum Verdict {
    /// Nothing. For operators: what is waited for; empty when all is well.
    Wait(String),
    Commit(Change),
}

/// All that a shard is judged by.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub(super) now: Duration,
    pub(super) now_ms: u64,
    pub(super) config: &'a ControllerConfig,
    pub(super) cluster: &'a Cluster,
    pub(super) contacts: &'a Contacts,
    pub(super) grants: &'a Grants,
    /// When the controller itself was last starved.
    pub(super) disturbed_at: Duration,
    pub(super) id: ShardId,
    pub(super) shard: &'a Shard,
}

impl<'a> View<'a> {
    pub(super) fn since(&self, time: Duration) -> Duration {
        self.now.saturating_sub(time)
    }

    pub(super) fn is_reachable(&self, node: NodeId) -> bool {
        self.contacts.is_reachable(self.now, node)
    }

    /// It said something, be it late, within the time after which silence is taken for a loss.
    pub(super) fn is_alive(&self, node: NodeId) -> bool {
        self.contacts.was_heard(self.now, node, self.config.failover_after)
    }

    /// Voters that are alive, where they are enough to decide in the group: then the region is not
    /// lost, whatever else is wrong with it, and they may elect a leader yet.
    pub(super) fn live_quorum(&self) -> Option<BTreeSet<NodeId>> {
        let sets = std::iter::once(&self.shard.voters).chain(self.shard.former_voters());
        let mut live = sets.filter_map(|voters| {
            let live: BTreeSet<_> =
                voters.iter().copied().filter(|voter| self.is_alive(*voter)).collect();
            (live.len() >= majority(voters.len())).then_some(live)
        });
        live.next()
    }

    /// The voters of the first epoch that have not come yet, while it cannot have begun for want of
    /// them. Nothing is lost with it: they are waited for, however long they take to join.
    pub(super) fn awaited(&self) -> Option<Vec<NodeId>> {
        let has_come = |id: &&NodeId| {
            self.cluster.nodes.get(id).is_some_and(|node| node.incarnation.is_some())
        };
        let could_begin = |voters: &BTreeSet<NodeId>| {
            voters.iter().filter(has_come).count() >= majority(voters.len())
        };
        let mut sets = std::iter::once(&self.shard.voters).chain(self.shard.former_voters());
        if self.shard.epoch != Epoch::FIRST || sets.any(could_begin) {
            return None;
        }
        let voters = self.shard.voters.iter();
        Some(voters.filter(|voter| !has_come(voter)).copied().collect())
    }

    /// The node's recent report of this epoch.
    pub(super) fn report(&self, node: NodeId) -> Option<&'a ShardReport> {
        self.contacts.report(self.now, node, self.id, self.shard.epoch)
    }

    /// Voters that said lately that they lead in this epoch. More than one while an old leader is
    /// not told.
    pub(super) fn leaders(&self) -> impl Iterator<Item = (NodeId, &'a ShardReport)> {
        let voters = self.cluster.nodes.keys().copied().filter(|node| self.shard.may_vote(*node));
        let reports = voters.filter_map(|voter| self.report(voter).map(|report| (voter, report)));
        reports.filter(|(_, report)| report.leads)
    }

    /// The change of voters that a leader reports as done, by its version.
    pub(super) fn confirmed_voters(&self) -> Option<u64> {
        let version = self.shard.changing.as_ref()?.version;
        self.leaders().any(|(_, report)| report.voters_confirmed_at >= version).then_some(version)
    }

    /// Data centers of `region` with a node that satisfies `wanted`.
    pub(super) fn data_centers(&self, region: &str, wanted: impl Fn(NodeId) -> bool) -> usize {
        target::data_centers(self.cluster, region, wanted)
    }

    pub(super) fn can_take_over(&self, region: &str, usable: impl Fn(NodeId) -> bool) -> bool {
        target::can_take_over(self.cluster, region, usable)
    }

    /// Those that may hold a lease on this epoch and have not sealed it.
    pub(super) fn lease_holders(&self, sealing: &Sealing) -> Vec<NodeId> {
        let all =
            self.cluster.nodes.keys().copied().filter(|node| !sealing.answers.contains_key(node));
        self.grants.may_hold(self.now, self.id, self.shard.epoch, all).collect()
    }

    pub(super) fn names(&self, nodes: impl IntoIterator<Item = NodeId>) -> String {
        let names: Vec<_> = nodes.into_iter().map(|node| self.cluster.name_of(node)).collect();
        names.join(", ")
    }

    /// The sources that `node` is to pull from, in the order in which they are tried: the reachable
    /// ones first, and then the near ones.
    pub(super) fn by_nearness(
        &self,
        node: NodeId,
        holders: impl Iterator<Item = NodeId>,
    ) -> Vec<NodeId> {
        let region = |id: NodeId| self.cluster.nodes.get(&id).map(|node| &node.region);
        let mut holders: Vec<_> = holders.filter(|holder| *holder != node).collect();
        holders.sort_by_key(|holder| {
            (!self.is_reachable(*holder), region(*holder) != region(node), *holder)
        });
        holders
    }

    /// The source whose turn it is. Sources take turns, since a node that was seeded lately has the
    /// position and not the tail, and nothing comes of it.
    pub(super) fn in_turn(&self, sealing: &Sealing, sources: &[NodeId]) -> Option<NodeId> {
        let without_progress = self.since(sealing.progress_at.max(sealing.since));
        let turn = without_progress.as_nanos() / (self.config.seal_timeout / 2).as_nanos().max(1);
        sources.get(usize::try_from(turn).unwrap_or(0) % sources.len().max(1)).copied()
    }

    /// Converts what stands in `Sealing` and cannot end, or `Active` and has failed, into a
    /// failover.
    pub(super) fn fail_over(&self, cause: String) -> Verdict {
        Verdict::Commit(Change::Seal {
            shard: self.id,
            epoch: self.shard.epoch,
            to: None,
            planned: false,
            since_ms: self.now_ms,
            cause,
        })
    }

    /// The end of the epoch: `region` goes on from `base`.
    pub(super) fn promote(
        &self,
        watch: &Watch,
        sealing: &Sealing,
        region: &str,
        voters: BTreeSet<NodeId>,
        first_leaders: &BTreeSet<NodeId>,
        base: &SealAnswer,
    ) -> Verdict {
        // A number of 16 bits is enough for a failover every ten minutes over a year; then it stops
        // here.
        let Some(epoch) = self.shard.epoch.0.checked_add(1).map(Epoch) else {
            return Verdict::Wait("all epochs of this shard were used".to_owned());
        };
        let plan = &sealing.plan;
        let known = watch.progress;
        let loss = if plan.planned {
            Loss { exact: true, ..Loss::default() }
        } else {
            let transactions = known.transactions.saturating_sub(base.transactions);
            let window_ms =
                if transactions == 0 { 0 } else { known.time_ms.saturating_sub(base.time_ms) };
            Loss { transactions, window_ms, at_most: transactions, ..Loss::default() }
        };
        let report = FailoverReport {
            epoch,
            from_region: self.shard.primary_region.clone(),
            to_region: region.to_owned(),
            planned: plan.planned,
            cause: plan.cause.clone(),
            base: base.position,
            base_transactions: base.transactions,
            base_time_ms: base.time_ms,
            sealed_at_ms: plan.since_ms,
            promoted_at_ms: self.now_ms,
            loss,
            // The change fills these in.
            old_voters: BTreeSet::new(),
            former_voters: Vec::new(),
        };
        let preferred_leader = self.cluster.spread_leader(first_leaders);
        Verdict::Commit(Change::Promote { shard: self.id, voters, preferred_leader, report })
    }
}

/// `4.0 s`.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{:.1} s", duration.as_secs_f64())
}

/// Up to where the node has everything, by what it answered and what was drained to it.
pub(super) fn position_of(sealing: &Sealing, node: NodeId) -> Option<Position> {
    let answered = sealing.answers.get(&node).map(|answer| answer.position);
    answered.max(sealing.drained.get(&node).copied())
}
