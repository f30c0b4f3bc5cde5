//! The report of a node to the directory, sent with each renewal of its lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::RaftGroup;
use meridian_proto::directory as wire;
use meridian_storage::{ShardState, StorageError, or_fatal};
use meridian_types::{CommitProgress, DatabaseId, Epoch, EpochHistory, ShardId, ShardReport};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::divergence::orphan_files::KnownOrphans;
use crate::host::clock::wall_ms;
use crate::placement::parts::PlacementParts;
use crate::shard::local::LocalShard;

/// Between two times that the disk is asked.
const READ_EVERY: Duration = Duration::from_secs(1);

/// The source of a node's report. Leases depend on it, so it waits for no disk: facts that only the
/// disk knows are read aside, now and then.
pub(crate) struct Standing {
    parts: Arc<PlacementParts>,
    read: Mutex<Read>,
    orphans: Mutex<KnownOrphans>,
}

/// The facts that the disk told last.
#[derive(Default)]
struct Read {
    /// Databases that are being deleted, and are dropped here in this epoch. That stays so.
    dropped: BTreeMap<(ShardId, Epoch), Vec<DatabaseId>>,
    lost: Vec<wire::Orphans>,
}

impl Standing {
    pub(crate) fn new(parts: Arc<PlacementParts>) -> Self {
        Self { parts, read: Mutex::default(), orphans: Mutex::default() }
    }

    /// Where the shards stand here, and what this node holds that was lost.
    pub(crate) fn report(&self) -> (Vec<ShardReport>, Vec<wire::Orphans>) {
        let read = self.read.lock();
        let shards = self.parts.shards.all().into_iter();
        (
            shards.map(|(id, local)| shard(&self.parts, id, &local, &read)).collect(),
            read.lost.clone(),
        )
    }

    /// Until `stop`.
    pub(crate) async fn keep_reading(self: Arc<Self>, stop: CancellationToken) {
        loop {
            let standing = Arc::clone(&self);
            if let Err(error) = tokio::task::spawn_blocking(move || standing.read()).await {
                tracing::error!(%error, "what this node holds of deleted and lost data could not be read");
            }
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(READ_EVERY) => {}
            }
        }
    }

    /// Asks the disk.
    fn read(&self) {
        let parts = &self.parts;
        let mut dropped = BTreeMap::new();
        for (id, local) in parts.shards.all() {
            // Of the state as it is in this epoch, or a later one: the epoch before the history,
            // and that before the state.
            let epoch = local.epoch();
            let here = or_fatal(dropped_here(
                local.state(),
                &local.history(),
                parts.directory.deleting(id),
            ));
            if !here.is_empty() {
                dropped.insert((id, epoch), here);
            }
        }
        let lost = lost(parts, &mut self.orphans.lock());
        *self.read.lock() = Read { dropped, lost };
    }
}

/// Those that are dropped in what the history holds. A state that has left it may hold a drop that
/// the history lost: the node knows the new epoch before another state is in place, and rows of the
/// database may come with that.
fn dropped_here(
    state: &ShardState,
    history: &EpochHistory,
    databases: Vec<DatabaseId>,
) -> Result<Vec<DatabaseId>, StorageError> {
    if history.leaves(state.position()).is_some() {
        return Ok(Vec::new());
    }
    let if_dropped = |database| Ok(state.is_dropped(database)?.then_some(database));
    databases.into_iter().filter_map(|database| if_dropped(database).transpose()).collect()
}

fn shard(parts: &PlacementParts, id: ShardId, local: &LocalShard, read: &Read) -> ShardReport {
    let applied = local.state().applied();
    let (leads, voters_confirmed_at, lag_ms) = match local {
        LocalShard::Voter(voter) => {
            let leadership = voter.group.leadership();
            let applied_term = voter.group.applied().borrow().term;
            let leads = leadership.is_ok_and(|leadership| {
                // An entry of the term is applied, and a quorum has answered of late.
                leadership.term == applied_term
                    && leadership.answered_until.is_some_and(|until| Instant::now() < until)
            });
            (leads, if leads { voters_confirmed_at(parts, &voter.group) } else { 0 }, 0)
        }
        LocalShard::Replica(replica) => {
            let lag_ms = match replica.status().committed {
                Some(commit) if commit.position.sequence <= applied.position.sequence => 0,
                Some(_) => wall_ms().saturating_sub(applied.time_ms),
                None => u64::MAX,
            };
            (false, 0, lag_ms)
        }
    };
    let dropped = read.dropped.get(&(local.state().shard(), local.epoch())).into_iter().flatten();
    let hint = parts.directory.progress_hint(local.state().shard(), local.epoch());
    let differing =
        parts.shards.comparison(&local.state().shard()).map(|comparison| comparison.differing());
    let progress = CommitProgress::new(applied.total_transactions, applied.time_ms);
    ShardReport {
        leads,
        voters_confirmed_at,
        lag_ms,
        hint,
        dropped: dropped.copied().collect(),
        divergences: differing.unwrap_or_default().into_iter().collect(),
        refuses: local.state().refusals().recent(),
        ..ShardReport::new(id, local.epoch(), applied.position, progress)
    }
}

/// The version of the cluster that is known here, if it names just those voters that decide in the
/// group; else 0.
fn voters_confirmed_at(parts: &PlacementParts, group: &RaftGroup) -> u64 {
    let known = parts.directory.known();
    let wanted =
        known.cluster.shards.get(&group.id().shard).filter(|shard| shard.epoch == group.id().epoch);
    match (wanted, group.stable_voters()) {
        (Some(wanted), Some(voters)) if wanted.voters == voters => known.cluster.version,
        _ => 0,
    }
}

/// The losses that the directory's reports of failovers wait for: how much this node, which voted
/// before, has beyond their bases.
fn lost(parts: &PlacementParts, orphans: &mut KnownOrphans) -> Vec<wire::Orphans> {
    let known = parts.directory.known();
    let mut waiting = Vec::new();
    for (id, shard) in &known.cluster.shards {
        let settled = parts.examined.lock().get(id).copied();
        for report in &shard.reports {
            // Its logs must have been looked through, before the files are.
            let is_settled = settled.is_some_and(|settled| settled >= report.epoch);
            if is_settled && report.waits_for(parts.node_id) {
                waiting.push((*id, report));
            }
        }
    }
    if waiting.is_empty() {
        return Vec::new();
    }
    if let Err(error) = orphans.refresh(&parts.data_dir) {
        tracing::warn!(%error, "the folder of orphans cannot be read: what failovers lost stays a bound");
        return Vec::new();
    }
    // Not while it cannot be counted: the report stays at "at least".
    waiting.into_iter().filter_map(|(id, report)| orphans.shown(id, report)).collect()
}

#[cfg(test)]
mod tests {
    use meridian_gateway::new_request_id;
    use meridian_proto::DecodedBatch;
    use meridian_storage::{MemoryEngine, RaftApplied};
    use meridian_types::{Batch, CommittedTransaction, Effect, Position};

    use super::*;

    #[test]
    fn a_drop_that_the_history_lost_is_not_said() {
        let (gone, there) = (DatabaseId([1; 16]), DatabaseId([2; 16]));
        let state = ShardState::open(Arc::new(MemoryEngine::default()), ShardId(1)).unwrap();
        for sequence in 1..=5 {
            let effects = if sequence == 5 { vec![Effect::DropDatabase] } else { Vec::new() };
            let request_id = new_request_id();
            let transaction =
                CommittedTransaction { request_id, database: gone, effects, refusal: None };
            let position = Position::new(Epoch(1), sequence);
            let batch: DecodedBatch =
                Batch { position, time_ms: 0, transactions: vec![transaction] }.into();
            state.apply(&[batch], RaftApplied::default()).unwrap();
        }
        let base = |sequence| (Epoch(2), Position::new(Epoch(1), sequence));
        let history =
            |bases: &[_]| EpochHistory::new([&[(Epoch(1), Position::ZERO)], bases].concat());
        let here = |history| dropped_here(&state, &history, vec![there, gone]).unwrap();
        assert_eq!(here(history(&[])), [gone]);
        assert_eq!(here(history(&[base(5)])), [gone]);
        // The failover went on from right before.
        assert_eq!(here(history(&[base(4)])), []);
    }
}
