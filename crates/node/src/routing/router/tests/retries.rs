//! Operations that go on after an attempt that failed: when, and at what cost.

use std::sync::atomic::Ordering;

use meridian_types::{
    Check, Enqueue, MessageId, Mutation, MutationKind, QueueName, Settlement, SumBounds, Value,
    ValueEncoding, Verdict, Versionstamp,
};

use super::*;
use crate::routing::router::operation::REVIVAL_SPREAD;
use crate::routing::router::write::bytes_of;

#[test]
fn request_that_waits_for_former_voters_asks_those_of_the_next_epoch() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        assert!(world.commits().await);
        // A far one is waited for longer.
        (0..100).for_each(|_| router.health.took(NodeId(1), Duration::from_secs(1)));
        (1..=3).for_each(|node| voters.link(node, Link::Silent));
        let calls = voters.calls();
        let (writing, router) = (world.writing(), Arc::clone(router));
        let reading = world.spawn({
            let router = Arc::clone(&router);
            async move { router.read(read()).await }
        });
        while voters.calls() < calls + 2 {
            time.sleep(Duration::from_millis(1)).await;
        }
        let lost = time.now();
        let mut cluster = router.directory.known().cluster.clone();
        let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
        (shard.epoch, shard.voters, shard.preferred_leader) =
            (Epoch(2), BTreeSet::from([4, 5].map(NodeId)), Some(NodeId(4)));
        cluster.version += 1;
        router.directory.learn(cluster).unwrap();
        voters.leader.send_replace(Some(NodeId(4)));
        assert!(matches!(writing.await, Ok(WriteOutcome::Committed(_))));
        assert!(reading.await.is_ok());
        let took = time.now() - lost;
        assert!(took < Duration::from_millis(1300), "{took:?}");
    });
}

#[test]
fn operations_that_waited_for_a_shard_come_back_spread_out() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        (1..=3).for_each(|node| voters.link(node, Link::Refused));
        let waiting: Vec<_> = (0..100).map(|_| world.writing()).collect();
        time.sleep(Duration::from_secs(5)).await;
        (1..=3).for_each(|node| voters.link(node, Link::Up));
        voters.leader.send_replace(Some(NodeId(2)));
        assert!(router.read(read()).await.is_ok());
        let before = voters.calls();
        time.sleep(REVIVAL_SPREAD / 10).await;
        let at_once = voters.calls() - before;
        assert!(at_once < 50, "{at_once} of them");
        time.sleep(REVIVAL_SPREAD).await;
        assert!(waiting.into_iter().all(|write| write.now_or_never().is_some()), "some wait still");
    });
}

#[test]
fn write_that_all_nodes_refuse_is_tried_again_after_growing_pauses() {
    run_beside(Some(3), AT_ONCE, |world| async move {
        let World { voters, time, .. } = &world;
        voters
            .scripted
            .lock()
            .extend((0..9).map(|_| Failed::NotDone("no quorum answers".to_owned())));
        let began = time.now();
        assert!(world.commits().await);
        assert_eq!(
            voters.asked(),
            [1, 3, 2, 1, 3, 2, 1, 3, 2, 1],
            "the leader, this node, and the remaining one"
        );
        // Of 15, 30 and 60 ms, each by up to a half more or less; and seven round trips.
        let pauses = time.now() - began - 7 * world::ROUND_TRIP;
        assert!(
            (Duration::from_micros(52_500)..=Duration::from_micros(157_500)).contains(&pauses),
            "{pauses:?}"
        );
    });
}

#[test]
fn write_of_a_database_that_has_its_share_costs_its_neighbours_neither_leader_nor_tries() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        assert!(world.commits().await);
        let (budget, _) = router.leaders.subscribe(ShardId(1));
        let spend = || (0..1000).take_while(|_| budget.pays(time.now(), 0)).count();
        spend();
        let (began, before) = (time.now(), voters.calls());
        let busy = |_| Failed::Busy("its share".to_owned());
        voters.scripted.lock().extend((0..3).map(busy));
        let writing = world.writing();
        while voters.calls() < before + 3 {
            time.sleep(Duration::from_millis(1)).await;
            assert_eq!(router.leaders.hint(ShardId(1)), Some(NodeId(1)));
        }
        assert!(matches!(writing.await, Ok(WriteOutcome::Committed(_))));
        assert_eq!(voters.asked()[before..], [1; 4], "the leader alone");
        // Of 240, 480 and 960 ms, each by up to a half more or less.
        let took = time.now() - began;
        assert!((Duration::from_millis(800)..Duration::from_secs(3)).contains(&took), "{took:?}");
        // Nothing was spent, and nothing earned beyond the part of a first try.
        let earned = spend() as f64 - 20.0 * took.as_secs_f64();
        assert!((-1.0..=0.2).contains(&earned), "{earned}");
    });
}

#[test]
fn request_earns_its_part_of_a_further_try_once() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        let (budget, _) = router.leaders.subscribe(ShardId(1));
        let spend = || (0..1000).take_while(|_| budget.pays(time.now(), 0)).count();
        for what in ["writes", "reads", "reads that break off once"] {
            spend();
            let began = time.now();
            for _ in 0..100 {
                if what == "writes" {
                    assert!(world.commits().await);
                    continue;
                }
                if what != "reads" {
                    let breaks_off =
                        async { Err(BrokenOff::Failed("the answer stopped".to_owned())) };
                    *voters.transfer.lock() = Some(breaks_off.boxed());
                }
                assert!(router.read(read()).await.is_ok());
            }
            // Twenty come with each second, whatever is asked; a tenth with each request.
            let earned = spend() as f64 - 20.0 * (time.now() - began).as_secs_f64();
            assert!((8.5..11.5).contains(&earned), "{what}: {earned}");
        }
    });
}

#[test]
fn try_costs_by_the_keys_and_values_that_it_sends() {
    let value = |bytes| Value { encoding: ValueEncoding::Bytes, data: vec![7; bytes].into() };
    let mutation =
        |key_bytes, kind| Mutation { key: vec![1; key_bytes].into(), kind, expire_at_ms: 0 };
    let transaction = Transaction {
        checks: vec![Check { key: vec![1; 100].into(), versionstamp: Some(Versionstamp([1; 10])) }],
        mutations: vec![
            mutation(20, MutationKind::Set(value(1000))),
            mutation(30, MutationKind::Delete),
            mutation(40, MutationKind::Sum { operand: value(8), bounds: SumBounds::default() }),
        ],
        enqueues: vec![Enqueue {
            payload: vec![1; 2000].into(),
            keys_if_undelivered: vec![vec![1; 50].into(); 2],
            ..Enqueue::default()
        }],
        settlements: vec![Settlement {
            queue: QueueName::UNNAMED,
            id: MessageId { enqueued: Versionstamp([1; 10]), index: 0 },
            due_ms: 1,
            verdict: Verdict::Delivered,
        }],
    };
    let mutations = (20 + 1000) + 30 + (40 + 8);
    assert_eq!(bytes_of(&transaction), 100 + mutations + (2000 + 2 * 50) + 12);
}

#[test]
fn lost_leader_is_replaced_within_a_second_whatever_waits_for_it() {
    for spent in [false, true] {
        run(AT_ONCE, |world| async move {
            let World { voters, router, time, .. } = &world;
            assert!(world.commits().await);
            if spent {
                let (budget, _) = router.leaders.subscribe(ShardId(1));
                while budget.pays(time.now(), 0) {}
            }
            voters.link(1, Link::Silent);
            voters.leader.send_replace(None);
            let lost = time.now();
            let waiting = world.spawn({
                let world = world.clone();
                async move { world.all_commit(1000).await }
            });
            time.sleep(Duration::from_millis(450)).await;
            voters.leader.send_replace(Some(NodeId(3)));
            assert!(waiting.await, "spent: {spent}");
            let took = time.now() - lost;
            assert!(took < Duration::from_secs(1), "spent: {spent}: {took:?}");
            // Each at the lost one and at its successor, and what the budget pays for.
            assert!(voters.calls() <= 2 * 1000 + 250, "spent: {spent}: {}", voters.calls());
        });
    }
}

#[test]
fn lost_quorum_is_not_flooded_and_serves_all_waiting_writes_when_it_is_back() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, .. } = &world;
        assert!(world.commits().await);
        // A write that was sent may have committed: none may give up.
        (1..=3).for_each(|node| voters.link(node, Link::Silent));
        let waiting = world.spawn({
            let world = world.clone();
            async move { world.all_commit(1000).await }
        });
        time.sleep(Duration::from_secs(5)).await;
        let before = voters.calls();
        time.sleep(Duration::from_secs(60)).await;
        let calls = voters.calls() - before;
        assert!(calls <= 60 * 25, "{calls} calls in a minute");
        (1..=3).for_each(|node| voters.link(node, Link::Up));
        let back = time.now();
        assert!(waiting.await);
        let took = time.now() - back;
        assert!(took < Duration::from_secs(5), "{took:?}");
        assert_eq!(voters.in_flight(), 0);
    });
}

#[test]
fn twice_the_load_leaves_nothing_behind_when_it_is_over() {
    const SECONDS: u64 = 30;
    run(Duration::from_millis(10), |world| async move {
        let World { voters, time, .. } = &world;
        let mut begun = Vec::new();
        for _ in 0..SECONDS * 200 {
            begun.push(world.writing());
            time.sleep(Duration::from_millis(5)).await;
        }
        let committed = voters.committed.load(Ordering::SeqCst);
        assert!(committed >= SECONDS * 95, "overload costs throughput: {committed}");
        assert!(
            voters.calls() <= begun.len() * 3 / 2,
            "{} calls for {} writes",
            voters.calls(),
            begun.len()
        );
        // Then half of what it can do: all of it is served at once, and what waited is done with
        // soon.
        time.sleep(Duration::from_secs(2)).await;
        let mut slowest = Duration::ZERO;
        for _ in 0..100 {
            let at = time.now();
            assert!(world.commits().await);
            slowest = slowest.max(time.now() - at);
        }
        // Mostly at once; where the load left its mark, requests would wait for their deadline.
        assert!(slowest < Duration::from_secs(2), "{slowest:?}");
        time.sleep(Duration::from_secs(6)).await;
        assert!(begun.into_iter().all(|write| write.now_or_never().is_some()), "some wait still");
        assert_eq!(voters.in_flight(), 0);
    });
}

#[test]
fn news_about_other_shards_puts_off_no_retry() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, .. } = &world;
        voters
            .scripted
            .lock()
            .extend((0..3).map(|_| Failed::NotDone("no quorum answers".to_owned())));
        let began = time.now();
        let mut writing = world.writing();
        // More often than the shortest pause is over.
        while (&mut writing).now_or_never().is_none() {
            time.sleep(Duration::from_millis(2)).await;
            world.learns(|_| {});
            assert!(time.now() - began < Duration::from_secs(1), "nothing is tried again");
        }
    });
}

#[test]
fn shard_that_moved_during_an_attempt_is_tried_again_at_once() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, .. } = &world;
        let refused = |_| Failed::NotDone("the disk is full".to_owned());
        voters.scripted.lock().extend((0..100_000).map(refused));
        let mut writing = world.writing();
        // Pauses are long by now.
        time.sleep(Duration::from_secs(6)).await;
        let before = voters.calls();
        while voters.calls() == before {
            time.sleep(Duration::from_micros(100)).await;
        }
        world.learns(|cluster| {
            let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
            shard.epoch = Epoch(shard.epoch.0 + 1);
        });
        // The try under way fails, all the same.
        time.sleep(Duration::from_millis(1)).await;
        let moved = time.now();
        time.sleep(2 * world::ROUND_TRIP).await;
        voters.scripted.lock().clear();
        while (&mut writing).now_or_never().is_none() {
            time.sleep(Duration::from_millis(1)).await;
            assert!(
                time.now() - moved < Duration::from_millis(100),
                "it waits as long as for the voters before"
            );
        }
    });
}
