//! Terms of leadership: the state that each begins from, and its answers.

use std::task::Poll;

use meridian_consensus::ProposalFailure;

use super::*;

const HOUR_MS: u64 = 3_600_000;

fn check_failed() -> WriteReply {
    WriteReply::Done(Fenced::for_test(WriteOutcome::CheckFailed(vec![0])))
}

/// Else a client is told of a value that may never have been.
#[tokio::test]
async fn a_refusal_waits_for_the_batches_in_flight_that_it_may_have_seen() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    let before = leader.commit(set("other", "v")).await.position();
    engine.hold_syncs();
    let mut first = Box::pin(leader.write(new_request_id(), false, set("k", "in flight")));
    while leader.proposed.load(Ordering::Relaxed) <= before.sequence {
        assert!(futures::poll!(first.as_mut()).is_pending());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let evaluations = leader.evaluations.load(Ordering::Relaxed);
    let mut refused =
        Box::pin(leader.write(new_request_id(), false, only_if_absent("k", set("k", "late"))));
    while leader.evaluations.load(Ordering::Relaxed) == evaluations {
        assert!(futures::poll!(refused.as_mut()).is_pending());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(leader.state.position(), before, "the write that refuses it is in flight");
    assert_eq!(futures::poll!(refused.as_mut()), Poll::Pending);
    engine.release_syncs();
    assert!(matches!(first.await.outcome(), Some(WriteOutcome::Committed(_))));
    assert_eq!(refused.await, check_failed());
}

/// Another leader may have written since what it was evaluated against.
#[tokio::test]
async fn a_refusal_is_told_in_the_term_that_it_was_evaluated_in_and_in_no_other() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("k", "taken")).await;
    let term = leader.leave_to_the_test().await;
    let mut time = LoggedTime::new(leader.state.time_ms(), leader.parts.time.now());
    for (evaluated_in, leads) in [(term - 1, true), (term, true), (term, false)] {
        if !leads {
            leader.group.shutdown().await;
        }
        let mut session = Session::new(&leader.parts, &mut time, evaluated_in, Instant::now());
        let (queued, mut answer) = leader.queued(only_if_absent("k", set("k", "late")));
        let mut backlog = Backlog::new(Instant::now());
        backlog.push(queued);
        let proposed = session.propose(&mut backlog).await;
        if leads && evaluated_in == term {
            assert_eq!((proposed, answer.try_recv()), (Ok(()), Ok(check_failed())));
        } else {
            assert_eq!(proposed, Err(ProposalFailure::NotAppended));
            assert_eq!(
                answer.try_recv(),
                Err(oneshot::error::TryRecvError::Empty),
                "it is evaluated again, or declined"
            );
            assert_eq!(session.declined.len(), 1);
        }
    }
}

/// Until the log says so it is there for all, whatever this node's clock says.
#[tokio::test]
async fn value_is_there_for_every_write_until_the_log_says_that_it_expired() {
    let leader = Leader::start(Arc::default()).await;
    leader.commit(set("first", "v")).await;
    let stamp = leader.commit(expiring("k", HOUR_MS)).await;
    let term = leader.leave_to_the_test().await;
    leader.skip(2 * HOUR_MS);
    let mut time = LoggedTime::new(leader.state.time_ms(), leader.parts.time.now());
    let mut session = Session::new(&leader.parts, &mut time, term, Instant::now());
    // However long it was known.
    leader.skip(2 * HOUR_MS);
    assert!(
        session.look_at_clocks() > leader.state.time_ms() + HOUR_MS,
        "it has expired by the next batch's time"
    );
    let (queued, answer) = leader.queued(Transaction {
        checks: vec![Check { key: "k".into(), versionstamp: Some(stamp) }],
        ..set("other", "since")
    });
    let mut backlog = Backlog::new(Instant::now());
    backlog.push(queued);
    session.propose(&mut backlog).await.unwrap();
    assert!(!session.is_idle(), "it was refused: {answer:?}");
    let applied = session.oldest().await;
    assert!(session.completed(applied).is_ok());
    let answer = answer.await.unwrap();
    assert!(matches!(answer.outcome(), Some(WriteOutcome::Committed(_))), "{answer:?}");
}

#[tokio::test]
async fn a_term_goes_on_while_nothing_is_asked_for_and_begins_no_batch_before_its_time() {
    let leader = Leader::start(Arc::default()).await;
    leader.leave_to_the_test().await;
    let seal = watch::Sender::new(false);
    let (queue, requests) = mpsc::channel(9);
    let mut task =
        Task::new(leader.parts.clone(), requests, seal.subscribe(), watch::Sender::new(None));
    let mut turn = std::pin::pin!(task.lead_or_wait());
    for _ in 0..2 {
        let (queued, answer) = leader.queued(set("k", "v"));
        let since = Instant::now() + Duration::from_millis(50);
        queue.try_send(Queued { since, ..queued }).ok().unwrap();
        let answer = tokio::select! {
            biased;
            _ = &mut turn => panic!("the term ended"),
            answer = answer => answer.unwrap(),
        };
        assert!(matches!(answer.outcome(), Some(WriteOutcome::Committed(_))), "{answer:?}");
        assert!(Instant::now() >= since);
    }
}

/// How much of what was left in flight commits is unknown: what is numbered next could have a
/// number that is taken.
#[tokio::test]
async fn term_in_which_batches_were_left_in_flight_is_not_led_again() {
    let engine = Arc::new(MemoryEngine::default());
    let leader = Leader::start(Arc::clone(&engine)).await;
    let before = leader.commit(set("other", "v")).await.position();
    let term = leader.leave_to_the_test().await;
    let seal = watch::Sender::new(false);
    let task = || {
        let (queue, requests) = mpsc::channel(9);
        (
            queue,
            Task::new(leader.parts.clone(), requests, seal.subscribe(), watch::Sender::new(None)),
        )
    };
    // As if it had left some.
    let (queue, mut declines) = task();
    declines.left_term = Some(term);
    let (queued, mut answer) = leader.queued(set("k", "again"));
    queue.try_send(queued).ok().unwrap();
    let answer = loop {
        // To lead would take as long as the term.
        let turn = declines.lead_or_wait();
        drop(tokio::time::timeout(Duration::from_millis(500), turn).await);
        match answer.try_recv() {
            Err(oneshot::error::TryRecvError::Empty) => {}
            answered => break answered.unwrap(),
        }
    };
    assert_eq!((answer, leader.state.position()), (WriteReply::NotLeader(None), before));
    // It leaves some.
    let (queue, mut leaves) = task();
    engine.hold_syncs();
    let (queued, answer) = leader.queued(set("k", "in flight"));
    queue.try_send(queued).ok().unwrap();
    let (group, proposed) = (leader.group.clone(), Arc::clone(&leader.proposed));
    let ending = tokio::spawn(async move {
        while proposed.load(Ordering::Relaxed) <= before.sequence {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        group.shutdown().await;
    });
    let turn = leaves.lead_or_wait().await;
    assert_eq!(
        (turn, answer.await.unwrap(), leaves.left_term),
        (Some(()), WriteReply::Unknown, Some(term))
    );
    engine.release_syncs();
    ending.await.unwrap();
}
