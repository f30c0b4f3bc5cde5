//! Work that blocks on a disk, off the runtime.

use std::io;

/// Runs what waits for a disk where no other group waits with it.
///
/// Its caller goes on when it is through. It runs to its end also if it is no longer waited for.
/// When the runtime ends before it began there is no answer: a caller would take an error for a disk
/// that failed.
pub(crate) async fn off_the_runtime<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => Ok(done),
        Err(error) if error.is_cancelled() => std::future::pending().await,
        Err(error) => Err(io::Error::other(error)),
    }
}
