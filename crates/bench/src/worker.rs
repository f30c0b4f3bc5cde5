//! The closed loop: one request in flight, the next one once it is answered.

use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::error::BenchError;
use crate::link::Link;
use crate::operation::Requests;
use crate::random::Random;
use crate::tally::Tally;
use crate::target::Target;

/// After an error, so that a server that refuses everything is not drowned, nor the CPU burned.
const PAUSE_AFTER_ERROR: Duration = Duration::from_millis(20);

/// The measured time of a cell; before it is the warm-up.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    pub begin: Instant,
    pub end: Instant,
}

#[derive(Debug)]
pub struct Worker {
    pub link: Link,
    pub target: Target,
    pub requests: Requests,
    pub random: Random,
    pub window: Window,
}

impl Worker {
    /// Runs until the window ends, or until the other half of `cancelled` is gone: then what is in
    /// flight is not counted.
    pub async fn run(mut self, mut tally: Tally, cancelled: oneshot::Receiver<()>) -> Tally {
        tokio::select! {
            biased;
            () = self.repeat(&mut tally) => {}
            _ = cancelled => {}
        }
        tally
    }

    async fn repeat(&mut self, tally: &mut Tally) {
        loop {
            let request = self.target.request(self.requests.next(&mut self.random));
            let begun = Instant::now();
            if begun >= self.window.end {
                return;
            }
            let outcome = self.link.call(request).await.and_then(|answer| self.requests.check(answer));
            let finished = Instant::now();
            let measured = finished >= self.window.begin;
            match outcome {
                Ok(()) if measured => tally.success(finished - begun, finished <= self.window.end),
                Ok(()) => {}
                Err(error) => {
                    if measured {
                        tally.error(&error);
                    }
                    self.recover(&error, tally).await;
                }
            }
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
                tally.error(&error);
            }
            if now >= self.window.end {
                return;
            }
            tokio::time::sleep(PAUSE_AFTER_ERROR).await;
        }
    }
}
