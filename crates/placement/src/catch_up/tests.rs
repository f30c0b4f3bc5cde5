use meridian_directory::testing;
use meridian_types::Epoch;

use super::*;

const START: Duration = Duration::from_secs(100);

fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

/// The second epoch begins behind 6.
fn history() -> EpochHistory {
    EpochHistory::new(vec![(Epoch(1), at(1, 0)), (Epoch(2), at(1, 6))])
}

fn batches(previous: Position, positions: &[(u16, u64)]) -> CatchUpEvent {
    let batches = positions.iter().map(|(epoch, sequence)| at(*epoch, *sequence)).collect();
    CatchUpEvent::Batches { previous, batches }
}

fn failed() -> CatchUpEvent {
    CatchUpEvent::Failed { reason: "node 4 does not answer".to_owned() }
}

/// A replica that has 5, and is ordered to come to 8 by the log of node 4.
fn order() -> CatchUp {
    let mut catch_up = CatchUp::ordered(START, history(), NodeId(4), at(2, 8), false);
    let first = catch_up.step(START, CatchUpEvent::Begin { position: at(1, 5) });
    assert_eq!(first, asks(4, at(1, 5), at(2, 8)));
    catch_up
}

fn asks(source: u64, after: Position, through: Position) -> CatchUpAction {
    CatchUpAction::ReadLog { source: NodeId(source), after, through }
}

#[test]
fn only_batches_that_follow_in_the_history_are_written() {
    let outcome = |previous, positions: &[(u16, u64)]| {
        order().step(START, batches(previous, positions)) == CatchUpAction::WriteBatches
    };
    let after = at(1, 5);
    assert!(outcome(after, &[(1, 6), (2, 7), (2, 8)]));
    assert!(!outcome(after, &[]));
    assert!(!outcome(at(2, 5), &[(1, 6)]));
    assert!(!outcome(after, &[(2, 7)]));
    assert!(!outcome(after, &[(1, 6), (1, 6)]));
    // Of the old epoch, beyond where the new one left it.
    assert!(!outcome(after, &[(1, 6), (1, 7)]));
    assert!(!outcome(after, &[(2, 6)]));
    assert!(!outcome(after, &[(1, 6), (2, 7), (2, 8), (2, 9)]));
}

#[test]
fn only_a_state_on_the_way_is_installed() {
    let check = |position| check_state(&history(), at(1, 5), position, at(2, 8));
    check(at(1, 6)).unwrap();
    check(at(2, 8)).unwrap();
    check(at(1, 5)).unwrap_err();
    check(at(1, 7)).unwrap_err();
    check(at(2, 9)).unwrap_err();
}

#[test]
fn order_is_carried_out_by_the_log_in_parts() {
    let mut catch_up = order();
    assert_eq!(catch_up.step(START, batches(at(1, 5), &[(1, 6)])), CatchUpAction::WriteBatches);
    let next = catch_up.step(START, CatchUpEvent::Written { position: at(1, 6) });
    assert_eq!(next, asks(4, at(1, 6), at(2, 8)));
    let all = batches(at(1, 6), &[(2, 7), (2, 8)]);
    assert_eq!(catch_up.step(START, all), CatchUpAction::WriteBatches);
    let end = catch_up.step(START, CatchUpEvent::Written { position: at(2, 8) });
    assert_eq!(end, CatchUpAction::Finish(Ok(())));
}

#[test]
fn order_that_is_late_finishes_what_it_writes_and_asks_no_more() {
    let mut catch_up = order();
    let late = START + ORDER_TIMEOUT;
    assert_eq!(catch_up.until(), Some(late));
    catch_up.step(START, batches(at(1, 5), &[(1, 6)]));
    assert_eq!(catch_up.until(), None, "the disk is waited for");
    assert_eq!(catch_up.step(late, CatchUpEvent::Late), CatchUpAction::Nothing);
    let end = catch_up.step(late, CatchUpEvent::Written { position: at(1, 6) });
    assert_eq!(end, CatchUpAction::Finish(Err(CatchUpFailure::Late(at(2, 8)))));
}

#[test]
fn state_that_takes_longer_than_an_order_is_installed_by_a_later_one() {
    let mut first = order();
    let fetch = first.step(START, CatchUpEvent::LogGone);
    assert_eq!(fetch, CatchUpAction::FetchState { source: NodeId(4) });
    let late = first.step(START + ORDER_TIMEOUT, CatchUpEvent::Late);
    assert_eq!(late, CatchUpAction::Finish(Err(CatchUpFailure::Late(at(2, 8)))));

    let mut second = CatchUp::ordered(START, history(), NodeId(5), at(2, 8), true);
    second.step(START, CatchUpEvent::Begin { position: at(1, 5) });
    assert_eq!(second.step(START, CatchUpEvent::LogGone), CatchUpAction::AwaitState);
    let fetched = second.step(START, CatchUpEvent::StateFetched { position: at(2, 7) });
    assert_eq!(fetched, CatchUpAction::InstallState);
    let rest = second.step(START, CatchUpEvent::StateInstalled { position: at(2, 7) });
    assert_eq!(rest, asks(5, at(2, 7), at(2, 8)));
}

#[test]
fn state_past_the_position_that_is_asked_for_ends_the_order() {
    let mut catch_up = order();
    catch_up.step(START, CatchUpEvent::LogGone);
    let end = catch_up.step(START, CatchUpEvent::StateFetched { position: at(2, 9) });
    let CatchUpAction::Finish(Err(failure)) = end else { panic!("{end:?}") };
    let said = "node 4's state: it stands at 2.9, between 1.5 and 2.8 it may be";
    assert_eq!(failure.to_string(), said);
}

#[test]
fn order_ends_with_the_first_failure_of_its_source() {
    let end = order().step(START, failed());
    let CatchUpAction::Finish(Err(failure)) = end else { panic!("{end:?}") };
    assert_eq!(failure.to_string(), "node 4 does not answer");
}

/// A founder that has 3 of a base of 6.
fn founder(sources: [u64; 2]) -> CatchUp {
    let mut catch_up = CatchUp::to_base(history(), sources.map(NodeId).to_vec());
    let first = catch_up.step(START, CatchUpEvent::Begin { position: at(1, 3) });
    assert_eq!(first, asks(sources[0], at(1, 3), at(1, 6)));
    catch_up
}

#[test]
fn founder_asks_the_next_source_where_one_fails_and_keeps_what_it_has() {
    let mut catch_up = founder([2, 4]);
    catch_up.step(START, batches(at(1, 3), &[(1, 4)]));
    catch_up.step(START, CatchUpEvent::Written { position: at(1, 4) });
    assert_eq!(catch_up.step(START, failed()), asks(4, at(1, 4), at(1, 6)));
    assert_eq!(
        catch_up.take_failure().unwrap().to_string(),
        "node 4 does not answer",
        "for the log"
    );
    assert_eq!(catch_up.until(), None, "no order was given");
}

#[test]
fn founder_gives_up_after_three_rounds() {
    let mut catch_up = founder([2, 4]);
    for round in 1..=PULL_ROUNDS {
        assert_eq!(catch_up.step(START, failed()), asks(4, at(1, 3), at(1, 6)));
        assert_eq!(catch_up.step(START, failed()), CatchUpAction::Pause);
        let next =
            catch_up.step(START, CatchUpEvent::Resumed { sources: [2, 4].map(NodeId).to_vec() });
        if round < PULL_ROUNDS {
            assert_eq!(next, asks(2, at(1, 3), at(1, 6)));
        } else {
            assert_eq!(next, CatchUpAction::Finish(Err(CatchUpFailure::NoSource(at(1, 6)))));
        }
    }
}

#[test]
fn founder_gives_up_a_state_once_others_have_founded_the_group() {
    let mut catch_up = founder([2, 4]);
    let log = catch_up.step(START, CatchUpEvent::Unwanted);
    assert_eq!(log, CatchUpAction::Nothing, "a log is short");
    catch_up.step(START, CatchUpEvent::LogGone);
    assert_eq!(catch_up.step(START, CatchUpEvent::Unwanted), asks(4, at(1, 3), at(1, 6)));
    assert_eq!(catch_up.take_failure(), Some(CatchUpFailure::Unwanted));
    // The next one fetches anew.
    let fetch = catch_up.step(START, CatchUpEvent::LogGone);
    assert_eq!(fetch, CatchUpAction::FetchState { source: NodeId(4) });
}

#[test]
fn founder_at_the_base_asks_no_node() {
    let mut catch_up = CatchUp::to_base(history(), vec![NodeId(2)]);
    let end = catch_up.step(START, CatchUpEvent::Begin { position: at(1, 6) });
    assert_eq!(end, CatchUpAction::Finish(Ok(())));
}

#[test]
fn node_that_left_the_history_is_no_source() {
    let history = history();
    let check = |here, after| check_source(&history, here, after).is_ok();
    assert!(check(at(2, 8), Some(at(1, 6))) && check(at(2, 8), None));
    assert!(!check(at(1, 7), Some(at(1, 6))), "it holds a batch that the history lost");
    assert!(!check(at(1, 7), None));
    assert!(!check(at(2, 8), Some(at(1, 7))), "the caller holds a batch that the history lost");
    assert!(!check(at(1, 6), Some(at(1, 6))), "it has nothing behind that");
}

#[test]
fn nodes_of_the_own_region_are_asked_first_and_removed_ones_never() {
    let mut cluster = testing::cluster();
    let shard = *cluster.shards.keys().next().unwrap();
    let home = cluster.shards[&shard].primary_region.clone();
    let own = cluster.shards[&shard].voters.iter().next().copied().unwrap();
    let all = sources(&cluster, shard, own);
    assert_eq!(all.len(), cluster.nodes.len() - 1);
    assert!(all.is_sorted_by_key(|id| (cluster.nodes[id].region != home, *id)));
    let gone = all[0];
    cluster.nodes.get_mut(&gone).unwrap().removed = true;
    assert_eq!(sources(&cluster, shard, own), all[1..]);
}
