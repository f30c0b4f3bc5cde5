//! Connections that no HTTP client would make.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::body::{Body, Frame};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_proto::kv_connect as pb;
use prost::Message;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use super::stored;
use crate::kv_connect::{DEFAULT_DATABASE, range};

const ELSEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Longer than a gateway waits for anything.
const PATIENCE: Duration = Duration::from_secs(180);

pub(super) type BoxedBody = BoxBody<Bytes, std::convert::Infallible>;

/// The largest legal read: 1,000 entries of 64 KiB.
pub(super) fn largest_read() -> Bytes {
    let end = [stored::LARGE, b"\xff"].concat();
    pb::SnapshotRead { ranges: vec![range(stored::LARGE, &end, 1000)] }.encode_to_vec().into()
}

/// The head of a request over HTTP/1.1 for the database `default`.
pub(super) fn head(path: &str, token: &str, length: usize) -> String {
    format!(
        "POST {path} HTTP/1.1\r\nHost: kv\r\nAuthorization: Bearer {token}\r\nx-denokv-version: 3\r\n\
         x-denokv-database-id: {DEFAULT_DATABASE}\r\nContent-Length: {length}\r\n\r\n"
    )
}

/// Connects from an address that no node of a cluster on loopback has, if loopback has more than
/// one.
pub(super) async fn connect(address: &str) -> Option<TcpStream> {
    let address = address.parse().ok()?;
    let socket = TcpSocket::new_v4().ok()?;
    if cfg!(target_os = "linux") {
        socket.bind((ELSEWHERE, 0).into()).ok()?;
    }
    socket.connect(address).await.ok()
}

/// Sends `bytes` and keeps the connection without reading from it, until the other side closes it.
pub(super) async fn hold(address: &str, bytes: &[u8]) {
    let Some(mut stream) = connect(address).await else { return };
    if stream.write_all(bytes).await.is_ok() {
        // Received bytes are not read: the end shows nevertheless, as an error or a hang-up.
        drop(tokio::time::timeout(PATIENCE, stream.ready(tokio::io::Interest::ERROR)).await);
    }
}

/// Sends `bytes`, and reads until the other side closes.
pub(super) async fn converse(address: &str, bytes: &[u8]) {
    let Some(mut stream) = connect(address).await else { return };
    drop(stream.write_all(bytes).await);
    let mut answer = [0; 4096];
    let read = async { while let Ok(1..) = stream.read(&mut answer).await {} };
    drop(tokio::time::timeout(PATIENCE, read).await);
}

/// A connection over HTTP/2.
pub(super) async fn http2(address: &str) -> Option<SendRequest<BoxedBody>> {
    let stream = connect(address).await?;
    let (requests, connection) =
        http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.ok()?;
    tokio::spawn(connection);
    Some(requests)
}

pub(super) fn request(
    address: &str,
    path: &str,
    token: Option<&str>,
    body: BoxedBody,
) -> Option<Request<BoxedBody>> {
    let mut request = Request::post(format!("http://{address}{path}"))
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", DEFAULT_DATABASE.to_string());
    if let Some(token) = token {
        request = request.header("authorization", format!("Bearer {token}"));
    }
    request.body(body).ok()
}

pub(super) fn whole(bytes: Bytes) -> BoxedBody {
    Full::new(bytes).boxed()
}

/// A body of which no byte ever comes.
pub(super) struct Never;

impl Body for Never {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Poll::Pending
    }
}
