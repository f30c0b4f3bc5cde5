use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::{Engine, StorageError, fatal};

/// The longest that a write-out waits for an fsync to carry it.
const WRITTEN_OUT_WITHIN: Duration = Duration::from_millis(10);

type Callback = Box<dyn FnOnce() + Send>;

/// Makes logged writes durable, off everybody's hot path: one thread a node, and one fsync for all that
/// wait at a time, whichever group they belong to.
pub struct Syncer {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    /// Weak: only the sync thread keeps the engine open.
    engine: Weak<dyn Engine>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<Callback>,
    /// Something is to be written out.
    unwritten: bool,
    /// The thread sleeps until it is woken.
    asleep: bool,
    /// Start of the fsync that is under way.
    syncing: Option<Instant>,
    closed: bool,
}

impl Syncer {
    /// # Errors
    /// When no thread can be started.
    pub fn start(engine: Arc<dyn Engine>) -> Result<Self, StorageError> {
        let shared =
            Arc::new(Shared { engine: Arc::downgrade(&engine), queue: Mutex::default(), wake: Condvar::new() });
        let worker = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("log-sync".to_owned())
            .spawn(move || run(&*engine, &worker))
            .map_err(|source| StorageError::File { path: "log-sync thread".to_owned(), source })?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Calls back, on the sync thread, when every write that returned before this call is durable. A sync
    /// that fails stops the process: what the disk holds then is unknown. After [`Syncer::stop`] callbacks are
    /// dropped.
    pub fn sync_then(&self, callback: impl FnOnce() + Send + 'static) {
        let mut queue = self.shared.queue.lock();
        if !queue.closed {
            queue.waiting.push(Box::new(callback));
            self.shared.wake.notify_one();
        }
    }

    /// Has every logged write that returned before this call outlive the process, soon, though not the machine: see
    /// [`Engine::write_out`]. With the next fsync, or 10 ms from now if none comes; at once where an fsync has taken as
    /// long already, since a disk may stand still for seconds.
    pub fn write_out_soon(&self) -> Result<(), StorageError> {
        let is_late = {
            let mut queue = self.shared.queue.lock();
            queue.unwritten = true;
            if queue.asleep {
                self.shared.wake.notify_one();
            }
            queue.syncing.is_some_and(|since| since.elapsed() >= WRITTEN_OUT_WITHIN)
        };
        match self.shared.engine.upgrade().filter(|_| is_late) {
            Some(engine) => engine.write_out(),
            None => Ok(()),
        }
    }

    /// Syncs what waits, writes out what is to be, then ends the thread.
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
        let (done, waiting) = match next(shared) {
            Next::Sync(waiting) => (engine.sync(), waiting),
            Next::WriteOut => (engine.write_out(), Vec::new()),
            Next::End => return,
        };
        // Before callbacks are dropped, which would say that nothing comes of them.
        if let Err(error) = done {
            fatal(&error);
        }
        for callback in waiting {
            callback();
        }
    }
}

enum Next {
    Sync(Vec<Callback>),
    WriteOut,
    End,
}

/// Waits for something to do.
fn next(shared: &Shared) -> Next {
    let mut queue = shared.queue.lock();
    queue.syncing = None;
    loop {
        if !queue.waiting.is_empty() {
            // What is to be written out goes along.
            queue.unwritten = false;
            queue.syncing = Some(Instant::now());
            return Next::Sync(std::mem::take(&mut queue.waiting));
        }
        // Most of what is to be written out comes soon after an fsync: it need not wake the thread then.
        let timed_out = !queue.closed && shared.wake.wait_for(&mut queue, WRITTEN_OUT_WITHIN).timed_out();
        if !queue.waiting.is_empty() || !(timed_out || queue.closed) {
            continue;
        }
        if std::mem::take(&mut queue.unwritten) {
            return Next::WriteOut;
        }
        if queue.closed {
            return Next::End;
        }
        queue.asleep = true;
        shared.wake.wait(&mut queue);
        queue.asleep = false;
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
        let (out, error) = (String::from_utf8_lossy(&child.stdout), String::from_utf8_lossy(&child.stderr));
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
                assert_eq!(acknowledged.recv(), Err(mpsc::RecvError), "nobody would sync what comes now");
            }
        }
    }
}
