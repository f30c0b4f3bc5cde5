use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::kv_connect::CallError;

/// What a client asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Write,
    StrongRead,
    EventualRead,
}

impl Kind {
    pub const ALL: [Self; 3] = [Self::Write, Self::StrongRead, Self::EventualRead];

    pub fn name(self) -> &'static str {
        match self {
            Self::Write => "writes",
            Self::StrongRead => "strong reads",
            Self::EventualRead => "eventual reads",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It was answered; of a write with checks, also that they failed.
    Answered,
    /// The client gave it up, or the drill ended before the answer.
    Failed,
    /// The client's own data centers, all of them, were lost or cut off with its gateways.
    CutOff,
}

/// One operation of one client, with all of its tries. Times count from the workload's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub kind: Kind,
    /// Of the client, counted from 0.
    pub region: usize,
    /// When the client first asked, and when it had what it asked for.
    pub started: Duration,
    pub ended: Duration,
    pub outcome: Outcome,
    /// A try of it was at a gateway that was lost with its data center, and so it moved to another.
    pub moved: bool,
}

impl Sample {
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.started)
    }
}

/// Requests that failed, by what was answered. A client that tries again may still see its
/// operation done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempts {
    /// At gateways that were there: when, in which region, and what was answered.
    pub failed: Vec<(Duration, usize, String)>,
    /// More failed than are kept.
    pub not_kept: u64,
    /// In flight at a gateway that was lost with its data center.
    pub cut_off: u64,
}

/// Failures that are kept one by one.
const MAX_KEPT: usize = 10_000;
const MAX_TEXT_CHARS: usize = 160;

impl Attempts {
    pub(super) fn count(&mut self, at: Duration, region: usize, cut_off: bool, what: &CallError) {
        if cut_off {
            self.cut_off += 1;
        } else if self.failed.len() < MAX_KEPT {
            self.failed.push((at, region, what.to_string().chars().take(MAX_TEXT_CHARS).collect()));
        } else {
            self.not_kept += 1;
        }
    }

    pub fn total(&self) -> u64 {
        u64::try_from(self.failed.len()).unwrap_or(u64::MAX).saturating_add(self.not_kept)
    }

    /// How often each answer was given.
    pub fn by_answer(&self) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for (.., what) in &self.failed {
            *counts.entry(what.as_str()).or_default() += 1;
        }
        counts
    }
}
