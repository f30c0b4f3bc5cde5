use bytes::Bytes;
use meridian_proto::shipping;

use crate::fields::{
    Fields, L, assert_golden, field_bytes, field_fixed64, field_message, field_varint,
};

pub(crate) fn position(n: u32) -> (shipping::Position, Fields) {
    let message = shipping::Position { epoch: n, sequence: L + u64::from(n) };
    (message, vec![field_varint(1, n.into()), field_varint(2, L + u64::from(n))])
}

fn status(hops: u32) -> (shipping::Status, Fields) {
    let (durable, durable_fields) = position(34);
    let message = shipping::Status {
        shard: 31,
        node_id: L + 32,
        epoch: 33,
        durable: Some(durable),
        hops: Some(hops),
        primary_age_ms: L + 36,
        fetching_snapshot: true,
        may_lead: true,
    };
    let fields = vec![
        field_varint(1, 31),
        field_varint(2, L + 32),
        field_varint(3, 33),
        field_message(4, &durable_fields),
        field_varint(5, hops.into()),
        field_varint(6, L + 36),
        field_varint(7, 1),
        field_varint(8, 1),
    ];
    (message, fields)
}

#[test]
fn subscriptions_are_golden() {
    let (durable, durable_fields) = position(4);
    let start = shipping::Start {
        shard: 1,
        epoch: 2,
        node_id: L + 3,
        durable: Some(durable),
        keeps_window: true,
    };
    let start_fields = [
        field_varint(1, 1),
        field_varint(2, 2),
        field_varint(3, L + 3),
        field_message(4, &durable_fields),
        field_varint(5, 1),
    ];
    let messages = [
        (shipping::subscribe_request::Message::Start(start), field_message(1, &start_fields)),
        (shipping::subscribe_request::Message::Durable(durable), field_message(2, &durable_fields)),
    ];
    for (message, golden) in messages {
        assert_golden(&shipping::SubscribeRequest { message: Some(message) }, &[golden]);
    }
}

#[test]
fn shipments_are_golden() {
    let (previous, previous_fields) = position(1);
    let zstd = Bytes::from("zstd");
    let batches =
        shipping::Batches { previous: Some(previous), zstd, part: L + 3, stored_bytes: 4 };
    let batches_fields = [
        field_message(1, &previous_fields),
        field_bytes(2, b"zstd"),
        field_varint(3, L + 3),
        field_varint(4, 4),
    ];
    let (status, status_fields) = status(35);
    let (committed, committed_fields) = position(2);
    let heartbeat =
        shipping::Heartbeat { status: Some(status), committed: Some(committed), time_ms: L + 3 };
    let heartbeat_fields = [
        field_message(1, &status_fields),
        field_message(2, &committed_fields),
        field_varint(3, L + 3),
    ];
    let needed = shipping::SnapshotNeeded { diverged: true };
    let messages = [
        (shipping::shipment::Message::OpenedEpoch(7), field_varint(1, 7)),
        (shipping::shipment::Message::Batches(batches), field_message(2, &batches_fields)),
        (shipping::shipment::Message::Heartbeat(heartbeat), field_message(3, &heartbeat_fields)),
        (
            shipping::shipment::Message::SnapshotNeeded(needed),
            field_message(4, &[field_varint(1, 1)]),
        ),
    ];
    for (message, golden) in messages {
        assert_golden(&shipping::Shipment { message: Some(message) }, &[golden]);
    }

    let stored = shipping::StoredBatches { batches: vec![Bytes::from("one"), Bytes::from("two")] };
    assert_golden(&stored, &[field_bytes(1, b"one"), field_bytes(1, b"two")]);
}

#[test]
fn announcements_are_golden() {
    let (far, far_fields) = status(35);
    // A voter says 0, which is not the same as no contact.
    let (voter, voter_fields) = status(0);
    let (position, position_fields) = position(3);
    let checkpoint =
        shipping::Checkpoint { shard: 1, node_id: L + 2, applied: Some(position), digest: L + 4 };
    let checkpoint_fields = [
        field_varint(1, 1),
        field_varint(2, L + 2),
        field_message(3, &position_fields),
        field_fixed64(4, L + 4),
    ];
    let checkpoints = vec![checkpoint];
    let request = shipping::AnnounceRequest {
        statuses: vec![far, voter],
        disk_full: true,
        disk_exhausted: true,
        node_id: L + 5,
        clock_ms: L + 6,
        checkpoints,
    };
    let statuses = [field_message(1, &far_fields), field_message(1, &voter_fields)];
    let scalars =
        [field_varint(2, 1), field_varint(5, L + 5), field_varint(6, L + 6), field_varint(7, 1)];
    let checkpoints = [field_message(15, &checkpoint_fields)];
    assert_golden(&request, &[statuses.as_slice(), &scalars, &checkpoints].concat());
    assert_golden(&shipping::AnnounceResponse {}, &[]);
}

#[test]
fn fetching_a_state_is_golden() {
    let request = shipping::FetchStateRequest {
        shard: 1,
        epoch: 2,
        snapshot_id: "snapshot".to_owned(),
        after_key: Bytes::from("after"),
    };
    let golden = [
        field_varint(1, 1),
        field_varint(2, 2),
        field_bytes(3, b"snapshot"),
        field_bytes(4, b"after"),
    ];
    assert_golden(&request, &golden);

    let (applied, applied_fields) = position(2);
    let chunk = shipping::StateChunk {
        snapshot_id: "snapshot".to_owned(),
        applied: Some(applied),
        zstd: Bytes::from("zstd"),
        crc32c: 0xe306_9283,
        last: true,
    };
    let golden = [
        field_bytes(1, b"snapshot"),
        field_message(2, &applied_fields),
        field_bytes(3, b"zstd"),
        field_varint(4, 0xe306_9283),
        field_varint(5, 1),
    ];
    assert_golden(&chunk, &golden);

    let row = shipping::StateRow { key: Bytes::from("key"), value: Bytes::from("value") };
    let row_fields = [field_bytes(1, b"key"), field_bytes(2, b"value")];
    let rows = shipping::StateRows { rows: vec![row.clone(), row] };
    assert_golden(&rows, &[field_message(1, &row_fields), field_message(1, &row_fields)]);
}
