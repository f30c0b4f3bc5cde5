//! The course of events, in their order.

use meridian_sim_kernel as kernel;

/// Lines with their times.
pub(crate) struct Story {
    lines: Vec<String>,
    is_told: bool,
}

impl Story {
    /// `is_told`: each line is printed at once.
    pub(crate) fn new(is_told: bool) -> Self {
        Self { lines: Vec::new(), is_told }
    }

    pub(crate) fn say(&mut self, what: &str) {
        let line = format!("{:10.4} s: {what}", kernel::now().as_secs_f64());
        if self.is_told {
            println!("{line}");
        }
        self.lines.push(line);
    }

    pub(crate) fn into_lines(self) -> Vec<String> {
        self.lines
    }
}
