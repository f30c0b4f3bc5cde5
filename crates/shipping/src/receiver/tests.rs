use super::*;
use crate::Heartbeat;

mod epochs;

const MS: Duration = Duration::from_millis(1);

fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

fn receiver(durable: Position) -> Receiver {
    let config = ReceiverConfig { max_unpersisted_bytes: 1000, ..ReceiverConfig::default() };
    Receiver::new(config, Duration::ZERO, durable, Epoch(1), Position::ZERO)
}

fn step(receiver: &mut Receiver, ms: u32, event: ReceiverEvent) -> Vec<ReceiverAction> {
    receiver.step(MS * ms, 0.0, event)
}

fn source(node: u64, direct: bool) -> ReceiverEvent {
    ReceiverEvent::Source(Some(Source { node: NodeId(node), direct }))
}

fn connected(epoch: u16) -> StreamEvent {
    StreamEvent::Connected { epoch: Epoch(epoch) }
}

fn batch(epoch: u16, sequence: u64) -> StreamEvent {
    let position = at(epoch, sequence);
    StreamEvent::Batch { position, previous: at(epoch, sequence - 1), bytes: 400 }
}

fn heartbeat(epoch: u16, hops: Option<u8>, age: Duration) -> StreamEvent {
    let mut status = Status::of_primary_member(NodeId(2), Epoch(epoch), at(epoch, 9), age);
    status.hops = hops;
    StreamEvent::Heartbeat(Heartbeat { status, committed: at(epoch, 9), time_ms: 5 })
}

/// Follows node 2 on stream 1 from `durable`.
fn following(durable: Position) -> Receiver {
    let mut receiver = receiver(durable);
    let actions = step(&mut receiver, 0, source(2, true));
    assert_eq!(actions, [ReceiverAction::Connect { stream: 1, source: NodeId(2), from: durable }]);
    assert_eq!(step(&mut receiver, 1, ReceiverEvent::Stream(1, connected(1))), []);
    assert_eq!(receiver.phase(), ReceiverPhase::Following);
    receiver
}

#[test]
fn a_batch_is_persisted_and_only_then_reported() {
    let mut receiver = following(at(1, 5));
    let actions = step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    assert_eq!(actions, [ReceiverAction::Persist { position: at(1, 6) }]);
    assert_eq!(receiver.durable(), at(1, 5));
    let actions = step(&mut receiver, 3, ReceiverEvent::Persisted { position: at(1, 6) });
    assert_eq!(actions, [ReceiverAction::ReportDurable { stream: 1, position: at(1, 6) }]);
}

#[test]
fn a_duplicate_is_skipped_and_a_gap_starts_over_from_the_durable_position() {
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    assert_eq!(step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6))), []);
    assert_eq!(
        step(&mut receiver, 3, ReceiverEvent::Stream(1, batch(1, 8))),
        [
            ReceiverAction::CloseStream { stream: 1 },
            ReceiverAction::SourceFailed { source: NodeId(2), reason: FailureReason::Gap },
        ]
    );
    // Batch 6 is still on its way to the disk: it will come again, and be skipped.
    let actions = step(&mut receiver, 100, ReceiverEvent::Tick);
    assert_eq!(actions, [ReceiverAction::Connect { stream: 2, source: NodeId(2), from: at(1, 5) }]);
    step(&mut receiver, 101, ReceiverEvent::Stream(2, connected(1)));
    assert_eq!(step(&mut receiver, 102, ReceiverEvent::Stream(2, batch(1, 6))), []);
    let actions = step(&mut receiver, 102, ReceiverEvent::Stream(2, batch(1, 7)));
    assert_eq!(actions, [ReceiverAction::Persist { position: at(1, 7) }]);
}

#[test]
fn what_became_durable_between_two_streams_is_reported_on_the_second() {
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    step(&mut receiver, 3, ReceiverEvent::Stream(1, StreamEvent::Closed));
    let actions = step(&mut receiver, 100, ReceiverEvent::Tick);
    assert_eq!(actions, [ReceiverAction::Connect { stream: 2, source: NodeId(2), from: at(1, 5) }]);
    assert_eq!(step(&mut receiver, 101, ReceiverEvent::Persisted { position: at(1, 6) }), []);
    let actions = step(&mut receiver, 102, ReceiverEvent::Stream(2, connected(1)));
    assert_eq!(actions, [ReceiverAction::ReportDurable { stream: 2, position: at(1, 6) }]);
    assert_eq!(step(&mut receiver, 103, ReceiverEvent::Stream(2, batch(1, 6))), []);
}

#[test]
fn what_arrives_late_on_an_old_stream_is_ignored() {
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 3, ReceiverEvent::Stream(1, StreamEvent::Closed));
    step(&mut receiver, 100, ReceiverEvent::Tick);
    assert_eq!(step(&mut receiver, 101, ReceiverEvent::Stream(1, batch(1, 6))), []);
}

#[test]
fn a_full_buffer_stops_reading_and_is_no_silence_of_the_source() {
    let mut receiver = following(at(1, 5));
    for sequence in 6..=8 {
        assert!(receiver.wants_more());
        step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, sequence)));
    }
    assert!(!receiver.wants_more());
    assert_eq!(step(&mut receiver, 60_000, ReceiverEvent::Tick), []);
    step(&mut receiver, 60_000, ReceiverEvent::Persisted { position: at(1, 8) });
    assert!(receiver.wants_more());
    assert_eq!(step(&mut receiver, 60_001, ReceiverEvent::Tick), []);
}

#[test]
fn silence_is_given_up_and_the_backoff_doubles_up_to_its_bound() {
    let mut receiver = following(at(1, 5));
    let actions = step(&mut receiver, 1501, ReceiverEvent::Tick);
    assert!(actions.contains(&ReceiverAction::SourceFailed {
        source: NodeId(2),
        reason: FailureReason::Idle
    }));
    let mut failed_at = 1501;
    let mut waits = Vec::new();
    for stream in 2..10 {
        let retry = (failed_at..failed_at + 99_999)
            .find(|&ms| !step(&mut receiver, ms, ReceiverEvent::Tick).is_empty())
            .unwrap();
        waits.push(retry - failed_at);
        step(&mut receiver, retry, ReceiverEvent::Stream(stream, StreamEvent::Closed));
        failed_at = retry;
    }
    assert_eq!(waits, [50, 100, 200, 400, 800, 1600, 2500, 2500]);
}

#[test]
fn a_node_is_a_relay_while_it_hears_a_primary_member() {
    let mut receiver = following(at(1, 5));
    assert_eq!(receiver.status(MS, NodeId(10)).hops, None);
    step(
        &mut receiver,
        2,
        ReceiverEvent::Stream(1, heartbeat(1, Some(0), Duration::from_secs(60))),
    );
    assert_eq!(receiver.status(MS * 2, NodeId(10)).hops, Some(1));
    assert_eq!(receiver.status(MS * 3002, NodeId(10)).hops, Some(1));
    assert_eq!(receiver.status(MS * 3003, NodeId(10)).hops, None);

    // A follower passes the age on.
    step(&mut receiver, 2, source(11, false));
    assert_eq!(receiver.status(MS * 2, NodeId(10)).hops, None);
    step(&mut receiver, 60, ReceiverEvent::Tick);
    step(&mut receiver, 60, ReceiverEvent::Stream(2, connected(1)));
    step(&mut receiver, 60, ReceiverEvent::Stream(2, heartbeat(1, Some(1), MS * 2900)));
    assert_eq!(receiver.status(MS * 60, NodeId(10)).hops, Some(2));
    assert_eq!(receiver.status(MS * 161, NodeId(10)).hops, None);
}

/// An operator reads these, and the driver hangs its reading on them.
#[test]
fn what_is_not_durable_is_counted_and_reading_stops_at_either_bound() {
    let config = ReceiverConfig {
        max_unpersisted_bytes: 800,
        max_unpersisted_batches: 3,
        ..ReceiverConfig::default()
    };
    let mut receiver = Receiver::new(config, Duration::ZERO, at(1, 5), Epoch(1), Position::ZERO);
    step(&mut receiver, 0, source(2, true));
    step(&mut receiver, 1, ReceiverEvent::Stream(1, connected(1)));
    let mut take = |sequence, bytes| {
        let event =
            StreamEvent::Batch { position: at(1, sequence), previous: at(1, sequence - 1), bytes };
        step(&mut receiver, 2, ReceiverEvent::Stream(1, event));
        (receiver.unpersisted_bytes(), receiver.wants_more())
    };
    assert_eq!([take(6, 400), take(7, 400)], [(400, true), (800, false)]);
    step(&mut receiver, 3, ReceiverEvent::Persisted { position: at(1, 7) });
    let mut take = |sequence, bytes| {
        let event =
            StreamEvent::Batch { position: at(1, sequence), previous: at(1, sequence - 1), bytes };
        step(&mut receiver, 4, ReceiverEvent::Stream(1, event));
        (receiver.unpersisted_bytes(), receiver.wants_more())
    };
    assert_eq!([take(8, 1), take(9, 1), take(10, 1)], [(1, true), (2, true), (3, false)]);
}

#[test]
fn the_newest_commit_that_was_heard_of_is_known_and_an_older_one_changes_nothing() {
    let mut receiver = following(at(1, 5));
    assert_eq!(receiver.committed(), None);
    let mut hear = |sequence, time_ms| {
        let status =
            Status::of_primary_member(NodeId(2), Epoch(1), at(1, sequence), Duration::ZERO);
        let heartbeat = Heartbeat { status, committed: at(1, sequence), time_ms };
        step(&mut receiver, 2, ReceiverEvent::Stream(1, StreamEvent::Heartbeat(heartbeat)));
        receiver.committed().map(|commit| (commit.position, commit.time_ms))
    };
    assert_eq!(hear(9, 50), Some((at(1, 9), 50)));
    assert_eq!(hear(8, 60), Some((at(1, 9), 50)));
    // The same again says that nothing newer is known at a later time.
    assert_eq!(hear(9, 70), Some((at(1, 9), 70)));
}

#[test]
fn what_lies_outside_the_history_of_the_epoch_is_refused_though_it_would_follow() {
    let mut receiver = receiver(at(1, 4));
    step(&mut receiver, 0, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 5) });
    step(&mut receiver, 0, source(2, true));
    // The new epoch begins behind the base, the old one ends there, and a later one is not known.
    for (stream, position) in (1..).zip([at(2, 5), at(3, 5)]) {
        let now = 10_000 * (u32::try_from(stream).unwrap() - 1);
        step(&mut receiver, now, ReceiverEvent::Tick);
        step(&mut receiver, now, ReceiverEvent::Stream(stream, connected(2)));
        let event = StreamEvent::Batch { position, previous: at(1, 4), bytes: 1 };
        let actions = step(&mut receiver, now, ReceiverEvent::Stream(stream, event));
        assert!(
            actions.contains(&ReceiverAction::SourceFailed {
                source: NodeId(2),
                reason: FailureReason::WrongEpoch
            }),
            "{position}: {actions:?}"
        );
    }
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    // In the place of a batch that is here already, and of another epoch.
    step(&mut receiver, 3, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 6) });
    step(&mut receiver, 3, ReceiverEvent::Stream(2, connected(2)));
    let event = StreamEvent::Batch { position: at(2, 6), previous: at(1, 5), bytes: 1 };
    let actions = step(&mut receiver, 4, ReceiverEvent::Stream(2, event));
    assert!(actions.contains(&ReceiverAction::SourceFailed {
        source: NodeId(2),
        reason: FailureReason::WrongEpoch
    }));
}

/// A source whose log is another has another batch before the next one.
#[test]
fn a_batch_is_taken_only_behind_the_very_batch_that_is_here() {
    let refused = |receiver: &mut Receiver, stream, position, previous| {
        let event = StreamEvent::Batch { position, previous, bytes: 1 };
        let actions = step(receiver, 5, ReceiverEvent::Stream(stream, event));
        actions.contains(&ReceiverAction::SourceFailed {
            source: NodeId(2),
            reason: FailureReason::Gap,
        })
    };
    // Of an epoch that was lost, or none, or a batch that is not next.
    for (position, previous) in [(at(1, 6), at(0, 5)), (at(1, 6), at(1, 4)), (at(1, 7), at(1, 5))] {
        assert!(
            refused(&mut following(at(1, 5)), 1, position, previous),
            "{position} after {previous}"
        );
    }
    // Epochs never go back.
    let mut receiver = receiver(at(2, 7));
    step(&mut receiver, 0, ReceiverEvent::Epoch { epoch: Epoch(3), base: at(2, 10) });
    step(&mut receiver, 0, source(2, true));
    step(&mut receiver, 1, ReceiverEvent::Stream(1, connected(3)));
    assert!(refused(&mut receiver, 1, at(1, 8), at(2, 7)));
}

#[test]
fn a_source_that_does_not_answer_is_given_up() {
    let mut receiver = receiver(at(1, 5));
    step(&mut receiver, 0, source(2, true));
    assert_eq!(step(&mut receiver, 1999, ReceiverEvent::Tick), []);
    assert_eq!(
        step(&mut receiver, 2000, ReceiverEvent::Tick),
        [
            ReceiverAction::CloseStream { stream: 1 },
            ReceiverAction::SourceFailed {
                source: NodeId(2),
                reason: FailureReason::ConnectTimeout
            },
        ]
    );
}

/// A big batch on a narrow link would be begun anew for ever.
#[test]
fn silence_is_borne_for_longer_after_each_failure_until_there_is_progress() {
    let mut receiver = following(at(1, 5));
    let mut now = 1;
    let mut borne = Vec::new();
    for stream in 2..6 {
        let gives_up = (now..now + 99_999)
            .find(|&ms| !step(&mut receiver, ms, ReceiverEvent::Tick).is_empty())
            .unwrap();
        borne.push(gives_up - now);
        now = (gives_up..gives_up + 99_999)
            .find(|&ms| !step(&mut receiver, ms, ReceiverEvent::Tick).is_empty())
            .unwrap();
        step(&mut receiver, now, ReceiverEvent::Stream(stream, connected(1)));
    }
    assert_eq!(borne, [600, 1200, 2400, 3000]);
    step(&mut receiver, now, ReceiverEvent::Stream(5, batch(1, 6)));
    assert_eq!(step(&mut receiver, now + 599, ReceiverEvent::Tick), []);
    assert!(!step(&mut receiver, now + 600, ReceiverEvent::Tick).is_empty());
}

/// Nodes that lost one source do not all come to the next at once.
#[test]
fn attempts_are_spread_over_half_of_their_delay() {
    for (jitter, first, second) in [(0.0, 50, 50), (0.5, 75, 75), (1.0, 100, 100), (7.0, 100, 100)]
    {
        let mut receiver = following(at(1, 5));
        receiver.step(MS * 2, jitter, ReceiverEvent::Stream(1, StreamEvent::Closed));
        assert_eq!(step(&mut receiver, 2 + first - 1, ReceiverEvent::Tick), [], "{jitter}");
        assert_eq!(step(&mut receiver, 2 + first, ReceiverEvent::Tick).len(), 1, "{jitter}");
        // Another source need not wait for as long as the last one has to.
        let mut receiver = following(at(1, 5));
        let mut failed_at = 2;
        for stream in 1..6 {
            step(&mut receiver, failed_at, ReceiverEvent::Stream(stream, StreamEvent::Closed));
            if stream < 5 {
                failed_at = (failed_at..failed_at + 99_999)
                    .find(|&ms| !step(&mut receiver, ms, ReceiverEvent::Tick).is_empty())
                    .unwrap();
            }
        }
        receiver.step(MS * failed_at, jitter, source(3, true));
        assert_eq!(
            step(&mut receiver, failed_at + second - 1, ReceiverEvent::Tick),
            [],
            "{jitter}"
        );
        assert_eq!(
            step(&mut receiver, failed_at + second, ReceiverEvent::Tick).len(),
            1,
            "{jitter}"
        );
    }
}

#[test]
fn a_source_of_a_newer_epoch_is_not_asked_again_at_once() {
    let mut receiver = receiver(at(1, 5));
    step(&mut receiver, 0, source(2, true));
    step(&mut receiver, 1, ReceiverEvent::Stream(1, connected(2)));
    assert_eq!(step(&mut receiver, 50, ReceiverEvent::Tick), []);
    assert_eq!(step(&mut receiver, 51, ReceiverEvent::Tick).len(), 1);
}

#[test]
fn a_snapshot_that_does_not_help_is_not_fetched_again_at_once() {
    let mut receiver = following(at(1, 5));
    let needed =
        |stream| ReceiverEvent::Stream(stream, StreamEvent::SnapshotNeeded { diverged: false });
    let fetch = ReceiverAction::FetchSnapshot { source: NodeId(2), epoch: Epoch(1) };
    assert!(step(&mut receiver, 2, needed(1)).contains(&fetch));
    step(&mut receiver, 3, ReceiverEvent::SnapshotFetched);
    step(&mut receiver, 4, ReceiverEvent::SnapshotInstalled { position: at(1, 8) });
    step(&mut receiver, 5, ReceiverEvent::Stream(2, connected(1)));
    assert_eq!(step(&mut receiver, 6, needed(2)), [ReceiverAction::CloseStream { stream: 2 }]);
    assert_eq!(step(&mut receiver, 105, ReceiverEvent::Tick), []);
    assert_eq!(step(&mut receiver, 106, ReceiverEvent::Tick), [fetch]);
}

#[test]
fn a_snapshot_that_fails_is_not_tried_again_at_once() {
    for is_fetched in [false, true] {
        let mut receiver = following(at(1, 5));
        step(
            &mut receiver,
            2,
            ReceiverEvent::Stream(1, StreamEvent::SnapshotNeeded { diverged: false }),
        );
        if is_fetched {
            step(&mut receiver, 3, ReceiverEvent::SnapshotFetched);
        }
        step(&mut receiver, 4, ReceiverEvent::SnapshotFailed);
        let retry =
            (5..99_999).find(|&ms| !step(&mut receiver, ms, ReceiverEvent::Tick).is_empty());
        assert_eq!(retry, Some(104));
    }
}

#[test]
fn a_snapshot_of_a_later_epoch_has_the_directory_asked() {
    let mut receiver = following(at(1, 5));
    step(
        &mut receiver,
        2,
        ReceiverEvent::Stream(1, StreamEvent::SnapshotNeeded { diverged: false }),
    );
    step(&mut receiver, 3, ReceiverEvent::SnapshotFetched);
    let actions = step(&mut receiver, 4, ReceiverEvent::SnapshotInstalled { position: at(2, 8) });
    assert!(actions.contains(&ReceiverAction::EpochAhead { epoch: Epoch(2) }), "{actions:?}");
}

#[test]
fn a_node_that_starts_again_within_its_epoch_keeps_what_it_has() {
    for (durable, epoch, base) in
        [(at(2, 9), 2, at(1, 5)), (at(1, 5), 2, at(1, 5)), (at(1, 3), 2, at(1, 5))]
    {
        let mut receiver =
            Receiver::new(ReceiverConfig::default(), Duration::ZERO, durable, Epoch(epoch), base);
        assert!(receiver.may_serve());
        let actions = step(&mut receiver, 0, source(2, true));
        assert_eq!(
            actions,
            [ReceiverAction::Connect { stream: 1, source: NodeId(2), from: durable }]
        );
    }
    let mut receiver =
        Receiver::new(ReceiverConfig::default(), Duration::ZERO, at(1, 6), Epoch(2), at(1, 5));
    assert!(!receiver.may_serve() && receiver.status(MS, NodeId(10)).fetching_snapshot);
    let actions = step(&mut receiver, 0, source(2, true));
    assert_eq!(actions[0], ReceiverAction::SaveOrphans { base: at(1, 5) });
}

/// Of the bases that a node was away for the lowest counts: what lies beyond any of them was lost.
#[test]
fn orphans_are_what_lies_beyond_the_lowest_base() {
    let mut receiver = receiver(at(1, 9));
    step(&mut receiver, 0, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 5) });
    step(&mut receiver, 0, ReceiverEvent::Epoch { epoch: Epoch(3), base: at(2, 7) });
    assert_eq!(
        step(&mut receiver, 0, source(2, true))[0],
        ReceiverAction::SaveOrphans { base: at(1, 5) }
    );
}

#[test]
fn a_sealed_node_is_no_relay_nor_is_a_node_that_needs_a_snapshot() {
    let heard = |receiver: &mut Receiver| {
        step(receiver, 2, ReceiverEvent::Stream(1, heartbeat(1, Some(0), Duration::ZERO)));
        receiver.status(MS * 3, NodeId(10)).hops
    };
    let mut receiver = following(at(1, 5));
    assert_eq!(heard(&mut receiver), Some(1));
    assert!(!receiver.is_sealed());
    step(&mut receiver, 3, ReceiverEvent::Seal { epoch: Epoch(1) });
    assert!(receiver.is_sealed());
    assert_eq!(receiver.status(MS * 3, NodeId(10)).hops, None);
    let mut receiver = following(at(1, 5));
    assert_eq!(heard(&mut receiver), Some(1));
    step(
        &mut receiver,
        3,
        ReceiverEvent::Stream(1, StreamEvent::SnapshotNeeded { diverged: true }),
    );
    let status = receiver.status(MS * 3, NodeId(10));
    assert_eq!((status.hops, status.fetching_snapshot), (None, true));
}

/// Heartbeats may queue behind batches.
#[test]
fn batches_of_a_primary_member_show_that_it_lives_and_those_of_a_relay_do_not() {
    for (hops, later) in [(0, Some(1)), (1, None)] {
        let mut receiver = following(at(1, 5));
        step(&mut receiver, 2, ReceiverEvent::Stream(1, heartbeat(1, Some(hops), Duration::ZERO)));
        step(&mut receiver, 2000, ReceiverEvent::Stream(1, batch(1, 6)));
        assert_eq!(receiver.status(MS * 4000, NodeId(10)).hops, later);
    }
}

#[test]
fn the_silence_of_a_source_counts_from_when_the_disk_had_caught_up() {
    let mut receiver = following(at(1, 5));
    for sequence in 6..=8 {
        step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, sequence)));
    }
    step(&mut receiver, 60_000, ReceiverEvent::Persisted { position: at(1, 8) });
    assert_eq!(step(&mut receiver, 60_599, ReceiverEvent::Tick), []);
    assert!(!step(&mut receiver, 60_600, ReceiverEvent::Tick).is_empty());
    // A disk that keeps up is no word of the source.
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    step(&mut receiver, 500, ReceiverEvent::Persisted { position: at(1, 6) });
    assert!(!step(&mut receiver, 602, ReceiverEvent::Tick).is_empty());
}
