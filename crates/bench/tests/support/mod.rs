//! Servers in memory of KV Connect and of etcd, with just enough for the load generator.

pub(crate) mod etcd;

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use meridian_proto::kv_connect::{
    AtomicWrite, AtomicWriteOutput, AtomicWriteStatus, KvEntry, MutationType, ReadRangeOutput,
    SnapshotRead, SnapshotReadOutput, SnapshotReadStatus,
};
use prost::Message;
use tokio::net::TcpListener;

pub(crate) const TOKEN: &str = "connect-token";

#[derive(Debug, Default)]
pub(crate) struct KvServer {
    pub(crate) entries: Mutex<BTreeMap<Bytes, KvEntry>>,
    pub(crate) writes: AtomicU64,
    pub(crate) reads: AtomicU64,
    /// Writes whose checks failed.
    pub(crate) conflicts: AtomicU64,
    /// A 503 for every so-many-th single write. 0: never.
    pub(crate) refuse_every: u64,
    /// For every so-many-th write, the connection (HTTP/1.1) or the stream (HTTP/2) ends without an
    /// answer. 0: never.
    pub(crate) drop_every: u64,
    /// The first write waits so long.
    pub(crate) stall: Duration,
    pub(crate) without_eventual: bool,
}

impl KvServer {
    /// Serves until the runtime ends; the connect URL.
    pub(crate) async fn serve(self: Arc<Self>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/connect", listener.local_addr().unwrap());
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                stream.set_nodelay(true).unwrap();
                let server = Arc::clone(&self);
                tokio::spawn(async move {
                    let service = service_fn(move |request: Request<Incoming>| {
                        let server = Arc::clone(&server);
                        async move {
                            let is_write = request.uri().path().ends_with("/atomic_write");
                            if is_write && server.writes.load(Ordering::Relaxed) == 0 {
                                tokio::time::sleep(server.stall).await;
                            }
                            let answer = server.answer(request).await;
                            if is_write && server.drops() {
                                Err(io::Error::other("dropped"))
                            } else {
                                Ok(answer)
                            }
                        }
                    });
                    auto::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service)
                        .await
                        .ok()
                });
            }
        });
        url
    }

    pub(crate) fn key_count(&self) -> usize {
        self.entries.lock().unwrap().len()
    }

    fn drops(&self) -> bool {
        self.drop_every > 0
            && (self.writes.load(Ordering::Relaxed) + 1).is_multiple_of(self.drop_every)
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        assert_eq!(request.method(), Method::POST);
        let (head, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let header = |name: &str| {
            head.headers.get(name).map(|value| value.to_str().unwrap()).unwrap_or_default()
        };
        if head.uri.path() == "/connect" {
            if header("authorization") != format!("Bearer {TOKEN}") {
                return reply(StatusCode::UNAUTHORIZED, "Invalid access token.");
            }
            assert_eq!(body, r#"{"supportedVersions":[1,2,3]}"#);
            return reply(StatusCode::OK, self.metadata());
        }
        assert_eq!(header("authorization"), "Bearer data-token");
        assert_eq!(header("x-denokv-database-id"), "the-database");
        assert_eq!(header("x-denokv-version"), "3");
        match head.uri.path() {
            "/v2/atomic_write" => self.write(body),
            "/v2/snapshot_read" => self.read(body, true),
            "/v2/eventual/snapshot_read" => self.read(body, false),
            path => reply(StatusCode::NOT_FOUND, path.to_owned()),
        }
    }

    fn metadata(&self) -> String {
        let eventual = if self.without_eventual {
            ""
        } else {
            r#",{"url":"/v2/eventual","consistency":"eventual"}"#
        };
        format!(
            r#"{{"version":3,"databaseId":"the-database","token":"data-token","expiresAt":"2099-01-01T00:00:00Z",
                "endpoints":[{{"url":"/v2","consistency":"strong"}}{eventual}]}}"#
        )
    }

    fn write(&self, body: Bytes) -> Response<Full<Bytes>> {
        let write = AtomicWrite::decode(body).unwrap();
        let number = self.writes.fetch_add(1, Ordering::Relaxed) + 1;
        if write.mutations.len() == 1
            && self.refuse_every > 0
            && number.is_multiple_of(self.refuse_every)
        {
            return reply(StatusCode::SERVICE_UNAVAILABLE, "no leader yet");
        }
        let versionstamp = Bytes::copy_from_slice(&[&[0, 0], &number.to_be_bytes()[..]].concat());
        let mut entries = self.entries.lock().unwrap();
        let holds = |key: &Bytes, expected: &Bytes| {
            entries.get(key).map_or_else(Bytes::new, |entry| entry.versionstamp.clone())
                == *expected
        };
        if !write.checks.iter().all(|check| holds(&check.key, &check.versionstamp)) {
            self.conflicts.fetch_add(1, Ordering::Relaxed);
            let status = AtomicWriteStatus::AwCheckFailure.into();
            return reply(
                StatusCode::OK,
                AtomicWriteOutput { status, ..AtomicWriteOutput::default() }.encode_to_vec(),
            );
        }
        for mutation in write.mutations {
            let kind = mutation.mutation_type();
            let mut value = mutation.value.unwrap();
            if kind == MutationType::MSum {
                let old = entries.get(&mutation.key).map_or(0, |entry| le64(&entry.value));
                value.data = Bytes::copy_from_slice(&(old + le64(&value.data)).to_le_bytes());
            }
            let entry = KvEntry {
                key: mutation.key.clone(),
                value: value.data,
                encoding: value.encoding,
                versionstamp: versionstamp.clone(),
            };
            entries.insert(mutation.key, entry);
        }
        let status = AtomicWriteStatus::AwSuccess.into();
        let output = AtomicWriteOutput { status, versionstamp, failed_checks: Vec::new() };
        reply(StatusCode::OK, output.encode_to_vec())
    }

    fn read(&self, body: Bytes, strong: bool) -> Response<Full<Bytes>> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        let entries = self.entries.lock().unwrap();
        let read = SnapshotRead::decode(body).unwrap();
        let ranges = read.ranges.iter().map(|range| {
            let limit = usize::try_from(range.limit).unwrap();
            let found = entries.range(range.start.clone()..range.end.clone()).take(limit);
            ReadRangeOutput { values: found.map(|(_, entry)| entry.clone()).collect() }
        });
        let output = SnapshotReadOutput {
            ranges: ranges.collect(),
            read_disabled: false,
            read_is_strongly_consistent: strong,
            status: SnapshotReadStatus::SrSuccess.into(),
        };
        reply(StatusCode::OK, output.encode_to_vec())
    }
}

/// Of eight bytes little-endian.
pub(crate) fn le64(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.try_into().unwrap())
}

fn reply(status: StatusCode, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response
}
