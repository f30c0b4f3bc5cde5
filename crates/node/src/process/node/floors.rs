//! The floors of a node that starts, from what it has on disk to what it answers. Each stands on
//! those before it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use meridian_config::{IdentityFolder, NodeConfig};
use meridian_consensus::{LogCache, RaftService, RaftTiming, StateTransfer};
use meridian_directory::Cluster;
use meridian_memory::{ByteBudget, Shares};
use meridian_net::{Listener, Mutual, capacity};
use meridian_storage::{Engine, HighWater, StorageError, Syncer};
use meridian_vault::Folder;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::background::encryption::Encryption;
use crate::background::parts::DutyParts;
use crate::background::{counters, maintenance};
use crate::changes::ChangeLogs;
use crate::cluster_view::certificates::OwnCertificate;
use crate::cluster_view::client::{Follower, LeaseRenewal};
use crate::cluster_view::directory_shard::DIRECTORY_GROUP;
use crate::cluster_view::store::incarnation;
use crate::cluster_view::view::{Directory, Known};
use crate::directory_group::leader::DirectoryVoter;
use crate::directory_group::member::{DirectoryPart, refuses_batches_of};
use crate::host::clock::BootClock;
use crate::host::clocks::Clocks;
use crate::host::disk::DiskGuard;
use crate::network::clients::ClientSecurity;
use crate::network::control::ControlRuntime;
use crate::network::members::look_up;
use crate::network::peers::{Dial, PeerChannels};
use crate::placement::parts::PlacementParts;
use crate::placement::reconciler::reconcile_all;
use crate::placement::report::Standing;
use crate::process::data_folder::unusable;
use crate::process::node::acquaintance::{acquaintance, open_disk};
use crate::process::settings::{
    configured_access, gateway_options, max_memory_bytes, peer_channels,
};
use crate::process::start_error::StartError;
use crate::read::execution::Reads;
use crate::replication::snapshot_transfer::StateExchange;
use crate::routing::cluster_nodes::ClusterNodes;
use crate::routing::router::Router;
use crate::routing::write_calls::WriteCalls;
use crate::rpc::admin::AdminService;
use crate::rpc::arriving::ArrivingRequests;
use crate::rpc::changes::ChangesService;
use crate::rpc::cluster_gate::{ClusterGate, PlainCalls};
use crate::rpc::directory::DirectoryService;
use crate::rpc::failover::{FailoverService, LogReads};
use crate::rpc::membership::MembershipService;
use crate::rpc::replication::ShippingService;
use crate::rpc::server::{Services, limits};
use crate::rpc::shard::ShardService;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;
use crate::watches::Watches;
use crate::webhooks::{SenderParts, Senders, Standings};
use crate::write::division::WriteBytes;

/// How long a gateway stays closed while the node applies again what it had not flushed.
const RECOVERY: Duration = Duration::from_secs(3);

/// Of the headroom, for the compression of streams of log: 14 at the least, where they come from or
/// where they go to.
const STREAMS_PART: usize = 8;

/// Of the headroom, for requests of gateways and operators that are not whole yet.
const ARRIVING_PART: usize = 4;

/// Of the headroom, for requests to webhooks.
const WEBHOOKS_PART: usize = 16;

/// The parts that the floors of a node share.
pub(super) struct Floors {
    pub(super) config: NodeConfig,
    data_dir: Folder,
    encryption: Arc<Encryption>,
    started: Instant,
    /// That the process may open.
    files: u64,
    shares: Shares,
    engine: Arc<dyn Engine>,
    pub(super) syncer: Arc<Syncer>,
    high_water: Arc<HighWater>,
    incarnation: Bytes,
    /// The cluster that the directory's first leader commits, and whether this node founds the
    /// directory's group with the others.
    first: Cluster,
    founds: bool,
    pub(super) control: ControlRuntime,
    peers: Arc<PeerChannels>,
    mutual: Arc<Mutual>,
    plain: Arc<PlainCalls>,
    pub(super) directory: Arc<Directory>,
    pub(super) directory_voter: Arc<RwLock<Option<Arc<DirectoryVoter>>>>,
    pub(super) shards: Arc<ShardTable>,
    exchange: Arc<StateExchange>,
    disk: Arc<DiskGuard>,
    clocks: Clocks,
    raft: RaftService,
    reads: Reads,
    watches: Arc<Watches>,
    standings: Arc<Standings>,
    clients: Arc<ClientSecurity>,
    changes: Arc<ChangeLogs>,
    streams: ByteBudget,
    writes: Arc<WriteCalls>,
    pub(super) stop: CancellationToken,
    pub(super) stop_rpc: CancellationToken,
    pub(super) tasks: Vec<JoinHandle<()>>,
}

impl Floors {
    /// Opens the data folder, or takes the engine that is given, with the cluster as the node knew
    /// it, or as its configuration has it.
    ///
    /// # Errors
    /// [`StartError`], naming the folder that cannot be used.
    pub(super) async fn open(
        mut config: NodeConfig,
        clients: Arc<ClientSecurity>,
        dial: Option<Dial>,
        engine: Option<Arc<dyn Engine>>,
    ) -> Result<Self, StartError> {
        let started = Instant::now();
        let files = capacity::raise_open_files();
        let node_id = config.node_id;
        let shares = Shares::of_node(max_memory_bytes(config.max_memory_mb));
        tracing::info!(?shares, "memory is divided, in bytes");
        let (data_dir, engine) = open_disk(&mut config, &shares, engine).await?;
        let stop = CancellationToken::new();
        let (mutual, first, remembered) = acquaintance(&config, &data_dir, &engine, &stop)?;
        let folder = |error: StorageError| unusable(&config, &error);
        let incarnation = incarnation(&engine).map_err(folder)?;
        let founds = remembered.is_none() && !config.join;
        let cluster = remembered.unwrap_or_else(|| first.clone());
        let control = control_threads()?;
        let handle = Some(control.handle().clone());
        let peers = peer_channels(&cluster, dial, &config.dial, handle, Arc::clone(&mutual))?;
        let directory = directory(&config, cluster)?;
        let syncer = Arc::new(Syncer::start(Arc::clone(&engine)).map_err(folder)?);
        let high_water = Arc::new(HighWater::open_in(&data_dir).map_err(folder)?);
        let shards = Arc::new(ShardTable::default());
        let exchange = Arc::new(StateExchange::new(Arc::clone(&shards), Arc::clone(&peers)));
        let transfer = Arc::clone(&exchange) as Arc<dyn StateTransfer>;
        let disk = Arc::new(DiskGuard::default());
        let (folder, stops) = (data_dir.clone(), stop.clone());
        let encryption = Arc::new(Encryption::new(folder, &engine, &high_water, &disk, stops));
        let guard = Arc::clone(&disk);
        let raft = RaftService::new(node_id, transfer, Arc::clone(&engine));
        let raft = raft.refusing_batches_while(move |group| refuses_batches_of(group, &guard));
        let known = Arc::clone(&directory);
        let raft =
            raft.refusing_others_than_voters(move |group, node| known.may_vote_in(group, node));
        let reads = Reads::new(ByteBudget::new("reads", shares.reads));
        let changes = Arc::new(ChangeLogs::new(Arc::clone(&directory)));
        let watches = Arc::new(Watches::new(Arc::clone(&directory), reads.clone()));
        Ok(Self {
            started,
            files,
            incarnation,
            first,
            founds,
            control,
            directory,
            directory_voter: Arc::new(RwLock::new(None)),
            syncer,
            high_water,
            shards,
            exchange,
            disk,
            clocks: Clocks::default(),
            raft,
            reads,
            watches,
            standings: Arc::default(),
            clients,
            changes,
            streams: ByteBudget::new("log streams", shares.headroom() / STREAMS_PART),
            writes: Arc::new(WriteCalls::new(Arc::clone(&peers))),
            stop,
            stop_rpc: CancellationToken::new(),
            tasks: Vec::new(),
            data_dir,
            encryption,
            config,
            shares,
            engine,
            peers,
            mutual,
            plain: Arc::default(),
        })
    }

    /// Answers other nodes, and operators.
    ///
    /// # Errors
    /// When a runtime cannot watch the listener.
    pub(super) fn answer_nodes(
        &self,
        listener: Listener,
    ) -> Result<Vec<JoinHandle<()>>, StartError> {
        let members = watch::Sender::default();
        let incoming = (limits(self.files), members.subscribe());
        tokio::spawn(look_up(self.directory.watch(), Known::rpc_addresses, members));
        let (mutual, control) = (Arc::clone(&self.mutual), self.control.handle());
        let served = self.services().start(listener, incoming, mutual, control, &self.stop_rpc);
        served.map_err(|error| StartError::Invalid(format!("the gRPC listener: {error}")))
    }

    fn services(&self) -> Services {
        let (shards, directory) = (&self.shards, &self.directory);
        Services {
            gate: ClusterGate {
                directory: Arc::clone(directory),
                mutual: Arc::clone(&self.mutual),
                plain: Arc::clone(&self.plain),
            },
            arriving: ArrivingRequests::new(ByteBudget::new(
                "arriving requests",
                self.shares.headroom() / ARRIVING_PART,
            )),
            raft: self.raft.clone(),
            shard: ShardService::new(
                Arc::clone(shards),
                Arc::clone(&self.writes),
                Arc::clone(&self.watches),
            ),
            changes: ChangesService::new(
                Arc::clone(shards),
                Arc::clone(&self.changes),
                self.reads.clone(),
            ),
            shipping: ShippingService {
                clocks: self.clocks.clone(),
                node_id: self.config.node_id,
                directory: Arc::clone(directory),
                shards: Arc::clone(shards),
                exchange: Arc::clone(&self.exchange),
                subscriptions: Arc::new(Mutex::default()),
                streams: self.streams.clone(),
            },
            admin: AdminService {
                node_id: self.config.node_id,
                node: self.config.node.clone(),
                shards: Arc::clone(shards),
                directory: Arc::clone(directory),
                data_dir: self.data_dir.clone(),
                encryption: Arc::clone(&self.encryption),
                started: self.started,
                clocks: self.clocks.clone(),
                disk: Arc::clone(&self.disk),
                webhooks: Arc::clone(&self.standings),
                clients: Arc::clone(&self.clients),
                mutual: Arc::clone(&self.mutual),
                identity_key: self.config.identity.as_ref().map(|files| files.key.clone()),
                plain: Arc::clone(&self.plain),
            },
            directory: DirectoryService {
                directory: Arc::clone(directory),
                voter: Arc::clone(&self.directory_voter),
            },
            membership: MembershipService::new(
                Arc::clone(directory),
                Arc::clone(&self.directory_voter),
            ),
            failover: FailoverService {
                log_reads: LogReads::default(),
                directory: Arc::clone(directory),
                shards: Arc::clone(shards),
                engine: Arc::clone(&self.engine),
                syncer: Arc::clone(&self.syncer),
                exchange: Arc::clone(&self.exchange),
            },
        }
    }

    /// The parts that every shard of the node works with.
    pub(super) fn placement(&self) -> Arc<PlacementParts> {
        let config = &self.config;
        Arc::new(PlacementParts {
            node_id: config.node_id,
            data_dir: self.data_dir.clone(),
            change_retention_bytes: config.storage.change_retention_mb << 20,
            engine: Arc::clone(&self.engine),
            syncer: Arc::clone(&self.syncer),
            high_water: Arc::clone(&self.high_water),
            directory: Arc::clone(&self.directory),
            peers: Arc::clone(&self.peers),
            transfer: Arc::clone(&self.exchange) as Arc<dyn StateTransfer>,
            raft: self.raft.clone(),
            shards: Arc::clone(&self.shards),
            disk: Arc::clone(&self.disk),
            clocks: self.clocks.clone(),
            writes: WriteBytes::new("writes that wait", self.shares.writes),
            log_cache: LogCache::new(self.shares.log_cache),
            reads: self.reads.clone(),
            streams: self.streams.clone(),
            timing: RaftTiming {
                heartbeat_ms: config.raft.heartbeat_ms,
                election_timeout_min_ms: config.raft.election_timeout_min_ms,
                election_timeout_max_ms: config.raft.election_timeout_max_ms,
            },
            examined: Mutex::default(),
            stop: self.stop.clone(),
        })
    }

    /// Votes in the directory's group, and takes the node's part in each shard.
    ///
    /// # Errors
    /// [`StartError::Shard`]: the directory's group cannot be opened.
    pub(super) async fn take_part(
        &mut self,
        placement: &Arc<PlacementParts>,
    ) -> Result<(), StartError> {
        let part = DirectoryPart {
            keepers: Arc::clone(placement),
            first: self.first.clone(),
            founds: self.founds,
            voter: Arc::clone(&self.directory_voter),
        };
        let control = self.control.handle();
        let taken = control.spawn(async move { part.take().await.map(|()| part) });
        let taken = taken.await.map_err(|stopped| StartError::Invalid(stopped.to_string()))?;
        let part =
            taken.map_err(|cause| StartError::Shard { shard: DIRECTORY_GROUP.shard, cause })?;
        self.tasks.push(control.spawn(part.keep()));
        self.tasks.push(tokio::spawn(reconcile_all(Arc::clone(placement))));
        Ok(())
    }

    /// Follows the cluster, and keeps the node's lease. Why the directory wants nothing of the node,
    /// once it has said so.
    pub(super) fn follow_the_cluster(
        &mut self,
        placement: Arc<PlacementParts>,
    ) -> watch::Receiver<Option<String>> {
        let (node, region) = (self.config.node_id, &self.config.node.region);
        let follower = Follower {
            directory: Arc::clone(&self.directory),
            peers: Arc::clone(&self.peers),
            region: region.clone(),
            node: Some(node),
        };
        self.tasks.push(tokio::spawn(follower.run(self.stop.clone())));
        let standing = Arc::new(Standing::new(placement));
        self.tasks.push(tokio::spawn(Arc::clone(&standing).keep_reading(self.stop.clone())));
        if self.config.own_identity || self.config.identity.is_none() {
            let voter = Arc::clone(&self.directory_voter);
            let certificate = OwnCertificate {
                folder: IdentityFolder::of(&self.config.data_dir),
                mutual: Arc::clone(&self.mutual),
                directory: Arc::clone(&self.directory),
                peers: Arc::clone(&self.peers),
                node: Some((node, self.incarnation.clone())),
                with_keys: Box::new(move || voter.read().as_ref()?.committed()),
            };
            self.tasks.push(tokio::spawn(certificate.run(self.stop.clone())));
        }
        let refused = watch::Sender::new(None);
        let refusals = refused.subscribe();
        let renewal = LeaseRenewal {
            node,
            region: region.clone(),
            incarnation: self.incarnation.clone(),
            directory: Arc::clone(&self.directory),
            peers: Arc::clone(&self.peers),
            report: Arc::new(move || standing.report()),
            refused,
            search: Mutex::default(),
        };
        self.tasks.push(self.control.handle().spawn(renewal.run(self.stop.clone())));
        refusals
    }

    /// Opens the gateway, once what was committed before is applied again: its eventual reads are
    /// not older than before a restart. Strong ones wait by themselves.
    pub(super) async fn answer_clients(&mut self, listener: Listener) -> Arc<Router> {
        drop(tokio::time::timeout(RECOVERY, recovered(&self.directory, &self.shards)).await);
        let (node, region) = (self.config.node_id, &self.config.node.region);
        let nodes = ClusterNodes {
            local: Arc::clone(&self.shards),
            local_node: Some(node),
            peers: Arc::clone(&self.peers),
            writes: Arc::clone(&self.writes),
            reads: self.reads.clone(),
            changes: Arc::clone(&self.changes),
            watches: Arc::clone(&self.watches),
        };
        let router = Arc::new(Router::new(
            nodes,
            BootClock,
            Some(node),
            region.clone(),
            Arc::clone(&self.directory),
            Duration::from_millis(self.config.gateway.request_deadline_ms),
        ));
        let clients = &self.clients;
        let options =
            gateway_options(&self.config.gateway, region, self.files, &self.shares, clients);
        let following = Arc::clone(clients).follow_files();
        let stopped = self.stop.clone();
        self.tasks.push(tokio::spawn(async move {
            stopped.run_until_cancelled(following).await;
        }));
        let stop = self.stop.clone();
        self.tasks.push(tokio::spawn(meridian_gateway::serve(
            listener,
            Arc::clone(&router),
            Arc::clone(&self.directory),
            options,
            async move { stop.cancelled().await },
        )));
        router
    }

    /// Sends messages to webhooks, of the shards that this node leads.
    pub(super) fn serve_webhooks(&mut self, router: &Arc<Router>) {
        let senders = Senders::new(SenderParts {
            router: Arc::clone(router),
            directory: Arc::clone(&self.directory),
            shards: Arc::clone(&self.shards),
            standings: Arc::clone(&self.standings),
            memory_bytes: self.shares.headroom() / WEBHOOKS_PART,
        });
        self.tasks.push(tokio::spawn(senders.run(self.stop.clone())));
    }

    /// Starts what the node does periodically.
    pub(super) fn look_after_it(&mut self) {
        counters::register();
        self.tasks.extend(self.encryption.start());
        self.tasks.extend(maintenance::start(&DutyParts {
            node_id: self.config.node_id,
            data_dir: self.data_dir.clone(),
            engine: Arc::clone(&self.engine),
            shards: Arc::clone(&self.shards),
            directory: Arc::clone(&self.directory),
            peers: Arc::clone(&self.peers),
            high_water: Arc::clone(&self.high_water),
            exchange: Arc::clone(&self.exchange),
            directory_voter: Arc::clone(&self.directory_voter),
            stop: self.stop.clone(),
            disk: Arc::clone(&self.disk),
            clocks: self.clocks.clone(),
            log_retention_bytes: self.config.storage.log_retention_mb << 20,
            change_retention_bytes: self.config.storage.change_retention_mb << 20,
        }));
    }
}

/// The directory as the node knows it at its start.
fn directory(config: &NodeConfig, cluster: Cluster) -> Result<Arc<Directory>, StartError> {
    let founder = (!config.join).then(|| (config.node_id, config.node.name.clone()));
    Ok(Arc::new(Directory::new(cluster, configured_access(&config.tokens)?, founder)))
}

fn control_threads() -> Result<ControlRuntime, StartError> {
    let failed = |error| StartError::Invalid(format!("cannot start threads: {error}"));
    ControlRuntime::start().map_err(failed)
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
