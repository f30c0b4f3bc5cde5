//! A leader's term: it evaluates requests, proposes batches, and answers those that commit.

mod drops;
mod internal_batches;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_consensus::{Proposal, ProposalFailure};
use meridian_proto::encode_batch;
use meridian_storage::{StorageError, or_fatal};
use meridian_txn::{Evaluation, Overlaid, Overlay, evaluate};
use meridian_types::{
    Batch, CommittedTransaction, Mutation, MutationKind, Position, Refusal, RequestId, Transaction,
    Verdict, Versionstamp, WriteOutcome,
};
use tokio::sync::oneshot;

use super::admission::{Admission, Conditions};
use super::backlog::{Backlog, Queued, respond};
use super::dropped::Dropped;
use super::logged_time::LoggedTime;
use super::recent::Asks;
use super::room::Room;
use super::{ProposerParts, WriteRefusal, WriteReply, WriteRequest};
use crate::cluster_view::epoch_lease::EpochLease;
use crate::write::division::HeldForWrite;

/// How leading in a term ended.
pub(super) enum TermEnd {
    /// Nothing is in flight.
    Drained,
    /// The batches that were in flight may commit or not.
    Left,
}

/// Batches in flight at most.
const BATCHES_IN_FLIGHT: usize = 4;
/// While others are in flight, a batch waits for as many requests as those have, since each batch
/// costs as much as several requests in it: half as long as batches take to commit at present,
/// within these bounds. Where the disks or the processors are the limit, fewer and larger batches
/// get there sooner.
pub(super) const GATHERING: RangeInclusive<Duration> =
    Duration::from_millis(1)..=Duration::from_millis(10);
/// How much the newest batch says of how long they take.
const NEWEST_COUNTS: u32 = 8;
/// Evaluation that takes longer lets other tasks of the node go first, between two transactions.
const EVALUATION_TURN: Duration = Duration::from_millis(2);

/// A caller that waits for a batch to commit, with what to say then.
struct Waiter {
    reply: oneshot::Sender<WriteReply>,
    outcome: WriteOutcome,
    _held: Arc<HeldForWrite>,
}

impl From<(Queued, WriteOutcome)> for Waiter {
    fn from((queued, outcome): (Queued, WriteOutcome)) -> Self {
        Self { reply: queued.reply, outcome, _held: queued.held }
    }
}

struct InFlight {
    position: Position,
    since: Instant,
    proposal: Proposal,
    waiters: Vec<Waiter>,
    requests: Vec<RequestId>,
}

/// One term of leadership.
pub(super) struct Session<'a> {
    pub(super) parts: &'a ProposerParts,
    pub(super) lease: EpochLease,
    time: &'a mut LoggedTime,
    term: u64,
    /// The newest position given out.
    last: Position,
    /// The next batch waits so long: the one before was refused.
    pub(super) not_before: Instant,
    /// Of the newest batch. Transactions are evaluated at this time and not at a later one: what
    /// they find expired is so for every state that has applied what they saw, also when they leave
    /// no batch behind.
    time_ms: u64,
    /// The batch of an internal writer that is in flight.
    pub(super) internal: Option<Position>,
    /// The effects of the batches in flight, over the applied state.
    pub(super) overlay: Overlay,
    /// Oldest first. They commit in this order.
    in_flight: VecDeque<InFlight>,
    /// How long batches take from here to where they are applied, smoothed.
    commit_time: Duration,
    by_request: HashMap<RequestId, (Position, WriteOutcome)>,
    /// Of a batch that was refused: nothing was done. In order.
    pub(super) declined: Vec<Queued>,
    pub(super) dropped: Dropped,
}

/// Leadership was lost with a batch in flight.
pub(super) struct Lost;

impl<'a> Session<'a> {
    /// To be called when everything in the log up to the start of the term is applied.
    pub(super) fn new(
        parts: &'a ProposerParts,
        time: &'a mut LoggedTime,
        term: u64,
        not_before: Instant,
    ) -> Self {
        let applied = parts.state.applied();
        time.begin(applied.time_ms, parts.time.now());
        Self {
            parts,
            lease: EpochLease::new(Arc::clone(&parts.directory), parts.group.id()),
            time,
            term,
            // A new epoch goes on behind the base.
            last: Position::new(parts.group.id().epoch, applied.position.sequence),
            not_before,
            time_ms: applied.time_ms,
            internal: None,
            overlay: Overlay::new(),
            in_flight: VecDeque::new(),
            commit_time: Duration::ZERO,
            by_request: HashMap::new(),
            declined: Vec::new(),
            dropped: Dropped::new(or_fatal(parts.state.dropped_databases())),
        }
    }

    /// Whether nothing is in flight.
    pub(super) fn is_idle(&self) -> bool {
        self.in_flight.is_empty()
    }

    /// Whether another batch may be proposed now.
    pub(super) fn has_room(&self) -> bool {
        let knows_time = self.time.is_known(self.parts.time.now());
        self.in_flight.len() < BATCHES_IN_FLIGHT && !self.is_slowed() && knows_time
    }

    /// Whether a batch begins with what waits, or else when: at once if nothing is in flight, and
    /// else when as many requests wait as are in flight, or one has waited for long enough.
    pub(super) fn begins_at(&self, backlog: &Backlog) -> Option<Instant> {
        let since = backlog.waiting_since()?;
        let in_flight: usize = self.in_flight.iter().map(|batch| batch.requests.len()).sum();
        Some(if backlog.len() >= in_flight { since } else { since + self.gathering() })
    }

    pub(super) fn gathering(&self) -> Duration {
        (self.commit_time / 2).clamp(*GATHERING.start(), *GATHERING.end())
    }

    /// Waits for the oldest batch in flight. May be dropped at any await and called again.
    pub(super) async fn oldest(&mut self) -> Result<(), ProposalFailure> {
        match self.in_flight.front_mut() {
            Some(batch) => batch.proposal.applied().await,
            None => std::future::pending().await,
        }
    }

    /// The oldest batch has committed and is applied, or leadership was lost with it in flight.
    pub(super) fn completed(&mut self, result: Result<(), ProposalFailure>) -> Result<(), Lost> {
        if let Err(failure) = result {
            tracing::info!(group = %self.parts.group.id(), %failure, "a batch in flight failed");
            return Err(Lost);
        }
        let Some(batch) = self.in_flight.pop_front() else { return Ok(()) };
        self.commit_time =
            (self.commit_time * (NEWEST_COUNTS - 1) + batch.since.elapsed()) / NEWEST_COUNTS;
        self.overlay.release(batch.position);
        self.dropped.completed(batch.position);
        if self.internal == Some(batch.position) {
            self.internal = None;
        }
        for request in &batch.requests {
            self.by_request.remove(request);
        }
        for Waiter { reply, outcome, .. } in batch.waiters {
            respond(reply, self.release(outcome));
        }
        Ok(())
    }

    /// Leadership is lost: what is in flight may commit or not. A caller that asks again with the
    /// same id learns.
    pub(super) fn leave(&mut self) -> TermEnd {
        let end = if self.in_flight.is_empty() { TermEnd::Drained } else { TermEnd::Left };
        for waiter in self.in_flight.drain(..).flat_map(|batch| batch.waiters) {
            respond(waiter.reply, WriteReply::Unknown);
        }
        end
    }

    /// Evaluates requests, as many as one batch has room for, and proposes what commits as one
    /// batch. The others stay where they are.
    pub(super) async fn propose(&mut self, backlog: &mut Backlog) -> Result<(), ProposalFailure> {
        let conditions = Conditions {
            refusal: self.refusal(false),
            refusal_of_deletes: self.refusal(true),
            lag_ms: self.parts.policy.replication_lag_ms(),
        };
        let mut batch = self.next_batch();
        let (mut evaluated, mut slowed) = (Vec::new(), BTreeMap::new());
        let mut room = Room::default();
        let mut turn = Instant::now();
        backlog.begin_batch(turn);
        let began = turn;
        while room.is_left()
            && let Some(queued) = backlog.next(began)
        {
            room.count_request();
            let database = queued.request.database;
            match self.next_step(&conditions, &queued.request, || backlog.asks(database)) {
                NextStep::Answer(reply) => respond(queued.reply, reply),
                // A request twice in one round: one batch answers both.
                NextStep::Join(position, outcome) if position == batch.position => {
                    evaluated.push((queued, outcome));
                }
                NextStep::Join(position, outcome) => {
                    self.attach(position, (queued, outcome).into());
                }
                NextStep::Evaluate { pause } => {
                    slowed.extend(pause.map(|pause| (database, pause)));
                    let outcome = or_fatal(self.evaluate(&queued.request, &mut batch, &mut room));
                    evaluated.push((queued, outcome));
                }
            }
            backlog.charge(database, room.spent());
            if turn.elapsed() >= EVALUATION_TURN {
                tokio::task::yield_now().await;
                turn = Instant::now();
            }
        }
        let now = Instant::now();
        slowed.into_iter().for_each(|(database, pause)| backlog.pause(database, now, pause));
        if batch.transactions.is_empty() {
            self.answer_without_batch(evaluated).await
        } else {
            self.send(batch, evaluated).await
        }
    }

    fn next_step(
        &mut self,
        conditions: &Conditions,
        request: &WriteRequest,
        asks: impl FnOnce() -> Asks,
    ) -> NextStep {
        if let Some((position, outcome)) = self.by_request.get(&request.request_id) {
            return NextStep::Join(*position, outcome.clone());
        }
        if let Some(outcome) = or_fatal(self.parts.state.request(request.request_id)) {
            return NextStep::Answer(self.release(outcome));
        }
        if let Some(reply) = self.refuses(request.database) {
            return NextStep::Answer(reply);
        }
        let rpo = || self.parts.directory.rpo(request.database);
        match conditions.admit(only_deletes(&request.transaction), rpo, asks) {
            Admission::Now => NextStep::Evaluate { pause: None },
            Admission::After(pause) => {
                metrics::counter!("meridian_proposer_rpo_slowed_total").increment(1);
                NextStep::Evaluate { pause: Some(pause) }
            }
            Admission::Refuse(refusal) => {
                if matches!(
                    refusal,
                    WriteRefusal::ReplicationLags { .. }
                        | WriteRefusal::ReplicationLagsByThis { .. }
                ) {
                    metrics::counter!("meridian_proposer_rpo_refusals_total").increment(1);
                }
                NextStep::Answer(WriteReply::NotCommitted(refusal))
            }
        }
    }

    /// Why nothing can be written now, or nothing but deletions.
    pub(super) fn refusal(&self, only_deletes: bool) -> Option<WriteRefusal> {
        if !self.lease.is_held() {
            return Some(WriteRefusal::NoEpochLease(self.parts.group.id().shard));
        }
        self.parts.policy.refusal(only_deletes)
    }

    pub(super) fn is_slowed(&self) -> bool {
        Instant::now() < self.not_before
    }

    /// The reply that a client may be given now: an outcome leaves only under the epoch lease.
    pub(super) fn release(&self, outcome: WriteOutcome) -> WriteReply {
        self.lease.release(outcome).map_or(WriteReply::Unknown, WriteReply::Done)
    }

    fn evaluate(
        &mut self,
        request: &WriteRequest,
        batch: &mut Batch,
        room: &mut Room,
    ) -> Result<WriteOutcome, StorageError> {
        let order = u16::try_from(batch.transactions.len()).unwrap_or(u16::MAX);
        let versionstamp = Versionstamp::new(batch.position, order);
        let view = Overlaid {
            overlay: &self.overlay,
            applied: &self.parts.state.at(self.time_ms),
            now_ms: self.time_ms,
        };
        let view = room.counting(&view);
        let (effects, refusal) = match evaluate(
            &view,
            request.database,
            versionstamp,
            batch.time_ms,
            &request.transaction,
        )? {
            Evaluation::Commit(effects) => match self.reject(request) {
                None => (effects, None),
                Some(text) => (Vec::new(), Some(Refusal::Rejected(text))),
            },
            Evaluation::CheckFailed(indexes) => (Vec::new(), Some(Refusal::CheckFailed(indexes))),
            Evaluation::Rejected(text) => (Vec::new(), Some(Refusal::Rejected(text))),
        };
        let (request_id, database) = (request.request_id, request.database);
        let transaction = CommittedTransaction { request_id, database, effects, refusal };
        let outcome = transaction.outcome(versionstamp);
        if transaction.refusal.is_none() || request.retry {
            room.count_effects(&transaction);
            self.overlay.push(versionstamp, database, &transaction.effects);
            self.by_request.insert(request_id, (batch.position, outcome.clone()));
            batch.transactions.push(transaction);
        }
        Ok(outcome)
    }

    /// Rejects a write that stores more than may be; with the reason.
    fn reject(&self, request: &WriteRequest) -> Option<String> {
        let stores = stores_more(&request.transaction);
        stores.then(|| self.parts.policy.reject(request.database)).flatten()
    }

    /// To be called often, also when nothing is written: see [`LoggedTime::advance`].
    pub(super) fn look_at_clocks(&mut self) -> u64 {
        let time = &self.parts.time;
        let now = time.now();
        // Known as long as it has been, should this node come to lead again.
        self.time.learn(self.parts.state.time_ms(), now);
        self.time.advance(time.reading(), now).max(self.time_ms)
    }

    pub(super) fn next_batch(&mut self) -> Batch {
        Batch {
            position: self.last.next(),
            time_ms: self.look_at_clocks(),
            transactions: Vec::new(),
        }
    }

    /// Answers `waiter` when the batch in flight at `position` commits.
    fn attach(&mut self, position: Position, waiter: Waiter) {
        match self.in_flight.iter_mut().find(|batch| batch.position == position) {
            Some(batch) => batch.waiters.push(waiter),
            None => respond(waiter.reply, WriteReply::Unknown),
        }
    }

    pub(super) async fn send(
        &mut self,
        batch: Batch,
        evaluated: Vec<(Queued, WriteOutcome)>,
    ) -> Result<(), ProposalFailure> {
        let requests =
            batch.transactions.iter().map(|transaction| transaction.request_id).collect();
        metrics::histogram!("meridian_proposer_batch_transactions")
            .record(batch.transactions.len() as f64);
        let (position, since) = (batch.position, Instant::now());
        self.parts.policy.proposed(position.sequence);
        match self.parts.group.propose(encode_batch(&batch), position.sequence, self.term).await {
            Ok(proposal) => {
                self.last = position;
                self.time_ms = batch.time_ms;
                let waiters = evaluated.into_iter().map(Waiter::from).collect();
                self.in_flight.push_back(InFlight { position, since, proposal, waiters, requests });
                Ok(())
            }
            Err(ProposalFailure::NotAppended) => {
                self.declined.extend(evaluated.into_iter().map(|(queued, _)| queued));
                Err(ProposalFailure::NotAppended)
            }
            // Rooms are made so that it cannot be. To propose it again would not make it smaller.
            Err(failure @ ProposalFailure::TooLarge { bytes }) => {
                tracing::error!(group = %self.parts.group.id(), %failure, "a batch was not proposed");
                let reason = WriteReply::NotCommitted(WriteRefusal::BatchTooLarge { bytes });
                evaluated.into_iter().for_each(|(queued, _)| respond(queued.reply, reason.clone()));
                Err(ProposalFailure::NotAppended)
            }
            Err(ProposalFailure::Unknown) => {
                evaluated
                    .into_iter()
                    .for_each(|(queued, _)| respond(queued.reply, WriteReply::Unknown));
                Err(ProposalFailure::Unknown)
            }
        }
    }

    /// Failed checks and rejections were evaluated against the batches in flight, so they are
    /// answered when the last of those has committed; with none in flight, once this node is known
    /// to lead still.
    async fn answer_without_batch(
        &mut self,
        evaluated: Vec<(Queued, WriteOutcome)>,
    ) -> Result<(), ProposalFailure> {
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
            respond(queued.reply, self.release(outcome));
        }
        Ok(())
    }
}

/// The next step for a request whose turn in a batch has come.
enum NextStep {
    /// It is refused, or was decided before, in whatever way.
    Answer(WriteReply),
    /// It came before, and is in flight: answered when the batch at this position has committed.
    Join(Position, WriteOutcome),
    /// And its database has no turn for so long afterwards.
    Evaluate { pause: Option<Duration> },
}

/// Whether it puts values or messages. What becomes of a message is none of that.
fn stores_more(transaction: &Transaction) -> bool {
    let puts = |mutation: &Mutation| !matches!(mutation.kind, MutationKind::Delete);
    !transaction.enqueues.is_empty() || transaction.mutations.iter().any(puts)
}

/// Whether it can only make room.
fn only_deletes(transaction: &Transaction) -> bool {
    let Transaction { checks: _, mutations, enqueues, settlements } = transaction;
    let mut deletes = mutations
        .iter()
        .map(|mutation| matches!(mutation.kind, MutationKind::Delete))
        .chain(settlements.iter().map(|settlement| match settlement.verdict {
            Verdict::Delivered
            | Verdict::Acknowledged
            | Verdict::Cancelled
            | Verdict::Discarded { .. } => true,
            Verdict::Failed { .. } | Verdict::Rescheduled { .. } | Verdict::Redriven { .. } => {
                false
            }
        }));
    let is_empty = mutations.is_empty() && settlements.is_empty();
    !is_empty && enqueues.is_empty() && deletes.all(|deletes| deletes)
}
