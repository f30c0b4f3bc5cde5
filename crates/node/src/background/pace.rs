//! The pace of long work on the disk: what else the disk does comes first.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

/// Within so long the work ends when the node stops.
const LOOK: Duration = Duration::from_millis(50);

/// Blocks the thread for as long as so many bytes may take; at once, with a break, when the node stops.
pub(crate) fn pace(stop: &CancellationToken, bytes: u64, bytes_per_second: u64) -> ControlFlow<()> {
    let until = Instant::now() + Duration::from_secs_f64(bytes as f64 / bytes_per_second as f64);
    loop {
        if stop.is_cancelled() {
            return ControlFlow::Break(());
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return ControlFlow::Continue(());
        }
        std::thread::sleep(left.min(LOOK));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_take_their_time_and_none_once_the_node_stops() {
        let (stop, began) = (CancellationToken::new(), Instant::now());
        assert_eq!(pace(&stop, 200, 1000), ControlFlow::Continue(()));
        assert!(began.elapsed() >= Duration::from_millis(200));
        stop.cancel();
        assert_eq!(pace(&stop, u32::MAX.into(), 1), ControlFlow::Break(()));
    }
}
