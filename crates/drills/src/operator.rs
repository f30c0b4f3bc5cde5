//! Questions and orders of an operator. Operators dial nodes directly: faults of the network
//! between the nodes do not blind them.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use meridian_directory::{Change, Cluster};
use meridian_net::grpc::{self, Access, NotAnAddress, OperatorChannel, Timeouts};
use meridian_proto::admin::{
    ShardStatus, StatusRequest, StatusResponse, TransferLeadershipRequest,
    admin_client::AdminClient,
};
use meridian_proto::directory::{
    ExecuteRequest, InspectRequest, InspectResponse, directory_client::DirectoryClient,
    execute_response,
};
use meridian_proto::node_id;
use meridian_types::NodeId;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_secs(6);
/// Attempts at an order: each may be redirected to another leader.
const TRIES: usize = 20;
const PAUSE: Duration = Duration::from_millis(250);

/// The reason why an order was not carried out, or a question not answered.
#[derive(Debug, thiserror::Error)]
pub enum OperatorError {
    #[error(transparent)]
    Address(#[from] NotAnAddress),
    #[error("there is no node {0}")]
    NoSuchNode(NodeId),
    #[error("no node answers for the directory: {0}")]
    NoDirectory(String),
    /// The text is for people; nothing was changed.
    #[error("refused: {0}")]
    Refused(String),
    #[error(transparent)]
    Json(#[from] serde_json::Error),
}

/// The view of the directory.
#[derive(Debug, Clone)]
pub struct Inspection {
    /// `None`: unknown.
    pub leader: Option<NodeId>,
    pub cluster: Cluster,
}

type Channels = BTreeMap<NodeId, OperatorChannel>;

/// Channels to all nodes.
#[derive(Clone)]
pub struct Operator {
    channels: Arc<Mutex<Channels>>,
}

impl Operator {
    /// `addresses`: where each node listens for gRPC. Within a tokio runtime only.
    ///
    /// # Errors
    /// [`OperatorError::Address`].
    pub fn new(
        addresses: &BTreeMap<NodeId, String>,
        access: &Access,
    ) -> Result<Self, OperatorError> {
        let this = Self { channels: Arc::default() };
        this.dial(addresses, access)?;
        Ok(this)
    }

    /// From now on the nodes are asked in another way, by all clones of this.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn dial(
        &self,
        addresses: &BTreeMap<NodeId, String>,
        access: &Access,
    ) -> Result<(), OperatorError> {
        let timeouts = Timeouts { connect: CONNECT_TIMEOUT, call: Some(TIMEOUT) };
        let channel = |(id, address): (&NodeId, &String)| {
            Ok((*id, grpc::connect_lazily(address, access, timeouts)?))
        };
        let channels = addresses.iter().map(channel).collect::<Result<_, OperatorError>>()?;
        *self.channels() = channels;
        Ok(())
    }

    fn channels(&self) -> MutexGuard<'_, Channels> {
        self.channels.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status of a node.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn status(&self, node: NodeId) -> Result<StatusResponse, tonic::Status> {
        Ok(self.admin(node)?.status(StatusRequest {}).await?.into_inner())
    }

    /// The statuses of the nodes that answer within `patience`.
    pub async fn statuses(&self, patience: Duration) -> BTreeMap<NodeId, StatusResponse> {
        let nodes: Vec<NodeId> = self.channels().keys().copied().collect();
        let asked = nodes.into_iter().map(|node| async move {
            let status = tokio::time::timeout(patience, self.status(node)).await.ok()?.ok()?;
            Some((node, status))
        });
        join_all(asked).await.into_iter().flatten().collect()
    }

    /// The status of one shard on a node.
    ///
    /// # Errors
    /// When the node does not answer, or does not have the shard.
    pub async fn shard_status(
        &self,
        node: NodeId,
        shard: u32,
    ) -> Result<ShardStatus, tonic::Status> {
        let status = self.status(node).await?;
        let found = status.shards.into_iter().find(|status| status.shard == shard);
        found.ok_or_else(|| tonic::Status::not_found("the shard"))
    }

    /// # Errors
    /// When the node does not lead, or the other did not take over.
    pub async fn transfer_leadership(
        &self,
        shard: u32,
        from: NodeId,
        to: NodeId,
    ) -> Result<(), tonic::Status> {
        let request = TransferLeadershipRequest { shard, to: to.0 };
        self.admin(from)?.transfer_leadership(request).await?;
        Ok(())
    }

    /// The newest version of the cluster among the nodes that answer within `patience`.
    ///
    /// # Errors
    /// [`OperatorError::NoDirectory`] when no node answers, or the cluster has no directory.
    pub async fn inspect(&self, patience: Duration) -> Result<Inspection, OperatorError> {
        let channels: Vec<OperatorChannel> = self.channels().values().cloned().collect();
        let asked = channels.into_iter().map(|channel| async move {
            let mut client = DirectoryClient::new(channel);
            match tokio::time::timeout(patience, client.inspect(InspectRequest { changes: 0 }))
                .await
            {
                Ok(Ok(answer)) => inspection(&answer.into_inner()),
                Ok(Err(status)) => Err(OperatorError::NoDirectory(status.message().to_owned())),
                Err(_) => Err(OperatorError::NoDirectory("no answer".to_owned())),
            }
        });
        let mut newest: Result<Inspection, _> =
            Err(OperatorError::NoDirectory("there are no nodes".to_owned()));
        for answer in join_all(asked).await {
            let rank =
                |inspection: &Inspection| (inspection.cluster.version, inspection.leader.is_some());
            newest = match (newest, answer) {
                (Ok(a), Ok(b)) if rank(&b) > rank(&a) => Ok(b),
                (Ok(a), _) => Ok(a),
                (Err(_), answer) => answer,
            };
        }
        newest
    }

    /// Orders a change, from the leader of the directory.
    ///
    /// # Errors
    /// [`OperatorError::Refused`] with the reason, or [`OperatorError::NoDirectory`].
    pub async fn execute(&self, change: &Change, actor: &str) -> Result<Cluster, OperatorError> {
        let change_json = serde_json::to_vec(change)?;
        let mut seen = "there are no nodes".to_owned();
        let mut leader = None;
        let channels = self.channels().clone();
        let mut nodes = channels.keys().copied().cycle();
        for _ in 0..TRIES {
            let Some(node) = leader.take().or_else(|| nodes.next()) else { break };
            let channel = channels.get(&node).ok_or(OperatorError::NoSuchNode(node))?;
            let request =
                ExecuteRequest { change_json: change_json.clone().into(), actor: actor.to_owned() };
            let answer = DirectoryClient::new(channel.clone()).execute(request).await;
            match answer.map(|answer| answer.into_inner().result) {
                Ok(Some(execute_response::Result::Done(state))) => {
                    return Ok(serde_json::from_slice(&state.json)?);
                }
                Ok(Some(execute_response::Result::Refused(reason))) => {
                    return Err(OperatorError::Refused(reason));
                }
                Ok(Some(execute_response::Result::NotLeader(other))) => {
                    seen = format!("node {node} does not lead the directory");
                    leader = node_id(other)
                        .filter(|other| *other != node && channels.contains_key(other));
                }
                Ok(None) => seen = format!("node {node} answered nothing"),
                Err(status) => seen = format!("node {node}: {}", status.message()),
            }
            if leader.is_none() {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(OperatorError::NoDirectory(seen))
    }

    fn admin(&self, node: NodeId) -> Result<AdminClient<OperatorChannel>, tonic::Status> {
        let channel = self.channels().get(&node).cloned();
        let channel =
            channel.ok_or_else(|| tonic::Status::not_found(format!("there is no node {node}")))?;
        Ok(AdminClient::new(channel))
    }
}

fn inspection(answer: &InspectResponse) -> Result<Inspection, OperatorError> {
    let state = answer.cluster.as_ref();
    let state =
        state.ok_or_else(|| OperatorError::NoDirectory("it knows no cluster yet".to_owned()))?;
    Ok(Inspection { leader: node_id(answer.leader), cluster: serde_json::from_slice(&state.json)? })
}
