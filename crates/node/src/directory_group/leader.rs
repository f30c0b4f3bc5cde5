//! This node's part in the directory's group: what it may be asked while it leads, and what it
//! publishes to this process.
//!
//! `term` is the leader's task; `session` carries out, in one term, what `DirectoryLeader` of the
//! crate `failover` decides: which changes are committed, which nodes get leases or are asked.

use std::collections::BTreeMap;
use std::sync::Arc;

use meridian_directory::{Change, Cluster};
use meridian_failover::{Contact, ControllerConfig, ExecuteFailure, Executed, Progress};
use meridian_proto::directory::{self as wire, renew_response};
use meridian_proto::node_id_to_wire;
use meridian_types::NodeId;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use crate::cluster_view::view::Directory;
use crate::directory_group::record::{self, Recorded};
use crate::directory_group::token_uses;
use crate::network::peers::PeerChannels;
use crate::shard::voter::Voter;

mod decline;
mod session;
mod term;

use term::Task;

const QUEUE: usize = 1024;

/// Progress of shards and contact with nodes, which only the leader knows.
#[derive(Default)]
pub(crate) struct Inspection {
    pub(crate) progress: Vec<Progress>,
    pub(crate) contacts: BTreeMap<NodeId, Contact>,
}

enum Request {
    /// `term`: leadership was confirmed in it after the request came.
    Renew {
        term: u64,
        request: wire::RenewRequest,
        reply: oneshot::Sender<renew_response::Result>,
    },
    Execute {
        change: Box<Change>,
        actor: String,
        reply: oneshot::Sender<Executed>,
    },
    Inspect {
        reply: oneshot::Sender<Inspection>,
    },
}

/// This node's part in the directory group.
pub(crate) struct DirectoryVoter {
    pub(crate) voter: Arc<Voter>,
    requests: mpsc::Sender<Request>,
}

/// The parts that the leader's task works with.
pub(crate) struct LeaderParts {
    pub(crate) voter: Arc<Voter>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    /// The cluster that the first leader commits.
    pub(crate) first: Cluster,
    pub(crate) config: ControllerConfig,
}

impl DirectoryVoter {
    /// Ends with `stop`.
    pub(crate) fn start(parts: LeaderParts, stop: &CancellationToken) -> Arc<Self> {
        let (requests, inbox) = mpsc::channel(QUEUE);
        let voter = Arc::clone(&parts.voter);
        tokio::spawn(publish(Arc::clone(&voter), Arc::clone(&parts.directory), stop.clone()));
        let task = Task::new(Arc::new(parts), inbox);
        let stopped = stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = task.run() => {}
            }
        });
        Arc::new(Self { voter, requests })
    }

    /// Grants a lease, if this node leads the directory at some time after this call.
    pub(crate) async fn renew(&self, request: wire::RenewRequest) -> renew_response::Result {
        let not_leader =
            |leader: Option<NodeId>| renew_response::Result::NotLeader(node_id_to_wire(leader));
        let term = match self.voter.confirm().await {
            Ok(term) => term,
            Err(not_leading) => return not_leader(not_leading.leader),
        };
        let (reply, answer) = oneshot::channel();
        if self.requests.send(Request::Renew { term, request, reply }).await.is_err() {
            return not_leader(None);
        }
        answer.await.unwrap_or_else(|_| not_leader(None))
    }

    pub(crate) async fn execute(&self, change: Change, actor: String) -> Executed {
        let (reply, answer) = oneshot::channel();
        let request = Request::Execute { change: Box::new(change), actor, reply };
        if self.voter.group.leadership().is_err() || self.requests.send(request).await.is_err() {
            return Err(ExecuteFailure::NotLeader);
        }
        answer.await.unwrap_or(Err(ExecuteFailure::Unknown))
    }

    /// The cluster as it is applied here, with the keys of its authorities. `None` before the first.
    pub(crate) fn committed(&self) -> Option<Cluster> {
        record::read_cluster(&self.voter.state).map(|(cluster, _)| cluster)
    }

    /// `None` where this node does not lead.
    pub(crate) async fn inspect(&self) -> Option<Inspection> {
        self.voter.group.leadership().ok()?;
        let (reply, answer) = oneshot::channel();
        self.requests.send(Request::Inspect { reply }).await.ok()?;
        answer.await.ok()
    }

    /// The last uses of tokens, as far as they are stored here.
    pub(crate) fn token_uses(&self) -> Vec<wire::TokenLastUse> {
        token_uses::read(&self.voter.state)
    }

    /// The latest changes, newest first, as far as they are applied here.
    pub(crate) fn changes(&self, limit: u32) -> Vec<Recorded> {
        record::read_changes(&self.voter.state, limit)
    }
}

/// Of this node's own directory group, which every call of another cluster is kept from.
fn learn_own(directory: &Directory, cluster: Cluster) {
    if let Err(foreign) = directory.learn(cluster) {
        tracing::error!(%foreign, "this node's directory group is not of its cluster");
    }
}

/// Tells this process of every cluster that is applied here.
async fn publish(voter: Arc<Voter>, directory: Arc<Directory>, stop: CancellationToken) {
    let mut applied = voter.group.applied();
    loop {
        if let Some((cluster, _)) = record::read_cluster(&voter.state) {
            learn_own(&directory, cluster);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = applied.changed() => if changed.is_err() { return },
        }
    }
}

#[cfg(test)]
mod tests;
