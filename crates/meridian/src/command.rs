//! One module for each command, or group of commands. The commands that ask the directory share
//! [`operator`].

mod access_token;
pub(crate) mod cluster;
pub(crate) mod cluster_config;
pub(crate) mod databases;
pub(crate) mod dev;
pub(crate) mod drill;
pub(crate) mod encryption;
pub(crate) mod failover;
mod gateway_url;
pub(crate) mod gateways;
mod invitation;
pub(crate) mod kv;
pub(crate) mod latency;
pub(crate) mod nodes;
mod operator;
pub(crate) mod operators;
pub(crate) mod orphans;
mod pieces;
pub(crate) mod queue;
mod quotas;
pub(crate) mod regions;
pub(crate) mod run;
pub(crate) mod serve;
pub(crate) mod shards;
pub(crate) mod status;
pub(crate) mod switchover;
mod throw_away;
pub(crate) mod tokens;
mod top;

/// The reaction of a process to SIGHUP, which it gets when its terminal is closed, or from an
/// operator expecting it to reload its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// Continue serving: there is nothing to reload.
    Ignore,
    /// Stop, as at Ctrl-C.
    Stop,
}

/// Resolves at the first Ctrl-C or SIGTERM. From then on, a second signal ends the process at once,
/// which loses nothing: acknowledged writes are on the disk.
pub(crate) async fn asked_to_stop(hangup: Hangup) {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    );
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangups)) = signals else {
        // Without handlers, the signals end the process, which is safe too.
        return std::future::pending().await;
    };
    loop {
        tokio::select! {
            _ = interrupt.recv() => break,
            _ = terminate.recv() => break,
            _ = hangups.recv() => match hangup {
                Hangup::Stop => break,
                Hangup::Ignore => tracing::info!("SIGHUP: there is nothing to reload, serving on"),
            },
        }
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::warn!(
            "asked to stop again: ending at once, requests in progress are not answered"
        );
        crate::log_writer::finish();
        std::process::exit(STOPPED_AT_ONCE);
    });
}

/// The exit code that a shell reports for a process ended by SIGINT.
const STOPPED_AT_ONCE: i32 = 130;

/// The files that this process writes from now on are its user's alone.
pub(crate) fn keep_files_private() {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
}

/// Prints a line on the standard output while serving. A reader that has gone is no error.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// Parses the number of data centers of each region: `3,2,1`.
pub(crate) fn parse_counts(text: &str) -> Result<Counts, String> {
    let count =
        |part: &str| part.trim().parse::<usize>().map_err(|_| format!("`{part}` is not a number"));
    Ok(Counts(text.split(',').map(count).collect::<Result<_, _>>()?))
}

/// The number of data centers of each region, the primary first.
#[derive(Debug, Clone)]
pub(crate) struct Counts(pub(crate) Vec<usize>);

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, ChildStdout, Command, Stdio};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    /// Set for the process that gets the signals; its value is the reaction to SIGHUP.
    const CHILD: &str = "MERIDIAN_TEST_SIGNALS";

    /// A process that prints a line when it waits for a signal, and another when it begins to stop,
    /// which never ends.
    struct Signalled {
        child: Child,
        said: std::io::Lines<BufReader<ChildStdout>>,
        _in_time: mpsc::Sender<()>,
    }

    impl Signalled {
        fn start(hangup: &str) -> Self {
            let mut child = Command::new(std::env::current_exe().unwrap())
                .args([
                    "command::tests::signals_end_a_process_as_documented",
                    "--exact",
                    "--nocapture",
                ])
                .env(CHILD, hangup)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let said = BufReader::new(child.stdout.take().unwrap()).lines();
            let (in_time, ended) = mpsc::channel();
            let id = child.id();
            std::thread::spawn(move || {
                if ended.recv_timeout(Duration::from_secs(20))
                    == Err(mpsc::RecvTimeoutError::Timeout)
                {
                    // A killed process prints no more, which fails the test.
                    drop(Command::new("kill").args(["-KILL", &id.to_string()]).status());
                }
            });
            let mut process = Self { child, said, _in_time: in_time };
            process.says("waits");
            process
        }

        fn says(&mut self, what: &str) {
            let found = self.said.find(|line| line.as_ref().unwrap().ends_with(what));
            assert!(found.is_some(), "it never said `{what}`");
        }

        fn gets(&self, signal: &str) {
            let sent = Command::new("kill")
                .arg(format!("-{signal}"))
                .arg(self.child.id().to_string())
                .status();
            assert!(sent.unwrap().success());
        }

        fn ends_with(mut self, code: i32) {
            assert_eq!(self.child.wait().unwrap().code(), Some(code));
        }
    }

    impl Drop for Signalled {
        fn drop(&mut self) {
            drop(self.child.kill());
            drop(self.child.wait());
        }
    }

    #[test]
    fn signals_end_a_process_as_documented() {
        if let Ok(hangup) = std::env::var(CHILD) {
            let hangup = if hangup == "stop" { Hangup::Stop } else { Hangup::Ignore };
            let runtime =
                tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let mut stops = Box::pin(asked_to_stop(hangup));
                assert!(futures::poll!(stops.as_mut()).is_pending());
                say("\nwaits");
                stops.await;
                say("\nstops");
                std::future::pending::<()>().await;
            });
            return;
        }
        for first in ["INT", "TERM"] {
            for second in ["INT", "TERM"] {
                let mut process = Signalled::start("ignore");
                process.gets("HUP");
                process.gets(first);
                process.says("stops");
                // Had SIGHUP stopped the process, the first signal would have been its second.
                std::thread::sleep(Duration::from_millis(100));
                assert!(process.child.try_wait().unwrap().is_none(), "it ended before the second");
                process.gets(second);
                process.ends_with(STOPPED_AT_ONCE);
            }
        }
        let mut process = Signalled::start("stop");
        process.gets("HUP");
        process.says("stops");
    }
}
