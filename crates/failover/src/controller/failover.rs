//! `Sealing` after a failure: the answers decide what is kept, and the most advanced region goes
//! on.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use meridian_directory::majority;
use meridian_types::{NodeId, Position};

use crate::controller::view::{Verdict, View, seconds};
use crate::controller::watch::{Sealing, Watch};
use crate::controller::{Action, SealAnswer};

/// Decides anew at every step from the answers so far; nothing is binding until `Promote`.
pub(super) fn advance(
    view: &View<'_>,
    watch: &Watch,
    sealing: &mut Sealing,
    actions: &mut Vec<Action>,
) -> Verdict {
    ask_all_nodes(view, sealing, actions);
    if let Some(text) = not_ready(view, sealing) {
        return Verdict::Wait(text);
    }
    give_up_the_lost(view, sealing);
    let Some(base) = base(view, sealing) else {
        return Verdict::Wait("sealing: no node of any region has answered".to_owned());
    };
    if let Some(text) = would_lose(view, watch, sealing, &base) {
        return Verdict::Wait(text);
    }
    let Some(region) = target(view, sealing) else {
        return Verdict::Wait(
            "sealed: no region has two data centers, and a majority of its own, that have answered; a failover to \
             a named region can be forced"
                .to_owned(),
        );
    };
    let forced = sealing.plan.to.is_some();
    let voters = voters(view, sealing, &region, forced);
    let (at_base, behind): (BTreeSet<_>, BTreeSet<_>) = voters
        .iter()
        .copied()
        .filter(|voter| is_usable(view, sealing, *voter))
        .partition(|voter| is_at(view, sealing, *voter, base.position));
    let (waiting, mut behind): (BTreeSet<_>, BTreeSet<_>) =
        behind.into_iter().partition(|voter| pulls_once_promoted(sealing, *voter, base.position));
    // Until they have pulled, it has to lie in two data centers elsewhere.
    let is_kept = holding_data_centers(view, sealing, base.position) >= if forced { 1 } else { 2 };
    let count = at_base.len() + if is_kept { waiting.len() } else { 0 };
    if !voters.is_empty() && count >= majority(voters.len()) && (forced || count >= 2) {
        let first = if at_base.is_empty() { &waiting } else { &at_base };
        return view.promote(watch, sealing, &region, voters, first, &base);
    }
    if !waiting.is_empty() && !is_kept {
        let others =
            view.cluster.nodes.keys().copied().filter(|node| is_usable(view, sealing, *node));
        let votes =
            |node: &NodeId| sealing.answers.get(node).is_some_and(|answer| answer.term.is_some());
        behind.extend(
            others.filter(|node| !votes(node) && !is_at(view, sealing, *node, base.position)),
        );
    }
    for node in &behind {
        drain(view, sealing, *node, base.position, actions);
    }
    let (have, all) = (at_base.len(), voters.len());
    let mut text =
        format!("sealed at {}: {have} of the {all} voters of {region} have it", base.position);
    if !waiting.is_empty() {
        text += &format!("; {} can pull it once two data centers hold it", view.names(waiting));
    }
    if !behind.is_empty() {
        text += &format!("; {} pulling it", view.names(behind));
    }
    Verdict::Wait(text)
}

/// In every region: each node holds every shard, and may hold what no other has.
fn ask_all_nodes(view: &View<'_>, sealing: &mut Sealing, actions: &mut Vec<Action>) {
    let (shard, epoch) = (view.id, view.shard.epoch);
    for (&node, _) in view.cluster.nodes.iter().filter(|(_, node)| !node.removed) {
        if !sealing.answers.contains_key(&node)
            && sealing.seal_is_due(view.now, node, view.config.retry_every)
        {
            actions.push(Action::Seal { node, shard, epoch, planned: false });
        }
    }
}

fn not_ready(view: &View<'_>, sealing: &Sealing) -> Option<String> {
    let holders = view.lease_holders(sealing);
    if !holders.is_empty() {
        return Some(format!(
            "sealing: waits until leases run out or are given up by {}",
            view.names(holders)
        ));
    }
    if view.since(sealing.since) >= view.config.seal_timeout {
        return None;
    }
    let silent = view.cluster.nodes.keys().copied();
    let silent: Vec<_> = silent
        .filter(|node| !sealing.answers.contains_key(node) && view.is_reachable(*node))
        .collect();
    (!silent.is_empty())
        .then(|| format!("sealing: waits for the answers of {}", view.names(silent)))
}

/// Nothing is given up that live voters have while they are a quorum: each of them is waited for,
/// and so are all transactions that the directory knows of. Not for ever: a node that renews and
/// never seals would hold up everything.
fn would_lose(
    view: &View<'_>,
    watch: &Watch,
    sealing: &Sealing,
    base: &SealAnswer,
) -> Option<String> {
    if sealing.plan.to.is_some()
        || !watch.may_have_led
        || view.since(sealing.since) >= view.config.starved_after
    {
        return None;
    }
    let live = view.live_quorum()?;
    let silent: Vec<_> =
        live.into_iter().filter(|voter| !sealing.answers.contains_key(voter)).collect();
    let bound = seconds(view.config.starved_after);
    if !silent.is_empty() {
        let names = view.names(silent);
        return Some(format!(
            "sealing: {names} answer the directory and have not sealed; waits for that up to {bound}"
        ));
    }
    let known = watch.progress.transactions;
    (base.transactions < known).then(|| {
        let lost = known - base.transactions;
        format!(
            "sealed: {lost} transactions are missing that a voter of {} has; waits for them up to {bound}",
            view.shard.primary_region
        )
    })
}

/// Its position is in the history that is kept. A node that missed a failover may hold batches that
/// the failover lost.
fn in_history(view: &View<'_>, answer: &SealAnswer) -> bool {
    view.shard.in_history(answer.position)
}

/// Where no node comes nearer to the base, its holders are gone, and the failover goes on without
/// them; or the chosen region cannot take it, and another may.
fn give_up_the_lost(view: &View<'_>, sealing: &mut Sealing) {
    sealing.lost.retain(|node| !view.is_alive(*node));
    if view.since(sealing.progress_at.max(sealing.since)) < view.config.seal_timeout * 2 {
        return;
    }
    let gone = sealing.answers.keys().filter(|node| !view.is_alive(**node));
    let gone: Vec<_> = gone.copied().filter(|node| !sealing.lost.contains(node)).collect();
    if !gone.is_empty() {
        sealing.lost.extend(gone);
    } else if sealing.target.pass_over() {
        sealing.progress_at = view.now;
    }
}

/// The base of the next epoch: the most advanced of all answers.
fn base(view: &View<'_>, sealing: &Sealing) -> Option<SealAnswer> {
    let answers = sealing
        .answers
        .iter()
        .filter(|(node, answer)| !sealing.lost.contains(node) && in_history(view, answer));
    answers
        .map(|(_, answer)| answer)
        .max_by_key(|answer| (answer.position, answer.transactions))
        .cloned()
}

/// Reachable, sealed, and only in need of what others have.
fn is_usable(view: &View<'_>, sealing: &Sealing, node: NodeId) -> bool {
    view.is_reachable(node)
        && sealing.answers.get(&node).is_some_and(|answer| in_history(view, answer))
}

/// It has everything up to the base, and nothing beyond, now and later.
fn is_at(view: &View<'_>, sealing: &Sealing, node: NodeId, base: Position) -> bool {
    sealing.answers.get(&node).is_some_and(|answer| answer.position == base)
        && !sealing.may_pass(view.now, node, base, view.config.drain_lasts)
}

/// A voter of the epoch that ends has stopped with its group, and its state is the group's until
/// another epoch begins: only then does it pull what it lacks, before it founds the group of that
/// one. Should it fail to, no leader comes, the shard is sealed anew, and those that hold the base
/// still do.
fn pulls_once_promoted(sealing: &Sealing, node: NodeId, base: Position) -> bool {
    sealing.answers.get(&node).is_some_and(|answer| answer.term.is_some() && answer.position < base)
}

/// In how many data centers a reachable node has everything up to the base.
fn holding_data_centers(view: &View<'_>, sealing: &Sealing, base: Position) -> usize {
    let holders = sealing
        .answers
        .iter()
        .filter(|(node, answer)| answer.position == base && view.is_reachable(**node));
    let places = holders.filter_map(|(node, _)| view.cluster.nodes.get(node));
    places.map(|node| (&node.region, &node.data_center)).collect::<BTreeSet<_>>().len()
}

fn target(view: &View<'_>, sealing: &mut Sealing) -> Option<String> {
    if let Some(to) = &sealing.plan.to {
        return Some(to.clone());
    }
    let mut choice = std::mem::take(&mut sealing.target);
    let position = |node: NodeId| sealing.answers.get(&node).map(|answer| answer.position);
    let usable = |node| is_usable(view, sealing, node);
    let target = choice.choose(view.cluster, &view.shard.primary_region, usable, position);
    sealing.target = choice;
    target
}

fn voters(view: &View<'_>, sealing: &Sealing, region: &str, forced: bool) -> BTreeSet<NodeId> {
    let usable = |node: NodeId| is_usable(view, sealing, node);
    let rank = |node: NodeId| {
        let position =
            sealing.answers.get(&node).filter(|_| usable(node)).map(|answer| answer.position);
        (!usable(node), Reverse(position))
    };
    let mut voters = view.cluster.best_voters(region, rank);
    let there = voters.iter().filter(|voter| usable(**voter)).count();
    if forced && there < majority(voters.len()) {
        // An operator's word: it goes on with less than the region should have.
        voters.retain(|voter| usable(*voter));
    }
    voters
}

fn drain(
    view: &View<'_>,
    sealing: &mut Sealing,
    node: NodeId,
    through: Position,
    actions: &mut Vec<Action>,
) {
    let has_it = |answer: &SealAnswer| answer.position == through;
    let holders = sealing
        .answers
        .iter()
        .filter(|(node, answer)| has_it(answer) && !sealing.lost.contains(node));
    let sources = view.by_nearness(node, holders.map(|(node, _)| *node));
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

/// Whether a shard that has no leader fails over by itself now, or why not.
pub(super) fn judge(view: &View<'_>, watch: &Watch) -> Verdict {
    let (region, without) = (&view.shard.primary_region, view.since(watch.healthy_at));
    if without < view.config.reachable_within {
        return Verdict::Wait(String::new());
    }
    let silence = format!("no leader in {region} was heard for {}", seconds(without));
    if !view.cluster.fails_over_by_itself(view.id) {
        return Verdict::Wait(format!(
            "{silence}; a failover has to be ordered, since a database of the shard says so"
        ));
    }
    let may_go_home = view.shard.phase == meridian_directory::Phase::Forming;
    let others = view.cluster.regions.iter().filter(|other| may_go_home || *other != region);
    if !others.into_iter().any(|other| view.can_take_over(other, |node| view.is_reachable(node))) {
        return Verdict::Wait(format!("{silence}; no other region has two data centers in reach"));
    }
    if without < view.config.failover_after {
        return Verdict::Wait(format!(
            "{silence}; it fails over after {}",
            seconds(view.config.failover_after)
        ));
    }
    let bound = if may_go_home { view.config.forming_after } else { view.config.starved_after };
    if without < bound {
        if view.since(view.disturbed_at) < view.config.failover_after {
            return Verdict::Wait(format!(
                "{silence}, but the directory's leader was starved itself; it judges when it has listened undisturbed \
                 for {}, or after {}",
                seconds(view.config.failover_after),
                seconds(bound)
            ));
        }
        if let Some(live) = view.live_quorum() {
            return Verdict::Wait(format!(
                "{silence}, but {} answer: starved rather than lost, they have {} to elect one",
                view.names(live),
                seconds(bound)
            ));
        }
    }
    view.fail_over(silence)
}
