//! A command that tells a key: bounded in time and in what it says.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use zeroize::Zeroizing;

use crate::error::KeyError;

/// No key takes more.
pub(crate) const MAX_KEY_BYTES: usize = 4096;
/// How long it may take. A key management service answers within a second, or is down.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks whether it has ended, once it has closed its output.
const LOOK: Duration = Duration::from_millis(10);
/// Of its standard error, in an error.
const MAX_REASON_CHARS: usize = 200;

/// The standard output of a program that ends well.
///
/// # Errors
/// [`KeyError::Command`]: it does not start, takes too long, says too much, or fails; with the first
/// line of its standard error.
pub(crate) fn output(words: &[String]) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    output_within(words, TIMEOUT)
}

pub(crate) fn output_within(
    words: &[String],
    timeout: Duration,
) -> Result<Zeroizing<Vec<u8>>, KeyError> {
    let until = Instant::now() + timeout;
    let (program, arguments) = words.split_first().map_or(("", words), |(p, rest)| (p, rest));
    let failed = |cause: String| KeyError::Command { program: program.to_owned(), cause };
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // With all that it starts.
        .process_group(0)
        .spawn()
        .map_err(|error| failed(format!("does not start: {error}")))?;
    let said = read_in_background(child.stdout.take());
    let complaint = read_in_background(child.stderr.take());
    let left = || until.saturating_duration_since(Instant::now());
    let said = said.recv_timeout(left()).ok();
    let status = said.as_ref().and_then(|_| wait(&mut child, until));
    if status.is_none() {
        end(&mut child);
    }
    let (Some(said), Some(status)) = (said, status) else {
        return Err(failed(format!("takes longer than {} s", timeout.as_secs())));
    };
    // It has ended: its standard error ends, too, unless another process has that.
    let complaint = complaint.recv_timeout(left().min(Duration::from_secs(1))).unwrap_or_default();
    if said.len() > MAX_KEY_BYTES {
        return Err(failed(format!("says more than {MAX_KEY_BYTES} bytes")));
    }
    if !status.success() {
        return Err(failed(format!("fails ({status}): {}", first_line(&complaint))));
    }
    Ok(said)
}

/// Reads as much as is of use, then closes the pipe.
fn read_in_background(
    pipe: Option<impl Read + Send + 'static>,
) -> mpsc::Receiver<Zeroizing<Vec<u8>>> {
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::spawn(move || {
        let mut content = Zeroizing::new(Vec::with_capacity(MAX_KEY_BYTES + 1));
        if let Some(pipe) = pipe {
            // An error ends it as the end does: a key that is cut short is no key.
            drop(pipe.take(MAX_KEY_BYTES as u64 + 1).read_to_end(&mut content));
        }
        drop(sender.send(content));
    });
    receiver
}

fn wait(child: &mut Child, until: Instant) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

fn end(child: &mut Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // It may have ended just now.
        if let Err(error) = kill_process_group(group, Signal::KILL) {
            tracing::debug!(%error, "the command for the key is not killed");
        }
    }
    drop(child.kill());
    drop(child.wait());
}

fn first_line(complaint: &[u8]) -> String {
    let text = String::from_utf8_lossy(complaint);
    let line = text.lines().next().unwrap_or_default().trim();
    if line.is_empty() {
        return "it says nothing on its standard error".to_owned();
    }
    line.chars().filter(|letter| !letter.is_control()).take(MAX_REASON_CHARS).collect()
}
