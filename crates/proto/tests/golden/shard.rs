use bytes::Bytes;
use meridian_proto::kv_connect::WatchKeyOutput;
use meridian_proto::shard;

use crate::fields::{
    Fields, L, assert_golden, field_bytes, field_message, field_packed, field_varint,
};
use crate::kv_connect::{atomic_write, read_range, read_range_output};

fn shard_epoch() -> (shard::ShardEpoch, Fields) {
    (shard::ShardEpoch { shard: 21, epoch: 22 }, vec![field_varint(1, 21), field_varint(2, 22)])
}

fn not_leader() -> (shard::NotLeader, Fields) {
    (shard::NotLeader { leader: L + 1 }, vec![field_varint(1, L + 1)])
}

fn process_time() -> (shard::ProcessTime, Fields) {
    (
        shard::ProcessTime { process: 7, millis: L + 8 },
        vec![field_varint(1, 7), field_varint(2, L + 8)],
    )
}

fn enqueue() -> (shard::Enqueue, Fields) {
    let enqueue = shard::Enqueue {
        payload: Bytes::from("payload"),
        due_ms: L + 2,
        keys_if_undelivered: vec![Bytes::from("one"), Bytes::from("two")],
        backoff: Some(shard::Backoff { intervals_ms: vec![0, 300] }),
        queue: String::new(),
    };
    let fields = vec![
        field_bytes(1, b"payload"),
        field_varint(2, L + 2),
        field_bytes(3, b"one"),
        field_bytes(3, b"two"),
        field_message(4, &[field_packed(1, &[0, 300])]),
    ];
    (enqueue, fields)
}

fn settlement() -> (shard::Settlement, Fields) {
    let verdict = shard::settlement::Verdict::FailedRetryAtMs(L + 4);
    let settlement = shard::Settlement {
        id: Bytes::from("the id of it"),
        due_ms: L + 2,
        verdict: Some(verdict),
        queue: String::new(),
    };
    let fields =
        vec![field_bytes(1, b"the id of it"), field_varint(2, L + 2), field_varint(4, L + 4)];
    (settlement, fields)
}

#[test]
fn messages_and_settlements_are_golden() {
    use shard::settlement::Verdict;
    let (message, golden) = enqueue();
    assert_golden(&message, &golden);
    // No schedule is another thing than one without intervals.
    let without = shard::Enqueue { backoff: None, ..message.clone() };
    assert_golden(&without, &golden[..4]);
    let named = shard::Enqueue { queue: "emails".to_owned(), ..message.clone() };
    assert_golden(&named, &[&golden[..], &[field_bytes(5, b"emails")]].concat());
    let (empty, mut golden) = (Some(shard::Backoff { intervals_ms: vec![] }), golden);
    golden[4] = field_message(4, &[]);
    assert_golden(&shard::Enqueue { backoff: empty, ..message }, &golden);

    let (message, golden) = settlement();
    for (verdict, field) in [
        (Verdict::Delivered(true), field_varint(3, 1)),
        (Verdict::FailedRetryAtMs(L + 4), field_varint(4, L + 4)),
        (Verdict::Cancelled(true), field_varint(5, 1)),
        (Verdict::RescheduledDueMs(L + 6), field_varint(6, L + 6)),
        (Verdict::RedrivenNumber(L + 7), field_varint(7, L + 7)),
        (Verdict::DiscardedNumber(L + 8), field_varint(8, L + 8)),
        (Verdict::Acknowledged(true), field_varint(9, 1)),
    ] {
        let message = shard::Settlement { verdict: Some(verdict), ..message.clone() };
        let golden = [golden[..2].to_vec(), vec![field]].concat();
        assert_golden(&message, &golden);
        let named = shard::Settlement { queue: "emails".to_owned(), ..message };
        assert_golden(&named, &[golden, vec![field_bytes(10, b"emails")]].concat());
    }
}

#[test]
fn writes_to_a_shard_are_golden() {
    use shard::write_request::Transaction;
    let (group, group_fields) = shard_epoch();
    let (write, write_fields) = atomic_write();
    let request = shard::WriteRequest {
        group: Some(group),
        database: Bytes::from("the database's!!"),
        request_id: Bytes::from("the request's id"),
        transaction: Some(Transaction::Write(write.clone())),
        retry: true,
        late_leader: L + 1,
        pass_on: true,
        valid_until: Some(process_time().0),
        turn: Some(shard::Turn { sender: 8, number: L + 9, bytes_ahead: L + 10 }),
    };
    let mut golden = [
        field_message(1, &group_fields),
        field_bytes(2, b"the database's!!"),
        field_bytes(3, b"the request's id"),
        field_message(4, &write_fields),
        field_varint(5, 1),
        field_varint(6, L + 1),
        field_varint(7, 1),
        field_message(8, &process_time().1),
        field_message(9, &[field_varint(1, 8), field_varint(2, L + 9), field_varint(3, L + 10)]),
    ];
    assert_golden(&request, &golden);

    let with_messages = shard::WriteWithMessages {
        write: Some(write),
        enqueues: vec![enqueue().0, enqueue().0],
        settlements: vec![settlement().0, settlement().0],
    };
    let with_fields = [
        field_message(1, &write_fields),
        field_message(2, &enqueue().1),
        field_message(2, &enqueue().1),
        field_message(3, &settlement().1),
        field_message(3, &settlement().1),
    ];
    for (transaction, number) in [
        (Transaction::WriteWithMessages(with_messages.clone()), 10),
        (Transaction::WriteWithNames(with_messages), 11),
    ] {
        golden[3] = field_message(number, &with_fields);
        let request = shard::WriteRequest { transaction: Some(transaction), ..request.clone() };
        assert_golden(&request, &golden);
    }
}

#[test]
fn answers_to_writes_to_a_shard_are_golden() {
    let failed = shard::FailedChecks { indexes: vec![0, 300] };
    let (not_leader, not_leader_fields) = not_leader();
    let results = [
        (
            shard::write_response::Result::Committed(Bytes::from("versionsta")),
            field_bytes(1, b"versionsta"),
        ),
        (
            shard::write_response::Result::CheckFailed(failed),
            field_message(2, &[field_packed(1, &[0, 300])]),
        ),
        (
            shard::write_response::Result::Rejected("rejected".to_owned()),
            field_bytes(3, b"rejected"),
        ),
        (
            shard::write_response::Result::NotLeader(not_leader),
            field_message(4, &not_leader_fields),
        ),
        (
            shard::write_response::Result::NotCommitted("not committed".to_owned()),
            field_bytes(5, b"not committed"),
        ),
        (shard::write_response::Result::Unknown("unknown".to_owned()), field_bytes(6, b"unknown")),
        (
            shard::write_response::Result::ClockUnknown(shard::ClockUnknown {}),
            field_message(9, &[]),
        ),
    ];
    for (result, golden) in results {
        assert_golden(
            &shard::WriteResponse { result: Some(result), ..shard::WriteResponse::default() },
            &[golden],
        );
    }
    let (clock, clock_fields) = process_time();
    let passed_on =
        shard::WriteResponse { result: None, leader: L + 2, clock: Some(clock), busy: true };
    let golden = [field_varint(7, L + 2), field_message(8, &clock_fields), field_varint(10, 1)];
    assert_golden(&passed_on, &golden);
}

#[test]
fn reads_from_a_shard_are_golden() {
    let (group, group_fields) = shard_epoch();
    let (range, range_fields) = read_range();
    let request = shard::ReadRequest {
        group: Some(group),
        database: Bytes::from("the database's!!"),
        strong: true,
        ranges: vec![range.clone(), range],
        min_sequence: L + 5,
    };
    let golden = [
        field_message(1, &group_fields),
        field_bytes(2, b"the database's!!"),
        field_varint(3, 1),
        field_message(4, &range_fields),
        field_message(4, &range_fields),
        field_varint(5, L + 5),
    ];
    assert_golden(&request, &golden);

    let (not_leader, not_leader_fields) = not_leader();
    let head = shard::ReadHead {
        ranges: 2,
        entries: 300,
        sequence: L + 2,
        epoch: 9,
        leader: L + 3,
        bytes: L + 6,
    };
    let head_fields = [
        field_varint(1, 2),
        field_varint(2, 300),
        field_varint(3, L + 2),
        field_varint(4, 9),
        field_varint(5, L + 3),
        field_varint(6, L + 6),
    ];
    let (values, values_fields) = read_range_output();
    let entries = shard::ReadEntries { range: 1, values: values.values };
    // The field of the values has another number there.
    let entries_fields: Fields = std::iter::once(field_varint(1, 1))
        .chain(values_fields.into_iter().map(|field| [&[0x12], &field[1..]].concat()))
        .collect();
    use shard::read_part::Part;
    let parts = [
        (Part::Working(shard::Working {}), field_message(1, &[])),
        (Part::Head(head), field_message(2, &head_fields)),
        (Part::Entries(entries), field_message(3, &entries_fields)),
        (Part::NotLeader(not_leader), field_message(4, &not_leader_fields)),
        (Part::Unavailable("unavailable".to_owned()), field_bytes(5, b"unavailable")),
    ];
    for (part, golden) in parts {
        assert_golden(&shard::ReadPart { part: Some(part) }, &[golden]);
    }
}

#[test]
fn read_positions_are_golden() {
    let (group, group_fields) = shard_epoch();
    assert_golden(
        &shard::ReadPositionRequest { group: Some(group) },
        &[field_message(1, &group_fields)],
    );

    let position = shard::ReadPosition { sequence: L + 1 };
    let position_fields = [field_varint(1, L + 1)];
    let (not_leader, not_leader_fields) = not_leader();
    let results = [
        (
            shard::read_position_response::Result::Position(position),
            field_message(1, &position_fields),
        ),
        (
            shard::read_position_response::Result::NotLeader(not_leader),
            field_message(2, &not_leader_fields),
        ),
        (
            shard::read_position_response::Result::Unavailable("unavailable".to_owned()),
            field_bytes(3, b"unavailable"),
        ),
    ];
    for (result, golden) in results {
        assert_golden(&shard::ReadPositionResponse { result: Some(result) }, &[golden]);
    }
}

#[test]
fn watches_of_a_shard_are_golden() {
    let (group, group_fields) = shard_epoch();
    let key = |key, shown| shard::ShownKey { key: Bytes::from_static(key), shown };
    let request = shard::WatchRequest {
        group: Some(group),
        database: Bytes::from("the database's!!"),
        keys: vec![
            key(b"one", None),
            key(b"two", Some(Bytes::new())),
            key(b"three", Some(Bytes::from("versionsta"))),
        ],
        min_sequence: L + 1,
    };
    let golden = [
        field_message(1, &group_fields),
        field_bytes(2, b"the database's!!"),
        field_message(3, &[field_bytes(1, b"one")]),
        field_message(3, &[field_bytes(1, b"two"), field_bytes(2, b"")]),
        field_message(3, &[field_bytes(1, b"three"), field_bytes(2, b"versionsta")]),
        field_varint(4, L + 1),
    ];
    assert_golden(&request, &golden);

    let absent = WatchKeyOutput { changed: true, entry_if_changed: None };
    let unchanged = WatchKeyOutput { changed: false, entry_if_changed: None };
    let news = shard::WatchNews { epoch: 22, sequence: L + 2, keys: vec![absent, unchanged] };
    let golden = [
        field_varint(1, 22),
        field_varint(2, L + 2),
        field_message(3, &[field_varint(1, 1)]),
        field_message(3, &[]),
    ];
    assert_golden(&news, &golden);
}
