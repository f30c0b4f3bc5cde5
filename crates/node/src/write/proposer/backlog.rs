//! Writes that wait to be evaluated: those of each database in order, and the databases in turn.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_types::{DatabaseId, NodeId};
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::recent::{Asks, Recent};
use super::room::Spent;
use super::{WriteRefusal, WriteReply, WriteRequest};
use crate::network::departure::Departure;
use crate::write::division::{HeldForWrite, Part};

/// Requests that wait for the proposer at most; beyond, they are refused.
pub(super) const QUEUE_REQUESTS: usize = 8192;
/// The part of a batch that a database has in one turn, in units of [`Spent`]: 16 small requests.
const TURN: i64 = 32 << 10;
/// As much of one batch is for one database while others write, too: a batch of so much commits
/// about as soon as the smallest, so that a flood does not make the writes of others wait for long.
const CONTENDED_PART: i64 = 256 << 10;

/// A leader that has committed nothing for so long, with requests waiting, may have lost its quorum.
const LATELY: Duration = Duration::from_millis(300);

pub(super) struct Queued {
    pub(super) request: WriteRequest,
    /// When it was handed to the proposer.
    pub(super) since: Instant,
    /// Not evaluated by then it is refused, definitely: no quorum answers, or it is not its turn.
    pub(super) until: Instant,
    /// It leaves to be evaluated. Its caller may take it back before.
    pub(super) departure: Arc<Departure>,
    pub(super) reply: oneshot::Sender<WriteReply>,
    /// Its bytes, of the node's budget for writes, until it is answered.
    pub(super) held: Arc<HeldForWrite>,
    /// Its place among those that wait, of its database's part of them.
    pub(super) _place: Part,
}

/// When a batch was last committed here. Cheap to clone; clones share it.
#[derive(Clone, Default)]
pub(super) struct LastCommit(Arc<Mutex<Option<Instant>>>);

impl LastCommit {
    fn note_now(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    /// The refusal of a request that waits since then. A quorum that has answered meanwhile, and of
    /// late, did so for requests whose turn it was.
    pub(super) fn refusal(&self, since: Instant) -> WriteRefusal {
        let has_answered = self.0.lock().is_some_and(|at| at > since && at.elapsed() < LATELY);
        if has_answered { WriteRefusal::NotItsTurn } else { WriteRefusal::NoQuorum }
    }
}

/// The requests that the task has taken from the queue and not evaluated yet.
///
/// Databases have turns by deficit round robin, where the cost of a request is known when it has
/// been evaluated: whatever a database has had beyond its turn it pays with later ones. A request of
/// a database with little to write waits for one turn of each other database, however much those
/// have waiting.
pub(super) struct Backlog {
    lines: BTreeMap<DatabaseId, Line>,
    /// Every line once.
    order: VecDeque<DatabaseId>,
    len: usize,
    recent: Recent,
    last_commit: LastCommit,
}

/// The requests of one database, in order. It stays without any for as long as it is in debt, or
/// is to wait.
struct Line {
    requests: VecDeque<Queued>,
    /// The rest of its turn; below zero, its debt.
    credit: i64,
    /// Of the batch that is being made, and what it had of those before beyond its part.
    in_batch: i64,
    /// It has no turn before: replication lags.
    paused_until: Option<Instant>,
}

impl Line {
    /// How many they were.
    fn leave_out_closed(&mut self) -> usize {
        let before = self.requests.len();
        while self.requests.front().is_some_and(|queued| queued.reply.is_closed()) {
            self.requests.pop_front();
        }
        before - self.requests.len()
    }

    fn is_paused(&self, now: Instant) -> bool {
        self.paused_until.is_some_and(|until| now < until)
    }
}

impl Backlog {
    pub(super) fn new(now: Instant) -> Self {
        let (lines, order) = (BTreeMap::new(), VecDeque::new());
        let (recent, last_commit) = (Recent::new(now), LastCommit::default());
        Self { lines, order, len: 0, recent, last_commit }
    }

    pub(super) fn last_commit(&self) -> LastCommit {
        self.last_commit.clone()
    }

    /// A batch was committed just now.
    pub(super) fn batch_committed(&self) {
        self.last_commit.note_now();
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Since when the first of them waits that may have a turn; or when one may have a turn, if
    /// none may before.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        let of_line = |line: &Line| {
            let since = line.requests.front()?.since;
            Some(line.paused_until.map_or(since, |until| until.max(since)))
        };
        self.lines.values().filter_map(of_line).min()
    }

    pub(super) fn is_full(&self) -> bool {
        self.len >= QUEUE_REQUESTS
    }

    pub(super) fn push(&mut self, queued: Queued) {
        self.line(queued.request.database).requests.push_back(queued);
        self.len += 1;
    }

    /// Puts back what was evaluated for nothing, before all others of its database.
    pub(super) fn put_back(&mut self, declined: Vec<Queued>) {
        for queued in declined.into_iter().rev() {
            queued.departure.come_back();
            self.line(queued.request.database).requests.push_front(queued);
            self.len += 1;
        }
    }

    fn line(&mut self, database: DatabaseId) -> &mut Line {
        let Self { lines, order, .. } = self;
        lines.entry(database).or_insert_with(|| {
            order.push_back(database);
            Line { requests: VecDeque::new(), credit: TURN, in_batch: 0, paused_until: None }
        })
    }

    /// A batch begins.
    pub(super) fn begin_batch(&mut self, now: Instant) {
        self.recent.advance(now);
        for line in self.lines.values_mut() {
            line.in_batch = (line.in_batch - CONTENDED_PART).max(0);
        }
    }

    /// The next request of the database whose turn it is, to be [charged](Self::charge). A caller
    /// that gave up is left out: nothing was done, and nothing will be. `None`: of no database that
    /// may have more of this batch.
    pub(super) fn next(&mut self, now: Instant) -> Option<Queued> {
        // Lines that were passed over since one of them gained credit.
        let mut passed = 0;
        while passed < self.order.len() {
            let database = *self.order.front()?;
            let has_others = self.lines.len() > 1 || self.recent.has_others(database);
            let line = self.lines.get_mut(&database)?;
            self.len -= line.leave_out_closed();
            if !has_others {
                line.in_batch = 0;
            }
            let has_its_part = has_others && line.in_batch >= CONTENDED_PART;
            let may_have_more = !line.is_paused(now) && !has_its_part;
            if may_have_more
                && line.credit > 0
                && let Some(queued) = line.requests.pop_front()
            {
                self.len -= 1;
                if queued.departure.leave() {
                    return Some(queued);
                }
                continue;
            }
            // Its turn is over.
            let is_empty = line.requests.is_empty();
            passed = if may_have_more && !is_empty { 0 } else { passed + 1 };
            if line.credit <= 0 && (may_have_more || is_empty) {
                line.credit = line.credit.saturating_add(TURN);
            }
            self.order.pop_front();
            if is_empty && line.credit > 0 && !line.is_paused(now) {
                self.lines.remove(&database);
                passed -= 1;
            } else {
                self.order.push_back(database);
            }
        }
        None
    }

    /// The cost of a request of this database, once it is known.
    pub(super) fn charge(&mut self, database: DatabaseId, spent: Spent) {
        if spent.logged_bytes > 0 {
            self.recent.add(database, spent.logged_bytes);
        }
        if let Some(line) = self.lines.get_mut(&database) {
            line.credit = line.credit.saturating_sub(spent.units);
            line.in_batch = line.in_batch.saturating_add(spent.units);
        }
    }

    /// An internal writer has logged so much of this database.
    pub(super) fn logged_internally(&mut self, now: Instant, database: DatabaseId, bytes: u64) {
        self.recent.advance(now);
        self.recent.add_internal(database, bytes);
    }

    /// The database has no turn for so long.
    pub(super) fn pause(&mut self, database: DatabaseId, now: Instant, pause: Duration) {
        let until = now + pause;
        let line = self.line(database);
        line.paused_until = line.paused_until.max(Some(until));
    }

    /// How much the database writes, of all that is written.
    pub(super) fn asks(&self, database: DatabaseId) -> Asks {
        self.recent.asks(database)
    }

    /// Refuses what has waited too long to be evaluated, as it does while no quorum answers, or while
    /// its database has more waiting than it has turns.
    pub(super) fn give_up(&mut self) {
        let now = Instant::now();
        for line in self.lines.values_mut() {
            while line.requests.front().is_some_and(|queued| now >= queued.until)
                && let Some(queued) = line.requests.pop_front()
            {
                self.len -= 1;
                let refusal = self.last_commit.refusal(queued.since);
                respond(queued.reply, WriteReply::NotCommitted(refusal));
            }
        }
    }

    /// Another leads, or will: nothing was done of these.
    pub(super) fn decline(&mut self, leader: Option<NodeId>) {
        self.answer_all(|| WriteReply::NotLeader(leader));
    }

    pub(super) fn refuse_as_sealed(&mut self) {
        self.answer_all(|| WriteReply::NotCommitted(WriteRefusal::Sealed));
    }

    fn answer_all(&mut self, answer: impl Fn() -> WriteReply) {
        // With the debts: nothing of them is proposed by this node, or in this epoch, any more.
        let lines = std::mem::take(&mut self.lines);
        for queued in lines.into_values().flat_map(|line| line.requests) {
            respond(queued.reply, answer());
        }
        self.order.clear();
        self.len = 0;
    }
}

pub(super) fn respond(reply: oneshot::Sender<WriteReply>, answer: WriteReply) {
    // The caller may be gone; what it asked for is done or not all the same.
    drop(reply.send(answer));
}

/// The bytes that a request takes in memory, about.
pub(super) fn size(request: &WriteRequest) -> usize {
    use meridian_types::MutationKind::{Delete, Max, Min, Set, SetSuffixVersionstampedKey, Sum};
    /// Of a check, a mutation, a message or the request, beside its bytes.
    const STRUCTURE: usize = 200;
    /// Of a key if undelivered, or an interval, beside its bytes.
    const ELEMENT: usize = 32;
    let checks = request.transaction.checks.iter().map(|check| STRUCTURE + check.key.len());
    let mutations = request.transaction.mutations.iter().map(|mutation| {
        let operand = match &mutation.kind {
            Set(value) | Min(value) | Max(value) | SetSuffixVersionstampedKey(value) => {
                value.data.len()
            }
            Sum { operand, bounds } => operand.data.len() + bounds.min.len() + bounds.max.len(),
            Delete => 0,
        };
        STRUCTURE + mutation.key.len() + operand
    });
    let enqueues = request.transaction.enqueues.iter().map(|enqueue| {
        let keys = enqueue.keys_if_undelivered.iter().map(|key| ELEMENT + key.len());
        let intervals = enqueue.backoff_ms.as_ref().map_or(0, Vec::len);
        STRUCTURE + enqueue.payload.len() + keys.sum::<usize>() + ELEMENT * intervals
    });
    let settlements = STRUCTURE * request.transaction.settlements.len();
    STRUCTURE
        + checks.sum::<usize>()
        + mutations.sum::<usize>()
        + enqueues.sum::<usize>()
        + settlements
}

#[cfg(test)]
mod tests;
