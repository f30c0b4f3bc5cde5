use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_config::{ConfigError, GatewaySettings, ListenPurpose, NodeConfig, TokenConfig};
use meridian_consensus::{LogCache, RaftService, RaftTiming, StateTransfer};
use meridian_directory::Cluster;
use meridian_gateway::{Access, Database, Grant, Options, Read};
use meridian_memory::{ByteBudget, Shares, default_max_bytes};
use meridian_proto::admin::admin_server::AdminServer;
use meridian_proto::directory::directory_server::DirectoryServer;
use meridian_storage::{
    Durability, Engine, HighWater, RocksEngine, RocksOptions, StorageError, Syncer, WriteBatch,
    schema,
};
use meridian_types::{Consistency, DatabaseId, NodeId, ReadRange, ShardId};
use parking_lot::{Mutex, RwLock};
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::background::maintenance;
use crate::background::parts::DutyParts;
use crate::cluster_view::bootstrap::DIRECTORY_GROUP;
use crate::cluster_view::client::{Follower, LeaseRenewal};
use crate::cluster_view::store::{incarnation, load_cluster};
use crate::cluster_view::view::{Directory, Known};
use crate::directory_group::leader::DirectoryVoter;
use crate::directory_group::member::{DirectoryPart, refuses_batches_of};
use crate::host::clock::BootClock;
use crate::host::clocks::Clocks;
use crate::host::disk::{self, DiskGuard};
use crate::host::open_files;
use crate::host::ports;
use crate::network::control::{Connections, ControlRuntime, adopt, divide};
use crate::network::incoming::{Members, Room, incoming, look_up};
use crate::network::peers::{Dial, MAX_MESSAGE_BYTES, PeerChannels};
use crate::placement::parts::PlacementParts;
use crate::placement::reconciler::reconcile_all;
use crate::placement::report::Standing;
use crate::read::execution::Reads;
use crate::replication::snapshot_transfer::StateExchange;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::router::Router;
use crate::routing::write_calls::WriteCalls;
use crate::rpc::admin::AdminService;
use crate::rpc::cluster_gate::ClusterGate;
use crate::rpc::directory::DirectoryService;
use crate::rpc::failover::FailoverService;
use crate::rpc::replication::ShippingService;
use crate::rpc::shard::ShardService;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;

/// How long a gateway stays closed while the node applies again what it had not flushed.
const RECOVERY: Duration = Duration::from_secs(3);

/// Of the headroom, for the compression of streams of log: 14 at the least, where they come from or
/// where they go to.
const STREAMS_PART: usize = 8;

/// Why a node or a gateway does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("cannot use the data folder {path}: {cause}")]
    DataFolder { path: String, cause: String },
    #[error("shard {shard}: {cause}")]
    Shard { shard: ShardId, cause: StorageError },
    #[error("{0}")]
    Invalid(String),
}

/// gRPC connections, as far as the process may open files. Another node opens a handful; in
/// `meridian dev` all come from one address.
const RPC_CONNECTIONS: usize = 1024;
/// Of each other node, whoever has taken the rest: more than it opens, with gateways on its
/// machine.
const RPC_CONNECTIONS_OF_A_NODE: usize = 32;

/// A running node.
pub struct Node {
    node_id: NodeId,
    name: String,
    kv_address: SocketAddr,
    rpc_address: SocketAddr,
    stop: CancellationToken,
    stop_rpc: CancellationToken,
    shards: Arc<ShardTable>,
    directory: Arc<Directory>,
    directory_voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
    refused: watch::Receiver<Option<String>>,
    syncer: Arc<Syncer>,
    router: Arc<Router>,
    tasks: Vec<JoinHandle<()>>,
    rpc: Vec<JoinHandle<()>>,
    control: ControlRuntime,
}

impl Node {
    /// Opens the data folder, joins the cluster and serves, on return.
    ///
    /// # Errors
    /// [`StartError`], naming the port, folder or shard that cannot be used.
    pub async fn start(config: NodeConfig, dial: Option<Dial>) -> Result<Self, StartError> {
        let started = Instant::now();
        let files = open_files::raise();
        let node_id = config.node_id;
        let rpc = listen(&config.listen.rpc, ListenPurpose::Rpc).await?;
        let kv = listen(&config.listen.kv, ListenPurpose::KvConnect).await?;
        let shares = Shares::of_node(max_memory_bytes(config.max_memory_mb));
        tracing::info!(?shares, "memory is divided, in bytes");
        let engine = open_engine(&config, &shares).await?;
        let folder = |error: StorageError| data_folder(&config, &error);
        let first = config.founded_cluster();
        let remembered = load_cluster(&engine).map_err(folder)?;
        let incarnation = incarnation(&engine).map_err(folder)?;
        let founds = remembered.is_none() && !config.join;
        let cluster = remembered.unwrap_or_else(|| first.clone());
        let control = ControlRuntime::start()
            .map_err(|error| StartError::Invalid(format!("cannot start threads: {error}")))?;
        let peers = peer_channels(&cluster, dial, &config.dial, Some(control.handle().clone()))?;
        let founder = (!config.join).then(|| (node_id, config.node.name.clone()));
        let directory =
            Arc::new(Directory::new(cluster, configured_access(&config.tokens)?, founder));
        let syncer = Arc::new(Syncer::start(Arc::clone(&engine)).map_err(folder)?);
        let high_water =
            Arc::new(HighWater::open(config.data_dir.join("high-water")).map_err(folder)?);
        let shards = Arc::new(ShardTable::default());
        let exchange = Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&peers)));
        let transfer = Arc::clone(&exchange) as Arc<dyn StateTransfer>;
        let disk = Arc::new(DiskGuard::default());
        let guard = Arc::clone(&disk);
        let raft = RaftService::new(node_id, Arc::clone(&transfer), Arc::clone(&engine))
            .refusing_batches_while(move |group| refuses_batches_of(group, &guard));
        let (stop, stop_rpc) = (CancellationToken::new(), CancellationToken::new());
        let clocks = Clocks::default();
        let reads = Reads::new(ByteBudget::new("reads", shares.reads));
        let streams = ByteBudget::new("log streams", shares.headroom() / STREAMS_PART);
        let keepers = Arc::new(PlacementParts {
            node_id,
            data_dir: config.data_dir.clone(),
            engine: Arc::clone(&engine),
            syncer: Arc::clone(&syncer),
            high_water: Arc::clone(&high_water),
            directory: Arc::clone(&directory),
            peers: Arc::clone(&peers),
            transfer,
            raft: raft.clone(),
            shards: Arc::clone(&shards),
            disk: Arc::clone(&disk),
            clocks: clocks.clone(),
            writes: ByteBudget::new("writes that wait", shares.writes),
            log_cache: LogCache::new(shares.log_cache),
            reads: reads.clone(),
            streams: streams.clone(),
            timing: RaftTiming {
                heartbeat_ms: config.raft.heartbeat_ms,
                election_timeout_min_ms: config.raft.election_timeout_min_ms,
                election_timeout_max_ms: config.raft.election_timeout_max_ms,
            },
            examined: Mutex::default(),
            stop: stop.clone(),
        });
        let mut tasks = Vec::new();

        let rpc_address = local_address(&rpc)?;
        let directory_voter = Arc::new(RwLock::new(None));
        let writes = Arc::new(WriteCalls::new(Arc::clone(&peers)));
        let services = Services {
            gate: ClusterGate { directory: Arc::clone(&directory) },
            raft,
            shard: ShardService {
                shards: Arc::clone(&shards),
                writes: Arc::clone(&writes),
                turns: Arc::default(),
            },
            shipping: ShippingService {
                clocks: clocks.clone(),
                node_id,
                directory: Arc::clone(&directory),
                shards: Arc::clone(&shards),
                exchange: Arc::clone(&exchange),
                subscriptions: Arc::new(Mutex::default()),
                streams,
            },
            admin: AdminService {
                node_id,
                node: config.node.clone(),
                shards: Arc::clone(&shards),
                directory: Arc::clone(&directory),
                data_dir: config.data_dir.clone(),
                started,
                clocks: clocks.clone(),
                disk: Arc::clone(&disk),
            },
            directory: DirectoryService {
                directory: Arc::clone(&directory),
                voter: Arc::clone(&directory_voter),
            },
            failover: FailoverService {
                directory: Arc::clone(&directory),
                shards: Arc::clone(&shards),
                engine: Arc::clone(&engine),
                syncer: Arc::clone(&syncer),
                exchange: Arc::clone(&exchange),
            },
        };
        let members = watch::Sender::default();
        let incoming = (room(files), members.subscribe());
        tokio::spawn(look_up(directory.watch(), Known::rpc_addresses, members));
        let rpc_server = services.start(rpc, incoming, control.handle(), &stop_rpc)?;

        let part = DirectoryPart {
            keepers: Arc::clone(&keepers),
            first,
            founds,
            voter: Arc::clone(&directory_voter),
        };
        let taken = control.handle().spawn(async move { part.take().await.map(|()| part) });
        let taken = taken.await.map_err(|stopped| StartError::Invalid(stopped.to_string()))?;
        let part =
            taken.map_err(|cause| StartError::Shard { shard: DIRECTORY_GROUP.shard, cause })?;
        tasks.push(control.handle().spawn(part.keep()));
        tasks.push(tokio::spawn(reconcile_all(Arc::clone(&keepers))));
        let follower = Follower {
            directory: Arc::clone(&directory),
            peers: Arc::clone(&peers),
            region: config.node.region.clone(),
            node: Some(node_id),
        };
        tasks.push(tokio::spawn(follower.run(stop.clone())));
        let standing = Arc::new(Standing::new(keepers));
        tasks.push(tokio::spawn(Arc::clone(&standing).keep_reading(stop.clone())));
        let refused = watch::Sender::new(None);
        let refusals = refused.subscribe();
        let renewal = LeaseRenewal {
            node: node_id,
            region: config.node.region.clone(),
            incarnation,
            directory: Arc::clone(&directory),
            peers: Arc::clone(&peers),
            report: Arc::new(move || standing.report()),
            refused,
            leader: Mutex::default(),
        };
        tasks.push(control.handle().spawn(renewal.run(stop.clone())));

        // Before the gateway opens, so that its eventual reads are not older than before a restart.
        // Strong ones wait by themselves.
        drop(tokio::time::timeout(RECOVERY, recovered(&directory, &shards)).await);
        let nodes = ClusterNodes {
            local: Arc::clone(&shards),
            local_node: Some(node_id),
            peers: Arc::clone(&peers),
            writes,
            reads,
        };
        let router = Arc::new(Router::new(
            nodes,
            BootClock,
            Some(node_id),
            config.node.region.clone(),
            Arc::clone(&directory),
            Duration::from_millis(config.gateway.request_deadline_ms),
        ));
        let kv_address = local_address(&kv)?;
        let options = gateway_options(&config.gateway, &config.node.region, files, &shares);
        let gateway_stop = stop.clone();
        tasks.push(tokio::spawn(meridian_gateway::serve(
            kv,
            Arc::clone(&router),
            Arc::clone(&directory),
            options,
            async move {
                gateway_stop.cancelled().await;
            },
        )));

        let duties = DutyParts {
            node_id,
            data_dir: config.data_dir.clone(),
            engine: Arc::clone(&engine),
            shards: Arc::clone(&shards),
            directory: Arc::clone(&directory),
            peers,
            high_water,
            exchange,
            directory_voter: Arc::clone(&directory_voter),
            stop: stop.clone(),
            disk,
            clocks,
            log_retention_bytes: config.storage.log_retention_mb << 20,
        };
        crate::background::counters::register();
        tasks.extend(maintenance::start(&duties));
        tracing::info!(node = %config.node.name, %kv_address, %rpc_address, "the node serves");
        Ok(Self {
            node_id,
            name: config.node.name,
            kv_address,
            rpc_address,
            stop,
            stop_rpc,
            shards,
            directory,
            directory_voter,
            refused: refusals,
            syncer,
            router,
            tasks,
            rpc: rpc_server,
            control,
        })
    }

    /// Waits until the directory says that it wants nothing of this node, and says why.
    pub async fn refused(&self) -> String {
        let mut refused = self.refused.clone();
        match refused.wait_for(Option::is_some).await.map(|reason| reason.clone()) {
            Ok(Some(reason)) => reason,
            // The node is stopping.
            _ => std::future::pending().await,
        }
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its gateway listens.
    pub fn kv_address(&self) -> SocketAddr {
        self.kv_address
    }

    pub fn rpc_address(&self) -> SocketAddr {
        self.rpc_address
    }

    /// Waits until a strong read of every database works from here.
    ///
    /// # Errors
    /// When that takes longer than a request may.
    pub async fn ready(&self) -> Result<(), StartError> {
        let databases: Vec<DatabaseId> =
            self.directory.known().cluster.databases.keys().copied().collect();
        for database in databases {
            let ranges = vec![ReadRange {
                start: Bytes::new(),
                end: Bytes::from_static(&[0]),
                limit: 1,
                reverse: false,
            }];
            let read = Read { database, consistency: Consistency::Strong, ranges };
            let ready = self.router.read(read).await;
            ready.map_err(|unavailable| {
                StartError::Invalid(format!("{}: {}", self.name, unavailable.reason))
            })?;
        }
        Ok(())
    }

    /// Hands over what it leads, finishes requests, and flushes. What is not finished by then is
    /// safe: it is in the log, or was never acknowledged.
    pub async fn stop(self) {
        self.hand_over().await;
        self.stop.cancel();
        for task in self.tasks {
            // A task that failed has said so.
            drop(task.await);
        }
        for (_, shard) in self.shards.all() {
            match shard {
                LocalShard::Voter(voter) => voter.retire().await,
                LocalShard::Replica(replica) => replica.stop().await,
            }
        }
        let directory = self.directory_voter.write().take();
        if let Some(directory) = directory {
            directory.voter.retire().await;
        }
        self.stop_rpc.cancel();
        for server in self.rpc {
            drop(server.await);
        }
        self.control.stop().await;
        let states = self.shards.states();
        let flushed = tokio::task::spawn_blocking(move || {
            self.syncer.stop();
            for state in states {
                if let Err(error) = state.flush() {
                    tracing::warn!(%error, "state was not flushed; the next start applies it again");
                }
            }
        });
        drop(flushed.await);
        tracing::info!(node = %self.name, "the node has stopped");
    }

    /// To the voter that has most, so that clients wait for no election. If nobody takes over, one
    /// follows.
    async fn hand_over(&self) {
        let directory = self
            .directory_voter
            .read()
            .clone()
            .filter(|directory| directory.voter.group.leadership().is_ok());
        if let Some(directory) = directory {
            // Whoever else votes: none of them is known to be behind.
            let heir =
                directory.voter.group.voters().into_iter().find(|voter| *voter != self.node_id);
            hand_over_to(&directory.voter, heir).await;
        }
        for (id, shard) in self.shards.all() {
            let LocalShard::Voter(voter) = shard else { continue };
            hand_over_to(&voter, self.shards.followers(&id).and_then(|followers| followers.heir()))
                .await;
        }
    }
}

async fn hand_over_to(voter: &Voter, heir: Option<NodeId>) {
    let (Ok(leadership), Some(heir)) = (voter.group.leadership(), heir) else { return };
    if voter.group.transfer_leadership(heir).await.is_ok() {
        let over = voter.group.leadership_changed(Some(leadership.term));
        // Too late for anything else.
        drop(tokio::time::timeout(Duration::from_secs(1), over).await);
    }
}

fn room(files: u64) -> Room {
    let in_all = open_files::rpc_connections(RPC_CONNECTIONS, files);
    Room { in_all, of_one_address: in_all.div_ceil(2), of_a_node: RPC_CONNECTIONS_OF_A_NODE }
}

/// The gRPC faces of a node.
#[derive(Clone)]
struct Services {
    gate: ClusterGate,
    raft: RaftService,
    shard: ShardService,
    shipping: ShippingService,
    admin: AdminService,
    directory: DirectoryService,
    failover: FailoverService,
}

impl Services {
    /// Serves connections of control on their own runtime, and all others on this one.
    fn start(
        self,
        listener: TcpListener,
        (room, members): (Room, Members),
        control: &Handle,
        stop: &CancellationToken,
    ) -> Result<Vec<JoinHandle<()>>, StartError> {
        let unusable =
            |error: std::io::Error| StartError::Invalid(format!("the gRPC listener: {error}"));
        let listener = listener.into_std().map_err(unusable)?;
        let (of_control, others) = {
            let _there = control.enter();
            divide(incoming(TcpListener::from_std(listener).map_err(unusable)?, room, members))
        };
        Ok(vec![
            control.spawn(self.clone().serve(of_control, stop.clone())),
            tokio::spawn(self.serve(adopt(others), stop.clone())),
        ])
    }

    async fn serve(self, connections: Connections, stop: CancellationToken) {
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(2)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .max_concurrent_streams(8192)
            // Callers give up calls as a matter of course: a hedge that lost, a client that left.
            .http2_max_pending_accept_reset_streams(Some(8192))
            .layer(self.gate)
            .add_service(self.raft.into_server())
            .add_service(self.shard.into_server())
            .add_service(self.shipping.into_server())
            .add_service(AdminServer::new(self.admin))
            .add_service(
                DirectoryServer::new(self.directory).max_decoding_message_size(MAX_MESSAGE_BYTES),
            )
            .add_service(self.failover.into_server());
        // Connections end with the process: streams of the log never end by themselves.
        tokio::select! {
            served = server.serve_with_incoming(connections) => if let Err(error) = served {
                tracing::error!(%error, "the gRPC server failed");
            },
            () = stop.cancelled() => {}
        }
    }
}

/// Waits until every shard that is known has its part here, and what was committed before is
/// applied again.
async fn recovered(directory: &Directory, shards: &ShardTable) {
    loop {
        let known = directory.known();
        let expected = known.cluster.shards.len();
        let present = shards.all();
        if known.cluster.version > 0 && present.len() >= expected {
            let voters = present.iter().filter_map(|(_, shard)| match shard {
                LocalShard::Voter(voter) => Some(voter.group.recovered(RECOVERY)),
                LocalShard::Replica(_) => None,
            });
            futures::future::join_all(voters).await;
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// What a process may take that was told so much, or nothing.
pub(crate) fn max_memory_bytes(max_memory_mb: Option<u64>) -> usize {
    let told = max_memory_mb.map(|mb| usize::try_from(mb << 20).unwrap_or(usize::MAX));
    told.unwrap_or_else(default_max_bytes)
}

async fn open_engine(config: &NodeConfig, shares: &Shares) -> Result<Arc<dyn Engine>, StartError> {
    let path = config.data_dir.join("db");
    let options =
        RocksOptions { block_cache_bytes: shares.block_cache, memtable_bytes: shares.memtables };
    let node_id = config.node_id;
    let opened = tokio::task::spawn_blocking(move || open_owned(&path, options, node_id)).await;
    match opened {
        Ok(Ok(engine)) => Ok(engine),
        Ok(Err(error)) => Err(data_folder(config, &error)),
        Err(error) => Err(data_folder(config, &StorageError::cancelled(error))),
    }
}

/// Opens the database and makes sure that it is this node's.
fn open_owned(
    path: &Path,
    options: RocksOptions,
    node_id: NodeId,
) -> Result<Arc<dyn Engine>, StorageError> {
    let file = |source| StorageError::File { path: path.display().to_string(), source };
    std::fs::create_dir_all(path).map_err(file)?;
    if let Some(folder) = path.parent() {
        // Nobody else reads what clients stored, also in a folder of before.
        std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)).map_err(file)?;
        disk::make_room(folder);
    }
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(path, options)?);
    match engine.get(schema::META_FAMILY, schema::NODE_KEY)? {
        None => {
            let mut writes = WriteBatch::default();
            writes.put(
                &schema::META_FAMILY.into(),
                schema::NODE_KEY.to_vec(),
                node_id.to_be_bytes().to_vec(),
            );
            engine.write(writes, Durability::Logged)?;
            engine.sync()?;
        }
        Some(owner) if owner.as_ref() == node_id.to_be_bytes() => {}
        Some(owner) => {
            let owner = owner.as_ref().try_into().map_or(0, u64::from_be_bytes);
            return Err(StorageError::WrongOwner { owner, node: node_id });
        }
    }
    Ok(engine)
}

fn data_folder(config: &NodeConfig, error: &StorageError) -> StartError {
    StartError::DataFolder { path: config.data_dir.display().to_string(), cause: error.to_string() }
}

pub(crate) async fn listen(
    address: &str,
    purpose: ListenPurpose,
) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|cause| {
        let cause = ports::explain(cause, address);
        ConfigError::Listen { address: address.to_owned(), purpose, cause }.into()
    })
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Invalid(error.to_string()))
}

/// `dial` goes before what the configuration says.
pub(crate) fn peer_channels(
    cluster: &Cluster,
    dial: Option<Dial>,
    configured: &BTreeMap<NodeId, String>,
    control: Option<Handle>,
) -> Result<Arc<PeerChannels>, StartError> {
    let configured = configured.clone();
    let dial: Dial = match dial {
        Some(dial) => Arc::new(move |node| dial(node).or_else(|| configured.get(&node).cloned())),
        None => Arc::new(move |node| configured.get(&node).cloned()),
    };
    let invalid =
        |node| StartError::Invalid(format!("the address of node {node} cannot be dialled"));
    Ok(Arc::new(PeerChannels::with_control(cluster, dial, control).map_err(invalid)?))
}

/// What the tokens of a configuration open.
pub(crate) fn configured_access(tokens: &[TokenConfig]) -> Result<Access, StartError> {
    let grants = tokens
        .iter()
        .map(|token| (token.secret.sha256(), Grant::new(token.databases.clone(), token.write)));
    Access::from_digests(grants).map_err(|error| StartError::Invalid(error.to_string()))
}

pub(crate) fn gateway_options(
    settings: &GatewaySettings,
    region: &str,
    files: u64,
    shares: &Shares,
) -> Options {
    Options {
        public_url: settings.public_url.clone(),
        region: region.to_owned(),
        max_connections: open_files::connections(
            open_files::within_memory(settings.max_connections, shares),
            files,
        ),
        max_bodies_bytes: shares.bodies as u64,
        max_answers_bytes: shares.answers as u64,
        ..Options::default()
    }
}
