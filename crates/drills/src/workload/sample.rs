//! Samples of operations on a time line, for the reports.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

use crate::kv_connect::CallError;

/// The kind of an operation.
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
    /// The operation was answered; a write with checks possibly by their failure.
    Answered,
    /// The client gave up, or the drill ended before the answer.
    Failed,
    /// All data centers of the client were lost or cut off with their gateways.
    CutOff,
}

/// An operation of a client, with all its attempts. Times count from the workload's origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    pub kind: Kind,
    /// The region of the client, which counts from 0.
    pub region: usize,
    /// The times of the first request and of the answer.
    pub started: Duration,
    pub ended: Duration,
    pub outcome: Outcome,
    /// An attempt was at a gateway that was lost with its data center, and the client moved to
    /// another.
    pub moved: bool,
}

impl Sample {
    pub fn latency(&self) -> Duration {
        self.ended.saturating_sub(self.started)
    }
}

/// Failed requests, by their answers. A client that retries may still see its operation done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attempts {
    /// Failures at gateways that were up: time, region and answer.
    pub failed: Vec<(Duration, usize, String)>,
    /// Failures beyond the kept ones.
    pub not_kept: u64,
    /// Requests in flight at a gateway that was lost with its data center.
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

    /// The number of times that each answer was given.
    pub fn by_answer(&self) -> BTreeMap<&str, u64> {
        let mut counts = BTreeMap::new();
        for (.., what) in &self.failed {
            *counts.entry(what.as_str()).or_default() += 1;
        }
        counts
    }
}
