//! A line about long work, on a terminal's standard error.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(500);

pub(in crate::command) struct Progress {
    is_shown: bool,
    /// When the next line is due.
    next: Instant,
    width: usize,
}

impl Progress {
    pub(in crate::command) fn new() -> Self {
        let next = Instant::now() + EVERY;
        Self { is_shown: std::io::stderr().is_terminal(), next, width: 0 }
    }

    /// Shows a text in the place of the last one, now and then.
    pub(in crate::command) fn show(&mut self, text: impl FnOnce() -> String) {
        if self.is_shown && Instant::now() >= self.next {
            self.next = Instant::now() + EVERY;
            let text = text();
            self.put(&text);
        }
    }

    fn put(&mut self, text: &str) {
        let mut error = std::io::stderr().lock();
        // Spaces over what is left of a longer text.
        let written = write!(error, "\r{text:<width$}\r", width = self.width);
        drop(written.and_then(|()| error.flush()));
        self.width = text.chars().count();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.width > 0 {
            self.put("");
        }
    }
}
