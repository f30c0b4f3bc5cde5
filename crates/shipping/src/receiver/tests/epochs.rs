//! Effects of an epoch's end, and of the next epoch's snapshot, on a receiver.

use super::*;

#[test]
fn a_source_of_an_older_epoch_is_refused() {
    let mut receiver = receiver(at(1, 5));
    step(&mut receiver, 0, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 5) });
    step(&mut receiver, 0, source(2, true));
    let actions = step(&mut receiver, 1, ReceiverEvent::Stream(1, connected(1)));
    assert!(actions.contains(&ReceiverAction::SourceFailed {
        source: NodeId(2),
        reason: FailureReason::WrongEpoch
    }));
}

#[test]
fn a_source_of_a_newer_epoch_is_told_and_followed_once_the_directory_agrees() {
    let mut receiver = receiver(at(1, 5));
    step(&mut receiver, 0, source(2, true));
    let actions = step(&mut receiver, 1, ReceiverEvent::Stream(1, connected(2)));
    assert_eq!(
        actions,
        [ReceiverAction::CloseStream { stream: 1 }, ReceiverAction::EpochAhead { epoch: Epoch(2) }]
    );
    let actions = step(&mut receiver, 2, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 7) });
    assert_eq!(actions, [ReceiverAction::Connect { stream: 2, source: NodeId(2), from: at(1, 5) }]);
    step(&mut receiver, 3, ReceiverEvent::Stream(2, connected(2)));
    for (position, previous) in [(at(1, 6), at(1, 5)), (at(1, 7), at(1, 6)), (at(2, 8), at(1, 7))] {
        let event = StreamEvent::Batch { position, previous, bytes: 1 };
        let actions = step(&mut receiver, 4, ReceiverEvent::Stream(2, event));
        assert_eq!(actions, [ReceiverAction::Persist { position }]);
    }
}

#[test]
fn a_batch_of_the_old_epoch_beyond_the_base_is_refused() {
    let mut receiver = receiver(at(1, 5));
    step(&mut receiver, 0, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 5) });
    step(&mut receiver, 0, source(2, true));
    step(&mut receiver, 1, ReceiverEvent::Stream(1, connected(2)));
    let actions = step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    assert!(actions.contains(&ReceiverAction::SourceFailed {
        source: NodeId(2),
        reason: FailureReason::WrongEpoch
    }));
}

#[test]
fn orphans_are_saved_and_replaced_once_the_disk_is_quiet() {
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    // The failover kept only 5. Batch 6 is on its way to the disk.
    let actions = step(&mut receiver, 3, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 5) });
    assert_eq!(actions, [ReceiverAction::CloseStream { stream: 1 }]);
    let actions = step(&mut receiver, 4, ReceiverEvent::Persisted { position: at(1, 6) });
    let expected = [
        ReceiverAction::SaveOrphans { base: at(1, 5) },
        ReceiverAction::FetchSnapshot { source: NodeId(2), epoch: Epoch(2) },
    ];
    assert_eq!(actions, expected);
    assert!(receiver.status(MS * 5, NodeId(10)).fetching_snapshot);
    let actions = step(&mut receiver, 9, ReceiverEvent::SnapshotInstalled { position: at(2, 8) });
    assert_eq!(actions, [ReceiverAction::Connect { stream: 2, source: NodeId(2), from: at(2, 8) }]);
}

#[test]
fn a_snapshot_that_fails_is_tried_again_elsewhere() {
    let mut receiver = following(at(1, 5));
    let actions = step(
        &mut receiver,
        2,
        ReceiverEvent::Stream(1, StreamEvent::SnapshotNeeded { diverged: false }),
    );
    assert_eq!(
        actions,
        [
            ReceiverAction::CloseStream { stream: 1 },
            ReceiverAction::FetchSnapshot { source: NodeId(2), epoch: Epoch(1) }
        ]
    );
    let actions = step(&mut receiver, 3, ReceiverEvent::SnapshotFailed);
    assert_eq!(
        actions,
        [ReceiverAction::SourceFailed { source: NodeId(2), reason: FailureReason::Snapshot }]
    );
    step(&mut receiver, 4, source(3, true));
    assert_eq!(
        step(&mut receiver, 60, ReceiverEvent::Tick),
        [ReceiverAction::FetchSnapshot { source: NodeId(3), epoch: Epoch(1) }]
    );
}

#[test]
fn a_sealed_node_reports_its_final_position_and_waits_for_the_next_epoch() {
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 2, ReceiverEvent::Stream(1, batch(1, 6)));
    assert_eq!(
        step(&mut receiver, 3, ReceiverEvent::Seal { epoch: Epoch(1) }),
        [ReceiverAction::CloseStream { stream: 1 }]
    );
    assert_eq!(step(&mut receiver, 3, ReceiverEvent::Stream(1, batch(1, 7))), []);
    let actions = step(&mut receiver, 4, ReceiverEvent::Persisted { position: at(1, 6) });
    assert_eq!(actions, [ReceiverAction::Sealed { durable: at(1, 6) }]);
    assert_eq!(step(&mut receiver, 9000, ReceiverEvent::Tick), []);
    assert!(!receiver.may_serve());
    let actions =
        step(&mut receiver, 9001, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 6) });
    assert_eq!(actions, [ReceiverAction::Connect { stream: 2, source: NodeId(2), from: at(1, 6) }]);
    // A seal that comes late is of no effect.
    assert_eq!(step(&mut receiver, 9002, ReceiverEvent::Seal { epoch: Epoch(1) }), []);
    assert_eq!(receiver.phase(), ReceiverPhase::Subscribing);
}

#[test]
fn a_new_epoch_cancels_a_snapshot_of_the_old_one() {
    let mut receiver = following(at(1, 5));
    step(
        &mut receiver,
        2,
        ReceiverEvent::Stream(1, StreamEvent::SnapshotNeeded { diverged: false }),
    );
    let actions = step(&mut receiver, 3, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 9) });
    assert_eq!(actions, [ReceiverAction::CancelSnapshot]);
    // Too late, and what was installed goes beyond the base: it is replaced again.
    let actions = step(&mut receiver, 4, ReceiverEvent::SnapshotInstalled { position: at(1, 11) });
    let expected = [
        ReceiverAction::SaveOrphans { base: at(1, 9) },
        ReceiverAction::FetchSnapshot { source: NodeId(2), epoch: Epoch(2) },
    ];
    assert_eq!(actions, expected);
}

#[test]
fn what_is_being_installed_is_not_cancelled() {
    let mut receiver = following(at(1, 5));
    step(
        &mut receiver,
        2,
        ReceiverEvent::Stream(1, StreamEvent::SnapshotNeeded { diverged: false }),
    );
    assert_eq!(step(&mut receiver, 3, ReceiverEvent::SnapshotFetched), []);
    assert_eq!(
        step(&mut receiver, 4, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 9) }),
        []
    );
    assert_eq!(step(&mut receiver, 5, ReceiverEvent::Seal { epoch: Epoch(2) }), []);
    assert!(receiver.status(MS * 5, NodeId(10)).fetching_snapshot);
    // The seal is answered when the disk is quiet.
    let actions = step(&mut receiver, 6, ReceiverEvent::SnapshotInstalled { position: at(1, 8) });
    assert_eq!(actions, [ReceiverAction::Sealed { durable: at(1, 8) }]);
}

#[test]
fn a_snapshot_that_is_given_up_for_a_new_epoch_is_no_fault_of_its_source() {
    let mut receiver = following(at(1, 5));
    step(
        &mut receiver,
        2,
        ReceiverEvent::Stream(1, StreamEvent::SnapshotNeeded { diverged: false }),
    );
    let actions = step(&mut receiver, 3, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 9) });
    assert_eq!(actions, [ReceiverAction::CancelSnapshot]);
    assert_eq!(step(&mut receiver, 4, ReceiverEvent::SnapshotFetched), []);
    let actions = step(&mut receiver, 5, ReceiverEvent::SnapshotFailed);
    assert_eq!(actions, [ReceiverAction::FetchSnapshot { source: NodeId(2), epoch: Epoch(2) }]);
}

#[test]
fn a_sealed_node_that_was_drained_says_so_and_goes_on_from_there() {
    let mut receiver = following(at(1, 5));
    let actions = step(&mut receiver, 2, ReceiverEvent::Seal { epoch: Epoch(1) });
    assert_eq!(
        actions,
        [ReceiverAction::CloseStream { stream: 1 }, ReceiverAction::Sealed { durable: at(1, 5) }]
    );
    let actions = step(&mut receiver, 3, ReceiverEvent::Drained { position: at(1, 9) });
    assert_eq!(actions, [ReceiverAction::Sealed { durable: at(1, 9) }]);
    let actions = step(&mut receiver, 4, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 9) });
    assert_eq!(actions, [ReceiverAction::Connect { stream: 2, source: NodeId(2), from: at(1, 9) }]);
}

#[test]
fn a_seal_that_comes_late_does_not_loosen_a_later_one() {
    let mut receiver = following(at(1, 5));
    step(&mut receiver, 2, ReceiverEvent::Seal { epoch: Epoch(2) });
    step(&mut receiver, 3, ReceiverEvent::Seal { epoch: Epoch(1) });
    assert_eq!(
        step(&mut receiver, 4, ReceiverEvent::Epoch { epoch: Epoch(2), base: at(1, 5) }),
        []
    );
    assert_eq!(receiver.phase(), ReceiverPhase::Sealed);
}
