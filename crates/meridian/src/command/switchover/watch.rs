//! Waiting for switchovers and failovers: progress on the standard error, outcomes on the standard
//! output.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Result, bail};
use meridian_directory::{Cluster, FailoverReport};
use meridian_types::ShardId;
use serde::Serialize;
use tokio::time::Instant;

use super::goal::{Goal, Stage};
use crate::command::cluster::change_text;
use crate::command::operator::{Directory, View, format, print, print_json};
use crate::command::{Hangup, asked_to_stop};

const POLL: Duration = Duration::from_millis(50);
/// Waiting ends after so long without an answer. The moves continue.
const PATIENCE: Duration = Duration::from_secs(60);

/// The outcome of a goal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Outcome {
    pub(crate) shard: ShardId,
    pub(crate) from: String,
    /// The region in which the shard is served.
    pub(crate) region: String,
    pub(crate) epoch: u16,
    /// The shard is in its target region.
    pub(crate) reached: bool,
    /// From the seal to the next epoch, by the directory leader's clock; strong operations waited.
    pub(crate) sealed_ms: Option<u64>,
    /// From the next epoch to its opening, as seen by this command; strong operations waited for
    /// that, too.
    pub(crate) opened_after_ms: Option<u64>,
    /// Since the command began.
    pub(crate) took_ms: u64,
    /// The report on the end of the epoch, with its loss. `None`: the epoch continues.
    pub(crate) report: Option<FailoverReport>,
}

impl Outcome {
    /// The outcome of a goal that is at its end.
    fn of(goal: &Goal, cluster: &Cluster, opened_after_ms: Option<u64>, took_ms: u64) -> Self {
        let report = goal.report(cluster);
        let shard = cluster.shards.get(&goal.shard);
        // The region of the epoch that ended the move, though a later epoch may have begun since.
        let region =
            report.map(|report| &report.to_region).or(shard.map(|shard| &shard.primary_region));
        let region = region.cloned().unwrap_or_default();
        Self {
            shard: goal.shard,
            from: goal.from.clone(),
            reached: match &goal.to {
                Some(to) => region == *to,
                None => report.is_some(),
            },
            region,
            epoch: report.map_or(goal.epoch.0, |report| report.epoch.0),
            sealed_ms: report
                .map(|report| report.promoted_at_ms.saturating_sub(report.sealed_at_ms)),
            opened_after_ms,
            took_ms,
            report: report.cloned(),
        }
    }

    /// For people.
    pub(crate) fn text(&self) -> String {
        let Self { shard, from, region, epoch, .. } = self;
        let Some(report) = &self.report else {
            return format!("shard {shard} is served in {region} as before: it was not moved");
        };
        let place = match (self.reached, region == from) {
            (true, _) => format!("shard {shard} is served in {region} now, in epoch {epoch}"),
            (false, true) => {
                format!("shard {shard} is back in {region}, in epoch {epoch}: it was not moved")
            }
            (false, false) => {
                format!("shard {shard} is served in {region} instead, in epoch {epoch}")
            }
        };
        let loss = change_text::loss(report);
        let sealed = format::duration(self.sealed_ms.unwrap_or(0));
        let opened = match self.opened_after_ms {
            Some(ms) => format!(" and open {} later", format::duration(ms)),
            None => String::new(),
        };
        format!(
            "{place}: {loss}; sealed for {sealed}{opened}, {} in all",
            format::duration(self.took_ms)
        )
    }
}

/// The progress of a goal as seen so far.
#[derive(Default)]
struct Seen {
    told: String,
    opening_since: Option<Instant>,
    outcome: Option<Outcome>,
}

/// Shows on the standard error how the goals progress until each is at its end, then prints their
/// outcomes. Returns whether all were reached. An interruption ends the waiting only, and tells the
/// operator what can still be done.
pub(crate) async fn wait(directory: &mut Directory, goals: &[Goal], json: bool) -> Result<bool> {
    let begun = Instant::now();
    let mut seen: BTreeMap<ShardId, Seen> =
        goals.iter().map(|goal| (goal.shard, Seen::default())).collect();
    let stop = asked_to_stop(Hangup::Stop);
    tokio::pin!(stop);
    let mut answered = Instant::now();
    while seen.values().any(|seen| seen.outcome.is_none()) {
        let asked = tokio::select! {
            asked = directory.inspect(0) => asked,
            () = &mut stop => return interrupted(directory, goals).await,
        };
        match asked {
            // The view of another node may be older than the move.
            Ok(view) if view.leader_address.is_some() => {
                answered = Instant::now();
                for goal in goals {
                    if let Some(seen) = seen.get_mut(&goal.shard) {
                        look(goal, &view, seen, begun);
                    }
                }
            }
            _ if answered.elapsed() > PATIENCE => {
                bail!("the directory no longer answers; the moves continue without this command")
            }
            _ => {}
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            () = &mut stop => return interrupted(directory, goals).await,
        }
    }
    let outcomes: Vec<Outcome> = seen.into_values().filter_map(|seen| seen.outcome).collect();
    if json {
        print_json(&outcomes)?;
    } else {
        print(&outcomes.iter().map(|outcome| outcome.text() + "\n").collect::<String>())?;
    }
    Ok(outcomes.iter().all(|outcome| outcome.reached))
}

fn look(goal: &Goal, view: &View, seen: &mut Seen, begun: Instant) {
    if seen.outcome.is_some() || view.cluster.version < goal.version {
        return;
    }
    let text = goal.describe(view);
    if text != seen.told {
        eprintln!("{:>8}  {text}", format::duration(millis(begun)));
        seen.told = text;
    }
    match goal.stage(&view.cluster) {
        Stage::Opening => {
            seen.opening_since.get_or_insert_with(Instant::now);
        }
        Stage::Open | Stage::Cancelled | Stage::Gone => {
            let opened_after = seen.opening_since.map(millis);
            seen.outcome = Some(Outcome::of(goal, &view.cluster, opened_after, millis(begun)));
        }
        Stage::Preparing | Stage::Sealed | Stage::GoingBack | Stage::FailingOver => {}
    }
}

async fn interrupted(directory: &mut Directory, goals: &[Goal]) -> Result<bool> {
    let view = directory.inspect_leader(0).await?;
    for goal in goals {
        eprintln!("{}", goal.after_interruption(&view.cluster));
    }
    bail!("interrupted while waiting")
}

fn millis(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use meridian_directory::{Loss, Phase};
    use meridian_types::Epoch;

    use super::*;
    use crate::command::operator::samples::{report, view};

    fn after(to: &str, loss: Loss) -> View {
        let mut view = view();
        let shard = view.cluster.shards.get_mut(&ShardId(1)).unwrap();
        shard.epoch = Epoch(2);
        shard.phase = Phase::Active;
        to.clone_into(&mut shard.primary_region);
        shard.reports.push(FailoverReport {
            to_region: to.to_owned(),
            planned: true,
            ..report(loss)
        });
        view
    }

    fn none() -> Loss {
        Loss { exact: true, ..Loss::default() }
    }

    #[test]
    fn outcome_shows_region_loss_and_duration() {
        let goal = Goal::switchover(&view().cluster, ShardId(1), "region-2").unwrap();
        let of = |view: &View| Outcome::of(&goal, &view.cluster, Some(100), 2100);
        let reached = of(&after("region-2", none()));
        assert!(reached.reached);
        assert_eq!(
            reached.text(),
            "shard 1 is served in region-2 now, in epoch 2: nothing lost; sealed for 312 ms and open 100 ms later, 2.1 s in all"
        );
        let back = of(&after("region-1", none()));
        assert!(
            !back.reached && back.text().contains("back in region-1, in epoch 2: it was not moved")
        );
        let lost = Loss { transactions: 3, window_ms: 40, ..Loss::default() };
        let elsewhere = of(&after("region-3", lost));
        assert!(!elsewhere.reached);
        assert!(elsewhere.text().contains(
            "served in region-3 instead, in epoch 2: at least 3 transactions (40 ms) lost"
        ));
        let cancelled = of(&view());
        assert!(!cancelled.reached && cancelled.text().contains("as before"));
    }

    #[test]
    fn failover_without_a_target_is_reached_in_any_region() {
        let goal = Goal {
            to: None,
            planned: false,
            ..Goal::switchover(&view().cluster, ShardId(1), "").unwrap()
        };
        assert!(Outcome::of(&goal, &after("region-3", none()).cluster, None, 1).reached);
        assert!(!Outcome::of(&goal, &view().cluster, None, 1).reached);
    }

    #[test]
    fn older_cluster_is_ignored() {
        let old = view();
        let goal = Goal::switchover(&old.cluster, ShardId(1), "region-2").unwrap();
        let goal = Goal { version: old.cluster.version + 1, ..goal };
        let mut seen = Seen::default();
        look(&goal, &old, &mut seen, Instant::now());
        assert!(seen.outcome.is_none());
    }

    #[test]
    fn goal_is_watched_until_its_end() {
        let goal = Goal::switchover(&view().cluster, ShardId(1), "region-2").unwrap();
        let begun = Instant::now();
        let mut seen = Seen::default();
        let mut opening = after("region-2", none());
        opening.cluster.shards.get_mut(&ShardId(1)).unwrap().phase = Phase::Forming;
        look(&goal, &opening, &mut seen, begun);
        assert!(seen.opening_since.is_some() && seen.outcome.is_none());
        look(&goal, &after("region-2", none()), &mut seen, begun);
        assert!(seen.outcome.unwrap().opened_after_ms.is_some());
    }
}
