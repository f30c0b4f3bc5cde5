//! One shard on one node as a voter, in its primary region.

pub(crate) mod sealing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meridian_consensus::{NotLeading, RaftGroup, ReadLogFailure};
use meridian_memory::ByteBudget;
use meridian_proto::shard::{self as wire, read_position_response, shard_client::ShardClient};
use meridian_storage::{ReadView, ShardState, ShippedLog, StorageError, StoredBatch, or_fatal};
use meridian_types::{DatabaseId, EpochHistory, NodeId, ReadRange};
use tokio_util::sync::CancellationToken;

use crate::cluster_view::epoch_lease::{EpochLease, Fenced};
use crate::cluster_view::view::Directory;
use crate::host::clock::boot_time;
use crate::host::clocks::TimeSource;
use crate::network::peers::PeerChannels;
use crate::read::execution::{ReadRefused, Reads};
use crate::read::freshness::{serves_alone, wait_applied};
use crate::read::read_index::ReadGate;
use crate::read::shared_call::Rounds;
use crate::time_budget::{LEADER_TIMEOUT, READ_POSITION_TIMEOUT};
use crate::write::proposer::{
    AdmissionPolicy, Admitted, Proposer, WriteRefusal, WriteReply, WriteRequest,
};

/// Why one node did not serve a read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum NotServed {
    /// The leader, if this node knows one.
    NotLeader(Option<NodeId>),
    Unavailable(String),
}

impl From<ReadRefused> for NotServed {
    fn from(refused: ReadRefused) -> Self {
        Self::Unavailable(refused.0)
    }
}

/// A shard that this node votes in, in one epoch.
pub(crate) struct Voter {
    pub(crate) group: RaftGroup,
    pub(crate) state: Arc<ShardState>,
    pub(crate) history: EpochHistory,
    /// What this node took as a replica of the epochs before, up to the base, as far as it was
    /// kept.
    pub(crate) shipped: ShippedLog,
    directory: Arc<Directory>,
    lease: EpochLease,
    gate: Arc<ReadGate>,
    proposer: Proposer,
    reads: Reads,
    recovered: Arc<AtomicBool>,
    started: Instant,
    positions: Rounds<Result<ReadPosition, NotServed>>,
    pub(crate) stop: CancellationToken,
}

/// What a voter works with.
pub(crate) struct VoterParts {
    pub(crate) group: RaftGroup,
    pub(crate) history: EpochHistory,
    pub(crate) shipped: ShippedLog,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) policy: Arc<dyn AdmissionPolicy>,
    pub(crate) writes: ByteBudget,
    pub(crate) time: Arc<dyn TimeSource>,
    pub(crate) reads: Reads,
    /// Its state is that of the base: there is nothing to catch up with.
    pub(crate) founder: bool,
}

impl Voter {
    pub(crate) fn start(parts: VoterParts) -> Self {
        let VoterParts {
            group,
            history,
            shipped,
            directory,
            peers,
            policy,
            writes,
            time,
            reads,
            founder,
        } = parts;
        let gate = Arc::new(ReadGate::start(group.clone()));
        let state = group.state();
        let proposer = Proposer::start(crate::write::proposer::ProposerParts {
            group: group.clone(),
            state: Arc::clone(&state),
            directory: Arc::clone(&directory),
            gate: Arc::clone(&gate),
            policy,
            writes,
            time,
        });
        let asking = Asking { group: group.clone(), gate: Arc::clone(&gate), peers };
        let asking = Arc::new(asking);
        let positions = Rounds::start(move || {
            let asking = Arc::clone(&asking);
            async move { asking.position().await }
        });
        let recovered = Arc::new(AtomicBool::new(founder));
        let stop = CancellationToken::new();
        let (recovering, done, stopped) = (group.clone(), Arc::clone(&recovered), stop.clone());
        tokio::spawn(async move {
            let recovery = async { while !recovering.recovered(Duration::from_secs(60)).await {} };
            tokio::select! {
                () = stopped.cancelled() => {}
                () = recovery => done.store(true, Ordering::Relaxed),
            }
        });
        let started = Instant::now();
        let lease = EpochLease::new(Arc::clone(&directory), group.id());
        Self {
            group,
            state,
            history,
            shipped,
            directory,
            lease,
            gate,
            proposer,
            reads,
            recovered,
            started,
            positions,
            stop,
        }
    }

    pub(crate) fn reads(&self) -> &Reads {
        &self.reads
    }

    /// The term in which this node leads, at some time after this call.
    pub(crate) async fn confirm(&self) -> Result<u64, NotLeading> {
        self.gate.confirm(&self.group).await
    }

    /// Takes no part any more. What was not flushed is flushed: the log is not read again.
    pub(crate) async fn retire(&self) {
        self.proposer.seal();
        self.group.seal();
        self.stop.cancel();
        self.group.shutdown().await;
        let state = Arc::clone(&self.state);
        let flushed = tokio::task::spawn_blocking(move || or_fatal(state.flush()));
        drop(flushed.await);
    }

    /// Whether what was committed when this node started is applied here. Without a leader to tell,
    /// a state that is there is served all the same after a while.
    pub(crate) fn has_caught_up(&self) -> bool {
        // A state that is not this group's yet may be off the shard's history.
        let seeded = || self.state.applied().raft.epoch == Some(self.group.id().epoch);
        let alone = || {
            self.group.status().leader.is_none()
                && seeded()
                && serves_alone(self.started, &self.state)
        };
        self.recovered.load(Ordering::Relaxed) || alone()
    }

    /// `late`: a leader that does not answer whoever asks. While no other is known, and nothing of
    /// it is heard here either, it is waited for: the answer that there is none would take as long
    /// to be asked again as to come.
    ///
    /// `valid_until`, on [`boot_time`]'s clock: later it is refused, since the outcome of an
    /// earlier try may be forgotten. With nothing to wait for the proposer has the write when this
    /// was first polled.
    pub(crate) async fn write(
        &self,
        request: WriteRequest,
        late: Option<NodeId>,
        valid_until: Duration,
    ) -> WriteReply {
        match self.admit(&request) {
            Ok(admitted) => self.write_admitted(request, admitted, late, valid_until).await,
            Err(refusal) => refusal,
        }
    }

    /// See [`Proposer::admit`].
    pub(crate) fn admit(&self, request: &WriteRequest) -> Result<Admitted, WriteReply> {
        self.proposer.admit(request)
    }

    /// As [`Voter::write`].
    pub(crate) async fn write_admitted(
        &self,
        request: WriteRequest,
        admitted: Admitted,
        late: Option<NodeId>,
        valid_until: Duration,
    ) -> WriteReply {
        let until = admitted.until.min(Instant::now() + LEADER_TIMEOUT);
        let in_touch =
            tokio::time::timeout_at(until.into(), self.group.leader_in_touch(late)).await.is_ok();
        if boot_time() >= valid_until {
            return WriteReply::NotCommitted(WriteRefusal::Expired);
        }
        match self.proposer.write(request, admitted).await {
            // It was not heard here either: whoever asks need not wait for it.
            WriteReply::NotLeader(leader) if !in_touch && leader == late => {
                WriteReply::NotLeader(None)
            }
            reply => reply,
        }
    }

    /// The sequence that a strong read needs which begins now. Only a leader knows.
    pub(crate) async fn read_position(&self) -> Result<ReadPosition, NotServed> {
        read_position(&self.group, &self.gate).await
    }

    /// A strong read: here if this node leads, or after asking the leader how far to wait.
    pub(crate) async fn read_strong(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
    ) -> Result<Fenced<ReadView>, NotServed> {
        let position = match self.group.leadership() {
            Ok(_) => self.read_position().await,
            Err(_) => match self.positions.join().await {
                Some(position) => position,
                None => Err(NotServed::Unavailable("the node is stopping".to_owned())),
            },
        }?;
        if !wait_applied(self.group.applied(), position.sequence, READ_POSITION_TIMEOUT).await {
            return Err(NotServed::Unavailable("this node lags behind the leader".to_owned()));
        }
        let view = self.reads.read(&self.state, database, ranges).await?;
        self.lease.release(view).ok_or(NotServed::NotLeader(None))
    }
}

async fn read_position(group: &RaftGroup, gate: &ReadGate) -> Result<ReadPosition, NotServed> {
    match gate.confirm(group).await {
        // Also what another read may have seen here while it took effect.
        Ok(_) => Ok(ReadPosition { sequence: group.state().max_served() }),
        Err(not_leading) => Err(NotServed::NotLeader(not_leading.leader)),
    }
}

/// Asks the leader for a read position, on behalf of all reads that wait for one.
struct Asking {
    group: RaftGroup,
    gate: Arc<ReadGate>,
    peers: Arc<PeerChannels>,
}

impl Asking {
    /// Goes on with the next leader where one is lost meanwhile.
    async fn position(&self) -> Result<ReadPosition, NotServed> {
        let mut failed = NotServed::NotLeader(None);
        let asked = async {
            loop {
                let Err(not_leading) = self.group.leadership() else {
                    return read_position(&self.group, &self.gate).await;
                };
                if let Some(leader) = not_leading.leader {
                    tokio::select! {
                        answer = self.ask(leader) => match answer {
                            Ok(position) => return Ok(position),
                            Err(reply) => failed = reply,
                        },
                        () = self.group.another_leader(Some(leader)) => continue,
                    }
                }
                self.group.leader_in_touch(not_leading.leader).await;
            }
        };
        let asked = tokio::time::timeout(READ_POSITION_TIMEOUT, asked).await;
        asked.unwrap_or(Err(failed))
    }

    async fn ask(&self, leader: NodeId) -> Result<ReadPosition, NotServed> {
        let Some(channel) = self.peers.requests(leader) else {
            return Err(NotServed::NotLeader(None));
        };
        let id = self.group.id();
        let group = Some(wire::ShardEpoch { shard: id.shard.0, epoch: id.epoch.0.into() });
        let answer =
            ShardClient::new(channel).read_position(wire::ReadPositionRequest { group }).await;
        let unavailable =
            |reason: &str| NotServed::Unavailable(format!("the leader did not answer: {reason}"));
        match answer.map_err(|status| unavailable(status.message()))?.into_inner().result {
            Some(read_position_response::Result::Position(position)) => {
                Ok(ReadPosition { sequence: position.sequence })
            }
            Some(read_position_response::Result::NotLeader(hint)) => {
                Err(NotServed::NotLeader(Some(hint.leader).filter(|leader| *leader != 0)))
            }
            Some(read_position_response::Result::Unavailable(reason)) => Err(unavailable(&reason)),
            None => Err(unavailable("an empty answer")),
        }
    }
}

/// What a strong read needs to have applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ReadPosition {
    pub(crate) sequence: u64,
}

impl Voter {
    /// The newest sequence that is in no log of this node any more.
    pub(crate) fn purged(&self) -> Result<u64, StorageError> {
        let base = self.history.base().sequence;
        let first = self.group.first_sequence()?;
        let purged = first.map_or_else(|| self.state.position().sequence, |first| first - 1);
        // Asked for each batch that is shipped: nothing lies before the first epoch.
        if purged > base || base == 0 {
            return Ok(purged);
        }
        let reaches_base = self.shipped.last()?.is_some_and(|last| last.sequence == base);
        let first = self.shipped.first()?.filter(|_| reaches_base);
        Ok(first.map_or(purged, |first| first.sequence - 1))
    }

    /// As `LocalShard::batches_after`: from before the base as a replica took it, else from
    /// Raft's log.
    pub(crate) fn batches_after(
        &self,
        after: u64,
        max_bytes: usize,
    ) -> Result<Option<Vec<StoredBatch>>, StorageError> {
        let base = self.history.base().sequence;
        if after < base {
            return self.shipped.batches_after(after, base, max_bytes);
        }
        match self.group.committed_batches(after + 1, max_bytes) {
            Ok(batches) => Ok(Some(batches)),
            Err(ReadLogFailure::Purged) => Ok(None),
            Err(ReadLogFailure::Storage(error)) => Err(error),
        }
    }

    /// Purges what this node took before the epoch began, up to `sequence` at most.
    pub(crate) fn purge_shipped_through(&self, sequence: u64) -> Result<(), StorageError> {
        let through = sequence.min(self.history.base().sequence);
        match self.shipped.first()? {
            Some(first) if first.sequence <= through => self.shipped.purge_through(through),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
