//! Answers to sums, minima and maxima that cannot be carried out. Each undoes its whole write.

use bytes::Bytes;
use meridian_kv_client::message::{delete, mutation, set};
use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::MutationType::{MMax, MMin, MSum};

use crate::server::{Answered, Server};

/// 7, 7n, 2n ** 64n, "text" and {}, as V8 serializes them; bytes that no V8 reads.
const NUMBER: &[u8] = b"\xff\x0fI\x0e";
const BIGINT: &[u8] = b"\xff\x0fZ\x10\x07\0\0\0\0\0\0\0";
const LONG_BIGINT: &[u8] = b"\xff\x0fZ\x20\0\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0";
const TEXT: &[u8] = b"\xff\x0f\"\x04text";
const OBJECT: &[u8] = b"\xff\x0fo{\0";
const DAMAGED: &[u8] = b"\xff\x0fN\0";

fn v8(kind: pb::MutationType, key: &str, data: &[u8]) -> pb::Mutation {
    mutation(kind, key.as_bytes(), pb::ValueEncoding::VeV8, data)
}

fn u64(kind: pb::MutationType, key: &str, number: u64) -> pb::Mutation {
    mutation(kind, key.as_bytes(), pb::ValueEncoding::VeLe64, &number.to_le_bytes())
}

fn bounded(mutation: pb::Mutation, min: &[u8], max: &[u8]) -> pb::Mutation {
    let bytes = Bytes::copy_from_slice;
    pb::Mutation { sum_min: bytes(min), sum_max: bytes(max), ..mutation }
}

/// A bigint whose serialization has so many bytes: six, and its magnitude.
pub(crate) fn bigint_of(length: usize) -> Vec<u8> {
    let mut data = b"\xff\x0fZ".to_vec();
    prost::encoding::encode_varint(((length - 6) as u64) << 1, &mut data);
    data.resize(length, 0xfe);
    data
}

pub(crate) async fn answers() -> Vec<Answered> {
    let server = Server::start().await;
    let stored = [("number", NUMBER), ("bigint", BIGINT), ("text", TEXT), ("object", OBJECT)];
    let stored = stored.into_iter().chain([("damaged", DAMAGED), ("empty", b"")]);
    let mut stored: Vec<_> =
        stored.map(|(key, data)| v8(pb::MutationType::MSet, key, data)).collect();
    stored.extend([u64(MSum, "u64", 1), set(b"bytes", b"v"), set(b"kept", b"as it was")]);
    stored.push(v8(pb::MutationType::MSet, "long", &bigint_of(65_536)));
    assert_eq!(server.write(vec![], stored).await.status, 200);
    let mut answers = Vec::new();
    for (case, failing) in cases() {
        let undone = vec![set(b"new", b"v"), delete(b"kept"), failing, set(b"kept", b"w")];
        answers.push(Answered::new(case, &server.write(vec![], undone).await));
        assert!(server.client.get(b"new").await.unwrap().is_none(), "{case}");
        let kept = server.client.get(b"kept").await.unwrap().unwrap();
        assert_eq!(kept.value, &b"as it was"[..], "{case}");
    }
    let sums = |count| vec![v8(MSum, "long", b"\xff\x0fZ\0"); count];
    let many = server.write(vec![], sums(32)).await;
    assert_eq!(many.status, 200, "{}", many.text());
    let reply = server.write(vec![], sums(33)).await;
    answers.push(Answered::new("33 sums on a bigint of 65,536 bytes", &reply));
    answers
}

fn cases() -> Vec<(&'static str, pb::Mutation)> {
    let not_a_number = "sum with an operand or a bound that is no number";
    let no_bounds = "sum with bounds of another type";
    let bigint_on_u64 = "sum of a bigint with bounds, or beyond 64 bits, on a u64";
    let on_no_number = "sum on a string, an object, bytes";
    let out_of_range = "sum beyond its bounds without a clamp, or longer than a value may be";
    vec![
        ("min with an operand that is no u64", v8(MMin, "u64", NUMBER)),
        ("max with an operand that is no u64", v8(MMax, "u64", BIGINT)),
        ("sum of a u64 on a value that is none", u64(MSum, "number", 1)),
        ("sum of a u64 on a value that is none", u64(MSum, "bytes", 1)),
        ("min on a value that is no u64", u64(MMin, "bigint", 1)),
        ("max on a value that is no u64", u64(MMax, "text", 1)),
        (not_a_number, v8(MSum, "number", TEXT)),
        (not_a_number, v8(MSum, "absent", b"")),
        (not_a_number, bounded(v8(MSum, "number", NUMBER), DAMAGED, b"")),
        (not_a_number, bounded(v8(MSum, "number", NUMBER), b"", OBJECT)),
        (no_bounds, bounded(v8(MSum, "number", NUMBER), BIGINT, b"")),
        (no_bounds, bounded(v8(MSum, "bigint", BIGINT), b"", NUMBER)),
        ("sum of a number on a u64", v8(MSum, "u64", NUMBER)),
        (bigint_on_u64, bounded(v8(MSum, "u64", BIGINT), b"", BIGINT)),
        (bigint_on_u64, v8(MSum, "u64", LONG_BIGINT)),
        ("sum of a bigint on a number", v8(MSum, "number", BIGINT)),
        ("sum of a number on a bigint", v8(MSum, "bigint", NUMBER)),
        (on_no_number, v8(MSum, "text", NUMBER)),
        (on_no_number, v8(MSum, "object", NUMBER)),
        (on_no_number, v8(MSum, "bytes", BIGINT)),
        ("sum on a damaged value", v8(MSum, "damaged", NUMBER)),
        ("sum on an empty value", v8(MSum, "empty", NUMBER)),
        (out_of_range, bounded(v8(MSum, "number", NUMBER), b"", NUMBER)),
        (out_of_range, bounded(v8(MSum, "bigint", BIGINT), LONG_BIGINT, b"")),
        (out_of_range, v8(MSum, "long", &bigint_of(65_536))),
    ]
}
