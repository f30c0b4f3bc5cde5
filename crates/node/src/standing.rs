//! What a node says of itself to the directory with each renewal of its lease.

use std::time::Instant;

use meridian_consensus::RaftGroup;
use meridian_proto::directory as wire;

use crate::clock::wall_ms;
use crate::keeper::KeeperParts;
use crate::orphans;
use crate::shard::{LocalShard, or_fatal};
use crate::shipping_wire::position_to_wire;

/// Where the shards stand here, and what this node holds that was lost.
pub(crate) fn report(parts: &KeeperParts) -> (Vec<wire::ShardReport>, Vec<wire::Orphans>) {
    (parts.shards.all().into_iter().map(|(id, local)| shard(parts, id.0, &local)).collect(), lost(parts))
}

fn shard(parts: &KeeperParts, id: u32, local: &LocalShard) -> wire::ShardReport {
    let applied = local.state().applied();
    let (leads, settled_at, lag_ms) = match local {
        LocalShard::Voter(voter) => {
            let leadership = voter.group.leadership();
            let applied_term = voter.group.applied().borrow().1;
            let leads = leadership.is_ok_and(|leadership| {
                // An entry of the term is applied, and a quorum has answered of late.
                leadership.term == applied_term && leadership.answered_until.is_some_and(|until| Instant::now() < until)
            });
            (leads, if leads { settled_at(parts, &voter.group) } else { 0 }, 0)
        }
        LocalShard::Replica(replica) => {
            let lag_ms = match replica.status().committed {
                Some((committed, _)) if committed.sequence <= applied.position.sequence => 0,
                Some(_) => wall_ms().saturating_sub(applied.time_ms),
                None => u64::MAX,
            };
            (false, 0, lag_ms)
        }
    };
    // Behind the position: what is there by now was there then, or is told next time.
    let deleting = parts.directory.deleting(local.state().shard());
    let dropped = deleting.into_iter().filter(|database| or_fatal(local.state().is_dropped(*database)));
    let dropped = dropped.map(|database| database.0.to_vec().into()).collect();
    let (heard_transactions, heard_time_ms) = parts.directory.furthest(local.state().shard(), local.epoch());
    let differing = parts.shards.comparison(&local.state().shard()).map(|comparison| comparison.differing());
    let differing = differing.unwrap_or_default().into_iter();
    wire::ShardReport {
        shard: id,
        epoch: local.epoch().0.into(),
        position: Some(position_to_wire(applied.position)),
        transactions: applied.total_transactions,
        time_ms: applied.time_ms,
        leads,
        settled_at,
        lag_ms,
        heard_transactions,
        heard_time_ms,
        dropped,
        divergences: differing
            .map(|(node_id, position)| wire::Divergence { node_id, position: Some(position_to_wire(position)) })
            .collect(),
        refuses: local.state().refusals().recent().unwrap_or_default(),
    }
}

/// The version of the cluster that is known here, if it names just those voters who decide in the group; else 0.
fn settled_at(parts: &KeeperParts, group: &RaftGroup) -> u64 {
    let known = parts.directory.known();
    let wanted = known.cluster.shards.get(&group.id().shard).filter(|shard| shard.epoch == group.id().epoch);
    match (wanted, group.settled_voters()) {
        (Some(wanted), Some(voters)) if wanted.voters == voters => known.cluster.version,
        _ => 0,
    }
}

/// What the directory's reports of failovers wait for: how much this node, which voted before, has beyond
/// their bases.
fn lost(parts: &KeeperParts) -> Vec<wire::Orphans> {
    let known = parts.directory.known();
    let mut shown = Vec::new();
    for (id, shard) in &known.cluster.shards {
        let settled = parts.settled.lock().get(id).copied();
        for report in &shard.reports {
            let waits = report.is_judged_by(parts.node_id) && !report.loss.shown_by.contains(&parts.node_id);
            // Its logs must have been looked through.
            if report.planned || !waits || settled.is_none_or(|settled| settled < report.epoch) {
                continue;
            }
            // Not while it cannot be counted: the report stays at "at least".
            shown.extend(orphans::shown(&parts.data_dir, *id, report));
        }
    }
    shown
}
