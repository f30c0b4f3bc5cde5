//! The thread that makes logged writes durable.

use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Condvar, Mutex};

use crate::{Engine, StorageError, fatal};

type Callback = Box<dyn FnOnce() + Send>;

/// Makes logged writes durable, off every hot path: one thread a node, and one fsync for all that
/// wait at a time, whichever group they belong to.
pub struct Syncer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Callback>,
    closed: bool,
}

impl Syncer {
    /// # Errors
    /// When no thread can be started.
    pub fn start(engine: Arc<dyn Engine>) -> Result<Self, StorageError> {
        let shared = Arc::new(Shared { queue: Mutex::default(), wake: Condvar::new() });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("log-sync".to_owned())
            .spawn(move || run(&*engine, &worker))
            .map_err(|source| StorageError::File { path: "log-sync thread".to_owned(), source })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Calls back, on the sync thread, when every write that returned before this call is durable.
    /// A sync that fails stops the process: what the disk holds then is unknown. After
    /// [`Syncer::stop`] callbacks are dropped.
    pub fn sync_then(&self, callback: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        if !queue.closed {
            queue.waiting.push(Box::new(callback));
            self.shared.wake.notify_one();
        }
    }

    /// Syncs what waits, then ends the thread.
    pub fn stop(&self) {
        self.shared.queue.lock().closed = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.lock().take() {
            // It panics never: a failed sync aborts.
            drop(thread.join());
        }
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.stop();
    }
}

fn run(engine: &dyn Engine, shared: &Shared) {
    loop {
        let waiting = {
            let mut queue = shared.queue.lock();
            while queue.waiting.is_empty() && !queue.closed {
                shared.wake.wait(&mut queue);
            }
            std::mem::take(&mut queue.waiting)
        };
        if waiting.is_empty() {
            return;
        }
        if let Err(error) = engine.sync() {
            fatal(&error);
        }
        for callback in waiting {
            callback();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::{Durability, MemoryEngine, WriteBatch};

    /// Set for the process that is to die.
    const CHILD: &str = "MERIDIAN_TEST_SYNC_FAILS";

    #[test]
    fn a_failed_fsync_stops_the_process() {
        if std::env::var_os(CHILD).is_some() {
            let engine = Arc::new(MemoryEngine::default());
            engine.break_syncs();
            let syncer = Syncer::start(engine).unwrap();
            let (done, acknowledged) = mpsc::channel();
            syncer.sync_then(move || done.send(()).unwrap());
            println!("acknowledged: {:?}", acknowledged.recv());
            return;
        }
        let name = "syncer::tests::a_failed_fsync_stops_the_process";
        let child = std::process::Command::new(std::env::current_exe().unwrap())
            .args([name, "--exact", "--nocapture"])
            .env(CHILD, "1")
            .output()
            .unwrap();
        let (out, error) =
            (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
        let signal = std::os::unix::process::ExitStatusExt::signal(&child.status);
        assert_eq!(signal, Some(6), "it was not aborted: {:?}\n{out}\n{error}", child.status);
        assert!(error.contains("meridian: fatal: storage engine: IO error: fsync"), "{error}");
        assert!(!out.contains("acknowledged:"), "{out}");
    }

    #[test]
    fn a_syncer_that_is_stopped_or_dropped_has_synced_what_waited_and_its_thread_has_ended() {
        let ends: [fn(Syncer) -> Option<Syncer>; 2] = [
            |syncer| {
                syncer.stop();
                Some(syncer)
            },
            |syncer| {
                drop(syncer);
                None
            },
        ];
        for end in ends {
            let engine = Arc::new(MemoryEngine::default());
            let syncer = Syncer::start(Arc::clone(&engine) as Arc<dyn Engine>).unwrap();
            let family: Arc<str> = "log".into();
            engine.create_family(&family).unwrap();
            let (done, acknowledged) = mpsc::channel();
            for number in 0..10 {
                let mut batch = WriteBatch::default();
                batch.put(&family, vec![number], vec![number]);
                engine.write(batch, Durability::Logged).unwrap();
                let done = done.clone();
                syncer.sync_then(move || done.send(number).unwrap());
            }
            let stopped = end(syncer);
            assert_eq!(acknowledged.try_iter().collect::<Vec<_>>(), Vec::from_iter(0..10));
            assert_eq!(engine.unsynced_writes(), 0);
            assert_eq!(Arc::strong_count(&engine), 1, "the thread goes on with the engine");
            if let Some(stopped) = stopped {
                stopped.sync_then(move || done.send(10).unwrap());
                assert_eq!(
                    acknowledged.recv(),
                    Err(mpsc::RecvError),
                    "no thread would sync what comes now"
                );
            }
        }
    }
}
