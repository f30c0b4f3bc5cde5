//! Changes behind a versionstamp: from the node near by that has them, else from any.

use std::future::pending;
use std::time::Duration;

use meridian_gateway::{Changed, ChangesWanted, NoChanges, Read};
use meridian_types::{Consistency, Epoch, EpochHistory, NodeId, ShardId, Versionstamp};
use tokio::sync::Notify;

use super::budget::pause;
use super::{Router, unavailable};
use crate::changes::NotGiven;
use crate::host::clock::Clock;
use crate::network::call_failure::Failed;
use crate::routing::nodes::Nodes;
use crate::time_budget::{ATTEMPT_TIMEOUT, READ_INDEX_TIMEOUT};

/// So many times nodes that do not answer, or lag behind, are asked before it is said that the log
/// is gone.
const ROUNDS_BEFORE_GONE: u32 = 3;

/// Why no node has an answer now.
#[derive(Default)]
struct Round {
    /// The oldest log of those that begin too late.
    gone: Option<Versionstamp>,
    /// A node has not come so far.
    is_ahead: bool,
    /// Why a node that answers has nothing to give now: it may have the changes.
    refused: Option<String>,
    /// Why another has not answered.
    silent: Option<String>,
}

impl Round {
    fn is_empty(&self) -> bool {
        let Self { gone, is_ahead, refused, silent } = self;
        gone.is_none() && !is_ahead && refused.is_none() && silent.is_none()
    }

    /// The place where the log begins, if the changes can be had of no node. In so many `rounds` no
    /// node has refused.
    fn floor(&self, rounds: u32, is_late: bool) -> Option<Versionstamp> {
        let all_said_so = !self.is_ahead && self.silent.is_none();
        let is_certain = all_said_so || rounds >= ROUNDS_BEFORE_GONE || is_late;
        self.gone.filter(|_| self.refused.is_none() && is_certain)
    }

    fn reason(self) -> String {
        let reason = self.refused.or(self.silent);
        reason.unwrap_or_else(|| "its nodes lag behind".to_owned())
    }
}

impl<N: Nodes, C: Clock> Router<N, C> {
    /// While nodes are asked, a strong read tells whether `after` may be of a later state at all.
    pub(super) async fn changes_behind(&self, wanted: ChangesWanted) -> Result<Changed, NoChanges> {
        let lags = Notify::new();
        tokio::select! {
            biased;
            found = self.look_for_changes(&wanted, &lags) => found,
            newest = self.is_ahead(&wanted, &lags) => Err(NoChanges::Ahead { newest }),
        }
    }

    /// `lags` hears of nodes that have not come to `after`.
    async fn look_for_changes(
        &self,
        wanted: &ChangesWanted,
        lags: &Notify,
    ) -> Result<Changed, NoChanges> {
        let until = self.clock.now() + self.deadline;
        let (mut rounds, mut unanswered) = (0, 0);
        loop {
            let known = self.directory.watch();
            let shard = self.shard(wanted.database)?;
            let round = match self.changes_from_any(wanted, shard, until, lags).await? {
                Ok(changed) => {
                    self.record_served(shard.0, changed.reached.position());
                    return Ok(changed);
                }
                Err(round) => round,
            };
            unanswered = if round.refused.is_none() { unanswered + 1 } else { 0 };
            let next = self.clock.now() + pause(rounds);
            rounds += 1;
            let is_late = next >= until;
            if let Some(floor) = round.floor(unanswered, is_late) {
                return Err(NoChanges::Gone { floor });
            }
            if is_late {
                let (shard, reason) = (shard.0, round.reason());
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

    /// The answer of the first node that has one, of those that can be asked by then.
    async fn changes_from_any(
        &self,
        wanted: &ChangesWanted,
        shard: (ShardId, Epoch),
        until: Duration,
        lags: &Notify,
    ) -> Result<Result<Changed, Round>, NoChanges> {
        if wanted.after.is_some_and(|after| self.has_lost(shard.0, after)) {
            return Err(NoChanges::NotOfHistory);
        }
        let mut round = Round::default();
        for node in self.nearest(shard.0, &self.changes_refusals) {
            if self.clock.now() >= until {
                round.silent = Some("not all nodes could be asked in time".to_owned());
                break;
            }
            match self.changes_from(node, wanted, shard).await {
                // Of a node that has not heard of the present epoch yet.
                Ok(Ok(changed)) if self.has_lost(shard.0, changed.reached) => {
                    round.refused = Some("a node is behind in the shard's history".to_owned());
                }
                Ok(Ok(changed)) => return Ok(Ok(changed)),
                Ok(Err(NotGiven::Gone(floor))) => {
                    round.gone = Some(round.gone.map_or(floor, |other| other.min(floor)));
                }
                Ok(Err(NotGiven::NotOfHistory)) => return Err(NoChanges::NotOfHistory),
                Ok(Err(NotGiven::Ahead)) => {
                    round.is_ahead = true;
                    lags.notify_one();
                }
                Ok(Err(NotGiven::Refused(reason))) => round.refused = Some(reason),
                Err(Failed::NotDone(reason) | Failed::Busy(reason)) => round.refused = Some(reason),
                Err(Failed::NotLeader(_)) => {
                    round.refused = Some("a node does not serve it".to_owned());
                }
                Err(Failed::Unreachable(reason) | Failed::Unknown(reason)) => {
                    round.silent = Some(reason);
                }
            }
        }
        if round.is_empty() {
            round.silent = Some("no node is known".to_owned());
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
        // Writes ask the leader all the same, whatever it has said of its log.
        self.record_health(node, answered.as_ref().map(drop));
        self.record_refusal(node, shard.0, &answered);
        answered
    }

    /// Others are asked first for a while where a node lags behind, or refused.
    fn record_refusal(
        &self,
        node: NodeId,
        shard: ShardId,
        answered: &Result<Result<Changed, NotGiven>, Failed>,
    ) {
        let lags = Failed::NotDone(String::new());
        let result = match answered {
            // A log that begins too late for one feed may have all that another wants.
            Ok(Ok(_) | Err(NotGiven::Gone(_) | NotGiven::NotOfHistory)) => Ok(()),
            Ok(Err(NotGiven::Ahead | NotGiven::Refused(_))) => Err(&lags),
            Err(failed) => Err(failed),
        };
        let (now, eventual) = (self.clock.now(), Consistency::Eventual);
        self.changes_refusals.record(now, node, shard, eventual, result);
    }

    /// Where the database stands, as a strong read says once a node lags, if a feed is to begin
    /// behind that; else never. A feed that goes on was told of what lies before, and waits: the
    /// question that opens one does not.
    async fn is_ahead(&self, wanted: &ChangesWanted, lags: &Notify) -> Versionstamp {
        let Some(after) = wanted.after.filter(|_| wanted.wait.is_zero()) else {
            return pending().await;
        };
        loop {
            lags.notified().await;
            let (database, consistency) = (wanted.database, Consistency::Strong);
            let nothing = Read { database, consistency, ranges: Vec::new() };
            match self.read_at(nothing).await {
                Ok((_, newest)) if after.position() > newest => {
                    return Versionstamp::behind(newest);
                }
                Ok(_) => return pending().await,
                // That cannot be told: it is asked again when a node says so again.
                Err(_) => {}
            }
        }
    }
}
