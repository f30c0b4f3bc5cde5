//! The messages of requests.

use bytes::Bytes;
use meridian_proto::kv_connect as pb;

/// One key, as clients read it.
pub fn point(key: &[u8]) -> pb::ReadRange {
    range(key, &[key, &[0]].concat(), 1)
}

pub fn range(start: &[u8], end: &[u8], limit: i32) -> pb::ReadRange {
    pb::ReadRange {
        start: Bytes::copy_from_slice(start),
        end: Bytes::copy_from_slice(end),
        limit,
        reverse: false,
    }
}

pub fn mutation(
    kind: pb::MutationType,
    key: &[u8],
    encoding: pb::ValueEncoding,
    data: &[u8],
) -> pb::Mutation {
    pb::Mutation {
        key: Bytes::copy_from_slice(key),
        value: Some(pb::KvValue { data: Bytes::copy_from_slice(data), encoding: encoding.into() }),
        mutation_type: kind.into(),
        ..Default::default()
    }
}

pub fn set(key: &[u8], value: &[u8]) -> pb::Mutation {
    mutation(pb::MutationType::MSet, key, pb::ValueEncoding::VeBytes, value)
}

pub fn sum(key: &[u8], amount: u64) -> pb::Mutation {
    mutation(pb::MutationType::MSum, key, pb::ValueEncoding::VeLe64, &amount.to_le_bytes())
}

pub fn delete(key: &[u8]) -> pb::Mutation {
    pb::Mutation {
        key: Bytes::copy_from_slice(key),
        mutation_type: pb::MutationType::MDelete.into(),
        ..Default::default()
    }
}
