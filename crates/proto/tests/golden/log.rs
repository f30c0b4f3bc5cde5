use bytes::Bytes;
use meridian_proto::log;
use prost::Message;

use crate::fields::{
    Fields, L, assert_golden, field_bytes, field_fixed32, field_fixed64, field_message,
    field_packed, field_varint,
};

pub(crate) fn log_id(n: u64) -> (log::LogId, Fields) {
    let message = log::LogId { term: L + n, index: L + n + 1 };
    (message, vec![field_varint(1, L + n), field_varint(2, L + n + 1)])
}

pub(crate) fn vote(n: u64) -> (log::Vote, Fields) {
    let message = log::Vote { term: L + n, node_id: L + n + 1, committed: true };
    (message, vec![field_varint(1, L + n), field_varint(2, L + n + 1), field_varint(3, 1)])
}

pub(crate) fn membership() -> (log::Membership, Fields) {
    let message = log::Membership {
        configs: vec![
            log::VoterSet { node_ids: vec![1, L + 2] },
            log::VoterSet { node_ids: vec![L + 2, 3] },
        ],
        members: vec![1, L + 2, 3, 300],
    };
    let fields = vec![
        field_message(1, &[field_packed(1, &[1, L + 2])]),
        field_message(1, &[field_packed(1, &[L + 2, 3])]),
        field_packed(2, &[1, L + 2, 3, 300]),
    ];
    (message, fields)
}

pub(crate) fn stored_membership() -> (log::StoredMembership, Fields) {
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
        raft_epoch: 7,
        total_transactions: L + 8,
        digest: L + 15,
    };
    let golden = [
        field_varint(1, 1),
        field_varint(2, L + 2),
        field_varint(3, L + 3),
        field_message(4, &log_id_fields),
        field_message(5, &membership_fields),
        field_varint(6, L + 6),
        field_varint(7, 7),
        field_varint(8, L + 8),
        field_fixed64(15, L + 15),
    ];
    assert_golden(&applied, &golden);
}

#[test]
fn a_batch_is_golden_and_its_header_can_be_read_alone() {
    let effect = log::Effect {
        key: Bytes::from("key"),
        encoding: 2,
        data: Bytes::from("data"),
        expire_at_ms: L,
        ..Default::default()
    };
    let effect_fields =
        [field_bytes(1, b"key"), field_varint(2, 2), field_bytes(3, b"data"), field_varint(4, L)];
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
        let batch = log::Batch {
            epoch: 1,
            sequence: L + 2,
            time_ms: L + 3,
            transactions: vec![transaction],
            format: 14,
            crc32c: 15,
        };
        let header_fields =
            vec![field_varint(1, 1), field_varint(2, L + 2), field_varint(3, L + 3)];
        let fields = vec![
            field_message(4, &transaction_fields),
            field_varint(14, 14),
            field_fixed32(15, 15),
        ];
        let batch_fields = [header_fields.clone(), fields].concat();
        assert_golden(&batch, &batch_fields);

        let header = log::BatchHeader { epoch: 1, sequence: L + 2, time_ms: L + 3 };
        assert_golden(&header, &header_fields);
        assert_eq!(log::BatchHeader::decode(batch_fields.concat().as_slice()).unwrap(), header);
    }
}

fn queued_message() -> (log::QueuedMessage, Fields) {
    let message = log::QueuedMessage {
        payload: Bytes::from("payload"),
        keys_if_undelivered: vec![Bytes::from("one"), Bytes::from("two")],
        backoff_ms: vec![0, 300],
        attempts: 4,
        enqueued_ms: L + 5,
    };
    let fields = vec![
        field_bytes(1, b"payload"),
        field_bytes(2, b"one"),
        field_bytes(2, b"two"),
        field_packed(3, &[0, 300]),
        field_varint(4, 4),
        field_varint(5, L + 5),
    ];
    (message, fields)
}

fn dead_letter() -> (log::DeadLetter, Fields) {
    let letter = log::DeadLetter {
        id: Bytes::from("the id of it"),
        payload: Bytes::from("payload"),
        attempts: 3,
        enqueued_ms: L + 4,
        died_ms: L + 5,
        queue: "emails".to_owned(),
    };
    let fields = vec![
        field_bytes(1, b"the id of it"),
        field_bytes(2, b"payload"),
        field_varint(3, 3),
        field_varint(4, L + 4),
        field_varint(5, L + 5),
        field_bytes(6, b"emails"),
    ];
    (letter, fields)
}

#[test]
fn effects_on_queues_are_golden() {
    use log::effect::Queue;
    let (message, message_fields) = queued_message();
    assert_golden(&message, &message_fields);
    let (letter, letter_fields) = dead_letter();
    assert_golden(&letter, &letter_fields);
    // As it was before queues had names; so are those below.
    let unnamed = log::DeadLetter { queue: String::new(), ..letter.clone() };
    assert_golden(&unnamed, &letter_fields[..5]);
    let totals = log::QueueTotals {
        undelivered: L + 1,
        first_dead: L + 2,
        next_dead: L + 3,
        removed_dead: L + 4,
        named_undelivered: L + 5,
        names: L + 6,
    };
    let totals_fields = [
        field_varint(1, L + 1),
        field_varint(2, L + 2),
        field_varint(3, L + 3),
        field_varint(4, L + 4),
        field_varint(5, L + 5),
        field_varint(6, L + 6),
    ];
    assert_golden(&totals, &totals_fields);
    // As they were before letters were taken out.
    let without_names = log::QueueTotals { named_undelivered: 0, names: 0, ..totals };
    assert_golden(&without_names, &totals_fields[..4]);
    let none_removed = log::QueueTotals { removed_dead: 0, ..without_names };
    assert_golden(&none_removed, &totals_fields[..3]);

    let id = Bytes::from("the id of it");
    let queue = "emails".to_owned();
    let row = log::MessageRow { id: id.clone(), due_ms: L + 2, message: Some(message), queue };
    let row_fields = [
        field_bytes(1, b"the id of it"),
        field_varint(2, L + 2),
        field_message(3, &message_fields),
        field_bytes(4, b"emails"),
    ];
    let unnamed = log::MessageRow { queue: String::new(), ..row.clone() };
    assert_golden(&unnamed, &row_fields[..3]);
    let dead = log::DeadLetterRow { number: L + 1, letter: Some(letter) };
    let dead_fields = [field_varint(1, L + 1), field_message(2, &letter_fields)];
    let removed = log::MessageRow { id, due_ms: L + 2, message: None, queue: String::new() };
    let named = log::NamedTotals { queue: "emails".to_owned(), undelivered: L + 7 };
    let named_fields = [field_bytes(1, b"emails"), field_varint(2, L + 7)];
    let effects = [
        (Queue::PutMessage(row), field_message(6, &row_fields)),
        (Queue::DeleteMessage(removed), field_message(7, &row_fields[..2])),
        (Queue::PutDeadLetter(dead), field_message(8, &dead_fields)),
        (Queue::DeleteDeadLetter(L + 9), field_varint(9, L + 9)),
        (Queue::QueueTotals(totals), field_message(10, &totals_fields)),
        (Queue::NamedTotals(named), field_message(11, &named_fields)),
    ];
    for (effect, golden) in effects {
        assert_golden(&log::Effect { queue: Some(effect), ..Default::default() }, &[golden]);
    }
}
