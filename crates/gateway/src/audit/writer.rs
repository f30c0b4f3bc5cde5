//! The thread that writes the log. A file that cannot be written is tried again until it can: lines
//! wait meanwhile, and what has no room among them is counted.

use std::sync::Arc;
use std::time::Duration;

use tracing::{info, warn};

use super::Counters;
use super::line::Line;
use super::log_file::LogFile;
use super::queue::{Batch, Queue, Work};

/// Lines of so much time are written together.
const PACE: Duration = Duration::from_millis(20);
/// Between two tries.
const TRY_AGAIN: Duration = Duration::from_millis(500);

pub(super) struct Writer {
    file: LogFile,
    queue: Arc<Queue>,
    counters: Counters,
    gateway: String,
    is_failing: bool,
}

impl Writer {
    pub(super) fn new(
        file: LogFile,
        queue: Arc<Queue>,
        counters: Counters,
        gateway: String,
    ) -> Self {
        Self { file, queue, counters, gateway, is_failing: false }
    }

    /// Until the log is over.
    pub(super) fn run(mut self) {
        loop {
            match self.queue.next() {
                Work::Write(mut batch) => {
                    if batch.dropped > 0 {
                        let mut line = Line::begun(&self.gateway);
                        line.set("dropped", batch.dropped);
                        batch.bytes.extend(line.encode());
                    }
                    self.write(&batch);
                    self.queue.wrote(batch);
                    self.queue.gather(PACE);
                }
                Work::Sync => {
                    if let Err(error) = self.file.sync() {
                        self.failed(&error);
                    }
                    self.queue.synced();
                }
                Work::End => return,
            }
        }
    }

    fn write(&mut self, batch: &Batch) {
        let mut at = 0;
        while let Err(error) = self.file.write(&batch.bytes, &mut at) {
            self.failed(&error);
            if !self.queue.may_try_again_after(TRY_AGAIN) {
                self.counters.dropped.increment(batch.lines);
                return;
            }
        }
        self.counters.lines.increment(batch.lines);
        if std::mem::take(&mut self.is_failing) {
            info!(path = %self.file.path().display(), "the audit log is written again");
        }
    }

    fn failed(&mut self, error: &std::io::Error) {
        self.counters.failures.increment(1);
        self.queue.fails(&error.to_string());
        if !std::mem::replace(&mut self.is_failing, true) {
            warn!(path = %self.file.path().display(), %error, "the audit log cannot be written");
        }
    }
}
