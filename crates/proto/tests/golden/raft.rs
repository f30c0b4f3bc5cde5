use bytes::Bytes;
use meridian_proto::{log, raft};

use crate::fields::{Fields, L, assert_golden, field_bytes, field_message, field_varint};
use crate::log::{log_id, membership, stored_membership, vote};

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
    let (held, held_fields) = log_id(55);
    let request = raft::AppendRequest {
        group: Some(group),
        vote: Some(vote),
        previous: Some(previous),
        entries,
        leader_commit: Some(leader_commit),
        members: vec![raft::MemberMark { node_id: L + 6, log_id: Some(held) }],
    };
    let mut golden = vec![
        field_message(1, &group_fields),
        field_message(2, &vote_fields),
        field_message(3, &previous_fields),
    ];
    golden.extend(entry_fields.iter().map(|fields| field_message(4, fields)));
    golden.push(field_message(5, &leader_commit_fields));
    golden.push(field_message(6, &[field_varint(1, L + 6), field_message(2, &held_fields)]));
    assert_golden(&request, &golden);

    let (matched, matched_fields) = matched();
    let (conflict, conflict_fields) = log_id(60);
    let results = [
        (raft::append_response::Result::Matched(matched), field_message(1, &matched_fields)),
        (raft::append_response::Result::Conflict(conflict), field_message(2, &conflict_fields)),
        (raft::append_response::Result::HigherVote(vote), field_message(3, &vote_fields)),
        // Nothing matches yet: the arm is there, and empty.
        (
            raft::append_response::Result::Matched(raft::Matched { log_id: None, partial: false }),
            field_message(1, &[]),
        ),
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
    let (remembered, remembered_fields) = log_id(40);
    let request = raft::VoteRequest {
        group: Some(group),
        vote: Some(vote),
        last_log_id: Some(last_log_id),
        leadership_transfer: true,
        remembered: Some(remembered),
    };
    let golden = [
        field_message(1, &group_fields),
        field_message(2, &vote_fields),
        field_message(3, &last_log_id_fields),
        field_varint(4, 1),
        field_message(5, &remembered_fields),
    ];
    assert_golden(&request, &golden);

    let response =
        raft::VoteResponse { vote: Some(vote), granted: true, last_log_id: Some(last_log_id) };
    let golden =
        [field_message(1, &vote_fields), field_varint(2, 1), field_message(3, &last_log_id_fields)];
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
        (
            raft::transfer_leader_response::Result::LogNotFlushed(matched),
            field_message(3, &matched_fields),
        ),
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
    assert_golden(
        &raft::InstallSnapshotResponse { vote: Some(vote) },
        &[field_message(1, &vote_fields)],
    );
}

#[test]
fn joining_a_group_is_golden() {
    let (group, group_fields) = group();
    let request = raft::JoinRequest {
        group: Some(group),
        node_id: L + 2,
        incarnation: Bytes::from("the incarnation!"),
    };
    let golden = [
        field_message(1, &group_fields),
        field_varint(2, L + 2),
        field_bytes(3, b"the incarnation!"),
    ];
    assert_golden(&request, &golden);
    let response = raft::JoinResponse { accepted: true, term: Some(L + 3) };
    assert_golden(&response, &[field_varint(1, 1), field_varint(2, L + 3)]);
    // Known, and not "none".
    assert_golden(&raft::JoinResponse { accepted: false, term: Some(0) }, &[field_varint(2, 0)]);
}
