//! Every limit on messages, at its edge and one over.

use super::*;
use crate::reserved::PREFIX;

fn write(message: pb::AtomicWrite) -> Result<(Transaction, Reserved), Invalid> {
    super::write(message, V8Format::default(), 0)
}

fn bytes(length: usize) -> Bytes {
    vec![b'k'; length].into()
}

fn limit_of<T: std::fmt::Debug>(result: Result<T, Invalid>) -> usize {
    let invalid = result.unwrap_err();
    let Invalid::Limit { limit, .. } = invalid else { panic!("{invalid:?} is not about a limit") };
    assert!(invalid.to_string().contains(&limit.to_string()), "{invalid}");
    limit
}

fn range(start: usize, end: usize, limit: i32) -> pb::ReadRange {
    pb::ReadRange { start: bytes(start), end: bytes(end), limit, reverse: false }
}

fn read_of(ranges: Vec<pb::ReadRange>) -> Result<Vec<ReadRange>, Invalid> {
    read(pb::SnapshotRead { ranges })
}

fn check_of(key: usize, versionstamp: usize) -> pb::Check {
    pb::Check { key: bytes(key), versionstamp: bytes(versionstamp) }
}

fn set(key: usize, value: usize) -> pb::Mutation {
    pb::Mutation {
        key: bytes(key),
        value: Some(pb::KvValue { data: bytes(value), encoding: 3 }),
        mutation_type: pb::MutationType::MSet.into(),
        ..Default::default()
    }
}

fn write_of(checks: Vec<pb::Check>, mutations: Vec<pb::Mutation>) -> Result<Transaction, Invalid> {
    write(pb::AtomicWrite { checks, mutations, enqueues: vec![] })
        .map(|(transaction, _)| transaction)
}

fn one(mutation: pb::Mutation) -> Result<MutationKind, Invalid> {
    write_of(vec![], vec![mutation]).map(|transaction| transaction.mutations[0].kind.clone())
}

#[test]
fn read_limits_hold_at_and_one_over() {
    assert_eq!(read_of(vec![range(1, 1, 1); 10]).unwrap().len(), 10);
    assert_eq!(limit_of(read_of(vec![range(1, 1, 1); 11])), 10);
    assert!(read_of(vec![range(2049, 2049, 1)]).is_ok());
    assert_eq!(limit_of(read_of(vec![range(2050, 1, 1)])), 2049);
    assert_eq!(limit_of(read_of(vec![range(1, 2050, 1)])), 2049);
    assert!(read_of(vec![range(1, 2, 400), range(1, 2, 600)]).is_ok());
    assert_eq!(limit_of(read_of(vec![range(1, 2, 401), range(1, 2, 600)])), 1000);
    assert_eq!(limit_of(read_of(vec![range(1, 2, i32::MAX); 10])), 1000);
    assert!(read_of(vec![]).unwrap().is_empty());
}

#[test]
fn a_range_needs_a_limit() {
    for limit in [0, -1, i32::MIN] {
        let refused = read_of(vec![range(1, 2, 1), range(1, 2, limit)]).unwrap_err();
        assert_eq!(refused, Invalid::RangeLimit { index: 1, limit });
    }
}

#[test]
fn a_range_that_ends_before_it_starts_is_empty() {
    let ranges = read_of(vec![range(3, 2, 5)]).unwrap();
    assert_eq!((&ranges[0].start, &ranges[0].end, ranges[0].limit), (&bytes(3), &bytes(3), 5));
}

#[test]
fn ranges_are_taken_as_they_are() {
    let message = pb::ReadRange { start: bytes(0), end: bytes(4), limit: 7, reverse: true };
    let expected = ReadRange { start: bytes(0), end: bytes(4), limit: 7, reverse: true };
    assert_eq!(read_of(vec![message]).unwrap(), [expected]);
}

#[test]
fn counts_of_a_write_hold_at_and_one_over() {
    assert!(write_of(vec![check_of(1, 0); 100], vec![]).is_ok());
    assert_eq!(limit_of(write_of(vec![check_of(1, 0); 101], vec![])), 100);
    assert!(write_of(vec![], vec![set(1, 1); 1000]).is_ok());
    assert_eq!(limit_of(write_of(vec![], vec![set(1, 1); 1001])), 1000);
    let enqueues = vec![pb::Enqueue::default()];
    let together = pb::AtomicWrite { checks: vec![], mutations: vec![set(1, 1); 1000], enqueues };
    assert_eq!(limit_of(write(together)), 1000);
}

#[test]
fn sizes_of_a_write_hold_at_and_one_over() {
    assert!(write_of(vec![check_of(2049, 10)], vec![set(2048, 65536)]).is_ok());
    assert_eq!(limit_of(write_of(vec![check_of(2050, 0)], vec![])), 2049);
    assert_eq!(limit_of(one(set(2049, 1))), 2048);
    assert_eq!(limit_of(one(set(1, 65537))), 65536);
    assert_eq!(limit_of(one(pb::Mutation { sum_min: bytes(65537), ..set(1, 1) })), 65536);
    assert_eq!(limit_of(one(pb::Mutation { sum_max: bytes(65537), ..set(1, 1) })), 65536);
}

#[test]
fn a_key_with_a_versionstamp_behind_it_is_as_long_as_it_is_stored() {
    let suffixed = |key| pb::Mutation { mutation_type: 9, ..set(key, 1) };
    assert!(one(suffixed(2048 - 22)).is_ok());
    for key in 2048 - 21..=2048 {
        let refused = one(suffixed(key)).unwrap_err();
        assert!(refused.to_string().contains("versionstamp"), "{refused}");
        assert_eq!(limit_of::<()>(Err(refused)), 2048);
    }
}

#[test]
fn the_total_of_a_write_holds_at_and_one_over() {
    // 12 values and their keys make 786,480 bytes; checks and bounds count as well.
    let mut mutations = vec![set(4, 65536); 12];
    mutations.push(set(2000, 29_000));
    mutations.push(pb::Mutation { sum_min: bytes(100), sum_max: bytes(100), ..set(0, 0) });
    let used = 12 * 65540 + 31_000 + 200;
    let checks = |key| vec![check_of(key, 0)];
    let rest = 819_200 - used;
    assert!(write_of(checks(rest), mutations.clone()).is_ok());
    assert_eq!(limit_of(write_of(checks(rest + 1), mutations)), 819_200);
}

#[test]
fn check_versions_have_0_or_10_bytes() {
    let transaction = write_of(vec![check_of(1, 0), check_of(2, 10)], vec![]).unwrap();
    assert_eq!(transaction.checks[0], Check { key: bytes(1), versionstamp: None });
    assert_eq!(transaction.checks[1].versionstamp, Some(Versionstamp([b'k'; 10])));
    for length in [1, 9, 11, 20] {
        let refused = write_of(vec![check_of(1, 0), check_of(1, length)], vec![]).unwrap_err();
        assert_eq!(refused, Invalid::Versionstamp { index: 1, length });
        assert!(refused.to_string().contains("versionstamp"));
    }
}

#[test]
fn every_mutation_kind() {
    let of = |number| {
        let (sum_min, sum_max) = (Bytes::from_static(b"a"), Bytes::from_static(b"b"));
        one(pb::Mutation { mutation_type: number, sum_min, sum_max, sum_clamp: true, ..set(1, 2) })
    };
    let value = Value { encoding: ValueEncoding::Bytes, data: bytes(2) };
    let bounds =
        SumBounds { min: Bytes::from_static(b"a"), max: Bytes::from_static(b"b"), clamp: true };
    assert_eq!(of(1).unwrap(), MutationKind::Set(value.clone()));
    assert_eq!(of(2).unwrap(), MutationKind::Delete);
    assert_eq!(of(3).unwrap(), MutationKind::Sum { operand: value.clone(), bounds });
    assert_eq!(of(4).unwrap(), MutationKind::Max(value.clone()));
    assert_eq!(of(5).unwrap(), MutationKind::Min(value.clone()));
    assert_eq!(of(9).unwrap(), MutationKind::SetSuffixVersionstampedKey(value));
    for number in [0, 6, 7, 8, 10, -1, i32::MAX] {
        assert_eq!(of(number).unwrap_err(), Invalid::MutationKind { index: 0, number });
    }
}

#[test]
fn only_a_delete_needs_no_value() {
    let of = |number| one(pb::Mutation { mutation_type: number, value: None, ..set(1, 0) });
    assert_eq!(of(2).unwrap(), MutationKind::Delete);
    for number in [1, 3, 4, 5, 9] {
        assert_eq!(of(number).unwrap_err(), Invalid::MissingValue { index: 0 });
    }
}

#[test]
fn values_have_a_known_encoding() {
    let of = |encoding, length| {
        one(pb::Mutation {
            value: Some(pb::KvValue { data: bytes(length), encoding }),
            ..set(1, 0)
        })
    };
    for (encoding, length) in [(1, 0), (1, 65536), (2, 8), (3, 0)] {
        assert!(of(encoding, length).is_ok());
    }
    for number in [0, 4, -1] {
        assert_eq!(of(number, 8).unwrap_err(), Invalid::Encoding { index: 0, number });
    }
    for length in [0, 7, 9] {
        assert_eq!(of(2, length).unwrap_err(), Invalid::U64Length { index: 0, length });
    }
    let delete =
        pb::Mutation { value: Some(pb::KvValue::default()), mutation_type: 2, ..set(1, 0) };
    assert_eq!(one(delete).unwrap(), MutationKind::Delete);
}

#[test]
fn expiry_is_a_time_or_never() {
    let of = |expire_at_ms| write_of(vec![], vec![pb::Mutation { expire_at_ms, ..set(1, 1) }]);
    for expire_at_ms in [0, 1, i64::MAX] {
        assert_eq!(of(expire_at_ms).unwrap().mutations[0].expire_at_ms, expire_at_ms as u64);
    }
    assert_eq!(of(-1).unwrap().mutations[0].expire_at_ms, 0);
    for expire_at_ms in [-2, i64::MIN] {
        let refused = of(expire_at_ms).unwrap_err();
        assert_eq!(refused, Invalid::ExpireAt { index: 0, expire_at_ms });
        assert!(refused.to_string().contains("expire"));
    }
}

#[test]
fn mutation_of_a_reserved_key_is_no_mutation_of_the_database() {
    let key = [PREFIX, b"\x02request\x00\x02an id\x00"].concat();
    let reserved = pb::Mutation { key: key.into(), ..set(1, 1) };
    let mutations = vec![set(1, 1), reserved.clone(), set(2, 1)];
    let enqueues = vec![pb::Enqueue::default()];
    let message = pb::AtomicWrite { mutations, enqueues, ..Default::default() };
    let (transaction, said) = write(message).unwrap();
    assert_eq!((transaction.mutations.len(), transaction.enqueues.len()), (2, 1));
    assert!(said.has_request_id);
    let sum = pb::Mutation { mutation_type: pb::MutationType::MSum.into(), ..reserved };
    assert_eq!(one(sum).unwrap_err(), Invalid::ReservedKey { index: 0 });
}

#[test]
fn v8_values_are_stored_in_the_format_of_the_database() {
    let stored = |data: &[u8], encoding, format| {
        let value = Some(pb::KvValue { data: Bytes::copy_from_slice(data), encoding });
        let set = pb::Mutation {
            key: bytes(1),
            value,
            mutation_type: pb::MutationType::MSet.into(),
            ..Default::default()
        };
        let message = pb::AtomicWrite { mutations: vec![set], ..Default::default() };
        let MutationKind::Set(value) =
            &super::write(message, format, 0).unwrap().0.mutations[0].kind
        else {
            panic!("it is a set")
        };
        value.data.clone()
    };
    let (portable, as_sent) = (V8Format::Portable, V8Format::AsSent);
    let object = b"\xff\x10o\"\x01ai\x02{\x01";
    assert_eq!(stored(object, 1, portable), &b"\xff\x0fo\"\x01ai\x02{\x01"[..]);
    assert_eq!(stored(object, 1, as_sent), &object[..]);
    // Values with the encoding `bytes` are the program's own and stay as they are, and so does a
    // value that format 15 cannot say.
    assert_eq!(stored(b"\xff\x10", 3, portable), &b"\xff\x10"[..]);
    let grows = b"\xff\x10A\x01~\x01\x80\x80\x80\x80\x10\x07$\x00\x01";
    assert_eq!(stored(grows, 1, portable), &grows[..]);
}

/// A body that is malformed at its end, which shows when all of it is decoded.
fn repeated(field: &[u8], times: usize) -> Bytes {
    let mut body = field.repeat(times);
    body.push(0xff);
    body.into()
}

#[test]
fn message_over_a_limit_is_refused_before_it_is_decoded() {
    let limit =
        |refused: Invalid, part: &str| assert!(refused.to_string().contains(part), "{refused}");
    let half = 512 * 1024;
    limit(decode_read(repeated(b"\x0a\x00", half)).unwrap_err(), "The number of ranges");
    limit(decode_write(repeated(b"\x0a\x00", half)).unwrap_err(), "The number of checks");
    limit(decode_write(repeated(b"\x12\x00", half)).unwrap_err(), "The number of mutations");
    limit(decode_write(repeated(b"\x1a\x00", half)).unwrap_err(), "The number of mutations");
    limit(decode_write(repeated(b"\x12\x00", 1000)).unwrap_err(), "Request protobuf is invalid");
    let within = decode_write(Bytes::from(b"\x12\x00".repeat(1000))).unwrap();
    assert_eq!(within.mutations.len(), 1000);
    let key = Bytes::from(vec![7; limits::MAX_READ_KEY_BYTES]);
    let range = pb::ReadRange { start: key.clone(), end: key, limit: 100, reverse: true };
    let largest = pb::SnapshotRead { ranges: vec![range; limits::MAX_READ_RANGES] }.encode_to_vec();
    assert!(largest.len() <= MAX_READ_BYTES && decode_read(largest.into()).is_ok());
}
