//! Changes: which nodes are asked, and what is said when none has them.

use std::sync::atomic::Ordering;

use meridian_gateway::{Changed, ChangesWanted, NoChanges};
use meridian_types::Versionstamp;

use super::*;
use crate::changes::NotGiven;

/// The answers of nodes to questions for changes.
#[derive(Default)]
pub(super) struct Changing {
    /// Other nodes refuse.
    answers: Mutex<BTreeMap<NodeId, Result<Changed, NotGiven>>>,
    /// Which nodes were asked, for what of a state at least.
    pub(super) asked: Mutex<Vec<(NodeId, u64)>>,
}

impl Changing {
    pub(super) fn answer(&self, node: NodeId) -> Result<Result<Changed, NotGiven>, Failed> {
        let answer = self.answers.lock().get(&node).cloned();
        answer.ok_or_else(|| Failed::NotDone("scripted".to_owned()))
    }
}

fn stamp(epoch: u16, sequence: u64) -> Versionstamp {
    Versionstamp::behind(Position::new(Epoch(epoch), sequence))
}

fn behind(after: Versionstamp) -> ChangesWanted {
    ChangesWanted {
        database: DEV_DEFAULT_DATABASE,
        prefix: "".into(),
        after: Some(after),
        max_bytes: 1000,
        wait: Duration::from_secs(2),
    }
}

/// The question that opens a feed.
fn opening(after: Versionstamp) -> ChangesWanted {
    ChangesWanted { wait: Duration::ZERO, ..behind(after) }
}

fn reached(stamp: Versionstamp) -> Result<Changed, NotGiven> {
    Ok(Changed { transactions: Vec::new(), reached: stamp, next_bytes: 0 })
}

impl World {
    /// The nodes, from the first, answer this from now on; others do not.
    fn answers(&self, answers: impl IntoIterator<Item = Result<Changed, NotGiven>>) {
        *self.voters.changing.answers.lock() = (1..).map(NodeId).zip(answers).collect();
    }

    fn all_answer(&self, answer: &Result<Changed, NotGiven>) {
        let nodes = self.router.directory.known().cluster.present_nodes().count();
        self.answers(vec![answer.clone(); nodes]);
    }

    async fn changes(&self, after: Versionstamp) -> Result<Changed, NoChanges> {
        self.router.changes(behind(after)).await
    }

    fn asked_for_changes(&self) -> Vec<u64> {
        self.voters.changing.asked.lock().drain(..).map(|(node, _)| node.0).collect()
    }
}

#[test]
fn node_whose_log_begins_too_late_is_passed_over_for_another_with_the_changes() {
    run(Duration::ZERO, |world| async move {
        let gone = Err(NotGiven::Gone(stamp(1, 50)));
        world.answers([gone.clone(), gone, reached(stamp(1, 9))]);
        assert_eq!(world.changes(stamp(1, 7)).await.unwrap().reached, stamp(1, 9));
        assert_eq!(world.asked_for_changes(), [1, 2, 3]);
        // Later answers of this gateway are no older.
        let mut now = behind(stamp(1, 7));
        now.after = None;
        world.router.changes(now).await.unwrap();
        assert_eq!(world.voters.changing.asked.lock()[0].1, 9);
    });
}

#[test]
fn log_is_said_to_be_gone_at_its_oldest_place_once_every_node_says_so() {
    run(Duration::ZERO, |world| async move {
        world.all_answer(&Err(NotGiven::Gone(stamp(1, 50))));
        world.voters.changing.answers.lock().insert(NodeId(2), Err(NotGiven::Gone(stamp(1, 40))));
        let refused = world.changes(stamp(1, 7)).await;
        assert!(matches!(refused, Err(NoChanges::Gone { floor }) if floor == stamp(1, 40)));
        assert_eq!(world.asked_for_changes(), [1, 2, 3, 4, 5, 6, 7], "once each");
    });
}

#[test]
fn log_is_not_said_to_be_gone_before_the_others_were_asked_again() {
    run(Duration::ZERO, |world| async move {
        world.answers([Err(NotGiven::Gone(stamp(1, 50)))]);
        let time = world.time.clone();
        let voters = Arc::clone(&world.voters);
        let heals = async move {
            time.sleep(Duration::from_millis(20)).await;
            voters.changing.answers.lock().insert(NodeId(3), reached(stamp(1, 9)));
        };
        let (found, ()) = futures::join!(world.changes(stamp(1, 7)), heals);
        assert_eq!(found.unwrap().reached, stamp(1, 9));
    });
}

#[test]
fn what_a_failover_lost_is_of_no_history_whatever_nodes_say() {
    run(Duration::ZERO, |world| async move {
        world.all_answer(&reached(stamp(1, 120)));
        world.learns(|cluster| {
            let shard = cluster.shards.get_mut(&ShardId(1)).unwrap();
            shard.epoch = Epoch(2);
            shard.bases.push((Epoch(2), Position::new(Epoch(1), 100)));
        });
        assert!(matches!(world.changes(stamp(1, 101)).await, Err(NoChanges::NotOfHistory)));
        assert!(world.asked_for_changes().is_empty());
        // Nodes that go on in the history that was lost have nothing to say.
        assert!(matches!(world.changes(stamp(1, 90)).await, Err(NoChanges::Unavailable(_))));
        world.all_answer(&reached(stamp(2, 120)));
        assert_eq!(world.changes(stamp(1, 90)).await.unwrap().reached, stamp(2, 120));
        world.all_answer(&Err(NotGiven::NotOfHistory));
        assert!(matches!(world.changes(stamp(1, 90)).await, Err(NoChanges::NotOfHistory)));
    });
}

/// A strong read tells them apart: it stands at the first batch here.
#[test]
fn what_is_ahead_of_the_database_is_told_from_what_a_node_lags_behind() {
    run(Duration::ZERO, |world| async move {
        world.all_answer(&Err(NotGiven::Ahead));
        for ahead in [stamp(1, 1 << 40), stamp(9, 1)] {
            let refused = world.router.changes(opening(ahead)).await;
            assert!(matches!(refused, Err(NoChanges::Ahead { .. })), "{ahead}");
        }
        // A feed that goes on was told of it; and where no strong read answers, that cannot be told.
        let reads = world.voters.calls();
        let waiting = world.changes(stamp(1, 1 << 40)).await;
        assert!(matches!(waiting, Err(NoChanges::Unavailable(_))));
        assert_eq!(world.voters.calls(), reads);
        world.voters.refusing.lock().extend([1, 2, 3].map(NodeId));
        let waiting = world.router.changes(opening(stamp(1, 1 << 40))).await;
        assert!(matches!(waiting, Err(NoChanges::Unavailable(_))));
        assert!(world.voters.calls() > reads);
        world.answers([Err(NotGiven::Ahead), reached(stamp(1, 0))]);
        assert!(world.router.changes(opening(stamp(1, 0))).await.is_ok());
    });
}

#[test]
fn silent_node_is_left_for_another_and_none_is_waited_for_beyond_the_deadline() {
    run(Duration::ZERO, |world| async move {
        world.voters.link(1, Link::Silent);
        world.answers([reached(stamp(1, 8)), reached(stamp(1, 9))]);
        assert_eq!(world.changes(stamp(1, 7)).await.unwrap().reached, stamp(1, 9));
        world.voters.link(2, Link::Refused);
        let began = world.time.now();
        assert!(matches!(world.changes(stamp(1, 7)).await, Err(NoChanges::Unavailable(_))));
        assert!(world.time.now() - began < 2 * DEADLINE);
    });
}

#[test]
fn node_that_lags_costs_no_strong_read_and_others_are_asked_first_for_a_while() {
    run(Duration::ZERO, |world| async move {
        world.answers([Err(NotGiven::Ahead), reached(stamp(1, 9))]);
        // Each strong read takes three seconds.
        world.voters.working.store(true, Ordering::SeqCst);
        let began = world.time.now();
        let found = world.router.changes(opening(stamp(1, 7))).await.unwrap();
        assert_eq!(found.reached, stamp(1, 9));
        assert!(world.time.now() - began < Duration::from_secs(2));
        assert_eq!(world.asked_for_changes(), [1, 2]);
        world.changes(stamp(1, 7)).await.unwrap();
        assert_eq!(world.asked_for_changes(), [2]);
        world.time.sleep(Duration::from_secs(1)).await;
        world.changes(stamp(1, 7)).await.unwrap();
        assert_eq!(world.asked_for_changes(), [1, 2]);
    });
}

#[test]
fn log_is_not_said_to_be_gone_while_a_node_only_refuses_for_now() {
    run(Duration::ZERO, |world| async move {
        let gone = || Err(NotGiven::Gone(stamp(1, 50)));
        let busy = || Err(NotGiven::Refused("too many change feeds".to_owned()));
        world.answers([gone(), busy(), busy(), busy(), busy(), busy(), busy()]);
        let (time, voters) = (world.time.clone(), Arc::clone(&world.voters));
        let heals = async move {
            time.sleep(Duration::from_secs(2)).await;
            voters.changing.answers.lock().insert(NodeId(3), reached(stamp(1, 9)));
        };
        let (found, ()) = futures::join!(world.changes(stamp(1, 7)), heals);
        assert_eq!(found.unwrap().reached, stamp(1, 9));
        world.answers([gone(), busy()]);
        let refused = world.changes(stamp(1, 7)).await;
        assert!(matches!(refused, Err(NoChanges::Unavailable(_))), "{refused:?}");
    });
}

#[test]
fn log_is_said_to_be_gone_though_other_nodes_do_not_answer_or_lag_behind() {
    run(Duration::ZERO, |world| async move {
        let gone = Err(NotGiven::Gone(stamp(1, 50)));
        for others in [Link::Refused, Link::Up] {
            world.answers([gone.clone()].into_iter().chain(vec![Err(NotGiven::Ahead); 6]));
            (2..=7).for_each(|node| world.voters.link(node, others));
            let began = world.time.now();
            let refused = world.changes(stamp(1, 7)).await;
            assert!(matches!(refused, Err(NoChanges::Gone { floor }) if floor == stamp(1, 50)));
            assert!(world.time.now() - began < Duration::from_secs(2));
            assert_eq!(world.asked_for_changes().len(), 21, "each three times");
        }
    });
}

#[test]
fn nodes_are_asked_one_after_another_until_the_deadline_and_no_longer() {
    run(Duration::ZERO, |world| async move {
        (1..=7).for_each(|node| world.voters.link(node, Link::Silent));
        let began = world.time.now();
        assert!(matches!(world.changes(stamp(1, 7)).await, Err(NoChanges::Unavailable(_))));
        let took = world.time.now() - began;
        assert!(took < DEADLINE + Duration::from_secs(5), "{took:?}");
    });
}

#[test]
fn question_for_changes_takes_no_turn_of_reads_at_a_node_that_refused_one() {
    run(Duration::ZERO, |world| async move {
        world.voters.refusing.lock().insert(NodeId(1));
        world.router.read(eventual()).await.unwrap();
        let last = || world.router.readers(ShardId(1), Consistency::Eventual).pop();
        assert_eq!(last(), Some(NodeId(1)));
        world.time.sleep(Duration::from_secs(1)).await;
        world.all_answer(&reached(stamp(1, 1)));
        world.changes(stamp(1, 0)).await.unwrap();
        assert_ne!(last(), Some(NodeId(1)), "its turn is a read's");
        assert_eq!(last(), Some(NodeId(1)));
        world.voters.refusing.lock().clear();
        // Nor does a node that refuses changes, or is slow with them, lose its place for writes.
        world.answers([Err(NotGiven::Refused("no room".to_owned())), reached(stamp(1, 1))]);
        world.changes(stamp(1, 0)).await.unwrap();
        let before = world.voters.calls();
        assert!(world.commits().await);
        assert_eq!(world.voters.asked()[before], 1);
    });
}
