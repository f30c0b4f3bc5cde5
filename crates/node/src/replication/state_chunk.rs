//! A chunk of a state's rows on its way between nodes: compressed, with a checksum.

use bytes::Bytes;
use meridian_net::MAX_MESSAGE_BYTES;
use meridian_proto::shipping as wire;
use meridian_storage::{StateRows, StateSnapshot};
use prost::Message;

use crate::replication::wire::decompress;

/// Rows of one chunk, before compression.
pub(crate) const CHUNK_BYTES: usize = 1 << 20;
/// A chunk once it is decompressed at most. Rows of 64 KiB values end a chunk soon after its bound;
/// the directory's state is one row, as large as what a batch of Raft may hold.
const MAX_CHUNK_BYTES: usize = MAX_MESSAGE_BYTES + CHUNK_BYTES;
const ZSTD_LEVEL: i32 = 1;

pub(crate) fn encode_chunk(
    id: &str,
    snapshot: &StateSnapshot,
    rows: StateRows,
) -> std::io::Result<wire::StateChunk> {
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
