//! The messages of a program's steps, for one of the two sides: each has versionstamps of its own.

use bytes::Bytes;
use meridian_kv_client::message::{delete, point, set};
use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::MutationType;

use crate::program::{Edge, Expected, Flaw, Key, Kind, Mutation, PLAIN, Range, Write};
use crate::values::Data;

/// The versionstamps of the writes of a program so far.
pub(crate) type Stamps = Vec<Bytes>;

pub(crate) fn key(key: &Key, stamps: &Stamps) -> Bytes {
    match key {
        Key::Plain(plain) => Bytes::from_static(PLAIN[*plain]),
        Key::Long(length) => vec![b'k'; *length].into(),
        Key::Stamped(plain, _) if stamps.is_empty() => Bytes::from_static(PLAIN[*plain]),
        Key::Stamped(plain, write) => {
            let stamp = &stamps[write % stamps.len()];
            let digits: String = stamp.iter().map(|byte| format!("{byte:02x}")).collect();
            [PLAIN[*plain], b"\x02", digits.as_bytes(), b"\0"].concat().into()
        }
    }
}

fn edge(edge: &Edge, stamps: &Stamps) -> Bytes {
    [key(&edge.key, stamps).as_ref(), edge.behind].concat().into()
}

pub(crate) fn range(range: &Range, stamps: &Stamps) -> pb::ReadRange {
    pb::ReadRange {
        start: edge(&range.start, stamps),
        end: edge(&range.end, stamps),
        limit: range.limit,
        reverse: range.reverse,
    }
}

/// A read of each key that is checked.
pub(crate) fn checked(write: &Write, stamps: &Stamps) -> pb::SnapshotRead {
    let ranges = write.checks.iter().map(|(checked, _)| point(&key(checked, stamps)));
    pb::SnapshotRead { ranges: ranges.collect() }
}

/// `present` has the versionstamp of each key that is checked, empty where it is absent.
pub(crate) fn write(write: &Write, present: &[Bytes], stamps: &Stamps) -> pb::AtomicWrite {
    let checks = write.checks.iter().zip(present).map(|((checked, expected), present)| pb::Check {
        key: key(checked, stamps),
        versionstamp: match expected {
            Expected::Absent => Bytes::new(),
            Expected::Present => present.clone(),
            Expected::OfWrite(_) if stamps.is_empty() => Bytes::new(),
            Expected::OfWrite(write) => stamps[write % stamps.len()].clone(),
            Expected::Unknown => Bytes::from_static(&[0xff; 10]),
        },
    });
    let mut message = pb::AtomicWrite {
        checks: checks.collect(),
        mutations: write.mutations.iter().map(|one| mutation(one, stamps)).collect(),
        enqueues: Vec::new(),
    };
    if let Some(flaw) = &write.flaw {
        spoil(&mut message, flaw);
    }
    message
}

fn mutation(mutation: &Mutation, stamps: &Stamps) -> pb::Mutation {
    let (kind, value) = match &mutation.kind {
        Kind::Set(value) => (MutationType::MSet, Some(value)),
        Kind::SetStamped(value) => (MutationType::MSetSuffixVersionstampedKey, Some(value)),
        Kind::Delete => (MutationType::MDelete, None),
        Kind::Sum { operand, .. } => (MutationType::MSum, Some(operand)),
        Kind::Min(operand) => (MutationType::MMin, Some(operand)),
        Kind::Max(operand) => (MutationType::MMax, Some(operand)),
    };
    let data = |data: &Data| data.bytes(mutation.format);
    let bound = |bound: &Option<Data>| bound.as_ref().map(data).unwrap_or_default();
    let (sum_min, sum_max, sum_clamp) = match &mutation.kind {
        Kind::Sum { min, max, clamp, .. } => (bound(min), bound(max), *clamp),
        _ => Default::default(),
    };
    pb::Mutation {
        key: key(&mutation.key, stamps),
        value: value.map(|value| pb::KvValue { data: data(value), encoding: value.encoding() }),
        mutation_type: kind.into(),
        expire_at_ms: mutation.expire_at_ms,
        sum_min,
        sum_max,
        sum_clamp,
    }
}

fn spoil(message: &mut pb::AtomicWrite, flaw: &Flaw) {
    let check = |key: usize, versionstamp: usize| pb::Check {
        key: vec![b'k'; key].into(),
        versionstamp: vec![0; versionstamp].into(),
    };
    let sized = |key: usize, value: usize| set(&vec![b'k'; key], &vec![0; value]);
    let spoilt = match flaw {
        Flaw::Checks(count) => {
            message.checks = vec![check(1, 0); *count];
            return;
        }
        Flaw::CheckedKey(length) => return message.checks.push(check(*length, 0)),
        Flaw::Versionstamp(length) => return message.checks.push(check(1, *length)),
        Flaw::Mutations(count) => {
            message.mutations = vec![delete(b"k"); *count];
            return;
        }
        Flaw::Total => {
            message.mutations = vec![sized(1, 65_536); 13];
            return;
        }
        Flaw::WrittenKey(length) => sized(*length, 1),
        Flaw::Value(length) => sized(1, *length),
        Flaw::MutationType(kind) => pb::Mutation { mutation_type: *kind, ..sized(1, 1) },
        Flaw::NoValue(kind) => pb::Mutation { mutation_type: *kind, value: None, ..sized(1, 1) },
        Flaw::ExpireAt(expire_at_ms) => pb::Mutation { expire_at_ms: *expire_at_ms, ..sized(1, 1) },
        Flaw::Encoding(encoding) => pb::Mutation {
            value: Some(pb::KvValue { data: vec![0; 8].into(), encoding: *encoding }),
            ..sized(1, 1)
        },
    };
    message.mutations.push(spoilt);
}
