//! Waiting on conditions, with a deadline; a condition that does not hold fails the test.

use std::fmt::Debug;
use std::time::Duration;

/// Calls `look` again and again until it returns a value.
///
/// # Panics
/// After `deadline`, with `what` and the last error that `look` returned.
pub async fn until<T, E: Debug>(
    what: &str,
    deadline: Duration,
    look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    meridian_drills::poll::until(what, deadline, look)
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}"))
}
