//! Reads at the node of this process, which are begun there and asked of others if they take long.

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn read_from_memory_asks_no_other_node_and_a_long_one_is_begun_here_once() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        let asked = time.now();
        assert!(router.read(eventual()).await.is_ok());
        assert_eq!(router.min_sequence((ShardId(1), Epoch(1))), 1, "what was shown is remembered");
        assert_eq!(router.leaders.hint(ShardId(1)), None, "what is eventual may be old");
        assert!(router.read(read()).await.is_ok());
        assert_eq!(router.leaders.hint(ShardId(1)), Some(NodeId(1)), "the node knows the leader");
        assert_eq!((voters.asked(), time.now()), (vec![2, 2], asked));
        voters.working.store(true, Ordering::SeqCst);
        assert!(router.read(read()).await.is_ok());
        assert_eq!(voters.asked(), [2, 2, 2, 1], "it is hedged like any other");
    });
}

#[test]
fn read_does_not_begin_at_a_silent_local_node_nor_a_strong_one_at_a_non_voter() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        voters.link(2, Link::Silent);
        for _ in 0..2 {
            assert!(router.read(read()).await.is_ok());
        }
        assert_eq!(voters.asked(), [2, 1, 1]);
    });
    run(AT_ONCE, |world| async move {
        let router = beside(&world, 4);
        assert!(router.read(read()).await.is_ok());
        assert!(router.read(eventual()).await.is_ok());
        assert_eq!(world.voters.asked(), [1, 4]);
    });
}

#[test]
fn call_begun_at_this_node_is_not_taken_for_the_answer_of_another() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        // It votes as far as it knows itself, and the directory knows better.
        world.learns(|cluster| {
            cluster.shards.get_mut(&ShardId(1)).unwrap().voters = BTreeSet::from([1, 3].map(NodeId))
        });
        voters.working.store(true, Ordering::SeqCst);
        assert!(router.read(read()).await.is_ok());
        assert_eq!(voters.asked()[..2], [2, 1]);
    });
}

#[test]
fn read_refused_here_goes_on_to_others_and_the_next_read_to_them_first() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.refusing.lock().insert(NodeId(2));
        for _ in 0..2 {
            assert!(router.read(read()).await.is_ok());
        }
        assert_eq!(voters.asked(), [2, 1, 1]);
        voters.refusing.lock().clear();
        time.sleep(Duration::from_secs(1)).await;
        for _ in 0..2 {
            assert!(router.read(read()).await.is_ok());
        }
        assert_eq!(voters.asked(), [2, 1, 1, 2, 2]);
    });
}

#[test]
fn read_at_this_node_wakes_the_operations_that_wait_for_the_shard() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        assert!(world.commits().await);
        voters.leader.send_replace(None);
        (1..=3).for_each(|node| voters.link(node, Link::Refused));
        let waiting = world.writing();
        time.sleep(Duration::from_secs(5)).await;
        let (_, mut news) = router.leaders.subscribe(ShardId(1));
        (1..=3).for_each(|node| voters.link(node, Link::Up));
        voters.leader.send_replace(Some(NodeId(2)));
        let back = time.now();
        assert!(router.read(read()).await.is_ok());
        assert!(news.has_changed().unwrap() && *news.borrow_and_update() == Some(NodeId(2)));
        assert!(matches!(waiting.await, Ok(WriteOutcome::Committed(_))));
        assert!(time.now() - back < Duration::from_millis(50), "{:?}", time.now() - back);
    });
}
