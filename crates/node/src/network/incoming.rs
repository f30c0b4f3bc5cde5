//! Accepts connections, and no more than there is room for, of one address and of all together; of
//! the cluster's own nodes some beyond that, whoever else has taken the room.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::Stream;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::server::{Connected, TcpConnectInfo};

/// How long to leave the listener alone when it cannot accept, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A name of a node that is not answered by then is left as it was.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(5);
const LOOK_UP_AGAIN: Duration = Duration::from_secs(60);

/// How many connections may be open.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Room {
    pub(crate) in_all: usize,
    pub(crate) of_one_address: usize,
    /// Of an address of the cluster, whatever others have.
    pub(crate) of_a_node: usize,
}

/// The addresses of the cluster's nodes.
pub(crate) type Members = watch::Receiver<HashSet<IpAddr>>;

#[derive(Clone, Default)]
struct Open(Arc<Mutex<HashMap<IpAddr, usize>>>);

impl Open {
    fn admit(&self, address: IpAddr, room: Room, members: &Members) -> Option<Admitted> {
        let mut open = self.0.lock();
        let of_this = open.get(&address).copied().unwrap_or_default();
        let is_free = of_this < room.of_one_address && open.values().sum::<usize>() < room.in_all;
        let is_kept_for_it = || of_this < room.of_a_node && members.borrow().contains(&address);
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

/// The connections of a listener for which there is room, without end. The others are closed at
/// once: a gateway dials again, and finds room when a stranger's connection has ended.
pub(crate) fn incoming(
    listener: TcpListener,
    room: Room,
    members: Members,
) -> impl Stream<Item = std::io::Result<Connection>> {
    let open = Open::default();
    futures::stream::unfold(
        (listener, open, members),
        move |(listener, open, members)| async move {
            loop {
                match listener.accept().await {
                    Ok((stream, peer)) => {
                        match open.admit(peer.ip().to_canonical(), room, &members) {
                            Some(admitted) if stream.set_nodelay(true).is_ok() => {
                                let connection = Connection { stream, _admitted: admitted };
                                return Some((Ok(connection), (listener, open, members)));
                            }
                            Some(_) => {}
                            None => {
                                metrics::counter!("meridian_rpc_refused_connections_total")
                                    .increment(1);
                                tracing::debug!(%peer, "connection refused: too many are open");
                            }
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        },
    )
}

/// Finds the addresses that `names` gives for what is `known` of the cluster, again and again: names
/// may come to mean others. Those of a name that is not answered stay as they were. Ends when
/// nobody asks for them any more, or knows of the cluster.
pub(crate) async fn look_up<K>(
    mut known: watch::Receiver<K>,
    names: impl Fn(&K) -> HashSet<String>,
    members: watch::Sender<HashSet<IpAddr>>,
) {
    let mut found = HashMap::<String, Vec<IpAddr>>::new();
    loop {
        let names = names(&known.borrow_and_update());
        found.retain(|name, _| names.contains(name));
        for name in &names {
            if let Ok(Ok(addresses)) = timeout(LOOK_UP_TIMEOUT, lookup_host(name)).await {
                found.insert(
                    name.clone(),
                    addresses.map(|address| address.ip().to_canonical()).collect(),
                );
            }
        }
        members.send_replace(found.values().flatten().copied().collect());
        tokio::select! {
            changed = known.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_UP_AGAIN) => {}
            () = members.closed() => return,
        }
    }
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
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
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
    use meridian_config::DevLayout;
    use meridian_gateway::Access;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::cluster_view::view::{Directory, Known};

    #[test]
    fn one_address_leaves_room_for_others() {
        let (open, room) = (Open::default(), Room { in_all: 3, of_one_address: 2, of_a_node: 0 });
        let nobody = nobody();
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let admit = |last| open.admit(address(last), room, &nobody);
        let one = [admit(1).unwrap(), admit(1).unwrap()];
        assert!(admit(1).is_none());
        let other = admit(2).unwrap();
        assert!(admit(3).is_none());
        drop(one);
        assert!(admit(3).is_some());
        drop(other);
        assert!(open.0.lock().is_empty());
    }

    fn nobody() -> Members {
        watch::Sender::default().subscribe()
    }

    #[test]
    fn the_clusters_nodes_find_room_whoever_else_has_taken_it() {
        let (open, room) = (Open::default(), Room { in_all: 3, of_one_address: 2, of_a_node: 2 });
        let address = |last| IpAddr::from([10, 0, 0, last]);
        let members = watch::Sender::new(HashSet::from([address(9)])).subscribe();
        let admit = |last| open.admit(address(last), room, &members);
        let strangers = [admit(1), admit(1), admit(2)];
        assert!(strangers.iter().all(Option::is_some) && admit(2).is_none());
        let node = [admit(9), admit(9)];
        assert!(
            node.iter().all(Option::is_some) && admit(9).is_none(),
            "and no more than a node needs"
        );
    }

    #[tokio::test]
    async fn the_nodes_of_a_cluster_are_known_by_address_and_by_name() {
        let address =
            |node| if node == 1 { "localhost:1".to_owned() } else { format!("10.0.0.{node}:4601") };
        let founded = DevLayout::new(&[3]).found(address, |_| None).unwrap();
        let directory = Directory::new(founded.clone(), Access::default(), None);
        let members = watch::Sender::default();
        let mut found = members.subscribe();
        tokio::spawn(look_up(directory.watch(), Known::rpc_addresses, members));
        let at = |last| IpAddr::from([10, 0, 0, last]);
        found
            .wait_for(|found| found.contains(&at(2)) && found.iter().any(IpAddr::is_loopback))
            .await
            .unwrap();
        let mut cluster = directory.known().cluster.clone();
        cluster.nodes.get_mut(&1).unwrap().rpc_address = "10.0.0.8:4601".to_owned();
        cluster.version += 1;
        directory.learn(cluster).unwrap();
        found.wait_for(|found| *found == HashSet::from([at(2), at(3), at(8)])).await.unwrap();
    }

    #[tokio::test]
    async fn a_connection_beyond_the_room_is_closed_and_counts_until_it_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepted = Box::pin(incoming(
            listener,
            Room { in_all: 1, of_one_address: 1, of_a_node: 0 },
            nobody(),
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
