//! Why storage could not do what it was asked, and how a process ends that must not go on.

use std::io::Write;
use std::time::Duration;

use meridian_types::{NodeId, Position};
use meridian_vault::VaultError;

use crate::schema::GroupId;

/// Why storage could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("storage engine: {0}")]
    Engine(String),
    /// Stored bytes are not what was written. Never ignored, never retried.
    #[error("corruption in {what}: {detail}")]
    Corruption { what: String, detail: String },
    #[error("column family `{0}` does not exist")]
    NoFamily(String),
    /// A snapshot may not take the place of a newer state.
    #[error("a snapshot at {snapshot} is older than the state at {state}")]
    Stale { snapshot: Position, state: Position },
    /// A staged state lacks rows, or is in use already.
    #[error("a staged state cannot be installed: {0}")]
    Incomplete(&'static str),
    /// A state could not be had from another node. Another try may succeed.
    #[error("{0}")]
    NotFetched(String),
    /// The work ended before it was through: its caller wished so, or its thread is gone. Nothing
    /// is known to be damaged.
    #[error("{0}")]
    Cancelled(String),
    /// The group was shut down on this node: nothing is written for it any more.
    #[error("{0} was shut down")]
    Shutdown(GroupId),
    /// Raft has stopped by itself, or does not start.
    #[error("raft of {group} stopped: {reason}")]
    RaftStopped { group: GroupId, reason: String },
    /// The request is impossible, or contradicts the stored data.
    #[error("{0}")]
    Invalid(String),
    /// Another writer of this process has the file.
    #[error("{0} is being written already")]
    Busy(String),
    /// The data folder is another node's.
    #[error("it belongs to node {owner}, this is node {node}")]
    WrongOwner { owner: NodeId, node: NodeId },
    #[error(transparent)]
    Keys(#[from] VaultError),
    #[error("{path}: {source}")]
    File { path: String, source: std::io::Error },
}

impl StorageError {
    /// The task or thread that was to do the work has ended without an answer.
    pub fn cancelled(error: impl ToString) -> Self {
        Self::Cancelled(error.to_string())
    }

    pub(crate) fn corruption(what: impl Into<String>, detail: impl ToString) -> Self {
        Self::Corruption { what: what.into(), detail: detail.to_string() }
    }
}

impl From<rocksdb::Error> for StorageError {
    fn from(error: rocksdb::Error) -> Self {
        Self::Engine(error.into_string())
    }
}

impl From<StorageError> for std::io::Error {
    fn from(error: StorageError) -> Self {
        Self::other(error)
    }
}

/// The time for the report of a process that must stop: enough for a log line with a backtrace.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Stops the process at once: going on after a failed fsync or on corrupt bytes could lose or
/// invent data. No destructor runs, so nothing more is written.
pub fn fatal(error: &StorageError) -> ! {
    abort_soon();
    tracing::error!(%error, "storage failed, stopping the process");
    // A reader that is gone is no reason to end in another way: `eprintln!` panics then.
    drop(writeln!(std::io::stderr(), "meridian: fatal: {error}"));
    std::process::abort();
}

/// Storage errors on a path where going on is not safe.
pub fn or_fatal<T>(result: Result<T, StorageError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => fatal(&error),
    }
}

/// The process ends within two seconds, whatever this thread waits for. To be called before a
/// process that must stop says why: where standard error is not read, a log line that is being
/// written keeps it locked, and without this all other threads would go on to serve, and to renew
/// leases.
pub fn abort_soon() {
    let timer = std::thread::Builder::new().name("abort".to_owned()).spawn(|| {
        std::thread::sleep(LAST_WORDS);
        std::process::abort();
    });
    if timer.is_err() {
        std::process::abort();
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};
    use std::time::Instant;

    use super::*;

    /// Set for the process that is to die.
    const CHILD: &str = "MERIDIAN_TEST_FATAL";
    const DEADLINE: Duration = Duration::from_secs(60);

    /// The signal that ended the child, if one did within the deadline.
    fn ended_by(mut child: Child) -> Option<i32> {
        let started = Instant::now();
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return std::os::unix::process::ExitStatusExt::signal(&status);
            }
            if started.elapsed() > DEADLINE {
                child.kill().unwrap();
                child.wait().unwrap();
                return None;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[test]
    fn a_fatal_error_aborts_the_process_whether_or_not_its_report_is_read() {
        if let Some(how) = std::env::var_os(CHILD) {
            if how == "locked" {
                let (locked, is_locked) = std::sync::mpsc::channel();
                std::thread::spawn(move || {
                    let _writing = std::io::stderr().lock();
                    locked.send(()).unwrap();
                    loop {
                        std::thread::park();
                    }
                });
                is_locked.recv().unwrap();
            }
            fatal(&StorageError::Engine("IO error".to_owned()));
        }
        let ended = ["locked", "closed"].map(|how| {
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let name =
                "error::tests::a_fatal_error_aborts_the_process_whether_or_not_its_report_is_read";
            let mut child = Command::new(std::env::current_exe().unwrap());
            child
                .args([name, "--exact", "--nocapture"])
                .env(CHILD, how)
                .stdout(Stdio::null())
                .stderr(writer);
            ended_by(child.spawn().unwrap())
        });
        assert_eq!(ended, [Some(6), Some(6)]);
    }
}
