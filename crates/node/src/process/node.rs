//! A running node: how it starts, one floor after the other, and how it stops.

mod acquaintance;
mod floors;

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use meridian_config::{ListenPurpose, NodeConfig};
use meridian_gateway::{Database, Read};
use meridian_storage::{Engine, Syncer};
use meridian_types::{Consistency, DatabaseId, NodeId, ReadRange};
use parking_lot::RwLock;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::cluster_view::view::Directory;
use crate::directory_group::leader::DirectoryVoter;
use crate::network::control::ControlRuntime;
use crate::network::peers::Dial;
use crate::process::hand_over::hand_over;
use crate::process::settings::{client_security, listen, local_address};
use crate::process::start_error::StartError;
use crate::routing::router::Router;
use crate::shard::local::LocalShard;
use crate::shard::table::ShardTable;

use floors::Floors;

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
        Self::start_with(config, dial, None).await
    }

    /// As [`Node::start`], with an engine in place of the database in the data folder, which has to
    /// be there: for simulations.
    ///
    /// # Errors
    /// As [`Node::start`].
    pub async fn start_on(engine: Arc<dyn Engine>, config: NodeConfig) -> Result<Self, StartError> {
        Self::start_with(config, None, Some(engine)).await
    }

    async fn start_with(
        config: NodeConfig,
        dial: Option<Dial>,
        engine: Option<Arc<dyn Engine>>,
    ) -> Result<Self, StartError> {
        let rpc = listen(&config.listen.rpc, ListenPurpose::Rpc).await?;
        let kv = listen(&config.listen.kv, ListenPurpose::KvConnect).await?;
        let (rpc_address, kv_address) = (local_address(&rpc)?, local_address(&kv)?);
        let clients = client_security(&config.gateway, kv_address, &config.node.name)?;
        let mut floors = Floors::open(config, clients, dial, engine).await?;
        let rpc = floors.answer_nodes(rpc)?;
        let placement = floors.placement();
        floors.take_part(&placement).await?;
        let refused = floors.follow_the_cluster(placement);
        let router = floors.answer_clients(kv).await;
        floors.serve_webhooks(&router);
        floors.look_after_it();
        tracing::info!(node = %floors.config.node.name, %kv_address, %rpc_address, "the node serves");
        Ok(Self {
            node_id: floors.config.node_id,
            name: floors.config.node.name,
            kv_address,
            rpc_address,
            stop: floors.stop,
            stop_rpc: floors.stop_rpc,
            shards: floors.shards,
            directory: floors.directory,
            directory_voter: floors.directory_voter,
            refused,
            syncer: floors.syncer,
            router,
            tasks: floors.tasks,
            rpc,
            control: floors.control,
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

    /// Hands over what it leads, finishes requests, and flushes. An unfinished write is safe: it is
    /// in the log, or was never acknowledged.
    pub async fn stop(self) {
        let directory = self.directory_voter.read().clone();
        hand_over(self.node_id, &self.shards, directory).await;
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
}
