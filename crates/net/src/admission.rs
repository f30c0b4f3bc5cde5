//! Accepts connections of nodes and gateways within limits: of one address, and of all together.
//! The cluster's own nodes are admitted beyond them, whatever other addresses have taken.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tonic::transport::server::Connected;

use crate::listener::Listener;
use crate::mutual::{Caller, Mutual};
use crate::stream::{self, Stream};

/// How many connections may be open.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub in_all: usize,
    pub of_one_address: usize,
    /// Of an address of the cluster, whatever other addresses have.
    pub of_a_node: usize,
}

/// The addresses of the cluster's nodes.
pub type Members = watch::Receiver<HashSet<IpAddr>>;

#[derive(Clone, Default)]
struct Open(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Open {
    fn admit(&self, address: IpAddr, limits: Limits, members: &Members) -> Option<Admitted> {
        let mut open = self.0.lock();
        let of_this = open.get(&address).copied().unwrap_or_default();
        let is_free =
            of_this < limits.of_one_address && open.values().sum::<usize>() < limits.in_all;
        let is_kept_for_it = || of_this < limits.of_a_node && members.borrow().contains(&address);
        if !is_free && !is_kept_for_it() {
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

/// The connections of a listener that were admitted, without end. The others are closed at once: a
/// gateway dials again, and is admitted when a stranger's connection has ended.
pub fn admitted(
    listener: Listener,
    limits: Limits,
    members: Members,
) -> impl futures::Stream<Item = io::Result<Connection>> {
    let open = Open::default();
    futures::stream::unfold(
        (listener, open, members),
        move |(mut listener, open, members)| async move {
            loop {
                let (stream, peer) = listener.accept().await;
                if let Some(admitted) = open.admit(peer.ip().to_canonical(), limits, &members) {
                    let connection = Connection { stream, admitted };
                    return Some((Ok(connection), (listener, open, members)));
                }
                metrics::counter!("meridian_rpc_refused_connections_total").increment(1);
                tracing::debug!(%peer, "connection refused: too many are open");
            }
        },
    )
}

/// A connection that was admitted.
pub struct Connection {
    stream: Stream,
    admitted: Admitted,
}

impl Connection {
    pub(crate) fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Takes the connection from the runtime that accepted it.
    ///
    /// # Errors
    /// When the system does not let go of it.
    pub(crate) fn detach(self) -> io::Result<Detached> {
        Ok(Detached { stream: self.stream.detach()?, admitted: self.admitted })
    }
}

impl Connection {
    /// Adds TLS, if the other side begins with it and this side has a certificate.
    ///
    /// # Errors
    /// When the connection is broken, or the handshake fails.
    pub(crate) async fn with_tls(self, mutual: &Mutual) -> io::Result<Self> {
        let Self { stream, admitted } = self;
        let begins_tls =
            !mutual.is_empty() && stream.first_byte().await?.is_some_and(Stream::is_tls);
        let stream = if begins_tls { mutual.accept(stream).await? } else { stream };
        Ok(Self { stream: mutual.until_refused(stream), admitted })
    }
}

/// A connection that was admitted, and belongs to no runtime.
pub struct Detached {
    stream: stream::Detached,
    admitted: Admitted,
}

impl Detached {
    /// Gives the connection to the present runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub(crate) fn attach(self) -> io::Result<Connection> {
        Ok(Connection { stream: self.stream.attach()?, admitted: self.admitted })
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller::of(&self.stream)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
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
    use tokio::net::TcpStream;

    use super::*;

    #[test]
    fn one_address_leaves_room_for_others() {
        let (open, limits) =
            (Open::default(), Limits { in_all: 3, of_one_address: 2, of_a_node: 0 });
        let no_members = no_members();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let admit = |last| open.admit(address(last), limits, &no_members);
        let one = [admit(1).unwrap(), admit(1).unwrap()];
        assert!(admit(1).is_none());
        let other = admit(2).unwrap();
        assert!(admit(3).is_none());
        drop(one);
        assert!(admit(3).is_some());
        drop(other);
        assert!(open.0.lock().is_empty());
    }

    fn no_members() -> Members {
        watch::Sender::default().subscribe()
    }

    #[test]
    fn cluster_nodes_find_room_when_strangers_have_taken_the_rest() {
        let (open, limits) =
            (Open::default(), Limits { in_all: 3, of_one_address: 2, of_a_node: 2 });
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let members = watch::Sender::new(HashSet::from([address(9)])).subscribe();
        let admit = |last| open.admit(address(last), limits, &members);
        let strangers = [admit(1), admit(1), admit(2)];
        assert!(strangers.iter().all(Option::is_some) && admit(2).is_none());
        let node = [admit(9), admit(9)];
        assert!(
            node.iter().all(Option::is_some) && admit(9).is_none(),
            "and no more than a node needs"
        );
    }

    #[tokio::test]
    async fn a_connection_beyond_the_room_is_closed_and_counts_until_it_ends() {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        let mut accepted = Box::pin(admitted(
            listener,
            Limits { in_all: 1, of_one_address: 1, of_a_node: 0 },
            no_members(),
        ));
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
