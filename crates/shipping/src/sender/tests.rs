use super::*;

const MS: Duration = Duration::from_millis(1);

fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

fn size(epoch: u16, sequence: u64, bytes: u64) -> BatchSize {
    BatchSize { position: at(epoch, sequence), bytes }
}

fn small_window() -> SenderConfig {
    SenderConfig {
        window_bytes: 1000,
        max_read_bytes: 600,
        pace: Duration::ZERO,
        ..SenderConfig::default()
    }
}

fn tail(purged: Position, available: Position) -> SenderEvent {
    SenderEvent::LogTail { purged, available }
}

#[test]
fn it_reads_and_sends_until_the_window_is_full_and_goes_on_when_acknowledged() {
    let mut sender = Sender::new(small_window(), Duration::ZERO, Epoch(1), at(1, 0));
    let actions = sender.step(Duration::ZERO, tail(at(1, 0), at(1, 9)));
    assert_eq!(
        actions,
        [SenderAction::Read { after: at(1, 0), max_bytes: 600 }, SenderAction::Heartbeat]
    );

    let batches = vec![size(1, 1, 300), size(1, 2, 300)];
    let actions = sender.step(MS, SenderEvent::Read { previous: at(1, 0), batches });
    assert_eq!(
        actions,
        [
            SenderAction::Send { position: at(1, 1), previous: at(1, 0) },
            SenderAction::Send { position: at(1, 2), previous: at(1, 1) },
            SenderAction::Read { after: at(1, 2), max_bytes: 400 },
        ]
    );

    let actions =
        sender.step(MS, SenderEvent::Read { previous: at(1, 2), batches: vec![size(1, 3, 500)] });
    assert_eq!(actions, [SenderAction::Send { position: at(1, 3), previous: at(1, 2) }]);
    assert_eq!(sender.in_flight_bytes(), 1100);

    let actions = sender.step(MS, SenderEvent::Acked { durable: at(1, 2) });
    assert_eq!(actions, [SenderAction::Read { after: at(1, 3), max_bytes: 500 }]);
    assert_eq!(sender.acked(), at(1, 2));
}

#[test]
fn what_comes_soon_after_travels_together() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(1, 0));
    let reads = |actions: &[SenderAction]| {
        actions.iter().any(|action| matches!(action, SenderAction::Read { .. }))
    };
    assert!(reads(&sender.step(MS, tail(at(1, 0), at(1, 1)))), "one alone goes at once");
    assert_eq!(sender.reads_at(), None);
    sender.step(MS, SenderEvent::Read { previous: at(1, 0), batches: vec![size(1, 1, 100)] });
    for sequence in 2..9 {
        assert!(!reads(&sender.step(MS * 2, tail(at(1, 0), at(1, sequence)))));
    }
    assert_eq!(sender.reads_at(), Some(MS * 11));
    assert!(!reads(&sender.step(MS * 10, SenderEvent::Tick)));
    assert!(reads(&sender.step(MS * 11, SenderEvent::Tick)));
}

#[test]
fn idle_it_beats_four_times_a_second() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(1, 5));
    assert_eq!(sender.step(Duration::ZERO, tail(at(1, 0), at(1, 5))), [SenderAction::Heartbeat]);
    let beats = (1..=1000).flat_map(|ms| sender.step(MS * ms, SenderEvent::Tick)).count();
    assert_eq!(beats, 4);
    // And a tick at the time that it names is never in vain.
    for beat in 5..8 {
        assert_eq!(sender.heartbeat_at(), MS * 250 * beat);
        assert_eq!(
            sender.step(sender.heartbeat_at(), SenderEvent::Tick),
            [SenderAction::Heartbeat]
        );
    }
}

#[test]
fn a_purged_position_needs_a_snapshot() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(1, 5));
    let actions = sender.step(Duration::ZERO, tail(at(1, 6), at(1, 9)));
    assert_eq!(actions, [SenderAction::SnapshotNeeded { diverged: false }]);
    assert_eq!(sender.step(MS * 500, SenderEvent::Tick), []);
}

#[test]
fn a_purge_that_overtakes_a_read_needs_a_snapshot() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(1, 5));
    sender.step(Duration::ZERO, tail(at(1, 0), at(1, 9)));
    assert_eq!(
        sender.step(MS, SenderEvent::ReadMissing),
        [SenderAction::SnapshotNeeded { diverged: false }]
    );
}

#[test]
fn a_subscriber_that_holds_an_orphan_is_found_by_the_first_read() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(3), at(1, 105));
    sender.step(Duration::ZERO, tail(at(1, 0), at(3, 200)));
    let event = SenderEvent::Read { previous: at(2, 105), batches: vec![size(2, 106, 10)] };
    assert_eq!(sender.step(MS, event), [SenderAction::SnapshotNeeded { diverged: true }]);
}

#[test]
fn a_subscriber_ahead_in_an_older_epoch_has_diverged() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(2), at(1, 105));
    let actions = sender.step(Duration::ZERO, tail(at(1, 0), at(2, 103)));
    assert_eq!(actions, [SenderAction::SnapshotNeeded { diverged: true }]);
}

#[test]
fn a_subscriber_ahead_in_the_same_epoch_is_waited_for() {
    // The source is a slow follower.
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(1, 7));
    assert_eq!(sender.step(Duration::ZERO, tail(at(1, 0), at(1, 5))), [SenderAction::Heartbeat]);
    let actions = sender.step(MS, tail(at(1, 0), at(1, 8)));
    assert!(matches!(actions.as_slice(), [SenderAction::Read { after, .. }] if *after == at(1, 7)));
}

#[test]
fn a_subscriber_of_a_later_epoch_is_turned_away() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(2, 7));
    let actions = sender.step(Duration::ZERO, SenderEvent::Tick);
    assert_eq!(actions, [SenderAction::Close { reason: CloseReason::SubscriberAhead }]);
}

#[test]
fn an_acknowledgement_beyond_what_was_sent_skips_what_the_subscriber_has() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(1, 0));
    sender.step(Duration::ZERO, tail(at(1, 0), at(1, 9)));
    sender.step(MS, SenderEvent::Acked { durable: at(1, 2) });
    let batches = vec![size(1, 1, 10), size(1, 2, 10), size(1, 3, 10)];
    let actions = sender.step(MS, SenderEvent::Read { previous: at(1, 0), batches });
    assert_eq!(actions[0], SenderAction::Send { position: at(1, 3), previous: at(1, 2) });
}

#[test]
fn a_new_epoch_closes_and_a_stalled_subscriber_is_let_go() {
    let mut sender = Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(1), at(1, 0));
    let actions = sender.step(Duration::ZERO, SenderEvent::EpochChanged);
    assert_eq!(actions, [SenderAction::Close { reason: CloseReason::EpochChanged }]);

    let mut sender = Sender::new(small_window(), Duration::ZERO, Epoch(1), at(1, 0));
    sender.step(Duration::ZERO, tail(at(1, 0), at(1, 9)));
    sender.step(MS, SenderEvent::Read { previous: at(1, 0), batches: vec![size(1, 1, 2000)] });
    let actions = sender.step(Duration::from_secs(31), SenderEvent::Tick);
    assert_eq!(actions, [SenderAction::Close { reason: CloseReason::Stalled }]);
}

#[test]
fn a_window_that_is_exactly_full_is_full() {
    let mut sender = Sender::new(small_window(), Duration::ZERO, Epoch(1), at(1, 0));
    sender.step(Duration::ZERO, tail(at(1, 0), at(1, 9)));
    let batches = vec![size(1, 1, 500), size(1, 2, 500)];
    let actions = sender.step(MS, SenderEvent::Read { previous: at(1, 0), batches });
    assert!(
        actions.iter().all(|action| matches!(action, SenderAction::Send { .. })),
        "{actions:?}"
    );
    assert_eq!((sender.sent(), sender.reads_at()), (at(1, 2), None));
    // It stalls from when it was full.
    assert_eq!(sender.step(MS * 30_000, SenderEvent::Tick), [SenderAction::Heartbeat]);
    let actions = sender.step(MS * 30_001, SenderEvent::Tick);
    assert_eq!(actions, [SenderAction::Close { reason: CloseReason::Stalled }]);
    assert_eq!(sender.reads_at(), None, "nothing is read for a stream that has ended");
}

#[test]
fn an_idle_subscriber_is_kept_and_what_it_is_sent_later_has_its_time() {
    let mut sender = Sender::new(small_window(), Duration::ZERO, Epoch(1), at(1, 0));
    sender.step(Duration::ZERO, tail(at(1, 0), at(1, 0)));
    assert_eq!(sender.step(MS * 60_000, SenderEvent::Tick), [SenderAction::Heartbeat]);
    sender.step(MS * 60_000, tail(at(1, 0), at(1, 1)));
    sender.step(
        MS * 60_000,
        SenderEvent::Read { previous: at(1, 0), batches: vec![size(1, 1, 2000)] },
    );
    assert_eq!(sender.step(MS * 89_999, SenderEvent::Tick), [SenderAction::Heartbeat]);
    // A subscriber that gets on is not let go, however slowly.
    sender.step(MS * 89_999, tail(at(1, 0), at(1, 2)));
    sender.step(MS * 89_999, SenderEvent::Acked { durable: at(1, 1) });
    sender.step(
        MS * 89_999,
        SenderEvent::Read { previous: at(1, 1), batches: vec![size(1, 2, 2000)] },
    );
    assert_eq!(sender.step(MS * 119_998, SenderEvent::Tick), [SenderAction::Heartbeat]);
}

/// They take memory all the same.
#[test]
fn batches_without_bytes_fill_a_window_too() {
    let mut sender = Sender::new(small_window(), Duration::ZERO, Epoch(1), at(1, 0));
    sender.step(Duration::ZERO, tail(at(1, 0), at(1, 99)));
    let batches = (1..=16).map(|sequence| size(1, sequence, 0)).collect();
    let actions = sender.step(MS, SenderEvent::Read { previous: at(1, 0), batches });
    assert_eq!((actions.len(), sender.in_flight_bytes()), (16, 1024));
}

#[test]
fn a_subscriber_of_another_epoch_at_either_end_of_the_log_has_diverged() {
    let diverged = [SenderAction::SnapshotNeeded { diverged: true }];
    let step = |from, purged, available| {
        Sender::new(SenderConfig::default(), Duration::ZERO, Epoch(3), from)
            .step(Duration::ZERO, tail(purged, available))
    };
    assert_eq!(step(at(1, 105), at(2, 105), at(3, 200)), diverged);
    assert_eq!(step(at(1, 200), at(2, 105), at(3, 200)), diverged);
    assert_eq!(step(at(3, 200), at(2, 105), at(3, 200)), [SenderAction::Heartbeat]);
    let actions = step(at(2, 105), at(2, 105), at(3, 200));
    assert!(matches!(actions[0], SenderAction::Read { .. }), "{actions:?}");
    // In between, only the log can tell.
    let actions = step(at(1, 150), at(2, 105), at(3, 200));
    assert!(matches!(actions[0], SenderAction::Read { .. }), "{actions:?}");
}

#[test]
fn what_is_acknowledged_late_or_twice_changes_nothing() {
    let mut sender = Sender::new(small_window(), Duration::ZERO, Epoch(1), at(1, 0));
    sender.step(Duration::ZERO, tail(at(1, 0), at(1, 3)));
    let batches = vec![size(1, 1, 300), size(1, 2, 300), size(1, 3, 300)];
    sender.step(MS, SenderEvent::Read { previous: at(1, 0), batches });
    for (durable, in_flight) in [(2, 300), (1, 300), (2, 300), (3, 0)] {
        sender.step(MS, SenderEvent::Acked { durable: at(1, durable) });
        assert_eq!(sender.in_flight_bytes(), in_flight);
    }
    assert_eq!((sender.acked(), sender.sent()), (at(1, 3), at(1, 3)));
}
