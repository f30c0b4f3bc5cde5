//! Pulling a known stretch of a shard's log from a node that has it: the tail, when an epoch ends.
//! Where the log begins too late, the node's whole state.

use std::sync::Arc;
use std::time::Duration;

use meridian_proto::directory::{
    ReadLogRequest, ReadStateRequest, failover_client::FailoverClient,
};
use meridian_storage::{Applied, Replace, ShardState, ShippedLog, StagedState, Syncer, or_fatal};
use meridian_types::{EpochHistory, NodeId, Position};
use tokio::sync::Semaphore;

use crate::host::disk::DiskGuard;
use crate::network::peers::{MAX_MESSAGE_BYTES, PeerChannels};
use crate::replication::compression::Decompressor;
use crate::replication::shipped_batch::{Shipped, unpack};
use crate::replication::staging::{add, stage};
use crate::replication::state_chunk::decode_chunk;
use crate::replication::wire::{position, position_to_wire};

const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Stretches of log that this process has in hand at once, each of about two MiB: a region's end
/// concerns all of its shards at once.
static PULLS: Semaphore = Semaphore::const_new(16);
/// Between two chunks of a state.
const CHUNK_TIMEOUT: Duration = Duration::from_secs(5);

/// What a drain writes to. Nobody else writes there meanwhile.
pub(crate) struct Target<'a> {
    pub(crate) state: &'a Arc<ShardState>,
    pub(crate) log: &'a ShippedLog,
    pub(crate) syncer: &'a Arc<Syncer>,
    /// What holds now: a source that lags behind the directory may have what was lost.
    pub(crate) history: &'a EpochHistory,
    pub(crate) disk: &'a DiskGuard,
}

/// What the disk has no room for would stop the process, and at its next start again.
fn has_room(disk: &DiskGuard) -> Result<(), String> {
    if disk.takes_nothing() {
        Err("this node's disk has no room for it".to_owned())
    } else {
        Ok(())
    }
}

/// Brings the target to `through`: by the source's log, or by its state, which is given up once
/// `unwanted` is through.
///
/// # Errors
/// When the source does not answer, or has something else than what follows, or when the disk is
/// full; what was pulled until then stays.
pub(crate) async fn pull(
    target: &Target<'_>,
    peers: &PeerChannels,
    source: NodeId,
    through: Position,
    unwanted: impl Future<Output = ()>,
) -> Result<(), String> {
    tokio::pin!(unwanted);
    while !pull_log(target, peers, source, through, std::future::pending()).await? {
        let staged = tokio::select! {
            staged = fetch(target.state, target.history, target.disk, peers, source, through) => staged?,
            () = &mut unwanted => return Err("it is not wanted any more".to_owned()),
        };
        put_in_place(target, staged, through).await?;
    }
    Ok(())
}

/// Pulls, appends, syncs and applies until the target stands at `through`. False: the source's log
/// no longer has what follows. Nothing more is asked for once `late` is through; what was begun to
/// be written is finished.
///
/// # Errors
/// As [`pull`].
pub(crate) async fn pull_log(
    target: &Target<'_>,
    peers: &PeerChannels,
    source: NodeId,
    through: Position,
    late: impl Future<Output = ()>,
) -> Result<bool, String> {
    tokio::pin!(late);
    let channel = peers.requests(source).ok_or_else(|| format!("node {source} is not known"))?;
    let mut client = FailoverClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    loop {
        let after = target.state.position();
        if after.sequence >= through.sequence {
            return Ok(true);
        }
        has_room(target.disk)?;
        let request = ReadLogRequest {
            shard: target.state.shard().0,
            after: Some(position_to_wire(after)),
            through: Some(position_to_wire(through)),
        };
        let asked = async {
            let turn = PULLS.acquire().await.map_err(|closed| closed.to_string())?;
            Ok::<_, String>((
                tokio::time::timeout(CALL_TIMEOUT, client.read_log(request)).await,
                turn,
            ))
        };
        let (answer, _turn) = tokio::select! {
            asked = asked => asked?,
            () = &mut late => return Err(format!("not at {through} in time")),
        };
        let answer = answer.map_err(|_| format!("node {source} does not answer"))?;
        let answer =
            answer.map_err(|status| format!("node {source}: {}", status.message()))?.into_inner();
        let Some(batches) = answer.batches else { return Ok(false) };
        let (previous, batches) = unpack(target.state, &mut Decompressor::new(None), &batches)?;
        let positions: Vec<_> = batches.iter().map(Shipped::position).collect();
        check(target.history, after, previous, &positions, through)
            .map_err(|what| format!("node {source} sent {what}"))?;
        append(target, batches).await?;
    }
}

/// Fetches the source's whole state, which is then to be [put in place](put_in_place). May be
/// dropped at any await, and begun again: until then nothing has changed.
///
/// # Errors
/// When the source does not answer, or stands where the target may not come to, or when the disk is
/// full.
pub(crate) async fn fetch(
    state: &Arc<ShardState>,
    history: &EpochHistory,
    disk: &DiskGuard,
    peers: &PeerChannels,
    source: NodeId,
    through: Position,
) -> Result<StagedState, String> {
    let failed = |what: String| format!("node {source}'s state: {what}");
    let channel = peers.requests(source).ok_or_else(|| format!("node {source} is not known"))?;
    tracing::info!(shard = %state.shard(), source, %through, "its log begins too late: fetching the whole state");
    metrics::counter!("meridian_snapshot_fetches_total").increment(1);
    let mut client = FailoverClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let request = ReadStateRequest { shard: state.shard().0 };
    let chunks = tokio::time::timeout(CALL_TIMEOUT, client.read_state(request)).await;
    let chunks = chunks.map_err(|_| format!("node {source} does not answer"))?;
    let mut chunks = chunks.map_err(|status| failed(status.message().to_owned()))?.into_inner();
    let mut staged = stage(state).await.map_err(|error| failed(error.to_string()))?;
    loop {
        let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.message()).await;
        let chunk = chunk.map_err(|_| failed("no more of it comes".to_owned()))?;
        let chunk = chunk.map_err(|status| failed(status.message().to_owned()))?;
        let chunk = chunk.ok_or_else(|| failed("the stream ended early".to_owned()))?;
        let at = chunk
            .applied
            .and_then(position)
            .ok_or_else(|| failed("it has no position".to_owned()))?;
        check_state(history, state.position(), at, through).map_err(failed)?;
        has_room(disk)?;
        let rows = decode_chunk(&chunk).map_err(failed)?;
        let (last, bytes) = (
            rows.last,
            rows.rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>(),
        );
        metrics::counter!("meridian_snapshot_received_bytes_total").increment(bytes as u64);
        staged = add(staged, rows).await.map_err(|error| failed(error.to_string()))?;
        if last {
            return Ok(staged);
        }
    }
}

/// Whether a state at `at` brings one at `here` nearer to `through`, and not past it: beyond would
/// be outside of the history of an epoch that begins there.
fn check_state(
    history: &EpochHistory,
    here: Position,
    at: Position,
    through: Position,
) -> Result<(), String> {
    if at.sequence <= here.sequence || history.at(at.sequence) != at || at > through {
        return Err(format!("it stands at {at}, between {here} and {through} it may be"));
    }
    Ok(())
}

/// Takes a state that was fetched in place of the target's, and empties its log. Goes on to its
/// end, even if it is dropped: whoever waits for the target to stand still waits for this.
///
/// # Errors
/// When the target has come further meanwhile, or is not to come so far any more.
pub(crate) async fn put_in_place(
    target: &Target<'_>,
    staged: StagedState,
    through: Position,
) -> Result<Applied, String> {
    let at = staged.position().map_err(|error| error.to_string())?;
    check_state(target.history, target.state.position(), at, through)?;
    let (state, log) = (Arc::clone(target.state), target.log.clone());
    let installed =
        tokio::task::spawn_blocking(move || log.replace_state(&state, staged, Replace::Older))
            .await;
    // One that did not finish is the node stopping.
    let applied =
        installed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    tracing::info!(shard = %target.state.shard(), position = %applied.position, "took another node's state");
    Ok(applied)
}

/// Whether the batches are what follows `after`, up to `through`.
fn check(
    history: &EpochHistory,
    after: Position,
    previous: Position,
    batches: &[Position],
    through: Position,
) -> Result<(), String> {
    if previous != after || batches.is_empty() {
        return Err(format!(
            "{} batches behind {previous}, not what follows {after}",
            batches.len()
        ));
    }
    let mut last = after;
    for position in batches {
        if position.sequence != last.sequence + 1
            || history.at(position.sequence) != *position
            || *position > through
        {
            return Err(format!("{position} behind {last}, up to {through}"));
        }
        last = *position;
    }
    Ok(())
}

/// Off the runtime. To be waited for: it goes on to its end also if it is dropped.
async fn append(target: &Target<'_>, batches: Vec<Shipped>) -> Result<(), String> {
    let (state, log, syncer) =
        (Arc::clone(target.state), target.log.clone(), Arc::clone(target.syncer));
    let appended = tokio::task::spawn_blocking(move || {
        or_fatal(
            log.append(batches.iter().map(|next| (next.position().sequence, next.bytes.as_ref()))),
        );
        let (synced, durable) = std::sync::mpsc::channel();
        syncer.sync_then(move || synced.send(()).unwrap_or_default());
        if durable.recv().is_err() {
            // The syncer was stopped: so is the node.
            return;
        }
        or_fatal(state.apply_shipped(batches.into_iter().map(|next| next.decoded)));
    });
    // One that did not finish is the node stopping.
    appended.await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
