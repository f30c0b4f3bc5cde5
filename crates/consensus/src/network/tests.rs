use meridian_proto::{encode_batch, log};
use meridian_storage::MemoryEngine;
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, Epoch, Position, RequestId, ShardId, Value,
    ValueEncoding,
};
use openraft::vote::RaftLeaderId;

use super::*;
use crate::testing::NoStates;
use crate::type_config::{EncodedBatch, Entry, LogId};
use crate::votes::VoteGate;

#[test]
fn a_leader_notices_what_its_memory_has_changed() {
    let group = GroupId { shard: ShardId(1), epoch: Epoch(1) };
    let position = Position::new(Epoch(1), 1);
    let bytes = encode_batch(&Batch { position, time_ms: 0, transactions: Vec::new() });
    let verify = |bytes: bytes::Bytes| {
        let payload = EntryPayload::Normal(EncodedBatch::stored(bytes));
        let entries = vec![Entry { log_id: LogId::new(1.into(), 7), payload }];
        let leader_id = openraft::impls::leader_id_std::LeaderId::new(1, NodeId(1));
        let vote = Vote { leader_id, committed: true };
        let request =
            AppendEntriesRequest { vote, prev_log_id: None, entries, leader_commit: None };
        verify_entries(group, &request).map_err(|error| error.to_string())
    };
    verify(bytes.clone()).unwrap();
    let mut damaged = bytes.to_vec();
    damaged[1] ^= 1;
    let error = verify(damaged.into()).unwrap_err();
    assert!(error.contains("corruption in log entry 7 of shard 1 epoch 1"), "{error}");
}

/// A member that has everything, and gives its vote.
#[derive(Clone, Default)]
struct Follows {
    /// The higher vote that it answers with in place of its consent.
    later: Option<log::Vote>,
    /// No append of a stream is answered while this is held.
    answers: Arc<tokio::sync::Mutex<()>>,
    /// The candidate's own, which is sealed while it waits.
    sealed: Option<Arc<Votes>>,
    /// How often it was asked for its vote.
    asked: Arc<AtomicU64>,
    /// How many streams it was sent.
    streams: Arc<AtomicU64>,
    /// Each of them ends behind so many answers.
    ends_behind: Option<usize>,
}

impl Follows {
    fn appended(&self, request: &raft::AppendRequest) -> raft::AppendResponse {
        let matched = raft::Matched { log_id: request.previous, partial: false };
        let matched = raft::append_response::Result::Matched(matched);
        let result = self.later.map_or(matched, raft::append_response::Result::HigherVote);
        raft::AppendResponse { result: Some(result) }
    }

    fn votes(&self, request: &raft::VoteRequest) -> raft::VoteResponse {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if let Some(votes) = &self.sealed {
            votes.seal();
        }
        let vote = self.later.or(request.vote);
        raft::VoteResponse { vote, granted: self.later.is_none(), last_log_id: None }
    }
}

fn unimplemented<T>() -> Result<tonic::Response<T>, tonic::Status> {
    Err(tonic::Status::unimplemented("it only follows"))
}

#[tonic::async_trait]
impl raft::raft_server::Raft for Follows {
    type StreamAppendStream =
        Pin<Box<dyn Stream<Item = Result<raft::AppendResponse, tonic::Status>> + Send>>;

    async fn stream_append(
        &self,
        request: tonic::Request<tonic::Streaming<raft::AppendRequest>>,
    ) -> Result<tonic::Response<Self::StreamAppendStream>, tonic::Status> {
        self.streams.fetch_add(1, Ordering::SeqCst);
        let member = self.clone();
        let answered = request.into_inner().then(move |request| {
            let member = member.clone();
            async move {
                drop(member.answers.lock().await);
                Ok(member.appended(&request?))
            }
        });
        Ok(tonic::Response::new(Box::pin(answered.take(self.ends_behind.unwrap_or(usize::MAX)))))
    }

    async fn append(
        &self,
        request: tonic::Request<raft::AppendRequest>,
    ) -> Result<tonic::Response<raft::AppendResponse>, tonic::Status> {
        Ok(tonic::Response::new(self.appended(request.get_ref())))
    }

    async fn vote(
        &self,
        request: tonic::Request<raft::VoteRequest>,
    ) -> Result<tonic::Response<raft::VoteResponse>, tonic::Status> {
        Ok(tonic::Response::new(self.votes(request.get_ref())))
    }

    async fn pre_vote(
        &self,
        request: tonic::Request<raft::VoteRequest>,
    ) -> Result<tonic::Response<raft::VoteResponse>, tonic::Status> {
        Ok(tonic::Response::new(self.votes(request.get_ref())))
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
        Ok(tonic::Response::new(raft::InstallSnapshotResponse { vote: self.later }))
    }
}

struct One(Channel);

impl Peers for One {
    fn channel(&self, _: NodeId) -> Option<Channel> {
        Some(self.0.clone())
    }
}

const GROUP: GroupId = GroupId { shard: ShardId(1), epoch: Epoch(1) };
const HOUR: Duration = Duration::from_secs(3600);

/// The network of node 1, with which it calls `member`.
async fn network(member: Follows, append_timeout: Duration) -> Network {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service =
        raft::raft_server::RaftServer::new(member).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let incoming = tonic::transport::server::TcpIncoming::from(listener);
    tokio::spawn(
        tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming),
    );
    let channel = tonic::transport::Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_lazy();
    let factory = NetworkFactory {
        node_id: NodeId(1),
        group: GROUP,
        peers: Arc::new(One(channel)),
        transfer: Arc::new(NoStates),
        votes: Arc::default(),
        append_timeout,
        advertised: Arc::default(),
        lease_trust: Arc::new(LeaseTrust::new(HOUR, Duration::from_secs(1))),
        marks: Arc::new(MemberMarks::new(GROUP, NodeId(1), None)),
    };
    Network { factory, target: NodeId(2), kept: None }
}

/// Of node 1, in term 1.
fn own_vote(committed: bool) -> Vote {
    Vote { leader_id: openraft::impls::leader_id_std::LeaderId::new(1, NodeId(1)), committed }
}

fn heartbeat() -> AppendEntriesRequest<TypeConfig> {
    AppendEntriesRequest {
        vote: own_vote(true),
        prev_log_id: None,
        entries: Vec::new(),
        leader_commit: None,
    }
}

/// This thread may stand still between an answer, which came in time, and openraft's note of it.
/// Meanwhile others look at the lease.
#[tokio::test]
async fn an_answer_that_openraft_has_not_noted_yet_grows_older() {
    let mut network = network(Follows::default(), HOUR).await;
    let lease_trust = Arc::clone(&network.factory.lease_trust);
    let heartbeats = futures::stream::repeat(heartbeat()).take(2);
    let mut answers = network.stream_append(heartbeats, RPCOption::new(HOUR)).await.unwrap();
    assert!(matches!(answers.next().await, Some(Ok(Ok(None)))));
    // It has not asked for the next one.
    let answered = Instant::now();
    while lease_trust.holds() {
        assert!(
            answered.elapsed() < Duration::from_secs(20),
            "the lease is trusted, whatever the answer's age"
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(matches!(answers.next().await, Some(Ok(Ok(None)))));
    assert!(!lease_trust.holds(), "the noted time may be ahead by as much");
}

/// A member that is well is not given up: all that was sent would be sent again, and again take too
/// long.
#[tokio::test]
async fn an_answer_is_waited_for_as_long_as_it_may_take_and_an_idle_stream_has_none() {
    let within = Duration::from_millis(200);
    let member = Follows::default();
    let answers_of_member = Arc::clone(&member.answers);
    let held = answers_of_member.lock().await;
    let mut network = network(member, within).await;
    let (sender, requests) = tokio::sync::mpsc::unbounded_channel();
    let requests = tokio_stream::wrappers::UnboundedReceiverStream::new(requests);
    let mut answers = network.stream_append(requests, RPCOption::new(HOUR)).await.unwrap();
    let idle = tokio::time::timeout(within * 2, answers.next()).await;
    assert!(idle.is_err(), "nothing was asked: {idle:?}");
    // A large batch takes its time, also where the stream was looked at before it was sent.
    let position = Position::new(Epoch(1), 1);
    let key = bytes::Bytes::from_static(b"key");
    let value = Value { encoding: ValueEncoding::Bytes, data: vec![0; 16 << 20].into() };
    let transaction = CommittedTransaction {
        request_id: RequestId([1; 16]),
        database: DatabaseId([1; 16]),
        effects: vec![Effect::Put { key, value, expire_at_ms: 0 }],
        refusal: None,
    };
    let bytes = encode_batch(&Batch { position, time_ms: 0, transactions: vec![transaction] });
    let payload = EntryPayload::Normal(EncodedBatch::stored(bytes));
    let entries = vec![Entry { log_id: LogId::new(1.into(), 1), payload }];
    sender.send(AppendEntriesRequest { entries, ..heartbeat() }).unwrap();
    let large = tokio::time::timeout(within * 2, answers.next()).await;
    assert!(large.is_err(), "it has more than four seconds: {large:?}");
    drop(held);
    assert!(matches!(answers.next().await, Some(Ok(Ok(None)))));
    // A small one does not.
    let held = answers_of_member.lock().await;
    sender.send(heartbeat()).unwrap();
    assert!(matches!(answers.next().await, Some(Err(RPCError::Timeout(_)))));
    assert!(answers.next().await.is_none());
    drop((answers, held));
}

#[tokio::test]
async fn a_heartbeat_that_is_answered_late_and_in_time_ends_no_stream() {
    let member = Follows::default();
    let answers_of_member = Arc::clone(&member.answers);
    let held = answers_of_member.lock().await;
    let mut network = network(member, HOUR).await;
    let heartbeats = futures::stream::iter([heartbeat()]);
    let mut answers = network.stream_append(heartbeats, RPCOption::new(HOUR)).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(50), answers.next()).await;
    assert!(early.is_err(), "it has an hour: {early:?}");
    drop(held);
    assert!(matches!(answers.next().await, Some(Ok(Ok(None)))));
}

/// The heartbeat that says that the member has the log up to this index, and what the member says
/// to it.
async fn beat(network: &mut Network, index: u64) -> Option<u64> {
    let request =
        AppendEntriesRequest { prev_log_id: Some(LogId::new(1.into(), index)), ..heartbeat() };
    let alone = futures::stream::once(std::future::ready(request));
    let answer = network.stream_append(alone, RPCOption::new(HOUR)).await.unwrap().next().await;
    Some(answer?.unwrap().unwrap()?.index)
}

/// A leader counts its lease from when it asked for the heartbeat that is answered.
#[tokio::test]
async fn heartbeats_share_a_stream_and_an_answer_that_comes_late_is_not_taken_for_that_to_the_next()
{
    let member = Follows::default();
    let (streams, answers) = (Arc::clone(&member.streams), Arc::clone(&member.answers));
    let mut network = network(member, HOUR).await;
    for index in 1..=3 {
        assert_eq!(beat(&mut network, index).await, Some(index));
    }
    assert_eq!(streams.load(Ordering::SeqCst), 1);
    let held = answers.lock().await;
    let late = tokio::time::timeout(Duration::from_millis(50), beat(&mut network, 4)).await;
    assert!(late.is_err(), "no member answers: {late:?}");
    drop(held);
    for index in 5..=6 {
        assert_eq!(beat(&mut network, index).await, Some(index));
    }
    assert_eq!(streams.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_heartbeat_goes_over_a_new_stream_where_the_kept_one_has_ended() {
    let member = Follows { ends_behind: Some(2), ..Follows::default() };
    let streams = Arc::clone(&member.streams);
    let mut network = network(member, HOUR).await;
    for index in 1..=4 {
        assert_eq!(beat(&mut network, index).await, Some(index));
    }
    assert_eq!(streams.load(Ordering::SeqCst), 2);
}

/// Raft takes over every later vote that it is told of, and behind the last term there is none to
/// be elected in.
#[tokio::test]
async fn an_answer_of_a_term_that_no_group_reaches_is_not_believed() {
    let state = ShardState::open(Arc::new(MemoryEngine::default()), GROUP.shard).unwrap();
    let snapshot = Arc::new(state.snapshot().unwrap());
    for (term, is_believed) in
        [(2, true), ((1 << 32) + 1, true), ((1 << 32) + 2, false), (u64::MAX, false)]
    {
        let later = Some(log::Vote { term, node_id: 3, committed: false });
        let mut network = network(Follows { later, ..Follows::default() }, HOUR).await;
        network.factory.votes.set_gate(VoteGate::OpensAt(Instant::now()));
        let option = || RPCOption::new(HOUR);
        let mut streamed = [false; 2];
        for (requests, streamed) in [1, 2].into_iter().zip(&mut streamed) {
            let requests = futures::stream::repeat(heartbeat()).take(requests);
            *streamed = network
                .stream_append(requests, option())
                .await
                .unwrap()
                .next()
                .await
                .unwrap()
                .is_ok();
        }
        let candidacy = VoteRequest::new(own_vote(false), None);
        let snapshot = Snapshot {
            meta: Default::default(),
            snapshot: SnapshotData::Local(Arc::clone(&snapshot)),
        };
        let believed = [
            streamed[0],
            streamed[1],
            network.append_entries(heartbeat(), option()).await.is_ok(),
            network.vote(candidacy.clone(), option()).await.is_ok(),
            network.pre_vote(candidacy, option()).await.is_ok(),
            network
                .full_snapshot(own_vote(true), snapshot, std::future::pending(), option())
                .await
                .is_ok(),
        ];
        assert_eq!(believed, [is_believed; 6], "term {term}");
    }
}

/// Raft counts the candidate's own vote with the answers of others, and that one is to be safe when
/// it is counted.
#[tokio::test]
async fn an_answer_to_a_candidacy_counts_only_while_the_candidates_own_vote_does() {
    let member = Follows::default();
    let asked = Arc::clone(&member.asked);
    let mut network = network(member.clone(), HOUR).await;
    let votes = Arc::clone(&network.factory.votes);
    let candidacy = VoteRequest::new(own_vote(false), None);
    let mut handover = candidacy.clone();
    handover.leadership_transfer = true;
    let counted = async |network: &mut Network, request: &VoteRequest<TypeConfig>| {
        let pre_vote = network.pre_vote(request.clone(), RPCOption::new(HOUR)).await;
        let vote = network.vote(request.clone(), RPCOption::new(HOUR)).await;
        [pre_vote, vote].map(|answer| answer.is_ok_and(|answer| answer.vote_granted))
    };
    assert_eq!(counted(&mut network, &candidacy).await, [false; 2], "it may be a wiped one");
    votes.set_gate(VoteGate::OpensAt(Instant::now() + HOUR));
    assert_eq!(counted(&mut network, &candidacy).await, [false; 2], "it has just started");
    assert_eq!(asked.load(Ordering::SeqCst), 0, "no vote is asked for in vain");
    assert_eq!(counted(&mut network, &handover).await, [true; 2]);
    votes.set_gate(VoteGate::OpensAt(Instant::now()));
    assert_eq!(counted(&mut network, &candidacy).await, [true; 2]);
    assert_eq!(asked.load(Ordering::SeqCst), 4);
    // Sealed while the answer is on its way.
    let mut network =
        self::network(Follows { sealed: Some(Arc::clone(&votes)), ..member }, HOUR).await;
    network.factory.votes = votes;
    assert_eq!(counted(&mut network, &handover).await, [false; 2]);
    assert_eq!(asked.load(Ordering::SeqCst), 5);
}
