//! Sleeping to a tenth of a millisecond.
//!
//! A timer of tokio's is 1 to 2 ms late, which would make a link of 1 ms one of 2 or 3. So one
//! thread of the process, started by the first sleep, keeps a heap of alarms and waits for the
//! first.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::{Arc, LazyLock};
use std::thread;

use parking_lot::{Condvar, Mutex};
use tokio::sync::oneshot;
use tokio::time::Instant;

static TIMER: LazyLock<Option<Arc<Timer>>> = LazyLock::new(Timer::start);

/// Returns when `at` has come, never before. May be dropped at any await; its alarm then rings
/// unheard.
pub(crate) async fn sleep_until(at: Instant) {
    if at <= Instant::now() {
        return;
    }
    let rung = match TIMER.as_ref() {
        Some(timer) => timer.alarm(at).await.is_ok(),
        None => false,
    };
    if !rung {
        tokio::time::sleep_until(at).await;
    }
}

#[derive(Default)]
struct Timer {
    /// At most one for each lane that sleeps, and those that were dropped within the last delay.
    alarms: Mutex<BinaryHeap<Reverse<Alarm>>>,
    sooner: Condvar,
}

impl Timer {
    /// None when no thread can be had; sleeps are tokio's then.
    fn start() -> Option<Arc<Self>> {
        let timer = Arc::new(Self::default());
        let ringing = Arc::clone(&timer);
        let spawned =
            thread::Builder::new().name("wan-timer".to_owned()).spawn(move || ringing.ring());
        match spawned {
            Ok(_) => Some(timer),
            Err(error) => {
                tracing::warn!(%error, "the emulated WAN has no thread for its timer and is less precise");
                None
            }
        }
    }

    fn alarm(&self, at: Instant) -> oneshot::Receiver<()> {
        let (bell, rung) = oneshot::channel();
        let mut alarms = self.alarms.lock();
        let is_first = alarms.peek().is_none_or(|Reverse(first)| at < first.at);
        alarms.push(Reverse(Alarm { at, bell }));
        drop(alarms);
        if is_first {
            self.sooner.notify_one();
        }
        rung
    }

    fn ring(&self) -> ! {
        let mut due = Vec::new();
        let mut alarms = self.alarms.lock();
        loop {
            let now = Instant::now();
            while alarms.peek().is_some_and(|Reverse(first)| first.at <= now) {
                due.extend(alarms.pop());
            }
            if !due.is_empty() {
                // Bells wake other threads: not under the lock.
                parking_lot::MutexGuard::unlocked(&mut alarms, || {
                    for Reverse(alarm) in due.drain(..) {
                        alarm.ring();
                    }
                });
                continue;
            }
            match alarms.peek().map(|Reverse(first)| first.at.into_std()) {
                Some(at) => drop(self.sooner.wait_until(&mut alarms, at)),
                None => self.sooner.wait(&mut alarms),
            }
        }
    }
}

struct Alarm {
    at: Instant,
    bell: oneshot::Sender<()>,
}

impl Alarm {
    fn ring(self) {
        if self.bell.send(()).is_err() {
            // The sleeping task was dropped.
        }
    }
}

impl PartialEq for Alarm {
    fn eq(&self, other: &Self) -> bool {
        self.at == other.at
    }
}

impl Eq for Alarm {}

impl PartialOrd for Alarm {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Alarm {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.at.cmp(&other.at)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn sleeps_never_end_early() {
        let start = Instant::now();
        let mut sleeping = tokio::task::JoinSet::new();
        for milliseconds in [30, 10, 20, 5, 0] {
            sleeping.spawn(async move {
                let at = start + Duration::from_millis(milliseconds);
                sleep_until(at).await;
                assert!(Instant::now() >= at);
                milliseconds
            });
        }
        assert_eq!(sleeping.join_all().await.len(), 5);
    }

    #[tokio::test]
    async fn a_dropped_sleep_is_nobodys_problem() {
        let soon = Instant::now() + Duration::from_millis(5);
        drop(tokio::time::timeout(Duration::ZERO, sleep_until(soon)).await);
        sleep_until(soon + Duration::from_millis(5)).await;
    }
}
