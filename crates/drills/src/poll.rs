//! Waiting on conditions, with a deadline. Nothing here sleeps for any other purpose.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(25);

/// What was waited for in vain.
#[derive(Debug, thiserror::Error)]
#[error("waited {} s in vain: {what}; at last: {seen}", deadline.as_secs())]
pub struct Timeout {
    pub what: String,
    pub deadline: Duration,
    /// In place of what was waited for.
    pub seen: String,
}

/// Looks until `look` gives a value.
///
/// # Errors
/// After `deadline`, with what was last seen.
pub async fn until<T, E: Debug>(
    what: &str,
    deadline: Duration,
    mut look: impl AsyncFnMut() -> Result<T, E>,
) -> Result<T, Timeout> {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(value) => return Ok(value),
            Err(seen) if started.elapsed() >= deadline => {
                return Err(Timeout { what: what.to_owned(), deadline, seen: format!("{seen:?}") });
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}
