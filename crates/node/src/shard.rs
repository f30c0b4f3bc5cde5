//! One shard on one node: as a voter in its primary region, or as a replica elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meridian_consensus::{NotLeading, RaftGroup};
use meridian_proto::shard::{self as wire, read_position_response, shard_client::ShardClient};
use meridian_storage::{ReadView, ShardState, StorageError, fatal};
use meridian_types::{DatabaseId, NodeId, ReadRange};
use tokio::sync::watch;

use crate::clock::wall_ms;
use crate::directory::Directory;
use crate::peers::PeerChannels;
use crate::proposer::{Proposer, WriteReply, WriteRequest};
use crate::replica::Replica;
use crate::round::Rounds;

/// How long a voter may take to learn a read position, and then to apply up to it.
const READ_POSITION_TIMEOUT: Duration = Duration::from_secs(1);

const ALONE_AFTER: Duration = Duration::from_secs(5);

/// Says whether this node leads a group, for reads: by its lease, or else by asking a quorum, once for all
/// that wait.
pub(crate) struct ReadGate {
    rounds: Rounds<Result<(), NotLeading>>,
}

impl ReadGate {
    pub(crate) fn start(group: RaftGroup) -> Self {
        Self {
            rounds: Rounds::start(move || {
                let group = group.clone();
                async move { group.read_index().await }
            }),
        }
    }

    /// On success the state applied here holds every write that was acknowledged before this call.
    ///
    /// A lease read also needs an entry of this term applied: before, the state may lack what an earlier
    /// leader acknowledged. The lease is looked at after the call began, so even a node that is stopped
    /// right after and wakes much later returns what was the newest state at some time during the call.
    /// The term in which that was so.
    pub(crate) async fn confirm(&self, group: &RaftGroup) -> Result<u64, NotLeading> {
        let leadership = group.leadership()?;
        let applied_term = group.applied().borrow().1;
        if applied_term == leadership.term && leadership.lease_until.is_some_and(|until| Instant::now() < until) {
            return Ok(leadership.term);
        }
        self.rounds.join().await.unwrap_or(Err(NotLeading { leader: None }))?;
        match group.leadership()? {
            // Another term began meanwhile: nobody knows which one the quorum confirmed.
            other if other.term != leadership.term => Err(NotLeading { leader: None }),
            same => Ok(same.term),
        }
    }
}

/// A read at one node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum ReadReply {
    Done(ReadView),
    NotLeader(Option<NodeId>),
    Unavailable(String),
}

/// A shard that this node votes in.
pub(crate) struct Voter {
    pub(crate) group: RaftGroup,
    pub(crate) state: Arc<ShardState>,
    directory: Arc<dyn Directory>,
    gate: Arc<ReadGate>,
    proposer: Proposer,
    recovered: Arc<AtomicBool>,
    started: Instant,
    positions: Rounds<Result<ReadPosition, ReadReply>>,
}

impl Voter {
    pub(crate) fn start(
        group: RaftGroup,
        directory: Arc<dyn Directory>,
        peers: Arc<PeerChannels>,
        refusal: Arc<dyn Fn() -> Option<String> + Send + Sync>,
    ) -> Self {
        let gate = Arc::new(ReadGate::start(group.clone()));
        let state = group.state();
        let proposer = Proposer::start(crate::proposer::ProposerParts {
            group: group.clone(),
            state: Arc::clone(&state),
            directory: Arc::clone(&directory),
            gate: Arc::clone(&gate),
            refusal,
        });
        let asking = group.clone();
        let positions = Rounds::start(move || ask_leader(asking.clone(), Arc::clone(&peers)));
        let recovered = Arc::new(AtomicBool::new(false));
        let (recovering, done) = (group.clone(), Arc::clone(&recovered));
        tokio::spawn(async move {
            while !recovering.recovered(Duration::from_secs(60)).await {}
            done.store(true, Ordering::Relaxed);
        });
        Self { group, state, directory, gate, proposer, recovered, started: Instant::now(), positions }
    }

    /// Whether what was committed when this node started is applied here. Without a leader to tell, a state
    /// that is there is served all the same after a while.
    pub(crate) fn has_caught_up(&self) -> bool {
        let alone = || self.group.status().leader.is_none() && serves_alone(self.started, &self.state);
        self.recovered.load(Ordering::Relaxed) || alone()
    }

    pub(crate) async fn write(&self, request: WriteRequest) -> WriteReply {
        self.proposer.write(request).await
    }

    /// The sequence that a strong read needs which begins now. Only a leader knows.
    pub(crate) async fn read_position(&self) -> Result<ReadPosition, ReadReply> {
        match self.gate.confirm(&self.group).await {
            Ok(_) => Ok(ReadPosition { sequence: self.state.position().sequence, time_ms: wall_ms() }),
            Err(not_leading) => Err(ReadReply::NotLeader(not_leading.leader)),
        }
    }

    /// A strong read: here if this node leads, or after asking the leader how far to wait.
    pub(crate) async fn read_strong(&self, database: DatabaseId, ranges: &[ReadRange]) -> ReadReply {
        let position = match self.group.leadership() {
            Ok(_) => self.read_position().await,
            Err(_) => match self.positions.join().await {
                Some(position) => position,
                None => Err(ReadReply::Unavailable("the node is stopping".to_owned())),
            },
        };
        let position = match position {
            Ok(position) => position,
            Err(reply) => return reply,
        };
        if !wait_applied(self.group.applied(), position.sequence, READ_POSITION_TIMEOUT).await {
            return ReadReply::Unavailable("this node lags behind the leader".to_owned());
        }
        let view = read(&self.state, database, ranges, position.time_ms);
        let id = self.group.id();
        if !self.directory.holds_lease(id.shard, id.epoch) {
            return ReadReply::NotLeader(None);
        }
        ReadReply::Done(view)
    }
}

async fn ask_leader(group: RaftGroup, peers: Arc<PeerChannels>) -> Result<ReadPosition, ReadReply> {
    let leader = match group.leadership() {
        // It became the leader meanwhile: let the caller come again.
        Ok(_) => return Err(ReadReply::NotLeader(None)),
        Err(not_leading) => not_leading.leader,
    };
    let channel = leader.and_then(|leader| peers.requests(leader));
    let Some(channel) = channel else { return Err(ReadReply::NotLeader(None)) };
    let id = group.id();
    let request =
        wire::ReadPositionRequest { group: Some(wire::ShardEpoch { shard: id.shard.0, epoch: id.epoch.0.into() }) };
    let mut client = ShardClient::new(channel);
    let answer = tokio::time::timeout(READ_POSITION_TIMEOUT, client.read_position(request)).await;
    let unavailable = |reason: String| Err(ReadReply::Unavailable(format!("the leader did not answer: {reason}")));
    match answer {
        Err(elapsed) => unavailable(elapsed.to_string()),
        Ok(Err(status)) => unavailable(status.message().to_owned()),
        Ok(Ok(response)) => match response.into_inner().result {
            Some(read_position_response::Result::Position(position)) => {
                Ok(ReadPosition { sequence: position.sequence, time_ms: position.time_ms })
            }
            Some(read_position_response::Result::NotLeader(hint)) => {
                Err(ReadReply::NotLeader(Some(hint.leader).filter(|leader| *leader != 0)))
            }
            Some(read_position_response::Result::Unavailable(reason)) => unavailable(reason),
            None => unavailable("an empty answer".to_owned()),
        },
    }
}

/// Nobody can tell a node that started how far the shard is: what it has is shown after a while, if it has
/// anything, rather than nothing for as long as it is cut off.
pub(crate) fn serves_alone(started: Instant, state: &ShardState) -> bool {
    started.elapsed() >= ALONE_AFTER && state.position().sequence > 0
}

/// Waits until `sequence` is applied; false if that takes too long.
pub(crate) async fn wait_applied(mut applied: watch::Receiver<(u64, u64)>, sequence: u64, within: Duration) -> bool {
    if applied.borrow().0 >= sequence {
        return true;
    }
    let reached = applied.wait_for(|(newest, _)| *newest >= sequence);
    matches!(tokio::time::timeout(within, reached).await, Ok(Ok(_)))
}

/// Reads the state as it is. Storage that cannot be read stops the process.
fn read(state: &ShardState, database: DatabaseId, ranges: &[ReadRange], now_ms: u64) -> ReadView {
    or_fatal(state.read(database, ranges, now_ms))
}

/// What a strong read needs to have applied, and the leader's wall clock: what has expired by it is gone,
/// whichever voter reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadPosition {
    pub(crate) sequence: u64,
    pub(crate) time_ms: u64,
}

/// A shard on this node.
#[derive(Clone)]
pub(crate) enum LocalShard {
    Voter(Arc<Voter>),
    Replica(Arc<Replica>),
}

impl LocalShard {
    pub(crate) fn state(&self) -> &Arc<ShardState> {
        match self {
            Self::Voter(voter) => &voter.state,
            Self::Replica(replica) => replica.state(),
        }
    }

    pub(crate) fn applied(&self) -> watch::Receiver<(u64, u64)> {
        match self {
            Self::Voter(voter) => voter.group.applied(),
            Self::Replica(replica) => replica.applied(),
        }
    }

    /// An eventual read, from a state no older than `min_sequence`.
    pub(crate) async fn read_eventual(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
        min_sequence: u64,
    ) -> ReadReply {
        let has_caught_up = match self {
            Self::Voter(voter) => voter.has_caught_up(),
            Self::Replica(replica) => replica.has_caught_up(),
        };
        if !has_caught_up {
            return ReadReply::Unavailable("this node has not caught up since it started".to_owned());
        }
        if !wait_applied(self.applied(), min_sequence, READ_POSITION_TIMEOUT).await {
            return ReadReply::Unavailable("this node lags behind what this gateway has shown before".to_owned());
        }
        ReadReply::Done(read(self.state(), database, ranges, wall_ms()))
    }
}

/// Storage errors on a path where going on is not safe.
pub(crate) fn or_fatal<T>(result: Result<T, StorageError>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => fatal(&error),
    }
}
