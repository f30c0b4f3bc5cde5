//! Whole states between nodes: a stream of rows from one snapshot, compressed, checksummed, resumable.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::{StateTransfer, Transfer};
use meridian_proto::shipping::{self as wire, shipping_client::ShippingClient};
use meridian_storage::{GroupId, ShardState, StagedState, StateRows, StateSnapshot, StorageError};
use meridian_types::NodeId;
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::mpsc;
use tonic::Status;
use uuid::Uuid;

use crate::drain;
use crate::peers::{MAX_MESSAGE_BYTES, PeerChannels};
use crate::shard_table::ShardTable;
use crate::shipping_wire::decompress;

/// Rows of one chunk, before compression.
const CHUNK_BYTES: usize = 1 << 20;
/// A chunk once it is decompressed at most: rows of 64 KiB values end a chunk soon after its bound.
const MAX_CHUNK_BYTES: usize = 8 << 20;
const ZSTD_LEVEL: i32 = 1;
/// A snapshot that nobody has read from for so long is let go: it holds on to the engine's old files.
const IDLE: Duration = Duration::from_secs(120);
const CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// Times that a broken stream is taken up again.
const RESUMES: usize = 10;

/// Keeps the snapshots that others fetch from here, and fetches from them.
pub(crate) struct StateExchange {
    shards: Arc<ShardTable>,
    offers: Mutex<HashMap<String, Offer>>,
    peers: Arc<PeerChannels>,
}

struct Offer {
    group: GroupId,
    snapshot: Arc<StateSnapshot>,
    used: Instant,
}

impl StateExchange {
    pub(crate) fn new(shards: Arc<ShardTable>, peers: Arc<PeerChannels>) -> Self {
        Self { shards, offers: Mutex::default(), peers }
    }

    fn keep(&self, group: GroupId, snapshot: Arc<StateSnapshot>) -> String {
        let id = Uuid::now_v7().to_string();
        self.offers.lock().insert(id.clone(), Offer { group, snapshot, used: Instant::now() });
        id
    }

    /// Lets go of what nobody fetches.
    pub(crate) fn prune(&self) {
        self.offers.lock().retain(|_, offer| offer.used.elapsed() < IDLE);
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
        let id = if request.snapshot_id.is_empty() {
            let state = self.shards.state(&group.shard);
            let state = state.ok_or_else(|| Status::not_found(format!("shard {} is not here", group.shard)))?;
            self.keep(group, Arc::new(state.snapshot()))
        } else {
            request.snapshot_id
        };
        let gone = || Status::not_found(format!("snapshot `{id}` is not kept here any more"));
        let snapshot = self.find(&id, group).ok_or_else(gone)?;
        let (exchange, kept) = (Arc::clone(self), id.clone());
        // A fetcher that goes away may come back for the rest while the snapshot is kept.
        Ok(chunks(snapshot, id, request.after_key.to_vec(), move || drop(exchange.find(&kept, group))))
    }

    async fn fetch_from(
        &self,
        group: GroupId,
        source: NodeId,
        mut snapshot_id: String,
        state: Arc<ShardState>,
    ) -> Result<StagedState, StorageError> {
        let refused = |what: String| StorageError::Refused(format!("fetching state from node {source}: {what}"));
        let channel = self.peers.shipping(source).ok_or_else(|| refused("it is not known".to_owned()))?;
        let mut client = ShippingClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let mut staged = drain::stage(&state).await?;
        let mut after = Bytes::new();
        let mut failure = String::new();
        for _ in 0..RESUMES {
            let request = wire::FetchStateRequest {
                shard: group.shard.0,
                epoch: group.epoch.0.into(),
                snapshot_id: snapshot_id.clone(),
                after_key: after.clone(),
            };
            let mut chunks = match client.fetch_state(request).await {
                Ok(response) => response.into_inner(),
                Err(status) if status.code() == tonic::Code::NotFound => {
                    return Err(refused(status.message().to_owned()));
                }
                Err(status) => {
                    failure = status.message().to_owned();
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            };
            failure = loop {
                let chunk = match tokio::time::timeout(CHUNK_TIMEOUT, chunks.message()).await {
                    Ok(Ok(Some(chunk))) => chunk,
                    Ok(Ok(None)) => break "the stream ended early".to_owned(),
                    Ok(Err(status)) => break status.message().to_owned(),
                    Err(_) => break format!("no chunk for {} s", CHUNK_TIMEOUT.as_secs()),
                };
                snapshot_id.clone_from(&chunk.snapshot_id);
                let rows = decode_chunk(&chunk).map_err(refused)?;
                if let Some((key, _)) = rows.rows.last() {
                    after = key.clone();
                }
                let last = rows.last;
                let bytes = rows.rows.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
                metrics::counter!("meridian_snapshot_received_bytes_total").increment(bytes as u64);
                staged = drain::add(staged, rows).await?;
                if last {
                    return Ok(staged);
                }
            };
        }
        Err(refused(failure))
    }
}

impl StateTransfer for StateExchange {
    fn offer(&self, group: GroupId, snapshot: Arc<StateSnapshot>) -> String {
        self.keep(group, snapshot)
    }

    fn fetch(
        self: Arc<Self>,
        group: GroupId,
        source: u64,
        snapshot_id: String,
        state: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async move { self.fetch_from(group, source, snapshot_id, state).await })
    }
}

/// The whole state as it is now, for one reader, who begins anew if the stream breaks.
pub(crate) fn read(state: &ShardState) -> mpsc::Receiver<Result<wire::StateChunk, Status>> {
    chunks(Arc::new(state.snapshot()), String::new(), Vec::new(), || {})
}

/// What lies behind the key `after`. `read` is called with each chunk.
fn chunks(
    snapshot: Arc<StateSnapshot>,
    id: String,
    mut after: Vec<u8>,
    read: impl Fn() + Send + 'static,
) -> mpsc::Receiver<Result<wire::StateChunk, Status>> {
    let (chunks, stream) = mpsc::channel(2);
    tokio::task::spawn_blocking(move || {
        loop {
            let chunk = snapshot.rows(&after, CHUNK_BYTES).map_err(|error| Status::internal(error.to_string()));
            let chunk = chunk.and_then(|rows| {
                after = rows.rows.last().map(|(key, _)| key.to_vec()).unwrap_or_default();
                encode_chunk(&id, &snapshot, rows).map_err(|error| Status::internal(error.to_string()))
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

fn encode_chunk(id: &str, snapshot: &StateSnapshot, rows: StateRows) -> std::io::Result<wire::StateChunk> {
    let last = rows.last;
    let rows = rows.rows.into_iter().map(|(key, value)| wire::StateRow { key, value }).collect();
    let compressed = zstd::bulk::compress(&wire::StateRows { rows }.encode_to_vec(), ZSTD_LEVEL)?;
    let applied = snapshot.applied().position;
    Ok(wire::StateChunk {
        snapshot_id: id.to_owned(),
        applied: Some(wire::Position { epoch: applied.epoch.0.into(), sequence: applied.sequence }),
        crc32c: crc32c::crc32c(&compressed),
        zstd: compressed.into(),
        last,
    })
}

pub(crate) fn decode_chunk(chunk: &wire::StateChunk) -> Result<StateRows, String> {
    if crc32c::crc32c(&chunk.zstd) != chunk.crc32c {
        return Err("a chunk's checksum does not match".to_owned());
    }
    let bytes = decompress(&chunk.zstd, MAX_CHUNK_BYTES)?;
    let rows = wire::StateRows::decode(Bytes::from(bytes)).map_err(|error| error.to_string())?;
    let rows = rows.rows.into_iter().map(|row| (row.key, row.value)).collect();
    Ok(StateRows { rows, last: chunk.last })
}

#[cfg(test)]
mod tests {
    use meridian_storage::MemoryEngine;

    use super::*;

    #[test]
    fn a_damaged_chunk_is_refused() {
        let state = ShardState::open(Arc::new(MemoryEngine::default()), meridian_types::ShardId(1)).unwrap();
        let rows = StateRows { rows: vec![(Bytes::from_static(b"k"), Bytes::from_static(b"v"))], last: true };
        let chunk = encode_chunk("id", &state.snapshot(), rows.clone()).unwrap();
        assert_eq!(decode_chunk(&chunk).unwrap(), rows);
        let mut damaged = chunk.zstd.to_vec();
        damaged[3] ^= 1;
        let damaged = wire::StateChunk { zstd: damaged.into(), ..chunk };
        assert_eq!(decode_chunk(&damaged).unwrap_err(), "a chunk's checksum does not match");
    }
}
