//! The order of writes that come by calls of their own, which overtake one another on their way
//! through threads.

use std::collections::HashMap;
use std::time::Duration;

use meridian_proto::shard::Turn;
use parking_lot::Mutex;
use tokio::sync::watch;

/// For the one before to come. Writes sent in order over one connection come together, but a
/// connection carries several at a time, and a small one overtakes a large one by as much as that
/// takes longer. A longer wait would hold up the writes behind a try that was given up.
const WAIT: Duration = Duration::from_millis(5);
/// The rate of a slow link, 100 Mbit/s.
const BYTES_PER_SECOND: f64 = 12.5e6;
/// However many bytes are said to be ahead. A part of the time that a write may wait at a leader.
const MAX_WAIT: Duration = Duration::from_millis(300);
/// Beyond so many senders, all are forgotten: a sender in the middle of something is out of order
/// once.
const MAX_SENDERS: usize = 4096;

/// Which turns were let by, of each sender.
#[derive(Default)]
pub(crate) struct Turns {
    senders: Mutex<HashMap<u64, watch::Sender<u64>>>,
}

impl Turns {
    /// Waits until all before it were let by, or have not come for a while. To drop what it returns
    /// lets the next one by.
    pub(crate) async fn wait(&self, turn: Turn) -> Place {
        let (passed, mut before) = {
            let mut senders = self.senders.lock();
            if senders.len() >= MAX_SENDERS && !senders.contains_key(&turn.sender) {
                senders.clear();
            }
            let passed =
                senders.entry(turn.sender).or_insert_with(|| watch::Sender::new(0)).clone();
            let before = passed.subscribe();
            (passed, before)
        };
        let place = Place { passed, number: turn.number };
        let turn_has_come = before.wait_for(|passed| passed.saturating_add(1) >= turn.number);
        // If it does not, it goes on all the same.
        drop(tokio::time::timeout(wait(turn.bytes_ahead), turn_has_come).await);
        place
    }
}

fn wait(bytes_ahead: u64) -> Duration {
    let longer =
        Duration::try_from_secs_f64(bytes_ahead as f64 / BYTES_PER_SECOND).unwrap_or(MAX_WAIT);
    WAIT.saturating_add(longer).min(MAX_WAIT)
}

/// A place in the order, held until it is dropped.
pub(crate) struct Place {
    passed: watch::Sender<u64>,
    number: u64,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.passed.send_if_modified(|passed| {
            let later = self.number > *passed;
            *passed = (*passed).max(self.number);
            later
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ahead_is_waited_for_as_long_as_a_slow_link_takes_for_it_up_to_a_bound() {
        assert_eq!(wait(0), WAIT);
        assert_eq!(wait(1_250_000), WAIT + Duration::from_millis(100));
        assert_eq!(wait(u64::MAX), MAX_WAIT);
    }

    #[tokio::test]
    async fn so_many_senders_are_known_at_most_and_one_of_them_is_forgotten_for_none_but_a_new_one()
    {
        let turns = Turns::default();
        let first_of = async |sender: usize| {
            let sender = sender.try_into().unwrap();
            drop(turns.wait(Turn { sender, number: 1, bytes_ahead: 0 }).await);
            turns.senders.lock().len()
        };
        for sender in 1..=MAX_SENDERS {
            assert_eq!(first_of(sender).await, sender);
        }
        assert_eq!(first_of(1).await, MAX_SENDERS);
        assert_eq!(first_of(MAX_SENDERS + 1).await, 1);
    }
}
