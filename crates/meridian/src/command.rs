//! One module a command, or a group of them. Those that speak to the directory share [`operator`].

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

/// Resolves at the first Ctrl-C or SIGTERM.
pub(crate) async fn asked_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut terminate) = signal(SignalKind::terminate()) else {
        // Without handlers the signals end the process, which is safe too.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

/// The counts of data centers, a region each: `3,2,1`.
pub(crate) fn parse_counts(text: &str) -> Result<Counts, String> {
    let count = |part: &str| part.trim().parse::<usize>().map_err(|_| format!("`{part}` is not a number"));
    Ok(Counts(text.split(',').map(count).collect::<Result<_, _>>()?))
}

/// How many data centers each region has, the primary first.
#[derive(Debug, Clone)]
pub(crate) struct Counts(pub(crate) Vec<usize>);
