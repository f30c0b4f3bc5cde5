//! Attempts carried out: calls that end, hang and overlap. Decisions are tested in `attempt`.

use std::future::pending;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::*;
use crate::host::clock::BootClock;

const NEVER: Duration = Duration::from_secs(3600);

/// Others are asked at once, or never, while one is waited for: so no test depends on how fast it
/// runs.
struct Near {
    patience: Duration,
    pays: bool,
}

impl Patience for Near {
    fn patience(&self, _: NodeId) -> Duration {
        self.patience
    }

    fn is_silent(&self, _: NodeId, _: Duration) -> bool {
        false
    }
}

impl Surroundings for Near {
    fn pays(&self) -> bool {
        self.pays
    }
}

fn attempt(nodes: &[u64], lost: Option<NodeId>) -> Attempt {
    let nodes = nodes.iter().copied().map(NodeId).collect();
    Attempt::new(nodes, lost, Bounds { at_a_time: 3, refusal_is_free: false })
}

async fn driven<T, F: Future<Output = Result<T, Failed>>>(
    attempt: Attempt,
    near: Near,
    ask: impl Fn(Try) -> F,
    binds: impl Fn(&T) -> bool,
    moved: impl Future<Output = ()>,
) -> Outcome<T> {
    let found = watch::Sender::default().subscribe();
    let driving = Driving { clock: &BootClock, surroundings: &near, found };
    let ask = |tried| Asked { call: ask(tried), departure: None };
    drive(attempt, driving, moved, ask, binds, |_, _| ()).await
}

/// One attempt, and all tries that it made.
async fn run<F: Future<Output = Result<&'static str, Failed>>>(
    nodes: &[u64],
    patience: Duration,
    ask: impl Fn(Try) -> F,
    binds: impl Fn(&&'static str) -> bool,
) -> (Outcome<&'static str>, Vec<Try>) {
    let tries = Mutex::new(Vec::new());
    let asking = |tried: Try| {
        tries.lock().push(tried);
        ask(tried)
    };
    let near = Near { patience, pays: true };
    let outcome = driven(attempt(nodes, None), near, asking, binds, pending()).await;
    (outcome, tries.into_inner())
}

fn asked(tries: &[Try]) -> Vec<u64> {
    tries.iter().map(|tried| tried.node.0).collect()
}

#[tokio::test]
async fn silent_first_node_has_all_others_asked_and_named_to_them() {
    let ask = |tried: Try| async move {
        match tried.node.0 {
            3 => Ok("three"),
            _ => pending().await,
        }
    };
    let (round, tries) = run(&[1, 2, 3], Duration::ZERO, ask, |_| true).await;
    let Outcome::Answer { node: NodeId(3), answer: "three", late } = round else {
        panic!("{round:?}")
    };
    assert_eq!(late, [1, 2].map(NodeId));
    let expected = [
        Try { node: NodeId(1), overlaps: false, late: None },
        Try { node: NodeId(2), overlaps: true, late: Some(NodeId(1)) },
        Try { node: NodeId(3), overlaps: true, late: Some(NodeId(1)) },
    ];
    assert_eq!(tries, expected);
}

#[tokio::test]
async fn named_leader_is_asked_next_and_no_node_twice_for_ever() {
    let ask = |tried: Try| async move {
        match tried.node.0 {
            3 => Ok("three"),
            _ => Err(Failed::NotLeader(Some(NodeId(3)))),
        }
    };
    let (round, tries) = run(&[1, 2, 3], NEVER, ask, |_| true).await;
    assert!(matches!(round, Outcome::Answer { node: NodeId(3), .. }), "{round:?}");
    assert_eq!(asked(&tries), [1, 3]);
    // Nothing was done at the first: nothing overlaps.
    assert!(tries.iter().all(|tried| !tried.overlaps));

    let each_other =
        |tried: Try| async move { Err(Failed::NotLeader(Some(NodeId(3 - tried.node.0)))) };
    let (round, tries) = run(&[1, 2], NEVER, each_other, |_| true).await;
    assert!(matches!(round, Outcome::Nothing { unknown: None, .. }), "{round:?}");
    assert_eq!(asked(&tries), [1, 2, 1]);
}

#[tokio::test]
async fn answer_that_does_not_bind_is_left_out_once_another_node_was_asked() {
    let (first_goes_on, second_goes_on) = (Notify::new(), Notify::new());
    let ask = |tried: Try| {
        let (first_goes_on, second_goes_on) = (&first_goes_on, &second_goes_on);
        async move {
            if tried.node == NodeId(1) {
                first_goes_on.notified().await;
                second_goes_on.notify_one();
                return Ok("the check failed");
            }
            first_goes_on.notify_one();
            second_goes_on.notified().await;
            Ok("committed")
        }
    };
    let binds = |answer: &&str| *answer == "committed";
    let (round, _) = run(&[1, 2], Duration::ZERO, ask, binds).await;
    assert!(
        matches!(round, Outcome::Answer { node: NodeId(2), answer: "committed", .. }),
        "{round:?}"
    );
}

#[tokio::test]
async fn failure_asks_the_next_node_at_once_and_its_reason_is_kept() {
    let ask = |tried: Try| async move {
        match tried.node.0 {
            1 => Err(Failed::Unknown("the connection broke".to_owned())),
            2 => Err(Failed::NotDone("the disk is full".to_owned())),
            _ => Err(Failed::NotLeader(None)),
        }
    };
    let (outcome, tries) = run(&[1, 2, 3], NEVER, ask, |_| true).await;
    let Outcome::Nothing { reason, unknown: Some(unknown), lost, .. } = outcome else {
        panic!("{outcome:?}")
    };
    assert_eq!((reason.as_str(), unknown.as_str()), ("the disk is full", "the connection broke"));
    let overlaps: Vec<bool> = tries.iter().map(|tried| tried.overlaps).collect();
    assert_eq!(overlaps, [false, true, true]);
    let late: Vec<Option<NodeId>> = tries.iter().map(|tried| tried.late).collect();
    assert_eq!(late, [None, Some(NodeId(1)), Some(NodeId(1))]);

    // A node that was lost in one attempt is not waited for in the next.
    let late = Mutex::new(Vec::new());
    let ask = |tried: Try| {
        late.lock().push(tried.late);
        async { Ok("done") }
    };
    let near = Near { patience: NEVER, pays: true };
    driven(attempt(&[2, 3, 1], lost), near, ask, |_| true, pending()).await;
    assert_eq!(late.into_inner(), [Some(NodeId(1))]);
}

#[tokio::test]
async fn silent_node_is_abandoned_once_all_others_know_of_another_leader_or_none() {
    let knows_none = |tried: Try| async move {
        match tried.node.0 {
            1 => pending().await,
            2 => Err(Failed::NotLeader(None)),
            _ => Err(Failed::NotDone("no quorum answers".to_owned())),
        }
    };
    let (round, tries) = run(&[1, 2, 3], Duration::ZERO, knows_none, |_| true).await;
    let Outcome::Nothing { reason, unknown: Some(_), lost: Some(NodeId(1 | 2)), .. } = round else {
        panic!("{round:?}")
    };
    assert_eq!((reason.as_str(), asked(&tries)), ("no quorum answers", vec![1, 2, 3]));

    // A node that refused is not asked again because it is named.
    let refuses = |tried: Try| async move {
        match tried.node.0 {
            1 => Err(Failed::NotDone("replication lags".to_owned())),
            _ => Err(Failed::NotLeader(Some(NodeId(1)))),
        }
    };
    let (round, tries) = run(&[1, 2, 3], NEVER, refuses, |_| true).await;
    assert!(matches!(round, Outcome::Nothing { unknown: None, .. }), "{round:?}");
    assert_eq!(asked(&tries), [1, 2, 3]);
}

#[tokio::test]
async fn late_node_is_waited_for_while_another_names_it_as_the_leader() {
    let named = Notify::new();
    let ask = |tried: Try| {
        let named = &named;
        async move {
            match tried.node.0 {
                1 => {
                    named.notified().await;
                    // Long after it was late.
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Ok("one")
                }
                2 => Err(Failed::NotLeader(None)),
                _ => {
                    named.notify_one();
                    Err(Failed::NotLeader(Some(NodeId(1))))
                }
            }
        }
    };
    // Also where one of them knows of no leader: the node that does is asked first.
    let (round, _) = run(&[1, 3, 2], Duration::ZERO, ask, |_| true).await;
    assert!(matches!(round, Outcome::Answer { node: NodeId(1), answer: "one", .. }), "{round:?}");
}

#[tokio::test]
async fn node_asked_because_it_was_named_is_waited_for() {
    let ask = |tried: Try| async move {
        match tried.node.0 {
            1 => Err(Failed::NotLeader(Some(NodeId(2)))),
            2 => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok("two")
            }
            _ => Err(Failed::Unreachable("no connection".to_owned())),
        }
    };
    let (round, _) = run(&[1, 3, 2], Duration::ZERO, ask, |_| true).await;
    assert!(matches!(round, Outcome::Answer { node: NodeId(2), answer: "two", .. }), "{round:?}");
}

#[tokio::test]
async fn silent_node_is_waited_for_when_no_other_answers() {
    let ask = |tried: Try| async move {
        match tried.node.0 {
            1 => {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok("one")
            }
            _ => Err(Failed::Unreachable("no connection".to_owned())),
        }
    };
    let (round, _) = run(&[1, 2, 3], Duration::ZERO, ask, |_| true).await;
    assert!(matches!(round, Outcome::Answer { node: NodeId(1), answer: "one", .. }), "{round:?}");
}

#[tokio::test]
async fn attempt_without_nodes_has_no_answer() {
    let ask = |_: Try| async { Ok("never") };
    let (round, _) = run(&[], NEVER, ask, |_| true).await;
    assert!(matches!(round, Outcome::Nothing { unknown: None, .. }), "{round:?}");
}

#[tokio::test]
async fn no_node_is_waited_for_or_asked_once_the_shard_has_moved() {
    for patience in [Duration::ZERO, Duration::from_millis(20)] {
        let (moved, has_moved) = (Notify::new(), Notify::new());
        let asked = Mutex::new(Vec::new());
        let ask = |tried: Try| {
            asked.lock().push(tried.node);
            moved.notify_one();
            let has_moved = &has_moved;
            async move {
                match tried.node.0 {
                    1 => {
                        has_moved.notified().await;
                        Err(Failed::NotLeader(Some(NodeId(3))))
                    }
                    _ => pending::<Result<(), Failed>>().await,
                }
            }
        };
        let is_told = async {
            moved.notified().await;
            has_moved.notify_one();
        };
        let bounds = Bounds { at_a_time: 3, refusal_is_free: true };
        let attempt = Attempt::new([1, 2, 3].map(NodeId).to_vec(), None, bounds);
        let near = Near { patience, pays: false };
        let outcome = driven(attempt, near, ask, |()| true, is_told).await;
        assert!(matches!(outcome, Outcome::Nothing { .. }), "{outcome:?}");
        assert_eq!(asked.into_inner(), [NodeId(1)]);
    }
}
