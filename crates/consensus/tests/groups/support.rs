use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use meridian_consensus::{
    Formed, Leadership, LogCache, Peers, RaftGroup, RaftGroupOptions, RaftService, RaftTiming,
    Role, StateTransfer,
};
use meridian_proto::{CallingNode, encode_batch};
use meridian_storage::{
    Engine, GroupId, HighWater, MemoryEngine, RaftApplied, RocksEngine, RocksOptions, ShardState,
    Syncer, WatchedEngine,
};
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, NodeId, Position, RequestId, ShardId,
    Value, ValueEncoding,
};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Status};

use crate::wire::{Wire, far_away};

pub(crate) const SHARD: ShardId = ShardId(7);
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) fn group(epoch: u16) -> GroupId {
    GroupId { shard: SHARD, epoch: Epoch(epoch) }
}

pub(crate) fn at(epoch: u16, sequence: u64) -> Position {
    Position::new(Epoch(epoch), sequence)
}

pub(crate) fn set(nodes: impl IntoIterator<Item = u64>) -> BTreeSet<NodeId> {
    nodes.into_iter().map(NodeId).collect()
}

/// Waits until `condition` holds, and says `what` did not if it never does.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < DEADLINE, "{what}: not within {DEADLINE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// One put. `text` tells histories apart that have the same positions.
pub(crate) fn batch(position: Position, text: &str) -> Batch {
    let key = Bytes::from(format!("key {}", position.sequence));
    let value =
        Value { encoding: ValueEncoding::Bytes, data: Bytes::copy_from_slice(text.as_bytes()) };
    let mut request_id = [0; 16];
    request_id[..8].copy_from_slice(&position.sequence.to_be_bytes());
    Batch {
        position,
        time_ms: position.sequence,
        transactions: vec![CommittedTransaction {
            request_id: RequestId(request_id),
            database: DatabaseId([1; 16]),
            effects: vec![Effect::Put { key, value, expire_at_ms: 0 }],
            refusal: None,
        }],
    }
}

/// Draws what a disk keeps; `MERIDIAN_CRASH_SEED` draws it again.
pub(crate) fn crash_seed() -> u64 {
    let given = std::env::var("MERIDIAN_CRASH_SEED").ok().and_then(|seed| seed.parse().ok());
    given.unwrap_or_else(|| {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap().subsec_nanos().into()
    })
}

/// A saved copy of a node's disk: its database and the file of high-water marks.
pub(crate) struct Image {
    disk: Disk,
    marks: Option<Vec<u8>>,
}

/// Where a node's database lies.
#[derive(Clone)]
enum Disk {
    Memory(Arc<MemoryEngine>),
    /// RocksDB, in this folder.
    Folder(Arc<tempfile::TempDir>),
}

impl Disk {
    fn open(&self) -> Arc<dyn Engine> {
        match self {
            Self::Memory(engine) => engine.clone(),
            Self::Folder(folder) => {
                Arc::new(RocksEngine::open(folder.path(), RocksOptions::default()).unwrap())
            }
        }
    }

    /// As it is right now, with a process that has it open or without.
    fn copy(&self) -> Self {
        match self {
            Self::Memory(engine) => Self::Memory(Arc::new(engine.crash_to_what_is_durable())),
            Self::Folder(folder) => {
                let copy = tempfile::tempdir().unwrap();
                for entry in std::fs::read_dir(folder.path()).unwrap() {
                    let entry = entry.unwrap();
                    std::fs::copy(entry.path(), copy.path().join(entry.file_name())).unwrap();
                }
                Self::Folder(Arc::new(copy))
            }
        }
    }
}

/// A node: what outlives its processes is its engine and the file of high-water marks.
pub(crate) struct Node {
    pub(crate) id: NodeId,
    disk: Disk,
    pub(crate) engine: Arc<dyn Engine>,
    /// The same, as the node uses it.
    pub(crate) watched: Arc<WatchedEngine>,
    pub(crate) state: Arc<ShardState>,
    pub(crate) marks: Arc<HighWater>,
    pub(crate) service: RaftService,
    pub(crate) timing: RaftTiming,
    /// The directory says that its folder is its first.
    pub(crate) is_vouched_for: bool,
    pub(crate) wire: Arc<Wire>,
    /// Where it is called.
    pub(crate) address: SocketAddr,
    /// Its disk has no room.
    pub(crate) full: Arc<AtomicBool>,
    syncer: Arc<Syncer>,
    folder: Arc<tempfile::TempDir>,
    server: JoinHandle<()>,
    distance: Duration,
    group: Option<RaftGroup>,
    taking_part: Option<JoinHandle<()>>,
}

/// The name of the metadata of a call with the node that it proves to come from.
pub(crate) const CALLER: &str = "caller";

#[allow(clippy::result_large_err, reason = "tonic's own error type")]
fn as_proved(mut request: Request<()>) -> Result<Request<()>, Status> {
    let caller =
        request.metadata().get(CALLER).and_then(|caller| caller.to_str().ok()?.parse().ok());
    if let Some(caller) = caller {
        request.extensions_mut().insert(CallingNode(NodeId(caller)));
    }
    Ok(request)
}

impl Node {
    pub(crate) async fn new(id: u64, wire: &Arc<Wire>) -> Self {
        Self::far(id, wire, Duration::ZERO).await
    }

    /// A node that answers a round trip of twice `distance` later.
    pub(crate) async fn far(id: u64, wire: &Arc<Wire>, distance: Duration) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::start(NodeId(id), wire, distance, Disk::Memory(Arc::default()), folder).await
    }

    /// A node on RocksDB.
    pub(crate) async fn on_disk(id: u64, wire: &Arc<Wire>) -> Self {
        let disk = Disk::Folder(Arc::new(tempfile::tempdir().unwrap()));
        let folder = Arc::new(tempfile::tempdir().unwrap());
        Self::start(NodeId(id), wire, Duration::ZERO, disk, folder).await
    }

    async fn start(
        id: NodeId,
        wire: &Arc<Wire>,
        distance: Duration,
        disk: Disk,
        folder: Arc<tempfile::TempDir>,
    ) -> Self {
        let watched = Arc::new(WatchedEngine::watching(disk.open()));
        let engine: Arc<dyn Engine> = watched.clone();
        let state = Arc::new(ShardState::open(Arc::clone(&engine), SHARD).unwrap());
        let syncer = Arc::new(Syncer::start(Arc::clone(&engine)).unwrap());
        let marks = Arc::new(HighWater::open(folder.path().join("high-water")).unwrap());
        let full = Arc::new(AtomicBool::new(false));
        let is_full = Arc::clone(&full);
        let service =
            RaftService::new(id, Arc::clone(wire) as Arc<dyn StateTransfer>, Arc::clone(&engine))
                .refusing_batches_while(move |_| is_full.load(Ordering::Relaxed));
        let known = Arc::clone(wire);
        let service = service.refusing_others_than_voters(move |_, _| known.names_them());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut address = listener.local_addr().unwrap();
        if !distance.is_zero() {
            address = far_away(address, distance).await;
        }
        wire.listens(id, address);
        let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
        let server = InterceptedService::new(service.clone().into_server(), as_proved);
        let router = tonic::transport::Server::builder().add_service(server);
        let server =
            tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
        let timing = RaftTiming {
            heartbeat_ms: 30,
            election_timeout_min_ms: 150,
            election_timeout_max_ms: 300,
        };
        let wire = Arc::clone(wire);
        let (group, taking_part) = (None, None);
        Self {
            id,
            disk,
            engine,
            watched,
            state,
            marks,
            service,
            timing,
            is_vouched_for: false,
            wire,
            address,
            full,
            syncer,
            folder,
            server,
            distance,
            group,
            taking_part,
        }
    }

    /// As a replica does, with batches of epoch 1 up to `sequence`, of the history `text`.
    pub(crate) fn replicate(&self, sequence: u64, text: &str) {
        for next in self.state.position().sequence + 1..=sequence {
            self.state.apply(&[batch(at(1, next), text).into()], RaftApplied::default()).unwrap();
        }
    }

    pub(crate) fn form(&self, epoch: u16, voters: &BTreeSet<NodeId>, base: Position) -> Formed {
        RaftGroup::form(&self.state, group(epoch), voters, base, Some(&self.marks)).unwrap()
    }

    pub(crate) fn options(&self, epoch: u16) -> RaftGroupOptions {
        RaftGroupOptions {
            node_id: self.id,
            group: group(epoch),
            state: Arc::clone(&self.state),
            syncer: Arc::clone(&self.syncer),
            high_water: Some(Arc::clone(&self.marks)),
            peers: Arc::clone(&self.wire) as Arc<dyn Peers>,
            transfer: Arc::clone(&self.wire) as Arc<dyn StateTransfer>,
            timing: self.timing,
            log_cache: LogCache::default(),
        }
    }

    /// Opens the group, serves it, and takes part.
    pub(crate) async fn open(&mut self, epoch: u16, voters: &BTreeSet<NodeId>) {
        let opened = RaftGroup::open(self.options(epoch)).await.unwrap();
        self.service.register(opened.clone());
        self.group = Some(opened.clone());
        let (voters, peers) = (voters.clone(), Arc::clone(&self.wire) as Arc<dyn Peers>);
        let vouched = self.is_vouched_for;
        let taking_part = tokio::spawn(async move {
            opened.take_part(&voters, &peers, vouched).await.unwrap();
            opened.announce(&voters, &peers).await.unwrap();
        });
        self.taking_part = Some(taking_part);
    }

    pub(crate) fn group(&self) -> &RaftGroup {
        self.group.as_ref().expect("it was opened")
    }

    pub(crate) async fn close(&mut self) -> RaftGroup {
        let closed = self.group.take().expect("it was opened");
        self.service.unregister(closed.id());
        if let Some(taking_part) = self.taking_part.take() {
            taking_part.abort();
        }
        closed.shutdown().await;
        closed
    }

    /// The engine in memory.
    pub(crate) fn memory(&self) -> &Arc<MemoryEngine> {
        match &self.disk {
            Disk::Memory(engine) => engine,
            Disk::Folder(_) => panic!("node {} is on RocksDB", self.id),
        }
    }

    /// Ends the process as a power loss does, and starts the next one on what the disk kept.
    pub(crate) async fn crash(&mut self) {
        let seed = crash_seed();
        eprintln!("node {} loses power: MERIDIAN_CRASH_SEED={seed}", self.id);
        self.crash_with(seed).await;
    }

    pub(crate) async fn crash_with(&mut self, seed: u64) {
        // From here on nothing that it writes is acknowledged.
        self.syncer.stop();
        if seed.is_multiple_of(2) {
            self.marks.persist().unwrap();
        }
        let disk = Disk::Memory(Arc::new(self.memory().crash(seed)));
        self.restart_on(disk).await;
    }

    /// As [`Node::crash_with`], while the disk stalls: what it was given since is lost, or not.
    pub(crate) async fn crash_while_its_disk_stalls(&mut self, seed: u64) {
        let disk = Disk::Memory(Arc::new(self.memory().crash(seed)));
        let group = self.group().clone();
        self.service.unregister(group.id());
        let ending = tokio::spawn(async move { group.shutdown().await });
        // Then nothing is acknowledged any more when the disk goes on.
        until("the process ends", async || role(self) == Role::Stopped).await;
        self.memory().release_syncs();
        ending.await.unwrap();
        self.restart_on(disk).await;
    }

    /// The folder is lost, and the next process starts with an empty one.
    pub(crate) async fn wipe(&mut self) {
        let lost = std::mem::replace(&mut self.folder, Arc::new(tempfile::tempdir().unwrap()));
        self.restart_on(Disk::Memory(Arc::default())).await;
        drop(lost);
    }

    /// The image that a copy of the folder, or a snapshot of the machine, would hold.
    pub(crate) fn image(&self) -> Image {
        let marks = self.folder.path().join("high-water");
        Image { disk: self.disk.copy(), marks: std::fs::read(marks).ok() }
    }

    /// The process ends, and the next one starts on what was put aside before.
    pub(crate) async fn roll_back(&mut self, image: Image) {
        let folder = tempfile::tempdir().unwrap();
        if let Some(marks) = image.marks {
            std::fs::write(folder.path().join("high-water"), marks).unwrap();
        }
        let lost = std::mem::replace(&mut self.folder, Arc::new(folder));
        self.restart_on(image.disk).await;
        drop(lost);
    }

    async fn restart_on(&mut self, disk: Disk) {
        if self.group.is_some() {
            self.close().await;
        }
        self.server.abort();
        let next =
            Self::start(self.id, &self.wire, self.distance, disk, Arc::clone(&self.folder)).await;
        *self = Self { timing: self.timing, is_vouched_for: self.is_vouched_for, ..next };
    }

    /// All rows but the row that says where Raft stands here.
    pub(crate) fn rows(&self) -> Vec<(Bytes, Bytes)> {
        let rows = self.state.snapshot().unwrap().rows(&[], usize::MAX).unwrap().rows;
        rows.into_iter().filter(|(key, _)| key != "mapplied").collect()
    }

    /// Writes one batch, if this node leads.
    pub(crate) async fn write(&self, text: &str) -> Result<u64, String> {
        let Leadership { term, .. } =
            self.group().leadership().map_err(|error| error.to_string())?;
        let epoch = self.group().id().epoch;
        let next = Position::new(epoch, self.state.position().sequence + 1);
        let bytes = encode_batch(&batch(next, text));
        let proposed = self.group().propose(bytes, next.sequence, term).await;
        proposed
            .map_err(|error| error.to_string())?
            .applied()
            .await
            .map_err(|error| error.to_string())?;
        Ok(next.sequence)
    }
}

/// Waits for a leader that has applied something of its term.
pub(crate) async fn leader(nodes: &[Node]) -> &Node {
    let mut found = None;
    until("a leader", async || {
        found = nodes.iter().position(|node| {
            node.group.as_ref().is_some_and(|group| {
                let term = group.leadership().ok().map(|leadership| leadership.term);
                term == Some(group.applied().borrow().term)
            })
        });
        found.is_some()
    })
    .await;
    &nodes[found.unwrap()]
}

/// Writes `count` batches on the leader.
pub(crate) async fn write(nodes: &[Node], count: u64, text: &str) -> u64 {
    let mut last = 0;
    for _ in 0..count {
        until("a write", async || match leader(nodes).await.write(text).await {
            Ok(sequence) => {
                last = sequence;
                true
            }
            Err(_) => false,
        })
        .await;
    }
    last
}

/// Waits until all have applied the batch at `position`, and are equal.
pub(crate) async fn equal(nodes: &[Node], position: Position) {
    until("all have applied the same", async || {
        nodes.iter().all(|node| {
            node.state.position() == position
                && node.group().applied().borrow().sequence == position.sequence
        })
    })
    .await;
    for node in nodes {
        assert_eq!(node.rows(), nodes[0].rows(), "node {} differs", node.id);
    }
}

pub(crate) fn role(node: &Node) -> Role {
    node.group().status().role
}
