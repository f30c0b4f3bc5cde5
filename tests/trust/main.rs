//! Callers and their calls: every method with every role and with none, certificates that are wrong, a
//! cluster that grows by join tokens, and a cluster that is closed while it serves.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod calls;
mod closing;
mod joining;
mod members;

use std::time::Duration;

/// Far beyond every time-out inside the cluster.
const DEADLINE: Duration = Duration::from_secs(60);
