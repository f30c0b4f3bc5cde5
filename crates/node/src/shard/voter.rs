//! A shard that this node votes in, in one epoch: its writes and its strong reads. Its end is in
//! `sealing`.
//!
//! A write waits here for a leader before it is queued; a strong read for an index, and then for
//! the state to reach it. Both leave under the epoch lease only.

mod log;
pub(crate) mod sealing;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use meridian_consensus::{NotLeading, RaftGroup};
use meridian_storage::{ReadView, ShardState, ShippedLog, or_fatal};
use meridian_types::{DatabaseId, EpochHistory, NodeId, ReadRange};
use tokio_util::sync::CancellationToken;

use crate::cluster_view::epoch_lease::{EpochLease, Fenced};
use crate::cluster_view::view::Directory;
use crate::host::clock::boot_time;
use crate::host::clocks::TimeSource;
use crate::network::peers::PeerChannels;
use crate::queues::{QueueParts, Queues, Shown};
use crate::read::execution::Reads;
use crate::read::freshness::{serves_alone, wait_applied};
use crate::read::read_index::{LeaderIndex, ReadGate, ReadIndex};
use crate::read::refusal::{NotServed, ReadRefusal};
use crate::read::shared_call::SharedCall;
use crate::time_budget::{LEADER_TIMEOUT, READ_INDEX_TIMEOUT};
use crate::write::division::WriteBytes;
use crate::write::proposer::{
    AdmissionPolicy, Proposer, Reserved, WriteRefusal, WriteReply, WriteRequest,
};

/// A shard that this node votes in, in one epoch.
pub(crate) struct Voter {
    pub(crate) group: RaftGroup,
    pub(crate) state: Arc<ShardState>,
    pub(crate) history: EpochHistory,
    /// The batches that this node took as a replica of the epochs before, up to the base, as far as
    /// they were kept.
    pub(crate) shipped: ShippedLog,
    directory: Arc<Directory>,
    lease: EpochLease,
    gate: Arc<ReadGate>,
    proposer: Proposer,
    queues: Queues,
    reads: Reads,
    recovered: Arc<AtomicBool>,
    started: Instant,
    leader_index: SharedCall<Result<ReadIndex, NotServed>>,
    pub(crate) stop: CancellationToken,
}

/// The parts that a voter works with.
pub(crate) struct VoterParts {
    pub(crate) group: RaftGroup,
    pub(crate) history: EpochHistory,
    pub(crate) shipped: ShippedLog,
    pub(crate) directory: Arc<Directory>,
    pub(crate) peers: Arc<PeerChannels>,
    pub(crate) policy: Arc<dyn AdmissionPolicy>,
    pub(crate) writes: WriteBytes,
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
            time: Arc::clone(&time),
        });
        let leader = LeaderIndex { group: group.clone(), gate: Arc::clone(&gate), peers };
        let leader = Arc::new(leader);
        let leader_index = SharedCall::start(move || {
            let leader = Arc::clone(&leader);
            async move { leader.fetch().await }
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
        let shown = Arc::new(Shown {
            group: group.clone(),
            state: Arc::clone(&state),
            gate: Arc::clone(&gate),
            lease: lease.clone(),
            reads: reads.clone(),
            time,
        });
        let queues = Queues::start(QueueParts {
            directory: Arc::clone(&directory),
            shown,
            proposer: proposer.clone(),
        });
        Self {
            group,
            state,
            history,
            shipped,
            directory,
            lease,
            gate,
            proposer,
            queues,
            reads,
            recovered,
            started,
            leader_index,
            stop,
        }
    }

    pub(crate) fn reads(&self) -> &Reads {
        &self.reads
    }

    pub(crate) fn queues(&self) -> &Queues {
        &self.queues
    }

    /// The term in which this node leads, at some time after this call.
    pub(crate) async fn confirm(&self) -> Result<u64, NotLeading> {
        self.gate.confirm(&self.group).await
    }

    /// Takes no part any more. The state is flushed whole: the log is not read again.
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

    /// Waits for a leader, and then writes through the proposer. At a voter that knows no leader
    /// the write waits for one, for up to 600 ms; only then is it queued. A write that the proposer
    /// has not evaluated 700 ms after it came is refused.
    ///
    /// `late`: a leader that does not answer the caller. While no other is known, and nothing is
    /// received from it here either, it is waited for: the answer that there is none would take as
    /// long to be asked again as to come.
    ///
    /// `valid_until`, on [`boot_time`]'s clock: later it is refused, since the outcome of an
    /// earlier try may be forgotten. With nothing to wait for the proposer has the write when this
    /// was first polled.
    pub(crate) async fn write_when_led(
        &self,
        request: WriteRequest,
        late: Option<NodeId>,
        valid_until: Duration,
    ) -> WriteReply {
        match self.reserve(&request) {
            Ok(reserved) => {
                self.write_reserved_when_led(request, reserved, late, valid_until).await
            }
            Err(refusal) => refusal,
        }
    }

    /// See [`Proposer::reserve`].
    ///
    /// # Errors
    /// Where this node does not lead, its own lack of room says nothing of the leader's.
    pub(crate) fn reserve(&self, request: &WriteRequest) -> Result<Reserved, WriteReply> {
        let refused = |refusal| match self.group.leadership() {
            Ok(_) => refusal,
            Err(NotLeading { leader }) => WriteReply::NotLeader(leader),
        };
        self.proposer.reserve(request).map_err(refused)
    }

    /// As [`Voter::write_when_led`].
    pub(crate) async fn write_reserved_when_led(
        &self,
        request: WriteRequest,
        reserved: Reserved,
        late: Option<NodeId>,
        valid_until: Duration,
    ) -> WriteReply {
        let until = reserved.until.min(Instant::now() + LEADER_TIMEOUT);
        let in_touch =
            tokio::time::timeout_at(until.into(), self.group.leader_in_touch(late)).await.is_ok();
        if boot_time() >= valid_until {
            return WriteReply::NotCommitted(WriteRefusal::Expired);
        }
        match self.proposer.write(request, reserved).await {
            // Nothing was received from it here either: the caller need not wait for it.
            WriteReply::NotLeader(leader) if !in_touch && leader == late => {
                WriteReply::NotLeader(None)
            }
            reply => reply,
        }
    }

    /// The index of a strong read that begins now, where this node leads.
    pub(crate) async fn read_index(&self) -> Result<ReadIndex, NotServed> {
        self.gate.index(&self.group).await
    }

    /// A strong read: here if this node leads, or after asking the leader how far to wait.
    pub(crate) async fn read_strong(
        &self,
        database: DatabaseId,
        ranges: &[ReadRange],
    ) -> Result<Fenced<ReadView>, NotServed> {
        let index = match self.group.leadership() {
            Ok(_) => self.read_index().await,
            Err(_) => match self.leader_index.join().await {
                Some(index) => index,
                None => Err(ReadRefusal::Stopping.into()),
            },
        }?;
        if !wait_applied(self.group.applied(), index.sequence, READ_INDEX_TIMEOUT).await {
            return Err(ReadRefusal::BehindLeader.into());
        }
        let view = self.reads.read(&self.state, database, ranges).await?;
        self.lease.release(view).ok_or(NotServed::NotLeader(None))
    }
}

#[cfg(test)]
mod tests;
