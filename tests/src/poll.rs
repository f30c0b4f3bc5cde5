use std::fmt::Debug;
use std::time::{Duration, Instant};

/// Between two looks at a condition.
const INTERVAL: Duration = Duration::from_millis(25);

/// Looks until `look` gives a value.
///
/// # Panics
/// After `deadline`, with `what` was waited for and what was last seen in its place.
pub async fn until<T, E: Debug>(what: &str, deadline: Duration, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let started = Instant::now();
    loop {
        match look().await {
            Ok(value) => return value,
            Err(seen) if started.elapsed() >= deadline => {
                panic!("waited {} s in vain: {what}; at last: {seen:?}", deadline.as_secs())
            }
            Err(_) => tokio::time::sleep(INTERVAL).await,
        }
    }
}
