//! Connections between the members: where each listens, how far away it is, and what is held up on
//! the way.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meridian_consensus::{Peers, StateTransfer, Transfer};
use meridian_storage::{GroupId, ShardState, StagedState, StateSnapshot, StorageError};
use meridian_types::NodeId;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

/// Where the members listen, and the snapshots that they offer each other.
#[derive(Default)]
pub(crate) struct Wire {
    channels: Mutex<HashMap<NodeId, Channel>>,
    offers: Arc<Mutex<Vec<Arc<StateSnapshot>>>>,
    fetched: Mutex<HashMap<String, usize>>,
    fetches_held: AtomicBool,
    /// The directory names no voters: only the groups' logs tell.
    names_no_voters: AtomicBool,
    /// A handle for each that is under way, and this one.
    fetching: Arc<()>,
}

impl Wire {
    /// Other connections, over which the same snapshots are fetched.
    pub(crate) fn beside(other: &Self) -> Self {
        Self { offers: Arc::clone(&other.offers), ..Self::default() }
    }

    /// From now on `node` is called at `address`.
    pub(crate) fn listens(&self, node: NodeId, address: SocketAddr) {
        let endpoint =
            Endpoint::from_shared(format!("http://{address}")).unwrap().tcp_nodelay(true);
        self.channels.lock().unwrap().insert(node, endpoint.connect_lazy());
    }

    /// From now on the directory names all nodes as voters, or none.
    pub(crate) fn names_voters(&self, all: bool) {
        self.names_no_voters.store(!all, Ordering::SeqCst);
    }

    pub(crate) fn names_them(&self) -> bool {
        !self.names_no_voters.load(Ordering::SeqCst)
    }

    /// Until they are released, no snapshot arrives.
    pub(crate) fn hold_fetches(&self, held: bool) {
        self.fetches_held.store(held, Ordering::SeqCst);
    }

    /// Whether a snapshot is being fetched.
    pub(crate) fn is_fetching(&self) -> bool {
        Arc::strong_count(&self.fetching) > 1
    }

    /// How many snapshots were fetched in `group`.
    pub(crate) fn fetched(&self, group: GroupId) -> usize {
        self.fetched.lock().unwrap().get(&group.to_string()).copied().unwrap_or(0)
    }
}

impl Peers for Wire {
    fn channel(&self, node: NodeId) -> Option<Channel> {
        self.channels.lock().unwrap().get(&node).cloned()
    }
}

impl StateTransfer for Wire {
    fn offer(&self, _: GroupId, snapshot: Arc<StateSnapshot>) -> String {
        let mut offers = self.offers.lock().unwrap();
        offers.push(snapshot);
        (offers.len() - 1).to_string()
    }

    fn fetch(
        self: Arc<Self>,
        group: GroupId,
        _: NodeId,
        snapshot_id: String,
        state: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async move {
            let _fetching = Arc::clone(&self.fetching);
            while self.fetches_held.load(Ordering::SeqCst) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            let snapshot =
                Arc::clone(&self.offers.lock().unwrap()[snapshot_id.parse::<usize>().unwrap()]);
            let staged = tokio::task::spawn_blocking(move || {
                let mut staged = state.stage()?;
                staged.add(snapshot.rows(&[], usize::MAX)?)?;
                Ok::<_, StorageError>(staged)
            });
            let staged = staged.await.unwrap()?;
            *self.fetched.lock().unwrap().entry(group.to_string()).or_default() += 1;
            Ok(staged)
        })
    }
}

/// The connection from one member to another: its requests, or the answers to them, can be held up
/// for a while.
#[derive(Debug, Default)]
pub(crate) struct Link {
    requests_held: AtomicBool,
    answers_held: AtomicBool,
}

impl Link {
    pub(crate) fn hold_requests(&self) {
        self.requests_held.store(true, Ordering::SeqCst);
    }

    pub(crate) fn hold_answers(&self) {
        self.answers_held.store(true, Ordering::SeqCst);
    }

    pub(crate) fn release_answers(&self) {
        self.answers_held.store(false, Ordering::SeqCst);
    }

    pub(crate) fn release(&self) {
        self.requests_held.store(false, Ordering::SeqCst);
        self.release_answers();
    }
}

/// Listens, and passes on to `target` what comes.
pub(crate) async fn linked(target: SocketAddr, link: Arc<Link>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let link = Arc::clone(&link);
            tokio::spawn(async move {
                near.set_nodelay(true).unwrap();
                let Ok(far) = TcpStream::connect(target).await else { return };
                far.set_nodelay(true).unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                tokio::join!(
                    pass(near.0, far.1, &link.requests_held),
                    pass(far.0, near.1, &link.answers_held)
                );
            });
        }
    });
    address
}

async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    held: &AtomicBool,
) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(len @ 1..) = from.read(&mut buffer).await {
        while held.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        if to.write_all(&buffer[..len]).await.is_err() {
            return;
        }
    }
}

/// Listens, and passes on to `target` what comes, `delay` later in each direction.
pub(crate) async fn far_away(target: SocketAddr, delay: Duration) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(async move {
                near.set_nodelay(true).unwrap();
                // The handshake takes a round trip, too.
                tokio::time::sleep(delay * 2).await;
                let Ok(far) = TcpStream::connect(target).await else { return };
                far.set_nodelay(true).unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                tokio::join!(carry(near.0, far.1, delay), carry(far.0, near.1, delay));
            });
        }
    });
    address
}

async fn carry(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, delay: Duration) {
    let (sender, mut due) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let read = async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(len @ 1..) = from.read(&mut buffer).await {
            sender.send((Instant::now() + delay, buffer[..len].to_vec())).unwrap();
        }
    };
    let write = async move {
        while let Some((at, bytes)) = due.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
        drop(to.shutdown().await);
    };
    // The other direction ends by itself.
    tokio::join!(read, write);
}
