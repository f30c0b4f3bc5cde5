//! The bound on lines of a log that others can cause.

use std::ops::Sub;
use std::time::Duration;

const WINDOW: Duration = Duration::from_secs(60);

/// Lines of one kind: so many a minute. `T`: the times of a clock that does not go back.
#[derive(Debug)]
pub struct LineLimit<T> {
    at_most: u32,
    began: Option<T>,
    lines: u32,
    left_out: u64,
}

impl<T> LineLimit<T> {
    pub const fn new(at_most: u32) -> Self {
        Self { at_most, began: None, lines: 0, left_out: 0 }
    }
}

impl<T: Copy + Sub<Output = Duration>> LineLimit<T> {
    /// Whether a line may be logged now, and how many were left out before it.
    pub fn take(&mut self, now: T) -> Option<u64> {
        if self.began.is_none_or(|began| now - began >= WINDOW) {
            (self.began, self.lines) = (Some(now), 0);
        }
        if self.lines < self.at_most {
            self.lines += 1;
            return Some(std::mem::take(&mut self.left_out));
        }
        self.left_out += 1;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_log_are_bounded_and_the_next_one_says_how_many_were_left_out() {
        let (mut limit, now) = (LineLimit::new(30), Duration::from_secs(1000));
        for _ in 0..30 {
            assert_eq!(limit.take(now), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(limit.take(now + WINDOW / 2), None);
        }
        assert_eq!(limit.take(now + WINDOW), Some(7));
        assert_eq!(limit.take(now + WINDOW), Some(0));
    }
}
