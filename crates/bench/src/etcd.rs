//! etcd's data path: a few of its messages, in gRPC's framing, over the same links as KV Connect.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, TE};
use meridian_kv_client::ClientError;
use prost::Message;

use crate::error::BenchError;
use crate::key_space::KeySpace;
use crate::random::Random;
use crate::value::ValueKind;
use messages::compare::TargetUnion;
use messages::request_op::Request;
use messages::{
    Compare, CompareResult, CompareTarget, KeyValue, PutRequest, PutResponse, RangeRequest,
    RangeResponse, RequestOp, TxnRequest, TxnResponse,
};

pub mod messages {
    #![allow(clippy::all, clippy::unwrap_used, clippy::indexing_slicing, reason = "generated code")]
    include!(concat!(env!("OUT_DIR"), "/etcdserverpb.rs"));
}

pub const RANGE: &str = "etcdserverpb.KV/Range";
pub const PUT: &str = "etcdserverpb.KV/Put";
pub const TXN: &str = "etcdserverpb.KV/Txn";

/// A flag that says whether the message is compressed, and its length.
const FRAME_HEADER_BYTES: usize = 5;
/// etcd accepts 128 operations and 1.5 MiB in a request by default.
const LOAD_BATCH: usize = 100;
const LOAD_BATCH_BYTES: usize = 1 << 20;

/// The headers that gRPC requires.
pub fn headers() -> Vec<(HeaderName, HeaderValue)> {
    vec![
        (CONTENT_TYPE, HeaderValue::from_static("application/grpc")),
        (TE, HeaderValue::from_static("trailers")),
    ]
}

pub fn framed(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut body = BytesMut::with_capacity(FRAME_HEADER_BYTES + length);
    body.put_u8(0);
    body.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    body.extend_from_slice(&message.encode_to_vec());
    body.freeze()
}

/// The only message of an answer. Absence is an error.
pub fn unframed<M: Message + Default>(mut answer: Bytes) -> Result<M, BenchError> {
    let malformed =
        || BenchError::Unsuccessful("the answer is not one uncompressed gRPC message".into());
    if answer.len() < FRAME_HEADER_BYTES || answer.get_u8() != 0 {
        return Err(malformed());
    }
    if usize::try_from(answer.get_u32()).ok() != Some(answer.len()) {
        return Err(malformed());
    }
    Ok(M::decode(answer).map_err(ClientError::from)?)
}

/// A read of one key; `strong` is etcd's linearizable read, otherwise its serializable one.
pub fn read_body(key: Bytes, strong: bool) -> Bytes {
    framed(&RangeRequest { key, serializable: !strong, ..RangeRequest::default() })
}

/// A linearizable read of the first `limit` keys.
pub fn range_body(key: Bytes, range_end: Bytes, limit: u32) -> Bytes {
    framed(&RangeRequest { key, range_end, limit: limit.into(), serializable: false })
}

pub fn put_body(key: Bytes, value: Bytes) -> Bytes {
    framed(&PutRequest { key, value })
}

/// Sets the key if it was last modified at `mod_revision`, which is 0 for an absent one.
pub fn check_and_set_body(key: Bytes, mod_revision: i64, value: Bytes) -> Bytes {
    let compare = Compare {
        result: CompareResult::Equal.into(),
        target: CompareTarget::Mod.into(),
        key: key.clone(),
        target_union: Some(TargetUnion::ModRevision(mod_revision)),
    };
    framed(&TxnRequest { compare: vec![compare], success: vec![put(key, value)] })
}

fn put(key: Bytes, value: Bytes) -> RequestOp {
    RequestOp { request: Some(Request::RequestPut(PutRequest { key, value })) }
}

/// Transactions that together set every key once, in the order of the keys.
pub fn load_bodies(
    space: &KeySpace,
    value_bytes: usize,
    kind: ValueKind,
    mut random: Random,
) -> impl Iterator<Item = Bytes> {
    let batch = (LOAD_BATCH_BYTES / (space.key(0).len() + value_bytes)).clamp(1, LOAD_BATCH);
    let mut indexes = 0..space.count();
    std::iter::from_fn(move || {
        let success: Vec<RequestOp> = indexes
            .by_ref()
            .take(batch)
            .map(|index| put(space.key(index), kind.bytes(&mut random, value_bytes)))
            .collect();
        (!success.is_empty()).then(|| framed(&TxnRequest { compare: Vec::new(), success }))
    })
}

/// An error unless the answer is that to a successful put.
pub fn written(answer: Bytes) -> Result<(), BenchError> {
    let revision = unframed::<PutResponse>(answer)?.header.map_or(0, |header| header.revision);
    if revision > 0 {
        Ok(())
    } else {
        Err(BenchError::Unsuccessful("the put was answered without a revision".into()))
    }
}

/// Whether every comparison of the transaction held.
pub fn committed(answer: Bytes) -> Result<bool, BenchError> {
    Ok(unframed::<TxnResponse>(answer)?.succeeded)
}

pub fn entries(answer: Bytes) -> Result<Vec<KeyValue>, BenchError> {
    Ok(unframed::<RangeResponse>(answer)?.kvs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use messages::ResponseHeader;

    #[test]
    fn requests_have_etcds_bytes() {
        assert_eq!(read_body("k".into(), true).as_ref(), b"\0\0\0\0\x03\x0a\x01k");
        assert_eq!(read_body("k".into(), false).as_ref(), b"\0\0\0\0\x05\x0a\x01k\x38\x01");
        assert_eq!(
            range_body("k".into(), "l".into(), 100).as_ref(),
            b"\0\0\0\0\x08\x0a\x01k\x12\x01l\x18\x64"
        );
        assert_eq!(put_body("k".into(), "v".into()).as_ref(), b"\0\0\0\0\x06\x0a\x01k\x12\x01v");
        // EQUAL is 0 and so left out; an absent key's revision, 0, is there.
        assert_eq!(
            check_and_set_body("k".into(), 0, "v".into()).as_ref(),
            b"\0\0\0\0\x13\x0a\x07\x10\x02\x1a\x01k\x30\x00\x12\x08\x12\x06\x0a\x01k\x12\x01v"
        );
    }

    #[test]
    fn only_whole_uncompressed_messages_are_answers() {
        let header = Some(ResponseHeader { revision: 7 });
        let good = framed(&PutResponse { header });
        assert!(written(good.clone()).is_ok());
        assert!(
            written(framed(&PutResponse { header: None }))
                .unwrap_err()
                .to_string()
                .contains("without a revision")
        );
        let mut compressed = good.to_vec();
        compressed[0] = 1;
        for bad in [
            &b""[..],
            &good[..4],
            &good[..good.len() - 1],
            &[&good[..], &good[..]].concat(),
            &compressed,
        ] {
            let error = written(Bytes::copy_from_slice(bad)).unwrap_err().to_string();
            assert!(error.contains("not one uncompressed gRPC message"), "{error}");
        }
        assert!(committed(framed(&TxnResponse { succeeded: true })).unwrap());
        assert!(!committed(framed(&TxnResponse { succeeded: false })).unwrap());
        // etcd's answer has more fields: a key with its revisions and version, `more` and `count`.
        let known = b"\x0a\x04\x08\x01\x10\x02\x12\x0c\x0a\x01k\x10\x05\x18\x09\x20\x02\x2a\x01v\x18\x01\x20\x02";
        let frame = [&[0, 0, 0, 0, u8::try_from(known.len()).unwrap()], &known[..]].concat();
        let found = entries(frame.into()).unwrap();
        assert_eq!(
            (found.len(), found[0].mod_revision, found[0].value.as_ref()),
            (1, 9, &b"v"[..])
        );
    }

    #[test]
    fn the_load_stays_within_the_limits_and_sets_every_key_once() {
        for (count, value_bytes) in [(250, 16), (30, 65536), (1, 128)] {
            let space = KeySpace::new("bench", count);
            let mut keys = Vec::new();
            for body in load_bodies(&space, value_bytes, ValueKind::Random, Random::new(1, 3)) {
                assert!(body.len() < 3 << 19);
                let transaction: TxnRequest = unframed(body).unwrap();
                assert!(transaction.success.len() <= LOAD_BATCH);
                for one in transaction.success {
                    let Some(Request::RequestPut(put)) = one.request else { panic!("no put") };
                    assert_eq!(put.value.len(), value_bytes);
                    keys.push(put.key);
                }
            }
            assert_eq!(keys, (0..count).map(|index| space.key(index)).collect::<Vec<_>>());
        }
    }
}
