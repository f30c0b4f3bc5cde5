//! Dialling a node for gRPC: in the clear or with mutual TLS, for control or not.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tonic::codegen::Service;

use crate::control::MARK;
use crate::mutual::{Dialler, Expected};
use crate::stream::Stream;

/// The way to a node.
#[derive(Debug, Clone)]
pub enum Way {
    /// In the clear.
    Plain,
    Tls {
        dialler: Dialler,
        expected: Expected,
        /// A node that does not speak TLS is spoken to in the clear.
        or_plain: bool,
    },
}

/// Connects to the address of a URI.
#[derive(Clone)]
pub(crate) struct Connector {
    pub(crate) way: Way,
    /// The other side is told that the connection is for control.
    pub(crate) is_control: bool,
    /// Of all that comes before the first call.
    pub(crate) timeout: Duration,
}

impl Connector {
    async fn tcp(&self, address: &str) -> io::Result<Stream> {
        let mut stream = Stream::new(TcpStream::connect(address).await?)?;
        if self.is_control {
            stream.write_all(&MARK).await?;
        }
        Ok(stream)
    }

    async fn connect(&self, address: &str) -> io::Result<Stream> {
        let stream = self.tcp(address).await?;
        let Way::Tls { dialler, expected, or_plain } = &self.way else { return Ok(stream) };
        match dialler.handshake(stream, expected).await {
            Ok(stream) => dialler.check(stream, expected),
            Err(error) if *or_plain => {
                tracing::debug!(address, %error, "a node does not speak TLS; in the clear, then");
                self.tcp(address).await
            }
            Err(error) => Err(error),
        }
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connector = self.clone();
        Box::pin(async move {
            let authority = uri.authority().map(hyper::http::uri::Authority::as_str);
            let connect = connector.connect(authority.unwrap_or_default());
            let connected = tokio::time::timeout(connector.timeout, connect).await;
            connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())).map(TokioIo::new)
        })
    }
}
