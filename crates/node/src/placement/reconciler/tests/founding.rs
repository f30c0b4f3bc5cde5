//! How the members of an epoch's group begin: founders, and voters that are seeded.

use super::*;

#[tokio::test]
async fn the_log_of_a_replica_begins_right_behind_its_state() {
    for (taken, log, purged) in [
        // They end alike, and what there is stays.
        (5, Some((1, 5)), None),
        // The batches in between were applied as a voter.
        (3, None, Some(5)),
        (0, None, Some(5)),
    ] {
        let process = Process::open(4, Arc::<MemoryEngine>::default());
        process.takes(1, 1..=taken);
        process.applies(1, taken + 1..=5);
        process.reconciler.log.join_behind(&process.reconciler.state).unwrap();
        assert_eq!(process.shipped(), (log, purged), "{taken} were taken");
    }
    // Of a state that was replaced by an older one.
    let process = Process::open(4, Arc::<MemoryEngine>::default());
    process.applies(1, 1..=5);
    for sequence in 1..=7 {
        let stored = meridian_proto::encode_batch(&batch(1, sequence));
        process.reconciler.log.append([(sequence, stored.as_ref())]).unwrap();
    }
    process.reconcile().await;
    assert_eq!(process.shipped(), (None, Some(5)));
}

/// Batches that a voter took as a replica of the present epoch would be applied on top of the
/// leader's.
#[tokio::test]
async fn a_voter_that_is_seeded_keeps_of_its_own_what_lies_before_the_base() {
    for (taken, log, purged) in [(5, Some((1, 5)), None), (6, None, Some(6)), (7, None, Some(7))] {
        let process = Process::open(1, Arc::<MemoryEngine>::default());
        process.takes(1, 1..=5);
        process.takes(2, 6..=taken);
        // The others have formed the group.
        process.learn_next_epoch(5, Phase::Active);
        process.reconcile().await;
        assert_eq!(process.shipped(), (log, purged), "up to {taken}");
        assert_eq!(process.voter().group.id().epoch, Epoch(2));
        assert_eq!(
            process.reconciler.state.applied().raft.epoch,
            None,
            "it founds nothing, though it stands at the base"
        );
    }
}

#[test]
fn the_log_of_a_group_stays_where_the_state_is_the_groups() {
    use prost::Message;
    let group = GroupId { shard: SHARD, epoch: Epoch(1) };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let _entered = runtime.enter();
    for (epoch, has_entries, stays) in
        [(Some(1), true, true), (Some(1), false, true), (None, true, false), (None, false, false)]
    {
        let process = Process::open(1, Arc::<MemoryEngine>::default());
        let log =
            GroupLog::open(Arc::clone(&process.parts.engine), group, RecordKind::Entry).unwrap();
        let log_id = meridian_proto::log::LogId { term: 1, index: 1 };
        if has_entries {
            let payload = Some(meridian_proto::log::entry::Payload::Blank(true));
            let entry = meridian_proto::log::Entry { log_id: Some(log_id), payload };
            log.append([(1, entry.encode_to_vec().as_ref())]).unwrap();
        } else {
            log.put_mark(meridian_storage::LogMark::Purged, &log_id.encode_to_vec()).unwrap();
        }
        let raft = RaftApplied { epoch: epoch.map(Epoch), ..RaftApplied::default() };
        process.reconciler.state.apply(&[], raft).unwrap();
        process.reconciler.prepare_to_be_seeded(group.epoch, Position::ZERO).unwrap();
        let is_there = has_log(&process.parts.engine, group).unwrap();
        assert_eq!(is_there, stays, "of epoch {epoch:?}; entries: {has_entries}");
    }
}

#[tokio::test]
async fn what_a_founder_lacks_is_pulled_while_the_group_is_being_formed() {
    let process = Process::open(1, Arc::<MemoryEngine>::default());
    process.learn_next_epoch(5, Phase::Forming);
    let ended = |epoch| process.reconciler.forming_ends(Epoch(epoch)).now_or_never().is_some();
    assert!(!ended(2));
    assert!(ended(1) && ended(3), "another epoch is no longer, or not yet, formed");
    process.learn(|shard| shard.phase = Phase::Active);
    assert!(ended(2), "others have founded it");
    process.learn(|shard| shard.phase = Phase::Forming);
    assert!(!ended(2));
    process.parts.stop.cancel();
    assert!(ended(2));
}

/// A replica of the first epoch with 50 batches, and where it is asked for them.
async fn source(purged: u64) -> (Process, String) {
    let source = Process::open(4, Arc::<MemoryEngine>::default());
    source.takes(1, 1..=50);
    if purged > 0 {
        source.reconciler.log.purge_through(purged).unwrap();
    }
    source.reconcile().await;
    let address = source.serve().await;
    (source, address)
}

/// The tail that an epoch lost, of a source that has not heard of it, is refused; the source behind it
/// in line has the history.
#[tokio::test(flavor = "multi_thread")]
async fn founder_gives_its_turn_back_before_it_asks_the_next_source() {
    let stale = Process::open(2, Arc::<MemoryEngine>::default());
    stale.takes(1, 1..=50);
    let good = Process::open(4, Arc::<MemoryEngine>::default());
    good.takes(1, 1..=30);
    good.takes(2, 31..=50);
    good.learn_next_epoch(30, Phase::Active);
    // As a replica: a voter has no log of what it took as one.
    stale.learn(|shard| {
        shard.voters.remove(&NodeId(2));
    });
    stale.reconcile().await;
    good.reconcile().await;
    let addresses =
        HashMap::from([(NodeId(2), stale.serve().await), (NodeId(4), good.serve().await)]);
    let dial = Arc::new(move |node: NodeId| addresses.get(&node).cloned());
    let founder = Process::dialling(1, Arc::<MemoryEngine>::default(), dial);
    founder.takes(1, 1..=20);
    founder.learn_next_epoch(30, Phase::Forming);
    founder.learn(|shard| {
        shard.epoch = Epoch(3);
        shard.bases.push((Epoch(3), Position::new(Epoch(2), 50)));
    });
    let _others = crate::replication::catch_up::leave_one_turn().await;
    let reconciled = tokio::time::timeout(Duration::from_secs(20), founder.reconcile());
    reconciled.await.expect("it waits for a second turn while it holds one");
    assert_eq!(founder.reconciler.state.position(), Position::new(Epoch(2), 50));
}

#[tokio::test(flavor = "multi_thread")]
async fn founder_pulls_what_it_lacks_and_asks_its_own_region_first() {
    let ((_one, log), (_other, state)) = (source(0).await, source(50).await);
    // Node 2 is of the first region, as the founder, and node 4 is not.
    for (addresses, shipped) in [
        (vec![(4, state.clone())], (None, Some(50))),
        (vec![(4, state.clone()), (2, log.clone())], (Some((1, 50)), None)),
        (vec![(4, log), (2, state)], (None, Some(50))),
    ] {
        let asked: Vec<_> = addresses.iter().map(|(node, _)| *node).collect();
        let addresses: HashMap<_, _> =
            addresses.into_iter().map(|(node, address)| (NodeId(node), address)).collect();
        let dial = Arc::new(move |node: NodeId| addresses.get(&node).cloned());
        let founder = Process::dialling(1, Arc::<MemoryEngine>::default(), dial);
        founder.takes(1, 1..=20);
        founder.learn_next_epoch(50, Phase::Forming);
        founder.reconcile().await;
        let applied = founder.reconciler.state.applied();
        assert_eq!(applied.position, Position::new(Epoch(1), 50), "from {asked:?}");
        assert_eq!(applied.raft.epoch, Some(Epoch(2)), "it founds the group");
        assert_eq!(founder.shipped(), shipped, "from {asked:?}");
    }
}
