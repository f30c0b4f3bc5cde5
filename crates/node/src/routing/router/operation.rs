//! The common part of reads and writes: attempts of one operation, what they may cost, and how
//! long to wait between them.

use std::sync::Arc;
use std::time::Duration;

use meridian_gateway::Unavailable;
use meridian_types::{DatabaseId, Epoch, NodeId, ShardId};
use tokio::sync::watch;

use super::Router;
use super::budget::{Budget, pause};
use crate::cluster_view::view::Known;
use crate::host::clock::Clock;
use crate::routing::hedge::{Driving, Patience, Surroundings};
use crate::routing::nodes::Nodes;
use crate::time_budget::{HEDGE_AFTER, SAYS_THAT_IT_IS_AT_WORK};

/// The operations that waited for a shard come back within this time, not all at once.
pub(super) const REVIVAL_SPREAD: Duration = Duration::from_millis(10);

/// One operation, over all its attempts.
pub(super) struct Operation {
    pub(super) database: DatabaseId,
    /// Of each try.
    pub(super) bytes: usize,
    /// Attempts that failed.
    pub(super) failed: u32,
    /// The node that did not answer in the attempt before.
    pub(super) lost: Option<NodeId>,
    /// The attempt before ended with the word of the leader that the database has its share: the
    /// next one costs the other databases of the shard nothing.
    pub(super) busy: bool,
}

/// A database that has its share is tried again as late as after so many rounds that failed.
const BUSY_ROUNDS: u32 = 4;

impl Operation {
    pub(super) fn new(database: DatabaseId, bytes: usize) -> Self {
        Self { database, bytes, failed: 0, lost: None, busy: false }
    }

    fn next_pause(&mut self) -> Duration {
        let pause = pause(self.failed + if self.busy { BUSY_ROUNDS } else { 0 });
        self.failed += 1;
        pause
    }
}

/// The shard, its budget and news of it, as one attempt finds them. Looked up anew for each: the
/// shard may have moved on, and a new epoch knows the request ids of those before.
pub(super) struct Beginning {
    pub(super) shard: (ShardId, Epoch),
    pub(super) budget: Arc<Budget>,
    pub(super) found: watch::Receiver<Option<NodeId>>,
    pub(super) known: watch::Receiver<Arc<Known>>,
}

/// How long the nodes of one attempt are waited for, and what its tries cost.
pub(super) struct Pace<'a, N, C> {
    router: &'a Router<N, C>,
    budget: &'a Budget,
    bytes: usize,
}

impl<N: Nodes, C: Clock> Patience for Pace<'_, N, C> {
    fn patience(&self, node: NodeId) -> Duration {
        HEDGE_AFTER + self.router.health.round_trip(node)
    }

    fn is_silent(&self, node: NodeId, since: Duration) -> bool {
        let health = &self.router.health;
        let said_by = since + SAYS_THAT_IT_IS_AT_WORK + health.round_trip(node);
        said_by <= self.router.clock.now() && !health.was_received_since(since, node)
    }
}

impl<N: Nodes, C: Clock> Surroundings for Pace<'_, N, C> {
    fn pays(&self) -> bool {
        self.budget.pays(self.router.clock.now(), self.bytes)
    }
}

impl<N: Nodes, C: Clock> Router<N, C> {
    pub(super) fn begin(&self, database: DatabaseId) -> Result<Beginning, Unavailable> {
        let known = self.directory.watch();
        let shard = self.shard(database)?;
        let (budget, found) = self.leaders.subscribe(shard.0);
        Ok(Beginning { shard, budget, found, known })
    }

    pub(super) fn pace<'a>(
        &'a self,
        beginning: &'a Beginning,
        operation: &Operation,
    ) -> Pace<'a, N, C> {
        Pace { router: self, budget: &beginning.budget, bytes: operation.bytes }
    }

    pub(super) fn driving<'a>(
        &'a self,
        beginning: &Beginning,
        pace: &'a Pace<'a, N, C>,
    ) -> Driving<'a, C, Pace<'a, N, C>> {
        Driving { clock: &self.clock, surroundings: pace, found: beginning.found.clone() }
    }

    /// One attempt had an answer. The nodes that are `late` were asked, and others were faster.
    pub(super) fn answered(&self, operation: &Operation, budget: &Budget, late: &[NodeId]) {
        let now = self.clock.now();
        late.iter().for_each(|node| self.health.was_silent(now, *node));
        if operation.failed > 0 && !operation.busy {
            budget.answered(now);
        }
    }

    /// Waits before another attempt: longer each time, and until it is paid for, which that of a
    /// database that has its share is not; or until the shard
    /// is served again, or has moved since the attempt began. News of the rest of the cluster puts
    /// nothing off. False: `left` ran out.
    pub(super) async fn pause(
        &self,
        operation: &mut Operation,
        beginning: Beginning,
        left: Duration,
    ) -> bool {
        let Beginning { shard, budget, mut found, known } = beginning;
        let until = self.clock.now() + left;
        let moved = self.moved(operation.database, shard, known);
        tokio::pin!(moved);
        let spread = || {
            let spread = rand::random_range(Duration::ZERO..REVIVAL_SPREAD);
            self.clock.sleep_until(self.clock.now() + spread)
        };
        let mut next = self.clock.now() + operation.next_pause();
        loop {
            tokio::select! {
                () = self.clock.sleep_until(next.min(until)) => {
                    if next >= until {
                        return false;
                    }
                    if operation.busy || budget.pays(self.clock.now(), operation.bytes) {
                        return true;
                    }
                    next = self.clock.now() + operation.next_pause();
                }
                Ok(()) = found.changed() => {
                    spread().await;
                    return true;
                }
                () = &mut moved => {
                    // How often other nodes failed, or did not answer, says nothing of the
                    // voters that have the shard now.
                    (operation.failed, operation.lost) = (1, None);
                    spread().await;
                    return true;
                }
            }
        }
    }

    /// Ends when what is `known` has changed so that the database is elsewhere than in that epoch
    /// of that shard. For a database that is gone no other node is to be asked, and what is under
    /// way may have an answer yet.
    pub(super) async fn moved(
        &self,
        database: DatabaseId,
        shard: (ShardId, Epoch),
        mut known: watch::Receiver<Arc<Known>>,
    ) {
        while known.changed().await.is_ok() {
            if self.shard(database).is_ok_and(|present| present != shard) {
                return;
            }
        }
        std::future::pending().await
    }
}
