//! KV Connect without a client library: for what such libraries would retry, check or hide.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::SendRequest;
use hyper::header::{HOST, HeaderValue};
use hyper::{HeaderMap, Request, Response, StatusCode, Uri};
use meridian_proto::kv_connect as pb;
use meridian_types::{Consistency, DatabaseId};
use parking_lot::Mutex;
use prost::Message;

use crate::endpoint::Endpoint;
use crate::link::connect_h1;
use crate::message::{point, set};

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

const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// A connection that was not used for so long is closed: the gateway closes it soon itself.
const IDLE: Duration = Duration::from_secs(90);

pub(crate) type Sender = SendRequest<Full<Bytes>>;

/// One database through one gateway. Cheap to clone; clones share connections.
#[derive(Clone)]
pub struct KvClient {
    /// Connections that no request is in progress on, the last used one last.
    idle: Arc<Mutex<Vec<(Instant, Sender)>>>,
    base: String,
    token: String,
    database: DatabaseId,
    pub(crate) timeout: Duration,
}

impl KvClient {
    /// `base` is the URL of a gateway, without a slash at its end.
    pub fn new(base: impl Into<String>, token: impl Into<String>, database: DatabaseId) -> Self {
        Self {
            idle: Arc::default(),
            base: base.into(),
            token: token.into(),
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
        self.send(self.request(path, headers, body)?).await
    }

    pub(crate) fn request(
        &self,
        path: &str,
        headers: &[(&str, String)],
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, CallError> {
        let uri: Uri = format!("{}{path}", self.base).parse().map_err(|_| CallError::NotSent)?;
        let mut request = Request::post(uri);
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.body(Full::new(body)).map_err(|_| CallError::NotSent)
    }

    /// The body of an answer that goes on, once it has begun, and the connection that it comes over.
    pub(crate) async fn begin(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Incoming, Sender), CallError> {
        let begun = tokio::time::timeout(self.timeout, self.exchange(request)).await;
        let (response, sender) = begun.unwrap_or_else(|_| Err(self.too_late()))?;
        if response.status() == StatusCode::OK {
            return Ok((response.into_body(), sender));
        }
        let (status, body) = (response.status(), response.into_body().collect().await);
        let body = body.map_err(|error| CallError::NoAnswer(error.to_string()))?.to_bytes();
        Err(CallError::Refused { status, text: String::from_utf8_lossy(&body).into_owned() })
    }

    pub(crate) fn too_late(&self) -> CallError {
        CallError::NoAnswer(format!("none within {} ms", self.timeout.as_millis()))
    }

    /// Any request.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Reply, CallError> {
        let answered = async {
            let (response, sender) = self.exchange(request).await?;
            let (parts, body) = response.into_parts();
            let body =
                body.collect().await.map_err(|error| CallError::NoAnswer(error.to_string()))?;
            self.idle.lock().push((Instant::now(), sender));
            Ok(Reply { status: parts.status, headers: parts.headers, body: body.to_bytes() })
        };
        let answered = tokio::time::timeout(self.timeout, answered).await;
        answered.unwrap_or_else(|_| Err(self.too_late()))
    }

    /// The head of the answer, and the connection that its body comes over. A request that was not
    /// sent because an idle connection had just been closed is sent over another.
    pub(crate) async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<(Response<Incoming>, Sender), CallError> {
        let endpoint = Endpoint::parse(&self.base).map_err(|_| CallError::NotSent)?;
        let mut request = in_origin_form(request, &endpoint).ok_or(CallError::NotSent)?;
        loop {
            let (mut sender, is_fresh) = match self.idle_connection() {
                Some(sender) => (sender, false),
                None => {
                    let fresh = connect_h1(&endpoint, CONNECT_TIMEOUT).await;
                    (fresh.map_err(|_| CallError::NotSent)?, true)
                }
            };
            if sender.ready().await.is_err() && !is_fresh {
                continue;
            }
            match sender.try_send_request(request).await {
                Ok(response) => return Ok((response, sender)),
                Err(mut failed) => match failed.take_message() {
                    Some(unsent) if !is_fresh => request = unsent,
                    _ => return Err(CallError::NoAnswer(format!("{:?}", failed.into_error()))),
                },
            }
        }
    }

    fn idle_connection(&self) -> Option<Sender> {
        let mut idle = self.idle.lock();
        idle.retain(|(since, sender)| since.elapsed() < IDLE && !sender.is_closed());
        idle.pop().map(|(_, sender)| sender)
    }
}

/// As HTTP/1.1 wants it: a path in the request's line, and a host header.
fn in_origin_form(
    mut request: Request<Full<Bytes>>,
    endpoint: &Endpoint,
) -> Option<Request<Full<Bytes>>> {
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let path: Uri = path.parse().ok()?;
    *request.uri_mut() = path;
    let host = HeaderValue::from_str(endpoint.authority()).ok()?;
    request.headers_mut().entry(HOST).or_insert(host);
    Some(request)
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers `answers` requests without a body on each connection, then closes it.
    async fn serve(listener: TcpListener, answers: usize) {
        while let Ok((mut stream, _)) = listener.accept().await {
            for _ in 0..answers {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await.unwrap());
                }
                assert!(head.starts_with(b"POST /path HTTP/1.1\r\n"), "{head:?}");
                let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                stream.write_all(answer).await.unwrap();
            }
        }
    }

    #[tokio::test]
    async fn request_over_a_connection_that_was_closed_goes_over_another() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let server = tokio::spawn(serve(listener, 2));
        let client = KvClient::new(base, "token", DatabaseId([0; 16]));
        for request in 1..=5 {
            let reply = client.post("/path", &client.headers(), Bytes::new()).await.unwrap();
            assert_eq!((reply.status, reply.text().as_str()), (StatusCode::OK, "ok"));
            let is_closed = || client.idle.lock().iter().all(|(_, sender)| sender.is_closed());
            while request % 2 == 0 && !is_closed() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        server.abort();
        drop(server.await);
        let clone = client.clone();
        clone.idle.lock().clear();
        let refused = clone.post("/path", &clone.headers(), Bytes::new()).await;
        assert!(matches!(refused, Err(CallError::NotSent)), "{refused:?}");
    }
}
