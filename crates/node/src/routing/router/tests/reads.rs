//! Reads from other nodes: which are asked, for how long, and what is remembered of the answer.

use std::sync::atomic::Ordering;

use meridian_memory::ByteBudget;

use super::*;

#[test]
fn eventual_read_is_remembered_and_says_nothing_about_the_leader() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        voters.leader.send_replace(Some(NodeId(3)));
        assert!(router.read(eventual()).await.is_ok());
        assert_eq!(
            (router.min_sequence((ShardId(1), Epoch(1))), router.leaders.hint(ShardId(1))),
            (1, None)
        );
        assert!(router.read(read()).await.is_ok());
        assert_eq!(router.leaders.hint(ShardId(1)), Some(NodeId(3)));
    });
}

#[test]
fn positions_that_a_failover_took_back_are_not_asked_of_the_new_epoch() {
    run(AT_ONCE, |world| async move {
        let (router, shard) = (&world.router, ShardId(1));
        router.record_served(shard, Position::new(Epoch(1), 100));
        assert_eq!(router.min_sequence((shard, Epoch(1))), 100);
        world.learns(|cluster| {
            let shard = cluster.shards.get_mut(&shard).unwrap();
            shard.epoch = Epoch(2);
            shard.bases.push((Epoch(2), Position::new(Epoch(1), 90)));
        });
        assert_eq!(router.min_sequence((shard, Epoch(2))), 90);
        router.record_served(shard, Position::new(Epoch(2), 95));
        assert_eq!(router.min_sequence((shard, Epoch(2))), 95);
    });
}

#[test]
fn answer_without_room_is_asked_for_once_more_with_the_room_freed_meanwhile() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        let memory = ByteBudget::new("reads", 1 << 20);
        let held = memory.try_take(1 << 20).unwrap();
        *voters.transfer.lock() = Some(async { Err(BrokenOff::ForRoom(held)) }.boxed());
        let asked = time.now();
        assert!(router.read(read()).await.is_ok());
        assert_eq!((voters.asked(), voters.with_room.load(Ordering::SeqCst)), (vec![1, 1], 1));
        assert_eq!((time.now() - asked, memory.used_bytes()), (2 * world::ROUND_TRIP, 0));
        // Not where that took until the deadline.
        let (held, asked, slow) = (memory.try_take(1 << 20).unwrap(), time.now(), time.clone());
        let slow = async move {
            slow.sleep_until(asked + DEADLINE).await;
            Err(BrokenOff::ForRoom(held))
        };
        *voters.transfer.lock() = Some(slow.boxed());
        let failed = router.read(read()).await.unwrap_err();
        assert!(failed.reason.contains("short of memory for reads"), "{failed:?}");
        assert_eq!((voters.calls(), memory.used_bytes()), (3, 0));
    });
}

#[test]
fn read_that_all_nodes_refuse_is_tried_again_until_its_deadline() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.refusing.lock().extend([1, 2, 3].map(NodeId));
        let began = time.now();
        assert!(router.read(read()).await.is_err());
        let took = time.now() - began;
        assert!(took >= DEADLINE && took <= DEADLINE + 3 * world::ROUND_TRIP, "{took:?}");
        assert!(voters.calls() < 200, "{}", voters.calls());
    });
}

#[test]
fn eventual_read_in_progress_goes_on_over_a_change_of_epoch() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.working.store(true, Ordering::SeqCst);
        let (asked, router) = (time.now(), Arc::clone(router));
        let reading = world.spawn({
            let router = Arc::clone(&router);
            async move { router.read(eventual()).await }
        });
        time.sleep(Duration::from_secs(1)).await;
        let calls = voters.calls();
        let mut cluster = router.directory.known().cluster.clone();
        cluster.shards.get_mut(&ShardId(1)).unwrap().epoch = Epoch(2);
        cluster.version += 1;
        router.directory.learn(cluster).unwrap();
        assert!(reading.await.is_ok());
        let took = time.now() - asked;
        assert!(took < Duration::from_millis(3100), "it began anew: {took:?}");
        assert_eq!(voters.calls(), calls);
    });
}

#[test]
fn read_runs_at_two_nodes_at_most_and_at_none_once_its_caller_left() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.working.store(true, Ordering::SeqCst);
        assert!(router.read(read()).await.is_ok());
        assert_eq!((voters.most_in_flight.load(Ordering::SeqCst), voters.in_flight()), (2, 0));
        (1..=3).for_each(|node| voters.link(node, Link::Silent));
        let failed = router.read(read()).await.unwrap_err();
        assert!(failed.reason.contains("no answer within"), "{failed:?}");
        assert_eq!(voters.in_flight(), 0);
        let reading = world.spawn({
            let router = Arc::clone(router);
            async move { drop(router.read(read()).await) }
        });
        while voters.in_flight() == 0 {
            time.sleep(Duration::from_millis(1)).await;
        }
        drop(reading);
        time.sleep(Duration::from_millis(1)).await;
        assert_eq!(voters.in_flight(), 0);
    });
}

#[test]
fn answer_in_transfer_is_waited_for_beyond_the_deadline_and_asked_for_once() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        let slow = time.clone();
        let slow = async move {
            slow.sleep(3 * DEADLINE).await;
            Ok(vec![Vec::new()])
        };
        *voters.transfer.lock() = Some(slow.boxed());
        assert_eq!(router.read(read()).await.unwrap().ranges.len(), 1);
        assert_eq!(voters.asked(), [1]);
        // An answer that breaks off is asked for again.
        *voters.transfer.lock() =
            Some(async { Err(BrokenOff::Failed("the answer stopped".to_owned())) }.boxed());
        assert_eq!(router.read(read()).await.unwrap().ranges.len(), 1);
        assert_eq!(voters.asked(), [1, 1, 1]);
        assert!(!router.health.is_silent(time.now(), NodeId(1)));
    });
}
