//! Outcomes that a client is told of its write, and those that it is never told.

use meridian_types::Versionstamp;

use super::*;
use crate::routing::nodes::WriteTry;
use crate::time_budget::{HEDGE_AFTER, UNKNOWN_DEADLINE};

#[test]
fn write_in_progress_when_its_database_is_deleted_has_its_answer() {
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
fn gateway_that_cannot_reach_the_leader_writes_through_another_voter() {
    for cut in [Link::Silent, Link::Refused] {
        run(AT_ONCE, |world| async move {
            let World { voters, time, .. } = &world;
            voters.link(1, cut);
            assert!(world.commits().await);
            // The next writes go there at once.
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
fn write_that_may_have_committed_is_never_reported_as_not_committed() {
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
        // A write that was never tried certainly did not commit.
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
    });
}

#[test]
fn outcome_of_a_write_that_may_come_again_is_logged_from_the_first_try_on() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, .. } = &world;
        let again = Write { may_come_again: true, ..write() };
        assert!(matches!(router.write(again).await, Ok(WriteOutcome::Committed(_))));
        let (_, attempt) = voters.calls.lock()[0];
        let WriteTry { retry, in_turn, .. } = attempt.unwrap();
        assert!(retry && in_turn, "it keeps its place among the writes of this process");
    });
}

#[test]
fn unknown_outcome_is_asked_for_until_ids_may_be_forgotten_despite_refusals() {
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
fn suspended_machine_sends_nothing_again_once_ids_may_be_forgotten() {
    run(AT_ONCE, |world| async move {
        let World { voters, time, .. } = &world;
        voters.scripted.lock().push(Failed::Unknown("the connection broke".to_owned()));
        let writing = world.writing();
        world.first_call().await;
        time.jump(UNKNOWN_DEADLINE);
        let failed = writing.await.unwrap_err();
        assert!(matches!(failed, WriteFailure::Unknown(_)), "{failed:?}");
        assert_eq!(voters.calls(), 1);
        // The node that gets a try can tell until when it may be carried out.
        assert!(voters.calls.lock()[0].1.unwrap().expires_at <= time.now());
    });
}

#[test]
fn write_that_found_no_connection_has_not_committed() {
    run(AT_ONCE, |world| async move {
        let World { voters, router, time, .. } = &world;
        (1..=3).for_each(|node| voters.link(node, Link::Hangs));
        let began = time.now();
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
        assert!(time.now() - began < DEADLINE + Duration::from_secs(5));
        // Nor has a write that is not waited for any more, since the others know better.
        voters.scripted.lock().extend((0..100_000).map(|_| Failed::NotLeader(None)));
        (2..=3).for_each(|node| voters.link(node, Link::Up));
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::NotCommitted(_)), "{failed:?}");
        // A write that was lost on the way may have committed.
        voters.link(1, Link::Silent);
        let failed = router.write(write()).await.unwrap_err();
        assert!(matches!(failed, WriteFailure::Unknown(_)), "{failed:?}");
    });
}

/// A try that overtook it on the way may commit yet, unless the refusal is in the log.
#[test]
fn unlogged_refusal_is_no_answer_once_another_node_was_asked() {
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
            let usual = HEDGE_AFTER + router.health.round_trip(NodeId(1));
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
