//! The answer of a sealed node is final, over restarts.

use super::*;

#[tokio::test]
async fn a_seal_of_a_voter_holds_over_a_restart() {
    for seed in 0..4 {
        let engine = Arc::new(MemoryEngine::default());
        let before = Process::start(1, Arc::clone(&engine)).await;
        assert!(before.answers_appends().await);
        let said = before.seal(false).await;
        assert!(!before.answers_appends().await);
        // It has saved the cluster from before it was sealed, and so would be a member like others.
        let after = Process::start(1, Arc::new(engine.crash(seed))).await;
        // Nor was there a moment at which it would have been: it is not even found.
        assert_eq!(
            after.refuses_appends().await,
            Some(Code::NotFound),
            "the answered position is final"
        );
        assert!(after.is_sealed_voter().await);
        let again = after.seal(false).await;
        assert_eq!((again.position, again.term), (said.position, said.term));
        // Also if it is asked again to stop as for a switchover.
        after.seal(true).await;
        let after = Process::start(1, Arc::new(engine.crash(seed))).await;
        assert!(!after.answers_appends().await);
    }
}

/// Batches committed during the seal, and the commit position, are part of a voter's answer.
#[tokio::test]
async fn what_was_written_while_a_voter_was_sealed_outlives_its_answer() {
    for planned in [false, true] {
        let engine = Arc::new(MemoryEngine::default());
        let process = Process::start(1, Arc::clone(&engine)).await;
        until("it has begun", async || process.voter().group.votes()).await;
        engine.hold_syncs();
        let meanwhile = async {
            until("the seal is written down", async || engine.held_syncs() > 0).await;
            let mut writes = meridian_storage::WriteBatch::default();
            writes.put(&"log".into(), b"meanwhile".to_vec(), b"committed".to_vec());
            engine.write(writes, meridian_storage::Durability::Logged).unwrap();
            engine.release_syncs();
        };
        futures::future::join(process.seal(planned), meanwhile).await;
        let left = engine.crash_to_what_is_durable().get("log", b"meanwhile").unwrap();
        assert_eq!(left.as_deref(), Some(b"committed".as_slice()), "planned: {planned}");
    }
}

/// The end of a region seals all of its shards at once, and the log of every other shard waits for
/// the same disk.
#[tokio::test]
async fn seals_of_one_moment_share_an_fsync() {
    let engine = Arc::new(MemoryEngine::default());
    let process = Process::start(1, Arc::clone(&engine)).await;
    until("it has begun", async || process.voter().group.votes()).await;
    engine.hold_syncs();
    let before = engine.unsynced_writes();
    let seals = futures::future::join_all((0..4).map(|_| process.seal(true)));
    let meanwhile = async {
        until("all are written down", async || engine.unsynced_writes() >= before + 4).await;
        until("the disk is asked", async || engine.held_syncs() > 0).await;
        let held = engine.held_syncs();
        engine.release_syncs();
        held
    };
    let (_, held) = futures::future::join(seals, meanwhile).await;
    assert_eq!(held, 1);
}

#[tokio::test]
async fn a_planned_seal_of_a_voter_holds_over_a_restart() {
    let engine = Arc::new(MemoryEngine::default());
    let before = Process::start(1, Arc::clone(&engine)).await;
    assert!(before.answers_appends().await);
    until("it is known as a member", async || before.voter().group.votes()).await;
    before.seal(true).await;
    let after = Process::start(1, Arc::new(engine.crash(1))).await;
    // The leader may finish what it began, and no other voter leads.
    assert!(after.answers_appends().await);
    assert!(after.is_sealed_voter().await);
    assert!(
        !after.holds_a_lease_that_it_is_granted(),
        "granted before the directory sealed the epoch"
    );
}

/// A lease that was granted before, or another that pulls or votes, may be there before this node
/// has a part.
#[tokio::test]
async fn a_sealed_shard_is_never_taken_up_as_if_it_were_not() {
    let engine = Arc::new(MemoryEngine::default());
    let unsealed = Process::open(1, Arc::clone(&engine));
    assert!(unsealed.holds_a_lease_that_it_is_granted());
    Process::start(1, Arc::clone(&engine)).await.seal(false).await;
    let opened = Process::open(1, Arc::new(engine.crash(1)));
    assert!(!opened.holds_a_lease_that_it_is_granted());
    let opened = Process::open(4, Arc::new(MemoryEngine::default()));
    let history = EpochHistory::new(opened.parts.directory.shard(SHARD).unwrap().bases);
    for sealed in [false, true] {
        let replica = opened.reconciler.follow(history.clone(), sealed.then_some(Epoch(1)));
        assert_eq!(Process::takes_nothing(&replica).await, sealed);
    }
}

/// A node that was down when the directory sealed the epoch will be asked, and has no seal of its
/// own until then.
#[tokio::test]
async fn a_shard_that_the_directory_seals_is_taken_up_sealed() {
    for (node_id, planned) in [(1, false), (1, true), (4, false), (4, true)] {
        let process = Process::open(node_id, Arc::new(MemoryEngine::default()));
        let directory = &process.parts.directory;
        let to = Some("region-2".to_owned());
        let seal = Change::Seal {
            shard: SHARD,
            epoch: Epoch(1),
            to: to.clone().filter(|_| planned),
            planned,
            since_ms: 1,
            cause: "a test".to_owned(),
        };
        let active = Change::Activate { shard: SHARD, epoch: Epoch(1) };
        let switchover =
            to.filter(|_| planned).map(|to| Change::BeginSwitchover { shard: SHARD, to });
        for change in [Some(active), switchover, Some(seal)].into_iter().flatten() {
            directory.learn(directory.known().cluster.after(&change).unwrap()).unwrap();
        }
        process.reconcile().await;
        assert!(!process.holds_a_lease_that_it_is_granted());
        match process.local() {
            LocalShard::Voter(_) => assert!(process.is_sealed_voter().await),
            // For a switchover it goes on taking what the leader finishes.
            LocalShard::Replica(_) => assert_eq!(process.is_sealed_replica().await, !planned),
        }
    }
}

#[tokio::test]
async fn a_seal_of_a_replica_holds_over_a_restart() {
    let engine = Arc::new(MemoryEngine::default());
    let before = Process::start(4, Arc::clone(&engine)).await;
    assert!(!before.is_sealed_replica().await);
    let said = before.seal(false).await;
    assert!(before.is_sealed_replica().await);
    let after = Process::start(4, Arc::new(engine.crash(1))).await;
    assert!(after.is_sealed_replica().await, "it follows on");
    assert_eq!(after.seal(false).await.position, said.position);
}
