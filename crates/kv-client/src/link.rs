//! One worker's way to the server: a connection of its own (HTTP/1.1), or streams on a connection
//! that it shares with other workers (HTTP/2).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::header::HeaderMap;
use hyper::{Request, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_net::Stream;
use meridian_net::tls::ServerName;
use tokio::sync::Mutex;

use crate::endpoint::Endpoint;
use crate::error::ClientError;
use crate::http_version::HttpVersion;
use crate::trust;

/// No answer to what this program asks comes near it.
const MAX_ANSWER_BYTES: usize = 8 << 20;
const MAX_ERROR_TEXT_BYTES: usize = 500;

type Body = Full<Bytes>;

#[derive(Debug)]
pub struct Link {
    endpoint: Arc<Endpoint>,
    timeout: Duration,
    sender: Sender,
}

#[derive(Debug)]
enum Sender {
    H1(http1::SendRequest<Body>),
    H2 { shared: Arc<SharedConnection>, generation: u64, sender: http2::SendRequest<Body> },
}

/// An HTTP/2 connection, replaced at most once for each time that it breaks.
#[derive(Debug)]
struct SharedConnection {
    current: Mutex<(u64, http2::SendRequest<Body>)>,
}

impl Link {
    /// One link. `timeout` bounds the connecting and every request.
    pub async fn open(
        endpoint: &Arc<Endpoint>,
        http: HttpVersion,
        timeout: Duration,
    ) -> Result<Self, ClientError> {
        let mut links = Self::open_shared(endpoint, http, 1, timeout).await?;
        links.pop().ok_or(ClientError::Timeout(timeout))
    }

    /// `count` links on one new HTTP/2 connection, or, with HTTP/1.1, on a connection each.
    pub async fn open_shared(
        endpoint: &Arc<Endpoint>,
        http: HttpVersion,
        count: usize,
        timeout: Duration,
    ) -> Result<Vec<Self>, ClientError> {
        let mut links = Vec::with_capacity(count);
        let link = |sender| Self { endpoint: Arc::clone(endpoint), timeout, sender };
        match http {
            HttpVersion::H1 => {
                for _ in 0..count {
                    links.push(link(Sender::H1(
                        within(timeout, connect_h1(endpoint, timeout)).await?,
                    )));
                }
            }
            HttpVersion::H2 => {
                let sender = within(timeout, connect_h2(endpoint, timeout)).await?;
                let shared =
                    Arc::new(SharedConnection { current: Mutex::new((0, sender.clone())) });
                links.extend((0..count).map(|_| {
                    link(Sender::H2 {
                        shared: Arc::clone(&shared),
                        generation: 0,
                        sender: sender.clone(),
                    })
                }));
            }
        }
        Ok(links)
    }

    /// The body of an answer with status 200. After an error that `spoils_link`, reopen before the
    /// next one.
    pub async fn call(&mut self, request: Request<Body>) -> Result<Bytes, ClientError> {
        within(self.timeout, self.sender.call(request)).await
    }

    /// The body of an answer with status 200, as it comes. The link is to be kept for so long; with
    /// HTTP/1.1 it takes no other request meanwhile.
    pub async fn begin(&mut self, request: Request<Body>) -> Result<Incoming, ClientError> {
        within(self.timeout, self.sender.begin(request)).await
    }

    /// A fresh connection; with HTTP/2 the connection that another worker has opened meanwhile, if any.
    pub async fn reopen(&mut self) -> Result<(), ClientError> {
        within(self.timeout, self.sender.reopen(&self.endpoint, self.timeout)).await
    }
}

impl Sender {
    async fn call(&mut self, request: Request<Body>) -> Result<Bytes, ClientError> {
        read_to_end(self.begin(request).await?).await
    }

    /// The body of an answer with status 200.
    async fn begin(&mut self, request: Request<Body>) -> Result<Incoming, ClientError> {
        let response = match self {
            Self::H1(sender) => {
                sender.ready().await.map_err(|error| ClientError::transport(&error))?;
                sender.send_request(request).await
            }
            Self::H2 { sender, .. } => sender.send_request(request).await,
        };
        let response = response.map_err(|error| ClientError::transport(&error))?;
        let status = response.status();
        // An answer of gRPC that is only an error has its trailers here.
        grpc_status(response.headers())?;
        if status == StatusCode::OK {
            return Ok(response.into_body());
        }
        let body = read_to_end(response.into_body()).await?;
        Err(status_error(status, &body))
    }

    async fn reopen(&mut self, endpoint: &Endpoint, timeout: Duration) -> Result<(), ClientError> {
        match self {
            Self::H1(sender) => *sender = connect_h1(endpoint, timeout).await?,
            Self::H2 { shared, generation, sender } => {
                let mut current = shared.current.lock().await;
                if current.0 == *generation {
                    *current = (*generation + 1, connect_h2(endpoint, timeout).await?);
                }
                (*generation, *sender) = current.clone();
            }
        }
        Ok(())
    }
}

async fn within<T>(
    timeout: Duration,
    work: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(timeout, work).await.unwrap_or(Err(ClientError::Timeout(timeout)))
}

async fn connect(
    endpoint: &Endpoint,
    http: HttpVersion,
    timeout: Duration,
) -> Result<TokioIo<Stream>, ClientError> {
    let address = || endpoint.authority().to_owned();
    let dialled = Stream::dial(endpoint.host(), endpoint.port(), timeout).await;
    let dialled = dialled.map_err(|source| ClientError::Connect { address: address(), source })?;
    if !endpoint.is_https() {
        return Ok(TokioIo::new(dialled));
    }
    let secured = async {
        let name = ServerName::try_from(endpoint.host().to_owned()).map_err(io::Error::other)?;
        trust::client(http)?.connect(dialled, name, timeout).await
    };
    let secured =
        secured.await.map_err(|source| ClientError::Tls { address: address(), source })?;
    Ok(TokioIo::new(secured))
}

pub(crate) async fn connect_h1(
    endpoint: &Endpoint,
    timeout: Duration,
) -> Result<http1::SendRequest<Body>, ClientError> {
    let stream = connect(endpoint, HttpVersion::H1, timeout).await?;
    let (sender, connection) =
        http1::handshake(stream).await.map_err(|error| ClientError::transport(&error))?;
    // Ends with the connection; what went wrong there is the answer of the request in flight.
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}

async fn connect_h2(
    endpoint: &Endpoint,
    timeout: Duration,
) -> Result<http2::SendRequest<Body>, ClientError> {
    let stream = connect(endpoint, HttpVersion::H2, timeout).await?;
    let (sender, connection) = http2::handshake(TokioExecutor::new(), stream)
        .await
        .map_err(|error| ClientError::transport(&error))?;
    tokio::spawn(async move { connection.await.ok() });
    Ok(sender)
}

async fn read_to_end(mut body: Incoming) -> Result<Bytes, ClientError> {
    // Nearly every answer is one frame, which is then handed on without a copy.
    let mut whole = Bytes::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ClientError::transport(&error))?;
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    grpc_status(&trailers)?;
                }
                continue;
            }
        };
        if whole.len() + data.len() > MAX_ANSWER_BYTES {
            return Err(ClientError::AnswerTooLarge(MAX_ANSWER_BYTES));
        }
        if whole.is_empty() {
            whole = data;
        } else if !data.is_empty() {
            let mut joined = BytesMut::from(whole);
            joined.extend_from_slice(&data);
            whole = joined.freeze();
        }
    }
    Ok(whole)
}

/// An error if there is a status of gRPC, and one other than 0.
fn grpc_status(headers: &HeaderMap) -> Result<(), ClientError> {
    let text = |name| {
        headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
    };
    match text("grpc-status") {
        Some(status) if status != "0" => {
            Err(ClientError::Grpc { status, text: text("grpc-message").unwrap_or_default() })
        }
        _ => Ok(()),
    }
}

fn status_error(status: StatusCode, body: &Bytes) -> ClientError {
    let text = body.get(..MAX_ERROR_TEXT_BYTES).unwrap_or(body);
    ClientError::Status { status, text: String::from_utf8_lossy(text).trim().to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::HeaderValue;

    #[test]
    fn a_status_of_grpc_other_than_0_is_an_error() {
        let mut headers = HeaderMap::new();
        assert!(grpc_status(&headers).is_ok());
        headers.insert("grpc-status", HeaderValue::from_static("0"));
        assert!(grpc_status(&headers).is_ok());
        headers.insert("grpc-status", HeaderValue::from_static("14"));
        headers.insert("grpc-message", HeaderValue::from_static("etcdserver: no leader"));
        assert_eq!(
            grpc_status(&headers).unwrap_err().to_string(),
            "gRPC status 14: etcdserver: no leader"
        );
    }
}
