//! A connection, dialled or accepted, with or without TLS.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::{client, server};

use crate::live::End;

/// The first byte of a record of TLS with which a handshake begins.
const TLS_HANDSHAKE: u8 = 0x16;

/// A connection over TCP, with TLS once [`Server::accept`](crate::tls::Server::accept) or
/// [`Client::connect`](crate::tls::Client::connect) has added it. Nagle's algorithm is off: together
/// with delayed acknowledgements it costs each request of some clients about 40 ms.
///
/// With TLS, bytes may wait in the connection until it is flushed.
#[derive(Debug)]
pub struct Stream {
    transport: Transport,
    /// `None`: the other side alone ends it.
    end: Option<End>,
}

#[derive(Debug)]
pub(crate) enum Transport {
    Plain(TcpStream),
    Accepted(Box<server::TlsStream<TcpStream>>),
    Dialled(Box<client::TlsStream<TcpStream>>),
}

/// Calls the same function of whichever stream it is.
macro_rules! with_transport {
    ($transport:expr, $stream:ident => $call:expr) => {
        match $transport {
            Transport::Plain($stream) => $call,
            Transport::Accepted($stream) => $call,
            Transport::Dialled($stream) => $call,
        }
    };
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
        Ok(Self { transport: Transport::Plain(tcp), end: None })
    }

    pub(crate) fn accepted(tls: server::TlsStream<TcpStream>) -> Self {
        Self { transport: Transport::Accepted(Box::new(tls)), end: None }
    }

    pub(crate) fn dialled(tls: client::TlsStream<TcpStream>) -> Self {
        Self { transport: Transport::Dialled(Box::new(tls)), end: None }
    }

    /// Reads fail once `end` is wanted.
    pub(crate) fn until(self, end: Option<End>) -> Self {
        Self { end, ..self }
    }

    /// The connection below, if it has no TLS yet.
    ///
    /// # Errors
    /// It has.
    pub(crate) fn into_plain(self) -> io::Result<TcpStream> {
        match self.transport {
            Transport::Plain(tcp) => Ok(tcp),
            Transport::Accepted(_) | Transport::Dialled(_) => Err(has_tls()),
        }
    }

    fn plain(&self) -> io::Result<&TcpStream> {
        match &self.transport {
            Transport::Plain(tcp) => Ok(tcp),
            Transport::Accepted(_) | Transport::Dialled(_) => Err(has_tls()),
        }
    }

    fn tcp(&self) -> &TcpStream {
        match &self.transport {
            Transport::Plain(tcp) => tcp,
            Transport::Accepted(tls) => tls.get_ref().0,
            Transport::Dialled(tls) => tls.get_ref().0,
        }
    }

    fn session(&self) -> Option<&rustls::CommonState> {
        match &self.transport {
            Transport::Plain(_) => None,
            Transport::Accepted(tls) => Some(tls.get_ref().1),
            Transport::Dialled(tls) => Some(tls.get_ref().1),
        }
    }

    /// # Errors
    /// When the system does not say, as when the connection is broken.
    pub fn peer_address(&self) -> io::Result<SocketAddr> {
        self.tcp().peer_addr()
    }

    /// The certificates by which the peer is known, its own first. None without TLS, and of a client
    /// that showed none.
    #[must_use]
    pub fn peer_certificates(&self) -> &[CertificateDer<'static>] {
        self.session().and_then(rustls::CommonState::peer_certificates).unwrap_or_default()
    }

    /// The protocol that both sides agreed on within TLS, by its name in ALPN.
    #[must_use]
    pub fn alpn(&self) -> Option<&[u8]> {
        self.session().and_then(rustls::CommonState::alpn_protocol)
    }

    #[cfg(test)]
    pub(crate) fn handshake(&self) -> Option<rustls::HandshakeKind> {
        self.session().and_then(rustls::CommonState::handshake_kind)
    }

    #[cfg(test)]
    pub(crate) fn into_transport(self) -> Transport {
        self.transport
    }

    #[must_use]
    pub fn has_tls(&self) -> bool {
        self.session().is_some()
    }

    /// The first byte that the peer sends, which a later read returns again. `None`: it sends none.
    ///
    /// # Errors
    /// When the connection is broken, or has TLS.
    pub async fn first_byte(&self) -> io::Result<Option<u8>> {
        let mut first = [0];
        Ok((self.peek(&mut first).await? == 1).then_some(first[0]))
    }

    /// Whether a handshake of TLS may begin with this byte.
    #[must_use]
    pub fn is_tls(first_byte: u8) -> bool {
        first_byte == TLS_HANDSHAKE
    }

    /// The first bytes that have come, which a later read returns again. 0: the peer sends no more.
    ///
    /// # Errors
    /// When the connection is broken, or has TLS.
    pub(crate) async fn peek(&self, bytes: &mut [u8]) -> io::Result<usize> {
        self.plain()?.peek(bytes).await
    }

    /// Takes the connection from the runtime that it belongs to.
    ///
    /// # Errors
    /// When the system does not let go of it, or it has TLS.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        self.into_plain()?.into_std().map(Detached)
    }
}

fn has_tls() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "the connection has TLS already")
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
        Ok(Stream { transport: Transport::Plain(TcpStream::from_std(self.0)?), end: None })
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.end.as_mut().is_some_and(|end| end.is_wanted(cx)) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        with_transport!(&mut self.transport, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        with_transport!(&mut self.transport, stream => Pin::new(stream).poll_write(cx, buf))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_transport!(&mut self.transport, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        with_transport!(&mut self.transport, stream => Pin::new(stream).poll_shutdown(cx))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        with_transport!(&mut self.transport, stream => Pin::new(stream).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        with_transport!(&self.transport, stream => stream.is_write_vectored())
    }
}
