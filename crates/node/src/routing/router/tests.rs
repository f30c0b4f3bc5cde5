//! What the router asks of whom, when, and how often.

mod world;

use std::sync::atomic::Ordering;

use futures::{FutureExt, StreamExt, stream::FuturesUnordered};
use meridian_config::DEV_DEFAULT_DATABASE;
use meridian_gateway::new_request_id;
use meridian_memory::ByteBudget;
use meridian_types::{
    Check, Mutation, MutationKind, ReadRange, SumBounds, Value, ValueEncoding, Versionstamp,
};

use super::*;
use world::{DEADLINE, Link, World, run, run_beside};

fn write() -> Write {
    Write {
        database: DEV_DEFAULT_DATABASE,
        request_id: new_request_id(),
        transaction: Transaction::default(),
    }
}

fn read() -> Read {
    let ranges = vec![ReadRange { start: "a".into(), end: "b".into(), limit: 1, reverse: false }];
    Read { database: DEV_DEFAULT_DATABASE, consistency: Consistency::Strong, ranges }
}

fn eventual() -> Read {
    Read { consistency: Consistency::Eventual, ..read() }
}

impl World {
    async fn commits(&self) -> bool {
        matches!(self.router.write(write()).await, Ok(WriteOutcome::Committed(_)))
    }

    /// So many writes at once commit, all of them.
    async fn all_commit(&self, count: usize) -> bool {
        let writes: FuturesUnordered<_> =
            (0..count).map(|_| self.spawn(self.clone().owned_commit())).collect();
        writes.all(|committed| async move { committed }).await
    }

    async fn owned_commit(self) -> bool {
        self.commits().await
    }

    fn writing(&self) -> futures::future::RemoteHandle<Result<WriteOutcome, WriteFailure>> {
        let router = Arc::clone(&self.router);
        self.spawn(async move { router.write(write()).await })
    }

    async fn first_call(&self) {
        while self.voters.calls() == 0 {
            self.time.sleep(Duration::from_micros(100)).await;
        }
    }
}

const AT_ONCE: Duration = Duration::ZERO;

#[test]
fn a_node_that_is_gone_is_waited_for_no_longer_each_time() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        assert!(world.commits().await);
        let round_trips = || (1..=3).map(|node| router.reach.round_trip(node)).collect::<Vec<_>>();
        let before = round_trips();
        (1..=3).for_each(|node| voters.link(node, Link::Silent));
        for _ in 0..3 {
            assert!(router.read(read()).await.is_err());
        }
        assert_eq!(round_trips(), before);
    });
}

#[test]
fn those_who_asked_a_node_before_it_died_have_nobody_wait_longer_for_it() {
    run(Duration::from_millis(1), |world| async move {
        let World { voters, router, time, .. } = &world;
        let mut writing = Vec::new();
        for _ in 0..100 {
            writing.push(world.writing());
            time.sleep(Duration::from_micros(500)).await;
        }
        let before = router.reach.round_trip(1);
        assert!(before < Duration::from_millis(60), "{before:?}");
        // What it has begun is never answered, though some of its answers came after that was
        // asked.
        (1..=3).for_each(|node| voters.link(node, Link::Silent));
        time.sleep(2 * ATTEMPT_TIMEOUT).await;
        assert_eq!(router.reach.round_trip(1), before);
        drop(writing);
    });
}

#[test]
fn a_request_that_waits_for_the_voters_before_asks_those_to_whom_the_shard_has_moved() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        assert!(world.commits().await);
        // A far one is waited for longer.
        (0..100).for_each(|_| router.reach.took(1, Duration::from_secs(1)));
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
            (Epoch(2), BTreeSet::from([4, 5]), Some(4));
        cluster.version += 1;
        router.directory.learn(cluster).unwrap();
        voters.leader.send_replace(4);
        assert!(matches!(writing.await, Ok(WriteOutcome::Committed(_))));
        assert!(reading.await.is_ok());
        let took = time.now() - lost;
        assert!(took < Duration::from_millis(1300), "{took:?}");
    });
}

#[test]
fn what_this_node_reads_at_once_is_asked_of_nobody_else_and_what_takes_long_is_begun_here_once() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        let asked = time.now();
        assert!(router.read(eventual()).await.is_ok());
        assert_eq!(router.min_sequence((ShardId(1), Epoch(1))), 1, "what was shown is remembered");
        assert_eq!(router.leaders.hint(ShardId(1)), None, "what is eventual may be old");
        assert!(router.read(read()).await.is_ok());
        assert_eq!(router.leaders.hint(ShardId(1)), Some(1), "the node knows who leads");
        assert_eq!((voters.asked(), time.now()), (vec![2, 2], asked));
        voters.working.store(true, Ordering::SeqCst);
        assert!(router.read(read()).await.is_ok());
        assert_eq!(voters.asked(), [2, 2, 2, 1], "it is hedged like any other");
    });
}

#[test]
fn a_read_is_not_begun_at_this_node_while_it_is_silent_nor_a_strong_one_where_it_does_not_vote() {
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
fn what_was_begun_at_this_node_is_not_taken_for_the_answer_of_another() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        // It votes as far as it knows itself, and the directory knows better.
        world.learns(|cluster| {
            cluster.shards.get_mut(&ShardId(1)).unwrap().voters = BTreeSet::from([1, 3])
        });
        voters.working.store(true, Ordering::SeqCst);
        assert!(router.read(read()).await.is_ok());
        assert_eq!(voters.asked()[..2], [2, 1]);
    });
}

#[test]
fn a_read_that_this_node_refuses_goes_on_to_others_and_the_next_to_them_first() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.refusing.lock().insert(2);
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
fn an_eventual_read_is_remembered_and_says_nothing_of_who_leads() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        voters.leader.send_replace(3);
        assert!(router.read(eventual()).await.is_ok());
        assert_eq!(
            (router.min_sequence((ShardId(1), Epoch(1))), router.leaders.hint(ShardId(1))),
            (1, None)
        );
        assert!(router.read(read()).await.is_ok());
        assert_eq!(router.leaders.hint(ShardId(1)), Some(3));
    });
}

#[test]
fn what_a_failover_took_back_is_not_held_against_those_who_never_had_it() {
    run(AT_ONCE, |world| async move {
        let (router, shard) = (&world.router, ShardId(1));
        router.has_shown(shard, Position::new(Epoch(1), 100));
        assert_eq!(router.min_sequence((shard, Epoch(1))), 100);
        world.learns(|cluster| {
            let shard = cluster.shards.get_mut(&shard).unwrap();
            shard.epoch = Epoch(2);
            shard.bases.push((Epoch(2), Position::new(Epoch(1), 90)));
        });
        assert_eq!(router.min_sequence((shard, Epoch(2))), 90);
        router.has_shown(shard, Position::new(Epoch(2), 95));
        assert_eq!(router.min_sequence((shard, Epoch(2))), 95);
    });
}

#[test]
fn an_answer_for_which_there_was_no_room_is_asked_for_once_more_at_once_with_the_room_that_there_is_by_then()
 {
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
fn a_read_at_this_node_tells_those_who_wait_that_the_shard_is_served_again() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        assert!(world.commits().await);
        voters.leader.send_replace(0);
        (1..=3).for_each(|node| voters.link(node, Link::Refused));
        let waiting = world.writing();
        time.sleep(Duration::from_secs(5)).await;
        let (_, mut news) = router.leaders.of(ShardId(1));
        (1..=3).for_each(|node| voters.link(node, Link::Up));
        voters.leader.send_replace(2);
        let back = time.now();
        assert!(router.read(read()).await.is_ok());
        assert!(news.has_changed().unwrap() && news.borrow_and_update().leader == Some(2));
        assert!(matches!(waiting.await, Ok(WriteOutcome::Committed(_))));
        assert!(time.now() - back < Duration::from_millis(50), "{:?}", time.now() - back);
    });
}

#[test]
fn those_who_waited_for_a_shard_do_not_come_back_all_at_once() {
    run_beside(Some(2), AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        (1..=3).for_each(|node| voters.link(node, Link::Refused));
        let waiting: Vec<_> = (0..100).map(|_| world.writing()).collect();
        time.sleep(Duration::from_secs(5)).await;
        (1..=3).for_each(|node| voters.link(node, Link::Up));
        voters.leader.send_replace(2);
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
fn a_write_that_all_refuse_is_tried_again_after_longer_and_longer_pauses() {
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
            "the leader, who is here, and who is left"
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
fn a_read_that_all_refuse_is_tried_again_in_pauses_until_its_deadline() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.refusing.lock().extend([1, 2, 3]);
        let began = time.now();
        assert!(router.read(read()).await.is_err());
        let took = time.now() - began;
        assert!(took >= DEADLINE && took <= DEADLINE + 3 * world::ROUND_TRIP, "{took:?}");
        assert!(voters.calls() < 200, "{}", voters.calls());
    });
}

#[test]
fn who_is_named_as_the_leader_is_asked_first_but_not_for_its_own_word_that_it_does_not_lead() {
    run(AT_ONCE, |world| async move {
        let (router, shard) = (&world.router, ShardId(1));
        assert_eq!(router.voters(shard), [1, 2, 3], "the first one is to lead if it can");
        let names_3 = Err::<(), _>(Failed::NotLeader(Some(3)));
        router.heard(shard, 1, &names_3);
        assert_eq!(router.voters(shard), [3, 1, 2]);
        router.heard(shard, 3, &names_3);
        assert_eq!(router.voters(shard), [1, 2, 3]);
    });
}

#[test]
fn a_node_that_answers_others_is_given_more_time_for_what_takes_it_long() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        assert!(world.commits().await);
        // Nobody else is there to pass it on.
        (2..=3).for_each(|node| voters.link(node, Link::Refused));
        *voters.slow.lock() = Some((Duration::from_secs(60), WriteOutcome::CheckFailed(vec![0])));
        let (began, writing) = (time.now(), world.writing());
        let mut longest = router.reach.round_trip(1);
        assert!(longest < Duration::from_millis(10), "{longest:?}");
        while time.now() - began < 2 * ATTEMPT_TIMEOUT {
            assert!(router.read(read()).await.is_ok());
            longest = longest.max(router.reach.round_trip(1));
            time.sleep(Duration::from_millis(100)).await;
        }
        assert!(longest > Duration::from_millis(50), "{longest:?}");
        assert!(matches!(writing.await, Ok(WriteOutcome::Committed(_))));
    });
}

#[test]
fn a_request_earns_its_part_of_a_further_try_once_however_often_it_is_tried() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        let (budget, _) = router.leaders.of(ShardId(1));
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
fn a_try_is_paid_for_by_the_keys_and_values_that_it_sends() {
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
    };
    assert_eq!(bytes_of(&transaction), 100 + (20 + 1000) + 30 + (40 + 8));
}

#[test]
fn an_eventual_read_at_which_a_node_works_goes_on_whoever_leads_next() {
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
fn a_write_that_is_under_way_when_its_database_is_deleted_has_its_answer() {
    run(Duration::from_millis(400), |world| async move {
        let World { router, time, .. } = &world;
        let writing = world.writing();
        time.sleep(Duration::from_millis(200)).await;
        let mut cluster = router.directory.known().cluster.clone();
        cluster.databases.remove(&DEV_DEFAULT_DATABASE).unwrap();
        cluster.version += 1;
        router.directory.learn(cluster).unwrap();
        assert!(matches!(writing.await, Ok(WriteOutcome::Committed(_))));
        assert!(matches!(router.write(write()).await, Err(WriteFailure::NotCommitted(_))));
    });
}

#[test]
fn a_lost_leader_is_replaced_within_a_second_whatever_waits_for_it() {
    for spent in [false, true] {
        run(AT_ONCE, |world| async move {
            let World { voters, router, time, .. } = &world;
            assert!(world.commits().await);
            if spent {
                let (budget, _) = router.leaders.of(ShardId(1));
                while budget.pays(time.now(), 0) {}
            }
            voters.link(1, Link::Silent);
            voters.leader.send_replace(0);
            let lost = time.now();
            let waiting = world.spawn({
                let world = world.clone();
                async move { world.all_commit(1000).await }
            });
            time.sleep(Duration::from_millis(450)).await;
            voters.leader.send_replace(3);
            assert!(waiting.await, "spent: {spent}");
            let took = time.now() - lost;
            assert!(took < Duration::from_secs(1), "spent: {spent}: {took:?}");
            // Each at the lost one and at its successor, and what the budget pays for.
            assert!(voters.calls() <= 2 * 1000 + 250, "spent: {spent}: {}", voters.calls());
        });
    }
}

#[test]
fn a_lost_quorum_is_not_flooded_by_those_who_wait_and_serves_them_all_when_it_is_back() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, .. } = &world;
        assert!(world.commits().await);
        // What was sent may have committed: nobody may give up.
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
        assert!(slowest < Duration::from_secs(1), "{slowest:?}");
        time.sleep(Duration::from_secs(6)).await;
        assert!(begun.into_iter().all(|write| write.now_or_never().is_some()), "some wait still");
        assert_eq!(voters.in_flight(), 0);
    });
}

#[test]
fn a_gateway_that_cannot_reach_the_leader_writes_through_another_voter() {
    for cut in [Link::Silent, Link::Refused] {
        run(AT_ONCE, |world| async move {
            let World { voters, time, .. } = &world;
            voters.link(1, cut);
            assert!(world.commits().await);
            // Then those that follow go there at once.
            for _ in 0..100 {
                let at = time.now();
                assert!(world.commits().await);
                assert!(time.now() - at < HEDGE_AFTER, "{cut:?}: {:?}", time.now() - at);
            }
            assert!(voters.calls() <= 104, "{cut:?}: {:?}", voters.asked());
            // One request at a time finds out that the leader can be reached again.
            voters.link(1, Link::Up);
            time.sleep(Duration::from_secs(4)).await;
            voters.calls.lock().clear();
            for _ in 0..10 {
                assert!(world.commits().await);
            }
            assert_eq!(voters.asked(), [1; 10]);
            assert!(voters.calls.lock().iter().all(|(_, attempt)| !attempt.unwrap().pass_on));
        });
    }
}

#[test]
fn nothing_is_said_not_to_have_committed_that_may_have() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        // Its first try may have committed; then its database goes.
        voters
            .scripted
            .lock()
            .extend((0..3).map(|_| Failed::Unknown("the connection broke".to_owned())));
        let writing = world.writing();
        world.first_call().await;
        let mut cluster = router.directory.known().cluster.clone();
        cluster.databases.remove(&DEV_DEFAULT_DATABASE);
        cluster.version += 1;
        router.directory.learn(cluster).unwrap();
        let failed = writing.await.unwrap_err();
        assert!(matches!(failed, WriteFailure::Unknown(_)), "{failed:?}");
        // What was never tried certainly did not.
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
    });
}

#[test]
fn an_unknown_outcome_is_asked_for_until_ids_may_be_forgotten_and_refusals_do_not_settle_it() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        // It may have committed; later tries are refused for certain.
        let refused = |_| Failed::NotDone("the disk is full".to_owned());
        voters.scripted.lock().extend((0..100_000).map(refused));
        voters.scripted.lock().push(Failed::Unknown("the connection broke".to_owned()));
        let began = time.now();
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::Unknown(_)), "{failed:?}");
        let took = time.now() - began;
        assert!(
            took >= UNKNOWN_DEADLINE && took < UNKNOWN_DEADLINE + Duration::from_secs(5),
            "{took:?}"
        );
        // Without the first one, it is over at the deadline for what did not commit.
        let (began, before) = (time.now(), voters.calls());
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
        assert!(time.now() - began < DEADLINE + Duration::from_secs(5));
        assert!(voters.calls() - before < 200);
    });
}

#[test]
fn nothing_is_sent_again_after_the_machine_was_suspended_for_too_long() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, .. } = &world;
        voters.scripted.lock().push(Failed::Unknown("the connection broke".to_owned()));
        let writing = world.writing();
        world.first_call().await;
        time.jump(UNKNOWN_DEADLINE);
        let failed = writing.await.unwrap_err();
        assert!(matches!(failed, WriteFailure::Unknown(_)), "{failed:?}");
        assert_eq!(voters.calls(), 1);
        // Whoever gets a try can tell until when it may be carried out.
        assert!(voters.calls.lock()[0].1.unwrap().expires_at <= time.now());
    });
}

#[test]
fn a_read_is_carried_out_by_two_at_most_and_by_none_when_nobody_waits() {
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
fn nodes_that_are_silent_are_not_waited_for_before_a_third_is_asked() {
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
fn an_answer_that_is_on_its_way_is_waited_for_beyond_the_deadline_and_asked_for_once() {
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
        // One that breaks off is asked for again.
        *voters.transfer.lock() =
            Some(async { Err(BrokenOff::Failed("the answer stopped".to_owned())) }.boxed());
        assert_eq!(router.read(read()).await.unwrap().ranges.len(), 1);
        assert_eq!(voters.asked(), [1, 1, 1]);
        assert!(!router.reach.is_silent(time.now(), 1));
    });
}

#[test]
fn a_node_that_is_long_at_work_is_not_taken_for_silent() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        voters.working.store(true, Ordering::SeqCst);
        router.read(read()).await.unwrap();
        assert_eq!(voters.asked(), [1, 2], "one more is asked, and no third");
        assert!((1..=2).all(|node| !router.reach.is_silent(time.now(), node)));
    });
}

impl World {
    /// Another version of the cluster is known, in which `change` was made.
    fn learns(&self, change: impl FnOnce(&mut meridian_directory::Cluster)) {
        let mut cluster = self.router.directory.known().cluster.clone();
        change(&mut cluster);
        cluster.version += 1;
        self.router.directory.learn(cluster).unwrap();
    }
}

#[test]
fn news_of_the_rest_of_the_cluster_puts_off_no_retry() {
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
fn a_shard_that_moved_during_a_round_is_tried_again_at_once() {
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
        // What is under way fails, all the same.
        time.sleep(Duration::from_millis(1)).await;
        let moved = time.now();
        time.sleep(2 * world::ROUND_TRIP).await;
        voters.scripted.lock().clear();
        while (&mut writing).now_or_never().is_none() {
            time.sleep(Duration::from_millis(1)).await;
            assert!(
                time.now() - moved < Duration::from_millis(100),
                "it waits as long as for those who had it before"
            );
        }
    });
}

/// The router of a gateway on this node, which does not vote.
fn beside(world: &World, node: NodeId) -> Arc<Router<Arc<world::Voters>, world::Time>> {
    let World { voters, time, router, .. } = world;
    let directory = Arc::clone(&router.directory);
    Arc::new(Router::new(
        Arc::clone(voters),
        time.clone(),
        Some(node),
        "region-1".to_owned(),
        directory,
        DEADLINE,
    ))
}

#[test]
fn a_node_that_refuses_at_once_and_is_asked_first_holds_up_no_read() {
    for (consistency, is_beside) in [
        (Consistency::Eventual, true),
        (Consistency::Eventual, false),
        (Consistency::Strong, false),
    ] {
        run(AT_ONCE, |world| async move {
            let World { voters, time, router, .. } = &world;
            let router = if is_beside { beside(&world, 1) } else { Arc::clone(router) };
            voters.refusing.lock().insert(1);
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
fn the_read_that_a_node_refuses_at_once_goes_on_to_the_next_whatever_is_left_to_spend() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, router, .. } = &world;
        let (budget, _) = router.leaders.of(ShardId(1));
        while budget.pays(time.now(), 0) {}
        voters.refusing.lock().extend([1, 2]);
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
        voters.refusing.lock().insert(3);
        while budget.pays(time.now(), 0) {}
        let (began, before) = (time.now(), voters.calls());
        router.read(read()).await.unwrap();
        assert!(time.now() - began <= 2 * world::ROUND_TRIP && voters.calls() - before <= 2);
    });
}

#[test]
fn what_found_no_connection_has_not_committed() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        (1..=3).for_each(|node| voters.link(node, Link::Hangs));
        let began = time.now();
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
        assert!(time.now() - began < DEADLINE + Duration::from_secs(5));
        // Nor has what is not waited for any more, since the others know better.
        voters.scripted.lock().extend((0..100_000).map(|_| Failed::NotLeader(None)));
        (2..=3).for_each(|node| voters.link(node, Link::Up));
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
        // What was lost on the way may have.
        voters.link(1, Link::Silent);
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::Unknown(_)), "{failed:?}");
    });
}

/// A try that overtook it on the way may commit yet, unless the refusal is in the log.
#[test]
fn a_refusal_that_nobody_has_logged_is_no_answer_once_another_node_was_asked() {
    let refused = || WriteOutcome::CheckFailed(vec![0]);
    let committed = WriteOutcome::Committed(Versionstamp([9; 10]));
    for (is_late, outcome, retried, binds) in [
        (false, refused(), false, true),
        (true, refused(), false, false),
        (true, refused(), true, true),
        (true, committed, false, true),
    ] {
        // The other one takes longer.
        run(Duration::from_millis(100), |world| async move {
            let World { voters, router, time, .. } = &world;
            if retried {
                voters.scripted.lock().push(Failed::Unknown("the connection broke".to_owned()));
            }
            let usual = HEDGE_AFTER + router.reach.round_trip(1);
            let takes = if is_late { usual + Duration::from_millis(20) } else { usual / 2 };
            *voters.slow.lock() = Some((takes, outcome.clone()));
            let written = router.write(write()).await.unwrap();
            assert_eq!(
                written == outcome,
                binds,
                "late: {is_late}, {outcome:?}, {retried}: {written:?}"
            );
            let asked = voters.asked().len() - usize::from(retried);
            assert_eq!(asked > 1, is_late, "{:?} were asked", voters.asked());
            time.sleep(Duration::from_secs(1)).await;
            assert_eq!(voters.in_flight(), 0);
        });
    }
}
