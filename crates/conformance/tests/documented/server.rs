//! A gateway on a socket, and the requests that it refuses.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use meridian_conformance::{Catalogue, DATABASE, Meridian, Shard, WRITER_TOKEN};
use meridian_gateway::Options;
use meridian_kv_client::{KvClient, Reply};
use meridian_proto::kv_connect as pb;
use prost::Message;
use tokio::task::JoinHandle;

pub(crate) const READ: &str = "/kv/strong/snapshot_read";
pub(crate) const WATCH: &str = "/kv/strong/watch";
pub(crate) const WRITE: &str = "/kv/strong/atomic_write";

/// The answer to one case of the documentation.
pub(crate) struct Answered {
    pub(crate) case: &'static str,
    pub(crate) status: u16,
    pub(crate) text: String,
}

impl Answered {
    pub(crate) fn new(case: &'static str, reply: &Reply) -> Self {
        let content_type = reply.headers.get("content-type").map(|value| value.to_str().unwrap());
        assert_eq!(content_type, Some("text/plain; charset=utf-8"), "{case}");
        Self { case, status: reply.status.as_u16(), text: reply.text() }
    }
}

/// A gateway that serves until this is dropped.
pub(crate) struct Server {
    pub(crate) client: KvClient,
    pub(crate) shard: Arc<Shard>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::knowing(Catalogue::default()).await
    }

    pub(crate) async fn knowing(catalogue: Catalogue) -> Self {
        let hearing_timeout = Duration::from_millis(20);
        let options = Options { hearing_timeout, ..Options::default() };
        let meridian = Meridian::new(options, catalogue).unwrap();
        let (url, serving) = meridian.serve().await.unwrap();
        let client = KvClient::new(url, WRITER_TOKEN, DATABASE);
        Self { client, shard: meridian.shard, serving }
    }

    /// With these headers and no others.
    pub(crate) async fn post(
        &self,
        path: &str,
        headers: &[(&str, String)],
        body: impl Into<Bytes>,
    ) -> Reply {
        self.client.post(path, headers, body.into()).await.unwrap()
    }

    pub(crate) async fn read(&self, ranges: Vec<pb::ReadRange>) -> Reply {
        let body = pb::SnapshotRead { ranges }.encode_to_vec();
        self.post(READ, &self.client.headers(), body).await
    }

    pub(crate) async fn write(
        &self,
        checks: Vec<pb::Check>,
        mutations: Vec<pb::Mutation>,
    ) -> Reply {
        let message = pb::AtomicWrite { checks, mutations, ..Default::default() };
        self.post(WRITE, &self.client.headers(), message.encode_to_vec()).await
    }

    pub(crate) async fn enqueue(&self, enqueues: Vec<pb::Enqueue>) -> Reply {
        let message = pb::AtomicWrite { enqueues, ..Default::default() };
        self.post(WRITE, &self.client.headers(), message.encode_to_vec()).await
    }

    pub(crate) async fn send(&self, method: &str, path: &str) -> Reply {
        let uri = format!("{}{path}", self.client.base());
        let request = Request::builder().method(method).uri(uri).body(Full::default());
        self.client.send(request.unwrap()).await.unwrap()
    }
}
