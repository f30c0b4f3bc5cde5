//! Answers to messages that are beyond a limit, or that say nothing that can be done.

use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use meridian_conformance::DATABASE;
use meridian_kv_client::message::{mutation, set};
use meridian_proto::kv_connect as pb;
use meridian_types::limits;
use prost::Message;

use crate::at_limits::acknowledgement;
use crate::server::{Answered, Server, WATCH};

pub(crate) fn key(length: usize) -> Bytes {
    vec![b'k'; length].into()
}

pub(crate) fn range(start: usize, end: usize, limit: i32) -> pb::ReadRange {
    pb::ReadRange { start: key(start), end: key(end), limit, reverse: false }
}

pub(crate) fn check(length: usize, versionstamp: usize) -> pb::Check {
    pb::Check { key: key(length), versionstamp: vec![0; versionstamp].into() }
}

/// A set of a key and a value of these lengths.
pub(crate) fn sized(key: usize, value: usize) -> pb::Mutation {
    set(&self::key(key), &vec![0; value])
}

pub(crate) fn suffixed(length: usize) -> pb::Mutation {
    let kind = pb::MutationType::MSetSuffixVersionstampedKey;
    mutation(kind, &key(length), pb::ValueEncoding::VeBytes, b"v")
}

/// A write of so many bytes in all, in keys, values and a check.
pub(crate) fn of_total(bytes: usize) -> (Vec<pb::Check>, Vec<pb::Mutation>) {
    let mut mutations = vec![sized(4, 65_536); 12];
    mutations.push(sized(1000, bytes - 12 * 65_540 - 2000));
    (vec![check(1000, 0)], mutations)
}

pub(crate) async fn answers() -> Vec<Answered> {
    let server = Server::start().await;
    let mut answers = reads(&server).await;
    answers.extend(watches(&server).await);
    answers.extend(limits_of_writes(&server).await);
    answers.extend(fields_of_writes(&server).await);
    answers.extend(enqueues(&server).await);
    answers.extend(about_queues(&server).await);
    answers
}

async fn reads(server: &Server) -> Vec<Answered> {
    let of_a_key = "a range that begins or ends with a key of 2,050 bytes";
    let mut answers = Vec::new();
    for (case, ranges) in [
        ("11 ranges", vec![range(1, 2, 1); 11]),
        ("1,001 entries", vec![range(1, 2, 1001)]),
        ("1,001 entries", vec![range(1, 2, 500), range(1, 2, 501)]),
        ("a range without a limit", vec![range(1, 2, 0)]),
        (of_a_key, vec![range(2050, 2050, 1)]),
        (of_a_key, vec![range(1, 2050, 1)]),
    ] {
        answers.push(Answered::new(case, &server.read(ranges).await));
    }
    answers
}

async fn watches(server: &Server) -> Vec<Answered> {
    let mut answers = Vec::new();
    for (case, keys) in [
        ("11 keys of a watch", vec![key(1); 11]),
        ("a watch of a key of 2,050 bytes", vec![key(2050)]),
    ] {
        let keys = keys.into_iter().map(|key| pb::WatchKey { key }).collect();
        let body = pb::Watch { keys }.encode_to_vec();
        answers
            .push(Answered::new(case, &server.post(WATCH, &server.client.headers(), body).await));
    }
    answers
}

async fn limits_of_writes(server: &Server) -> Vec<Answered> {
    let of_a_value = "a value, or a bound of a sum, of 65,537 bytes";
    let bound = || Bytes::from(vec![0; 65_537]);
    let mut answers = Vec::new();
    for (case, (checks, mutations)) in [
        ("a check of a key of 2,050 bytes", (vec![check(2050, 0)], vec![])),
        ("a mutation of a key of 2,049 bytes", (vec![], vec![sized(2049, 1)])),
        ("a versionstamp behind a key of 2,027 bytes", (vec![], vec![suffixed(2027)])),
        (of_a_value, (vec![], vec![sized(1, 65_537)])),
        (of_a_value, (vec![], vec![pb::Mutation { sum_min: bound(), ..sized(1, 1) }])),
        (of_a_value, (vec![], vec![pb::Mutation { sum_max: bound(), ..sized(1, 1) }])),
        ("101 checks", (vec![check(1, 0); 101], vec![])),
        ("1,001 mutations and enqueues", (vec![], vec![sized(1, 1); 1001])),
        ("819,201 bytes", of_total(819_201)),
        (
            "65 acknowledgements of an atomic write",
            (vec![], vec![acknowledgement(&[0; 10], 0, 0); 65]),
        ),
    ] {
        answers.push(Answered::new(case, &server.write(checks, mutations).await));
    }
    answers
}

async fn fields_of_writes(server: &Server) -> Vec<Answered> {
    let valued = |encoding, data: &'static [u8]| pb::Mutation {
        value: Some(pb::KvValue { data: Bytes::from_static(data), encoding }),
        ..sized(1, 1)
    };
    let of_kind = |kind| pb::Mutation { mutation_type: kind, ..sized(1, 1) };
    let without_value = "a set, sum, min or max without a value";
    let reserved = |rest: &str| {
        let key = [&b"\x01\xfdmeridian\xfd\x00"[..], rest.as_bytes()].concat();
        pb::Mutation { key: key.into(), ..sized(1, 1) }
    };
    let long_id = format!("\x02request\0\x02{}\0", "i".repeat(129));
    let mut answers = Vec::new();
    let stamped = server.write(vec![check(1, 9)], vec![]).await;
    answers.push(Answered::new("a check with a versionstamp of 9 bytes", &stamped));
    for (case, mutation) in [
        ("an unknown type of mutation", of_kind(7)),
        (without_value, pb::Mutation { value: None, ..of_kind(1) }),
        (without_value, pb::Mutation { value: None, ..of_kind(3) }),
        (without_value, pb::Mutation { value: None, ..of_kind(4) }),
        (without_value, pb::Mutation { value: None, ..of_kind(5) }),
        (without_value, pb::Mutation { value: None, ..of_kind(9) }),
        (
            "an expiry below -1 (-1 and 0 are none)",
            pb::Mutation { expire_at_ms: -2, ..sized(1, 1) },
        ),
        ("an unknown value encoding", valued(4, b"v")),
        ("a u64 that is not of 8 bytes", valued(2, b"1234567")),
        ("a mutation of a reserved key that says nothing known", reserved("\x02other\0")),
        ("an id of a request of 129 bytes", reserved(&long_id)),
    ] {
        answers.push(Answered::new(case, &server.write(vec![], vec![mutation]).await));
    }
    // None of these was carried out.
    assert!(server.client.get(&key(1)).await.unwrap().is_none());
    answers
}

async fn about_queues(server: &Server) -> Vec<Answered> {
    let of_65_bytes = format!(r#"{{"queue":"{}"}}"#, "n".repeat(65));
    let mut answers = Vec::new();
    for (case, path, body) in [
        (
            "a request about queues that is no JSON, or not with these fields and types; where it \
             can be told, with what is expected there",
            "report",
            "{}",
        ),
        ("a message whose payload V8 did not write", "enqueue", r#"{"payload":"aGVsbG8="}"#),
        ("a field about queues that is missing or out of its range", "listen", r#"{"credits":0}"#),
        ("a field about queues that is too large", "listen", r#"{"credits":1001}"#),
        ("a name of a queue of 65 bytes", "poll", &of_65_bytes),
        ("a name of a queue with a line break", "listen", r#"{"queue":"a\nb"}"#),
    ] {
        let path = format!("/kv/queue/{path}");
        let reply = server.post(&path, &server.client.headers(), body.to_owned()).await;
        answers.push(Answered::new(case, &reply));
    }
    answers
}

/// Messages in as many named queues as there may be, and one more.
async fn named_queues(server: &Server) -> Answered {
    let enqueue = async |name: usize| {
        let body = format!(r#"{{"payload":"/w8w","queue":"{name}"}}"#);
        server.post("/kv/queue/enqueue", &server.client.headers(), body).await
    };
    for name in 0..limits::MAX_QUEUE_NAMES {
        assert_eq!(enqueue(name).await.status, 200);
    }
    assert_eq!(enqueue(0).await.status, 200, "it has messages already");
    let case = "an enqueue into another named queue than those that have messages, where these are as \
                many as may be";
    Answered::new(case, &enqueue(limits::MAX_QUEUE_NAMES).await)
}

/// Milliseconds since the Unix epoch, by the clock that gateways compare due times with.
pub(crate) fn wall_clock_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    u64::try_from(now.as_millis()).unwrap()
}

async fn enqueues(server: &Server) -> Vec<Answered> {
    let under = |keys_if_undelivered| pb::Enqueue { keys_if_undelivered, ..Default::default() };
    let after = |backoff_schedule| pb::Enqueue { backoff_schedule, ..Default::default() };
    let reserved = Bytes::from_static(b"\x01\xfdmeridian\xfd\x00\x02k\x00");
    let too_late = wall_clock_ms() + limits::MAX_ENQUEUE_DELAY_MS + 2 * 600_000;
    let mut answers = Vec::new();
    for (case, enqueue) in [
        (
            "a payload of 65,537 bytes",
            pb::Enqueue { payload: vec![0; 65_537].into(), ..Default::default() },
        ),
        ("11 keys if undelivered of a message", under(vec![key(1); 11])),
        ("a key if undelivered of 2,049 bytes", under(vec![key(2049)])),
        ("a key if undelivered that is reserved", under(vec![reserved])),
        ("11 intervals of a backoff schedule", after(vec![1; 11])),
        ("an interval of more than an hour", after(vec![3_600_001])),
        (
            "a message that is due after the longest delay",
            pb::Enqueue { deadline_ms: i64::try_from(too_late).unwrap(), ..Default::default() },
        ),
    ] {
        answers.push(Answered::new(case, &server.enqueue(vec![enqueue]).await));
    }
    let many = server.enqueue(vec![pb::Enqueue::default(); 1001]).await;
    answers.push(Answered::new("1,001 mutations and enqueues", &many));
    answers.push(named_queues(server).await);
    server.shard.fill_queue(DATABASE).unwrap();
    let beyond = server.enqueue(vec![pb::Enqueue::default()]).await;
    answers
        .push(Answered::new("an enqueue beyond the undelivered messages of a database", &beyond));
    answers
}
