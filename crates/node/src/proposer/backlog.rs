use std::collections::VecDeque;
use std::time::{Duration, Instant};

use meridian_memory::Held;
use meridian_types::NodeId;
use tokio::sync::oneshot;

use super::{WriteReply, WriteRequest};

/// Requests that wait for the proposer at most; beyond, they are refused.
pub(super) const QUEUE_REQUESTS: usize = 8192;
/// A request that is not evaluated within this time is refused, definitely: no quorum answers.
const QUEUE_TIMEOUT: Duration = Duration::from_millis(700);

pub(super) struct Queued {
    pub(super) request: WriteRequest,
    pub(super) since: Instant,
    pub(super) reply: oneshot::Sender<WriteReply>,
    /// Its bytes, of the node's budget for writes, until it is answered.
    pub(super) held: Held,
}

/// What the task has taken from the queue and not evaluated yet, in order.
#[derive(Default)]
pub(super) struct Backlog {
    requests: VecDeque<Queued>,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.requests.len() >= QUEUE_REQUESTS
    }

    pub(super) fn push(&mut self, queued: Queued) {
        self.requests.push_back(queued);
    }

    /// Puts back what was evaluated for nothing, before all others.
    pub(super) fn put_back(&mut self, declined: Vec<Queued>) {
        declined.into_iter().rev().for_each(|queued| self.requests.push_front(queued));
    }

    /// The one that has waited longest. Who gave up waiting is left out: it was told that the outcome is
    /// unknown, and nothing was done.
    pub(super) fn next(&mut self) -> Option<Queued> {
        while let Some(queued) = self.requests.pop_front() {
            if !queued.reply.is_closed() {
                return Some(queued);
            }
        }
        None
    }

    /// Refuses what has waited too long to be evaluated, as it does while no quorum answers.
    pub(super) fn give_up(&mut self) {
        while self.requests.front().is_some_and(|queued| queued.since.elapsed() >= QUEUE_TIMEOUT)
            && let Some(queued) = self.requests.pop_front()
        {
            let reason = "the shard's leader gets no answer from a quorum".to_owned();
            respond(queued.reply, WriteReply::NotCommitted(reason));
        }
    }

    /// Another leads, or will: nothing was done of these.
    pub(super) fn decline(&mut self, leader: Option<NodeId>) {
        self.requests.drain(..).for_each(|queued| respond(queued.reply, WriteReply::NotLeader(leader)));
    }

    pub(super) fn refuse_as_sealed(&mut self) {
        let reason = || "the shard's primary region is changing".to_owned();
        self.requests.drain(..).for_each(|queued| respond(queued.reply, WriteReply::NotCommitted(reason())));
    }
}

pub(super) fn respond(reply: oneshot::Sender<WriteReply>, answer: WriteReply) {
    // The caller may be gone; what it asked for is done or not all the same.
    drop(reply.send(answer));
}

/// What a request takes in memory, about.
pub(super) fn size(request: &WriteRequest) -> usize {
    use meridian_types::MutationKind::{Delete, Max, Min, Set, SetSuffixVersionstampedKey, Sum};
    /// Of a check, a mutation or the request, beside its bytes.
    const STRUCTURE: usize = 200;
    let checks = request.transaction.checks.iter().map(|check| STRUCTURE + check.key.len());
    let mutations = request.transaction.mutations.iter().map(|mutation| {
        let operand = match &mutation.kind {
            Set(value) | Min(value) | Max(value) | SetSuffixVersionstampedKey(value) => value.data.len(),
            Sum { operand, bounds } => operand.data.len() + bounds.min.len() + bounds.max.len(),
            Delete => 0,
        };
        STRUCTURE + mutation.key.len() + operand
    });
    STRUCTURE + checks.sum::<usize>() + mutations.sum::<usize>()
}
