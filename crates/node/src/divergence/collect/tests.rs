//! Orphan files for the batches of logs that a later epoch's history does not hold.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use meridian_consensus::testing::{NoPeers, NoStates};
use meridian_consensus::{LogCache, Peers, RaftGroup, RaftGroupOptions, RaftTiming};
use meridian_proto::directory::Orphans;
use meridian_storage::{Engine, MemoryEngine, StateChange, Syncer};
use meridian_types::NodeId;
use tempfile::TempDir;

use super::*;
use crate::divergence::orphan_files;
use crate::divergence::orphan_files::tests::{SHARD, batch_at, report};

mod carrying;

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

    fn on(engine: Arc<impl Engine>) -> Self {
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
            (GroupId { shard: SHARD, epoch: Epoch(epoch) }, BTreeSet::from([NodeId(1)]));
        RaftGroup::form(&self.state, group, &voters, self.state.position(), None).unwrap();
        let no_peers: Arc<dyn Peers> = Arc::new(NoPeers);
        let opened = RaftGroup::open(RaftGroupOptions {
            node_id: NodeId(1),
            group,
            state: Arc::clone(&self.state),
            syncer: Arc::new(Syncer::start(Arc::clone(&self.engine)).unwrap()),
            high_water: None,
            peers: Arc::clone(&no_peers),
            transfer: Arc::new(NoStates),
            timing: RaftTiming {
                heartbeat_ms: 20,
                election_timeout_min_ms: 60,
                election_timeout_max_ms: 90,
            },
            log_cache: LogCache::default(),
        });
        let opened = opened.await.unwrap();
        opened.take_part(&voters, &no_peers, false).await.unwrap();
        let leads =
            || opened.leadership().is_ok_and(|leads| leads.term == opened.applied().borrow().term);
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
        self.settle_within(history, &CarryLimits::new(1 << 30, self.folder.path()));
    }

    fn settle_within(&self, history: &EpochHistory, limits: &CarryLimits<'_>) {
        let marks = HighWater::open(self.folder.path().join("high-water")).unwrap();
        examine_old_groups(&self.state, &marks, &self.folder.path().into(), history, limits)
            .unwrap();
        keep_shipped(&self.folder.path().into(), &self.state, history, &self.log).unwrap();
    }

    /// The name of each file, its batches, and those that it says are missing.
    fn kept(&self) -> Vec<(String, Vec<u64>, (u64, u64))> {
        let file = |stored: orphan_files::StoredOrphans| {
            let name = stored.name.to_string();
            let (_, summary) = stored.content.unwrap();
            let batches = orphan_files::read(&self.folder.path().into(), &name).unwrap();
            let sequence = |batch: &[u8]| header(SHARD, batch).unwrap().sequence;
            let held = batches.map(|batch| sequence(&batch.unwrap().batch)).collect();
            (name, held, (summary.missing_from, summary.missing_through))
        };
        orphan_files::list(&self.folder.path().into()).unwrap().into_iter().map(file).collect()
    }

    /// The transactions that it shows for the report of an epoch that began behind `base`:
    /// committed, and at most.
    fn shown(&self, epoch: u16, base: u64) -> Option<(u64, u64)> {
        let report = report(Epoch(epoch), base, 2 * base);
        let mut known = orphan_files::KnownOrphans::default();
        known.refresh(&self.folder.path().into()).unwrap();
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

/// Committed batches were not flushed when the process ended. The next process applies them, and
/// ends as well; the one behind that finds any part of them.
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
        let crash = move |_: StateChange<'_>| *last.lock().unwrap() = Some(disk.crash(seed));
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
