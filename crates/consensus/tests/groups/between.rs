//! A proxy between two members, which reads their messages and changes them.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::Stream;
use meridian_proto::log::{LogId, Vote};
use meridian_proto::raft::{self, append_response, raft_client::RaftClient, raft_server};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use crate::support::{Node, at, set};
use crate::wire::Wire;

/// The faults that a proxy puts into messages, until a test takes them back.
#[derive(Default)]
pub(crate) struct Control {
    /// No member hears of a commit beyond this one.
    pub(crate) newest_commit: Mutex<Option<LogId>>,
    /// No entry arrives, nor anything behind it on its stream; heartbeats, questions and votes do.
    pub(crate) holds_entries: AtomicBool,
    /// A leader that asks whether it leads is told of a later vote.
    pub(crate) deny_leaders: AtomicBool,
    /// No question for a vote arrives that saves one; those before do.
    pub(crate) holds_votes: AtomicBool,
}

impl Control {
    async fn pass(&self, mut request: raft::AppendRequest) -> raft::AppendRequest {
        while !request.entries.is_empty() && self.holds_entries.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        let newest = *self.newest_commit.lock();
        request.leader_commit = match (request.leader_commit, newest) {
            (Some(commit), Some(newest)) if newest.index < commit.index => Some(newest),
            (commit, _) => commit,
        };
        request
    }

    fn denies(&self, request: &raft::AppendRequest) -> bool {
        let is_question = request.previous.is_none()
            && request.entries.is_empty()
            && request.leader_commit.is_none();
        is_question && self.deny_leaders.load(Ordering::SeqCst)
    }
}

/// Takes calls for one member.
struct Between {
    member: Channel,
    control: Arc<Control>,
}

impl Between {
    fn member(&self) -> RaftClient<Channel> {
        RaftClient::new(self.member.clone())
    }
}

#[tonic::async_trait]
impl raft_server::Raft for Between {
    type StreamAppendStream =
        Pin<Box<dyn Stream<Item = Result<raft::AppendResponse, Status>> + Send>>;

    async fn stream_append(
        &self,
        request: Request<Streaming<raft::AppendRequest>>,
    ) -> Result<Response<Self::StreamAppendStream>, Status> {
        let (mut requests, control) = (request.into_inner(), Arc::clone(&self.control));
        let (sender, passed) = tokio::sync::mpsc::channel(64);
        tokio::spawn(async move {
            while let Ok(Some(request)) = requests.message().await
                && sender.send(control.pass(request).await).await.is_ok()
            {}
        });
        let answers = self.member().stream_append(ReceiverStream::new(passed)).await?.into_inner();
        Ok(Response::new(Box::pin(answers)))
    }

    async fn append(
        &self,
        request: Request<raft::AppendRequest>,
    ) -> Result<Response<raft::AppendResponse>, Status> {
        let request = request.into_inner();
        if self.control.denies(&request) {
            let term = request.vote.map_or(0, |vote| vote.term);
            let later = Vote {
                term: term + 1,
                node_id: request.group.map_or(0, |group| group.target),
                committed: false,
            };
            let result = Some(append_response::Result::HigherVote(later));
            return Ok(Response::new(raft::AppendResponse { result }));
        }
        self.member().append(self.control.pass(request).await).await
    }

    async fn vote(
        &self,
        request: Request<raft::VoteRequest>,
    ) -> Result<Response<raft::VoteResponse>, Status> {
        while self.control.holds_votes.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        self.member().vote(request.into_inner()).await
    }

    async fn pre_vote(
        &self,
        request: Request<raft::VoteRequest>,
    ) -> Result<Response<raft::VoteResponse>, Status> {
        self.member().pre_vote(request.into_inner()).await
    }

    async fn transfer_leader(
        &self,
        request: Request<raft::TransferLeaderRequest>,
    ) -> Result<Response<raft::TransferLeaderResponse>, Status> {
        self.member().transfer_leader(request.into_inner()).await
    }

    async fn join(
        &self,
        request: Request<raft::JoinRequest>,
    ) -> Result<Response<raft::JoinResponse>, Status> {
        self.member().join(request.into_inner()).await
    }

    async fn install_snapshot(
        &self,
        request: Request<raft::InstallSnapshotRequest>,
    ) -> Result<Response<raft::InstallSnapshotResponse>, Status> {
        self.member().install_snapshot(request.into_inner()).await
    }
}

/// Listens in the place of the member at `target`.
async fn between(target: SocketAddr, control: Arc<Control>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let member =
        Endpoint::from_shared(format!("http://{target}")).unwrap().tcp_nodelay(true).connect_lazy();
    let service = raft_server::RaftServer::new(Between { member, control });
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
    );
    address
}

/// Three members that reach each other only through what `control` says. Elections take
/// `election_timeout_ms`.
pub(crate) async fn three_between(control: &Arc<Control>, election_timeout_ms: u64) -> Vec<Node> {
    let (wire, voters) = (Arc::new(Wire::default()), set(1..=3));
    let mut nodes = Vec::new();
    for id in 1..=3 {
        let mut node = Node::new(id, &wire).await;
        node.timing.election_timeout_min_ms = election_timeout_ms;
        node.timing.election_timeout_max_ms = election_timeout_ms * 2;
        nodes.push(node);
    }
    for node in &nodes {
        wire.listens(node.id, between(node.address, Arc::clone(control)).await);
    }
    for node in &mut nodes {
        node.form(1, &voters, at(1, 0));
        node.open(1, &voters).await;
    }
    nodes
}
