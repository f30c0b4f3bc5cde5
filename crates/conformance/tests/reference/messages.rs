//! The messages of a program's steps, for one of the two sides: each has versionstamps of its own.

use std::sync::LazyLock;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use meridian_kv_client::message::{delete, point, set};
use meridian_proto::kv_connect as pb;
use meridian_proto::kv_connect::MutationType;

use crate::program::{Edge, Enqueue, Expected, Extreme, Key, Kind, Mutation, PLAIN, Range, Write};
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

pub(crate) fn watch(keys: &[Key], stamps: &Stamps) -> pb::Watch {
    let keys = keys.iter().map(|watched| pb::WatchKey { key: key(watched, stamps) });
    pb::Watch { keys: keys.collect() }
}

/// A read of keys, one by one.
pub(crate) fn points<'a>(
    keys: impl IntoIterator<Item = &'a Key>,
    stamps: &Stamps,
) -> pb::SnapshotRead {
    let ranges = keys.into_iter().map(|one| point(&key(one, stamps)));
    pb::SnapshotRead { ranges: ranges.collect() }
}

/// A read of each key that is checked.
pub(crate) fn checked(write: &Write, stamps: &Stamps) -> pb::SnapshotRead {
    points(write.checks.iter().map(|(checked, _)| checked), stamps)
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
        enqueues: write.enqueues.iter().map(|one| enqueue(one, stamps)).collect(),
    };
    if let Some(extreme) = &write.extreme {
        go_to(extreme, &mut message);
    }
    message
}

/// The moment from which on messages are due, in milliseconds since the Unix epoch: both sides
/// compare due times with the clock.
fn began_ms() -> i64 {
    static BEGAN: LazyLock<SystemTime> = LazyLock::new(SystemTime::now);
    let since = BEGAN.duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(since.as_millis()).unwrap()
}

fn enqueue(enqueue: &Enqueue, stamps: &Stamps) -> pb::Enqueue {
    pb::Enqueue {
        payload: enqueue.payload.bytes(enqueue.format),
        deadline_ms: began_ms() + enqueue.delay_ms,
        keys_if_undelivered: enqueue.keys_if_undelivered.iter().map(|k| key(k, stamps)).collect(),
        backoff_schedule: enqueue.backoff_ms.clone(),
    }
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

fn go_to(extreme: &Extreme, message: &mut pb::AtomicWrite) {
    match extreme {
        Extreme::Checks { .. } | Extreme::CheckedKey(_) | Extreme::Versionstamp(_) => {
            check_to(extreme, message);
        }
        Extreme::Mutations { mutations, enqueues } => {
            message.mutations = vec![delete(b"k"); *mutations];
            message.enqueues = vec![plain_enqueue(); *enqueues];
        }
        Extreme::Total(bytes) => {
            (message.checks, message.enqueues) = (Vec::new(), Vec::new());
            message.mutations = vec![sized(1, 65_536); 12];
            message.mutations.push(sized(1, bytes - 12 * 65_537 - 1));
        }
        Extreme::Payload(_)
        | Extreme::KeysIfUndelivered(_)
        | Extreme::KeyIfUndelivered(_)
        | Extreme::Intervals(_)
        | Extreme::Interval(_) => message.enqueues.push(enqueue_at(extreme)),
        _ => message.mutations.push(mutation_at(extreme)),
    }
}

fn check_to(extreme: &Extreme, message: &mut pb::AtomicWrite) {
    let check = |key: usize, versionstamp: Vec<u8>| pb::Check {
        key: vec![b'c'; key].into(),
        versionstamp: versionstamp.into(),
    };
    match extreme {
        Extreme::Checks { count, passing } => {
            message.checks = vec![check(1, vec![]); *passing];
            message.checks.resize(*count, check(1, vec![0xff; 10]));
        }
        Extreme::CheckedKey(length) => message.checks.push(check(*length, vec![])),
        Extreme::Versionstamp(length) => message.checks.push(check(1, vec![0; *length])),
        _ => panic!("{extreme:?} is none of checks"),
    }
}

fn plain_enqueue() -> pb::Enqueue {
    pb::Enqueue { deadline_ms: began_ms(), ..Default::default() }
}

fn enqueue_at(extreme: &Extreme) -> pb::Enqueue {
    let plain = plain_enqueue();
    let keys = |count, length| vec![Bytes::from(vec![b'k'; length]); count];
    match extreme {
        Extreme::Payload(length) => pb::Enqueue { payload: vec![0; *length].into(), ..plain },
        Extreme::KeysIfUndelivered(count) => {
            pb::Enqueue { keys_if_undelivered: keys(*count, 1), ..plain }
        }
        Extreme::KeyIfUndelivered(length) => {
            pb::Enqueue { keys_if_undelivered: keys(1, *length), ..plain }
        }
        Extreme::Intervals(count) => pb::Enqueue { backoff_schedule: vec![1; *count], ..plain },
        Extreme::Interval(ms) => pb::Enqueue { backoff_schedule: vec![*ms], ..plain },
        _ => panic!("{extreme:?} is none of enqueues"),
    }
}

fn sized(key: usize, value: usize) -> pb::Mutation {
    set(&vec![b'k'; key], &vec![0; value])
}

fn mutation_at(extreme: &Extreme) -> pb::Mutation {
    match extreme {
        Extreme::WrittenKey(length) => sized(*length, 1),
        Extreme::Value(length) => sized(1, *length),
        Extreme::MutationType(kind) => pb::Mutation { mutation_type: *kind, ..sized(1, 1) },
        Extreme::NoValue(kind) => pb::Mutation { mutation_type: *kind, value: None, ..sized(1, 1) },
        Extreme::ExpireAt(expire_at_ms) => {
            pb::Mutation { expire_at_ms: *expire_at_ms, ..sized(1, 1) }
        }
        Extreme::Encoding(encoding) => pb::Mutation {
            value: Some(pb::KvValue { data: vec![0; 8].into(), encoding: *encoding }),
            ..sized(1, 1)
        },
        _ => panic!("{extreme:?} is none of mutations"),
    }
}
