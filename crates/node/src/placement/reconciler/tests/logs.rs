//! A node's log over its changes of role.

use std::collections::BTreeSet;

use meridian_proto::log;
use meridian_storage::{LogMark, StoredBatch};
use prost::Message;

use super::*;

/// The disk of node 1 once the group of the first epoch has committed five batches.
fn voted() -> Arc<MemoryEngine> {
    let disk = Arc::<MemoryEngine>::default();
    let engine = Arc::clone(&disk) as Arc<dyn Engine>;
    let group = GroupId { shard: SHARD, epoch: Epoch(1) };
    let state = Arc::new(ShardState::open(Arc::clone(&engine), SHARD).unwrap());
    let voters = BTreeSet::from([1, 2, 3].map(NodeId));
    RaftGroup::form(&state, group, &voters, Position::ZERO, None).unwrap();
    let log = GroupLog::open(engine, group, RecordKind::Entry).unwrap();
    let vote = log::Vote { term: 1, node_id: 1, committed: true };
    log.put_mark(LogMark::Vote, &vote.encode_to_vec()).unwrap();
    for index in 1..=5 {
        let log_id = Some(log::LogId { term: 1, index });
        let payload =
            Some(log::entry::Payload::Batch(meridian_proto::encode_batch(&batch(1, index))));
        let entry = log::Entry { log_id, payload };
        log.append([(index, entry.encode_to_vec().as_slice())]).unwrap();
        let raft = RaftApplied { log_id, ..state.applied().raft };
        state.apply(&[batch(1, index).into()], raft).unwrap();
    }
    disk
}

/// The sequences that followers of the log find here.
fn found(process: &Process) -> Vec<u64> {
    assert_eq!(process.local().purged().unwrap(), 0);
    let batches = process.local().batches_after(0, 1 << 20).unwrap().unwrap();
    let mut sequences: Vec<_> =
        batches.iter().map(|StoredBatch { sequence, .. }| *sequence).collect();
    // A read ends with an epoch.
    let last = sequences.last().copied().unwrap();
    let more = process.local().batches_after(last, 1 << 20).unwrap().unwrap();
    sequences.extend(more.iter().map(|batch| batch.sequence));
    sequences
}

#[tokio::test]
async fn followers_of_the_log_go_on_at_a_voter_that_becomes_a_replica_and_a_voter_again() {
    let process = Process::start(1, voted()).await;
    assert_eq!(process.voter().group.id().epoch, Epoch(1));
    assert_eq!(found(&process), [1, 2, 3, 4, 5]);
    process.learn_next_epoch(5, Phase::Active);
    process.learn(|shard| shard.voters = [4, 5].map(NodeId).into());
    process.reconcile().await;
    assert!(matches!(process.local(), LocalShard::Replica(_)));
    assert_eq!(found(&process), [1, 2, 3, 4, 5]);
    process.takes(2, 6..=8);
    process.learn(|shard| {
        (shard.epoch, shard.phase) = (Epoch(3), Phase::Forming);
        shard.bases.push((Epoch(3), Position::new(Epoch(2), 8)));
        shard.voters = [1, 2, 3].map(NodeId).into();
    });
    process.reconcile().await;
    assert_eq!(process.voter().group.id().epoch, Epoch(3));
    assert_eq!(found(&process), [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[tokio::test]
async fn followers_of_the_log_go_on_at_a_voter_that_is_taken_out_of_its_group() {
    let process = Process::start(1, voted()).await;
    process.learn(|shard| shard.voters = [2, 3].map(NodeId).into());
    process.reconcile().await;
    assert!(matches!(process.local(), LocalShard::Replica(_)));
    assert_eq!(found(&process), [1, 2, 3, 4, 5]);
    let group = GroupId { shard: SHARD, epoch: Epoch(1) };
    assert!(!has_log(&process.parts.engine, group).unwrap());
}
