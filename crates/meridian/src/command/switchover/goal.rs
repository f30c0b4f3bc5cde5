//! The goal of a switchover or failover, and how far it has come.

use meridian_directory::{Cluster, FailoverReport, Phase, Plan};
use meridian_types::{Epoch, ShardId};
use serde::Serialize;

use crate::command::operator::View;

/// The move of a shard that an operator ordered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Goal {
    pub(crate) shard: ShardId,
    /// The epoch that is to end.
    pub(crate) epoch: Epoch,
    pub(crate) from: String,
    /// `None`: any region.
    pub(crate) to: Option<String>,
    /// `true`: a switchover, which can be cancelled. `false`: a failover.
    pub(crate) planned: bool,
    /// The version of the cluster in which the move began. An older cluster, as a new leader of the
    /// directory may show at first, says nothing about it.
    pub(crate) version: u64,
}

/// How far the move has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The old region serves everything.
    Preparing,
    /// Strong operations wait; the move can still be cancelled.
    Sealed,
    /// Sealed and cancelled: the old region will open again.
    GoingBack,
    /// Strong operations wait, and batches that were not shipped will be lost.
    FailingOver,
    /// The next epoch has begun: beyond the commit point.
    Opening,
    /// Served in the next epoch's region.
    Open,
    /// Served as before, in the same epoch.
    Cancelled,
    /// The shard no longer exists.
    Gone,
}

impl Goal {
    /// `None`: the shard does not exist.
    pub(crate) fn switchover(cluster: &Cluster, id: ShardId, to: &str) -> Option<Self> {
        let shard = cluster.shards.get(&id)?;
        let (epoch, from) = (shard.epoch, shard.primary_region.clone());
        Some(Self {
            shard: id,
            epoch,
            from,
            to: Some(to.to_owned()),
            planned: true,
            version: cluster.version,
        })
    }

    pub(crate) fn stage(&self, cluster: &Cluster) -> Stage {
        let Some(shard) = cluster.shards.get(&self.shard) else { return Stage::Gone };
        if shard.epoch > self.epoch {
            // Later phases of the next epoch belong to other moves.
            let is_opening = shard.phase == Phase::Forming && shard.epoch.0 == self.epoch.0 + 1;
            return if is_opening { Stage::Opening } else { Stage::Open };
        }
        match &shard.phase {
            Phase::SwitchingOver { .. } => Stage::Preparing,
            Phase::Sealing(Plan { planned: true, to, .. }) if to.as_ref() == Some(&self.from) => {
                Stage::GoingBack
            }
            Phase::Sealing(Plan { planned: true, .. }) => Stage::Sealed,
            Phase::Sealing(_) => Stage::FailingOver,
            Phase::Active | Phase::Forming => Stage::Cancelled,
        }
    }

    /// The report on the end of the epoch.
    pub(crate) fn report<'a>(&self, cluster: &'a Cluster) -> Option<&'a FailoverReport> {
        let shard = cluster.shards.get(&self.shard)?;
        shard.reports.iter().find(|report| report.epoch.0 == self.epoch.0 + 1)
    }

    /// The stage and its progress, for people.
    pub(crate) fn describe(&self, view: &View) -> String {
        let (from, to) = (&self.from, self.to.as_deref().unwrap_or("another region"));
        let stage = match self.stage(&view.cluster) {
            Stage::Preparing => format!("{to} is being prepared; everything is served in {from}"),
            Stage::Sealed => format!("sealed: writes wait while {to} catches up"),
            Stage::GoingBack => format!("sealed: writes wait until {from} opens again"),
            Stage::FailingOver => format!("sealed: failing over from {from} to {to}"),
            Stage::Opening => "the next epoch has begun and is being opened".to_owned(),
            Stage::Open => "open".to_owned(),
            Stage::Cancelled => format!("served in {from} as before"),
            Stage::Gone => "the shard no longer exists".to_owned(),
        };
        match view.progress.get(&self.shard) {
            Some(progress) => format!("shard {}: {stage} ({progress})", self.shard),
            None => format!("shard {}: {stage}", self.shard),
        }
    }

    /// The state of the move, and how to cancel it, for an operator that stops waiting.
    pub(crate) fn after_interruption(&self, cluster: &Cluster) -> String {
        let (shard, from) = (self.shard, &self.from);
        let what = if self.planned { "the switchover" } else { "the failover" };
        match self.stage(cluster) {
            Stage::Preparing => format!(
                "shard {shard}: {what} continues. To cancel it: `meridian switchover --cancel {shard}`"
            ),
            Stage::Sealed => format!(
                "shard {shard}: {what} continues, and writes wait. It can still be cancelled (`meridian \
                 switchover --cancel {shard}`): {from} then opens again, in a new epoch"
            ),
            Stage::GoingBack => {
                format!("shard {shard}: {what} is cancelled already, and {from} will open again")
            }
            Stage::FailingOver => {
                format!("shard {shard}: {what} continues. It can no longer be cancelled")
            }
            Stage::Opening => format!(
                "shard {shard}: {what} is past its commit point and will open; to go back, switch over to {from}"
            ),
            Stage::Open => format!("shard {shard}: {what} is over"),
            Stage::Cancelled => {
                format!("shard {shard}: {what} was cancelled; it is served in {from}")
            }
            Stage::Gone => format!("shard {shard} no longer exists"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::operator::samples::view;

    fn in_phase(epoch: u16, region: &str, phase: Phase) -> View {
        let mut view = view();
        let shard = view.cluster.shards.get_mut(&ShardId(1)).unwrap();
        shard.epoch = Epoch(epoch);
        region.clone_into(&mut shard.primary_region);
        shard.phase = phase;
        view
    }

    fn sealing(planned: bool, to: &str) -> Phase {
        Phase::Sealing(Plan { to: Some(to.to_owned()), planned, since_ms: 0, cause: String::new() })
    }

    #[test]
    fn every_stage_is_described_with_the_commands_that_apply() {
        let goal = Goal::switchover(&view().cluster, ShardId(1), "region-2").unwrap();
        let switching = Phase::SwitchingOver { to: "region-2".to_owned() };
        let cases = [
            (
                in_phase(1, "region-1", switching),
                Stage::Preparing,
                "To cancel it: `meridian switchover --cancel 1`",
            ),
            (
                in_phase(1, "region-1", sealing(true, "region-2")),
                Stage::Sealed,
                "It can still be cancelled",
            ),
            (
                in_phase(1, "region-1", sealing(true, "region-1")),
                Stage::GoingBack,
                "cancelled already",
            ),
            (
                in_phase(1, "region-1", sealing(false, "region-3")),
                Stage::FailingOver,
                "can no longer be cancelled",
            ),
            (in_phase(2, "region-2", Phase::Forming), Stage::Opening, "past its commit point"),
            (in_phase(2, "region-2", Phase::Active), Stage::Open, "is over"),
            (in_phase(3, "region-3", Phase::Forming), Stage::Open, "is over"),
            (in_phase(1, "region-1", Phase::Active), Stage::Cancelled, "was cancelled"),
        ];
        for (view, stage, text) in cases {
            assert_eq!(goal.stage(&view.cluster), stage);
            let said = goal.after_interruption(&view.cluster);
            assert!(said.contains(text), "{stage:?}: {said}");
        }
        let gone = Goal { shard: ShardId(9), ..goal };
        assert_eq!(gone.stage(&view().cluster), Stage::Gone);
    }

    #[test]
    fn directory_progress_is_shown_with_the_stage() {
        let goal = Goal::switchover(&view().cluster, ShardId(1), "region-2").unwrap();
        let mut view = in_phase(1, "region-1", Phase::SwitchingOver { to: "region-2".to_owned() });
        view.progress.insert(ShardId(1), "lag 1200 ms".to_owned());
        let text =
            "shard 1: region-2 is being prepared; everything is served in region-1 (lag 1200 ms)";
        assert_eq!(goal.describe(&view), text);
    }
}
