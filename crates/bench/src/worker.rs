//! A worker: one operation in flight, the next once it is answered, or once it is due.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_kv_client::Link;
use tokio::sync::oneshot;

use crate::check_and_set::Outcome;
use crate::error::BenchError;
use crate::random::Random;
use crate::schedule::OpenLoop;
use crate::tally::Tally;
use crate::work::Work;

/// The pause after an error, so that a server that refuses everything is not flooded, nor the CPU
/// burned.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// The measured time of a cell; the warm-up comes before it.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub begin: Instant,
    pub end: Instant,
}

#[derive(Debug)]
pub struct Worker {
    pub link: Link,
    pub work: Work,
    pub random: Random,
    pub window: Window,
    /// `None`: a closed loop.
    pub open: Option<Arc<OpenLoop>>,
}

impl Worker {
    /// Runs until the window ends, or until the other half of `cancelled` is dropped: then
    /// operations in flight are not counted.
    pub async fn run(mut self, mut tally: Tally, cancelled: oneshot::Receiver<()>) -> Tally {
        tokio::select! {
            biased;
            () = self.repeat(&mut tally) => {}
            _ = cancelled => {}
        }
        tally
    }

    async fn repeat(&mut self, tally: &mut Tally) {
        while let Some(begun) = self.next().await {
            let mut conflicts = 0;
            let outcome = self
                .work
                .perform(&mut self.link, &mut self.random, self.window.end, &mut conflicts)
                .await;
            let finished = Instant::now();
            // In an open loop, an operation that was due before the window is not measured, however
            // late it ended.
            let measured = self.window.begin <= if self.open.is_some() { begun } else { finished };
            if measured {
                tally.conflicts += conflicts;
            }
            match outcome {
                Ok(outcome) if measured => {
                    let within_time = outcome == Outcome::Success && finished <= self.window.end;
                    tally.success(finished - begun, within_time);
                }
                Ok(_) => {}
                Err(error) => {
                    if measured {
                        tally.error(&error);
                    }
                    self.recover(&error, tally).await;
                }
            }
        }
    }

    /// The time from which the next operation's latency counts. `None`: the time is over.
    async fn next(&self) -> Option<Instant> {
        match &self.open {
            Some(open) => open.next().await,
            None => Some(Instant::now()).filter(|now| *now < self.window.end),
        }
    }

    async fn recover(&mut self, error: &BenchError, tally: &mut Tally) {
        tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        if !error.spoils_link() {
            return;
        }
        while let Err(error) = self.link.reopen().await {
            let now = Instant::now();
            if now >= self.window.begin {
                tally.error(&error.into());
            }
            if now >= self.window.end {
                return;
            }
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
    }
}
