//! Status, orphan files, handovers and keys for operators.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use meridian_consensus::Role;
use meridian_directory::{Node, Transport};
use meridian_gateway::{Account, Used};
use meridian_net::{Mutual, tls};
use meridian_proto::admin::account_usage::Account as OfAccount;
use meridian_proto::admin::{self as wire, admin_server};
use meridian_proto::node_id_to_wire;
use meridian_types::{NodeId, ShardId};
use meridian_vault::Folder;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::background::encryption::Encryption;
use crate::cluster_view::view::Directory;
use crate::divergence::orphan_files;
use crate::host::clock::wall_ms;
use crate::host::clocks::Clocks;
use crate::host::disk::DiskGuard;
use crate::network::clients::ClientSecurity;
use crate::rpc::cluster_gate::PlainCalls;
use crate::shard::local::LocalShard;
use crate::shard::replica::Replica;
use crate::shard::table::ShardTable;
use crate::shard::voter::Voter;
use crate::webhooks::Standings;

/// Of a certificate: it should have been renewed days before.
const ENDING: Duration = Duration::from_secs(5 * 24 * 3600);
/// In one answer.
const MAX_ACCOUNTS: usize = 10_000;
/// How long a handover of leadership may take.
const HANDOVER: Duration = Duration::from_secs(5);

/// Answers operators.
#[derive(Clone)]
pub(crate) struct AdminService {
    pub(crate) node_id: NodeId,
    pub(crate) node: Node,
    pub(crate) shards: Arc<ShardTable>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) data_dir: Folder,
    pub(crate) encryption: Arc<Encryption>,
    pub(crate) started: Instant,
    pub(crate) clocks: Clocks,
    pub(crate) disk: Arc<DiskGuard>,
    pub(crate) webhooks: Arc<Standings>,
    pub(crate) clients: Arc<ClientSecurity>,
    pub(crate) mutual: Arc<Mutual>,
    /// The file with the key of the node's own certificate.
    pub(crate) identity_key: Option<PathBuf>,
    pub(crate) plain: Arc<PlainCalls>,
}

impl AdminService {
    fn voter_status(&self, id: ShardId, voter: &Arc<Voter>) -> wire::ShardStatus {
        let status = voter.group.status();
        let role = match status.role {
            Role::Leader => "leader",
            Role::Follower | Role::Candidate if !voter.group.votes() => "voteless",
            Role::Follower => "follower",
            Role::Candidate => "candidate",
            Role::Learner => "learner",
            Role::Stopped => "stopped",
        };
        let lags = self.shards.followers(&id).map(|followers| followers.lags()).unwrap_or_default();
        let subscribers = lags.iter().map(|follower| wire::ReplicaLag {
            node_id: follower.node.0,
            durable_sequence: follower.durable,
            lag_batches: follower.lag.batches,
            lag_bytes: follower.lag.bytes,
            lag_ms: follower.lag.millis,
            connected: follower.connected,
        });
        wire::ShardStatus {
            shard: id.0,
            epoch: voter.group.id().epoch.0.into(),
            role: role.to_owned(),
            term: status.term,
            leader: node_id_to_wire(status.leader),
            committed_sequence: voter.state.position().sequence,
            applied_sequence: voter.state.position().sequence,
            first_sequence: first_kept(&LocalShard::Voter(Arc::clone(voter))),
            subscribers: subscribers.collect(),
            ..Default::default()
        }
    }

    fn replica_status(&self, id: ShardId, replica: &Replica) -> wire::ShardStatus {
        let status = replica.status();
        let applied = replica.state().applied();
        let committed =
            status.committed.map_or(applied.position.sequence, |commit| commit.position.sequence);
        let lag_batches = committed.saturating_sub(applied.position.sequence);
        wire::ShardStatus {
            shard: id.0,
            epoch: replica.history().epoch().0.into(),
            role: if status.is_relay { "relay" } else { "replica" }.to_owned(),
            committed_sequence: committed,
            applied_sequence: applied.position.sequence,
            first_sequence: replica.purged() + 1,
            source: node_id_to_wire(status.source),
            lag_batches,
            lag_ms: if lag_batches == 0 { 0 } else { wall_ms().saturating_sub(applied.time_ms) },
            ..Default::default()
        }
    }
}

impl AdminService {
    fn warnings(&self) -> Vec<String> {
        let of_node = self.clocks.warning().into_iter().chain(self.disk.warning());
        let of_node = of_node.chain(self.transport_warning()).chain(self.certificate_warning());
        let of_node = of_node.chain(self.encryption.warnings());
        let of_clients = self.clients.warnings(SystemTime::now());
        of_node.chain(of_clients).chain(self.webhooks.warnings(wall_ms())).collect()
    }

    /// Of private keys that others can read: their files may have been given other modes since the
    /// start.
    async fn key_warnings(&self) -> Vec<String> {
        let keys: Vec<PathBuf> =
            self.identity_key.iter().cloned().chain(self.clients.key_files()).collect();
        let look = move || keys.iter().filter_map(|key| tls::exposed_key(key)).collect::<Vec<_>>();
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    fn transport_warning(&self) -> Option<String> {
        let transport = self.directory.known().cluster.trust.transport;
        (transport != Transport::Require).then(|| {
            format!(
                "the transport is `{transport}`: calls in the clear are believed \
                 (`meridian cluster transport require`)"
            )
        })
    }

    fn certificate_warning(&self) -> Option<String> {
        let own = self.mutual.own()?;
        let left = own.not_after.saturating_sub(Duration::from_millis(wall_ms()));
        (left < ENDING).then(|| {
            let hours = left.as_secs() / 3600;
            format!("the node's certificate ends in {hours} h, and was not renewed: see its log")
        })
    }

    fn certificate(&self) -> Option<wire::Certificate> {
        let own = self.mutual.own()?;
        Some(wire::Certificate {
            subject: own.subject.to_string(),
            not_after_ms: u64::try_from(own.not_after.as_millis()).unwrap_or(u64::MAX),
            issuer: self.mutual.issuer().unwrap_or_default(),
        })
    }
}

fn account_usage((account, used): (Account, Used)) -> wire::AccountUsage {
    let account = match account {
        Account::Database(id) => OfAccount::Database(Bytes::copy_from_slice(&id.0)),
        Account::Token(id) => OfAccount::TokenId(id),
        Account::ConfiguredTokens => OfAccount::ConfiguredTokens(true),
    };
    wire::AccountUsage {
        account: Some(account),
        requests: used.requests,
        bytes_in: used.bytes_in,
        bytes_out: used.bytes_out,
        slowed: used.slowed,
        refused: used.refused,
        connections: used.connections,
        watches: used.watches,
        listeners: used.listeners,
    }
}

/// The oldest batch that is still in a log here; 0: none.
fn first_kept(shard: &LocalShard) -> u64 {
    let purged = shard.purged().unwrap_or(u64::MAX);
    if purged < shard.state().position().sequence { purged + 1 } else { 0 }
}

#[tonic::async_trait]
impl admin_server::Admin for AdminService {
    async fn status(
        &self,
        _: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        let mut shards: Vec<_> = self
            .shards
            .all()
            .iter()
            .map(|(id, shard)| match shard {
                LocalShard::Voter(voter) => self.voter_status(*id, voter),
                LocalShard::Replica(replica) => self.replica_status(*id, replica),
            })
            .collect();
        shards.sort_by_key(|shard| shard.shard);
        let warnings = [self.warnings(), self.key_warnings().await].concat();
        Ok(Response::new(wire::StatusResponse {
            node_id: self.node_id.0,
            node_name: self.node.name.clone(),
            region: self.node.region.clone(),
            data_center: self.node.data_center.clone(),
            shards,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
            warnings,
            cluster_version: self.directory.known().cluster.version,
            certificate: self.certificate(),
            plain_call_age_ms: self.plain.age_ms(),
            encryption: Some(self.encryption.status()),
        }))
    }

    async fn transfer_leadership(
        &self,
        request: Request<wire::TransferLeadershipRequest>,
    ) -> Result<Response<wire::TransferLeadershipResponse>, Status> {
        let request = request.into_inner();
        let (id, to) = (ShardId(request.shard), NodeId(request.to));
        let Some(LocalShard::Voter(voter)) = self.shards.get(&id) else {
            return Err(Status::not_found(format!("this node does not vote in shard {id}")));
        };
        if !self.directory.known().cluster.is_voter(id, to) {
            return Err(Status::invalid_argument(format!("node {to} does not vote in shard {id}")));
        }
        let followers = self.shards.followers(&id);
        let lags = followers.as_ref().map(|followers| followers.lags()).unwrap_or_default();
        if to != self.node_id && !lags.iter().any(|heir| heir.node == to && heir.may_lead) {
            return Err(Status::failed_precondition(format!("node {to} is away or does not vote")));
        }
        let Ok(leadership) = voter.group.leadership() else {
            return Err(Status::failed_precondition(format!("this node does not lead shard {id}")));
        };
        if to == self.node_id {
            return Ok(Response::new(wire::TransferLeadershipResponse {}));
        }
        if followers.is_some_and(|followers| !followers.may_take_over(to, &voter.group.voters())) {
            return Err(Status::failed_precondition(format!(
                "should node {to} be lost meanwhile, no voter could lead: another voter of shard {id} does not vote at \
                 present (it catches up, or was wiped and is to be replaced)"
            )));
        }
        let refused =
            |error: meridian_consensus::TransferFailure| Status::unavailable(error.to_string());
        voter.group.transfer_leadership(to).await.map_err(refused)?;
        let over = voter.group.leadership_changed(Some(leadership.term));
        match tokio::time::timeout(HANDOVER, over).await {
            Ok(()) => Ok(Response::new(wire::TransferLeadershipResponse {})),
            Err(_) => Err(Status::deadline_exceeded(
                "the other voter did not take over; this node still leads",
            )),
        }
    }

    async fn rotate_keys(
        &self,
        request: Request<wire::RotateKeysRequest>,
    ) -> Result<Response<wire::RotateKeysResponse>, Status> {
        let master_key_changed =
            Arc::clone(&self.encryption).rotate(request.into_inner().new_data_key).await?;
        let encryption = Some(self.encryption.status());
        Ok(Response::new(wire::RotateKeysResponse { encryption, master_key_changed }))
    }

    async fn usage(
        &self,
        _: Request<wire::UsageRequest>,
    ) -> Result<Response<wire::UsageResponse>, Status> {
        let mut used = self.clients.usage().used();
        let left_out = used.len().saturating_sub(MAX_ACCOUNTS);
        // Those that have used most.
        used.sort_by_key(|(_, used)| std::cmp::Reverse(used.requests));
        used.truncate(MAX_ACCOUNTS);
        let stored = self.shards.stored().all().into_iter().take(MAX_ACCOUNTS);
        let stored = stored.map(|(database, stored)| wire::StoredSize {
            database: Bytes::copy_from_slice(&database.0),
            keys: stored.size.keys,
            bytes: stored.size.bytes,
            refused: stored.rejected,
        });
        Ok(Response::new(wire::UsageResponse {
            accounts: used.into_iter().map(account_usage).collect(),
            stored: stored.collect(),
            left_out: left_out as u64,
        }))
    }

    type ReadOrphansStream = ReceiverStream<Result<wire::OrphanBatch, Status>>;

    async fn list_orphans(
        &self,
        _: Request<wire::ListOrphansRequest>,
    ) -> Result<Response<wire::ListOrphansResponse>, Status> {
        let data_dir = self.data_dir.clone();
        let listed =
            tokio::task::spawn_blocking(move || orphan_files::list_orphans(&data_dir)).await;
        listed.map_err(|error| Status::unavailable(error.to_string()))?.map(Response::new)
    }

    async fn read_orphans(
        &self,
        request: Request<wire::ReadOrphansRequest>,
    ) -> Result<Response<Self::ReadOrphansStream>, Status> {
        let batches = orphan_files::read_orphans(&self.data_dir, &request.into_inner().name)?;
        let (sender, stream) = mpsc::channel(16);
        tokio::task::spawn_blocking(move || {
            for batch in batches {
                let end = batch.is_err();
                if sender.blocking_send(batch).is_err() || end {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}
