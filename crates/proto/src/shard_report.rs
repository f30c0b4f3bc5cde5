//! Reports of shards, as nodes send them to the directory's leader, and as it shows them to
//! operators.

use meridian_types::{CommitProgress, DatabaseId, Epoch, NodeId, Position, ShardId, ShardReport};

use crate::{directory as wire, shipping};

pub fn shard_report_to_wire(report: &ShardReport) -> wire::ShardReport {
    let divergences = report.divergences.iter().map(|(node, position)| wire::Divergence {
        node_id: node.0,
        position: Some(position_to_wire(*position)),
    });
    wire::ShardReport {
        shard: report.shard.0,
        epoch: report.epoch.0.into(),
        position: Some(position_to_wire(report.position)),
        transactions: report.progress.transactions,
        time_ms: report.progress.time_ms,
        leads: report.leads,
        settled_at: report.voters_confirmed_at,
        lag_ms: report.lag_ms,
        heard_transactions: report.hint.transactions,
        heard_time_ms: report.hint.time_ms,
        dropped: report.dropped.iter().map(|database| database.0.to_vec().into()).collect(),
        divergences: divergences.collect(),
        refuses: report.refuses.clone().unwrap_or_default(),
    }
}

/// `None`: malformed. A malformed element of a list is left out, and the others count.
pub fn shard_report(wire: wire::ShardReport) -> Option<ShardReport> {
    let dropped = wire.dropped.iter().filter_map(|id| id.as_ref().try_into().ok().map(DatabaseId));
    let divergence = |other: wire::Divergence| -> Option<(NodeId, Position)> {
        Some((NodeId(other.node_id), position(other.position?)?))
    };
    Some(ShardReport {
        shard: ShardId(wire.shard),
        epoch: epoch(wire.epoch)?,
        position: position(wire.position?)?,
        progress: CommitProgress::new(wire.transactions, wire.time_ms),
        leads: wire.leads,
        voters_confirmed_at: wire.settled_at,
        lag_ms: wire.lag_ms,
        hint: CommitProgress::new(wire.heard_transactions, wire.heard_time_ms),
        dropped: dropped.collect(),
        divergences: wire.divergences.into_iter().filter_map(divergence).collect(),
        refuses: Some(wire.refuses).filter(|why| !why.is_empty()),
    })
}

fn position_to_wire(position: Position) -> shipping::Position {
    shipping::Position { epoch: position.epoch.0.into(), sequence: position.sequence }
}

fn position(wire: shipping::Position) -> Option<Position> {
    Some(Position::new(epoch(wire.epoch)?, wire.sequence))
}

fn epoch(number: u32) -> Option<Epoch> {
    u16::try_from(number).ok().map(Epoch)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> ShardReport {
        let at = |sequence| Position::new(Epoch(3), sequence);
        ShardReport {
            leads: true,
            voters_confirmed_at: 9,
            lag_ms: 4,
            hint: CommitProgress::new(7, 8),
            dropped: vec![DatabaseId([12; 16])],
            divergences: vec![(NodeId(5), at(40))],
            refuses: Some("damaged".to_owned()),
            ..ShardReport::new(ShardId(1), Epoch(4), at(41), CommitProgress::new(90, 91))
        }
    }

    #[test]
    fn a_report_comes_back_from_the_wire_as_it_was() {
        let full = report();
        assert_eq!(shard_report(shard_report_to_wire(&full)), Some(full));
        let none = CommitProgress::NONE;
        let empty = ShardReport::new(ShardId(1), Epoch(1), Position::ZERO, none);
        assert_eq!(shard_report(shard_report_to_wire(&empty)), Some(empty));
    }

    #[test]
    fn a_report_without_position_or_of_an_impossible_epoch_is_malformed() {
        let wire = shard_report_to_wire(&report());
        let nowhere = wire::ShardReport { position: None, ..wire.clone() };
        assert_eq!(shard_report(nowhere), None);
        let impossible = wire::ShardReport { epoch: 1 << 16, ..wire.clone() };
        assert_eq!(shard_report(impossible), None);
    }

    #[test]
    fn a_malformed_element_is_left_out_and_the_others_count() {
        let mut wire = shard_report_to_wire(&report());
        wire.dropped.insert(0, vec![1, 2].into());
        wire.divergences.insert(0, wire::Divergence { node_id: 1, position: None });
        assert_eq!(shard_report(wire), Some(report()));
    }
}
