//! Changes behind a versionstamp: from the node near by that has them, else from any.

use meridian_gateway::{Changed, ChangesWanted, NoChanges, Read};
use meridian_types::{Consistency, Epoch, EpochHistory, NodeId, ShardId, Versionstamp};

use super::budget::pause;
use super::{Router, unavailable};
use crate::changes::NotGiven;
use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::routing::nodes::Nodes;
use crate::time_budget::{ATTEMPT_TIMEOUT, READ_INDEX_TIMEOUT};

/// So many times all nodes are asked before it is said that the log is gone, where some have not
/// answered.
const ROUNDS_BEFORE_GONE: u32 = 3;

/// Why no node has an answer now.
struct Round {
    /// The oldest log of those that begin too late.
    gone: Option<Versionstamp>,
    /// A node has not come so far.
    is_ahead: bool,
    /// Why another node has not answered.
    reason: Option<String>,
}

impl<N: Nodes, C: Clock> Router<N, C> {
    pub(super) async fn changes_behind(&self, wanted: ChangesWanted) -> Result<Changed, NoChanges> {
        let until = self.clock.now() + self.deadline;
        let mut rounds = 0;
        loop {
            let known = self.directory.watch();
            let shard = self.shard(wanted.database)?;
            let round = match self.changes_from_any(&wanted, shard).await? {
                Ok(changed) => {
                    self.record_served(shard.0, changed.reached.position());
                    return Ok(changed);
                }
                Err(round) => round,
            };
            rounds += 1;
            let all_said_so = round.reason.is_none() && !round.is_ahead;
            let (now, next) = (self.clock.now(), self.clock.now() + pause(rounds - 1));
            let is_late = next >= until;
            if let Some(floor) = round.gone
                && (all_said_so || rounds >= ROUNDS_BEFORE_GONE || is_late)
            {
                return Err(NoChanges::Gone { floor });
            }
            if is_late || now >= until {
                let reason = round.reason.unwrap_or_else(|| "its nodes lag behind".to_owned());
                let shard = shard.0;
                return Err(unavailable(format!(
                    "shard {shard} has no changes to give now: {reason}"
                ))
                .into());
            }
            tokio::select! {
                () = self.clock.sleep_until(next) => {}
                () = self.moved(wanted.database, shard, known) => {}
            }
        }
    }

    /// The answer of the first node that has one.
    async fn changes_from_any(
        &self,
        wanted: &ChangesWanted,
        shard: (ShardId, Epoch),
    ) -> Result<Result<Changed, Round>, NoChanges> {
        if wanted.after.is_some_and(|after| self.has_lost(shard.0, after)) {
            return Err(NoChanges::NotOfHistory);
        }
        let mut round = Round { gone: None, is_ahead: false, reason: None };
        for node in self.readers(shard.0, Consistency::Eventual) {
            match self.changes_from(node, wanted, shard).await {
                // Of a node that has not heard of the present epoch yet.
                Ok(Ok(changed)) if self.has_lost(shard.0, changed.reached) => {
                    round.reason = Some("a node is behind in the shard's history".to_owned());
                }
                Ok(Ok(changed)) => return Ok(Ok(changed)),
                Ok(Err(NotGiven::Gone(floor))) => {
                    round.gone = Some(round.gone.map_or(floor, |other| other.min(floor)));
                }
                Ok(Err(NotGiven::NotOfHistory)) => return Err(NoChanges::NotOfHistory),
                Ok(Err(NotGiven::Ahead)) => {
                    if !std::mem::replace(&mut round.is_ahead, true) {
                        self.is_of_the_present(wanted).await?;
                    }
                }
                Ok(Err(NotGiven::Refused(reason))) => round.reason = Some(reason),
                Err(failed) => round.reason = Some(reason_of(failed)),
            }
        }
        if round.gone.is_none() && !round.is_ahead && round.reason.is_none() {
            round.reason = Some("no node is known".to_owned());
        }
        Ok(Err(round))
    }

    /// Whether the history that this gateway knows has left what lies there.
    fn has_lost(&self, shard: ShardId, stamp: Versionstamp) -> bool {
        let history = self.directory.shard(shard).map(|shard| EpochHistory::new(shard.bases));
        history.is_some_and(|history| history.leaves(stamp.position()).is_some())
    }

    async fn changes_from(
        &self,
        node: NodeId,
        wanted: &ChangesWanted,
        shard: (ShardId, Epoch),
    ) -> Result<Result<Changed, NotGiven>, Failed> {
        let min_sequence = self.min_sequence(shard);
        // It may wait for the position behind which it is asked, and then for a change.
        let waits = wanted.wait + READ_INDEX_TIMEOUT;
        let within = ATTEMPT_TIMEOUT + 2 * self.health.round_trip(node) + waits;
        let until = self.clock.now() + within;
        let answered = tokio::select! {
            answered = self.nodes.changes(node, shard.0, wanted, min_sequence) => answered,
            () = self.clock.sleep_until(until) => {
                Err(Failed::Unknown(format!("no answer within {} ms", within.as_millis())))
            }
        };
        self.record(shard.0, node, answered.as_ref().map(drop));
        answered
    }

    /// Fails where the database cannot have come to `after` by now, as a strong read says; where
    /// that cannot be told, it may.
    async fn is_of_the_present(&self, wanted: &ChangesWanted) -> Result<(), NoChanges> {
        let Some(after) = wanted.after else { return Ok(()) };
        let (database, consistency) = (wanted.database, Consistency::Strong);
        let nothing = Read { database, consistency, ranges: Vec::new() };
        let Ok((_, newest)) = self.read_at(nothing).await else { return Ok(()) };
        if after.position() > newest {
            return Err(NoChanges::Ahead { newest: Versionstamp::behind(newest) });
        }
        Ok(())
    }
}

fn reason_of(failed: Failed) -> String {
    match failed {
        Failed::NotLeader(_) => "a node does not serve it".to_owned(),
        Failed::NotDone(reason) | Failed::Unreachable(reason) | Failed::Unknown(reason) => reason,
    }
}
