//! What a later epoch's history does not hold: kept in orphan files before anything replaces it.

use std::ops::Range;
use std::path::Path;

use bytes::Bytes;
use meridian_consensus::{forget_group, is_in_use, log_batches_beyond};
use meridian_proto::batch_header;
use meridian_storage::{
    Applied, GroupId, HighWater, RaftApplied, ShardState, ShippedLog, StorageError, decode_batch,
};
use meridian_types::{Epoch, EpochHistory, Position, ShardId};

use crate::divergence::orphan_files::OrphanWriter;

const READ_BYTES: usize = 4 << 20;

/// Keeps the batches that a replica took, and `history` does not hold. How many.
pub(crate) fn keep_shipped(
    data_dir: &Path,
    state: &ShardState,
    history: &EpochHistory,
    log: &ShippedLog,
) -> Result<u64, StorageError> {
    let mut tail = LostTail::new(data_dir, state.shard(), history);
    tail.state = Some(state.applied());
    if let Some(oldest) = log.first()?
        && let Some(lowest) = lowest_base(history, header(tail.shard, &oldest.bytes)?.epoch)
    {
        let mut next = lowest.sequence + 1;
        loop {
            let batches = log.read(next..u64::MAX, READ_BYTES)?;
            let Some(last) = batches.last() else { break };
            next = last.sequence + 1;
            for batch in &batches {
                // Only what was committed is shipped.
                tail.push(&batch.bytes, true)?;
            }
        }
    }
    tail.finish()
}

/// Keeps what the logs of groups of earlier epochs hold beyond where the shard's history left
/// theirs, and deletes those logs. May be called again after a crash at any point.
pub(crate) fn examine_old_groups(
    state: &ShardState,
    high_water: &HighWater,
    data_dir: &Path,
    history: &EpochHistory,
) -> Result<(), StorageError> {
    let (engine, shard) = (state.engine(), state.shard());
    for (old, _) in history.bases() {
        let Some(lowest) = lowest_base(history, *old) else { break };
        let group = GroupId { shard, epoch: *old };
        if !is_in_use(engine, group)? {
            // Nothing here, or forgotten before: most epochs, at every start and every change of
            // epoch.
            continue;
        }
        apply_committed(state, group, lowest)?;
        let mut tail = LostTail::new(data_dir, shard, history);
        tail.state = Some(state.applied()).filter(|applied| applied.raft.epoch == Some(*old));
        let shipped = ShippedLog::open(engine, shard)?;
        if let (Some(first), Some(last)) = (shipped.first()?, shipped.last()?) {
            tail.elsewhere = first.sequence..last.sequence + 1;
        }
        log_batches_beyond(
            engine,
            group,
            lowest.sequence,
            &mut |_, _, bytes: Bytes, committed| tail.push(&bytes, committed),
        )?;
        let batches = tail.finish()?;
        if batches > 0 {
            tracing::warn!(%group, %lowest, batches, "kept what this node's log held and the shard's history lost");
        }
        forget_group(engine, group, Some(high_water))?;
    }
    Ok(())
}

/// What the group had committed and the history holds is in its log, and was not flushed when the
/// process ended: without it this node may lack what nobody else has. It stays the group's state:
/// after a crash that kept part of it, the rest is applied by the next call.
fn apply_committed(state: &ShardState, group: GroupId, base: Position) -> Result<(), StorageError> {
    let applied = state.applied();
    if applied.raft.epoch != Some(group.epoch) || applied.position.sequence >= base.sequence {
        return Ok(());
    }
    let after = applied.position.sequence;
    log_batches_beyond(
        state.engine(),
        group,
        after,
        &mut |sequence, log_id, bytes: Bytes, committed| {
            if committed && sequence <= base.sequence && sequence == state.position().sequence + 1 {
                state.apply(
                    &[decode_batch(bytes)?],
                    RaftApplied { log_id: Some(log_id), ..applied.raft.clone() },
                )?;
            }
            Ok(())
        },
    )?;
    state.flush().map(drop)
}

/// The lowest of the bases of epochs later than `epoch`: a later epoch may have begun behind less
/// than the next.
fn lowest_base(history: &EpochHistory, epoch: Epoch) -> Option<Position> {
    let later = history.bases().iter().filter(|(later, _)| *later > epoch);
    later.map(|(_, base)| *base).min_by_key(|base| base.sequence)
}

fn header(shard: ShardId, batch: &[u8]) -> Result<Position, StorageError> {
    let corrupt = |error: meridian_proto::InvalidBatch| StorageError::Corruption {
        what: format!("a batch in a log of shard {shard}"),
        detail: error.to_string(),
    };
    Ok(batch_header(batch).map_err(corrupt)?.0)
}

/// What this node has, and the shard's history does not: one file for each epoch that cut some of
/// it off.
struct LostTail<'a> {
    data_dir: &'a Path,
    shard: ShardId,
    history: &'a EpochHistory,
    /// What the state reflects, if it is made of the same batches.
    state: Option<Applied>,
    /// Sequences of another log, which are kept from there.
    elsewhere: Range<u64>,
    stretches: Vec<Stretch>,
    /// The last batch.
    end: Position,
}

/// The batches that one epoch cut off.
struct Stretch {
    writer: OrphanWriter,
    first: u64,
    /// Transactions that the state has, and committed ones that it has not yet.
    applied: u64,
    ahead: u64,
}

impl<'a> LostTail<'a> {
    fn new(data_dir: &'a Path, shard: ShardId, history: &'a EpochHistory) -> Self {
        let (state, stretches, end) = (None, Vec::new(), Position::ZERO);
        Self { data_dir, shard, history, state, elsewhere: 0..0, stretches, end }
    }

    /// The next batch of a log.
    fn push(&mut self, bytes: &[u8], committed: bool) -> Result<(), StorageError> {
        let position = header(self.shard, bytes)?;
        let Some((epoch, base)) = self.history.leaves(position) else { return Ok(()) };
        self.end = position;
        let mut stretch = self.stretch(epoch, base, position.sequence)?;
        let transactions = stretch.writer.push(bytes, committed)?;
        let is_applied =
            self.state.as_ref().is_some_and(|state| position.sequence <= state.position.sequence);
        if is_applied {
            stretch.applied += transactions;
        } else if committed {
            stretch.ahead += transactions;
        }
        self.stretches.push(stretch);
        Ok(())
    }

    /// Takes out that of `epoch`, or begins it with the batch `first`.
    fn stretch(
        &mut self,
        epoch: Epoch,
        base: Position,
        first: u64,
    ) -> Result<Stretch, StorageError> {
        if let Some(at) =
            self.stretches.iter().position(|stretch| stretch.writer.header().epoch == epoch)
        {
            return Ok(self.stretches.swap_remove(at));
        }
        let writer = OrphanWriter::create(self.data_dir, self.shard, epoch, base)?;
        Ok(Stretch { writer, first, applied: 0, ahead: 0 })
    }

    /// Makes the files durable. How many batches they hold.
    fn finish(mut self) -> Result<u64, StorageError> {
        let state = self.state.take();
        let ahead: u64 = self.stretches.iter().map(|stretch| stretch.ahead).sum();
        // Up to the end of the stretch at hand, if that is known.
        let mut total = state.as_ref().map(|state| state.total_transactions + ahead);
        let mut time_ms = state.as_ref().map_or(0, |state| state.time_ms);
        let mut end = state.map_or(self.end, |state| self.end.max(state.position));
        let mut kept = 0;
        while let Some((epoch, base)) = self.history.leaves(end) {
            // One without batches says of what the log was purged.
            let mut stretch = self.stretch(epoch, base, end.sequence + 1)?;
            stretch.writer.set_committed_total(total.unwrap_or(0));
            let next = base.sequence + 1;
            let from = if self.elsewhere.contains(&next) { self.elsewhere.end } else { next };
            if stretch.first > from {
                stretch.writer.set_missing(from, stretch.first - 1, time_ms)?;
            }
            let is_whole = stretch.first <= next;
            total = total
                .filter(|_| is_whole)
                .and_then(|total| total.checked_sub(stretch.applied + stretch.ahead));
            kept += stretch.writer.finish()?.batches;
            // Below lies what a later epoch cut deeper.
            (end, time_ms) = (base, 0);
        }
        // Of no line that ends here, which should not be: kept all the same.
        for stretch in self.stretches {
            kept += stretch.writer.finish()?.batches;
        }
        Ok(kept)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::Duration;

    use meridian_consensus::{LogCache, Peers, RaftGroup, RaftGroupOptions, RaftTiming};
    use meridian_proto::directory::Orphans;
    use meridian_storage::{Engine, MemoryEngine, Syncer};
    use tempfile::TempDir;

    use super::*;
    use crate::divergence::orphan_files;
    use crate::divergence::orphan_files::tests::{SHARD, batch_at, report};
    use crate::testing::NoStates;

    /// A group of one has nobody to call.
    struct Nobody;

    impl Peers for Nobody {
        fn channel(&self, _: u64) -> Option<tonic::transport::Channel> {
            None
        }
    }

    fn at(epoch: u16, sequence: u64) -> Position {
        Position::new(Epoch(epoch), sequence)
    }

    /// Two transactions a batch.
    fn encoded(position: Position) -> Bytes {
        batch_at(position, 2).into()
    }

    struct Node {
        engine: Arc<dyn Engine>,
        state: Arc<ShardState>,
        log: ShippedLog,
        folder: TempDir,
    }

    impl Node {
        fn new() -> Self {
            Self::on(Arc::new(MemoryEngine::default()))
        }

        fn on(engine: Arc<MemoryEngine>) -> Self {
            let engine: Arc<dyn Engine> = engine;
            let state = Arc::new(ShardState::open(Arc::clone(&engine), SHARD).unwrap());
            let log = ShippedLog::open(&engine, SHARD).unwrap();
            Self { engine, state, log, folder: tempfile::tempdir().unwrap() }
        }

        /// Takes batches of `epoch` as a replica does.
        fn take(&self, epoch: u16, through: u64) {
            for sequence in self.state.position().sequence + 1..=through {
                let bytes = encoded(at(epoch, sequence));
                self.log.append([(sequence, bytes.as_ref())]).unwrap();
                self.state.apply(&[decode_batch(bytes).unwrap()], RaftApplied::default()).unwrap();
            }
        }

        fn purge(&self, through: u64) {
            self.log.purge_through(through).unwrap();
        }

        /// Votes in the group of `epoch`, alone, and writes batches up to `through`.
        async fn vote(&self, epoch: u16, through: u64) {
            let (group, voters) =
                (GroupId { shard: SHARD, epoch: Epoch(epoch) }, BTreeSet::from([1]));
            RaftGroup::form(&self.state, group, &voters, self.state.position(), None).unwrap();
            let nobody: Arc<dyn Peers> = Arc::new(Nobody);
            let opened = RaftGroup::open(RaftGroupOptions {
                node_id: 1,
                group,
                state: Arc::clone(&self.state),
                syncer: Arc::new(Syncer::start(Arc::clone(&self.engine)).unwrap()),
                high_water: None,
                peers: Arc::clone(&nobody),
                transfer: Arc::new(NoStates),
                timing: RaftTiming {
                    heartbeat_ms: 20,
                    election_timeout_min_ms: 60,
                    election_timeout_max_ms: 90,
                },
                log_cache: LogCache::default(),
            });
            let opened = opened.await.unwrap();
            opened.take_part(&voters, &nobody, false).await.unwrap();
            let leads = || {
                opened.leadership().is_ok_and(|leads| leads.term == opened.applied().borrow().term)
            };
            while !leads() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let term = opened.leadership().unwrap().term;
            for sequence in self.state.position().sequence + 1..=through {
                let proposed = opened.propose(encoded(at(epoch, sequence)), sequence, term).await;
                proposed.unwrap().applied().await.unwrap();
            }
            opened.shutdown().await;
        }

        /// As the keeper does, before it follows or votes in the newest epoch.
        fn settle(&self, history: &EpochHistory) {
            let marks = HighWater::open(self.folder.path().join("high-water")).unwrap();
            examine_old_groups(&self.state, &marks, self.folder.path(), history).unwrap();
            keep_shipped(self.folder.path(), &self.state, history, &self.log).unwrap();
        }

        /// What each file holds, and what it says is missing.
        fn kept(&self) -> Vec<(String, Vec<u64>, (u64, u64))> {
            let file = |stored: orphan_files::StoredOrphans| {
                let name = stored.name.to_string();
                let (_, summary) = stored.content.unwrap();
                let batches = orphan_files::read(self.folder.path(), &name).unwrap();
                let sequence = |batch: &[u8]| header(SHARD, batch).unwrap().sequence;
                let held = batches.map(|batch| sequence(&batch.unwrap().batch)).collect();
                (name, held, (summary.missing_from, summary.missing_through))
            };
            orphan_files::list(self.folder.path()).unwrap().into_iter().map(file).collect()
        }

        /// What it shows for the report of an epoch that began behind `base`: committed, and at
        /// most.
        fn shown(&self, epoch: u16, base: u64) -> Option<(u64, u64)> {
            let report = report(Epoch(epoch), base, 2 * base);
            let mut known = orphan_files::KnownOrphans::default();
            known.refresh(self.folder.path()).unwrap();
            let shown: Orphans = known.shown(SHARD, &report)?;
            Some((shown.transactions, shown.at_most))
        }
    }

    fn history(bases: &[(u16, Position)]) -> EpochHistory {
        let first = (Epoch::FIRST, Position::ZERO);
        EpochHistory::new(
            [first]
                .into_iter()
                .chain(bases.iter().map(|(epoch, base)| (Epoch(*epoch), *base)))
                .collect(),
        )
    }

    fn file(
        epoch: u16,
        base: u64,
        held: impl IntoIterator<Item = u64>,
    ) -> (String, Vec<u64>, (u64, u64)) {
        let name = format!("shard-3-epoch-{epoch}-base-{base}-1.orphans");
        (name, held.into_iter().collect(), (0, 0))
    }

    fn lacking(
        mut file: (String, Vec<u64>, (u64, u64)),
        from: u64,
        through: u64,
    ) -> (String, Vec<u64>, (u64, u64)) {
        file.2 = (from, through);
        file
    }

    /// The third epoch cut deeper than the second.
    fn deeper() -> EpochHistory {
        history(&[(2, at(1, 10)), (3, at(1, 8))])
    }

    #[tokio::test]
    async fn each_epoch_that_cut_a_group_has_its_own_stretch() {
        let node = Node::new();
        node.vote(1, 13).await;
        for _ in 0..2 {
            // Again after a restart that came before the snapshot.
            node.settle(&deeper());
            assert_eq!(node.kept(), [file(2, 10, 11..=13), file(3, 8, 9..=10)]);
        }
        assert_eq!((node.shown(2, 10), node.shown(3, 8)), (Some((6, 6)), Some((4, 4))));
        assert_eq!(node.shown(4, 13), Some((0, 0)));
    }

    #[test]
    fn each_epoch_that_cut_a_replica_has_its_own_stretch() {
        let node = Node::new();
        node.take(1, 13);
        node.purge(5);
        node.settle(&deeper());
        assert_eq!(node.kept(), [file(2, 10, 11..=13), file(3, 8, 9..=10)]);
        assert_eq!((node.shown(2, 10), node.shown(3, 8)), (Some((6, 6)), Some((4, 4))));
        // Where the position is no more cut by the first of them.
        let node = Node::new();
        node.take(1, 9);
        node.settle(&deeper());
        assert_eq!(node.kept(), [file(3, 8, [9])]);
        assert_eq!((node.shown(2, 10), node.shown(3, 8)), (Some((0, 0)), Some((2, 2))));
    }

    /// What was committed was not flushed when the process ended. The next one applies it, and ends
    /// as well; the one behind that finds any part of it.
    #[tokio::test]
    async fn what_was_committed_is_applied_also_if_a_crash_kept_part_of_it() {
        let (base, written) = (at(1, 8), Arc::new(MemoryEngine::default()));
        Node::on(Arc::clone(&written)).vote(1, 8).await;
        let mut found = BTreeSet::new();
        for seed in 0..30 {
            let engine = Arc::new(written.crash_to_what_is_durable());
            let node = Node::on(Arc::clone(&engine));
            let left = Arc::new(std::sync::Mutex::new(None));
            let (last, disk) = (Arc::clone(&left), Arc::clone(&engine));
            let crash = move |_: &[_]| *last.lock().unwrap() = Some(disk.crash(seed));
            let _subscription = node.state.subscribe(crash);
            apply_committed(&node.state, GroupId { shard: SHARD, epoch: Epoch(1) }, base).unwrap();
            assert_eq!(node.state.position(), base);
            let node = Node::on(Arc::new(left.lock().unwrap().take().unwrap()));
            found.insert(node.state.position().sequence);
            node.settle(&history(&[(2, base)]));
            assert_eq!(node.state.position(), base, "after seed {seed}");
        }
        assert!(found.len() > 3, "{found:?}");
    }

    #[tokio::test]
    async fn one_epoch_may_cut_what_was_shipped_and_what_was_voted() {
        let node = Node::new();
        node.take(1, 10);
        node.vote(2, 12).await;
        node.settle(&deeper());
        let (name, ..) = file(3, 8, []);
        let second = (name.replace("-1.", "-2."), vec![9, 10], (0, 0));
        assert_eq!(node.kept(), [file(3, 8, 11..=12), second]);
        assert_eq!(node.shown(3, 8), Some((8, 8)));
    }

    #[tokio::test]
    async fn what_a_groups_log_was_purged_of_is_said_and_counted() {
        let history = history(&[(2, at(1, 3))]);
        let node = Node::new();
        node.take(1, 5);
        node.purge(5);
        node.vote(1, 8).await;
        node.settle(&history);
        assert_eq!(node.kept(), [lacking(file(2, 3, 6..=8), 4, 5)]);
        assert_eq!(node.shown(2, 3), Some((10, 10)));

        // Of all, as after a snapshot.
        let node = Node::new();
        node.take(1, 5);
        node.purge(5);
        node.vote(1, 5).await;
        for _ in 0..2 {
            node.settle(&history);
            assert_eq!(node.kept(), [lacking(file(2, 3, []), 4, 5)]);
        }
        assert_eq!(node.shown(2, 3), Some((4, 4)));
    }

    #[test]
    fn what_a_replicas_log_was_purged_of_is_said_once() {
        let history = history(&[(2, at(1, 3))]);
        let node = Node::new();
        node.take(1, 8);
        node.purge(4);
        node.settle(&history);
        let kept = [lacking(file(2, 3, 5..=8), 4, 4)];
        assert_eq!(node.kept(), kept);
        // Emptied for a snapshot that did not come: the rest was kept before.
        node.purge(8);
        node.settle(&history);
        assert_eq!(node.kept(), kept);
        assert_eq!(node.shown(2, 3), Some((10, 10)));
    }

    #[test]
    fn a_loss_that_cannot_be_counted_is_not_shown() {
        let node = Node::new();
        node.take(1, 13);
        node.purge(11);
        node.settle(&deeper());
        assert_eq!(
            node.kept(),
            [lacking(file(2, 10, 12..=13), 11, 11), lacking(file(3, 8, []), 9, 10)]
        );
        assert_eq!((node.shown(2, 10), node.shown(3, 8)), (Some((6, 6)), None));
    }
}
