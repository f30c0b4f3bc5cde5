//! The shipping rules' types to and from `/proto`. `None` where a message is malformed.

use std::time::Duration;

use meridian_proto::shipping as wire;
use meridian_shipping::{Heartbeat, Status};
use meridian_types::{Epoch, NodeId, Position, ShardId};

/// Decompresses a zstd frame, which must not become more than `max_bytes`. Takes memory for what
/// the frame says that it holds: not for the most that it could, each time.
pub(crate) fn decompress(frame: &[u8], max_bytes: usize) -> Result<Vec<u8>, String> {
    let said = zstd::zstd_safe::get_frame_content_size(frame).ok().flatten();
    let said = said.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(max_bytes);
    zstd::bulk::decompress(frame, said.min(max_bytes)).map_err(|error| error.to_string())
}

pub(crate) fn position_to_wire(position: Position) -> wire::Position {
    wire::Position { epoch: position.epoch.0.into(), sequence: position.sequence }
}

pub(crate) fn position(wire: wire::Position) -> Option<Position> {
    Some(Position::new(Epoch(u16::try_from(wire.epoch).ok()?), wire.sequence))
}

pub(crate) fn status_to_wire(shard: ShardId, status: &Status) -> wire::Status {
    wire::Status {
        shard: shard.0,
        node_id: status.node.0,
        epoch: status.epoch.0.into(),
        durable: Some(position_to_wire(status.durable)),
        hops: status.hops.map(u32::from),
        primary_age_ms: u64::try_from(status.primary_age.as_millis()).unwrap_or(u64::MAX),
        fetching_snapshot: status.fetching_snapshot,
        may_lead: false,
    }
}

pub(crate) fn status(wire: wire::Status) -> Option<(ShardId, Status)> {
    let hops = match wire.hops {
        None => None,
        Some(hops) => Some(u8::try_from(hops).ok()?),
    };
    let status = Status {
        node: NodeId(wire.node_id),
        epoch: Epoch(u16::try_from(wire.epoch).ok()?),
        durable: position(wire.durable?)?,
        hops,
        primary_age: Duration::from_millis(wire.primary_age_ms),
        fetching_snapshot: wire.fetching_snapshot,
    };
    Some((ShardId(wire.shard), status))
}

pub(crate) fn heartbeat_to_wire(shard: ShardId, heartbeat: &Heartbeat) -> wire::Heartbeat {
    wire::Heartbeat {
        status: Some(status_to_wire(shard, &heartbeat.status)),
        committed: Some(position_to_wire(heartbeat.committed)),
        time_ms: heartbeat.time_ms,
    }
}

pub(crate) fn heartbeat_from_wire(wire: wire::Heartbeat) -> Option<Heartbeat> {
    let (_, status) = status(wire.status?)?;
    Some(Heartbeat { status, committed: position(wire.committed?)?, time_ms: wire.time_ms })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_takes_what_it_holds_and_no_more_than_it_may() {
        let frame = zstd::bulk::compress(&[7; 1000], 1).unwrap();
        let bytes = decompress(&frame, 64 << 20).unwrap();
        assert_eq!((bytes.len(), bytes.capacity()), (1000, 1000));
        assert!(decompress(&frame, 999).is_err());
        assert!(decompress(b"no frame", 1000).is_err());
    }
}
