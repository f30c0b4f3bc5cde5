//! The clock that goes on while a machine is suspended.

use std::time::Duration;

/// Time since the machine was started, that for which it was suspended included.
#[cfg(target_os = "linux")]
pub(crate) fn boot_time() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(u64::try_from(now.tv_sec).unwrap_or(0), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Time since this process first asked. Other systems have no clock that counts a suspension.
#[cfg(not(target_os = "linux"))]
pub(crate) fn boot_time() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}
