use std::sync::Arc;

use futures::future::join_all;
use meridian_proto::shard::Turn;
use parking_lot::Mutex;

use super::*;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

#[test]
fn a_moment_is_never_later_on_the_other_clock() {
    let sample = |shown: u64, received: u64| Sample {
        clock: wire::ProcessTime { process: 9, millis: shown },
        received: ms(received),
    };
    // The node's clock showed 5,000 when it answered, at 100 here; it was here at 190.
    let translated = sample(5_000, 190).translate(ms(1_190), ms(200)).unwrap();
    assert_eq!(translated.process, 9);
    assert!(translated.millis <= 5_000 + 1_190 - 100 && translated.millis >= 5_900, "{translated:?}");
    // What is over is over there, too.
    assert!(sample(5_000, 1_000).translate(ms(400), ms(1_000)).unwrap().millis < 4_500);
    assert_eq!(sample(0, 1_000).translate(ms(400), ms(1_000)).unwrap().millis, 0);
    // What was said long ago says nothing.
    let later = ms(190) + CLOCK_KNOWN_FOR + ms(1);
    assert!(sample(5_000, 190).translate(later + ms(1), later).is_none());
}

#[test]
fn only_a_moment_of_this_process_is_understood() {
    let now = clock();
    assert_eq!(valid_until(Some(now)), Some(ms(now.millis)));
    assert_eq!(valid_until(Some(wire::ProcessTime { process: now.process ^ 1, ..now })), None);
    assert_eq!(valid_until(None), None);
}

/// Takes turns as they come, in that order, and returns the order in which they were let by.
async fn passed(numbers: &[u64]) -> Vec<u64> {
    let (turns, passed) = (Arc::new(Turns::default()), Arc::new(Mutex::new(Vec::new())));
    let tasks = numbers.iter().map(|number| {
        let (turns, passed, turn) =
            (Arc::clone(&turns), Arc::clone(&passed), Turn { sender: 1, number: *number, bytes_ahead: 0 });
        async move {
            let place = turns.wait(turn).await;
            passed.lock().push(turn.number);
            drop(place);
        }
    });
    join_all(tasks).await;
    Arc::into_inner(passed).unwrap().into_inner()
}

#[tokio::test]
async fn who_overtook_waits_for_those_before_and_for_none_that_never_comes() {
    assert_eq!(passed(&[3, 2, 5, 1, 4]).await, [1, 2, 3, 4, 5]);
    // 2 was given up on its way: those behind it go on, at about the same time.
    let mut after_a_gap = passed(&[1, 4, 3]).await;
    after_a_gap.sort_unstable();
    assert_eq!(after_a_gap, [1, 3, 4]);
}

#[tokio::test]
async fn a_large_write_is_waited_for_by_a_small_one_that_overtook_it_on_the_way() {
    let (turns, passed) = (Turns::default(), Mutex::new(Vec::new()));
    let let_by = async |number, bytes_ahead, travels: Duration| {
        tokio::time::sleep(travels).await;
        let place = turns.wait(Turn { sender: 1, number, bytes_ahead }).await;
        passed.lock().push(number);
        drop(place);
    };
    // Larger than any wait: whatever runs how fast here, the first is the first to wake up.
    tokio::join!(let_by(2, u64::MAX, Duration::ZERO), let_by(1, 0, ms(50)));
    assert_eq!(*passed.lock(), [1, 2]);
}

#[tokio::test]
async fn a_turn_says_what_is_under_way_before_it() {
    let topology = crate::topology::Topology::dev(&[3], |node| format!("127.0.0.1:{node}"), |_| None).unwrap();
    let calls = WriteCalls::new(Arc::new(PeerChannels::new(&topology, Arc::new(|_| None)).unwrap()));
    let next = |bytes| calls.next_turn(1, ShardId(1), bytes);
    let (first, second) = (next(800_000), next(50));
    assert_eq!((first.turn.bytes_ahead, second.turn.bytes_ahead), (0, 800_000));
    drop(first);
    assert_eq!((next(1).turn.bytes_ahead, calls.next_turn(2, ShardId(1), 1).turn.bytes_ahead), (50, 0));
}
