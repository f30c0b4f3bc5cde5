//! Encoded request bodies. Bodies of reads are encoded once for the whole run; writes use one
//! template per worker, in which only the key's digits and the value change.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use meridian_proto::kv_connect::{
    AtomicWrite, Check, KvValue, Mutation, MutationType, ReadRange, SnapshotRead, ValueEncoding,
};
use meridian_types::limits;
use prost::Message;

use crate::key_space::{DIGITS, KeySpace, write_digits};
use crate::random::Random;
use crate::value::ValueKind;

/// The part of a transaction's bytes that a load uses; the rest is left for overhead that a server
/// may count.
const LOAD_BATCH_BYTES: usize = limits::MAX_TRANSACTION_BYTES / 4 * 3;

/// A read of one key as native Deno sends it: the range from the key to the key followed by `00`,
/// limit 1.
pub fn read_body(key: &Bytes) -> SnapshotRead {
    let mut end = BytesMut::with_capacity(key.len() + 1);
    end.extend_from_slice(key);
    end.extend_from_slice(&[0]);
    SnapshotRead {
        ranges: vec![ReadRange { start: key.clone(), end: end.freeze(), limit: 1, reverse: false }],
    }
}

fn set(key: Bytes, data: Bytes) -> Mutation {
    Mutation {
        key,
        value: Some(KvValue { data, encoding: ValueEncoding::VeBytes.into() }),
        mutation_type: MutationType::MSet.into(),
        ..Mutation::default()
    }
}

/// A read of `limit` entries from the key on, in the form in which native Deno lists a prefix.
pub fn range_body(space: &KeySpace, index: u32, limit: u32) -> SnapshotRead {
    let range = ReadRange {
        start: space.key(index),
        end: space.end(),
        limit: i32::try_from(limit).unwrap_or(i32::MAX),
        reverse: false,
    };
    SnapshotRead { ranges: vec![range] }
}

/// An atomic write that adds 1 to a number.
pub fn sum_body(key: Bytes) -> AtomicWrite {
    let value = KvValue {
        data: Bytes::copy_from_slice(&1_u64.to_le_bytes()),
        encoding: ValueEncoding::VeLe64.into(),
    };
    let mutation = Mutation {
        key,
        value: Some(value),
        mutation_type: MutationType::MSum.into(),
        ..Mutation::default()
    };
    AtomicWrite { mutations: vec![mutation], ..AtomicWrite::default() }
}

/// An atomic write that sets the key if it has this versionstamp; an empty versionstamp stands for
/// an absent key.
pub fn check_and_set_body(key: Bytes, versionstamp: Bytes, value: Bytes) -> AtomicWrite {
    AtomicWrite {
        checks: vec![Check { key: key.clone(), versionstamp }],
        mutations: vec![set(key, value)],
        ..AtomicWrite::default()
    }
}

/// Of a larger key space, only so many are encoded, evenly spread over it.
const MAX_READ_BODIES: u32 = 1_000_000;

/// Bodies of one length, encoded once, one after the other: the reads of all keys. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ReadBodies {
    all: Bytes,
    body_bytes: usize,
    count: u32,
}

impl ReadBodies {
    pub fn new(space: &KeySpace) -> Self {
        Self::encode(space.count(), |index| read_body(&space.key(index)).encode_to_vec().into())
    }

    /// `body` gives the same length for every index below `count`.
    pub fn encode(count: u32, body: impl Fn(u32) -> Bytes) -> Self {
        let encoded = count.min(MAX_READ_BODIES);
        let body_bytes = body(0).len();
        let mut all = Vec::with_capacity(usize::try_from(encoded).unwrap_or(0) * body_bytes);
        for number in 0..u64::from(encoded) {
            let index = number * u64::from(count) / u64::from(encoded);
            all.extend_from_slice(&body(u32::try_from(index).unwrap_or(0)));
        }
        Self { all: all.into(), body_bytes, count: encoded }
    }

    pub fn next(&self, random: &mut Random) -> Bytes {
        // An index below the count: the slice lies within, as all bodies have one length.
        let begin = usize::try_from(random.below(self.count)).unwrap_or(0) * self.body_bytes;
        self.all.slice(begin..begin + self.body_bytes)
    }
}

/// A worker's writes: one set of a new value on a random key.
#[derive(Debug, Clone)]
pub struct WriteBodies {
    template: Vec<u8>,
    digits: Range<usize>,
    value: Range<usize>,
    count: u32,
    kind: ValueKind,
}

impl WriteBodies {
    pub fn new(space: &KeySpace, value_bytes: usize, kind: ValueKind) -> Self {
        let key = space.key(0);
        let mutation = set(key.clone(), Bytes::from(vec![0; value_bytes]));
        let template =
            AtomicWrite { mutations: vec![mutation], ..AtomicWrite::default() }.encode_to_vec();
        // Only tags and lengths come before the key, none of which holds a whole key; the value is
        // followed by its encoding and by the kind of the mutation, two bytes each.
        let key_offset =
            template.windows(key.len()).position(|window| window == key.as_ref()).unwrap_or(0);
        let digits = key_offset + space.digits_offset();
        let value_end = template.len() - 4;
        Self {
            template,
            digits: digits..digits + DIGITS,
            value: value_end - value_bytes..value_end,
            count: space.count(),
            kind,
        }
    }

    pub fn next(&mut self, random: &mut Random) -> Bytes {
        if let Some(digits) = self.template.get_mut(self.digits.clone()) {
            write_digits(digits, random.below(self.count));
        }
        if let Some(value) = self.template.get_mut(self.value.clone()) {
            self.kind.fill(random, value);
        }
        Bytes::copy_from_slice(&self.template)
    }
}

/// Atomic writes that together set every key once, within the limits, in the order of the keys.
#[derive(Debug, Clone)]
pub struct LoadBodies {
    space: KeySpace,
    value_bytes: usize,
    kind: ValueKind,
    /// Keys in each body except the last.
    batch: u32,
}

impl LoadBodies {
    pub fn new(space: &KeySpace, value_bytes: usize, kind: ValueKind) -> Self {
        let entry_bytes = space.key(0).len() + value_bytes;
        let batch = (LOAD_BATCH_BYTES / entry_bytes).clamp(1, limits::MAX_MUTATIONS);
        Self { space: space.clone(), value_bytes, kind, batch: u32::try_from(batch).unwrap_or(1) }
    }

    pub fn count(&self) -> u32 {
        self.space.count().div_ceil(self.batch)
    }

    /// The keys that a body sets.
    pub fn keys(&self, number: u32) -> Range<u32> {
        let end = |number: u32| number.saturating_mul(self.batch).min(self.space.count());
        end(number)..end(number + 1)
    }

    pub fn body(&self, number: u32, random: &mut Random) -> Bytes {
        let keys = self.keys(number).map(|index| self.space.key(index));
        let mutations =
            keys.map(|key| set(key, self.kind.bytes(random, self.value_bytes))).collect();
        let write = AtomicWrite { mutations, ..AtomicWrite::default() };
        write.encode_to_vec().into()
    }
}

/// One atomic write that removes every key. The count of keys is within the limit of mutations.
pub fn remove_body(space: &KeySpace) -> Bytes {
    let remove = |index| Mutation {
        key: space.key(index),
        mutation_type: MutationType::MDelete.into(),
        ..Mutation::default()
    };
    let mutations = (0..space.count()).map(remove).collect();
    AtomicWrite { mutations, ..AtomicWrite::default() }.encode_to_vec().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_has_denos_bytes() {
        let body = read_body(&KeySpace::new("b", 1).key(0)).encode_to_vec();
        let expected = b"\x0a\x24\x0a\x0f\x02b\x00\x020000000000\x00\x12\x10\x02b\x00\x020000000000\x00\x00\x18\x01";
        // 0x0f bytes of key, 0x10 of end: two tags and lengths each, and the limit.
        assert_eq!(body[2..], expected[2..]);
        assert_eq!(usize::from(body[1]), body.len() - 2);
    }

    #[test]
    fn reads_cover_the_key_space_and_decode() {
        let space = KeySpace::new("bench", 7);
        let bodies = ReadBodies::new(&space);
        let mut random = Random::new(1, 1);
        let mut seen = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let read = SnapshotRead::decode(bodies.next(&mut random)).unwrap();
            assert_eq!(read, read_body(&read.ranges[0].start));
            seen.insert(read.ranges[0].start.clone());
        }
        assert_eq!(seen, (0..7).map(|index| space.key(index)).collect());
    }

    #[test]
    fn reads_of_a_large_key_space_are_spread_over_it() {
        let body = |index: u32| Bytes::copy_from_slice(&index.to_be_bytes());
        let bodies = ReadBodies::encode(10 * MAX_READ_BODIES, body);
        let mut random = Random::new(1, 1);
        let index = |body: Bytes| u32::from_be_bytes(body.as_ref().try_into().unwrap());
        let indexes: Vec<u32> = (0..1000).map(|_| index(bodies.next(&mut random))).collect();
        assert!(indexes.iter().all(|index| index % 10 == 0 && *index < 10 * MAX_READ_BODIES));
        assert!(indexes.iter().any(|index| *index > 9 * MAX_READ_BODIES));
    }

    #[test]
    fn writes_hold_one_set_of_random_bytes() {
        for value_bytes in [1, 7, 128, 200, 65536] {
            let space = KeySpace::new("bench", 3);
            let keys: Vec<Bytes> = (0..3).map(|index| space.key(index)).collect();
            let mut bodies = WriteBodies::new(&space, value_bytes, ValueKind::Random);
            let mut random = Random::new(1, 2);
            let mut values = Vec::new();
            for _ in 0..3 {
                let write = AtomicWrite::decode(bodies.next(&mut random)).unwrap();
                let mutation = &write.mutations[0];
                assert_eq!(
                    (write.mutations.len(), write.checks.len(), write.enqueues.len()),
                    (1, 0, 0)
                );
                assert!(keys.contains(&mutation.key));
                assert_eq!(mutation.mutation_type(), MutationType::MSet);
                let value = mutation.value.clone().unwrap();
                assert_eq!(value.encoding(), ValueEncoding::VeBytes);
                assert_eq!(value.data.len(), value_bytes);
                values.push(value.data);
            }
            assert!(value_bytes < 7 || values[0] != values[1]);
        }
    }

    #[test]
    fn the_load_stays_within_the_limits_and_sets_every_key_once() {
        for (count, value_bytes) in [(2500, 16), (30, 65536), (1, 128)] {
            let space = KeySpace::new("bench", count);
            let mut keys = Vec::new();
            let (bodies, mut random) =
                (LoadBodies::new(&space, value_bytes, ValueKind::Random), Random::new(1, 3));
            for number in 0..bodies.count() {
                let body = bodies.body(number, &mut random);
                assert!(body.len() < limits::MAX_TRANSACTION_BYTES);
                let write = AtomicWrite::decode(body).unwrap();
                assert!(write.mutations.len() <= limits::MAX_MUTATIONS);
                keys.extend(write.mutations.into_iter().map(|mutation| mutation.key));
            }
            assert_eq!(keys, (0..count).map(|index| space.key(index)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn removal_names_every_key_once() {
        let space = KeySpace::new("bench", 64);
        let write = AtomicWrite::decode(remove_body(&space)).unwrap();
        assert!(
            write
                .mutations
                .iter()
                .all(|one| one.mutation_type() == MutationType::MDelete && one.value.is_none())
        );
        let keys: Vec<Bytes> = write.mutations.into_iter().map(|mutation| mutation.key).collect();
        assert_eq!(keys, (0..64).map(|index| space.key(index)).collect::<Vec<_>>());
    }
}
