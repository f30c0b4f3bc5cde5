//! A planned change of region, or its abortion: nothing may be lost.
//!
//! The leader is sealed first, and drains; the other voters only once it has. So they can still
//! elect another if it is lost meanwhile, and that one is then asked in its place. Once a majority
//! of the voters has promised not to leave the drained leader's term, nothing can be committed
//! beyond what it has.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::Duration;

use meridian_directory::{Change, majority};
use meridian_types::NodeId;

use crate::controller::view::{Verdict, View, position_of, seconds};
use crate::controller::watch::{Sealing, Watch};
use crate::controller::{Action, SealAnswer};

/// `SwitchingOver`: everything is served, and the target catches up.
pub(super) fn prepare(view: &View<'_>, watch: &Watch, to: &str) -> Verdict {
    let without = view.since(watch.healthy_at);
    if without >= view.config.failover_after {
        return super::failover::judge(view, watch);
    }
    if without >= view.config.reachable_within || view.leaders().next().is_none() {
        return Verdict::Wait(format!(
            "switchover to {to}: waits for a leader in {}",
            view.shard.primary_region
        ));
    }
    if view.grants.are_unknown(view.now) {
        // Sealed now, it would have to wait for leases that only a predecessor knew.
        return Verdict::Wait(format!(
            "switchover to {to}: waits until leases from before this leader have run out"
        ));
    }
    if view.shard.changing.is_some() {
        return Verdict::Wait(format!("switchover to {to}: waits until the voters have changed"));
    }
    let max_lag = view.config.max_switchover_lag;
    // A node that has left the history is not behind it, and nothing can be drained to it.
    let is_near = |node: NodeId| {
        let report = view.report(node).filter(|report| view.shard.in_history(report.position));
        report.is_some_and(|report| Duration::from_millis(report.lag_ms) <= max_lag)
    };
    let (near, wanted) = (view.data_centers(to, is_near), majority(view.cluster.voters_in(to)));
    if near < wanted {
        return Verdict::Wait(format!(
            "switchover to {to}: {near} of its data centers lag by at most {}, {wanted} are wanted",
            seconds(max_lag)
        ));
    }
    Verdict::Commit(Change::Seal {
        shard: view.id,
        epoch: view.shard.epoch,
        to: Some(to.to_owned()),
        planned: true,
        since_ms: view.now_ms,
        cause: format!("switchover to {to}"),
    })
}

/// `Sealing` as planned.
pub(super) fn advance(
    view: &View<'_>,
    watch: &Watch,
    sealing: &mut Sealing,
    actions: &mut Vec<Action>,
) -> Verdict {
    let region = sealing.plan.to.clone().unwrap_or_else(|| view.shard.primary_region.clone());
    let drained = drained_leader(view, sealing);
    let agreed = drained.as_ref().is_some_and(|(_, base)| is_agreed(view, sealing, base));
    ask_voters(view, sealing, drained.is_some(), agreed, actions);
    let Some((leader, base)) = drained else {
        return stuck(view, watch, sealing, &region, false).unwrap_or_else(|| {
            Verdict::Wait(format!("switchover to {region}: the leader finishes what it began"))
        });
    };
    let voters = voters(view, sealing, &region, &base);
    let at_base: BTreeSet<_> = voters
        .iter()
        .copied()
        .filter(|voter| position_of(sealing, *voter) == Some(base.position))
        .collect();
    for voter in voters.difference(&at_base) {
        drain(view, sealing, *voter, leader, &base, actions);
    }
    let arrived = at_base.len() >= majority(voters.len());
    let holders = view.lease_holders(sealing);
    if agreed && arrived && holders.is_empty() {
        return view.promote(watch, sealing, &region, voters, &at_base, &base);
    }
    if let Some(verdict) = stuck(view, watch, sealing, &region, agreed) {
        return verdict;
    }
    Verdict::Wait(if !agreed {
        format!("switchover to {region}: waits until a majority of the voters is sealed")
    } else if !arrived {
        let (have, all) = (at_base.len(), voters.len());
        format!(
            "switchover to {region}: {have} of its {all} voters have everything up to {}",
            base.position
        )
    } else {
        format!(
            "switchover to {region}: waits until leases run out or are given up by {}",
            view.names(holders)
        )
    })
}

/// Of the leaders that have drained, the latest: it has what those of earlier terms committed.
fn drained_leader(view: &View<'_>, sealing: &Sealing) -> Option<(NodeId, SealAnswer)> {
    let voters = sealing.answers.iter().filter(|(node, _)| view.shard.voters.contains(node));
    let drained = voters
        .filter(|(_, answer)| answer.drained_leader && view.shard.in_history(answer.position));
    drained.max_by_key(|(_, answer)| answer.term).map(|(node, answer)| (*node, answer.clone()))
}

/// Whether no leader of a later term can be elected, or has been.
fn is_agreed(view: &View<'_>, sealing: &Sealing, base: &SealAnswer) -> bool {
    let stays = |voter: &&NodeId| {
        sealing
            .answers
            .get(voter)
            .is_some_and(|answer| answer.term.is_some() && answer.term <= base.term)
    };
    view.shard.voters.iter().filter(stays).count() >= majority(view.shard.voters.len())
}

fn ask_voters(
    view: &View<'_>,
    sealing: &mut Sealing,
    drained: bool,
    agreed: bool,
    actions: &mut Vec<Action>,
) {
    // Where no voter reports that it leads, the leader may be sealed already, by an answer that this
    // controller never got.
    let ask_all = drained || view.since(sealing.since) >= view.config.seal_timeout;
    let leaders: BTreeSet<_> = view.leaders().map(|(leader, _)| leader).collect();
    let (shard, epoch) = (view.id, view.shard.epoch);
    for &node in &view.shard.voters {
        // A leader that answered before it had drained is asked again.
        let is_wanted = !sealing.answers.contains_key(&node) || !agreed;
        if is_wanted
            && (ask_all || leaders.contains(&node))
            && sealing.seal_is_due(view.now, node, view.config.retry_every)
        {
            actions.push(Action::Seal { node, shard, epoch, planned: true });
        }
    }
}

fn voters(view: &View<'_>, sealing: &Sealing, region: &str, base: &SealAnswer) -> BTreeSet<NodeId> {
    if region == view.shard.primary_region {
        return view.shard.voters.clone();
    }
    view.cluster.best_voters(region, |node| {
        let has_it = position_of(sealing, node) == Some(base.position);
        let position = view.report(node).map(|report| report.position);
        (!has_it, !view.is_reachable(node), Reverse(position))
    })
}

/// Before all voters are sealed, too: what a drained leader has is committed, whichever voter
/// leads after it.
fn drain(
    view: &View<'_>,
    sealing: &mut Sealing,
    node: NodeId,
    leader: NodeId,
    base: &SealAnswer,
    actions: &mut Vec<Action>,
) {
    let through = base.position;
    let all: BTreeSet<_> = sealing.answers.keys().chain(sealing.drained.keys()).copied().collect();
    let holders = all.into_iter().filter(|holder| position_of(sealing, *holder) == Some(through));
    let mut sources = view.by_nearness(node, holders);
    sources.sort_by_key(|source| *source != leader || !view.is_reachable(leader));
    let Some(source) = view.in_turn(sealing, &sources) else { return };
    if sealing.drain_is_due(view.now, node, through, view.config.retry_every) {
        actions.push(Action::Drain {
            node,
            shard: view.id,
            epoch: view.shard.epoch,
            source,
            through,
        });
    }
}

/// The way out of a switchover that makes no progress.
fn stuck(
    view: &View<'_>,
    watch: &Watch,
    sealing: &Sealing,
    region: &str,
    agreed: bool,
) -> Option<Verdict> {
    let without_progress = view.since(sealing.progress_at.max(sealing.since));
    if without_progress < view.config.failover_after {
        return None;
    }
    let going_home = region == view.shard.primary_region;
    if agreed && !going_home {
        // The target fails, and the old region is there.
        return Some(Verdict::Commit(Change::CancelSwitchover { shard: view.id }));
    }
    if !agreed && view.since(watch.led_at) < view.config.failover_after {
        return None;
    }
    let text =
        format!("switchover to {region}: {} has failed meanwhile", view.shard.primary_region);
    Some(if view.cluster.fails_over_by_itself(view.id) {
        view.fail_over(text)
    } else {
        Verdict::Wait(format!(
            "{text}; a failover has to be ordered, since a database of the shard says so"
        ))
    })
}
