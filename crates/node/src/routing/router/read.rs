//! Reads: at this node at once where it may have them in memory, else from several nodes, one after
//! the other.

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, ready};
use meridian_gateway::{Read, ReadOutput, Unavailable};
use meridian_memory::Held;
use meridian_types::{Consistency, Epoch, Position, ShardId};
use tokio::sync::Notify;

use super::operation::{Beginning, Operation};
use super::{Router, unavailable};
use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::network::departure::Departure;
use crate::routing::hedge::{self, Asked, Attempt, Bounds, Outcome, Try};
use crate::routing::nodes::{Answering, BrokenOff, Nodes};

/// Any voter that has a leader can serve a read, so one more node at work is enough.
const BOUNDS: Bounds = Bounds { at_a_time: 2, refusal_is_free: true };

/// A read at this node, as its first poll left it.
pub(super) enum Here {
    Read(ReadOutput, Position),
    Begun(Begun),
}

/// A call of this node, which goes on among those of others.
pub(super) struct Begun {
    shard: (ShardId, Epoch),
    working: Arc<Notify>,
    call: BoxFuture<'static, Result<Answering, Failed>>,
}

impl<N: Nodes, C: Clock> Router<N, C> {
    /// A read that this node may have at once, since what it reads is in memory, is had without a
    /// timer and without being hedged. A read that takes longer goes on among the others. `None`:
    /// others are to be asked first.
    pub(super) async fn read_here(&self, now: Duration, read: &Arc<Read>) -> Option<Here> {
        let (node, shard) = (self.local_node?, self.shard(read.database).ok()?);
        let strong = read.consistency == Consistency::Strong;
        let is_first = (!strong || self.nodes.local_voter(shard.0).is_some())
            && !self.health.is_silent(now, node)
            && !self.refusals.has_refused(node, shard.0, read.consistency);
        if !is_first {
            return None;
        }
        let working = Arc::new(Notify::new());
        let min_sequence = self.min_sequence(shard);
        let mut call = self.nodes.read(node, shard, read, min_sequence, Arc::clone(&working), None);
        let call = match futures::poll!(&mut call) {
            Poll::Ready(Ok(Answering { position, leader, ranges })) => {
                let ranges = ranges.await.ok()?;
                self.leaders.answered_here(now, shard.0, node, leader.filter(|_| strong));
                if !strong {
                    self.record_served(shard.0, position);
                }
                return Some(Here::Read(ReadOutput { ranges }, position));
            }
            Poll::Ready(Err(failed)) => ready(Err(failed)).boxed(),
            Poll::Pending => call,
        };
        Some(Here::Begun(Begun { shard, working, call }))
    }
}

/// One read that other nodes may be asked for.
pub(super) struct ReadOperation<'a, N, C> {
    router: &'a Router<N, C>,
    read: Arc<Read>,
    strong: bool,
    started: Duration,
    operation: Operation,
    begun: Option<Begun>,
    /// For an answer that was larger than what was free.
    room: Option<Held>,
}

/// The result of one attempt.
enum Attempted {
    /// And what the state read from had applied, at least.
    Done(ReadOutput, Position),
    /// There is room for the answer by now: it is asked for once more at once.
    ForRoom,
    Failed(String),
}

impl<'a, N: Nodes, C: Clock> ReadOperation<'a, N, C> {
    pub(super) fn new(
        router: &'a Router<N, C>,
        read: Arc<Read>,
        started: Duration,
        begun: Option<Begun>,
    ) -> Self {
        let strong = read.consistency == Consistency::Strong;
        let operation = Operation::new(read.database, 0);
        Self { router, read, strong, started, operation, begun, room: None }
    }

    pub(super) async fn run(mut self) -> Result<(ReadOutput, Position), Unavailable> {
        let router = self.router;
        let deadline = self.started + router.deadline;
        loop {
            let beginning = router.begin(self.read.database)?;
            if self.operation.failed == 0 && self.room.is_none() {
                beginning.budget.first_try(router.clock.now());
            }
            let reason = match self.attempt(&beginning).await {
                Attempted::Done(output, position) => return Ok((output, position)),
                Attempted::ForRoom => continue,
                Attempted::Failed(reason) => reason,
            };
            let (shard, left) = (beginning.shard.0, deadline.saturating_sub(router.clock.now()));
            if left.is_zero() || !router.pause(&mut self.operation, beginning, left).await {
                return Err(unavailable(format!("shard {shard} cannot be read now: {reason}")));
            }
        }
    }

    async fn attempt(&mut self, beginning: &Beginning) -> Attempted {
        let Self { router, read, strong, started, operation, begun, room } = self;
        let (router, shard, consistency) = (*router, beginning.shard, read.consistency);
        let (latest, min_sequence) = (*started + router.deadline, router.min_sequence(shard));
        // An eventual read is as good from any epoch: a node that is at work on it is waited for.
        let (known, strong) = (beginning.known.clone(), *strong);
        let moved = async {
            match strong {
                true => router.moved(read.database, shard, known).await,
                false => std::future::pending().await,
            }
        };
        let ask = |Try { node, .. }: Try| {
            let here = begun
                .take()
                .filter(|begun| begun.shard == shard && Some(node) == router.local_node);
            let (working, call) = match here {
                Some(Begun { working, call, .. }) => (working, call),
                None => {
                    let working = Arc::new(Notify::new());
                    let reporting = Arc::clone(&working);
                    let call =
                        router.nodes.read(node, shard, read, min_sequence, reporting, room.take());
                    (working, call)
                }
            };
            // Whether a read has left makes no difference.
            let departure = Departure::default();
            departure.leave();
            let call = async move { router.within(node, latest, &working, &departure, call).await };
            Asked { call, departure: None }
        };
        let ended = |node, result: Result<(), &Failed>| {
            router.record(shard.0, node, result);
            router.refusals.record(router.clock.now(), node, shard.0, consistency, result);
        };
        let pace = router.pace(beginning, operation);
        let attempt = Attempt::new(router.readers(shard.0, consistency), operation.lost, BOUNDS);
        let driving = router.driving(beginning, &pace);
        match hedge::drive(attempt, driving, moved, ask, |_| true, ended).await {
            Outcome::Answer { node, answer, late } => {
                router.answered(operation, &beginning.budget, &late);
                if let Some(leader) = answer.leader.filter(|_| strong) {
                    router.leaders.answered(router.clock.now(), shard.0, node, leader);
                }
                operation.lost = None;
                self.receive(shard.0, answer).await
            }
            Outcome::Nothing { reason, lost, .. } => {
                operation.lost = lost;
                Attempted::Failed(reason)
            }
        }
    }

    /// An answer that has begun is waited for as long as it comes, also beyond the deadline.
    async fn receive(&mut self, shard: ShardId, answer: Answering) -> Attempted {
        let (router, position) = (self.router, answer.position);
        match answer.ranges.await {
            Ok(ranges) => {
                if !self.strong {
                    router.record_served(shard, position);
                }
                Attempted::Done(ReadOutput { ranges }, position)
            }
            Err(BrokenOff::Failed(reason)) => Attempted::Failed(reason),
            Err(BrokenOff::ForRoom(held))
                if router.clock.now() < self.started + router.deadline =>
            {
                self.room = Some(held);
                Attempted::ForRoom
            }
            Err(BrokenOff::ForRoom(_)) => {
                Attempted::Failed("this process was short of memory for reads".to_owned())
            }
        }
    }
}
