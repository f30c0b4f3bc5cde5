use meridian_directory::{Cluster, FailoverReport, Phase, Plan};
use meridian_types::{Epoch, ShardId};
use serde::Serialize;

use crate::command::operator::View;

/// What an operator asked of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Goal {
    pub(crate) shard: ShardId,
    /// The epoch that is to end.
    pub(crate) epoch: Epoch,
    pub(crate) from: String,
    /// `None`: any region.
    pub(crate) to: Option<String>,
    /// A switchover, which can be stopped. Else a failover.
    pub(crate) planned: bool,
    /// Of the cluster since it began. An older one, as a new leader of the directory may tell at
    /// first, says nothing of it.
    pub(crate) version: u64,
}

/// How far it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Everything is served where it was.
    Preparing,
    /// Nothing is served strongly; it can still go back.
    Sealed,
    /// As `Sealed`, and it goes back.
    GoingBack,
    /// Nothing is served strongly, and what was not shipped will be lost.
    FailingOver,
    /// The next epoch has begun: beyond the commit point.
    Opening,
    /// Served in the region of the next epoch.
    Open,
    /// As before, in the same epoch.
    Cancelled,
    /// There is no such shard any more.
    Gone,
}

impl Goal {
    /// `None`: there is no such shard.
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
            // Whatever comes after its opening is another story.
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

    /// How the epoch ended.
    pub(crate) fn report<'a>(&self, cluster: &'a Cluster) -> Option<&'a FailoverReport> {
        let shard = cluster.shards.get(&self.shard)?;
        shard.reports.iter().find(|report| report.epoch.0 == self.epoch.0 + 1)
    }

    /// For people.
    pub(crate) fn describe(&self, view: &View) -> String {
        let (from, to) = (&self.from, self.to.as_deref().unwrap_or("another region"));
        let stage = match self.stage(&view.cluster) {
            Stage::Preparing => format!("{to} is being prepared; everything is served in {from}"),
            Stage::Sealed => format!("sealed: writes wait while {to} gets the rest"),
            Stage::GoingBack => format!("sealed: writes wait until {from} opens again"),
            Stage::FailingOver => format!("sealed: failing over from {from} to {to}"),
            Stage::Opening => "the next epoch has begun and is being opened".to_owned(),
            Stage::Open => "open".to_owned(),
            Stage::Cancelled => format!("served in {from} as before"),
            Stage::Gone => "there is no such shard any more".to_owned(),
        };
        match view.progress.get(&self.shard) {
            Some(progress) => format!("shard {}: {stage} ({progress})", self.shard),
            None => format!("shard {}: {stage}", self.shard),
        }
    }

    /// What an operator who stops waiting should know.
    pub(crate) fn after_interruption(&self, cluster: &Cluster) -> String {
        let (shard, from) = (self.shard, &self.from);
        let what = if self.planned { "the switchover" } else { "the failover" };
        match self.stage(cluster) {
            Stage::Preparing => format!(
                "shard {shard}: {what} goes on by itself. It can be stopped: `meridian switchover --cancel {shard}`"
            ),
            Stage::Sealed => format!(
                "shard {shard}: {what} goes on by itself, and writes wait. It can still be stopped (`meridian \
                 switchover --cancel {shard}`): {from} then opens again, in a new epoch"
            ),
            Stage::GoingBack => format!(
                "shard {shard}: {what} is cancelled already, and {from} opens again by itself"
            ),
            Stage::FailingOver => {
                format!("shard {shard}: {what} goes on by itself. It cannot be stopped any more")
            }
            Stage::Opening => format!(
                "shard {shard}: {what} is past its commit point and opens by itself; to go back, switch it over to {from}"
            ),
            Stage::Open => format!("shard {shard}: {what} is over"),
            Stage::Cancelled => {
                format!("shard {shard}: {what} was cancelled; it is served in {from}")
            }
            Stage::Gone => format!("shard {shard} does not exist any more"),
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
    fn every_stage_is_told_and_what_can_be_done_about_it() {
        let goal = Goal::switchover(&view().cluster, ShardId(1), "region-2").unwrap();
        let switching = Phase::SwitchingOver { to: "region-2".to_owned() };
        let cases = [
            (
                in_phase(1, "region-1", switching),
                Stage::Preparing,
                "It can be stopped: `meridian switchover --cancel 1`",
            ),
            (
                in_phase(1, "region-1", sealing(true, "region-2")),
                Stage::Sealed,
                "It can still be stopped",
            ),
            (
                in_phase(1, "region-1", sealing(true, "region-1")),
                Stage::GoingBack,
                "cancelled already",
            ),
            (
                in_phase(1, "region-1", sealing(false, "region-3")),
                Stage::FailingOver,
                "cannot be stopped any more",
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
    fn progress_of_the_directory_is_told_with_the_stage() {
        let goal = Goal::switchover(&view().cluster, ShardId(1), "region-2").unwrap();
        let mut view = in_phase(1, "region-1", Phase::SwitchingOver { to: "region-2".to_owned() });
        view.progress.insert(ShardId(1), "lag 1200 ms".to_owned());
        let text =
            "shard 1: region-2 is being prepared; everything is served in region-1 (lag 1200 ms)";
        assert_eq!(goal.describe(&view), text);
    }
}
