use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A `meridian` process. It stays in the process group of the test, which is what a test runner ends when a
/// test takes too long; else it is killed when this is dropped.
pub(crate) struct Process {
    child: Child,
    paused: bool,
}

impl Process {
    /// Both outputs are appended to `log`.
    pub(crate) fn start(arguments: &[&str], log: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(log).expect("a log file");
        let child = Command::new(binary())
            .args(arguments)
            .env_remove("DENO_KV_ACCESS_TOKEN")
            .stdin(Stdio::null())
            .stdout(file.try_clone().expect("the log file twice"))
            .stderr(file)
            .spawn()
            .expect("meridian starts");
        Self { child, paused: false }
    }

    pub(crate) fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("the state of a child")
    }

    /// SIGKILL, as a DC that loses its power.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// SIGTERM, and waits for the end.
    pub(crate) fn stop(mut self) -> ExitStatus {
        self.resume();
        self.signal(Signal::TERM);
        self.child.wait().expect("the end of a child")
    }

    /// SIGSTOP: the process hangs, its connections stay.
    pub(crate) fn pause(&mut self) {
        self.signal(Signal::STOP);
        self.paused = true;
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self) {
        if std::mem::take(&mut self.paused) {
            self.signal(Signal::CONT);
        }
    }

    fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).expect("the id of a child");
        kill_process(pid, signal).expect("a child takes signals");
    }

    fn end(&mut self) {
        // It may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}

/// `meridian` of the same build as this test.
///
/// # Panics
/// When it was not built.
pub(crate) fn binary() -> PathBuf {
    let test = std::env::current_exe().expect("the path of this test");
    // target/<profile>/deps/<test>
    let folder = test.parent().and_then(Path::parent).expect("a test in a target folder");
    let binary = folder.join("meridian");
    assert!(binary.exists(), "{} is missing: run scripts/test, or build the package `meridian`", binary.display());
    binary
}
