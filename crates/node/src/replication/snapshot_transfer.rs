//! Whole states between nodes: a stream of rows from one snapshot, compressed, checksummed,
//! resumable.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::{StateTransfer, Transfer};
use meridian_net::MAX_MESSAGE_BYTES;
use meridian_proto::shipping::{self as wire, shipping_client::ShippingClient};
use meridian_storage::{
    GroupId, ShardState, StagedState, StateRows, StateSnapshot, StorageError, or_fatal,
};
use meridian_types::{NodeId, ShardId};
use parking_lot::Mutex;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;
use uuid::Uuid;

use crate::network::peers::PeerChannels;
use crate::replication::staging;
use crate::replication::state_chunk::{CHUNK_BYTES, decode_chunk, encode_chunk};
use crate::time_budget::{GIVES_WAY_AFTER, READER_STALLED, SNAPSHOT_CHUNK_TIMEOUT, SNAPSHOT_IDLE};

/// How long the fetcher of a snapshot that was let go may need to put it in place, beyond that.
const INSTALLING: Duration = Duration::from_secs(480);
/// Times in a row that a broken stream is taken up again, if nothing comes by it.
const RESUMES: usize = 10;
const RESUME_PAUSE: Duration = Duration::from_millis(200);
/// Snapshots of one shard that are kept for others at once at most. A snapshot that is read gives way to
/// none.
const MAX_OFFERS: usize = 8;
/// Streams of chunks that are sent at once at most: each has a thread of its own.
const MAX_STREAMS: usize = 32;

/// Where the states of this node's shards are found.
pub(crate) trait States: Send + Sync {
    fn state(&self, shard: ShardId) -> Option<Arc<ShardState>>;
}

/// Keeps the snapshots that others fetch from here, and fetches from them.
pub(crate) struct StateExchange {
    states: Arc<dyn States>,
    offers: Mutex<HashMap<String, Offer>>,
    /// Unfinished fetches: the next fetch of the same snapshot goes on with one.
    begun: Mutex<HashMap<GroupId, Begun>>,
    /// Held by the fetch for a group.
    fetching: Mutex<HashMap<GroupId, Arc<tokio::sync::Mutex<()>>>>,
    streams: Arc<Semaphore>,
    peers: Arc<PeerChannels>,
}

/// As much of a snapshot as has come.
struct Begun {
    source: NodeId,
    snapshot_id: String,
    after: Bytes,
    staged: StagedState,
    since: Instant,
}

/// Keeps what has come when the fetch is dropped or fails.
struct Fetch {
    exchange: Arc<StateExchange>,
    group: GroupId,
    begun: Option<Begun>,
    /// Let go of when what has come is kept.
    _one_at_a_time: OwnedMutexGuard<()>,
}

impl Fetch {
    /// Writes rows off the runtime. Dropped before it is through, the fetch ends when they are
    /// written.
    async fn add(mut self, rows: StateRows, snapshot_id: String) -> Result<Self, StorageError> {
        let added = tokio::task::spawn_blocking(move || {
            if let Some(begun) = &mut self.begun {
                let after = rows.rows.last().map(|(key, _)| key.clone());
                begun.staged.add(rows)?;
                begun.snapshot_id = snapshot_id;
                begun.after = after.unwrap_or_else(|| begun.after.clone());
            }
            Ok(self)
        });
        added.await.map_err(StorageError::cancelled)?
    }
}

/// Off the runtime: the staged rows are deleted.
fn discard(begun: Option<Begun>) {
    if let Some(begun) = begun {
        tokio::task::spawn_blocking(move || drop(begun));
    }
}

impl Drop for Fetch {
    fn drop(&mut self) {
        if let Some(begun) = self.begun.take().filter(|begun| !begun.after.is_empty()) {
            let kept = Begun { since: Instant::now(), ..begun };
            self.exchange.begun.lock().insert(self.group, kept);
        }
    }
}

struct Offer {
    group: GroupId,
    snapshot: Arc<StateSnapshot>,
    /// When it was made, or last read from.
    used: Instant,
}

impl StateExchange {
    pub(crate) fn new(states: Arc<impl States + 'static>, peers: Arc<PeerChannels>) -> Self {
        let (offers, begun, fetching) = Default::default();
        Self {
            states,
            offers,
            begun,
            fetching,
            streams: Arc::new(Semaphore::new(MAX_STREAMS)),
            peers,
        }
    }

    /// `None`: as many as may be are being read. A repeated offer does not count as a read: a node
    /// that is away is offered the same for ever, which would hold the log for as long.
    fn keep(&self, group: GroupId, snapshot: Arc<StateSnapshot>) -> Option<String> {
        let mut offers = self.offers.lock();
        let known = offers
            .iter()
            .find(|(_, offer)| Arc::ptr_eq(&offer.snapshot, &snapshot) && offer.group == group);
        if let Some((id, _)) = known {
            return Some(id.clone());
        }
        let of_shard = || offers.iter().filter(|(_, offer)| offer.group.shard == group.shard);
        if of_shard().count() >= MAX_OFFERS {
            let (oldest, offer) = of_shard().min_by_key(|(_, offer)| offer.used)?;
            if offer.used.elapsed() < GIVES_WAY_AFTER {
                return None;
            }
            let oldest = oldest.clone();
            offers.remove(&oldest);
        }
        let id = Uuid::now_v7().to_string();
        offers.insert(id.clone(), Offer { group, snapshot, used: Instant::now() });
        Some(id)
    }

    /// Drops snapshots that no node fetches, here or there; on a full disk also those that may be
    /// fetched further.
    pub(crate) fn prune(&self, is_full: bool) {
        self.offers.lock().retain(|_, offer| offer.used.elapsed() < SNAPSHOT_IDLE);
        let abandoned: Vec<_> = self
            .begun
            .lock()
            .extract_if(|_, begun| is_full || begun.since.elapsed() >= SNAPSHOT_IDLE)
            .collect();
        // Staged rows are deleted with them, and the lock is held by runtime threads.
        drop(abandoned);
    }

    /// The sequence behind which the shard's log is needed: a node that copies a snapshot goes on
    /// from there.
    pub(crate) fn needs_log_after(&self, shard: ShardId) -> Option<u64> {
        let offers = self.offers.lock();
        let offers = offers
            .values()
            .filter(|offer| offer.group.shard == shard && offer.used.elapsed() < SNAPSHOT_IDLE);
        offers.map(|offer| offer.snapshot.applied().position.sequence).min()
    }

    /// As when a fetch of the group's state broke off, and so much has come.
    #[cfg(test)]
    pub(crate) fn keep_begun(&self, group: GroupId, staged: StagedState) {
        let (snapshot_id, after) = ("a snapshot".to_owned(), Bytes::from_static(b"a key"));
        let begun = Begun { source: NodeId(1), snapshot_id, after, staged, since: Instant::now() };
        self.begun.lock().insert(group, begun);
    }

    #[cfg(test)]
    pub(crate) fn forget_offers(&self) {
        self.offers.lock().clear();
    }

    /// Whether the shard's state is being copied to this node.
    pub(crate) fn is_fetching(&self, shard: ShardId) -> bool {
        self.begun.lock().keys().any(|group| group.shard == shard)
            || self
                .fetching
                .lock()
                .iter()
                .any(|(group, lock)| group.shard == shard && lock.try_lock().is_err())
    }

    fn find(&self, id: &str, group: GroupId) -> Option<Arc<StateSnapshot>> {
        let mut offers = self.offers.lock();
        let offer = offers.get_mut(id).filter(|offer| offer.group == group)?;
        offer.used = Instant::now();
        Some(Arc::clone(&offer.snapshot))
    }

    /// Serves a fetch: the chunks behind the key asked for.
    pub(crate) fn serve(
        self: &Arc<Self>,
        group: GroupId,
        request: wire::FetchStateRequest,
    ) -> Result<mpsc::Receiver<Result<wire::StateChunk, Status>>, Status> {
        let stream = self.stream()?;
        let id = if request.snapshot_id.is_empty() {
            let state = self.states.state(group.shard);
            let state = state
                .ok_or_else(|| Status::not_found(format!("shard {} is not here", group.shard)))?;
            let kept = self.keep(group, Arc::new(or_fatal(state.snapshot())));
            kept.ok_or_else(|| {
                Status::resource_exhausted("as many snapshots as may be are being read from here")
            })?
        } else {
            request.snapshot_id
        };
        let gone = || Status::not_found(format!("snapshot `{id}` is not kept here any more"));
        let snapshot = self.find(&id, group).ok_or_else(gone)?;
        let (exchange, kept) = (Arc::clone(self), id.clone());
        // A fetcher that goes away may come back for the rest while the snapshot is kept.
        Ok(chunks(snapshot, id, request.after_key.to_vec(), stream, move || {
            drop(exchange.find(&kept, group))
        }))
    }

    /// The whole state as it is now, for one reader, which begins anew if the stream breaks.
    pub(crate) fn read(
        &self,
        state: &ShardState,
    ) -> Result<mpsc::Receiver<Result<wire::StateChunk, Status>>, Status> {
        let stream = self.stream()?;
        Ok(chunks(Arc::new(or_fatal(state.snapshot())), String::new(), Vec::new(), stream, || {}))
    }

    #[allow(clippy::result_large_err, reason = "tonic's own error type, on a path of no hurry")]
    fn stream(&self) -> Result<OwnedSemaphorePermit, Status> {
        let many =
            |_| Status::resource_exhausted("as many states as may be are being read from here");
        Arc::clone(&self.streams).try_acquire_owned().map_err(many)
    }

    /// Goes on with what was begun of the same snapshot, or, where none is named, of any of the
    /// source.
    async fn fetch_from(
        self: Arc<Self>,
        group: GroupId,
        source: NodeId,
        snapshot_id: String,
        state: Arc<ShardState>,
    ) -> Result<StagedState, StorageError> {
        let lock = Arc::clone(self.fetching.lock().entry(group).or_default());
        // A fetch that was given up may not have ended yet.
        let one_at_a_time = lock.lock_owned().await;
        let begun = self.begun.lock().remove(&group);
        let is_the_same = |begun: &Begun| {
            begun.source == source && (snapshot_id.is_empty() || snapshot_id == begun.snapshot_id)
        };
        let begun = match begun {
            Some(begun) if is_the_same(&begun) => begun,
            other => {
                discard(other);
                let staged = staging::stage(&state).await?;
                Begun { source, snapshot_id, after: Bytes::new(), staged, since: Instant::now() }
            }
        };
        let exchange = Arc::clone(&self);
        self.fetch_rest(Fetch {
            exchange,
            group,
            begun: Some(begun),
            _one_at_a_time: one_at_a_time,
        })
        .await
    }

    async fn fetch_rest(&self, mut fetch: Fetch) -> Result<StagedState, StorageError> {
        let group = fetch.group;
        let ended = || StorageError::NotFetched("a fetch has ended already".to_owned());
        let source = fetch.begun.as_ref().ok_or_else(ended)?.source;
        let refused = |what: String| {
            StorageError::NotFetched(format!("fetching state from node {source}: {what}"))
        };
        let channel =
            self.peers.shipping(source).ok_or_else(|| refused("it is not known".to_owned()))?;
        let mut client = ShippingClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (mut failures, mut failure) = (0, String::new());
        // No limit while something comes.
        while failures < RESUMES {
            failures += 1;
            let begun = fetch.begun.as_ref().ok_or_else(ended)?;
            let request = wire::FetchStateRequest {
                shard: group.shard.0,
                epoch: group.epoch.0.into(),
                snapshot_id: begun.snapshot_id.clone(),
                after_key: begun.after.clone(),
            };
            let opened =
                tokio::time::timeout(SNAPSHOT_CHUNK_TIMEOUT, client.fetch_state(request)).await;
            let opened = opened.unwrap_or_else(|_| Err(Status::deadline_exceeded("no answer")));
            let mut chunks = match opened {
                Ok(response) => response.into_inner(),
                Err(status) if status.code() == tonic::Code::NotFound => {
                    // The rows received so far are of no use any more.
                    discard(fetch.begun.take());
                    return Err(refused(status.message().to_owned()));
                }
                Err(status) => {
                    failure = status.message().to_owned();
                    tokio::time::sleep(RESUME_PAUSE).await;
                    continue;
                }
            };
            failure = loop {
                let chunk = match tokio::time::timeout(SNAPSHOT_CHUNK_TIMEOUT, chunks.message())
                    .await
                {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => break "the stream ended early".to_owned(),
                    Ok(Err(status)) => break status.message().to_owned(),
                    Err(_) => break format!("no chunk for {} s", SNAPSHOT_CHUNK_TIMEOUT.as_secs()),
                };
                let rows = decode_chunk(&chunk).map_err(refused)?;
                let last = rows.last;
                let bytes =
                    rows.rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                metrics::counter!("meridian_snapshot_received_bytes_total").increment(bytes as u64);
                failures = if rows.rows.is_empty() { failures } else { 0 };
                fetch = fetch.add(rows, chunk.snapshot_id).await?;
                if last {
                    return fetch.begun.take().map(|begun| begun.staged).ok_or_else(ended);
                }
            };
            if failures > 0 {
                tokio::time::sleep(RESUME_PAUSE).await;
            }
        }
        Err(refused(failure))
    }
}

impl StateTransfer for StateExchange {
    fn offer(&self, group: GroupId, snapshot: Arc<StateSnapshot>) -> String {
        // Without an id it cannot be found, and the group's leader offers it again.
        self.keep(group, snapshot).unwrap_or_else(|| "none".to_owned())
    }

    fn abandoned(self: Arc<Self>, snapshot_id: String) -> Transfer<()> {
        Box::pin(async move {
            while self
                .offers
                .lock()
                .get(&snapshot_id)
                .is_some_and(|offer| offer.used.elapsed() < SNAPSHOT_IDLE)
            {
                tokio::time::sleep(SNAPSHOT_CHUNK_TIMEOUT).await;
            }
            // The reader has all of it and puts it in place now.
            tokio::time::sleep(INSTALLING).await;
        })
    }

    fn fetch(
        self: Arc<Self>,
        group: GroupId,
        source: NodeId,
        snapshot_id: String,
        state: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async move { self.fetch_from(group, source, snapshot_id, state).await })
    }
}

/// The rows behind the key `after`, in chunks. `read` is called with each chunk.
fn chunks(
    snapshot: Arc<StateSnapshot>,
    id: String,
    mut after: Vec<u8>,
    of_all: OwnedSemaphorePermit,
    read: impl Fn() + Send + 'static,
) -> mpsc::Receiver<Result<wire::StateChunk, Status>> {
    let (chunks, mut made) = mpsc::channel(1);
    let (sent, stream) = mpsc::channel(1);
    tokio::spawn(async move {
        // The thread ends when this lets go of what it makes.
        while let Some(chunk) = made.recv().await {
            if !matches!(tokio::time::timeout(READER_STALLED, sent.send(chunk)).await, Ok(Ok(()))) {
                return;
            }
        }
    });
    tokio::task::spawn_blocking(move || {
        let _of_all = of_all;
        loop {
            let chunk = snapshot
                .rows(&after, CHUNK_BYTES)
                .map_err(|error| Status::internal(error.to_string()));
            let chunk = chunk.and_then(|rows| {
                after = rows.rows.last().map(|(key, _)| key.to_vec()).unwrap_or_default();
                encode_chunk(&id, &snapshot, rows)
                    .map_err(|error| Status::internal(error.to_string()))
            });
            let end = chunk.as_ref().map_or(true, |chunk| chunk.last);
            read();
            if chunks.blocking_send(chunk).is_err() || end {
                return;
            }
        }
    });
    stream
}

#[cfg(test)]
mod tests;
