//! Nodes that are slow, silent, gone or unwilling: what that costs the operations that ask them.

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn dead_node_is_waited_for_no_longer_each_time() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        assert!(world.commits().await);
        let round_trips =
            || (1..=3).map(|node| router.health.round_trip(NodeId(node))).collect::<Vec<_>>();
        let before = round_trips();
        (1..=3).for_each(|node| voters.link(node, Link::Silent));
        for _ in 0..3 {
            assert!(router.read(read()).await.is_err());
        }
        assert_eq!(round_trips(), before);
    });
}

#[test]
fn calls_begun_before_a_node_died_make_no_later_call_wait_longer() {
    run(Duration::from_millis(1), |world| async move {
        let World { voters, router, time, .. } = &world;
        let mut writing = Vec::new();
        for _ in 0..100 {
            writing.push(world.writing());
            time.sleep(Duration::from_micros(500)).await;
        }
        let before = router.health.round_trip(NodeId(1));
        assert!(before < Duration::from_millis(60), "{before:?}");
        // Calls under way are never answered, though some answers of the node came after they were
        // begun.
        (1..=3).for_each(|node| voters.link(node, Link::Silent));
        time.sleep(2 * ATTEMPT_TIMEOUT).await;
        assert_eq!(router.health.round_trip(NodeId(1)), before);
        drop(writing);
    });
}

#[test]
fn node_that_answers_other_calls_is_given_more_time_for_a_long_one() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        assert!(world.commits().await);
        // No other voter is there to pass it on.
        (2..=3).for_each(|node| voters.link(node, Link::Refused));
        *voters.slow.lock() = Some((Duration::from_secs(60), WriteOutcome::CheckFailed(vec![0])));
        let (began, writing) = (time.now(), world.writing());
        let mut longest = router.health.round_trip(NodeId(1));
        assert!(longest < Duration::from_millis(10), "{longest:?}");
        while time.now() - began < 2 * ATTEMPT_TIMEOUT {
            assert!(router.read(read()).await.is_ok());
            longest = longest.max(router.health.round_trip(NodeId(1)));
            time.sleep(Duration::from_millis(100)).await;
        }
        assert!(longest > Duration::from_millis(50), "{longest:?}");
        assert!(matches!(writing.await, Ok(WriteOutcome::Committed(_))));
    });
}

#[test]
fn third_node_is_asked_without_waiting_for_two_silent_ones() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        (1..=2).for_each(|node| voters.link(node, Link::Silent));
        let asked = time.now();
        assert!(router.read(eventual()).await.is_ok());
        let took = time.now() - asked;
        assert!(took < ATTEMPT_TIMEOUT, "{took:?}");
    });
}

#[test]
fn node_that_is_long_at_work_is_not_taken_for_silent() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.working.store(true, Ordering::SeqCst);
        router.read(read()).await.unwrap();
        assert_eq!(voters.asked(), [1, 2], "one more is asked, and no third");
        assert!((1..=2).all(|node| !router.health.is_silent(time.now(), NodeId(node))));
    });
}

#[test]
fn node_that_refuses_at_once_and_is_asked_first_holds_up_no_read() {
    for (consistency, is_beside) in [
        (Consistency::Eventual, true),
        (Consistency::Eventual, false),
        (Consistency::Strong, false),
    ] {
        run(AT_ONCE, |world| async move {
            let World { voters, time, router, .. } = &world;
            let router = if is_beside { beside(&world, 1) } else { Arc::clone(router) };
            voters.refusing.lock().insert(NodeId(1));
            let mut slowest = Duration::ZERO;
            let mut reads = FuturesUnordered::new();
            for _ in 0..30 * 200 {
                let (router, time) = (Arc::clone(&router), time.clone());
                reads.push(world.spawn(async move {
                    let began = time.now();
                    router.read(Read { consistency, ..read() }).await.unwrap();
                    time.now() - began
                }));
                world.time.sleep(Duration::from_millis(5)).await;
                while let Some(Some(took)) = reads.next().now_or_never() {
                    slowest = slowest.max(took);
                }
            }
            while let Some(took) = reads.next().await {
                slowest = slowest.max(took);
            }
            assert!(slowest < Duration::from_millis(100), "{consistency:?}: {slowest:?}");
            // One read a second finds out whether it serves by now.
            let asked = voters.asked().iter().filter(|node| **node == 1).count();
            assert!((25..=40).contains(&asked), "{consistency:?}: node 1 was asked {asked} times");
            voters.refusing.lock().clear();
            time.sleep(Duration::from_secs(1)).await;
            voters.calls.lock().clear();
            for _ in 0..10 {
                router.read(Read { consistency, ..read() }).await.unwrap();
            }
            assert_eq!(voters.asked(), [1; 10], "{consistency:?}");
        });
    }
}

#[test]
fn read_refused_at_once_goes_on_to_the_next_node_on_an_empty_budget() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, router, .. } = &world;
        let (budget, _) = router.leaders.subscribe(ShardId(1));
        while budget.pays(time.now(), 0) {}
        voters.refusing.lock().extend([1, 2].map(NodeId));
        let began = time.now();
        router.read(read()).await.unwrap();
        assert_eq!(voters.asked()[..2], [1, 2]);
        // The second refusal is paid for.
        assert!(
            voters.asked().len() > 3 || time.now() - began > 2 * world::ROUND_TRIP,
            "{:?}",
            voters.asked()
        );
        voters.refusing.lock().clear();
        voters.refusing.lock().insert(NodeId(3));
        while budget.pays(time.now(), 0) {}
        let (began, before) = (time.now(), voters.calls());
        router.read(read()).await.unwrap();
        assert!(time.now() - began <= 2 * world::ROUND_TRIP && voters.calls() - before <= 2);
    });
}

#[test]
fn named_leader_is_asked_first_unless_it_says_itself_that_it_does_not_lead() {
    run(AT_ONCE, |world| async move {
        let (router, shard) = (&world.router, ShardId(1));
        assert_eq!(
            router.voters(shard),
            [1, 2, 3].map(NodeId),
            "the first one is to lead if it can"
        );
        let names_3 = Failed::NotLeader(Some(NodeId(3)));
        router.record(shard, NodeId(1), Err(&names_3));
        assert_eq!(router.voters(shard), [3, 1, 2].map(NodeId));
        router.record(shard, NodeId(3), Err(&names_3));
        assert_eq!(router.voters(shard), [1, 2, 3].map(NodeId));
    });
}
