//! Accepts connections, and no more than there is room for, of one address and of all together.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long to leave the listener alone when it cannot accept, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How many connections may be open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) in_all: usize,
    pub(crate) of_one_address: usize,
}

#[derive(Clone, Default)]
struct Open(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Open {
    fn admit(&self, address: IpAddr, room: Room) -> Option<Admitted> {
        let mut open = self.0.lock();
        let of_this = open.get(&address).copied().unwrap_or_default();
        if of_this >= room.of_one_address || open.values().sum::<usize>() >= room.in_all {
            return None;
        }
        open.insert(address, of_this + 1);
        Some(Admitted { open: self.clone(), address })
    }
}

/// Counts a connection until it is dropped.
struct Admitted {
    open: Open,
    address: IpAddr,
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.open.0.lock();
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// The connections of a listener for which there is room, without end. The others are closed at once: a node of the
/// cluster dials again, and finds room when a stranger's connection has ended.
pub(crate) fn incoming(listener: TcpListener, room: Room) -> impl Stream<Item = std::io::Result<Connection>> {
    let open = Open::default();
    futures::stream::unfold((listener, open), move |(listener, open)| async move {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => match open.admit(peer.ip().to_canonical(), room) {
                    Some(admitted) if stream.set_nodelay(true).is_ok() => {
                        let connection = Connection { stream, _admitted: admitted };
                        return Some((Ok(connection), (listener, open)));
                    }
                    Some(_) => {}
                    None => {
                        metrics::counter!("meridian_rpc_refused_connections_total").increment(1);
                        tracing::debug!(%peer, "connection refused: too many are open");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    })
}

/// A connection that was admitted.
pub(crate) struct Connection {
    stream: TcpStream,
    _admitted: Admitted,
}

impl Connection {
    pub(crate) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Takes it from the runtime that accepted it.
    ///
    /// # Errors
    /// When the system does not let go of it.
    pub(crate) fn detach(self) -> std::io::Result<Detached> {
        Ok(Detached { stream: self.stream.into_std()?, admitted: self._admitted })
    }
}

/// A connection that was admitted, and belongs to no runtime.
pub(crate) struct Detached {
    stream: std::net::TcpStream,
    admitted: Admitted,
}

impl Detached {
    /// Gives it to the present runtime.
    ///
    /// # Errors
    /// When that cannot watch it.
    pub(crate) fn attach(self) -> std::io::Result<Connection> {
        Ok(Connection { stream: TcpStream::from_std(self.stream)?, _admitted: self.admitted })
    }
}

impl Connected for Connection {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let (open, room) = (Open::default(), Room { in_all: 3, of_one_address: 2 });
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let one = [open.admit(address(1), room).unwrap(), open.admit(address(1), room).unwrap()];
        assert!(open.admit(address(1), room).is_none());
        let other = open.admit(address(2), room).unwrap();
        assert!(open.admit(address(3), room).is_none());
        drop(one);
        assert!(open.admit(address(3), room).is_some());
        drop(other);
        assert!(open.0.lock().is_empty());
    }

    #[tokio::test]
    async fn a_connection_beyond_the_room_is_closed_and_counts_until_it_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepted = Box::pin(incoming(listener, Room { in_all: 1, of_one_address: 1 }));
        let _first = TcpStream::connect(address).await.unwrap();
        let first = accepted.next().await.unwrap().unwrap();
        let mut second = TcpStream::connect(address).await.unwrap();
        let next = tokio::spawn(async move { accepted.next().await.unwrap().is_ok() });
        assert!(second.read_u8().await.is_err(), "it is closed");
        drop(first);
        let _third = TcpStream::connect(address).await.unwrap();
        assert!(next.await.unwrap());
    }
}
