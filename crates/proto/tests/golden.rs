//! The bytes of every message that is sent, and of those stored ones that `src/batch.rs` and the consensus
//! crate's `wire.rs` do not pin. Nodes of different versions talk to each other and read each other's disks:
//! where a test here fails, the format has changed, so change the format back and not the test.
//!
//! The expected bytes are put together from (field number, wire type, value) without prost, to be read beside
//! `/proto`. Structs are written out in full, so that a new field does not compile until it is pinned.

#![allow(clippy::unwrap_used, reason = "tests may; the helpers here are no test functions")]

use std::fmt::Debug;

use bytes::Bytes;
use meridian_proto::{admin, kv_connect, log, raft, shard, shipping};
use prost::Message;

/// Values of 64-bit fields lie above this, so that a field narrowed to 32 bits fails.
const L: u64 = 1 << 32;

/// The encoded fields of one message, in the order of their numbers.
type Fields = Vec<Vec<u8>>;

fn varint(mut value: u64) -> Vec<u8> {
    let mut encoded = Vec::new();
    loop {
        let [low, ..] = value.to_le_bytes();
        value >>= 7;
        if value == 0 {
            encoded.push(low & 0x7f);
            return encoded;
        }
        encoded.push(low | 0x80);
    }
}

fn tag(field: u64, wire_type: u64) -> Vec<u8> {
    varint((field << 3) | wire_type)
}

/// uint32, uint64, bool, enum: wire type 0.
fn field_varint(field: u64, value: u64) -> Vec<u8> {
    [tag(field, 0), varint(value)].concat()
}

/// int32, int64: wire type 0, a negative number as its 64 bits in two's complement (sint would zigzag).
fn field_signed(field: u64, value: i64) -> Vec<u8> {
    field_varint(field, u64::from_le_bytes(value.to_le_bytes()))
}

/// bytes, string: wire type 2. A repeated field has one of these for each element.
fn field_bytes(field: u64, value: &[u8]) -> Vec<u8> {
    [tag(field, 2), varint(value.len() as u64), value.to_vec()].concat()
}

/// A nested message: wire type 2.
fn field_message(field: u64, fields: &[Vec<u8>]) -> Vec<u8> {
    field_bytes(field, &fields.concat())
}

/// Repeated integers: wire type 2, all in one, without tags of their own.
fn field_packed(field: u64, values: &[u64]) -> Vec<u8> {
    field_bytes(field, &values.iter().copied().flat_map(varint).collect::<Vec<u8>>())
}

#[track_caller]
fn assert_golden<M: Message + Default + PartialEq + Debug>(message: &M, golden: &[Vec<u8>]) {
    let golden = golden.concat();
    assert_eq!(message.encode_to_vec(), golden, "encoding {message:?}");
    assert_eq!(M::decode(golden.as_slice()).unwrap(), *message);
}

/// The examples of <https://protobuf.dev/programming-guides/encoding>.
#[test]
fn the_helpers_write_protobuf() {
    assert_eq!(field_varint(1, 150), b"\x08\x96\x01");
    assert_eq!(field_signed(1, -2), b"\x08\xfe\xff\xff\xff\xff\xff\xff\xff\xff\x01");
    assert_eq!(field_bytes(2, b"testing"), b"\x12\x07testing");
    assert_eq!(field_message(3, &[field_varint(1, 150)]), b"\x1a\x03\x08\x96\x01");
    assert_eq!(field_packed(6, &[3, 270, 86_942]), b"\x32\x06\x03\x8e\x02\x9e\xa7\x05");
    assert_eq!(field_varint(16, 1), b"\x80\x01\x01");
}

/// Reads only the names: that each message named in `/proto` is built somewhere in this file.
#[test]
fn no_message_is_forgotten() {
    let here = include_str!("golden.rs");
    let protos = [
        ("raft", include_str!("../../../proto/raft.proto")),
        ("shard", include_str!("../../../proto/shard.proto")),
        ("shipping", include_str!("../../../proto/shipping.proto")),
        ("admin", include_str!("../../../proto/admin.proto")),
        ("kv_connect", include_str!("../../../proto/kv_connect.proto")),
        ("log", include_str!("../../../proto/log.proto")),
    ];
    // Pinned in `src/batch.rs`.
    let elsewhere = ["log::RequestRow {"];
    for (module, proto) in protos {
        let names = proto.lines().filter_map(|line| line.strip_prefix("message ")?.split_whitespace().next());
        let built: Vec<_> = names.map(|name| format!("{module}::{name} {{")).collect();
        assert!(!built.is_empty(), "no messages found in {module}.proto");
        for message in built {
            assert!(here.contains(&message) || elsewhere.contains(&message.as_str()), "`{message}` is not pinned");
        }
    }
}

// ---- log.proto ----

fn log_id(n: u64) -> (log::LogId, Fields) {
    let message = log::LogId { term: L + n, index: L + n + 1 };
    (message, vec![field_varint(1, L + n), field_varint(2, L + n + 1)])
}

fn vote(n: u64) -> (log::Vote, Fields) {
    let message = log::Vote { term: L + n, node_id: L + n + 1, committed: true };
    (message, vec![field_varint(1, L + n), field_varint(2, L + n + 1), field_varint(3, 1)])
}

fn membership() -> (log::Membership, Fields) {
    let message = log::Membership {
        configs: vec![log::VoterSet { node_ids: vec![1, L + 2] }, log::VoterSet { node_ids: vec![L + 2, 3] }],
        members: vec![1, L + 2, 3, 300],
    };
    let fields = vec![
        field_message(1, &[field_packed(1, &[1, L + 2])]),
        field_message(1, &[field_packed(1, &[L + 2, 3])]),
        field_packed(2, &[1, L + 2, 3, 300]),
    ];
    (message, fields)
}

fn stored_membership() -> (log::StoredMembership, Fields) {
    let (log_id, log_id_fields) = log_id(70);
    let (membership, membership_fields) = membership();
    let message = log::StoredMembership { log_id: Some(log_id), membership: Some(membership) };
    (message, vec![field_message(1, &log_id_fields), field_message(2, &membership_fields)])
}

#[test]
fn votes_and_memberships_are_golden() {
    let (message, golden) = log_id(1);
    assert_golden(&message, &golden);
    let (message, golden) = vote(1);
    assert_golden(&message, &golden);
    let (message, golden) = membership();
    assert_golden(&message, &golden);
    let (message, golden) = stored_membership();
    assert_golden(&message, &golden);
}

#[test]
fn the_applied_position_is_golden() {
    let (log_id, log_id_fields) = log_id(4);
    let (membership, membership_fields) = stored_membership();
    let applied = log::Applied {
        epoch: 1,
        sequence: L + 2,
        time_ms: L + 3,
        log_id: Some(log_id),
        membership: Some(membership),
        total_bytes: L + 6,
    };
    let golden = [
        field_varint(1, 1),
        field_varint(2, L + 2),
        field_varint(3, L + 3),
        field_message(4, &log_id_fields),
        field_message(5, &membership_fields),
        field_varint(6, L + 6),
    ];
    assert_golden(&applied, &golden);
}

#[test]
fn a_batch_is_golden_and_its_header_can_be_read_alone() {
    let effect = log::Effect { key: Bytes::from("key"), encoding: 2, data: Bytes::from("data"), expire_at_ms: L };
    let effect_fields = [field_bytes(1, b"key"), field_varint(2, 2), field_bytes(3, b"data"), field_varint(4, L)];
    let failed = log::refusal::Reason::CheckFailed(log::FailedChecks { indexes: vec![0, 300] });
    let rejected = log::refusal::Reason::Rejected("why".to_owned());
    let refusals = [
        (log::Refusal { reason: Some(failed) }, field_message(1, &[field_packed(1, &[0, 300])])),
        (log::Refusal { reason: Some(rejected) }, field_bytes(2, b"why")),
    ];
    for (refusal, refusal_field) in refusals {
        assert_golden(&refusal, std::slice::from_ref(&refusal_field));
        let transaction = log::Transaction {
            request_id: Bytes::from("the request's id"),
            database: Bytes::from("the database's!!"),
            effects: vec![effect.clone(), effect.clone()],
            refusal: Some(refusal),
        };
        let transaction_fields = [
            field_bytes(1, b"the request's id"),
            field_bytes(2, b"the database's!!"),
            field_message(3, &effect_fields),
            field_message(3, &effect_fields),
            field_message(4, &[refusal_field]),
        ];
        let batch = log::Batch { epoch: 1, sequence: L + 2, time_ms: L + 3, transactions: vec![transaction] };
        let header_fields = vec![field_varint(1, 1), field_varint(2, L + 2), field_varint(3, L + 3)];
        let batch_fields = [header_fields.clone(), vec![field_message(4, &transaction_fields)]].concat();
        assert_golden(&batch, &batch_fields);

        let header = log::BatchHeader { epoch: 1, sequence: L + 2, time_ms: L + 3 };
        assert_golden(&header, &header_fields);
        assert_eq!(log::BatchHeader::decode(batch_fields.concat().as_slice()).unwrap(), header);
    }
}

// ---- raft.proto ----

fn group() -> (raft::Group, Fields) {
    let message = raft::Group { shard: 11, epoch: 12, target: L + 13 };
    (message, vec![field_varint(1, 11), field_varint(2, 12), field_varint(3, L + 13)])
}

fn matched() -> (raft::Matched, Fields) {
    let (log_id, log_id_fields) = log_id(80);
    let message = raft::Matched { log_id: Some(log_id), partial: true };
    (message, vec![field_message(1, &log_id_fields), field_varint(2, 1)])
}

fn entries() -> Vec<(log::Entry, Fields)> {
    let (membership, membership_fields) = membership();
    let payloads = [
        (log::entry::Payload::Batch(Bytes::from("batch")), field_bytes(2, b"batch")),
        (log::entry::Payload::Membership(membership), field_message(3, &membership_fields)),
        (log::entry::Payload::Blank(true), field_varint(4, 1)),
    ];
    let entry = |(n, (payload, payload_field))| {
        let (log_id, log_id_fields) = log_id(n);
        let message = log::Entry { log_id: Some(log_id), payload: Some(payload) };
        (message, vec![field_message(1, &log_id_fields), payload_field])
    };
    (40..).zip(payloads).map(entry).collect()
}

#[test]
fn appends_are_golden() {
    let (group, group_fields) = group();
    let (vote, vote_fields) = vote(20);
    let (previous, previous_fields) = log_id(30);
    let (entries, entry_fields): (Vec<_>, Vec<_>) = entries().into_iter().unzip();
    let (leader_commit, leader_commit_fields) = log_id(50);
    let request = raft::AppendRequest {
        group: Some(group),
        vote: Some(vote),
        previous: Some(previous),
        entries,
        leader_commit: Some(leader_commit),
    };
    let mut golden =
        vec![field_message(1, &group_fields), field_message(2, &vote_fields), field_message(3, &previous_fields)];
    golden.extend(entry_fields.iter().map(|fields| field_message(4, fields)));
    golden.push(field_message(5, &leader_commit_fields));
    assert_golden(&request, &golden);

    let (matched, matched_fields) = matched();
    let (conflict, conflict_fields) = log_id(60);
    let results = [
        (raft::append_response::Result::Matched(matched), field_message(1, &matched_fields)),
        (raft::append_response::Result::Conflict(conflict), field_message(2, &conflict_fields)),
        (raft::append_response::Result::HigherVote(vote), field_message(3, &vote_fields)),
        // Nothing matches yet: the arm is there, and empty.
        (raft::append_response::Result::Matched(raft::Matched { log_id: None, partial: false }), field_message(1, &[])),
    ];
    for (result, golden) in results {
        assert_golden(&raft::AppendResponse { result: Some(result) }, &[golden]);
    }
}

#[test]
fn votes_of_a_group_are_golden() {
    let (group, group_fields) = group();
    let (vote, vote_fields) = vote(20);
    let (last_log_id, last_log_id_fields) = log_id(30);
    let request = raft::VoteRequest {
        group: Some(group),
        vote: Some(vote),
        last_log_id: Some(last_log_id),
        leadership_transfer: true,
    };
    let golden = [
        field_message(1, &group_fields),
        field_message(2, &vote_fields),
        field_message(3, &last_log_id_fields),
        field_varint(4, 1),
    ];
    assert_golden(&request, &golden);

    let response = raft::VoteResponse { vote: Some(vote), granted: true, last_log_id: Some(last_log_id) };
    let golden = [field_message(1, &vote_fields), field_varint(2, 1), field_message(3, &last_log_id_fields)];
    assert_golden(&response, &golden);
}

#[test]
fn transfers_of_leadership_are_golden() {
    let (group, group_fields) = group();
    let (vote, vote_fields) = vote(20);
    let (last_log_id, last_log_id_fields) = log_id(30);
    let request = raft::TransferLeaderRequest {
        group: Some(group),
        from_leader: Some(vote),
        last_log_id: Some(last_log_id),
        to: L + 4,
    };
    let golden = [
        field_message(1, &group_fields),
        field_message(2, &vote_fields),
        field_message(3, &last_log_id_fields),
        field_varint(4, L + 4),
    ];
    assert_golden(&request, &golden);

    let (matched, matched_fields) = matched();
    let results = [
        (raft::transfer_leader_response::Result::Accepted(true), field_varint(1, 1)),
        (raft::transfer_leader_response::Result::Accepted(false), field_varint(1, 0)),
        (raft::transfer_leader_response::Result::VoteChanged(vote), field_message(2, &vote_fields)),
        (raft::transfer_leader_response::Result::LogNotFlushed(matched), field_message(3, &matched_fields)),
    ];
    for (result, golden) in results {
        assert_golden(&raft::TransferLeaderResponse { result: Some(result) }, &[golden]);
    }
}

#[test]
fn installing_a_snapshot_is_golden() {
    let (group, group_fields) = group();
    let (vote, vote_fields) = vote(20);
    let (last_log_id, last_log_id_fields) = log_id(30);
    let (last_membership, last_membership_fields) = stored_membership();
    let request = raft::InstallSnapshotRequest {
        group: Some(group),
        vote: Some(vote),
        last_log_id: Some(last_log_id),
        last_membership: Some(last_membership),
        snapshot_id: "snapshot".to_owned(),
        source: L + 6,
    };
    let golden = [
        field_message(1, &group_fields),
        field_message(2, &vote_fields),
        field_message(3, &last_log_id_fields),
        field_message(4, &last_membership_fields),
        field_bytes(5, b"snapshot"),
        field_varint(6, L + 6),
    ];
    assert_golden(&request, &golden);
    assert_golden(&raft::InstallSnapshotResponse { vote: Some(vote) }, &[field_message(1, &vote_fields)]);
}

#[test]
fn joining_a_group_is_golden() {
    let (group, group_fields) = group();
    let request =
        raft::JoinRequest { group: Some(group), node_id: L + 2, incarnation: Bytes::from("the incarnation!") };
    let golden = [field_message(1, &group_fields), field_varint(2, L + 2), field_bytes(3, b"the incarnation!")];
    assert_golden(&request, &golden);
    assert_golden(&raft::JoinResponse { accepted: true }, &[field_varint(1, 1)]);
}

// ---- kv_connect.proto ----

/// Values of a signed 64-bit field lie below 32 bits.
const NEGATIVE: i64 = -(1 << 40);

fn read_range() -> (kv_connect::ReadRange, Fields) {
    let message =
        kv_connect::ReadRange { start: Bytes::from("start"), end: Bytes::from("end"), limit: -3, reverse: true };
    (message, vec![field_bytes(1, b"start"), field_bytes(2, b"end"), field_signed(3, -3), field_varint(4, 1)])
}

fn kv_entry() -> (kv_connect::KvEntry, Fields) {
    let message = kv_connect::KvEntry {
        key: Bytes::from("key"),
        value: Bytes::from("value"),
        encoding: 3,
        versionstamp: Bytes::from("versionsta"),
    };
    let fields =
        vec![field_bytes(1, b"key"), field_bytes(2, b"value"), field_varint(3, 3), field_bytes(4, b"versionsta")];
    (message, fields)
}

fn read_range_output() -> (kv_connect::ReadRangeOutput, Fields) {
    let (entry, entry_fields) = kv_entry();
    let message = kv_connect::ReadRangeOutput { values: vec![entry.clone(), entry] };
    (message, vec![field_message(1, &entry_fields), field_message(1, &entry_fields)])
}

fn atomic_write() -> (kv_connect::AtomicWrite, Fields) {
    let check = kv_connect::Check { key: Bytes::from("checked"), versionstamp: Bytes::from("0123456789") };
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
    let golden = [field_message(1, &[field_bytes(1, b"one")]), field_message(1, &[field_bytes(1, b"two")])];
    assert_golden(&request, &golden);

    let (entry, entry_fields) = kv_entry();
    let changed = kv_connect::WatchKeyOutput { changed: true, entry_if_changed: Some(entry) };
    let unchanged = kv_connect::WatchKeyOutput { changed: false, entry_if_changed: None };
    let output = kv_connect::WatchOutput { status: 2, keys: vec![changed, unchanged] };
    let changed_fields = [field_varint(1, 1), field_message(2, &entry_fields)];
    assert_golden(&output, &[field_varint(1, 2), field_message(2, &changed_fields), field_message(2, &[])]);
}

#[test]
fn the_numbers_of_enum_values_are_golden() {
    use kv_connect::{AtomicWriteStatus, MutationType, SnapshotReadStatus, ValueEncoding};

    let statuses =
        [SnapshotReadStatus::SrUnspecified, SnapshotReadStatus::SrSuccess, SnapshotReadStatus::SrReadDisabled];
    assert_eq!(statuses.map(i32::from), [0, 1, 2]);
    let statuses = [
        AtomicWriteStatus::AwUnspecified,
        AtomicWriteStatus::AwSuccess,
        AtomicWriteStatus::AwCheckFailure,
        AtomicWriteStatus::AwWriteDisabled,
    ];
    assert_eq!(statuses.map(i32::from), [0, 1, 2, 5]);
    let encodings = [ValueEncoding::VeUnspecified, ValueEncoding::VeV8, ValueEncoding::VeLe64, ValueEncoding::VeBytes];
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

// ---- shard.proto ----

fn shard_epoch() -> (shard::ShardEpoch, Fields) {
    (shard::ShardEpoch { shard: 21, epoch: 22 }, vec![field_varint(1, 21), field_varint(2, 22)])
}

fn not_leader() -> (shard::NotLeader, Fields) {
    (shard::NotLeader { leader: L + 1 }, vec![field_varint(1, L + 1)])
}

#[test]
fn writes_to_a_shard_are_golden() {
    let (group, group_fields) = shard_epoch();
    let (write, write_fields) = atomic_write();
    let request = shard::WriteRequest {
        group: Some(group),
        database: Bytes::from("the database's!!"),
        request_id: Bytes::from("the request's id"),
        write: Some(write),
        retry: true,
    };
    let golden = [
        field_message(1, &group_fields),
        field_bytes(2, b"the database's!!"),
        field_bytes(3, b"the request's id"),
        field_message(4, &write_fields),
        field_varint(5, 1),
    ];
    assert_golden(&request, &golden);

    let failed = shard::FailedChecks { indexes: vec![0, 300] };
    let (not_leader, not_leader_fields) = not_leader();
    let results = [
        (shard::write_response::Result::Committed(Bytes::from("versionsta")), field_bytes(1, b"versionsta")),
        (shard::write_response::Result::CheckFailed(failed), field_message(2, &[field_packed(1, &[0, 300])])),
        (shard::write_response::Result::Rejected("rejected".to_owned()), field_bytes(3, b"rejected")),
        (shard::write_response::Result::NotLeader(not_leader), field_message(4, &not_leader_fields)),
        (shard::write_response::Result::NotCommitted("not committed".to_owned()), field_bytes(5, b"not committed")),
        (shard::write_response::Result::Unknown("unknown".to_owned()), field_bytes(6, b"unknown")),
    ];
    for (result, golden) in results {
        assert_golden(&shard::WriteResponse { result: Some(result) }, &[golden]);
    }
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

    let (range_output, range_output_fields) = read_range_output();
    let output = shard::ReadOutput { ranges: vec![range_output], sequence: L + 2 };
    let output_fields = [field_message(1, &range_output_fields), field_varint(2, L + 2)];
    let (not_leader, not_leader_fields) = not_leader();
    let results = [
        (shard::read_response::Result::Output(output), field_message(1, &output_fields)),
        (shard::read_response::Result::NotLeader(not_leader), field_message(2, &not_leader_fields)),
        (shard::read_response::Result::Unavailable("unavailable".to_owned()), field_bytes(3, b"unavailable")),
    ];
    for (result, golden) in results {
        assert_golden(&shard::ReadResponse { result: Some(result) }, &[golden]);
    }
}

#[test]
fn read_positions_are_golden() {
    let (group, group_fields) = shard_epoch();
    assert_golden(&shard::ReadPositionRequest { group: Some(group) }, &[field_message(1, &group_fields)]);

    let position = shard::ReadPosition { sequence: L + 1, time_ms: L + 2 };
    let position_fields = [field_varint(1, L + 1), field_varint(2, L + 2)];
    let (not_leader, not_leader_fields) = not_leader();
    let results = [
        (shard::read_position_response::Result::Position(position), field_message(1, &position_fields)),
        (shard::read_position_response::Result::NotLeader(not_leader), field_message(2, &not_leader_fields)),
        (shard::read_position_response::Result::Unavailable("unavailable".to_owned()), field_bytes(3, b"unavailable")),
    ];
    for (result, golden) in results {
        assert_golden(&shard::ReadPositionResponse { result: Some(result) }, &[golden]);
    }
}

// ---- shipping.proto ----

fn position(n: u32) -> (shipping::Position, Fields) {
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
    let start = shipping::Start { shard: 1, epoch: 2, node_id: L + 3, durable: Some(durable) };
    let start_fields =
        [field_varint(1, 1), field_varint(2, 2), field_varint(3, L + 3), field_message(4, &durable_fields)];
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
    let batches = shipping::Batches { previous: Some(previous), zstd: Bytes::from("zstd") };
    let batches_fields = [field_message(1, &previous_fields), field_bytes(2, b"zstd")];
    let (status, status_fields) = status(35);
    let (committed, committed_fields) = position(2);
    let heartbeat = shipping::Heartbeat { status: Some(status), committed: Some(committed), time_ms: L + 3 };
    let heartbeat_fields =
        [field_message(1, &status_fields), field_message(2, &committed_fields), field_varint(3, L + 3)];
    let needed = shipping::SnapshotNeeded { diverged: true };
    let messages = [
        (shipping::shipment::Message::OpenedEpoch(7), field_varint(1, 7)),
        (shipping::shipment::Message::Batches(batches), field_message(2, &batches_fields)),
        (shipping::shipment::Message::Heartbeat(heartbeat), field_message(3, &heartbeat_fields)),
        (shipping::shipment::Message::SnapshotNeeded(needed), field_message(4, &[field_varint(1, 1)])),
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
    let request = shipping::AnnounceRequest { statuses: vec![far, voter] };
    assert_golden(&request, &[field_message(1, &far_fields), field_message(1, &voter_fields)]);
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
    let golden = [field_varint(1, 1), field_varint(2, 2), field_bytes(3, b"snapshot"), field_bytes(4, b"after")];
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

// ---- admin.proto ----

#[test]
fn admin_statuses_are_golden() {
    assert_golden(&admin::StatusRequest {}, &[]);

    let lag = admin::ReplicaLag {
        node_id: L + 1,
        durable_sequence: L + 2,
        lag_batches: L + 3,
        lag_bytes: L + 4,
        lag_ms: L + 5,
        connected: true,
    };
    let mut lag_fields: Fields = (1..=5).map(|n| field_varint(n, L + n)).collect();
    lag_fields.push(field_varint(6, 1));
    let shard = admin::ShardStatus {
        shard: 1,
        epoch: 2,
        role: "leader".to_owned(),
        term: L + 4,
        leader: L + 5,
        committed_sequence: L + 6,
        applied_sequence: L + 7,
        first_sequence: L + 8,
        subscribers: vec![lag, lag],
        source: L + 10,
        lag_batches: L + 11,
        lag_bytes: L + 12,
        lag_ms: L + 13,
    };
    let mut shard_fields = vec![field_varint(1, 1), field_varint(2, 2), field_bytes(3, b"leader")];
    shard_fields.extend((4..=8).map(|n| field_varint(n, L + n)));
    shard_fields.extend([field_message(9, &lag_fields), field_message(9, &lag_fields)]);
    shard_fields.extend((10..=13).map(|n| field_varint(n, L + n)));
    let response = admin::StatusResponse {
        node_id: L + 1,
        node_name: "name".to_owned(),
        region: "region".to_owned(),
        data_center: "data center".to_owned(),
        shards: vec![shard.clone(), shard],
        version: "version".to_owned(),
        uptime_ms: L + 7,
    };
    let golden = [
        field_varint(1, L + 1),
        field_bytes(2, b"name"),
        field_bytes(3, b"region"),
        field_bytes(4, b"data center"),
        field_message(5, &shard_fields),
        field_message(5, &shard_fields),
        field_bytes(6, b"version"),
        field_varint(7, L + 7),
    ];
    assert_golden(&response, &golden);
}

#[test]
fn admin_transfers_are_golden() {
    let request = admin::TransferLeadershipRequest { shard: 1, to: L + 2 };
    assert_golden(&request, &[field_varint(1, 1), field_varint(2, L + 2)]);
    assert_golden(&admin::TransferLeadershipResponse {}, &[]);
}
