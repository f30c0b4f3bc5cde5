use meridian_proto::encode_batch;
use meridian_types::{Batch, Epoch, Position, ShardId};
use openraft::vote::RaftLeaderId;

use super::*;
use crate::type_config::{EncodedBatch, Entry, LogId};

#[test]
fn a_leader_notices_what_its_memory_has_changed() {
    let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
    let position = Position::new(Epoch(1), 1);
    let bytes = encode_batch(&Batch { position, time_ms: 0, transactions: Vec::new() });
    let verify = |bytes: bytes::Bytes| {
        let payload = EntryPayload::Normal(EncodedBatch::stored(bytes));
        let entries = vec![Entry { log_id: LogId::new(1.into(), 7), payload }];
        let leader_id = openraft::impls::leader_id_std::LeaderId::new(1, 1);
        let vote = Vote { leader_id, committed: true };
        let request = AppendEntriesRequest { vote, prev_log_id: None, entries, leader_commit: None };
        verify_entries(group, &request).map_err(|error| error.to_string())
    };
    verify(bytes.clone()).unwrap();
    let mut damaged = bytes.to_vec();
    damaged[1] ^= 1;
    let error = verify(damaged.into()).unwrap_err();
    assert!(error.contains("corruption in log entry 7 of shard 1 epoch 1"), "{error}");
}

/// A member that has everything.
struct Follows;

fn unimplemented<T>() -> Result<tonic::Response<T>, tonic::Status> {
    Err(tonic::Status::unimplemented("it only follows"))
}

#[tonic::async_trait]
impl raft::raft_server::Raft for Follows {
    type StreamAppendStream = Pin<Box<dyn Stream<Item = Result<raft::AppendResponse, tonic::Status>> + Send>>;

    async fn stream_append(
        &self,
        request: tonic::Request<tonic::Streaming<raft::AppendRequest>>,
    ) -> Result<tonic::Response<Self::StreamAppendStream>, tonic::Status> {
        let matched = raft::append_response::Result::Matched(raft::Matched::default());
        let answer = raft::AppendResponse { result: Some(matched) };
        Ok(tonic::Response::new(Box::pin(request.into_inner().map(move |_| Ok(answer)))))
    }

    async fn append(
        &self,
        _: tonic::Request<raft::AppendRequest>,
    ) -> Result<tonic::Response<raft::AppendResponse>, tonic::Status> {
        unimplemented()
    }

    async fn vote(
        &self,
        _: tonic::Request<raft::VoteRequest>,
    ) -> Result<tonic::Response<raft::VoteResponse>, tonic::Status> {
        unimplemented()
    }

    async fn pre_vote(
        &self,
        _: tonic::Request<raft::VoteRequest>,
    ) -> Result<tonic::Response<raft::VoteResponse>, tonic::Status> {
        unimplemented()
    }

    async fn transfer_leader(
        &self,
        _: tonic::Request<raft::TransferLeaderRequest>,
    ) -> Result<tonic::Response<raft::TransferLeaderResponse>, tonic::Status> {
        unimplemented()
    }

    async fn join(
        &self,
        _: tonic::Request<raft::JoinRequest>,
    ) -> Result<tonic::Response<raft::JoinResponse>, tonic::Status> {
        unimplemented()
    }

    async fn install_snapshot(
        &self,
        _: tonic::Request<raft::InstallSnapshotRequest>,
    ) -> Result<tonic::Response<raft::InstallSnapshotResponse>, tonic::Status> {
        unimplemented()
    }
}

struct One(Channel);

impl Peers for One {
    fn channel(&self, _: u64) -> Option<Channel> {
        Some(self.0.clone())
    }
}

impl StateTransfer for One {
    fn offer(&self, _: GroupId, _: Arc<StateSnapshot>) -> String {
        String::new()
    }

    fn fetch(
        self: Arc<Self>,
        _: GroupId,
        _: u64,
        _: String,
        _: Arc<ShardState>,
    ) -> Transfer<Result<StagedState, StorageError>> {
        Box::pin(async { Err(StorageError::Refused("there is none".to_owned())) })
    }
}

/// This thread may stand still between an answer, which came in time, and openraft's note of it. Meanwhile others
/// look at the lease.
#[tokio::test]
async fn an_answer_that_openraft_has_not_noted_yet_grows_older() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = raft::raft_server::RaftServer::new(Follows);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap().connect_lazy();
    let peer = Arc::new(One(channel));
    let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
    let hour = Duration::from_secs(3600);
    let lease_trust = Arc::new(LeaseTrust::new(hour, Duration::from_secs(1)));
    let factory = NetworkFactory {
        node_id: 1,
        group,
        peers: Arc::clone(&peer) as Arc<dyn Peers>,
        transfer: peer,
        votes: Arc::default(),
        append_timeout: hour,
        told: Arc::default(),
        lease_trust: Arc::clone(&lease_trust),
        members: Arc::new(MemberMarks::new(group, 1, None)),
    };
    let vote = Vote { leader_id: openraft::impls::leader_id_std::LeaderId::new(1, 1), committed: true };
    let heartbeat = AppendEntriesRequest { vote, prev_log_id: None, entries: Vec::new(), leader_commit: None };
    let heartbeats = futures::stream::repeat(heartbeat).take(2);
    let mut network = Network { factory, target: 2 };
    let mut answers = network.stream_append(heartbeats, RPCOption::new(hour)).await.unwrap();
    assert!(matches!(answers.next().await, Some(Ok(Ok(None)))));
    // It has not asked for the next one.
    let answered = Instant::now();
    while lease_trust.holds() {
        assert!(answered.elapsed() < Duration::from_secs(20), "the lease is trusted, whatever the answer's age");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(answers.next().await, Some(Ok(Ok(None)))));
    assert!(!lease_trust.holds(), "what it noted may be ahead by as much");
}
