//! Results and refusals to HTTP: all that a client gets to see of them.

use std::fmt;

use bytes::{Bytes, BytesMut};
use http_body_util::combinators::UnsyncBoxBody;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use meridian_proto::kv_connect as pb;
use meridian_types::{Consistency, Versionstamp};
use prost::Message;

use crate::database::ReadOutput;
use crate::refusal::Refusal;

/// An answer: its head, and a body that its connection sends at the client's pace.
pub type Answer = Response<AnswerBody>;

/// The body of an answer.
#[derive(Debug)]
pub enum AnswerBody {
    /// All bytes at once.
    Whole(Bytes),
    /// Frames that are sent as they come. A connection asks for the next frame when it has room for
    /// it, and ends the frames when it closes.
    Frames(UnsyncBoxBody<Bytes, Interrupted>),
}

/// A streaming answer ended before its last frame: its connection (HTTP/1.1) or stream (HTTP/2) is
/// dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer was interrupted: {0}")]
pub struct Interrupted(pub String);

impl AnswerBody {
    /// Replaces the bytes of a whole answer.
    pub(crate) fn map_whole(self, replace: impl FnOnce(Bytes) -> Bytes) -> Self {
        match self {
            Self::Whole(bytes) => Self::Whole(replace(bytes)),
            frames @ Self::Frames(_) => frames,
        }
    }
}

/// Marks an answer to a request whose token is not valid, or was not looked at, with what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ToStranger {
    /// Something that needs a token.
    Refused,
    UnknownPath,
    File,
    /// A database that is not there, by a token that opens all.
    NoDatabase,
}

impl ToStranger {
    fn of(refusal: &Refusal) -> Self {
        match refusal {
            Refusal::UnknownPath => Self::UnknownPath,
            Refusal::NoDefaultDatabase | Refusal::NoSuchDatabase => Self::NoDatabase,
            _ => Self::Refused,
        }
    }
}

pub(crate) fn json(body: Vec<u8>) -> Answer {
    answer(StatusCode::OK, "application/json", body.into())
}

pub(crate) fn javascript(body: &'static [u8]) -> Answer {
    answer(StatusCode::OK, "application/javascript; charset=utf-8", Bytes::from_static(body))
}

pub(crate) fn refused(refusal: &(impl fmt::Display + ?Sized), status: StatusCode) -> Answer {
    answer(status, "text/plain; charset=utf-8", refusal.to_string().into())
}

/// The answer to a read. `status` is for version 3, `read_is_strongly_consistent` for 2 and 3.
pub(crate) fn read(output: ReadOutput, consistency: Consistency) -> pb::SnapshotReadOutput {
    let count = output.ranges.iter().map(Vec::len).sum::<usize>();
    // One allocation holds all versionstamps; the entries hold slices of it.
    let mut stamps = BytesMut::with_capacity(count * Versionstamp::LEN);
    for entry in output.ranges.iter().flatten() {
        stamps.extend_from_slice(&entry.versionstamp.0);
    }
    let mut stamps = stamps.freeze();
    let mut ranges = Vec::with_capacity(output.ranges.len());
    for entries in output.ranges {
        let values = entries
            .into_iter()
            .map(|entry| pb::KvEntry {
                key: entry.key,
                value: entry.value.data,
                encoding: i32::from(entry.value.encoding.number()),
                versionstamp: stamps.split_to(Versionstamp::LEN),
            })
            .collect();
        ranges.push(pb::ReadRangeOutput { values });
    }
    pb::SnapshotReadOutput {
        ranges,
        read_disabled: false,
        read_is_strongly_consistent: consistency == Consistency::Strong,
        status: pb::SnapshotReadStatus::SrSuccess.into(),
    }
}

pub(crate) fn committed(versionstamp: Versionstamp) -> Answer {
    protobuf(&pb::AtomicWriteOutput {
        status: pb::AtomicWriteStatus::AwSuccess.into(),
        versionstamp: Bytes::copy_from_slice(&versionstamp.0),
        failed_checks: Vec::new(),
    })
}

pub(crate) fn check_failed(failed_checks: Vec<u32>) -> Answer {
    protobuf(&pb::AtomicWriteOutput {
        status: pb::AtomicWriteStatus::AwCheckFailure.into(),
        versionstamp: Bytes::new(),
        failed_checks,
    })
}

impl From<Refusal> for Answer {
    fn from(refusal: Refusal) -> Self {
        let mut answer = refused(&refusal, refusal.status());
        if let Some(after) = refusal.retry_after() {
            answer.headers_mut().insert(RETRY_AFTER, after.as_secs().saturating_add(1).into());
        }
        if refusal.is_to_a_stranger() {
            answer.extensions_mut().insert(ToStranger::of(&refusal));
        }
        answer
    }
}

/// The answer to a watch.
pub(crate) fn watch(body: AnswerBody) -> Answer {
    streamed(body, "application/octet-stream")
}

/// The answer to a listener: lines of JSON.
pub(crate) fn lines(body: AnswerBody) -> Answer {
    streamed(body, "application/x-ndjson")
}

/// The answer to a request for changes, which is a `GET` and so is kept from caches.
pub(crate) fn changes(body: AnswerBody, content_type: &'static str) -> Answer {
    let mut response = streamed(body, content_type);
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// An answer of which proxies are told to pass on each piece as it comes.
fn streamed(body: AnswerBody, content_type: &'static str) -> Answer {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

pub(crate) fn protobuf(message: &impl Message) -> Answer {
    answer(StatusCode::OK, "application/x-protobuf", message.encode_to_vec().into())
}

fn answer(status: StatusCode, content_type: &'static str, body: Bytes) -> Answer {
    let mut response = Response::new(AnswerBody::Whole(body));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use meridian_types::{Entry, Value, ValueEncoding};

    use super::*;

    fn body(answer: Answer) -> Vec<u8> {
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()[CONTENT_TYPE], "application/x-protobuf");
        match answer.into_body() {
            AnswerBody::Whole(bytes) => bytes.to_vec(),
            AnswerBody::Frames(_) => panic!("the answer streams"),
        }
    }

    fn entry(key: &'static [u8], encoding: ValueEncoding, data: &'static [u8], stamp: u8) -> Entry {
        Entry {
            key: Bytes::from_static(key),
            value: Value { encoding, data: Bytes::from_static(data) },
            versionstamp: Versionstamp([stamp; 10]),
        }
    }

    #[test]
    fn read_output_bytes_are_golden() {
        let output = ReadOutput {
            ranges: vec![
                vec![
                    entry(b"a", ValueEncoding::Bytes, b"xy", 7),
                    entry(b"b", ValueEncoding::V8, b"", 8),
                ],
                vec![],
            ],
        };
        let first = b"\x0a\x01a\x12\x02xy\x18\x03\x22\x0a\x07\x07\x07\x07\x07\x07\x07\x07\x07\x07";
        let second = b"\x0a\x01b\x18\x01\x22\x0a\x08\x08\x08\x08\x08\x08\x08\x08\x08\x08";
        assert_eq!(first.len(), 0x15);
        assert_eq!(second.len(), 0x11);
        let mut golden = vec![0x0a, 0x2a, 0x0a, 0x15];
        golden.extend(first);
        golden.extend([0x0a, 0x11]);
        golden.extend(second);
        golden.extend([0x0a, 0x00]); // the empty second range
        let strong = [&golden[..], b"\x20\x01\x40\x01"].concat();
        let eventual = [&golden[..], b"\x40\x01"].concat();
        assert_eq!(body(protobuf(&read(output.clone(), Consistency::Strong))), strong);
        assert_eq!(body(protobuf(&read(output, Consistency::Eventual))), eventual);
    }

    #[test]
    fn write_output_bytes_are_golden() {
        let stamp = Versionstamp([0, 1, 0, 0, 0, 0, 0, 9, 0, 2]);
        assert_eq!(
            body(committed(stamp)),
            b"\x08\x01\x12\x0a\x00\x01\x00\x00\x00\x00\x00\x09\x00\x02"
        );
        assert_eq!(body(check_failed(vec![0, 3, 99])), b"\x08\x02\x22\x03\x00\x03\x63");
    }
}
