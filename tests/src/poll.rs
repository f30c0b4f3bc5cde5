use std::fmt::Debug;
use std::time::Duration;

/// Looks until `look` gives a value.
///
/// # Panics
/// After `deadline`, with `what` was waited for and what was last seen in its place.
pub async fn until<T, E: Debug>(
    what: &str,
    deadline: Duration,
    look: impl AsyncFnMut() -> Result<T, E>,
) -> T {
    meridian_drills::poll::until(what, deadline, look)
        .await
        .unwrap_or_else(|timeout| panic!("{timeout}"))
}
