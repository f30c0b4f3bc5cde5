//! Batches that another node sent, checked and decoded before anything is stored.

use bytes::Bytes;
use meridian_proto::shipping::{Batches, StoredBatches};
use meridian_proto::{DecodedBatch, InvalidBatch, decode_stored};
use meridian_storage::ShardState;
use meridian_types::Position;
use prost::Message;

use crate::replication::compression::Decompressor;
use crate::replication::wire::position;

/// A batch that another node sent: what its leader made, and can be read here. Only then it may be
/// stored.
#[derive(Debug, Clone)]
pub(crate) struct Shipped {
    pub(crate) decoded: DecodedBatch,
    pub(crate) bytes: Bytes,
}

impl Shipped {
    pub(crate) fn position(&self) -> Position {
        self.decoded.batch.position
    }
}

/// The batches of one message of the state's shard, in order, and what lies before the first. The
/// stream that the message is a part of has ended with an error.
///
/// # Errors
/// When one of them is not to be stored, none is.
pub(crate) fn unpack(
    state: &ShardState,
    stream: &mut Decompressor,
    batches: &Batches,
) -> Result<(Position, Vec<Shipped>), String> {
    let previous = batches.previous.and_then(position).ok_or("field `previous` is missing")?;
    let stored = stream.decompress(batches).map_err(|error| error.to_string())?;
    let bytes = stored.len();
    let stored = StoredBatches::decode(Bytes::from(stored)).map_err(|error| error.to_string())?;
    // A batch that is damaged in what frames it would be left out, and missed only when another one
    // comes.
    if stored.encoded_len() != bytes {
        return Err("there is something else than batches in it".to_owned());
    }
    let shipped = |bytes: Bytes| Ok(Shipped { decoded: decode_stored(bytes.clone())?, bytes });
    let batches = stored.batches.into_iter().map(shipped).collect::<Result<_, InvalidBatch>>();
    let batches = batches.inspect_err(|error| state.refusals().record(state.shard(), error));
    Ok((previous, batches.map_err(|error| error.to_string())?))
}
