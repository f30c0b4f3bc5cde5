//! The clocks of this machine: wall time, time since it was booted, and time as an argument.

use std::future::Future;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

pub(crate) use meridian_consensus::boot_time;

/// The wall clock, in milliseconds since the Unix epoch; 0 if it stands before that. It may jump:
/// nothing that must hold depends on it.
pub(crate) fn wall_ms() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_millis()).unwrap_or(u64::MAX)
}

/// The wall clock as it stood when this process first asked, and counted on from there without
/// jumps, in milliseconds since the Unix epoch.
pub(crate) fn steady_ms() -> u64 {
    static START: OnceLock<(u64, Duration)> = OnceLock::new();
    let (wall_ms, boot_time_then) = START.get_or_init(|| (wall_ms(), boot_time()));
    let elapsed = boot_time().saturating_sub(*boot_time_then);
    wall_ms.saturating_add(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
}

/// Time as an argument, for what decides by it: a test has its own.
pub(crate) trait Clock: Send + Sync + 'static {
    /// Since some moment in the past. Monotonic.
    fn now(&self) -> Duration;

    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send;
}

/// Goes on while the machine is suspended, where there is such a clock; a sleeping task may wake
/// later by that.
pub(crate) struct BootClock;

impl Clock for BootClock {
    fn now(&self) -> Duration {
        boot_time()
    }

    fn sleep_until(&self, at: Duration) -> impl Future<Output = ()> + Send {
        tokio::time::sleep(at.saturating_sub(boot_time()))
    }
}
