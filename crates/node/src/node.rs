use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_consensus::{Peers, RaftGroup, RaftGroupOptions, RaftService, RaftTiming, StateTransfer};
use meridian_gateway::{Access, Database, Grant, NamedDatabase, Options, Read, StaticCatalogue};
use meridian_proto::admin::admin_server::AdminServer;
use meridian_storage::{
    Durability, Engine, GroupId, HighWater, RocksEngine, RocksOptions, ShardState, StorageError, Syncer, WriteBatch,
    schema,
};
use meridian_types::{Consistency, DatabaseId, NodeId, ReadRange, ShardId};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::TcpIncoming;

use crate::admin_service::AdminService;
use crate::config::{ConfigError, GatewaySettings, ListenPurpose, NodeConfig, TokenConfig};
use crate::directory::{Directory, StaticDirectory};
use crate::followers::Followers;
use crate::maintenance::{DiskGuard, Maintenance};
use crate::peers::PeerChannels;
use crate::replica::{Replica, ReplicaParts};
use crate::router::Router;
use crate::shard::{LocalShard, Voter};
use crate::shard_service::ShardService;
use crate::shipping_service::ShippingService;
use crate::state_exchange::StateExchange;
use crate::topology::Topology;

/// Where to dial a node, if not at the address that the topology gives: for emulated links.
pub type Dial = Arc<dyn Fn(NodeId) -> Option<String> + Send + Sync>;

/// How long a gateway stays closed while the node applies again what it had not flushed.
const RECOVERY: Duration = Duration::from_secs(3);

/// Where `meta` keeps whose data folder this is.
const NODE_KEY: &[u8] = b"node";

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

/// A running node.
pub struct Node {
    name: String,
    kv_address: SocketAddr,
    rpc_address: SocketAddr,
    stop: CancellationToken,
    stop_rpc: CancellationToken,
    groups: Vec<RaftGroup>,
    states: Vec<Arc<ShardState>>,
    syncer: Arc<Syncer>,
    router: Arc<Router>,
    databases: Vec<DatabaseId>,
    followers: Arc<HashMap<ShardId, Arc<Followers>>>,
    tasks: Vec<JoinHandle<()>>,
    rpc: JoinHandle<()>,
}

impl Node {
    /// Opens the data folder, joins the shards' groups and serves, on return.
    ///
    /// # Errors
    /// [`StartError`], naming the port, folder or shard that cannot be used.
    pub async fn start(config: NodeConfig, dial: Option<Dial>) -> Result<Self, StartError> {
        let started = Instant::now();
        let node_id = config.node.id;
        let rpc = listen(&config.listen.rpc, ListenPurpose::Rpc).await?;
        let kv = listen(&config.listen.kv, ListenPurpose::KvConnect).await?;
        let directory = static_directory(&config.topology, &config.tokens)?;
        let peers = peer_channels(&config.topology, dial)?;
        let engine = open_engine(&config).await?;
        let syncer = Arc::new(Syncer::start(Arc::clone(&engine)).map_err(|error| data_folder(&config, &error))?);
        let marks =
            HighWater::open(config.data_dir.join("high-water")).map_err(|error| data_folder(&config, &error))?;
        let high_water = Arc::new(marks);
        let mut states = HashMap::new();
        for shard in config.topology.shards.keys() {
            let state = ShardState::open(Arc::clone(&engine), *shard);
            states.insert(*shard, Arc::new(state.map_err(|cause| StartError::Shard { shard: *shard, cause })?));
        }
        let exchange = Arc::new(StateExchange::new(states.clone(), Arc::clone(&peers)));
        let transfer = Arc::clone(&exchange) as Arc<dyn StateTransfer>;
        let raft_service = RaftService::new(node_id, Arc::clone(&transfer), Arc::clone(&engine));
        let disk = Arc::new(DiskGuard::default());
        let (stop, stop_rpc) = (CancellationToken::new(), CancellationToken::new());
        let mut tasks = Vec::new();

        let mut shards = HashMap::new();
        let mut followers = HashMap::new();
        let mut groups = Vec::new();
        for (id, shard) in &config.topology.shards {
            let Some(state) = states.get(id) else { continue };
            let group = GroupId { shard: *id, epoch: shard.epoch };
            let others = config.topology.nodes.keys().copied().filter(|node| *node != node_id);
            followers.insert(*id, Followers::watch(state, others));
            let failed = |cause| StartError::Shard { shard: *id, cause };
            let local = if shard.voters.contains(&node_id) {
                let options = RaftGroupOptions {
                    node_id,
                    group,
                    state: Arc::clone(state),
                    syncer: Arc::clone(&syncer),
                    high_water: Some(Arc::clone(&high_water)),
                    peers: Arc::clone(&peers) as Arc<dyn Peers>,
                    transfer: Arc::clone(&transfer),
                    timing: RaftTiming {
                        heartbeat_ms: config.raft.heartbeat_ms,
                        election_timeout_min_ms: config.raft.election_timeout_min_ms,
                        election_timeout_max_ms: config.raft.election_timeout_max_ms,
                    },
                };
                let group = RaftGroup::open(options).await.map_err(failed)?;
                raft_service.register(group.clone());
                groups.push(group.clone());
                let refusal = Arc::clone(&disk);
                let refusal = Arc::new(move || refusal.refusal());
                let directory = Arc::clone(&directory) as Arc<dyn Directory>;
                LocalShard::Voter(Arc::new(Voter::start(group, directory, Arc::clone(&peers), refusal)))
            } else {
                let parts = ReplicaParts {
                    node_id,
                    group,
                    state: Arc::clone(state),
                    syncer: Arc::clone(&syncer),
                    directory: Arc::clone(&directory) as Arc<dyn Directory>,
                    peers: Arc::clone(&peers),
                    transfer: Arc::clone(&transfer),
                };
                LocalShard::Replica(Arc::new(Replica::start(parts).map_err(failed)?))
            };
            shards.insert(*id, local);
        }
        let shards = Arc::new(shards);
        let followers = Arc::new(followers);
        for group in &groups {
            tasks.push(tokio::spawn(watch_group(group.clone(), stop.clone())));
        }

        let rpc_address = local_address(&rpc)?;
        let shipping = ShippingService {
            node_id,
            shards: Arc::clone(&shards),
            followers: Arc::clone(&followers),
            directory: Arc::clone(&directory) as Arc<dyn Directory>,
            exchange: Arc::clone(&exchange),
            subscriptions: Arc::new(Mutex::default()),
        };
        let shard_service =
            ShardService { shards: Arc::clone(&shards), directory: Arc::clone(&directory) as Arc<dyn Directory> };
        let admin = AdminService {
            node: config.node.clone(),
            shards: Arc::clone(&shards),
            followers: Arc::clone(&followers),
            directory: Arc::clone(&directory) as Arc<dyn Directory>,
            started,
        };
        let server = tonic::transport::Server::builder()
            .http2_keepalive_interval(Some(Duration::from_secs(2)))
            .http2_keepalive_timeout(Some(Duration::from_secs(5)))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
            .max_concurrent_streams(8192)
            .add_service(raft_service.into_server())
            .add_service(shard_service.into_server())
            .add_service(shipping.into_server())
            .add_service(AdminServer::new(admin));
        // tonic sets this only on connections that it accepts from an address; without it each answer waits 40 ms.
        let incoming = TcpIncoming::from(rpc).with_nodelay(Some(true));
        let stopped = stop_rpc.clone();
        let rpc_server = tokio::spawn(async move {
            // Connections end with the process: streams of the log never end by themselves.
            tokio::select! {
                served = server.serve_with_incoming(incoming) => if let Err(error) = served {
                    tracing::error!(%error, "the gRPC server failed");
                },
                () = stopped.cancelled() => {}
            }
        });

        for group in &groups {
            let voters = config.topology.shards.get(&group.id().shard).map(|shard| shard.voters.clone());
            let (group, voters, peers) = (group.clone(), voters.unwrap_or_default(), Arc::clone(&peers));
            let stop = stop.clone();
            tasks.push(tokio::spawn(async move { take_part(group, voters, peers, stop).await }));
        }
        // Before the gateway opens, so that its eventual reads are not older than before a restart. Strong
        // ones wait by themselves.
        futures::future::join_all(groups.iter().map(|group| group.recovered(RECOVERY))).await;
        let router = Arc::new(Router::new(
            Arc::clone(&shards),
            Some(node_id),
            config.node.region.clone(),
            Arc::clone(&directory) as Arc<dyn Directory>,
            Arc::clone(&peers),
            Duration::from_millis(config.gateway.request_deadline_ms),
        ));
        let kv_address = local_address(&kv)?;
        let options = gateway_options(&config.gateway, &config.node.region);
        let gateway_stop = stop.clone();
        tasks.push(tokio::spawn(meridian_gateway::serve(
            kv,
            Arc::clone(&router),
            directory.clone(),
            options,
            async move {
                gateway_stop.cancelled().await;
            },
        )));

        let stop_followers = Arc::clone(&followers);
        let maintenance = Maintenance {
            node_id,
            data_dir: config.data_dir.clone(),
            shards,
            followers,
            directory,
            peers,
            high_water,
            exchange,
            disk,
            log_retention_bytes: config.storage.log_retention_mb << 20,
        };
        tasks.extend(maintenance.start(&stop));
        tracing::info!(node = %config.node.name, %kv_address, %rpc_address, "the node serves");
        let states = states.into_values().collect();
        Ok(Self {
            name: config.node.name,
            kv_address,
            rpc_address,
            stop,
            stop_rpc,
            groups,
            states,
            syncer,
            router,
            databases: config.topology.databases.keys().copied().collect(),
            followers: stop_followers,
            tasks,
            rpc: rpc_server,
        })
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
        for database in &self.databases {
            let ranges =
                vec![ReadRange { start: Bytes::new(), end: Bytes::from_static(&[0]), limit: 1, reverse: false }];
            let read = Read { database: *database, consistency: Consistency::Strong, ranges };
            let ready = self.router.read(read).await;
            ready.map_err(|unavailable| StartError::Invalid(format!("{}: {}", self.name, unavailable.reason)))?;
        }
        Ok(())
    }

    /// Hands over what it leads, finishes requests, and flushes. What is not finished by then is safe: it is
    /// in the log, or was never acknowledged.
    pub async fn stop(self) {
        self.hand_over().await;
        self.stop.cancel();
        for task in self.tasks {
            // A task that failed has said so.
            drop(task.await);
        }
        for group in &self.groups {
            group.shutdown().await;
        }
        self.stop_rpc.cancel();
        drop(self.rpc.await);
        let flushed = tokio::task::spawn_blocking(move || {
            self.syncer.stop();
            for state in &self.states {
                if let Err(error) = state.flush() {
                    tracing::warn!(%error, "state was not flushed; the next start applies it again");
                }
            }
        });
        drop(flushed.await);
        tracing::info!(node = %self.name, "the node has stopped");
    }

    /// To the voter that has most, so that clients wait for no election. If nobody takes over, one follows.
    async fn hand_over(&self) {
        for group in &self.groups {
            let Ok(leadership) = group.leadership() else { continue };
            let lags = self.followers.get(&group.id().shard).map(|followers| followers.lags()).unwrap_or_default();
            let heirs = lags.iter().filter(|follower| follower.may_lead);
            let Some(heir) = heirs.max_by_key(|heir| heir.durable) else { continue };
            if group.transfer_leadership(heir.node).await.is_ok() {
                let over = group.leadership_changed(Some(leadership.term));
                // Too late for anything else.
                drop(tokio::time::timeout(Duration::from_secs(1), over).await);
            }
        }
    }
}

/// A member that cannot tell whether it may vote must not go on: storage has failed.
async fn take_part(group: RaftGroup, voters: BTreeSet<NodeId>, peers: Arc<PeerChannels>, stop: CancellationToken) {
    let peers = peers as Arc<dyn Peers>;
    tokio::select! {
        () = stop.cancelled() => {}
        taken = group.take_part(&voters, &peers) => if let Err(error) = taken {
            meridian_storage::fatal(&error);
        },
    }
}

/// A group that stopped by itself met a storage error: the process must not go on half alive.
async fn watch_group(group: RaftGroup, stop: CancellationToken) {
    tokio::select! {
        () = stop.cancelled() => {}
        reason = group.stopped() => {
            if !stop.is_cancelled() {
                meridian_storage::fatal(&StorageError::Refused(format!("raft of {} stopped: {reason}", group.id())));
            }
        }
    }
}

async fn open_engine(config: &NodeConfig) -> Result<Arc<dyn Engine>, StartError> {
    let path = config.data_dir.join("db");
    let options = RocksOptions {
        block_cache_bytes: usize::try_from(config.storage.block_cache_mb << 20).unwrap_or(usize::MAX),
        write_buffer_bytes: usize::try_from(config.storage.write_buffer_mb << 20).unwrap_or(usize::MAX),
    };
    let node_id = config.node.id;
    let opened = tokio::task::spawn_blocking(move || open_owned(&path, options, node_id)).await;
    match opened {
        Ok(Ok(engine)) => Ok(engine),
        Ok(Err(error)) => Err(data_folder(config, &error)),
        Err(error) => Err(data_folder(config, &StorageError::Refused(error.to_string()))),
    }
}

/// Opens the database and makes sure that it is this node's.
fn open_owned(path: &Path, options: RocksOptions, node_id: NodeId) -> Result<Arc<dyn Engine>, StorageError> {
    let file = |source| StorageError::File { path: path.display().to_string(), source };
    std::fs::create_dir_all(path).map_err(file)?;
    let engine: Arc<dyn Engine> = Arc::new(RocksEngine::open(path, options)?);
    match engine.get(schema::META_FAMILY, NODE_KEY)? {
        None => {
            let mut writes = WriteBatch::default();
            writes.put(&schema::META_FAMILY.into(), NODE_KEY.to_vec(), node_id.to_be_bytes().to_vec());
            engine.write(writes, Durability::Logged)?;
            engine.sync()?;
        }
        Some(owner) if owner.as_ref() == node_id.to_be_bytes() => {}
        Some(owner) => {
            let owner = owner.as_ref().try_into().map_or(0, u64::from_be_bytes);
            return Err(StorageError::Refused(format!("it belongs to node {owner}, this is node {node_id}")));
        }
    }
    Ok(engine)
}

fn data_folder(config: &NodeConfig, error: &StorageError) -> StartError {
    StartError::DataFolder { path: config.data_dir.display().to_string(), cause: error.to_string() }
}

pub(crate) async fn listen(address: &str, purpose: ListenPurpose) -> Result<TcpListener, StartError> {
    let bound = TcpListener::bind(address).await;
    bound.map_err(|cause| ConfigError::Listen { address: address.to_owned(), purpose, cause }.into())
}

fn local_address(listener: &TcpListener) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Invalid(error.to_string()))
}

pub(crate) fn peer_channels(topology: &Topology, dial: Option<Dial>) -> Result<Arc<PeerChannels>, StartError> {
    let dial = dial.unwrap_or_else(|| Arc::new(|_| None));
    let channels = PeerChannels::new(topology, |node| dial(node));
    let invalid = |node| StartError::Invalid(format!("the address of node {node} cannot be dialled"));
    Ok(Arc::new(channels.map_err(invalid)?))
}

pub(crate) fn static_directory(
    topology: &Topology,
    tokens: &[TokenConfig],
) -> Result<Arc<StaticDirectory>, StartError> {
    let invalid = |error: &dyn std::fmt::Display| StartError::Invalid(error.to_string());
    let grants = tokens.iter().map(|token| (token.secret.sha256(), Grant::new(token.databases.clone(), token.write)));
    let access = Access::from_digests(grants).map_err(|error| invalid(&error))?;
    let databases = topology.databases.values();
    let databases = databases.map(|database| NamedDatabase { id: database.id, name: database.name.clone() });
    let catalogue = StaticCatalogue::new(databases, topology.default_database, access);
    let catalogue = catalogue.map_err(|error| invalid(&error))?;
    Ok(Arc::new(StaticDirectory::new(topology.clone(), catalogue)))
}

pub(crate) fn gateway_options(settings: &GatewaySettings, region: &str) -> Options {
    Options {
        public_url: settings.public_url.clone(),
        region: region.to_owned(),
        max_connections: settings.max_connections,
        ..Options::default()
    }
}
