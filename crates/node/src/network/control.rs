//! Threads for the decisions on which node may serve: renewals of leases, the directory's group and its
//! controller. Nothing that clients make busy is in their way. Their connections are told from
//! others by `meridian_net::control`.

use std::io;
use std::time::Duration;

use tokio::runtime::{Builder, Handle, Runtime};

/// While a thread waits for a disk, the other goes on.
const THREADS: usize = 2;
/// Above all else of this process, where the machine's owner permits it.
const NICE: i32 = -10;
const STOPPING: Duration = Duration::from_secs(1);

/// Threads that do nothing else.
pub(crate) struct ControlRuntime {
    /// Until it is stopped.
    runtime: Option<Runtime>,
    handle: Handle,
}

impl ControlRuntime {
    /// # Errors
    /// Where no thread can be started.
    pub(crate) fn start() -> io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        builder.worker_threads(THREADS).thread_name("control").enable_all();
        builder.on_thread_start(|| {
            // Without the permission it has the priority of all others.
            if let Err(error) = rustix::process::setpriority_process(None, NICE) {
                tracing::debug!(%error, "threads of the directory keep their priority");
            }
        });
        let runtime = builder.build()?;
        let handle = runtime.handle().clone();
        Ok(Self { runtime: Some(runtime), handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Ends what still runs there.
    pub(crate) async fn stop(mut self) {
        if let Some(runtime) = self.runtime.take() {
            drop(tokio::task::spawn_blocking(move || runtime.shutdown_timeout(STOPPING)).await);
        }
    }
}

impl Drop for ControlRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // Not waited for: this may be a thread of another runtime.
            runtime.shutdown_background();
        }
    }
}
