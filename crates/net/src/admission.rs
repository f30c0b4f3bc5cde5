//! Accepts connections of nodes and gateways within limits: of one address, and of all together, and
//! as often as an origin may come. The cluster's own nodes are admitted beyond them, whatever other
//! addresses have taken.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use meridian_pki::Holder;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::watch;
use tonic::transport::server::Connected;

use crate::listener::Listener;
use crate::mutual::{Caller, Mutual, claims_of};
use crate::origin::{Origin, Rate};
use crate::standing::{Probation, Standing};
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

/// New connections of an origin: so many at once, and then one in each interval. A gateway opens a
/// handful, and an operator's command two.
const NEW_AT_ONCE: u32 = 256;
const NEW_EVERY: Duration = Duration::from_millis(30);
/// Of an origin with a node, beside which there may be gateways and operators.
const OF_A_NODE_AT_ONCE: u32 = 512;
const OF_A_NODE_EVERY: Duration = Duration::from_millis(15);
/// Connections of control of an origin without a node that is known, as behind a translation of
/// addresses: a node has one to each other. Their handshakes are on the threads that keep leases.
const CONTROL_AT_ONCE: u32 = 16;
const CONTROL_EVERY: Duration = Duration::from_millis(250);

#[derive(Clone)]
struct Open {
    open: Arc<Mutex<HashMap<IpAddr, usize>>>,
    rates: Arc<Rates>,
}

struct Rates {
    new: Rate,
    of_a_node: Rate,
    control: Rate,
}

impl Default for Open {
    fn default() -> Self {
        let new = Rate::new(NEW_AT_ONCE, NEW_EVERY);
        let of_a_node = Rate::new(OF_A_NODE_AT_ONCE, OF_A_NODE_EVERY);
        let control = Rate::new(CONTROL_AT_ONCE, CONTROL_EVERY);
        Self { open: Arc::default(), rates: Arc::new(Rates { new, of_a_node, control }) }
    }
}

impl Open {
    fn admit(&self, address: IpAddr, limits: Limits, members: &Members) -> Option<Admitted> {
        let is_members = members.borrow().contains(&address);
        let rate = if is_members { &self.rates.of_a_node } else { &self.rates.new };
        if !rate.take(Origin::of(address), Instant::now()) {
            return None;
        }
        let mut open = self.open.lock();
        let of_this = open.get(&address).copied().unwrap_or_default();
        let is_free =
            of_this < limits.of_one_address && open.values().sum::<usize>() < limits.in_all;
        let is_kept_for_it = is_members && of_this < limits.of_a_node;
        if !is_free && !is_kept_for_it {
            return None;
        }
        open.insert(address, of_this + 1);
        Some(Admitted { open: self.clone(), address, is_members })
    }
}

/// Counts a connection until it is dropped.
struct Admitted {
    open: Open,
    address: IpAddr,
    /// It comes from an address of a node.
    is_members: bool,
}

impl Admitted {
    fn may_be_of_control(&self) -> bool {
        let rate = &self.open.rates.control;
        self.is_members || rate.take(Origin::of(self.address), Instant::now())
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.open.open.lock();
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
                    let connection = Connection::new(stream, admitted);
                    return Some((Ok(connection), (listener, open, members)));
                }
                metrics::counter!("meridian_rpc_refused_connections_total").increment(1);
                tracing::debug!(%peer, "connection refused: too many are open, or come");
            }
        },
    )
}

/// A connection that was admitted.
pub struct Connection {
    stream: Stream,
    admitted: Admitted,
    standing: Arc<Standing>,
    probation: Probation,
}

impl Connection {
    fn new(stream: Stream, admitted: Admitted) -> Self {
        Self { stream, admitted, standing: Arc::default(), probation: Probation::default() }
    }

    /// Whether its origin may begin one more connection of control.
    pub(crate) fn may_be_of_control(&self) -> bool {
        self.admitted.may_be_of_control()
    }

    /// Whether its other side has shown that it is a node, or is in the clear, which others judge.
    pub(crate) fn may_be_a_nodes(&self) -> bool {
        let claims = || claims_of(&self.stream).and_then(Result::ok);
        !self.stream.has_tls()
            || claims().is_some_and(|it| matches!(it.subject.holder, Holder::Node(_)))
    }

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
        let Self { stream, admitted, .. } = self;
        let begins_tls =
            !mutual.is_empty() && stream.first_byte().await?.is_some_and(Stream::is_tls);
        let stream = if begins_tls { mutual.accept(stream).await? } else { stream };
        Ok(Self::new(mutual.until_refused(stream), admitted))
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
        Ok(Connection::new(self.stream.attach()?, self.admitted))
    }
}

impl Connected for Connection {
    type ConnectInfo = Caller;

    fn connect_info(&self) -> Caller {
        Caller::of(&self.stream, Arc::clone(&self.standing))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self { stream, standing, probation, .. } = self.get_mut();
        standing.read(Pin::new(stream), cx, buf, probation)
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
        assert!(open.open.lock().is_empty());
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

    #[test]
    fn origin_comes_as_often_as_it_may_and_holds_up_no_other() {
        let limits = Limits { in_all: 9999, of_one_address: 9999, of_a_node: 0 };
        let (open, address) = (Open::default(), |last| IpAddr::from([10, 0, 0, last]));
        let members = watch::Sender::new(HashSet::from([address(9)])).subscribe();
        let come = |last| open.admit(address(last), limits, &members).is_some();
        let came = |last| (0..1000).filter(|_| come(last)).count();
        // One or another comes while these are counted.
        assert!((256..400).contains(&came(1)));
        assert!(come(2));
        assert!((512..700).contains(&came(9)));
        let of_control = |last| {
            let admitted = open.admit(address(last), limits, &members).unwrap();
            (0..100).filter(|_| admitted.may_be_of_control()).count()
        };
        assert!((16..30).contains(&of_control(3)));
        std::thread::sleep(2 * OF_A_NODE_EVERY);
        assert_eq!(of_control(9), 100);
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
