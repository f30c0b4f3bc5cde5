//! Meridian's side: a shard behind a gateway, asked by requests.

use bytes::Bytes;
use meridian_conformance::{Meridian, NOW_MS};
use meridian_proto::kv_connect as pb;
use meridian_types::DatabaseId;
use prost::Message;

use crate::messages::Stamps;
use crate::store::{Read, Refusal, Store, Written};

/// The year 2100 is after the shard's present.
const _: () = assert!(NOW_MS < 4_102_444_800_000);

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
        if status == 200 {
            return Ok(T::decode(body).unwrap());
        }
        assert_eq!(status, 400);
        Err(Refusal::Text(String::from_utf8(body.to_vec()).unwrap()))
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
        let output: pb::AtomicWriteOutput =
            match self.ask("/kv/strong/atomic_write", &message).await {
                Ok(output) => output,
                Err(refusal) => return Written::Refused(refusal),
            };
        match output.status() {
            pb::AtomicWriteStatus::AwSuccess => Written::Committed(output.versionstamp),
            pb::AtomicWriteStatus::AwCheckFailure => Written::CheckFailed(output.failed_checks),
            other => panic!("a write ends with {other:?}"),
        }
    }

    async fn read(&mut self, message: pb::SnapshotRead) -> Read {
        let output: pb::SnapshotReadOutput = self.ask("/kv/strong/snapshot_read", &message).await?;
        Ok(output.ranges.into_iter().map(|range| range.values).collect())
    }

    async fn expiries(&mut self) -> Vec<(Bytes, u64)> {
        self.meridian.shard.expiries(self.database).unwrap()
    }
}
