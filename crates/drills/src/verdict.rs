//! Promises with their verdicts, as reports show them.

use serde::Serialize;

/// The verdict on a promise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PromiseVerdict {
    Met,
    Missed,
    /// Nothing was promised.
    NotStated,
    /// The machine was too slow for the promise, or the drill was not run.
    NotMeasured,
}

/// One column of one promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Column {
    pub text: &'static str,
    #[serde(rename = "standing")]
    pub verdict: PromiseVerdict,
}

/// One promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Row {
    pub promise: &'static str,
    pub stated: Column,
    pub aim: Column,
    pub measured: String,
    pub drills: Vec<&'static str>,
}

impl Row {
    pub fn is_missed(&self) -> bool {
        self.stated.verdict == PromiseVerdict::Missed || self.aim.verdict == PromiseVerdict::Missed
    }
}
