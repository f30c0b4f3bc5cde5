//! A connection, dialled or accepted.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection over TCP. Nagle's algorithm is off: together with delayed acknowledgements it costs
/// each request of some clients about 40 ms.
#[derive(Debug)]
pub struct Stream {
    tcp: TcpStream,
}

impl Stream {
    /// Connects to a host, which is a name or an address without brackets.
    ///
    /// # Errors
    /// When that fails, or is not done in time.
    pub async fn dial(host: &str, port: u16, timeout: Duration) -> io::Result<Self> {
        let connect = TcpStream::connect((host, port));
        let connected = tokio::time::timeout(timeout, connect).await;
        Self::new(connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?)
    }

    pub(crate) fn new(tcp: TcpStream) -> io::Result<Self> {
        tcp.set_nodelay(true)?;
        Ok(Self { tcp })
    }

    /// The first bytes that have come, which a later read returns again. 0: the peer sends no more.
    ///
    /// # Errors
    /// When the connection is broken.
    pub(crate) async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.tcp.peek(bytes).await
    }

    /// Takes the connection from the runtime that it belongs to.
    ///
    /// # Errors
    /// When the system does not let go of it.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        self.tcp.into_std().map(Detached)
    }
}

/// A connection that belongs to no runtime.
#[derive(Debug)]
pub(crate) struct Detached(std::net::TcpStream);

impl Detached {
    /// Gives the connection to the present runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub(crate) fn attach(self) -> io::Result<Stream> {
        Ok(Stream { tcp: TcpStream::from_std(self.0)? })
    }
}

impl Connected for Stream {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.tcp.connect_info()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.tcp.is_write_vectored()
    }
}
