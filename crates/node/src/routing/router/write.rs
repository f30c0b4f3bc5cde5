//! Writes: the leader first, and on with the same request id until the outcome is known.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use meridian_gateway::{Write, WriteFailure};
use meridian_types::{Epoch, MessageId, ShardId, Transaction, WriteOutcome};
use tokio::sync::Notify;

use super::operation::{Beginning, Operation};
use super::{Router, unavailable};
use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use crate::routing::hedge::{self, Asked, Attempt, Bounds, Outcome, Try};
use crate::routing::nodes::{Nodes, WriteTry, Written};
use crate::time_budget::UNKNOWN_DEADLINE;

/// Voters that do not lead only wait for a leader, so more of them may have a write at a time.
const BOUNDS: Bounds = Bounds { at_a_time: 3, refusal_is_free: false };

/// One write, over all its attempts.
pub(super) struct WriteOperation<'a, N, C> {
    router: &'a Router<N, C>,
    write: Arc<Write>,
    started: Duration,
    operation: Operation,
    /// Why an earlier try may have committed.
    unknown: Option<String>,
}

impl<'a, N: Nodes, C: Clock> WriteOperation<'a, N, C> {
    pub(super) fn new(router: &'a Router<N, C>, write: Write) -> Self {
        Self {
            router,
            started: router.clock.now(),
            operation: Operation::new(write.database, bytes_of(&write.transaction)),
            write: Arc::new(write),
            unknown: None,
        }
    }

    pub(super) async fn run(mut self) -> Result<WriteOutcome, WriteFailure> {
        let router = self.router;
        loop {
            let beginning = match router.begin(self.write.database) {
                Ok(beginning) => beginning,
                Err(gone) => return Err(self.failure(gone.reason)),
            };
            if self.operation.failed == 0 {
                beginning.budget.first_try(router.clock.now());
            }
            let reason = match self.attempt(&beginning).await {
                Ok(outcome) => return Ok(outcome),
                Err(reason) => reason,
            };
            let limit = if self.unknown.is_some() { UNKNOWN_DEADLINE } else { router.deadline };
            let left = (self.started + limit).saturating_sub(router.clock.now());
            let shard = beginning.shard.0;
            if left.is_zero() || !router.pause(&mut self.operation, beginning, left).await {
                return Err(self.failure(format!("shard {shard} cannot be written now: {reason}")));
            }
        }
    }

    /// The outcome, or why this attempt has none.
    async fn attempt(&mut self, beginning: &Beginning) -> Result<WriteOutcome, String> {
        let Self { router, write, started, operation, unknown } = self;
        let (router, shard) = (*router, beginning.shard);
        let (retried, expires_at) = (unknown.is_some(), *started + UNKNOWN_DEADLINE);
        let moved = router.moved(write.database, shard, beginning.known.clone());
        let ask = |tried: Try| {
            let again = retried || tried.overlaps;
            let retry = again || write.may_come_again;
            let attempt = WriteTry {
                node: tried.node,
                retry,
                in_turn: !again,
                late: tried.late,
                pass_on: router.passes_on(shard.0, &tried),
                expires_at,
            };
            let departure = Arc::<Departure>::default();
            let call = router.try_write(shard, write, attempt, Arc::clone(&departure));
            let call = async move { Ok((call.await?, retry)) };
            Asked { call, departure: Some(departure) }
        };
        // An outcome other than a commit binds once it is logged: else a try that overtook it may
        // commit yet.
        let binds = |(written, logged): &(Written, bool)| {
            *logged || matches!(written.outcome, WriteOutcome::Committed(_))
        };
        let ended = |node, result: Result<(), &Failed>| router.record(shard.0, node, result);
        let pace = router.pace(beginning, operation);
        let attempt = Attempt::new(router.voters(shard.0), operation.lost, BOUNDS);
        let driving = router.driving(beginning, &pace);
        match hedge::drive(attempt, driving, moved, ask, binds, ended).await {
            Outcome::Answer { node, answer: (written, _), late } => {
                router.answered(operation, &beginning.budget, &late);
                let leader = written.leader.unwrap_or(node);
                router.leaders.answered(router.clock.now(), shard.0, node, leader);
                Ok(written.outcome)
            }
            Outcome::Nothing { reason, unknown: maybe, lost, busy } => {
                (operation.lost, operation.busy) = (lost, busy);
                *unknown = unknown.take().or(maybe);
                Err(reason)
            }
        }
    }

    /// Why a write has no outcome. That it did not commit is said only where no try of it may have.
    fn failure(&mut self, reason: String) -> WriteFailure {
        match self.unknown.take() {
            Some(why) => WriteFailure::Unknown(why),
            None => WriteFailure::NotCommitted(unavailable(reason)),
        }
    }
}

impl<N: Nodes, C: Clock> Router<N, C> {
    async fn try_write(
        &self,
        shard: (ShardId, Epoch),
        write: &Arc<Write>,
        attempt: WriteTry,
        departure: Arc<Departure>,
    ) -> Result<Written, Failed> {
        if attempt.retry && self.clock.now() >= attempt.expires_at {
            return Err(Failed::Unknown("its outcome may be forgotten by now".to_owned()));
        }
        let call = self.nodes.write(shard, write, attempt, Arc::clone(&departure));
        self.within(attempt.node, Duration::ZERO, &Notify::new(), &departure, call).await
    }

    /// Whether a voter is to pass a write on: the leader does not answer this gateway, which says
    /// nothing of others.
    fn passes_on(&self, shard: ShardId, tried: &Try) -> bool {
        let cut_off = || {
            self.leaders.hint(shard).is_some_and(|hint| {
                hint != tried.node && self.health.is_silent(self.clock.now(), hint)
            })
        };
        tried.late.is_some() || cut_off()
    }
}

/// About what a try of it sends.
pub(super) fn bytes_of(transaction: &Transaction) -> usize {
    use meridian_types::MutationKind::{Delete, Max, Min, Set, SetSuffixVersionstampedKey, Sum};
    let checks = transaction.checks.iter().map(|check| check.key.len());
    let mutations = transaction.mutations.iter().map(|mutation| match &mutation.kind {
        Set(value)
        | Min(value)
        | Max(value)
        | SetSuffixVersionstampedKey(value)
        | Sum { operand: value, .. } => mutation.key.len() + value.data.len(),
        Delete => mutation.key.len(),
    });
    let enqueues = transaction.enqueues.iter().map(|enqueue| {
        enqueue.payload.len() + enqueue.keys_if_undelivered.iter().map(Bytes::len).sum::<usize>()
    });
    let settlements = transaction.settlements.iter().map(|_| MessageId::LEN);
    checks.chain(mutations).chain(enqueues).chain(settlements).sum()
}
