//! Pulling a known stretch of a shard's log from a node that has it: the tail, when an epoch ends.

use std::time::Duration;

use bytes::Bytes;
use meridian_proto::batch_header;
use meridian_proto::directory::{ReadLogRequest, failover_client::FailoverClient};
use meridian_proto::shipping::{Batches, StoredBatches};
use meridian_storage::{GroupLog, RaftApplied, ShardState, Syncer};
use meridian_types::{NodeId, Position};
use prost::Message;
use tokio::sync::oneshot;

use crate::history::History;
use crate::peers::{MAX_MESSAGE_BYTES, PeerChannels};
use crate::shard::or_fatal;
use crate::shipping_wire::{position, position_to_wire};

const CALL_TIMEOUT: Duration = Duration::from_secs(1);
/// Decompressed batches of one message at most.
const MAX_SHIPMENT_BYTES: usize = 64 << 20;

/// What a drain writes to. Nobody else writes there meanwhile.
pub(crate) struct Target<'a> {
    pub(crate) state: &'a ShardState,
    pub(crate) log: &'a GroupLog,
    pub(crate) syncer: &'a Syncer,
    /// What holds now: a source that lags behind the directory may have what was lost.
    pub(crate) history: &'a History,
}

/// The batches of one message, in order, each with its position. `previous` is what lies before the first.
pub(crate) fn unpack(batches: &Batches) -> Result<(Position, Vec<(Position, Bytes)>), String> {
    let previous = batches.previous.and_then(position).ok_or("field `previous` is missing")?;
    let stored = zstd::bulk::decompress(&batches.zstd, MAX_SHIPMENT_BYTES).map_err(|error| error.to_string())?;
    let stored = StoredBatches::decode(Bytes::from(stored)).map_err(|error| error.to_string())?;
    let with_position = |bytes: Bytes| match batch_header(&bytes) {
        Ok((position, _)) => Ok((position, bytes)),
        Err(error) => Err(error.to_string()),
    };
    Ok((previous, stored.batches.into_iter().map(with_position).collect::<Result<_, _>>()?))
}

/// Pulls, appends, syncs and applies until the target stands at `through`.
///
/// # Errors
/// When the source does not answer, or has something else than what follows; what was pulled until then stays.
pub(crate) async fn pull(
    target: &Target<'_>,
    peers: &PeerChannels,
    source: NodeId,
    through: Position,
) -> Result<(), String> {
    let channel = peers.requests(source).ok_or_else(|| format!("node {source} is not known"))?;
    let mut client = FailoverClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    loop {
        let after = target.state.position();
        if after.sequence >= through.sequence {
            return Ok(());
        }
        let request = ReadLogRequest {
            shard: target.state.shard().0,
            after: Some(position_to_wire(after)),
            through: Some(position_to_wire(through)),
        };
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.read_log(request)).await;
        let answer = answer.map_err(|_| format!("node {source} does not answer"))?;
        let answer = answer.map_err(|status| format!("node {source}: {}", status.message()))?.into_inner();
        let batches = answer.batches.ok_or_else(|| format!("node {source} no longer has what follows {after}"))?;
        let (previous, batches) = unpack(&batches)?;
        check(target.history, after, previous, &batches, through)
            .map_err(|what| format!("node {source} sent {what}"))?;
        append(target, batches).await;
    }
}

/// Whether the batches are what follows `after`, up to `through`.
fn check(
    history: &History,
    after: Position,
    previous: Position,
    batches: &[(Position, Bytes)],
    through: Position,
) -> Result<(), String> {
    if previous != after || batches.is_empty() {
        return Err(format!("{} batches behind {previous}, not what follows {after}", batches.len()));
    }
    let mut last = after;
    for (position, _) in batches {
        if position.sequence != last.sequence + 1 || history.at(position.sequence) != *position || *position > through {
            return Err(format!("{position} behind {last}, up to {through}"));
        }
        last = *position;
    }
    Ok(())
}

async fn append(target: &Target<'_>, batches: Vec<(Position, Bytes)>) {
    or_fatal(target.log.append(batches.iter().map(|(position, bytes)| (position.sequence, bytes.as_ref()))));
    let (synced, durable) = oneshot::channel();
    target.syncer.sync_then(move || synced.send(()).unwrap_or_default());
    // The syncer ends with the process.
    drop(durable.await);
    let decoded = batches.into_iter().map(|(_, bytes)| crate::replica::decode(bytes));
    let decoded: Vec<_> = or_fatal(decoded.collect());
    or_fatal(target.state.apply(&decoded, RaftApplied::default()));
}

#[cfg(test)]
mod tests {
    use meridian_types::Epoch;

    use super::*;

    fn batches(positions: &[(u16, u64)]) -> Vec<(Position, Bytes)> {
        positions.iter().map(|(epoch, sequence)| (Position::new(Epoch(*epoch), *sequence), Bytes::new())).collect()
    }

    #[test]
    fn only_what_follows_is_taken() {
        let at = |epoch, sequence| Position::new(Epoch(epoch), sequence);
        let (after, through) = (at(1, 5), at(2, 8));
        let history = History::new(vec![(Epoch(1), at(1, 0)), (Epoch(2), at(1, 6))]);
        let check = |previous, positions: &[(u16, u64)]| check(&history, after, previous, &batches(positions), through);
        check(after, &[(1, 6), (2, 7), (2, 8)]).unwrap();
        check(after, &[]).unwrap_err();
        check(at(2, 5), &[(1, 6)]).unwrap_err();
        check(after, &[(2, 7)]).unwrap_err();
        check(after, &[(1, 6), (1, 6)]).unwrap_err();
        // Of the old epoch, beyond where the new one left it.
        check(after, &[(1, 6), (1, 7)]).unwrap_err();
        check(after, &[(2, 6)]).unwrap_err();
        check(after, &[(1, 6), (2, 7), (2, 8), (2, 9)]).unwrap_err();
    }
}
