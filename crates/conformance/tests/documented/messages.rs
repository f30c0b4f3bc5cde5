//! Answers to messages that are beyond a limit, or that say nothing that can be done.

use bytes::Bytes;
use meridian_kv_client::message::{mutation, set};
use meridian_proto::kv_connect as pb;
use prost::Message;

use crate::server::{Answered, Server, WATCH, WRITE};

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
        ("1,001 mutations", (vec![], vec![sized(1, 1); 1001])),
        ("819,201 bytes", of_total(819_201)),
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
    let enqueue = pb::AtomicWrite { enqueues: vec![pb::Enqueue::default()], ..Default::default() };
    let reply = server.post(WRITE, &server.client.headers(), enqueue.encode_to_vec()).await;
    answers.push(Answered::new("an enqueue", &reply));
    // None of these was carried out.
    assert!(server.client.get(&key(1)).await.unwrap().is_none());
    answers
}
