use meridian_types::{Epoch, Position};

use super::*;

const SECOND: Duration = Duration::from_secs(1);

fn status(node: u64, hops: Option<u8>) -> Status {
    Status {
        node: NodeId(node),
        epoch: Epoch(1),
        durable: Position::new(Epoch(1), 100),
        hops,
        primary_age: Duration::ZERO,
        fetching_snapshot: false,
    }
}

fn election(me: u64) -> RelayElection {
    let mut election = RelayElection::new(RelayConfig::default(), NodeId(me), Duration::ZERO);
    election.set_members(Duration::ZERO, &[2, 3, 1].map(NodeId), &[10, 11, 12].map(NodeId));
    election
}

/// Every node in `statuses` speaks at `now`, then the node chooses.
fn choose(
    election: &mut RelayElection,
    now: Duration,
    own: Option<u8>,
    statuses: &[Status],
) -> Option<Source> {
    for status in statuses {
        election.on_status(now, *status);
    }
    election.choose(now, &status(election.me.0, own))
}

fn follows(node: u64) -> Option<Source> {
    Some(Source { node: NodeId(node), direct: false })
}

#[test]
fn the_lowest_numbered_node_becomes_the_relay_and_follows_a_follower() {
    let mut lowest = election(10);
    let source = choose(&mut lowest, Duration::ZERO, None, &[]).unwrap();
    assert!(source.direct && source.node != NodeId(1), "{source:?}");
}

#[test]
fn the_others_wait_for_a_relay_and_follow_it() {
    let mut other = election(11);
    assert_eq!(choose(&mut other, Duration::ZERO, None, &[status(10, None)]), None);
    assert_eq!(choose(&mut other, SECOND / 2, None, &[status(10, Some(1))]), follows(10));
}

#[test]
fn a_mate_that_is_no_relay_is_not_followed() {
    let mut other = election(12);
    assert_eq!(
        choose(&mut other, Duration::ZERO, None, &[status(11, Some(2)), status(10, None)]),
        None
    );
}

#[test]
fn a_relay_of_another_epoch_is_not_followed() {
    let mut other = election(11);
    let stale = Status { epoch: Epoch(0), ..status(10, Some(1)) };
    assert_eq!(choose(&mut other, Duration::ZERO, None, &[stale]), None);
}

#[test]
fn when_the_relay_dies_the_next_takes_over_after_the_timeout() {
    let (mut next, mut last) = (election(11), election(12));
    choose(&mut next, Duration::ZERO, None, &[status(10, Some(1)), status(12, Some(2))]);
    choose(&mut last, Duration::ZERO, None, &[status(10, Some(1)), status(11, Some(2))]);
    let timeout = RelayConfig::default().relay_timeout;
    assert_eq!(choose(&mut next, timeout, Some(2), &[status(12, Some(2))]), follows(10));
    assert_eq!(choose(&mut last, timeout, Some(2), &[status(11, Some(2))]), follows(10));

    let later = timeout + SECOND / 10;
    assert!(choose(&mut next, later, Some(2), &[status(12, Some(2))]).unwrap().direct);
    assert_eq!(choose(&mut last, later, Some(2), &[status(11, None)]), None);
    assert_eq!(choose(&mut last, later + SECOND / 2, None, &[status(11, Some(1))]), follows(11));
}

#[test]
fn a_node_that_comes_back_follows_the_present_relay() {
    let mut back = election(10);
    assert_eq!(choose(&mut back, Duration::ZERO, None, &[status(11, Some(1))]), follows(11));
    let mut relay = election(11);
    assert!(choose(&mut relay, SECOND * 2, None, &[]).unwrap().direct);
    assert!(choose(&mut relay, SECOND * 3, Some(1), &[status(10, Some(2))]).unwrap().direct);
}

#[test]
fn of_two_relays_the_higher_numbered_steps_down() {
    let (mut low, mut high) = (election(10), election(11));
    choose(&mut low, SECOND * 2, None, &[]);
    choose(&mut high, SECOND * 2, None, &[]);
    assert!(choose(&mut low, SECOND * 3, Some(1), &[status(11, Some(1))]).unwrap().direct);
    assert_eq!(choose(&mut high, SECOND * 3, Some(1), &[status(10, Some(1))]), follows(10));
}

#[test]
fn a_relay_does_not_step_down_for_a_node_that_is_far_behind() {
    let mut high = election(11);
    choose(&mut high, SECOND * 2, None, &[]);
    let mut own = status(11, Some(1));
    own.durable.sequence = 5000;
    high.on_status(SECOND * 3, status(10, Some(1)));
    assert!(high.choose(SECOND * 3, &own).unwrap().direct);
}

#[test]
fn a_node_falls_back_to_the_primary_when_the_first_in_line_cannot_connect() {
    let mut second = election(11);
    let delay = RelayConfig::default().takeover_delay;
    for tenth in 0..10 {
        assert_eq!(choose(&mut second, delay * tenth / 10, None, &[status(10, None)]), None);
    }
    assert!(choose(&mut second, delay, None, &[status(10, None)]).unwrap().direct);
    // And the first, which found no way, follows it.
    let mut first = election(10);
    assert!(choose(&mut first, Duration::ZERO, None, &[]).unwrap().direct);
    assert_eq!(choose(&mut first, SECOND * 2, None, &[status(11, Some(1))]), follows(11));
}

#[test]
fn a_node_without_data_does_not_go_first() {
    let mut next = election(11);
    let empty = Status { fetching_snapshot: true, ..status(10, None) };
    assert!(choose(&mut next, SECOND, None, &[empty]).unwrap().direct);
}

#[test]
fn a_failed_source_is_avoided_and_the_leader_comes_last() {
    let mut relay = election(10);
    let mut tried = Vec::new();
    for _ in 0..3 {
        let source = choose(&mut relay, SECOND * 2, None, &[]).unwrap();
        tried.push(source.node);
        relay.failed(SECOND * 2, source.node);
    }
    assert_eq!(tried, [2, 3, 1].map(NodeId));
}

#[test]
fn a_follower_cut_off_from_its_leader_is_left_for_a_connected_one() {
    let mut relay = election(10);
    let first = choose(&mut relay, Duration::ZERO, None, &[]).unwrap().node;
    let cut_off = Status { primary_age: SECOND * 10, ..status(first.0, Some(0)) };
    let leader = status(1, Some(0));
    assert_eq!(choose(&mut relay, SECOND, Some(1), &[cut_off, leader]), direct(1));
}

#[test]
fn a_relay_whose_streams_break_thrice_is_not_believed() {
    let mut other = election(11);
    assert_eq!(choose(&mut other, SECOND * 2, None, &[status(10, Some(1))]), follows(10));
    other.failed(SECOND * 2, NodeId(10));
    other.failed(SECOND * 2, NodeId(10));
    assert_eq!(choose(&mut other, SECOND * 2, None, &[status(10, Some(1))]), follows(10));
    other.failed(SECOND * 2, NodeId(10));
    assert_eq!(choose(&mut other, SECOND * 2, None, &[status(10, Some(1))]), None);
    assert!(choose(&mut other, SECOND * 3, None, &[status(10, Some(1))]).unwrap().direct);
}

fn direct(node: u64) -> Option<Source> {
    Some(Source { node: NodeId(node), direct: true })
}

#[test]
fn mates_that_have_not_spoken_yet_are_given_their_time_and_no_more() {
    let mut last = election(12);
    let timeout = RelayConfig::default().relay_timeout;
    assert_eq!(choose(&mut last, Duration::ZERO, None, &[]), None);
    assert_eq!(choose(&mut last, timeout, None, &[]), None);
    assert!(choose(&mut last, timeout + SECOND / 1000, None, &[]).unwrap().direct);
    // Those behind it in line are not waited for.
    assert!(choose(&mut election(10), Duration::ZERO, None, &[]).unwrap().direct);
    // Nor is a node that has spoken, and fallen silent, when other nodes come and go.
    let mut next = election(11);
    assert_eq!(choose(&mut next, Duration::ZERO, None, &[status(10, Some(1))]), follows(10));
    next.set_members(SECOND, &[2, 3, 1].map(NodeId), &[10, 11].map(NodeId));
    assert!(choose(&mut next, SECOND, None, &[]).unwrap().direct);
}

#[test]
fn what_is_known_of_nodes_outlives_a_change_of_members() {
    let mut other = election(11);
    assert_eq!(choose(&mut other, Duration::ZERO, None, &[status(10, Some(1))]), follows(10));
    other.set_members(SECOND / 10, &[2, 3, 1].map(NodeId), &[10, 11].map(NodeId));
    assert_eq!(choose(&mut other, SECOND / 10, None, &[]), follows(10));
    // A former member is not followed.
    other.set_members(SECOND / 5, &[2, 3, 1].map(NodeId), &[11, 12].map(NodeId));
    assert_ne!(choose(&mut other, SECOND / 5, None, &[]), follows(10));
}

#[test]
fn a_voter_that_lies_in_the_region_is_no_mate_to_be_waited_for() {
    let mut election = RelayElection::new(RelayConfig::default(), NodeId(10), Duration::ZERO);
    election.set_members(Duration::ZERO, &[2, 3, 1].map(NodeId), &[1, 10].map(NodeId));
    assert_eq!(choose(&mut election, Duration::ZERO, None, &[status(1, Some(0))]), direct(1));
}

#[test]
fn a_follower_stays_with_its_relay_while_another_shows_up() {
    let mut other = election(12);
    assert_eq!(choose(&mut other, Duration::ZERO, None, &[status(11, Some(1))]), follows(11));
    assert_eq!(
        choose(&mut other, SECOND, Some(2), &[status(10, Some(1)), status(11, Some(1))]),
        follows(11)
    );
}

#[test]
fn of_two_relays_a_relay_that_is_far_behind_is_not_followed() {
    let mut other = election(12);
    let ahead = Status { durable: Position::new(Epoch(1), 5000), ..status(11, Some(1)) };
    for status in [status(10, Some(1)), ahead] {
        other.on_status(SECOND, status);
    }
    assert_eq!(
        other.choose(SECOND, &Status { durable: ahead.durable, ..status(12, None) }),
        follows(11)
    );
}

#[test]
fn a_relay_steps_down_for_another_at_most_a_thousand_batches_behind() {
    for (ahead, source) in [(1000, follows(10)), (1001, direct(2))] {
        let mut high = election(11);
        choose(&mut high, SECOND * 2, None, &[]);
        high.on_status(SECOND * 3, status(10, Some(1)));
        let mut own = status(11, Some(1));
        own.durable.sequence += ahead;
        assert_eq!(high.choose(SECOND * 3, &own), source);
    }
}

/// Its voter was taken from it by a change of members.
#[test]
fn a_node_that_has_just_lost_its_source_follows_the_present_relay() {
    let mut low = election(10);
    assert_eq!(choose(&mut low, Duration::ZERO, Some(1), &[status(11, Some(1))]), follows(11));
}

#[test]
fn the_time_without_a_relay_is_counted_from_when_the_last_one_was_lost() {
    let mut last = election(12);
    assert_eq!(choose(&mut last, Duration::ZERO, None, &[]), None);
    assert_eq!(choose(&mut last, SECOND / 2, None, &[status(10, Some(1))]), follows(10));
    assert_eq!(choose(&mut last, SECOND * 3, Some(2), &[status(11, None)]), None);
    let delay = RelayConfig::default().takeover_delay;
    assert!(choose(&mut last, SECOND * 3 + delay, None, &[status(11, None)]).unwrap().direct);
}

#[test]
fn a_source_that_failed_is_avoided_for_a_while_and_no_longer() {
    let avoid_for = RelayConfig::default().avoid_for;
    for (at, source) in [(avoid_for - SECOND / 1000, direct(1)), (avoid_for, direct(2))] {
        let mut relay = election(10);
        assert_eq!(choose(&mut relay, Duration::ZERO, None, &[]), direct(2));
        relay.failed(Duration::ZERO, NodeId(2));
        assert_eq!(choose(&mut relay, Duration::ZERO, None, &[]), direct(3));
        relay.failed(SECOND, NodeId(3));
        assert_eq!(choose(&mut relay, at, None, &[]), source);
    }
}

#[test]
fn a_relay_stays_with_the_source_that_works() {
    let mut relay = election(10);
    choose(&mut relay, Duration::ZERO, None, &[]);
    relay.failed(Duration::ZERO, NodeId(2));
    assert_eq!(choose(&mut relay, Duration::ZERO, None, &[]), direct(3));
    let all = [status(1, Some(0)), status(2, Some(0)), status(3, Some(0))];
    assert_eq!(choose(&mut relay, SECOND * 9, Some(1), &all), direct(3));
}

#[test]
fn a_voter_that_is_silent_or_in_an_older_epoch_or_out_of_touch_is_second_choice() {
    let stale_after = RelayConfig::default().stale_after;
    let (well, old) = (status(3, Some(0)), Status { epoch: Epoch(0), ..status(2, Some(0)) });
    let aged = |primary_age| Status { primary_age, ..status(2, Some(0)) };
    let later = Status { epoch: Epoch(2), ..status(2, Some(0)) };
    let cases = [
        (vec![], 3),
        (vec![old], 3),
        (vec![aged(stale_after + SECOND / 1000)], 3),
        (vec![aged(stale_after)], 2),
        (vec![later], 2),
    ];
    for (said, node) in cases {
        let mut relay = election(10);
        let statuses: Vec<_> = said.into_iter().chain([well]).collect();
        assert_eq!(choose(&mut relay, SECOND, None, &statuses), direct(node), "{statuses:?}");
    }
}

#[test]
fn a_relays_failures_count_together_while_they_are_not_far_apart() {
    for (apart, is_believed) in [(4, false), (10, false), (11, true)] {
        let mut other = election(11);
        let mut source = None;
        for failure in 0..3 {
            let now = SECOND * apart * failure;
            source = choose(&mut other, now, None, &[status(10, Some(1))]);
            assert_eq!(source, follows(10));
            other.failed(now, NodeId(10));
            source = choose(&mut other, now, None, &[status(10, Some(1))]);
        }
        assert_eq!(source == follows(10), is_believed, "{apart} s apart: {source:?}");
    }
}
