//! Requests that many tests send.

use bytes::Bytes;
use meridian_proto::kv_connect as pb;

pub(crate) fn set(key: &'static str, value: impl Into<Bytes>) -> pb::AtomicWrite {
    let mutation = pb::Mutation {
        key: key.into(),
        value: Some(pb::KvValue {
            data: value.into(),
            encoding: pb::ValueEncoding::VeBytes.into(),
        }),
        mutation_type: pb::MutationType::MSet.into(),
        ..Default::default()
    };
    pb::AtomicWrite { mutations: vec![mutation], ..Default::default() }
}

pub(crate) fn all() -> pb::SnapshotRead {
    let end = Bytes::from_static(b"\xff");
    let range = pb::ReadRange { start: "".into(), end, limit: 1000, reverse: false };
    pb::SnapshotRead { ranges: vec![range] }
}
