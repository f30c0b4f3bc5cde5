//! The write path of a shard's leader: group commit over Raft.
//!
//! `backlog` holds the requests that wait, by database, `recent` how much databases write; `admission` says which of them may be proposed now, and
//! `refusal` why not; `room` says when a batch is full, `logged_time` what time a batch may say it
//! is, `dropped` which databases are gone. `term` is what a leader waits for in one term, and in
//! what order it proposes; `session` what it knows in it. `internal` is for writers that no client
//! stands behind, of which `expiry` is one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::RaftGroup;
use meridian_storage::ShardState;
use meridian_types::{DatabaseId, NodeId, RequestId, Transaction, WriteOutcome};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Interval;

use crate::cluster_view::epoch_lease::Fenced;
use crate::cluster_view::view::Directory;
use crate::host::clocks::TimeSource;
use crate::network::departure::Departure;
use crate::read::read_index::ReadGate;
use crate::time_budget::PATIENCE;
use crate::write::division::{Division, HeldForWrite, WriteBytes};
use crate::write::leader_term::{self, LeaderTask, Led};

mod admission;
mod backlog;
mod dropped;
mod expiry;
mod internal;
mod logged_time;
mod recent;
mod refusal;
mod room;
mod session;
mod term;

use backlog::{Backlog, LastCommit, QUEUE_REQUESTS, Queued};
use expiry::Expiry;
use logged_time::{LoggedTime, ShardClock};
use session::{Session, TermEnd};
use term::{Inbox, Term};

pub(crate) use admission::{AdmissionPolicy, AdmitAll};
pub(crate) use refusal::WriteRefusal;

const TICK: Duration = Duration::from_millis(100);

/// The outcome of a write at one node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WriteReply {
    Done(Fenced<WriteOutcome>),
    /// Not committed by this call, now or later.
    NotLeader(Option<NodeId>),
    /// Not committed by this call, now or later, for this reason.
    NotCommitted(WriteRefusal),
    /// It may commit yet. Asking again with the same request id tells.
    Unknown,
}

impl WriteReply {
    pub(crate) fn outcome(&self) -> Option<&WriteOutcome> {
        match self {
            Self::Done(outcome) => Some(outcome),
            _ => None,
        }
    }
}

pub(crate) struct WriteRequest {
    pub(crate) database: DatabaseId,
    pub(crate) request_id: RequestId,
    pub(crate) transaction: Transaction,
    /// An earlier try of it may arrive yet, here or elsewhere: whatever the outcome is, it is
    /// logged, so that the late one learns it and does nothing.
    pub(crate) retry: bool,
}

/// The bytes that a request holds while it waits, and until when.
#[derive(Clone)]
pub(crate) struct Reserved {
    held: Arc<HeldForWrite>,
    pub(crate) until: Instant,
}

/// Takes writes for one shard. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Queued>,
    /// Among the writes that wait.
    places: Division,
    last_commit: LastCommit,
    sealed: watch::Sender<bool>,
    drained: watch::Receiver<Option<u64>>,
    budget: WriteBytes,
    clock: ShardClock,
}

/// The parts that the proposer works with.
#[cfg_attr(test, derive(Clone))]
pub(crate) struct ProposerParts {
    pub(crate) group: RaftGroup,
    pub(crate) state: Arc<ShardState>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) policy: Arc<dyn AdmissionPolicy>,
    /// For the writes that wait at this node, of all of its shards.
    pub(crate) writes: WriteBytes,
    pub(crate) time: Arc<dyn TimeSource>,
}

impl Proposer {
    /// Starts the proposer's task. It ends when the last handle is dropped.
    pub(crate) fn start(parts: ProposerParts) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS);
        let (sealed, drained) = (watch::Sender::new(false), watch::Sender::new(None));
        let (following, budget) = (drained.subscribe(), parts.writes.clone());
        let task = Task::new(parts, requests, sealed.subscribe(), drained);
        let (clock, last_commit) = (task.time.clock(), task.inbox.backlog.last_commit());
        tokio::spawn(task.run());
        let places = Division::new(QUEUE_REQUESTS);
        Self { queue, places, last_commit, sealed, drained: following, budget, clock }
    }

    /// The shard's time while this node leads, in milliseconds since the Unix epoch. `now` on the
    /// monotonic clock.
    pub(crate) fn time_ms(&self, now: Duration) -> u64 {
        self.clock.time_ms(now)
    }

    /// From now on every write is refused.
    pub(crate) fn seal(&self) {
        self.sealed.send_replace(true);
    }

    /// Waits until this node leads, is sealed, and has nothing in flight any more; the term in
    /// which that is so. Everything that was ever in its log is applied then.
    pub(crate) async fn drained(&self) -> u64 {
        let mut drained = self.drained.clone();
        match drained.wait_for(Option::is_some).await.map(|term| *term) {
            Ok(Some(term)) => term,
            // The task is gone: it will never be so.
            _ => std::future::pending().await,
        }
    }

    /// Counts the bytes of a request that has come, before it waits for anything.
    ///
    /// # Errors
    /// The refusal, where there is no room for it.
    pub(crate) fn reserve(&self, request: &WriteRequest) -> Result<Reserved, WriteReply> {
        match self.budget.try_take(request.database, backlog::size(request)) {
            Ok(held) => Ok(Reserved { held: Arc::new(held), until: Instant::now() + PATIENCE }),
            Err(no_room) => Err(refused_for_room(no_room.into())),
        }
    }

    /// May be dropped at any await: a request that was taken is carried out all the same.
    pub(crate) async fn write(&self, request: WriteRequest, reserved: Reserved) -> WriteReply {
        let Reserved { held, until } = reserved;
        let Some(place) = self.places.take(request.database, 1) else {
            return refused_for_room(WriteRefusal::ShareOfQueue);
        };
        let ((reply, mut answer), since) = (oneshot::channel(), Instant::now());
        let departure = Arc::<Departure>::default();
        let queued = Queued {
            request,
            since,
            until,
            departure: Arc::clone(&departure),
            reply,
            held,
            _place: place,
        };
        if let Err(refused) = self.queue.try_send(queued) {
            return WriteReply::NotCommitted(match refused {
                mpsc::error::TrySendError::Full(_) => WriteRefusal::QueueFull,
                mpsc::error::TrySendError::Closed(_) => WriteRefusal::Stopping,
            });
        }
        match tokio::time::timeout_at(until.into(), &mut answer).await {
            Ok(answer) => answer.unwrap_or(WriteReply::Unknown),
            // Whatever holds the task up.
            Err(_) if departure.take_back() => {
                WriteReply::NotCommitted(self.last_commit.refusal(since))
            }
            Err(_) => answer.await.unwrap_or(WriteReply::Unknown),
        }
    }
}

/// There is no room for a write; the part of its database is taken, most often.
fn refused_for_room(refusal: WriteRefusal) -> WriteReply {
    if matches!(refusal, WriteRefusal::ShareOfQueue | WriteRefusal::ShareOfMemory { .. }) {
        metrics::counter!("meridian_proposer_share_refusals_total").increment(1);
    }
    WriteReply::NotCommitted(refusal)
}

struct Task {
    parts: ProposerParts,
    time: LoggedTime,
    inbox: Inbox,
    expiry: Expiry,
    seal: watch::Receiver<bool>,
    drained: watch::Sender<Option<u64>>,
    ticks: Interval,
    /// The next batch waits so long: the one before was refused.
    not_before: Instant,
    /// A term in which batches were left in flight: to lead in it again could number one twice.
    left_term: Option<u64>,
}

impl Task {
    fn new(
        parts: ProposerParts,
        requests: mpsc::Receiver<Queued>,
        seal: watch::Receiver<bool>,
        drained: watch::Sender<Option<u64>>,
    ) -> Self {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        Self {
            time: LoggedTime::new(parts.state.applied().time_ms, parts.time.now()),
            parts,
            inbox: Inbox { requests, backlog: Backlog::new(Instant::now()) },
            expiry: Expiry::new(Instant::now()),
            seal,
            drained,
            ticks,
            not_before: Instant::now(),
            left_term: None,
        }
    }

    async fn run(mut self) {
        while self.lead_or_wait().await.is_some() {}
    }

    /// Leads for a term, or waits for something to change. `None`: no handle is left to send
    /// requests.
    async fn lead_or_wait(&mut self) -> Option<()> {
        let mut applied = self.parts.group.applied();
        applied.mark_unchanged();
        self.time.learn(self.parts.state.applied().time_ms, self.parts.time.now());
        match self.parts.group.leadership() {
            Ok(leadership) if self.left_term != Some(leadership.term) => {
                self.ticks.reset_immediately();
                let group = self.parts.group.clone();
                match leader_term::lead(&group, leadership.term, self).await {
                    Led::NotBegun | Led::Ended(TermEnd::Drained) => {}
                    Led::Ended(TermEnd::Left) => self.left_term = Some(leadership.term),
                    Led::Closed => return None,
                }
            }
            observed => {
                // Wait for a change of what was just seen: anything else could be true at once, for
                // ever.
                let term = observed.as_ref().ok().map(|leadership| leadership.term);
                let leader = observed.err().and_then(|not_leading| not_leading.leader);
                self.inbox.backlog.decline(leader);
                tokio::select! {
                    biased;
                    () = self.parts.group.leadership_changed(term) => {}
                    // Declined once leadership was looked at anew: it may have changed since
                    // the request before.
                    queued = self.inbox.requests.recv() => self.inbox.backlog.push(queued?),
                    // The logged time is learned at most once a tick while batches are applied, not
                    // with each.
                    () = async {
                        if applied.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                        self.ticks.tick().await;
                    } => {}
                }
            }
        }
        Some(())
    }
}

impl LeaderTask for Task {
    type End = TermEnd;
    type Session<'a> = Term<'a>;

    async fn before_first_entry(&mut self) -> Option<()> {
        let Inbox { requests, backlog } = &mut self.inbox;
        tokio::select! {
            queued = requests.recv(), if !backlog.is_full() => backlog.push(queued?),
            _ = self.ticks.tick() => backlog.give_up(),
        }
        Some(())
    }

    /// Nothing is evaluated before. The overlay lives and dies with the session.
    fn begin(&mut self, term: u64) -> Term<'_> {
        let session = Session::new(&self.parts, &mut self.time, term, self.not_before);
        let mut term = Term {
            term,
            session,
            inbox: &mut self.inbox,
            expiry: &mut self.expiry,
            not_before: &mut self.not_before,
            ticks: &mut self.ticks,
            seal: self.seal.clone(),
            drained: &self.drained,
            sealed: false,
            refused: false,
        };
        term.look_at_seal();
        term
    }
}

#[cfg(test)]
mod tests;
