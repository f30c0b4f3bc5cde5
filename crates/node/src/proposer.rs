//! The write path of a shard's leader: group commit over Raft.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::{Proposal, ProposalFailure, RaftGroup};
use meridian_failover::RpoMode;
use meridian_proto::encode_batch;
use meridian_storage::{Expired, ShardState, StorageError};
use meridian_txn::{Evaluation, Overlaid, Overlay, evaluate};
use meridian_types::{
    Batch, CommittedTransaction, DatabaseId, Effect, NodeId, Position, Refusal, RequestId, Transaction, Versionstamp,
    WriteOutcome,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::wall_ms;
use crate::directory::{DIRECTORY_GROUP, Directory};
use crate::shard::{ReadGate, or_fatal};

mod dropped;

use dropped::Dropped;

/// Requests that wait for the proposer at most; beyond, they are refused.
const QUEUE_REQUESTS: usize = 8192;
/// One batch at most.
const BATCH_REQUESTS: usize = 2048;
const BATCH_BYTES: usize = 4 << 20;
/// A request that is not evaluated within this time is refused, definitely: no quorum answers.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(700);
const TICK: Duration = Duration::from_millis(100);
/// How often what has expired is deleted; reads leave it out from the moment it expires.
const SWEEP: Duration = Duration::from_millis(500);
const SWEEP_ROWS: usize = 1000;
/// Between two batches, when replication lags by as much as may be lost.
const MAX_SLOWING: Duration = Duration::from_millis(100);
/// Before a leader proposes again what Raft has refused.
const REFUSED_PAUSE: Duration = Duration::from_millis(10);
/// Batches in flight at most. More would be smaller, and cost more in all.
const BATCHES_IN_FLIGHT: usize = 4;

/// What became of a write at one node.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum WriteReply {
    Done(WriteOutcome),
    /// Not committed by this call, now or later.
    NotLeader(Option<NodeId>),
    /// Not committed by this call, now or later, for this reason.
    NotCommitted(String),
    /// It may commit yet. Asking again with the same request id tells.
    Unknown,
}

pub(crate) struct WriteRequest {
    pub(crate) database: DatabaseId,
    pub(crate) request_id: RequestId,
    pub(crate) transaction: Transaction,
    /// An earlier try of it may arrive yet, here or elsewhere: whatever the outcome is, it is logged, so
    /// that the late one learns it and does nothing.
    pub(crate) retry: bool,
}

struct Queued {
    request: WriteRequest,
    since: Instant,
    reply: oneshot::Sender<WriteReply>,
}

/// Takes writes for one shard. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Proposer {
    queue: mpsc::Sender<Queued>,
    sealed: watch::Sender<bool>,
    drained: watch::Receiver<Option<u64>>,
}

/// What the proposer works with.
pub(crate) struct ProposerParts {
    pub(crate) group: RaftGroup,
    pub(crate) state: Arc<ShardState>,
    pub(crate) directory: Arc<Directory>,
    pub(crate) gate: Arc<ReadGate>,
    pub(crate) limits: Arc<dyn Limits>,
}

/// What holds writes up at present.
pub(crate) trait Limits: Send + Sync {
    /// Why all writes are refused, if they are.
    fn refusal(&self) -> Option<String>;

    /// How far the best replica region is behind, in milliseconds; `None` where there is no other region.
    fn replication_lag_ms(&self) -> Option<u64>;
}

impl Proposer {
    /// Starts the proposer's task. It ends when the last handle is dropped.
    pub(crate) fn start(parts: ProposerParts) -> Self {
        let (queue, requests) = mpsc::channel(QUEUE_REQUESTS);
        let (sealed, drained) = (watch::Sender::new(false), watch::Sender::new(None));
        let proposer = Self { queue, sealed: sealed.clone(), drained: drained.subscribe() };
        let seal = sealed.subscribe();
        let (next_sweep, not_before) = (Instant::now(), Instant::now());
        let task = Task { parts, requests, backlog: VecDeque::new(), seal, drained, next_sweep, not_before };
        tokio::spawn(task.run());
        proposer
    }

    /// From now on every write is refused.
    pub(crate) fn seal(&self) {
        self.sealed.send_replace(true);
    }

    /// Waits until this node leads, is sealed, and has nothing in flight any more; the term in which that is
    /// so. Everything that was ever in its log is applied then.
    pub(crate) async fn drained(&self) -> u64 {
        let mut drained = self.drained.clone();
        match drained.wait_for(Option::is_some).await.map(|term| *term) {
            Ok(Some(term)) => term,
            // The task is gone: it will never be so.
            _ => std::future::pending().await,
        }
    }

    /// May be dropped at any await: a request that was taken is carried out all the same.
    pub(crate) async fn write(&self, request: WriteRequest) -> WriteReply {
        let (reply, answer) = oneshot::channel();
        if let Err(refused) = self.queue.try_send(Queued { request, since: Instant::now(), reply }) {
            return match refused {
                mpsc::error::TrySendError::Full(_) => {
                    WriteReply::NotCommitted(format!("more than {QUEUE_REQUESTS} writes are waiting"))
                }
                mpsc::error::TrySendError::Closed(_) => WriteReply::NotCommitted("the node is stopping".to_owned()),
            };
        }
        answer.await.unwrap_or(WriteReply::Unknown)
    }
}

struct Task {
    parts: ProposerParts,
    requests: mpsc::Receiver<Queued>,
    /// Taken from there, and not looked at yet.
    backlog: VecDeque<Queued>,
    seal: watch::Receiver<bool>,
    drained: watch::Sender<Option<u64>>,
    /// Kept over sessions: a refused sweep is not tried again at once.
    next_sweep: Instant,
    /// The next batch waits so long: the one before was refused.
    not_before: Instant,
}

impl Task {
    async fn run(mut self) {
        // A term in which batches were left in flight: to lead in it again could number one twice.
        let mut left_term = None;
        loop {
            match self.parts.group.leadership() {
                Ok(leadership) if left_term != Some(leadership.term) => match self.lead(leadership.term).await {
                    Some(TermEnd::Drained) => {}
                    Some(TermEnd::Left) => left_term = Some(leadership.term),
                    None => return,
                },
                observed => {
                    // Wait for a change of what was just seen: anything else could be true at once, for ever.
                    let term = observed.as_ref().ok().map(|leadership| leadership.term);
                    decline(&mut self.backlog, observed.err().and_then(|not_leading| not_leading.leader));
                    tokio::select! {
                        biased;
                        () = self.parts.group.leadership_changed(term) => {}
                        // Looked at when it is known anew who leads: that may have changed while nobody asked.
                        queued = self.requests.recv() => match queued {
                            Some(queued) => self.backlog.push_back(queued),
                            None => return,
                        },
                    }
                }
            }
        }
    }

    /// Leads in one term, until leadership is lost or a batch is refused. `None`: nobody can send requests
    /// any more.
    ///
    /// Nothing is evaluated before everything in the log up to this term's start is applied, which is when
    /// an entry of this term is. The overlay lives and dies with the session.
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
                queued = self.requests.recv(), if self.backlog.len() < QUEUE_REQUESTS => self.backlog.push_back(queued?),
                _ = ticks.tick() => give_up(&mut self.backlog),
            }
        }
        let applied = self.parts.state.applied();
        let mut session = Session {
            parts: &self.parts,
            term,
            // A new epoch goes on behind the base.
            last: Position::new(group.id().epoch, applied.position.sequence),
            not_before: self.not_before,
            time_ms: applied.time_ms,
            overlay: Overlay::new(),
            in_flight: VecDeque::new(),
            by_request: HashMap::new(),
            declined: Vec::new(),
            dropped: Dropped::new(or_fatal(self.parts.state.dropped_databases())),
        };
        // After a batch was refused: evaluate no more, let those in flight end, and begin anew. What was refused, as
        // it is while a quorum has not answered for a moment, is tried again then.
        let mut refused = false;
        let mut seal = self.seal.clone();
        loop {
            let sealed = *seal.borrow_and_update();
            if sealed {
                self.backlog.drain(..).for_each(|queued| respond(queued.reply, sealed_reply()));
                if session.in_flight.is_empty() {
                    self.drained.send_replace(Some(term));
                }
            }
            let (slowed, not_before) = (session.is_slowed(), session.not_before);
            tokio::select! {
                biased;
                () = &mut lost => return Some(session.leave()),
                result = session.oldest(), if !session.in_flight.is_empty() => {
                    if session.completed(result).is_err() {
                        return Some(session.leave());
                    }
                }
                queued = self.requests.recv(), if self.backlog.len() < QUEUE_REQUESTS => {
                    self.backlog.push_back(queued?);
                    while self.backlog.len() < QUEUE_REQUESTS && let Ok(next) = self.requests.try_recv() {
                        self.backlog.push_back(next);
                    }
                }
                _ = ticks.tick() => give_up(&mut self.backlog),
                () = tokio::time::sleep_until(not_before.into()), if slowed && !self.backlog.is_empty() => {}
                changed = seal.changed() => changed.ok()?,
            }
            while !sealed && !refused && !session.is_slowed() && session.in_flight.len() < BATCHES_IN_FLIGHT {
                let to_drop = session.to_drop();
                let proposed = if !to_drop.is_empty() {
                    session.drop_databases(to_drop).await
                } else if self.next_sweep <= Instant::now() && session.refusal().is_none() {
                    self.next_sweep = Instant::now() + SWEEP;
                    session.sweep().await
                } else {
                    let round = next_round(&mut self.backlog);
                    if round.is_empty() {
                        break;
                    }
                    session.propose(round).await
                };
                match proposed {
                    Ok(()) => {}
                    Err(ProposalFailure::NotAppended) => {
                        refused = true;
                        session.declined.drain(..).rev().for_each(|queued| self.backlog.push_front(queued));
                        self.not_before = Instant::now() + REFUSED_PAUSE;
                    }
                    // To lead in this term again could give its number out twice.
                    Err(ProposalFailure::Unknown) => {
                        session.leave();
                        return Some(TermEnd::Left);
                    }
                }
            }
            if refused && session.in_flight.is_empty() {
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

/// Those that have waited longest, up to the bounds of a batch. Who gave up waiting is left out: it was told
/// that the outcome is unknown, and nothing was done.
fn next_round(backlog: &mut VecDeque<Queued>) -> Vec<Queued> {
    let (mut round, mut bytes) = (Vec::new(), 0);
    while round.len() < BATCH_REQUESTS
        && bytes < BATCH_BYTES
        && let Some(next) = backlog.pop_front()
    {
        if !next.reply.is_closed() {
            bytes += weight(&next.request);
            round.push(next);
        }
    }
    round
}

/// Refuses what has waited too long to be evaluated, as it does while no quorum answers.
fn give_up(backlog: &mut VecDeque<Queued>) {
    while backlog.front().is_some_and(|queued| queued.since.elapsed() >= QUEUE_TIMEOUT)
        && let Some(queued) = backlog.pop_front()
    {
        let reason = "the shard's leader gets no answer from a quorum".to_owned();
        respond(queued.reply, WriteReply::NotCommitted(reason));
    }
}

/// Another leads, or will: nothing was done of these.
fn decline(backlog: &mut VecDeque<Queued>, leader: Option<NodeId>) {
    backlog.drain(..).for_each(|queued| respond(queued.reply, WriteReply::NotLeader(leader)));
}

fn sealed_reply() -> WriteReply {
    WriteReply::NotCommitted("the shard's primary region is changing".to_owned())
}

fn weight(request: &WriteRequest) -> usize {
    use meridian_types::MutationKind::{Delete, Max, Min, Set, SetSuffixVersionstampedKey, Sum};
    let mutations = request.transaction.mutations.iter();
    let sizes = mutations.map(|mutation| match &mutation.kind {
        Set(value) | Min(value) | Max(value) | SetSuffixVersionstampedKey(value) | Sum { operand: value, .. } => {
            mutation.key.len() + value.data.len()
        }
        Delete => mutation.key.len(),
    });
    sizes.sum::<usize>() + 64
}

/// Somebody who waits for a batch to commit, with what to say then.
struct Waiter {
    reply: oneshot::Sender<WriteReply>,
    outcome: WriteOutcome,
}

impl From<(Queued, WriteOutcome)> for Waiter {
    fn from((queued, outcome): (Queued, WriteOutcome)) -> Self {
        Self { reply: queued.reply, outcome }
    }
}

struct InFlight {
    position: Position,
    proposal: Proposal,
    waiters: Vec<Waiter>,
    requests: Vec<RequestId>,
}

/// One term of leadership.
struct Session<'a> {
    parts: &'a ProposerParts,
    term: u64,
    /// The newest position given out.
    last: Position,
    /// The next batch waits so long: replication lags.
    not_before: Instant,
    /// Of the newest batch: the leader's time never goes back.
    time_ms: u64,
    /// What the batches in flight write, over the applied state.
    overlay: Overlay,
    /// Oldest first. They commit in this order.
    in_flight: VecDeque<InFlight>,
    by_request: HashMap<RequestId, (Position, WriteOutcome)>,
    /// Of a batch that was refused: nothing was done. In order.
    declined: Vec<Queued>,
    dropped: Dropped,
}

/// Leadership was lost with a batch in flight.
struct Lost;

impl Session<'_> {
    /// Waits for the oldest batch in flight. May be dropped at any await and called again.
    async fn oldest(&mut self) -> Result<(), ProposalFailure> {
        match self.in_flight.front_mut() {
            Some(batch) => batch.proposal.applied().await,
            None => std::future::pending().await,
        }
    }

    /// The oldest batch has committed and is applied, or leadership was lost with it in flight.
    fn completed(&mut self, result: Result<(), ProposalFailure>) -> Result<(), Lost> {
        if let Err(failure) = result {
            tracing::info!(group = %self.parts.group.id(), %failure, "a batch in flight failed");
            return Err(Lost);
        }
        let Some(batch) = self.in_flight.pop_front() else { return Ok(()) };
        self.overlay.release(batch.position);
        self.dropped.completed(batch.position);
        for request in &batch.requests {
            self.by_request.remove(request);
        }
        for Waiter { reply, outcome } in batch.waiters {
            respond(reply, self.done(outcome));
        }
        Ok(())
    }

    /// Leadership is lost: what is in flight may commit or not. Whoever asks again with the same id learns.
    fn leave(&mut self) -> TermEnd {
        let end = if self.in_flight.is_empty() { TermEnd::Drained } else { TermEnd::Left };
        for waiter in self.in_flight.drain(..).flat_map(|batch| batch.waiters) {
            respond(waiter.reply, WriteReply::Unknown);
        }
        end
    }

    /// Evaluates the requests in order, and proposes what commits as one batch.
    async fn propose(&mut self, round: Vec<Queued>) -> Result<(), ProposalFailure> {
        let refusal = self.refusal();
        let lag_ms = self.parts.limits.replication_lag_ms();
        self.time_ms = self.time_ms.max(wall_ms());
        let position = self.last.next();
        let mut batch = Batch { position, time_ms: self.time_ms, transactions: Vec::with_capacity(round.len()) };
        let mut evaluated = Vec::with_capacity(round.len());
        for queued in round {
            let request = &queued.request;
            if let Some(settled) = or_fatal(self.settled(request.request_id)) {
                match settled {
                    Settled::Before(outcome) => respond(queued.reply, self.done(outcome)),
                    Settled::InFlight(position, outcome) => {
                        self.attach(position, Waiter { reply: queued.reply, outcome });
                    }
                }
            } else if let Some(reply) = self.refuses(request.database) {
                respond(queued.reply, reply);
            } else if let Some(reason) = refusal.clone().or_else(|| self.lags(lag_ms, request.database)) {
                respond(queued.reply, WriteReply::NotCommitted(reason));
            } else {
                let outcome = or_fatal(self.evaluate(request, &mut batch));
                evaluated.push((queued, outcome));
            }
        }
        if batch.transactions.is_empty() {
            self.answer_without_batch(evaluated).await
        } else {
            self.send(batch, evaluated).await
        }
    }

    /// Why nothing can be written now.
    fn refusal(&self) -> Option<String> {
        let group = self.parts.group.id();
        if !self.parts.directory.holds_lease(group.shard, group.epoch) {
            return Some(format!("the leader of shard {} holds no lease of the directory at present", group.shard));
        }
        self.parts.limits.refusal()
    }

    fn is_slowed(&self) -> bool {
        Instant::now() < self.not_before
    }

    /// Keeps the recovery point of the database: why its write is refused while replication lags too far.
    /// Before it comes to that, batches are slowed, the more the nearer the bound is.
    fn lags(&mut self, lag_ms: Option<u64>, database: DatabaseId) -> Option<String> {
        let lag_ms = lag_ms?;
        let rpo = self.parts.directory.rpo(database);
        if rpo.mode != RpoMode::Enforce || lag_ms <= rpo.soft_ms || self.parts.group.id().shard == DIRECTORY_GROUP.shard
        {
            return None;
        }
        if lag_ms > rpo.max_ms {
            metrics::counter!("meridian_proposer_rpo_refusals_total").increment(1);
            return Some(format!(
                "replication to the other regions is {lag_ms} ms behind, more than the {} ms that may be lost",
                rpo.max_ms
            ));
        }
        let part = (lag_ms - rpo.soft_ms) as f64 / (rpo.max_ms - rpo.soft_ms).max(1) as f64;
        self.not_before = self.not_before.max(Instant::now() + MAX_SLOWING.mul_f64(part));
        metrics::counter!("meridian_proposer_rpo_slowed_total").increment(1);
        None
    }

    /// What is known of a request that came before, in whatever way it ended.
    fn settled(&self, request_id: RequestId) -> Result<Option<Settled>, StorageError> {
        if let Some((position, outcome)) = self.by_request.get(&request_id) {
            return Ok(Some(Settled::InFlight(*position, outcome.clone())));
        }
        Ok(self.parts.state.request(request_id)?.map(Settled::Before))
    }

    /// What a client may be told now: an outcome leaves only under the region's lease.
    fn done(&self, outcome: WriteOutcome) -> WriteReply {
        let group = self.parts.group.id();
        match self.parts.directory.holds_lease(group.shard, group.epoch) {
            true => WriteReply::Done(outcome),
            false => WriteReply::Unknown,
        }
    }

    fn evaluate(&mut self, request: &WriteRequest, batch: &mut Batch) -> Result<WriteOutcome, StorageError> {
        let order = u16::try_from(batch.transactions.len()).unwrap_or(u16::MAX);
        let versionstamp = Versionstamp::new(batch.position, order);
        let view =
            Overlaid { overlay: &self.overlay, applied: &self.parts.state.at(self.time_ms), now_ms: self.time_ms };
        let (effects, refusal) = match evaluate(&view, request.database, versionstamp, &request.transaction)? {
            Evaluation::Commit(effects) => (effects, None),
            Evaluation::CheckFailed(indexes) => (Vec::new(), Some(Refusal::CheckFailed(indexes))),
            Evaluation::Rejected(text) => (Vec::new(), Some(Refusal::Rejected(text))),
        };
        let (request_id, database) = (request.request_id, request.database);
        let transaction = CommittedTransaction { request_id, database, effects, refusal };
        let outcome = transaction.outcome(versionstamp);
        if transaction.refusal.is_none() || request.retry {
            self.overlay.push(versionstamp, database, &transaction.effects);
            self.by_request.insert(request_id, (batch.position, outcome.clone()));
            batch.transactions.push(transaction);
        }
        Ok(outcome)
    }

    /// Deletes what has expired, as effects like any others, so that every replica does the same.
    async fn sweep(&mut self) -> Result<(), ProposalFailure> {
        self.time_ms = self.time_ms.max(wall_ms());
        let expired = or_fatal(self.parts.state.expired(self.time_ms, SWEEP_ROWS));
        let mut by_database: BTreeMap<DatabaseId, Vec<Effect>> = BTreeMap::new();
        for Expired { expire_at_ms, database, key, is_current } in expired {
            let effects = by_database.entry(database).or_default();
            effects.push(Effect::Unindex { key: key.clone(), expire_at_ms });
            // What a batch in flight writes there is newer than what has expired.
            if is_current && self.overlay.get(database, &key).is_none() {
                effects.push(Effect::Delete { key });
            }
        }
        if by_database.is_empty() {
            return Ok(());
        }
        let mut batch = Batch { position: self.last.next(), time_ms: self.time_ms, transactions: Vec::new() };
        for ((database, effects), order) in by_database.into_iter().zip(0..) {
            self.overlay.push(Versionstamp::new(batch.position, order), database, &effects);
            let request_id = RequestId::generate();
            batch.transactions.push(CommittedTransaction { request_id, database, effects, refusal: None });
        }
        self.send(batch, Vec::new()).await
    }

    /// Answers `waiter` when the batch at `position` commits: it is in flight, or being made and then the
    /// last in line of this round.
    fn attach(&mut self, position: Position, waiter: Waiter) {
        match self.in_flight.iter_mut().find(|batch| batch.position == position) {
            Some(batch) => batch.waiters.push(waiter),
            // A request twice in one round: its second caller is told to ask again.
            None => respond(waiter.reply, WriteReply::Unknown),
        }
    }

    async fn send(&mut self, batch: Batch, evaluated: Vec<(Queued, WriteOutcome)>) -> Result<(), ProposalFailure> {
        let requests = batch.transactions.iter().map(|transaction| transaction.request_id).collect();
        metrics::histogram!("meridian_proposer_batch_transactions").record(batch.transactions.len() as f64);
        let position = batch.position;
        match self.parts.group.propose(encode_batch(&batch), position.sequence, self.term).await {
            Ok(proposal) => {
                self.last = position;
                let waiters = evaluated.into_iter().map(Waiter::from).collect();
                self.in_flight.push_back(InFlight { position, proposal, waiters, requests });
                Ok(())
            }
            Err(ProposalFailure::NotAppended) => {
                self.declined.extend(evaluated.into_iter().map(|(queued, _)| queued));
                Err(ProposalFailure::NotAppended)
            }
            Err(ProposalFailure::Unknown) => {
                evaluated.into_iter().for_each(|(queued, _)| respond(queued.reply, WriteReply::Unknown));
                Err(ProposalFailure::Unknown)
            }
        }
    }

    /// Failed checks and rejections were evaluated against the batches in flight, so they are answered when
    /// the last of those has committed; with none in flight, once this node is known to lead still.
    async fn answer_without_batch(&mut self, evaluated: Vec<(Queued, WriteOutcome)>) -> Result<(), ProposalFailure> {
        if evaluated.is_empty() {
            return Ok(());
        }
        if let Some(newest) = self.in_flight.back_mut() {
            newest.waiters.extend(evaluated.into_iter().map(Waiter::from));
            return Ok(());
        }
        // In this very term: in a later one the state may have changed between evaluation and now.
        if self.parts.gate.confirm(&self.parts.group).await != Ok(self.term) {
            self.declined.extend(evaluated.into_iter().map(|(queued, _)| queued));
            return Err(ProposalFailure::NotAppended);
        }
        for (queued, outcome) in evaluated {
            respond(queued.reply, self.done(outcome));
        }
        Ok(())
    }
}

/// What became of a request that came before.
enum Settled {
    Before(WriteOutcome),
    /// To be answered when the batch at this position has committed.
    InFlight(Position, WriteOutcome),
}

fn respond(reply: oneshot::Sender<WriteReply>, answer: WriteReply) {
    // The caller may be gone; what it asked for is done or not all the same.
    drop(reply.send(answer));
}

#[cfg(test)]
mod tests;
