//! KV Connect without a client library: for what such libraries would retry, check or hide.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{HeaderMap, Request, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use meridian_proto::kv_connect as pb;
use meridian_types::{Consistency, DatabaseId};
use prost::Message;

use crate::cluster::TOKEN;

/// `default` of every development cluster, in shard 1.
pub const DEFAULT_DATABASE: DatabaseId = database(1);
/// `second` of every development cluster, in shard 2.
pub const SECOND_DATABASE: DatabaseId = database(2);

const fn database(number: u8) -> DatabaseId {
    DatabaseId([0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, number])
}

/// An answer, whatever it says.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Reply {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The server answered, and not with a result. A write was not done.
    #[error("{status}: {text}")]
    Refused { status: StatusCode, text: String },
    /// There was no connection: a write was not done.
    #[error("no connection")]
    NotSent,
    /// A write may have been done.
    #[error("no answer: {0}")]
    NoAnswer(String),
}

/// One database through one gateway. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct KvClient {
    http: Client<HttpConnector, Full<Bytes>>,
    base: String,
    token: String,
    database: DatabaseId,
    timeout: Duration,
}

impl KvClient {
    /// `base` is the URL of a gateway, without a slash at its end.
    pub fn new(base: impl Into<String>, database: DatabaseId) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(Duration::from_secs(2)));
        Self {
            http: Client::builder(TokioExecutor::new()).build(connector),
            base: base.into(),
            token: TOKEN.to_owned(),
            database,
            timeout: Duration::from_secs(30),
        }
    }

    /// The URL of the gateway.
    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn with_token(self, token: impl Into<String>) -> Self {
        Self { token: token.into(), ..self }
    }

    /// From sending a request to having its whole answer.
    pub fn with_timeout(self, timeout: Duration) -> Self {
        Self { timeout, ..self }
    }

    /// The headers that every request of the data path needs.
    pub fn headers(&self) -> Vec<(&'static str, String)> {
        vec![
            ("authorization", format!("Bearer {}", self.token)),
            ("x-denokv-version", "3".to_owned()),
            ("x-denokv-database-id", self.database.to_string()),
        ]
    }

    pub async fn read(
        &self,
        consistency: Consistency,
        ranges: Vec<pb::ReadRange>,
    ) -> Result<pb::SnapshotReadOutput, CallError> {
        let path = match consistency {
            Consistency::Strong => "/kv/strong/snapshot_read",
            Consistency::Eventual => "/kv/eventual/snapshot_read",
        };
        self.call(path, &pb::SnapshotRead { ranges }).await
    }

    /// The strong value of one key.
    pub async fn get(&self, key: &[u8]) -> Result<Option<pb::KvEntry>, CallError> {
        self.get_with(Consistency::Strong, key).await
    }

    pub async fn get_with(
        &self,
        consistency: Consistency,
        key: &[u8],
    ) -> Result<Option<pb::KvEntry>, CallError> {
        let output = self.read(consistency, vec![point(key)]).await?;
        Ok(output.ranges.into_iter().flat_map(|range| range.values).next())
    }

    /// Sets one key to bytes; gives the versionstamp.
    pub async fn set(&self, key: &[u8], value: &[u8]) -> Result<Bytes, CallError> {
        let write = pb::AtomicWrite { mutations: vec![set(key, value)], ..Default::default() };
        let output = self.write(write).await?;
        if output.status() != pb::AtomicWriteStatus::AwSuccess {
            return Err(CallError::NoAnswer(format!(
                "a write without checks was answered with {:?}",
                output.status()
            )));
        }
        Ok(output.versionstamp)
    }

    pub async fn write(&self, write: pb::AtomicWrite) -> Result<pb::AtomicWriteOutput, CallError> {
        self.call("/kv/strong/atomic_write", &write).await
    }

    async fn call<T: Message + Default>(
        &self,
        path: &str,
        message: &impl Message,
    ) -> Result<T, CallError> {
        let reply = self.post(path, &self.headers(), message.encode_to_vec().into()).await?;
        if reply.status != StatusCode::OK {
            return Err(CallError::Refused { status: reply.status, text: reply.text() });
        }
        T::decode(reply.body).map_err(|error| CallError::NoAnswer(error.to_string()))
    }

    /// Any body to any path.
    pub async fn post(
        &self,
        path: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Reply, CallError> {
        let uri: Uri = format!("{}{path}", self.base).parse().map_err(|_| CallError::NotSent)?;
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        self.send(request.body(Full::new(body)).map_err(|_| CallError::NotSent)?).await
    }

    /// Any request.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, CallError> {
        let answered = async {
            let response = self.http.request(request).await.map_err(|error| {
                if error.is_connect() {
                    CallError::NotSent
                } else {
                    CallError::NoAnswer(format!("{error:?}"))
                }
            })?;
            let (parts, body) = response.into_parts();
            let body =
                body.collect().await.map_err(|error| CallError::NoAnswer(error.to_string()))?;
            Ok(Reply { status: parts.status, headers: parts.headers, body: body.to_bytes() })
        };
        match tokio::time::timeout(self.timeout, answered).await {
            Ok(reply) => reply,
            Err(_) => {
                Err(CallError::NoAnswer(format!("none within {} ms", self.timeout.as_millis())))
            }
        }
    }
}

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
