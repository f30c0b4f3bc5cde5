use bytes::Bytes;
use meridian_proto::kv_connect;

use crate::fields::{
    Fields, assert_golden, field_bytes, field_message, field_packed, field_signed, field_varint,
};

/// Values of a signed 64-bit field lie below 32 bits.
const NEGATIVE: i64 = -(1 << 40);

pub(crate) fn read_range() -> (kv_connect::ReadRange, Fields) {
    let message = kv_connect::ReadRange {
        start: Bytes::from("start"),
        end: Bytes::from("end"),
        limit: -3,
        reverse: true,
    };
    (
        message,
        vec![
            field_bytes(1, b"start"),
            field_bytes(2, b"end"),
            field_signed(3, -3),
            field_varint(4, 1),
        ],
    )
}

fn kv_entry() -> (kv_connect::KvEntry, Fields) {
    let message = kv_connect::KvEntry {
        key: Bytes::from("key"),
        value: Bytes::from("value"),
        encoding: 3,
        versionstamp: Bytes::from("versionsta"),
    };
    let fields = vec![
        field_bytes(1, b"key"),
        field_bytes(2, b"value"),
        field_varint(3, 3),
        field_bytes(4, b"versionsta"),
    ];
    (message, fields)
}

pub(crate) fn read_range_output() -> (kv_connect::ReadRangeOutput, Fields) {
    let (entry, entry_fields) = kv_entry();
    let message = kv_connect::ReadRangeOutput { values: vec![entry.clone(), entry] };
    (message, vec![field_message(1, &entry_fields), field_message(1, &entry_fields)])
}

pub(crate) fn atomic_write() -> (kv_connect::AtomicWrite, Fields) {
    let check =
        kv_connect::Check { key: Bytes::from("checked"), versionstamp: Bytes::from("0123456789") };
    let check_fields = [field_bytes(1, b"checked"), field_bytes(2, b"0123456789")];
    let mutation = kv_connect::Mutation {
        key: Bytes::from("mutated"),
        value: Some(kv_connect::KvValue { data: Bytes::from("data"), encoding: 2 }),
        mutation_type: 9,
        expire_at_ms: NEGATIVE,
        sum_min: Bytes::from("min"),
        sum_max: Bytes::from("max"),
        sum_clamp: true,
    };
    let mutation_fields = [
        field_bytes(1, b"mutated"),
        field_message(2, &[field_bytes(1, b"data"), field_varint(2, 2)]),
        field_varint(3, 9),
        field_signed(4, NEGATIVE),
        field_bytes(5, b"min"),
        field_bytes(6, b"max"),
        field_varint(7, 1),
    ];
    let enqueue = kv_connect::Enqueue {
        payload: Bytes::from("payload"),
        deadline_ms: NEGATIVE - 1,
        keys_if_undelivered: vec![Bytes::from("one"), Bytes::from("two")],
        backoff_schedule: vec![100, 200],
    };
    let enqueue_fields = [
        field_bytes(1, b"payload"),
        field_signed(2, NEGATIVE - 1),
        field_bytes(3, b"one"),
        field_bytes(3, b"two"),
        field_packed(4, &[100, 200]),
    ];
    let message = kv_connect::AtomicWrite {
        checks: vec![check.clone(), check],
        mutations: vec![mutation.clone(), mutation],
        enqueues: vec![enqueue.clone(), enqueue],
    };
    let fields = vec![
        field_message(1, &check_fields),
        field_message(1, &check_fields),
        field_message(2, &mutation_fields),
        field_message(2, &mutation_fields),
        field_message(3, &enqueue_fields),
        field_message(3, &enqueue_fields),
    ];
    (message, fields)
}

#[test]
fn client_reads_are_golden() {
    let (range, range_fields) = read_range();
    let request = kv_connect::SnapshotRead { ranges: vec![range.clone(), range] };
    assert_golden(&request, &[field_message(1, &range_fields), field_message(1, &range_fields)]);

    let (output, output_fields) = read_range_output();
    let response = kv_connect::SnapshotReadOutput {
        ranges: vec![output.clone(), output],
        read_disabled: true,
        read_is_strongly_consistent: true,
        status: 2,
    };
    let golden = [
        field_message(1, &output_fields),
        field_message(1, &output_fields),
        field_varint(2, 1),
        field_varint(4, 1),
        field_varint(8, 2),
    ];
    assert_golden(&response, &golden);
    // Two flags next to each other: each by itself.
    let strong = kv_connect::SnapshotReadOutput {
        ranges: Vec::new(),
        read_disabled: false,
        read_is_strongly_consistent: true,
        status: 1,
    };
    assert_golden(&strong, &[field_varint(4, 1), field_varint(8, 1)]);
}

#[test]
fn client_writes_are_golden() {
    let (write, golden) = atomic_write();
    assert_golden(&write, &golden);
    let output = kv_connect::AtomicWriteOutput {
        status: 5,
        versionstamp: Bytes::from("versionsta"),
        failed_checks: vec![0, 300],
    };
    let golden = [field_varint(1, 5), field_bytes(2, b"versionsta"), field_packed(4, &[0, 300])];
    assert_golden(&output, &golden);
}

#[test]
fn client_watches_are_golden() {
    let key = |key| kv_connect::WatchKey { key: Bytes::from_static(key) };
    let request = kv_connect::Watch { keys: vec![key(b"one"), key(b"two")] };
    let golden =
        [field_message(1, &[field_bytes(1, b"one")]), field_message(1, &[field_bytes(1, b"two")])];
    assert_golden(&request, &golden);

    let (entry, entry_fields) = kv_entry();
    let changed = kv_connect::WatchKeyOutput { changed: true, entry_if_changed: Some(entry) };
    let unchanged = kv_connect::WatchKeyOutput { changed: false, entry_if_changed: None };
    let output = kv_connect::WatchOutput { status: 2, keys: vec![changed, unchanged] };
    let changed_fields = [field_varint(1, 1), field_message(2, &entry_fields)];
    assert_golden(
        &output,
        &[field_varint(1, 2), field_message(2, &changed_fields), field_message(2, &[])],
    );
}

#[test]
fn the_numbers_of_enum_values_are_golden() {
    use kv_connect::{AtomicWriteStatus, MutationType, SnapshotReadStatus, ValueEncoding};

    let statuses = [
        SnapshotReadStatus::SrUnspecified,
        SnapshotReadStatus::SrSuccess,
        SnapshotReadStatus::SrReadDisabled,
    ];
    assert_eq!(statuses.map(i32::from), [0, 1, 2]);
    let statuses = [
        AtomicWriteStatus::AwUnspecified,
        AtomicWriteStatus::AwSuccess,
        AtomicWriteStatus::AwCheckFailure,
        AtomicWriteStatus::AwWriteDisabled,
    ];
    assert_eq!(statuses.map(i32::from), [0, 1, 2, 5]);
    let encodings = [
        ValueEncoding::VeUnspecified,
        ValueEncoding::VeV8,
        ValueEncoding::VeLe64,
        ValueEncoding::VeBytes,
    ];
    assert_eq!(encodings.map(i32::from), [0, 1, 2, 3]);
    let mutations = [
        MutationType::MUnspecified,
        MutationType::MSet,
        MutationType::MDelete,
        MutationType::MSum,
        MutationType::MMax,
        MutationType::MMin,
        MutationType::MSetSuffixVersionstampedKey,
    ];
    assert_eq!(mutations.map(i32::from), [0, 1, 2, 3, 4, 5, 9]);
}
