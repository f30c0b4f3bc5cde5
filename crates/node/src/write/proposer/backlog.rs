//! Writes that wait to be evaluated, in order, within a bound of bytes.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use meridian_memory::Held;
use meridian_types::NodeId;
use tokio::sync::oneshot;

use super::{WriteRefusal, WriteReply, WriteRequest};
use crate::network::departure::Departure;

/// Requests that wait for the proposer at most; beyond, they are refused.
pub(super) const QUEUE_REQUESTS: usize = 8192;
pub(super) struct Queued {
    pub(super) request: WriteRequest,
    /// When it was handed to the proposer.
    pub(super) since: Instant,
    /// Not evaluated by then it is refused, definitely: no quorum answers.
    pub(super) until: Instant,
    /// It leaves to be evaluated. Its caller may take it back before.
    pub(super) departure: Arc<Departure>,
    pub(super) reply: oneshot::Sender<WriteReply>,
    /// Its bytes, of the node's budget for writes, until it is answered.
    pub(super) held: Arc<Held>,
}

/// The requests that the task has taken from the queue and not evaluated yet, in order.
#[derive(Default)]
pub(super) struct Backlog {
    requests: VecDeque<Queued>,
}

impl Backlog {
    pub(super) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Since when the first of them waits.
    pub(super) fn waiting_since(&self) -> Option<Instant> {
        self.requests.front().map(|queued| queued.since)
    }

    pub(super) fn is_full(&self) -> bool {
        self.requests.len() >= QUEUE_REQUESTS
    }

    pub(super) fn push(&mut self, queued: Queued) {
        self.requests.push_back(queued);
    }

    /// Puts back what was evaluated for nothing, before all others.
    pub(super) fn put_back(&mut self, declined: Vec<Queued>) {
        for queued in declined.into_iter().rev() {
            queued.departure.come_back();
            self.requests.push_front(queued);
        }
    }

    /// The request that has waited longest. A caller that gave up is left out: nothing was done,
    /// and nothing will be.
    pub(super) fn next(&mut self) -> Option<Queued> {
        while let Some(queued) = self.requests.pop_front() {
            if !queued.reply.is_closed() && queued.departure.leave() {
                return Some(queued);
            }
        }
        None
    }

    /// Refuses what has waited too long to be evaluated, as it does while no quorum answers.
    pub(super) fn give_up(&mut self) {
        let now = Instant::now();
        while self.requests.front().is_some_and(|queued| now >= queued.until)
            && let Some(queued) = self.requests.pop_front()
        {
            respond(queued.reply, WriteReply::NotCommitted(WriteRefusal::NoQuorum));
        }
    }

    /// Another leads, or will: nothing was done of these.
    pub(super) fn decline(&mut self, leader: Option<NodeId>) {
        self.requests
            .drain(..)
            .for_each(|queued| respond(queued.reply, WriteReply::NotLeader(leader)));
    }

    pub(super) fn refuse_as_sealed(&mut self) {
        for queued in self.requests.drain(..) {
            respond(queued.reply, WriteReply::NotCommitted(WriteRefusal::Sealed));
        }
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
mod tests {
    use std::time::Duration;

    use meridian_memory::ByteBudget;
    use meridian_types::{
        Check, DatabaseId, Enqueue, MessageId, Mutation, MutationKind, QueueName, RequestId,
        Settlement, SumBounds, Transaction, Value, ValueEncoding, Verdict, Versionstamp,
        WriteOutcome,
    };
    use tokio::sync::{mpsc, watch};

    use super::super::Proposer;
    use super::super::logged_time::ShardClock;
    use super::*;
    use crate::cluster_view::epoch_lease::Fenced;
    use crate::time_budget::PATIENCE;

    fn no_quorum() -> WriteReply {
        WriteReply::NotCommitted(WriteRefusal::NoQuorum)
    }

    fn request(transaction: Transaction) -> WriteRequest {
        WriteRequest {
            database: DatabaseId([1; 16]),
            request_id: RequestId([1; 16]),
            transaction,
            retry: false,
        }
    }

    /// A request that is given up then, of a budget of as many as there may be.
    fn queued(budget: &ByteBudget, until: Instant) -> (Queued, oneshot::Receiver<WriteReply>) {
        let (reply, answer) = oneshot::channel();
        let (request, held) =
            (request(Transaction::default()), Arc::new(budget.try_take(1).unwrap()));
        (
            Queued {
                request,
                since: Instant::now(),
                until,
                departure: Arc::default(),
                reply,
                held,
            },
            answer,
        )
    }

    #[test]
    fn request_given_up_is_refused_and_frees_its_memory_while_later_ones_wait_on() {
        let budget = ByteBudget::new("writes", 9);
        let (now, mut backlog) = (Instant::now(), Backlog::default());
        let mut answers: Vec<_> = [now, now, now + Duration::from_secs(3600)]
            .map(|until| {
                let (queued, answer) = queued(&budget, until);
                backlog.push(queued);
                answer
            })
            .into();
        backlog.give_up();
        let answered: Vec<_> = answers.iter_mut().map(|answer| answer.try_recv().ok()).collect();
        assert_eq!(answered, [Some(no_quorum()), Some(no_quorum()), None]);
        assert_eq!((backlog.len(), budget.used_bytes()), (1, 1));
    }

    #[test]
    fn backlog_is_full_with_as_many_requests_as_may_wait() {
        let (budget, mut backlog) = (ByteBudget::new("writes", QUEUE_REQUESTS), Backlog::default());
        let mut answers = Vec::new();
        while backlog.len() < QUEUE_REQUESTS {
            assert!(!backlog.is_full());
            let (queued, answer) = queued(&budget, Instant::now());
            backlog.push(queued);
            answers.push(answer);
        }
        assert!(backlog.is_full());
    }

    #[test]
    fn request_size_counts_keys_values_bounds_messages_and_each_part() {
        let value = |bytes| Value { encoding: ValueEncoding::Bytes, data: vec![7; bytes].into() };
        let mutation =
            |key_bytes, kind| Mutation { key: vec![1; key_bytes].into(), kind, expire_at_ms: 0 };
        let bounds = SumBounds {
            min: vec![1; 5000].into(),
            max: vec![2; 60_000].into(),
            ..SumBounds::default()
        };
        let empty = size(&request(Transaction::default()));
        assert!((100..1000).contains(&empty), "{empty}");
        for (what, least) in [
            (mutation(3, MutationKind::Delete), 3),
            (mutation(3, MutationKind::Set(value(40))), 43),
            (mutation(3, MutationKind::Sum { operand: value(40), bounds }), 65_043),
        ] {
            let transaction = Transaction { mutations: vec![what], ..Transaction::default() };
            assert_eq!(size(&request(transaction)), least + 2 * empty);
        }
        let checks = vec![Check { key: vec![1; 3].into(), versionstamp: None }; 2];
        let transaction = Transaction { checks, ..Transaction::default() };
        assert_eq!(size(&request(transaction)), 2 * 3 + 3 * empty);
        let queue = QueueName::UNNAMED;
        let enqueue = Enqueue {
            queue: queue.clone(),
            payload: vec![1; 1000].into(),
            due_ms: 1,
            keys_if_undelivered: vec![vec![1; 50].into(); 2],
            backoff_ms: Some(vec![1; 3]),
        };
        let settlement = Settlement {
            queue,
            id: MessageId { enqueued: Versionstamp([1; 10]), index: 0 },
            due_ms: 1,
            verdict: Verdict::Delivered,
        };
        let transaction = Transaction {
            enqueues: vec![enqueue],
            settlements: vec![settlement],
            ..Transaction::default()
        };
        assert_eq!(size(&request(transaction)), 1000 + 2 * (50 + 32) + 3 * 32 + 3 * empty);
    }

    /// Its task is busy with something else, whatever that is.
    #[tokio::test]
    async fn request_not_evaluated_in_time_is_refused_and_an_evaluated_one_is_answered() {
        let (queue, mut requests) = mpsc::channel(9);
        let budget = ByteBudget::new("writes", 1 << 20);
        let drained = watch::Sender::new(None).subscribe();
        let (sealed, clock) = (watch::Sender::new(false), ShardClock::default());
        let proposer = Proposer { queue, sealed, drained, budget: budget.clone(), clock };
        let write = || {
            let proposer = proposer.clone();
            tokio::spawn(async move {
                let request = request(Transaction::default());
                let reserved = proposer.reserve(&request).unwrap();
                proposer.write(request, reserved).await
            })
        };
        let (refused, mut backlog) = (write(), Backlog::default());
        backlog.push(requests.recv().await.unwrap());
        let refused = tokio::time::timeout(Duration::from_secs(60), refused).await;
        assert_eq!(refused.unwrap().unwrap(), no_quorum());
        assert!(backlog.next().is_none());
        let answered = write();
        backlog.push(requests.recv().await.unwrap());
        let taken = backlog.next().unwrap();
        tokio::time::sleep(PATIENCE + Duration::from_millis(50)).await;
        assert!(!answered.is_finished());
        // A request that was evaluated for nothing is evaluated again, or refused.
        backlog.put_back(vec![taken]);
        let taken = backlog.next().unwrap();
        let outcome = WriteReply::Done(Fenced::for_test(WriteOutcome::CheckFailed(vec![1])));
        respond(taken.reply, outcome.clone());
        assert_eq!(answered.await.unwrap(), outcome);
        drop(taken.held);
        assert_eq!(budget.used_bytes(), 0);
    }
}
