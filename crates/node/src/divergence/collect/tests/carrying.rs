//! The log of a group, carried over into the log that a node goes on with.

use meridian_consensus::{has_log, leave_group};
use meridian_proto::log;
use meridian_storage::{Call, GroupLog, HookedEngine, Hooks, RecordKind};
use parking_lot::Mutex;
use prost::Message;

use super::*;
use crate::replication::carry_over::carry_over;

fn group(epoch: u16) -> GroupId {
    GroupId { shard: SHARD, epoch: Epoch(epoch) }
}

/// The ends of the log that the node goes on with, which is whole in between, and of the history;
/// and up to where it says that it was purged.
fn carried(node: &Node, history: &EpochHistory) -> (Option<(u64, u64)>, Option<u64>) {
    let batches = node.log.read(0..u64::MAX, usize::MAX).unwrap();
    for (batch, expected) in batches.iter().zip(batches.first().map_or(0, |first| first.sequence)..)
    {
        let position = header(SHARD, &batch.bytes).unwrap();
        assert_eq!((batch.sequence, position.sequence), (expected, expected), "a gap");
        assert!(history.holds(position), "{position} is not of the history");
        assert_eq!(batch.bytes, encoded(position), "at {position}");
    }
    let ends = batches.first().zip(batches.last());
    let ends = ends.map(|(first, last)| (first.sequence, last.sequence));
    assert!(ends.is_none_or(|(_, last)| last == node.state.position().sequence), "{ends:?}");
    (ends, node.log.purged().unwrap())
}

fn is_forgotten(node: &Node, epoch: u16) -> bool {
    !is_in_use(&node.engine, group(epoch)).unwrap()
}

#[tokio::test]
async fn log_of_a_node_is_one_over_all_epochs_in_which_it_voted_or_did_not() {
    let node = Node::new();
    node.take(1, 10);
    node.vote(2, 20).await;
    let mut bases = vec![(2, at(1, 10)), (3, at(2, 20))];
    node.settle(&history(&bases));
    assert_eq!(carried(&node, &history(&bases)), (Some((1, 20)), None));
    node.take(3, 25);
    node.vote(4, 30).await;
    bases.extend([(4, at(3, 25)), (5, at(4, 30))]);
    for _ in 0..2 {
        node.settle(&history(&bases));
        assert_eq!(carried(&node, &history(&bases)), (Some((1, 30)), None));
    }
    assert!(is_forgotten(&node, 2) && is_forgotten(&node, 4));
    // An epoch in which nothing was written.
    node.vote(5, 30).await;
    bases.push((6, at(4, 30)));
    node.settle(&history(&bases));
    assert_eq!(carried(&node, &history(&bases)), (Some((1, 30)), None));
    assert!(is_forgotten(&node, 5));
    assert_eq!(node.kept(), []);
}

/// An entry of the group's log that was not committed, as far as this node knows.
fn append(node: &Node, epoch: u16, sequence: u64) {
    let log = GroupLog::open(Arc::clone(&node.engine), group(epoch), RecordKind::Entry).unwrap();
    let (index, _) = log.last().unwrap().unwrap();
    let payload = Some(log::entry::Payload::Batch(encoded(at(epoch, sequence))));
    let log_id = Some(log::LogId { term: 1, index: index + 1 });
    let entry = log::Entry { log_id, payload }.encode_to_vec();
    log.append([(index + 1, entry.as_slice())]).unwrap();
}

#[tokio::test]
async fn nothing_is_carried_over_that_the_state_does_not_have_or_the_history_lost() {
    let node = Node::new();
    node.vote(1, 8).await;
    append(&node, 1, 9);
    append(&node, 1, 10);
    // The ninth is in the history. This node cannot know whether it has the same one.
    let cut = history(&[(2, at(1, 9))]);
    node.settle(&cut);
    assert_eq!(carried(&node, &cut), (Some((1, 8)), Some(0)));
    assert_eq!(node.kept(), [file(2, 9, [10])]);

    // A state beyond the base goes with all that it is made from.
    let node = Node::new();
    node.take(1, 4);
    node.vote(2, 8).await;
    let cut = history(&[(2, at(1, 4)), (3, at(2, 6))]);
    node.settle(&cut);
    assert_eq!(node.log.last().unwrap().map(|last| last.sequence), Some(4));
    assert_eq!(node.kept(), [file(3, 6, 7..=8)]);

    // A state that went on without the group.
    let node = Node::new();
    node.vote(1, 8).await;
    node.state.apply(&[], RaftApplied::default()).unwrap();
    node.settle(&history(&[(2, at(1, 8))]));
    assert_eq!(node.log.first().unwrap(), None);
    assert!(is_forgotten(&node, 1));
}

#[tokio::test]
async fn log_begins_behind_what_is_missing_before_the_group_had_its_state() {
    let node = Node::new();
    let past = history(&[(2, at(1, 8)), (3, at(2, 12))]);
    node.take(1, 5);
    // The rest came with a whole state.
    for sequence in 6..=8 {
        let batch = decode_batch(encoded(at(1, sequence))).unwrap();
        node.state.apply(&[batch], RaftApplied::default()).unwrap();
    }
    node.vote(2, 12).await;
    node.settle(&past);
    assert_eq!(carried(&node, &past), (Some((9, 12)), Some(8)));
}

#[tokio::test]
async fn newest_part_is_carried_over_within_bytes_time_and_the_room_of_the_disk() {
    let past = history(&[(2, at(1, 10)), (3, at(2, 20))]);
    let voted = async || {
        let node = Node::new();
        node.take(1, 10);
        node.vote(2, 20).await;
        node
    };
    let node = voted().await;
    let plenty = CarryLimits::new(1 << 30, node.folder.path());
    let nothing = [
        CarryLimits::new(0, node.folder.path()),
        plenty.within(Duration::ZERO),
        plenty.with_free(u64::MAX),
    ];
    for limits in nothing {
        let node = voted().await;
        node.settle_within(&past, &limits);
        assert_eq!(carried(&node, &past), (None, Some(20)), "{limits:?}");
        assert!(is_forgotten(&node, 2));
    }
    // Of nothing, all was carried over: what was there stays.
    let empty = Node::new();
    empty.take(1, 10);
    empty.vote(2, 10).await;
    empty.settle_within(&past, &plenty.with_free(u64::MAX));
    assert_eq!(carried(&empty, &past), (Some((1, 10)), None));
}

#[tokio::test]
async fn log_that_was_carried_over_in_part_has_no_gap() {
    let past = history(&[(2, at(1, 10)), (3, at(2, 20))]);
    let node = Node::new();
    node.take(1, 10);
    node.vote(2, 20).await;
    let len = encoded(at(2, 20)).len() as u64;
    let limits = CarryLimits::new(3 * len, node.folder.path()).in_pieces(0);
    node.settle_within(&past, &limits);
    assert_eq!(carried(&node, &past), (Some((18, 20)), Some(17)));

    // By a try that was cut off. Then the disk fills.
    let node = Node::new();
    node.take(1, 10);
    node.vote(2, 20).await;
    let pieces = [18, 19, 20].map(|sequence| (sequence, encoded(at(2, sequence))));
    node.log.append(pieces.iter().map(|(sequence, bytes)| (*sequence, bytes.as_ref()))).unwrap();
    node.settle_within(&past, &limits.with_free(u64::MAX));
    assert_eq!(carried(&node, &past), (None, Some(20)));
}

/// The disk after each write, as losses of power there would leave it.
struct Crashes {
    disk: Arc<MemoryEngine>,
    found: Mutex<Option<Vec<MemoryEngine>>>,
}

impl Hooks for Crashes {
    fn after(&self, call: Call<'_>) {
        let mut found = self.found.lock();
        let is_write = matches!(call, Call::Write(_) | Call::Sync | Call::Flush(_));
        if let Some(found) = found.as_mut().filter(|_| is_write) {
            let seeds = found.len() as u64..found.len() as u64 + 8;
            found.extend(seeds.map(|seed| self.disk.crash(seed)));
        }
    }
}

/// A voter of the second epoch that has an entry beyond its twelve batches, and what a crash at any
/// point of `settle` leaves of it.
async fn crashed(settle: impl FnOnce(&Node)) -> Vec<Node> {
    let disk = Arc::<MemoryEngine>::default();
    let crashes = Crashes { disk: Arc::clone(&disk), found: Mutex::default() };
    let crashes = Arc::new(HookedEngine::new(disk as Arc<dyn Engine>, crashes));
    let node = Node::on(Arc::clone(&crashes));
    node.take(1, 5);
    node.log.sync().unwrap();
    node.vote(2, 12).await;
    append(&node, 2, 13);
    node.log.sync().unwrap();
    *crashes.found.lock() = Some(Vec::new());
    settle(&node);
    let found = crashes.found.lock().take().unwrap();
    let restarted = |disk| {
        let node = Node::on(Arc::new(disk));
        // As a process begins.
        node.log.replay(&node.state).unwrap();
        assert_eq!(node.state.position(), at(2, 12));
        node
    };
    found.into_iter().map(restarted).collect()
}

#[tokio::test]
async fn log_is_carried_over_once_and_whole_wherever_crashes_end_that() {
    let past = history(&[(2, at(1, 5)), (3, at(2, 12))]);
    let settle = |node: &Node| {
        let limits = CarryLimits::new(1 << 30, node.folder.path()).in_pieces(0);
        node.settle_within(&past, &limits);
    };
    let (mut whole, mut parts) = (0, 0);
    for node in crashed(settle).await {
        let was_forgotten = is_forgotten(&node, 2);
        let lies_there = node.log.read(0..u64::MAX, usize::MAX).unwrap().len();
        *if lies_there == 12 { &mut whole } else { &mut parts } += 1;
        assert!(!was_forgotten || lies_there == 12, "{lies_there} batches are left");
        for _ in 0..2 {
            settle(&node);
            assert_eq!(carried(&node, &past), (Some((1, 12)), None));
            assert!(is_forgotten(&node, 2));
        }
        // Still as a part of its group: what was lost is counted by it.
        assert_eq!(node.state.applied().raft.epoch, Some(Epoch(2)));
        let kept = if was_forgotten { vec![] } else { vec![file(3, 12, [13])] };
        assert_eq!(node.kept(), kept);
    }
    assert!(whole > 10 && parts > 10, "{whole} and {parts}");
}

#[tokio::test]
async fn log_of_a_group_that_a_node_leaves_is_in_one_of_its_logs_wherever_a_crash_ends_that() {
    let leave = |node: &Node| {
        let limits = CarryLimits::new(1 << 30, node.folder.path()).in_pieces(0);
        carry_over(&node.state, &node.log, group(2), &limits).unwrap();
        leave_group(&node.engine, group(2), None).unwrap();
    };
    let mut left = 0;
    for node in crashed(leave).await {
        if !has_log(&node.engine, group(2)).unwrap() {
            left += 1;
            assert_eq!(carried(&node, &history(&[(2, at(1, 5))])), (Some((1, 12)), None));
        }
    }
    assert!(left > 0);
}
