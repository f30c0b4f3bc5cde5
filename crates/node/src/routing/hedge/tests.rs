use std::future::pending;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::*;
use crate::host::clock::BootClock;

const NEVER: Duration = Duration::from_secs(3600);

/// Others are asked at once, or never, while one is waited for: so no test depends on how fast it
/// runs.
#[allow(clippy::type_complexity, reason = "each of them is a closure that has no other name")]
fn hedging(
    patience: Duration,
) -> Hedging<
    'static,
    BootClock,
    impl Fn(NodeId) -> Duration,
    impl Fn() -> bool,
    impl Fn(NodeId) -> Failed,
    impl Fn(NodeId, Duration) -> bool,
    impl Future<Output = ()>,
> {
    let found = watch::Sender::default().subscribe();
    let (delay, not_answered) =
        (move |_| patience, |_| Failed::Unknown("no answer in time".to_owned()));
    Hedging {
        clock: &BootClock,
        delay,
        at_a_time: 3,
        is_silent: |_, _| false,
        pays: || true,
        refusal_is_free: false,
        not_answered,
        found,
        moved: pending(),
    }
}

/// One round, and all tries that it made.
async fn run<F: Future<Output = Result<&'static str, Failed>>>(
    nodes: &[NodeId],
    patience: Duration,
    ask: impl Fn(Try) -> F,
    accepts: impl Fn(&&'static str, bool) -> bool,
) -> (Round<&'static str>, Vec<Try>) {
    let tries = Mutex::new(Vec::new());
    let asking = |attempt: Try| {
        tries.lock().push(attempt);
        ask(attempt)
    };
    let round = round(nodes.to_vec(), None, hedging(patience), asking, accepts, |_, _| ()).await;
    (round, tries.into_inner())
}

fn asked(tries: &[Try]) -> Vec<NodeId> {
    tries.iter().map(|attempt| attempt.node).collect()
}

#[tokio::test]
async fn while_the_first_is_silent_all_others_are_asked_and_told_of_it() {
    let ask = |attempt: Try| async move {
        match attempt.node {
            3 => Ok("three"),
            _ => pending().await,
        }
    };
    let (round, tries) = run(&[1, 2, 3], Duration::ZERO, ask, |_, _| true).await;
    let Round::Answer { node: 3, answer: "three", late } = round else { panic!("{round:?}") };
    assert_eq!(late, [1, 2]);
    let expected = [
        Try { node: 1, overlaps: false, late: None },
        Try { node: 2, overlaps: true, late: Some(1) },
        Try { node: 3, overlaps: true, late: Some(1) },
    ];
    assert_eq!(tries, expected);
}

#[tokio::test]
async fn the_leader_that_is_named_is_asked_next_and_nobody_twice_for_ever() {
    let ask = |attempt: Try| async move {
        match attempt.node {
            3 => Ok("three"),
            _ => Err(Failed::NotLeader(Some(3))),
        }
    };
    let (round, tries) = run(&[1, 2, 3], NEVER, ask, |_, _| true).await;
    assert!(matches!(round, Round::Answer { node: 3, .. }), "{round:?}");
    assert_eq!(asked(&tries), [1, 3]);
    // Nothing was done at the first: nothing overlaps.
    assert!(tries.iter().all(|attempt| !attempt.overlaps));

    let each_other = |attempt: Try| async move { Err(Failed::NotLeader(Some(3 - attempt.node))) };
    let (round, tries) = run(&[1, 2], NEVER, each_other, |_, _| true).await;
    assert!(matches!(round, Round::Nothing { unknown: false, .. }), "{round:?}");
    assert_eq!(asked(&tries), [1, 2, 1]);
}

#[tokio::test]
async fn an_answer_that_does_not_bind_is_left_out_once_another_was_asked() {
    let (first_goes_on, second_goes_on) = (Notify::new(), Notify::new());
    let ask = |attempt: Try| {
        let (first_goes_on, second_goes_on) = (&first_goes_on, &second_goes_on);
        async move {
            if attempt.node == 1 {
                first_goes_on.notified().await;
                second_goes_on.notify_one();
                return Ok("the check failed");
            }
            first_goes_on.notify_one();
            second_goes_on.notified().await;
            Ok("committed")
        }
    };
    let binds = |answer: &&str, overtaken: bool| !overtaken || *answer == "committed";
    let (round, _) = run(&[1, 2], Duration::ZERO, ask, binds).await;
    assert!(matches!(round, Round::Answer { node: 2, answer: "committed", .. }), "{round:?}");
}

#[tokio::test]
async fn a_failure_asks_the_next_at_once_and_the_reason_stays_known() {
    let ask = |attempt: Try| async move {
        match attempt.node {
            1 => Err(Failed::Unknown("the connection broke".to_owned())),
            2 => Err(Failed::NotDone("the disk is full".to_owned())),
            _ => Err(Failed::NotLeader(None)),
        }
    };
    let (outcome, tries) = run(&[1, 2, 3], NEVER, ask, |_, _| true).await;
    let Round::Nothing { reason, unknown: true, lost } = outcome else { panic!("{outcome:?}") };
    assert_eq!(reason, "the disk is full");
    let overlaps: Vec<bool> = tries.iter().map(|attempt| attempt.overlaps).collect();
    assert_eq!(overlaps, [false, true, true]);
    let late: Vec<Option<NodeId>> = tries.iter().map(|attempt| attempt.late).collect();
    assert_eq!(late, [None, Some(1), Some(1)]);

    // Who was lost in one round is not waited for in the next.
    let late = Mutex::new(Vec::new());
    let ask = |attempt: Try| {
        late.lock().push(attempt.late);
        async { Ok("done") }
    };
    round(vec![2, 3, 1], lost, hedging(NEVER), ask, |_, _| true, |_, _| ()).await;
    assert_eq!(late.into_inner(), [Some(1)]);
}

#[tokio::test]
async fn one_that_is_silent_is_not_waited_for_when_the_others_know_of_another_leader_or_of_none() {
    let knows_none = |attempt: Try| async move {
        match attempt.node {
            1 => pending().await,
            2 => Err(Failed::NotLeader(None)),
            _ => Err(Failed::NotDone("no quorum answers".to_owned())),
        }
    };
    let (round, tries) = run(&[1, 2, 3], Duration::ZERO, knows_none, |_, _| true).await;
    let Round::Nothing { reason, unknown: true, lost: Some(1 | 2) } = round else {
        panic!("{round:?}")
    };
    assert_eq!((reason.as_str(), asked(&tries)), ("no quorum answers", vec![1, 2, 3]));

    // One that refused is not asked again because it is named.
    let refuses = |attempt: Try| async move {
        match attempt.node {
            1 => Err(Failed::NotDone("replication lags".to_owned())),
            _ => Err(Failed::NotLeader(Some(1))),
        }
    };
    let (round, tries) = run(&[1, 2, 3], NEVER, refuses, |_, _| true).await;
    assert!(matches!(round, Round::Nothing { unknown: false, .. }), "{round:?}");
    assert_eq!(asked(&tries), [1, 2, 3]);
}

#[tokio::test]
async fn one_that_is_late_is_waited_for_while_another_says_that_it_leads() {
    let named = Notify::new();
    let ask = |attempt: Try| {
        let named = &named;
        async move {
            match attempt.node {
                1 => {
                    named.notified().await;
                    // Long after it was late.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok("one")
                }
                2 => Err(Failed::NotLeader(None)),
                _ => {
                    named.notify_one();
                    Err(Failed::NotLeader(Some(1)))
                }
            }
        }
    };
    // Also where one of them knows of no leader: the one that does is asked first.
    let (round, _) = run(&[1, 3, 2], Duration::ZERO, ask, |_, _| true).await;
    assert!(matches!(round, Round::Answer { node: 1, answer: "one", .. }), "{round:?}");
}

#[tokio::test]
async fn one_that_was_asked_because_it_was_named_is_waited_for() {
    let ask = |attempt: Try| async move {
        match attempt.node {
            1 => Err(Failed::NotLeader(Some(2))),
            2 => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok("two")
            }
            _ => Err(Failed::Unreachable("no connection".to_owned())),
        }
    };
    let (round, _) = run(&[1, 3, 2], Duration::ZERO, ask, |_, _| true).await;
    assert!(matches!(round, Round::Answer { node: 2, answer: "two", .. }), "{round:?}");
}

#[tokio::test]
async fn one_that_is_silent_is_waited_for_when_nobody_else_answers() {
    let ask = |attempt: Try| async move {
        match attempt.node {
            1 => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok("one")
            }
            _ => Err(Failed::Unreachable("no connection".to_owned())),
        }
    };
    let (round, _) = run(&[1, 2, 3], Duration::ZERO, ask, |_, _| true).await;
    assert!(matches!(round, Round::Answer { node: 1, answer: "one", .. }), "{round:?}");
}

#[tokio::test]
async fn without_nodes_there_is_no_answer() {
    let ask = |_: Try| async { Ok("never") };
    let (round, _) = run(&[], NEVER, ask, |_, _| true).await;
    assert!(matches!(round, Round::Nothing { unknown: false, .. }), "{round:?}");
}

#[tokio::test]
async fn nobody_is_waited_for_or_asked_once_the_shard_has_moved() {
    for patience in [Duration::ZERO, Duration::from_millis(20)] {
        let (moved, has_moved) = (Notify::new(), Notify::new());
        let asked = Mutex::new(Vec::new());
        let ask = |attempt: Try| {
            asked.lock().push(attempt.node);
            moved.notify_one();
            let has_moved = &has_moved;
            async move {
                match attempt.node {
                    1 => {
                        has_moved.notified().await;
                        Err(Failed::NotLeader(Some(3)))
                    }
                    _ => pending::<Result<(), Failed>>().await,
                }
            }
        };
        let is_told = async {
            moved.notified().await;
            has_moved.notify_one();
        };
        let Hedging { clock, delay, at_a_time, is_silent, not_answered, found, .. } =
            hedging(patience);
        let pays = || false;
        let hedging = Hedging {
            clock,
            delay,
            at_a_time,
            is_silent,
            pays,
            refusal_is_free: true,
            not_answered,
            found,
            moved: is_told,
        };
        let outcome = round(vec![1, 2, 3], None, hedging, ask, |(), _| true, |_, _| ()).await;
        assert!(matches!(outcome, Round::Nothing { .. }), "{outcome:?}");
        assert_eq!(asked.into_inner(), [1]);
    }
}
