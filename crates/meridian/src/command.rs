//! One module a command, or a group of them. Those that speak to the directory share [`operator`].

mod access_token;
pub(crate) mod cluster;
pub(crate) mod cluster_config;
pub(crate) mod databases;
pub(crate) mod dev;
pub(crate) mod drill;
pub(crate) mod failover;
pub(crate) mod latency;
pub(crate) mod nodes;
mod operator;
pub(crate) mod orphans;
pub(crate) mod regions;
pub(crate) mod serve;
pub(crate) mod shards;
pub(crate) mod status;
pub(crate) mod switchover;
pub(crate) mod tokens;

/// What a process does when its terminal is closed, or somebody sends it SIGHUP to have it read its configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hangup {
    /// It serves on: there is nothing to reload.
    Ignore,
    /// As Ctrl-C.
    Stop,
}

/// Resolves at the first Ctrl-C or SIGTERM. From then on a second one ends the process at once, which loses nothing:
/// what was acknowledged is on the disk.
pub(crate) async fn asked_to_stop(hangup: Hangup) {
    use tokio::signal::unix::{SignalKind, signal};
    let signals = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), signal(SignalKind::hangup()));
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangups)) = signals else {
        // Without handlers the signals end the process, which is safe too.
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
        tracing::warn!("asked to stop again: ending at once, requests in progress are not answered");
        crate::log_writer::finish();
        std::process::exit(STOPPED_AT_ONCE);
    });
}

/// As a shell says of a process that SIGINT ended.
const STOPPED_AT_ONCE: i32 = 130;

/// Says something on standard output while serving: whether anybody reads it is no matter.
pub(crate) fn say(text: &str) {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    drop(writeln!(out, "{text}").and_then(|()| out.flush()));
}

/// The counts of data centers, a region each: `3,2,1`.
pub(crate) fn parse_counts(text: &str) -> Result<Counts, String> {
    let count = |part: &str| part.trim().parse::<usize>().map_err(|_| format!("`{part}` is not a number"));
    Ok(Counts(text.split(',').map(count).collect::<Result<_, _>>()?))
}

/// How many data centers each region has, the primary first.
#[derive(Debug, Clone)]
pub(crate) struct Counts(pub(crate) Vec<usize>);
