//! Waiting on conditions, with a deadline. Nothing here sleeps for any other purpose.

use std::fmt::Debug;
use std::time::{Duration, Instant};

/// The pause between two evaluations of a condition.
const INTERVAL: Duration = Duration::from_millis(25);

/// A condition that did not hold within its deadline.
#[derive(Debug, thiserror::Error)]
#[error("waited {} s in vain: {what}; at last: {seen}", deadline.as_secs())]
pub struct Timeout {
    pub what: String,
    pub deadline: Duration,
    /// The last value seen instead.
    pub seen: String,
}

/// Calls `look` again and again until it returns a value.
///
/// # Errors
/// After `deadline`, with the last error that `look` returned.
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
