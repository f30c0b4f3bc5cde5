//! The epochs of a shard: sealing, promotion, switchover, voters, and reports of loss.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use meridian_types::{Epoch, NodeId, ShardId};

use crate::change::{Refused, ensure};
use crate::cluster::Cluster;
use crate::report::FailoverReport;
use crate::shard::{Phase, Plan, Shard, VoterChange};

/// Reports that are kept of each shard.
///
/// The whole cluster is written with each change: with what is kept here the size of every commit
/// grows.
const MAX_REPORTS: usize = 16;

/// The present work of a shard, in words for people.
fn describe(id: ShardId, shard: &Shard) -> String {
    let (epoch, region) = (shard.epoch, &shard.primary_region);
    match &shard.phase {
        Phase::Forming => format!("shard {id} is being opened in {region} (epoch {epoch})"),
        Phase::Active => format!("shard {id} is active in {region} (epoch {epoch})"),
        Phase::SwitchingOver { to } => {
            format!("shard {id} is being switched over from {region} to {to}")
        }
        Phase::Sealing(Plan { planned: true, to: Some(to), .. }) if to == region => {
            format!("shard {id} is sealed, and goes back to {region}")
        }
        Phase::Sealing(Plan { planned: true, to, .. }) => {
            format!(
                "shard {id} is sealed for its switchover from {region} to {}",
                to.as_deref().unwrap_or("?")
            )
        }
        Phase::Sealing(_) => {
            format!("shard {id} is sealed (epoch {epoch}), since {region} has failed")
        }
    }
}

impl Cluster {
    fn shard_mut(&mut self, id: ShardId) -> Result<&mut Shard, Refused> {
        self.shards.get_mut(&id).ok_or_else(|| Refused(format!("there is no shard {id}")))
    }

    fn shard_at(&mut self, id: ShardId, epoch: Epoch) -> Result<&mut Shard, Refused> {
        let shard = self.shard_mut(id)?;
        ensure(shard.epoch == epoch, || format!("{}, not in epoch {epoch}", describe(id, shard)))?;
        Ok(shard)
    }

    pub(super) fn seal(&mut self, id: ShardId, epoch: Epoch, plan: Plan) -> Result<(), Refused> {
        if let Some(to) = &plan.to {
            self.check_region_with_nodes(to)?;
        }
        let shard = self.shard_at(id, epoch)?;
        let may_seal = match &shard.phase {
            // A planned seal ends the switchover that was prepared, and no other.
            Phase::SwitchingOver { to } => !plan.planned || plan.to.as_ref() == Some(to),
            Phase::Active | Phase::Forming | Phase::Sealing(Plan { planned: true, .. }) => {
                !plan.planned
            }
            Phase::Sealing(_) => false,
        };
        ensure(may_seal, || format!("{}: it cannot be sealed", describe(id, shard)))?;
        shard.phase = Phase::Sealing(plan);
        Ok(())
    }

    pub(super) fn force_failover(
        &mut self,
        id: ShardId,
        epoch: Epoch,
        plan: Plan,
    ) -> Result<(), Refused> {
        if let Some(to) = &plan.to {
            self.check_region_with_nodes(to)?;
        }
        let shard = self.shard_at(id, epoch)?;
        let since_ms = match &shard.phase {
            Phase::Sealing(sealing) if !sealing.planned => sealing.since_ms,
            _ => plan.since_ms,
        };
        shard.phase = Phase::Sealing(Plan { since_ms, ..plan });
        Ok(())
    }

    pub(super) fn promote(
        &mut self,
        id: ShardId,
        voters: &BTreeSet<NodeId>,
        preferred_leader: Option<NodeId>,
        report: &FailoverReport,
    ) -> Result<(), Refused> {
        self.check_region(&report.to_region)?;
        let shard = self.shard_mut(id)?;
        let Phase::Sealing(plan) = &shard.phase else {
            return Err(Refused(format!("{}: it cannot be promoted", describe(id, shard))));
        };
        ensure(shard.epoch.0.checked_add(1) == Some(report.epoch.0), || {
            format!("shard {id} is in epoch {}: the next one is not {}", shard.epoch, report.epoch)
        })?;
        ensure(shard.in_history(report.base), || {
            format!("{} is not in the history of epoch {} of shard {id}", report.base, shard.epoch)
        })?;
        ensure(
            plan.planned == report.planned
                && plan.to.as_ref().is_none_or(|to| *to == report.to_region),
            || format!("{}: the report says something else", describe(id, shard)),
        )?;
        ensure(shard.primary_region == report.from_region, || {
            format!("{}, not in {}", describe(id, shard), report.from_region)
        })?;
        let old_voters = std::mem::replace(&mut shard.voters, voters.clone());
        let former_voters = shard.changing.take().map(|change| change.former).unwrap_or_default();
        shard.epoch = report.epoch;
        shard.phase = Phase::Forming;
        shard.primary_region.clone_from(&report.to_region);
        shard.preferred_leader = preferred_leader;
        shard.bases.push((report.epoch, report.base));
        shard.reports.push(FailoverReport { old_voters, former_voters, ..report.clone() });
        let surplus = shard.reports.len().saturating_sub(MAX_REPORTS);
        shard.reports.drain(..surplus);
        Ok(())
    }

    pub(super) fn activate(&mut self, id: ShardId, epoch: Epoch) -> Result<(), Refused> {
        let shard = self.shard_at(id, epoch)?;
        ensure(shard.phase == Phase::Forming, || {
            format!("{}: it cannot be activated", describe(id, shard))
        })?;
        shard.phase = Phase::Active;
        Ok(())
    }

    pub(super) fn show_loss(
        &mut self,
        id: ShardId,
        epoch: Epoch,
        node: NodeId,
        transactions: RangeInclusive<u64>,
        last_time_ms: u64,
    ) -> Result<(), Refused> {
        let name = self.name_of(node);
        ensure(self.nodes.contains_key(&node), || format!("there is no {name}"))?;
        let shard = self.shard_mut(id)?;
        let report = shard.reports.iter_mut().find(|report| report.epoch == epoch);
        let report = report
            .ok_or_else(|| Refused(format!("shard {id} keeps no report of epoch {epoch}")))?;
        ensure(!report.loss.exact, || {
            format!("what epoch {epoch} of shard {id} lost is known exactly")
        })?;
        // Entries beyond the longest log of a majority were never committed.
        let was_bounded = report.is_bounded();
        let loss = &mut report.loss;
        if !was_bounded {
            loss.at_most = loss.at_most.max(*transactions.end());
        }
        if *transactions.start() > 0 {
            loss.window_ms = loss.window_ms.max(last_time_ms.saturating_sub(report.base_time_ms));
        }
        loss.transactions = loss.transactions.max(*transactions.start());
        loss.at_most = loss.at_most.max(loss.transactions);
        loss.shown_by.insert(node);
        let is_settled = loss.at_most == loss.transactions;
        report.loss.exact = is_settled && report.is_bounded();
        Ok(())
    }

    pub(super) fn begin_switchover(&mut self, id: ShardId, to: &str) -> Result<(), Refused> {
        self.check_region_with_nodes(to)?;
        let shard = self.shard_mut(id)?;
        ensure(shard.phase == Phase::Active, || {
            format!("{}: it cannot be switched over now", describe(id, shard))
        })?;
        ensure(shard.primary_region != to, || {
            format!("shard {id} has its primary in {to} already")
        })?;
        shard.phase = Phase::SwitchingOver { to: to.to_owned() };
        Ok(())
    }

    pub(super) fn cancel_switchover(&mut self, id: ShardId) -> Result<(), Refused> {
        let shard = self.shard_mut(id)?;
        let home = Some(shard.primary_region.clone());
        match &mut shard.phase {
            Phase::SwitchingOver { .. } => shard.phase = Phase::Active,
            Phase::Sealing(plan) if plan.planned && plan.to != home => plan.to = home,
            Phase::Sealing(_) => {
                return Err(Refused(format!(
                    "{}: there is no switchover to cancel",
                    describe(id, shard)
                )));
            }
            Phase::Forming | Phase::Active => {
                let done = shard
                    .reports
                    .last()
                    .filter(|report| report.planned && report.from_region != report.to_region);
                return Err(Refused(match done {
                    Some(report) => format!(
                        "too late: {}; to go back, switch it over to {}",
                        describe(id, shard),
                        report.from_region
                    ),
                    None => format!("{}: there is no switchover to cancel", describe(id, shard)),
                }));
            }
        }
        Ok(())
    }

    pub(super) fn set_voters(
        &mut self,
        id: ShardId,
        voters: &BTreeSet<NodeId>,
    ) -> Result<(), Refused> {
        let version = self.version + 1;
        let leader = self.spread_leader(voters);
        let shard = self.shard_mut(id)?;
        ensure(shard.phase == Phase::Active, || {
            format!("{}: its voters cannot change now", describe(id, shard))
        })?;
        shard.change_voters(voters.clone(), version);
        shard.preferred_leader =
            shard.preferred_leader.filter(|leader| voters.contains(leader)).or(leader);
        Ok(())
    }

    pub(super) fn confirm_voters(
        &mut self,
        id: ShardId,
        epoch: Epoch,
        version: u64,
    ) -> Result<(), Refused> {
        let shard = self.shard_at(id, epoch)?;
        let is_it = shard.changing.as_ref().is_some_and(|change| change.version == version);
        ensure(is_it, || {
            format!("{}: no change of its voters is of version {version}", describe(id, shard))
        })?;
        shard.changing = None;
        Ok(())
    }
}

impl Shard {
    /// `version`: of the cluster with this change.
    pub(super) fn change_voters(&mut self, voters: BTreeSet<NodeId>, version: u64) {
        if voters == self.voters {
            return;
        }
        let before = std::mem::replace(&mut self.voters, voters);
        let mut former = self.changing.take().map(|change| change.former).unwrap_or_default();
        if !former.contains(&before) {
            former.push(before);
        }
        former.retain(|voters| *voters != self.voters);
        self.changing = Some(VoterChange { former, version });
    }
}
