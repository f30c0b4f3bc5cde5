use bytes::Bytes;
use meridian_proto::{queue, shard};

use crate::fields::{
    Fields, L, assert_golden, field_bytes, field_message, field_packed, field_varint,
};

fn shard_epoch() -> (shard::ShardEpoch, Fields) {
    (shard::ShardEpoch { shard: 21, epoch: 22 }, vec![field_varint(1, 21), field_varint(2, 22)])
}

fn key() -> (queue::MessageKey, Fields) {
    let key = queue::MessageKey { due_ms: L + 1, id: Bytes::from("the id of it") };
    (key, vec![field_varint(1, L + 1), field_bytes(2, b"the id of it")])
}

fn named() -> (queue::NamedQueue, Fields) {
    let database = Bytes::from("the database's!!");
    let named = queue::NamedQueue { database, name: "emails".to_owned() };
    (named, vec![field_bytes(1, b"the database's!!"), field_bytes(2, b"emails")])
}

#[test]
fn requests_of_listeners_are_golden() {
    let request = queue::ListenRequest {
        group: Some(shard_epoch().0),
        database: Bytes::from("the database's!!"),
        listener: Bytes::from("the listener's!!"),
        credits: 300,
        lease_ms: L + 2,
        held: vec![key().0, key().0],
        resumed: true,
        incarnation: Bytes::from("incarnation's..!"),
        named: Some(named().0),
    };
    let golden = [
        field_message(1, &shard_epoch().1),
        field_bytes(2, b"the database's!!"),
        field_bytes(3, b"the listener's!!"),
        field_varint(4, 300),
        field_varint(5, L + 2),
        field_message(6, &key().1),
        field_message(6, &key().1),
        field_varint(7, 1),
        field_bytes(8, b"incarnation's..!"),
        field_message(9, &named().1),
    ];
    assert_golden(&request, &golden);
    // As it was before queues had names.
    assert_golden(&queue::ListenRequest { named: None, ..request }, &golden[..9]);
}

#[test]
fn parts_for_listeners_are_golden() {
    use queue::listen_part::Part;
    let message = queue::Message {
        key: Some(key().0),
        attempt: 301,
        payload: Bytes::from("payload"),
        enqueued_ms: L + 3,
        lease_ms: Some(0),
    };
    let message_fields = [
        field_message(1, &key().1),
        field_varint(2, 301),
        field_bytes(3, b"payload"),
        field_varint(4, L + 3),
        // A lease that is over is another thing than none.
        field_varint(5, 0),
    ];
    assert_golden(&message, &message_fields);
    let unleased = queue::Message { lease_ms: None, ..message.clone() };
    assert_golden(&unleased, &message_fields[..4]);

    let messages = queue::Messages { messages: vec![message, unleased] };
    let messages_fields =
        [field_message(1, &message_fields), field_message(1, &message_fields[..4])];
    let released = queue::MessageKeys { keys: vec![key().0, key().0] };
    let released_fields = [field_message(1, &key().1), field_message(1, &key().1)];
    let not_leader = shard::NotLeader { leader: L + 4 };
    for (part, field) in [
        (Part::Listening(queue::Listening {}), field_message(1, &[])),
        (Part::Messages(messages), field_message(2, &messages_fields)),
        (Part::Released(released), field_message(3, &released_fields)),
        (Part::NotLeader(not_leader), field_message(4, &[field_varint(1, L + 4)])),
        (Part::Refused("refused".to_owned()), field_bytes(5, b"refused")),
        (Part::Unavailable("unavailable".to_owned()), field_bytes(6, b"unavailable")),
    ] {
        assert_golden(&queue::ListenPart { part: Some(part) }, &[field]);
    }
}

#[test]
fn reports_on_messages_are_golden() {
    use queue::report::Report;
    let reported = [
        (Report::Done(queue::Done {}), field_message(2, &[])),
        (Report::Failed(queue::Failed { retry_after_ms: None }), field_message(3, &[])),
        (
            // At once is another thing than by its schedule.
            Report::Failed(queue::Failed { retry_after_ms: Some(0) }),
            field_message(3, &[field_varint(1, 0)]),
        ),
        (
            Report::Extended(queue::Extended { by_ms: L + 5 }),
            field_message(4, &[field_varint(1, L + 5)]),
        ),
    ];
    let (mut reports, mut reports_fields) = (Vec::new(), Vec::new());
    for (report, field) in reported {
        let report = queue::Report { key: Some(key().0), report: Some(report) };
        let fields = [field_message(1, &key().1), field];
        assert_golden(&report, &fields);
        reports.push(report);
        reports_fields.push(field_message(4, &fields));
    }
    let request = queue::ReportRequest {
        group: Some(shard_epoch().0),
        database: Bytes::from("the database's!!"),
        listener: Bytes::from("the listener's!!"),
        reports,
        named: Some(named().0),
    };
    let golden = [
        vec![
            field_message(1, &shard_epoch().1),
            field_bytes(2, b"the database's!!"),
            field_bytes(3, b"the listener's!!"),
        ],
        reports_fields,
        vec![field_message(5, &named().1)],
    ];
    assert_golden(&request, &golden.concat());
    let unnamed = queue::ReportRequest { named: None, ..request };
    assert_golden(&unnamed, &golden[..2].concat());
}

#[test]
fn answers_to_reports_are_golden() {
    use queue::report_response::Result;
    let answers = queue::Answers { took_effect: vec![true, false, true] };
    let not_leader = shard::NotLeader { leader: L + 6 };
    for (result, field) in [
        (Result::Answers(answers), field_message(1, &[field_packed(1, &[1, 0, 1])])),
        (Result::NotLeader(not_leader), field_message(2, &[field_varint(1, L + 6)])),
        (Result::Unavailable("unavailable".to_owned()), field_bytes(3, b"unavailable")),
    ] {
        assert_golden(&queue::ReportResponse { result: Some(result) }, &[field]);
    }
}

#[test]
fn requests_for_pages_are_golden() {
    use queue::list_request::Range;
    for (range, field) in [
        (Range::AllMessages(queue::All {}), field_message(3, &[])),
        (Range::Behind(key().0), field_message(4, &key().1)),
        (Range::DeadFrom(0), field_varint(5, 0)),
        (Range::DeadFrom(L + 7), field_varint(5, L + 7)),
    ] {
        let request = queue::ListRequest {
            group: Some(shard_epoch().0),
            database: Bytes::from("the database's!!"),
            range: Some(range),
            limit: 302,
            whole: true,
            named: Some(named().0),
        };
        let golden = [
            field_message(1, &shard_epoch().1),
            field_bytes(2, b"the database's!!"),
            field,
            field_varint(6, 302),
            field_varint(7, 1),
            field_message(8, &named().1),
        ];
        assert_golden(&request, &golden);
        assert_golden(&queue::ListRequest { named: None, ..request }, &golden[..5]);
    }
}

fn listed_letter() -> (queue::ListedLetter, Fields) {
    let letter = queue::ListedLetter {
        number: L + 9,
        id: Bytes::from("the id of it"),
        failed: 305,
        enqueued_ms: L + 10,
        died_ms: L + 11,
        payload_bytes: 306,
        // Another thing than none.
        payload: Some(Bytes::new()),
        queue: "emails".to_owned(),
    };
    let fields = vec![
        field_varint(1, L + 9),
        field_bytes(2, b"the id of it"),
        field_varint(3, 305),
        field_varint(4, L + 10),
        field_varint(5, L + 11),
        field_varint(6, 306),
        field_bytes(7, b""),
        field_bytes(8, b"emails"),
    ];
    (letter, fields)
}

#[test]
fn pages_of_queues_are_golden() {
    use queue::list_response::Result;
    let whole = queue::Whole {
        payload: Bytes::from("payload"),
        keys_if_undelivered: vec![Bytes::from("one"), Bytes::from("two")],
    };
    let whole_fields = [field_bytes(1, b"payload"), field_bytes(2, b"one"), field_bytes(2, b"two")];
    let message = queue::ListedMessage {
        key: Some(key().0),
        failed: 303,
        enqueued_ms: L + 8,
        payload_bytes: 304,
        keys: 2,
        leased: true,
        whole: Some(whole),
    };
    let message_fields = [
        field_message(1, &key().1),
        field_varint(2, 303),
        field_varint(3, L + 8),
        field_varint(4, 304),
        field_varint(5, 2),
        field_varint(6, 1),
        field_message(7, &whole_fields),
    ];
    let (letter, letter_fields) = listed_letter();
    let unnamed = queue::ListedLetter { queue: String::new(), ..letter.clone() };
    assert_golden(&unnamed, &letter_fields[..7]);
    let count =
        queue::NamedCount { name: "emails".to_owned(), undelivered: L + 15, leased: L + 16 };
    let count_fields =
        [field_bytes(1, b"emails"), field_varint(2, L + 15), field_varint(3, L + 16)];
    let page = queue::Page {
        messages: vec![message],
        dead_letters: vec![letter],
        undelivered: L + 12,
        leased: L + 13,
        dead: L + 14,
        paused: true,
        queues: vec![count],
    };
    let page_fields = [
        field_message(1, &message_fields),
        field_message(2, &letter_fields),
        field_varint(3, L + 12),
        field_varint(4, L + 13),
        field_varint(5, L + 14),
        field_varint(6, 1),
        field_message(7, &count_fields),
    ];
    let not_leader = shard::NotLeader { leader: L + 6 };
    for (result, field) in [
        (Result::Page(page), field_message(1, &page_fields)),
        (Result::NotLeader(not_leader), field_message(2, &[field_varint(1, L + 6)])),
        (Result::Unavailable("unavailable".to_owned()), field_bytes(3, b"unavailable")),
    ] {
        assert_golden(&queue::ListResponse { result: Some(result) }, &[field]);
    }
}
