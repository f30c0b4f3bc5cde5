//! Pulling what a shard lacks up to a position, when an epoch ends: [`CatchUp`] decides which node is
//! asked for what, this driver asks, writes and installs.
//!
//! A pull may be dropped at any await: what was begun to be written goes on to its end, and the next
//! pull begins with what is there then.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_net::MAX_MESSAGE_BYTES;
use meridian_placement::{
    CALL_TIMEOUT, CHUNK_TIMEOUT, CatchUp, CatchUpAction, CatchUpEvent, CatchUpFailure, PULL_PAUSE,
    check_state,
};
use meridian_proto::directory::{
    ReadLogRequest, ReadStateRequest, failover_client::FailoverClient,
};
use meridian_storage::{Applied, Replace, ShardState, ShippedLog, StagedState, Syncer, or_fatal};
use meridian_types::{EpochHistory, NodeId, Position};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::task::JoinHandle;

use crate::host::disk::DiskGuard;
use crate::network::peers::PeerChannels;
use crate::replication::compression::Decompressor;
use crate::replication::shipped_batch::{Shipped, unpack};
use crate::replication::staging::{add, stage};
use crate::replication::state_chunk::decode_chunk;
use crate::replication::wire::{position, position_to_wire};

/// Stretches of log that this process has in hand at once, each of about two MiB: a region's end
/// concerns all of its shards at once.
const TURNS: u32 = 16;
static PULLS: Semaphore = Semaphore::const_new(TURNS as usize);

/// Takes all turns but one, as other catch-ups of this process would.
#[cfg(test)]
pub(crate) async fn leave_one_turn() -> SemaphorePermit<'static> {
    PULLS.acquire_many(TURNS - 1).await.unwrap()
}

/// The target of a catch-up, to which nothing else writes meanwhile.
pub(crate) struct Target<'a> {
    pub(crate) state: &'a Arc<ShardState>,
    pub(crate) log: &'a ShippedLog,
    pub(crate) syncer: &'a Arc<Syncer>,
    pub(crate) disk: &'a Arc<DiskGuard>,
}

/// The surroundings of a catch-up, as it asks for them.
pub(crate) struct Surroundings<S, W, I> {
    /// The nodes that may be asked now.
    pub(crate) sources: S,
    /// Waits until a whole state is not wanted any more.
    pub(crate) unwanted: W,
    /// A whole state has been put in place.
    pub(crate) installed: I,
}

/// The fetch of a whole state. It ends when this is dropped.
pub(crate) struct Fetch(JoinHandle<Result<StagedState, String>>);

impl Drop for Fetch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A write to a full disk would stop the process, and again at its next start.
fn has_room(disk: &DiskGuard) -> Result<(), String> {
    if disk.takes_nothing() {
        Err("this node's disk has no room for it".to_owned())
    } else {
        Ok(())
    }
}

/// Carries out a catch-up, which was made for a clock that begins now. `whole`: the fetch of a whole
/// state, which goes on between two catch-ups.
///
/// # Errors
/// Why the target is not where it was to come; what was pulled until then stays.
pub(crate) async fn run<S, W, U, I>(
    machine: &mut CatchUp,
    target: &Target<'_>,
    peers: &Arc<PeerChannels>,
    whole: &mut Option<Fetch>,
    mut surroundings: Surroundings<S, W, I>,
) -> Result<(), CatchUpFailure>
where
    S: Fn() -> Vec<NodeId>,
    W: Fn() -> U,
    U: Future<Output = ()>,
    I: FnMut(Applied),
{
    let start = Instant::now();
    let (mut batches, mut staged): (Option<LogRead>, _) = (None, None);
    let mut event = CatchUpEvent::Begin { position: target.state.position() };
    loop {
        let action = machine.step(start.elapsed(), event);
        if let Some(failure) = machine.take_failure() {
            tracing::debug!(shard = %target.state.shard(), %failure, "a source is of no use");
        }
        // Batches that the machine refuses are dropped before another source is asked, with their
        // turn: tasks that held one and waited for a second would keep all turns for ever.
        if !matches!(action, CatchUpAction::WriteBatches) {
            batches = None;
        }
        if !matches!(action, CatchUpAction::InstallState) {
            staged = None;
        }
        let late = wait_until(start, machine.until());
        event = match action {
            CatchUpAction::ReadLog { source, after, through } => tokio::select! {
                read = read_log(target, peers, source, after, through) => {
                    read_event(read, &mut batches)
                }
                () = late => CatchUpEvent::Late,
            },
            CatchUpAction::WriteBatches => {
                let came = batches.take().map(|read| (read.batches, read._turn));
                let (came, _turn) = came.unzip();
                append(target, came.unwrap_or_default()).await.map_or_else(failed, |()| {
                    CatchUpEvent::Written { position: target.state.position() }
                })
            }
            CatchUpAction::FetchState { source } => {
                let (history, through) = (machine.history().clone(), machine.through());
                *whole = Some(begin_fetch(target, peers, history, source, through));
                await_state(whole, &mut staged, &surroundings.unwanted, late).await
            }
            CatchUpAction::AwaitState => {
                await_state(whole, &mut staged, &surroundings.unwanted, late).await
            }
            CatchUpAction::InstallState => match put_in_place(target, staged.take()).await {
                Ok(applied) => {
                    let position = applied.position;
                    (surroundings.installed)(applied);
                    CatchUpEvent::StateInstalled { position }
                }
                Err(reason) => failed(reason),
            },
            CatchUpAction::Pause => {
                tokio::time::sleep(PULL_PAUSE).await;
                CatchUpEvent::Resumed { sources: (surroundings.sources)() }
            }
            CatchUpAction::Finish(result) => {
                if result.is_ok() {
                    *whole = None;
                }
                return result;
            }
            CatchUpAction::Nothing => {
                return Err(CatchUpFailure::Failed("it came to no end".to_owned()));
            }
        };
    }
}

fn failed(reason: String) -> CatchUpEvent {
    CatchUpEvent::Failed { reason }
}

async fn wait_until(start: Instant, at: Option<Duration>) {
    match at {
        Some(at) => tokio::time::sleep_until((start + at).into()).await,
        None => std::future::pending().await,
    }
}

/// The batches behind a position, from a source's log.
struct LogRead {
    previous: Position,
    batches: Vec<Shipped>,
    /// Held until they are written.
    _turn: SemaphorePermit<'static>,
}

fn read_event(
    read: Result<Option<LogRead>, String>,
    batches: &mut Option<LogRead>,
) -> CatchUpEvent {
    match read {
        Ok(Some(read)) => {
            let positions = read.batches.iter().map(Shipped::position).collect();
            let previous = read.previous;
            *batches = Some(read);
            CatchUpEvent::Batches { previous, batches: positions }
        }
        Ok(None) => CatchUpEvent::LogGone,
        Err(reason) => failed(reason),
    }
}

/// `None`: the source's log no longer has what follows.
///
/// # Errors
/// When the source does not answer, or refuses, or when the disk is full.
async fn read_log(
    target: &Target<'_>,
    peers: &PeerChannels,
    source: NodeId,
    after: Position,
    through: Position,
) -> Result<Option<LogRead>, String> {
    let channel = peers.requests(source).ok_or_else(|| format!("node {source} is not known"))?;
    let mut client = FailoverClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    has_room(target.disk)?;
    let request = ReadLogRequest {
        shard: target.state.shard().0,
        after: Some(position_to_wire(after)),
        through: Some(position_to_wire(through)),
    };
    let turn = PULLS.acquire().await.map_err(|closed| closed.to_string())?;
    let answer = tokio::time::timeout(CALL_TIMEOUT, client.read_log(request)).await;
    let answer = answer.map_err(|_| format!("node {source} does not answer"))?;
    let answer =
        answer.map_err(|status| format!("node {source}: {}", status.message()))?.into_inner();
    let Some(batches) = answer.batches else { return Ok(None) };
    let (previous, batches) = unpack(target.state, &mut Decompressor::new(None), &batches)?;
    Ok(Some(LogRead { previous, batches, _turn: turn }))
}

fn begin_fetch(
    target: &Target<'_>,
    peers: &Arc<PeerChannels>,
    history: EpochHistory,
    source: NodeId,
    through: Position,
) -> Fetch {
    let (state, disk) = (Arc::clone(target.state), Arc::clone(target.disk));
    let peers = Arc::clone(peers);
    Fetch(tokio::spawn(async move {
        let fetched = fetch(&state, &history, &disk, &peers, source, through).await;
        fetched.map_err(|what| format!("node {source}'s state: {what}"))
    }))
}

/// Waits for the fetch. It goes on where it is late, and ends where it is not wanted.
async fn await_state<U: Future<Output = ()>>(
    whole: &mut Option<Fetch>,
    staged: &mut Option<StagedState>,
    unwanted: impl Fn() -> U,
    late: impl Future<Output = ()>,
) -> CatchUpEvent {
    let Some(fetch) = whole else { return failed("no state is on its way".to_owned()) };
    let fetched = tokio::select! {
        fetched = &mut fetch.0 => fetched,
        () = late => return CatchUpEvent::Late,
        () = unwanted() => {
            *whole = None;
            return CatchUpEvent::Unwanted;
        }
    };
    *whole = None;
    let fetched = fetched.map_err(|error| error.to_string()).flatten();
    let fetched = fetched.and_then(|state| {
        let position = state.position().map_err(|error| error.to_string())?;
        *staged = Some(state);
        Ok(position)
    });
    fetched.map_or_else(failed, |position| CatchUpEvent::StateFetched { position })
}

/// Fetches the source's whole state, which is then to be put in place. May be dropped at any await,
/// and begun again: until then nothing has changed.
///
/// # Errors
/// When the source does not answer, or stands where the target may not come to, or when the disk is
/// full.
async fn fetch(
    state: &Arc<ShardState>,
    history: &EpochHistory,
    disk: &DiskGuard,
    peers: &PeerChannels,
    source: NodeId,
    through: Position,
) -> Result<StagedState, String> {
    let channel = peers.requests(source).ok_or("it is not known")?;
    tracing::info!(shard = %state.shard(), %source, %through, "its log begins too late: fetching the whole state");
    metrics::counter!("meridian_snapshot_fetches_total").increment(1);
    let mut client = FailoverClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let request = ReadStateRequest { shard: state.shard().0 };
    let chunks = tokio::time::timeout(CALL_TIMEOUT, client.read_state(request)).await;
    let chunks = chunks.map_err(|_| "it does not answer")?;
    let mut chunks = chunks.map_err(|status| status.message().to_owned())?.into_inner();
    let mut staged = stage(state).await.map_err(|error| error.to_string())?;
    loop {
        let chunk = tokio::time::timeout(CHUNK_TIMEOUT, chunks.message()).await;
        let chunk = chunk.map_err(|_| "no more of it comes")?;
        let chunk = chunk.map_err(|status| status.message().to_owned())?;
        let chunk = chunk.ok_or("the stream ended early")?;
        let at = chunk.applied.and_then(position).ok_or("it has no position")?;
        check_state(history, state.position(), at, through).map_err(|wrong| wrong.to_string())?;
        has_room(disk)?;
        let rows = decode_chunk(&chunk)?;
        let bytes = rows.rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let last = rows.last;
        metrics::counter!("meridian_snapshot_received_bytes_total").increment(bytes as u64);
        staged = add(staged, rows).await.map_err(|error| error.to_string())?;
        if last {
            return Ok(staged);
        }
    }
}

/// Takes a state that was fetched in place of the target's, and empties its log. Goes on to its end,
/// even if it is dropped: a caller that waits for the target to stand still waits for this.
///
/// # Errors
/// When the target has come further meanwhile, or the node is stopping.
async fn put_in_place(target: &Target<'_>, staged: Option<StagedState>) -> Result<Applied, String> {
    let staged = staged.ok_or("no state has come")?;
    let (state, log) = (Arc::clone(target.state), target.log.clone());
    let install = move || log.replace_state(&state, staged, Replace::Older);
    let installed = tokio::task::spawn_blocking(install).await;
    // A task that did not finish: the node is stopping.
    let applied =
        installed.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    tracing::info!(shard = %target.state.shard(), position = %applied.position, "took another node's state");
    Ok(applied)
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
    // A task that did not finish: the node is stopping.
    appended.await.map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
