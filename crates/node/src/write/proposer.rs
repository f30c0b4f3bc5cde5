//! The write path of a shard's leader: group commit over Raft.
//!
//! `backlog` holds the requests that wait, `admission` says which of them may be proposed now, and
//! `refusal` why not; `room` says when a batch is full, `logged_time` what time a batch may say it
//! is, `dropped` which databases are gone, and `session` is one term of leadership.

use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::{ProposalFailure, RaftGroup};
use meridian_memory::{ByteBudget, Held};
use meridian_storage::ShardState;
use meridian_types::{DatabaseId, NodeId, RequestId, Transaction, WriteOutcome};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Interval;

use crate::cluster_view::epoch_lease::Fenced;
use crate::cluster_view::view::Directory;
use crate::host::clocks::TimeSource;
use crate::network::departure::Departure;
use crate::shard::voter::ReadGate;

mod admission;
mod backlog;
mod dropped;
mod logged_time;
mod refusal;
mod room;
mod session;

use backlog::{Backlog, QUEUE_REQUESTS, Queued};
use logged_time::LoggedTime;
use session::{Session, Swept};

pub(crate) use admission::{AdmissionPolicy, AdmitAll};
pub(crate) use refusal::WriteRefusal;

const TICK: Duration = Duration::from_millis(100);
/// How long a write waits at a node, from when it came until it is evaluated; then it is refused.
/// Less than a gateway waits for its answer: what was not done is known not to have been.
pub(crate) const PATIENCE: Duration = Duration::from_millis(700);
/// How often it is looked whether something has expired: until the log says so, it is there for
/// all. With [`TICK`], at least every 250 ms.
const SWEEP: Duration = Duration::from_millis(100);
/// Before a leader proposes again what Raft has refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);

/// What became of a write at one node.
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

/// What a request has, and until when, while it waits.
#[derive(Clone)]
pub(crate) struct Admitted {
    held: Arc<Held>,
    pub(crate) until: Instant,
}

/// Takes writes for one shard. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Queued>,
    sealed: watch::Sender<bool>,
    drained: watch::Receiver<Option<u64>>,
    budget: ByteBudget,
}

/// What the proposer works with.
#[cfg_attr(test, derive(Clone))]
pub(crate) struct ProposerParts {
    pub(crate) group: RaftGroup,
    pub(crate) state: Arc<ShardState>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) policy: Arc<dyn AdmissionPolicy>,
    /// For the writes that wait at this node, of all of its shards.
    pub(crate) writes: ByteBudget,
    pub(crate) time: Arc<dyn TimeSource>,
}

impl Proposer {
    /// Starts the proposer's task. It ends when the last handle is dropped.
    pub(crate) fn start(parts: ProposerParts) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS);
        let (sealed, drained) = (watch::Sender::new(false), watch::Sender::new(None));
        let proposer = Self {
            queue,
            sealed: sealed.clone(),
            drained: drained.subscribe(),
            budget: parts.writes.clone(),
        };
        tokio::spawn(Task::new(parts, requests, sealed.subscribe(), drained).run());
        proposer
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
    pub(crate) fn admit(&self, request: &WriteRequest) -> Result<Admitted, WriteReply> {
        match self.budget.try_take(backlog::size(request)) {
            Ok(held) => Ok(Admitted { held: Arc::new(held), until: Instant::now() + PATIENCE }),
            Err(exhausted) => Err(WriteReply::NotCommitted(exhausted.into())),
        }
    }

    /// May be dropped at any await: a request that was taken is carried out all the same.
    pub(crate) async fn write(&self, request: WriteRequest, admitted: Admitted) -> WriteReply {
        let Admitted { held, until } = admitted;
        let (reply, mut answer) = oneshot::channel();
        let departure = Arc::<Departure>::default();
        let queued = Queued {
            request,
            since: Instant::now(),
            until,
            departure: Arc::clone(&departure),
            reply,
            held,
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
            Err(_) if departure.take_back() => WriteReply::NotCommitted(WriteRefusal::NoQuorum),
            Err(_) => answer.await.unwrap_or(WriteReply::Unknown),
        }
    }
}

struct Task {
    parts: ProposerParts,
    time: LoggedTime,
    requests: mpsc::Receiver<Queued>,
    /// Taken from there, and not looked at yet.
    backlog: Backlog,
    seal: watch::Receiver<bool>,
    drained: watch::Sender<Option<u64>>,
    /// Kept over sessions: a refused sweep is not tried again at once.
    next_sweep: Instant,
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
        let (next_sweep, not_before) = (Instant::now(), Instant::now());
        let time = LoggedTime::new(parts.state.applied().time_ms, parts.time.now());
        let (backlog, left_term) = (Backlog::default(), None);
        Self { parts, time, requests, backlog, seal, drained, next_sweep, not_before, left_term }
    }

    async fn run(mut self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while self.lead_or_wait(&mut ticks).await.is_some() {}
    }

    /// Leads for a term, or waits for something to change. `None`: nobody can send requests any
    /// more.
    async fn lead_or_wait(&mut self, ticks: &mut Interval) -> Option<()> {
        let mut applied = self.parts.group.applied();
        applied.mark_unchanged();
        self.time.learn(self.parts.state.applied().time_ms, self.parts.time.now());
        match self.parts.group.leadership() {
            Ok(leadership) if self.left_term != Some(leadership.term) => {
                match self.lead(leadership.term).await? {
                    TermEnd::Drained => {}
                    TermEnd::Left => self.left_term = Some(leadership.term),
                }
            }
            observed => {
                // Wait for a change of what was just seen: anything else could be true at once, for
                // ever.
                let term = observed.as_ref().ok().map(|leadership| leadership.term);
                self.backlog.decline(observed.err().and_then(|not_leading| not_leading.leader));
                tokio::select! {
                    biased;
                    () = self.parts.group.leadership_changed(term) => {}
                    // Looked at when it is known anew who leads: that may have changed while nobody
                    // asked.
                    queued = self.requests.recv() => self.backlog.push(queued?),
                    // The logged time is learned at most once a tick while batches are applied, not
                    // with each.
                    () = async {
                        if applied.changed().await.is_err() {
                            std::future::pending::<()>().await;
                        }
                        ticks.tick().await;
                    } => {}
                }
            }
        }
        Some(())
    }

    /// Leads in one term, until leadership is lost or a batch is refused. `None`: nobody can send
    /// requests any more.
    ///
    /// Nothing is evaluated before everything in the log up to this term's start is applied, which
    /// is when an entry of this term is. The overlay lives and dies with the session.
    async fn lead(&mut self, term: u64) -> Option<TermEnd> {
        let group = self.parts.group.clone();
        let lost = group.leadership_changed(Some(term));
        tokio::pin!(lost);
        let mut applied = group.applied();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while applied.borrow_and_update().1 < term {
            tokio::select! {
                () = &mut lost => return Some(TermEnd::Drained),
                changed = applied.changed() => changed.ok()?,
                queued = self.requests.recv(), if !self.backlog.is_full() => self.backlog.push(queued?),
                _ = ticks.tick() => self.backlog.give_up(),
            }
        }
        let mut session = Session::new(&self.parts, &mut self.time, term, self.not_before);
        // After a batch was refused: evaluate no more, let those in flight end, and begin anew.
        // What was refused, as it is while a quorum has not answered for a moment, is tried again
        // then.
        let mut refused = false;
        let mut seal = self.seal.clone();
        loop {
            let sealed = *seal.borrow_and_update();
            if sealed {
                self.backlog.refuse_as_sealed();
                if session.is_idle() {
                    self.drained.send_replace(Some(term));
                }
            }
            let (slowed, not_before) = (session.is_slowed(), session.not_before);
            let begins_at = session
                .begins_at(&self.backlog)
                .filter(|_| !sealed && !refused && session.has_room());
            tokio::select! {
                biased;
                () = &mut lost => return Some(session.leave()),
                result = session.oldest(), if !session.is_idle() => {
                    if session.completed(result).is_err() {
                        return Some(session.leave());
                    }
                }
                queued = self.requests.recv(), if !self.backlog.is_full() => {
                    self.backlog.push(queued?);
                    while !self.backlog.is_full() && let Ok(next) = self.requests.try_recv() {
                        self.backlog.push(next);
                    }
                }
                _ = ticks.tick() => {
                    self.backlog.give_up();
                    session.look_at_clocks();
                }
                () = tokio::time::sleep_until(not_before.into()), if slowed && !self.backlog.is_empty() => {}
                () = tokio::time::sleep_until(begins_at.unwrap_or(not_before).into()), if begins_at.is_some() => {}
                changed = seal.changed() => changed.ok()?,
            }
            while !sealed && !refused && session.has_room() {
                let to_drop = session.to_drop();
                let proposed = if !to_drop.is_empty() {
                    session.drop_databases(to_drop).await
                } else if self.next_sweep <= Instant::now() && session.may_sweep() {
                    self.next_sweep = Instant::now() + SWEEP;
                    session.sweep().await.map(|swept| {
                        if swept == Swept::Some {
                            self.next_sweep = Instant::now();
                        }
                    })
                } else if session.begins_at(&self.backlog).is_none_or(|at| at > Instant::now()) {
                    break;
                } else {
                    session.propose(&mut self.backlog).await
                };
                match proposed {
                    Ok(()) => {}
                    Err(ProposalFailure::NotAppended | ProposalFailure::TooLarge { .. }) => {
                        refused = true;
                        self.backlog.put_back(std::mem::take(&mut session.declined));
                        self.not_before = Instant::now() + REFUSED_PAUSE;
                    }
                    // To lead in this term again could give its number out twice.
                    Err(ProposalFailure::Unknown) => {
                        session.leave();
                        return Some(TermEnd::Left);
                    }
                }
            }
            if refused && session.is_idle() {
                return Some(TermEnd::Drained);
            }
        }
    }
}

/// How leading in a term ended.
enum TermEnd {
    /// Nothing is in flight.
    Drained,
    /// What was in flight may commit or not.
    Left,
}

#[cfg(test)]
mod tests;
