//! Meridian's side: a shard behind a gateway, asked by requests.

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use meridian_conformance::{Meridian, NOW_MS};
use meridian_gateway::AnswerBody;
use meridian_proto::kv_connect as pb;
use meridian_types::DatabaseId;
use prost::Message;

use crate::messages::Stamps;
use crate::store::{Hidden, Queued, Read, Refusal, Store, Watched, Written};

/// The year 2100 is after the shard's present.
const _: () = assert!(NOW_MS < 4_102_444_800_000);

/// The message of an answer, or the refusal.
fn said<T: Message + Default>(status: u16, body: Bytes) -> Result<T, Refusal> {
    if status == 200 {
        return Ok(T::decode(body).unwrap());
    }
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert_eq!(status, 400, "{text}");
    Err(Refusal::Text(text))
}

/// The outcome of a write, by its answer.
fn written(output: Result<pb::AtomicWriteOutput, Refusal>) -> Written {
    let output = match output {
        Ok(output) => output,
        Err(refusal) => return Written::Refused(refusal),
    };
    match output.status() {
        pb::AtomicWriteStatus::AwSuccess => Written::Committed(output.versionstamp),
        pb::AtomicWriteStatus::AwCheckFailure => Written::CheckFailed(output.failed_checks),
        other => panic!("a write ends with {other:?}"),
    }
}

/// The outcome of a read, by its answer.
fn read(output: Result<pb::SnapshotReadOutput, Refusal>) -> Read {
    let ranges = output?.ranges.into_iter();
    Ok(ranges.map(|range| range.values).collect())
}

/// The first message of a watch that is no ping.
async fn first<B>(mut frames: B) -> pb::WatchOutput
where
    B: Body<Data = Bytes, Error: std::fmt::Debug> + Unpin,
{
    let mut received = Vec::new();
    loop {
        let frame = frames.frame().await.expect("it goes on").unwrap();
        received.extend(frame.into_data().unwrap());
        while let Some(length) = received.first_chunk() {
            let length = u32::from_le_bytes(*length) as usize;
            match received.get(4..4 + length) {
                Some([]) => drop(received.drain(..4)),
                Some(message) => return pb::WatchOutput::decode(message).unwrap(),
                None => break,
            }
        }
    }
}

/// The entries of a message that has all keys, as the first does.
fn watched(output: pb::WatchOutput) -> Watched {
    assert_eq!(output.status(), pb::SnapshotReadStatus::SrSuccess);
    let entry = |key: pb::WatchKeyOutput| {
        assert!(key.changed);
        key.entry_if_changed
    };
    output.keys.into_iter().map(entry).collect()
}

pub(crate) struct Ours<'a> {
    meridian: &'a Meridian,
    database: DatabaseId,
    stamps: Stamps,
}

impl<'a> Ours<'a> {
    /// An empty database.
    pub(crate) fn new(meridian: &'a Meridian, program: u128) -> Self {
        Self { meridian, database: DatabaseId((program + 1).to_be_bytes()), stamps: Vec::new() }
    }

    async fn ask<T: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
    ) -> Result<T, Refusal> {
        let body = message.encode_to_vec().into();
        let (status, body) = self.meridian.post(path, self.database, body).await.unwrap();
        said(status.as_u16(), body)
    }
}

impl Store for Ours<'_> {
    fn stamps(&self) -> &Stamps {
        &self.stamps
    }

    fn committed(&mut self, stamp: Bytes) {
        self.stamps.push(stamp);
    }

    async fn write(&mut self, message: pb::AtomicWrite) -> Written {
        written(self.ask("/kv/strong/atomic_write", &message).await)
    }

    async fn read(&mut self, message: pb::SnapshotRead) -> Read {
        read(self.ask("/kv/strong/snapshot_read", &message).await)
    }

    async fn watch(&mut self, message: pb::Watch) -> Result<Watched, Refusal> {
        let body = message.encode_to_vec().into();
        let answer = self.meridian.answer("/kv/strong/watch", self.database, body).await.unwrap();
        let status = answer.status().as_u16();
        match answer.into_body() {
            AnswerBody::Frames(frames) => Ok(watched(first(frames).await)),
            // A watch of no keys has one message, and ends.
            AnswerBody::Whole(body) if status == 200 => Ok(watched(first(Full::new(body)).await)),
            AnswerBody::Whole(body) => Err(said::<pb::WatchOutput>(status, body).unwrap_err()),
        }
    }

    async fn hidden(&mut self) -> Hidden {
        let expiries = self.meridian.shard.expiries(self.database).unwrap();
        let queued = self.meridian.shard.messages(self.database).unwrap().into_iter();
        let messages = queued.map(|queued| Queued {
            due_ms: queued.due_ms,
            payload: queued.message.payload,
            backoff_ms: queued.message.backoff_ms,
            keys_if_undelivered: queued.message.keys_if_undelivered,
        });
        Hidden { expiries, messages: messages.collect() }
    }
}
