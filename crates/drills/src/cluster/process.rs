//! One `meridian` process.

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A `meridian` process. It stays in the process group of this program, so that a test runner's
/// time-out and Ctrl-C in a terminal end it; it is killed when this is dropped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    paused: bool,
}

impl Process {
    /// Both outputs are appended to `log`.
    pub(crate) fn start(program: &Path, arguments: &[&str], log: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new(program)
            .args(arguments)
            .env_remove("DENO_KV_ACCESS_TOKEN")
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()?;
        Ok(Self { child, paused: false })
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The exit status, if the process has ended.
    pub(crate) fn exited(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// SIGKILL, as in a data center that loses its power.
    pub(crate) fn kill(mut self) {
        self.end();
    }

    /// SIGTERM. The process ends when it has finished its work.
    pub(crate) fn terminate(&mut self) -> io::Result<()> {
        self.resume()?;
        self.signal(Signal::TERM)
    }

    /// SIGTERM, and blocks until the end.
    pub(crate) fn stop(mut self) -> io::Result<ExitStatus> {
        self.terminate()?;
        self.child.wait()
    }

    /// SIGSTOP: the process hangs, its connections stay.
    pub(crate) fn pause(&mut self) -> io::Result<()> {
        self.signal(Signal::STOP)?;
        self.paused = true;
        Ok(())
    }

    /// SIGCONT.
    pub(crate) fn resume(&mut self) -> io::Result<()> {
        if std::mem::take(&mut self.paused) { self.signal(Signal::CONT) } else { Ok(()) }
    }

    pub(crate) fn is_paused(&self) -> bool {
        self.paused
    }

    fn signal(&self, signal: Signal) -> io::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| io::Error::other("a child without an id"))?;
        Ok(kill_process(pid, signal)?)
    }

    fn end(&mut self) {
        // The process may have ended by itself.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end();
    }
}
