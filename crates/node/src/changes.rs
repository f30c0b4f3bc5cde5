//! Changes of a database behind a versionstamp, from the log that this node has of its shard.
//!
//! | module | what it holds |
//! |---|---|
//! | `log_reads` | reads of a shard's log, one at a time, the last of which is kept for the next reader |
//! | `gathering` | what batches come to for one database and prefix |
//! | `wire` | questions and answers between nodes |
//!
//! A reader of changes has nothing here but the question that it asks: where it stands is in the
//! question. The changes that are shown are committed and applied, as for eventual reads, and of
//! the history that this node knows; every batch is compared with it, and with the one before. An
//! answer comes in bounded time, with what was come to by then.

mod gathering;
mod log_reads;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

use std::sync::Arc;
use std::time::Duration;

use meridian_gateway::{Changed, ChangesWanted};
use meridian_types::{EpochHistory, ShardId, Versionstamp};
use tokio::time::{Instant, sleep_until, timeout_at};

use self::gathering::Gathering;
use self::log_reads::LogReads;
use crate::cluster_view::view::Directory;
use crate::read::refusal::{NotServed, ReadRefusal};
use crate::shard::local::LocalShard;
use crate::time_budget::CHANGES_LOOK;

/// The bytes of log that one question looks through for changes, about.
const LOOKED_THROUGH_BYTES: usize = 4 << 20;
/// Between two looks of a question at a log that goes on: batches of a busy shard are looked at some
/// at a time.
const PACE: Duration = Duration::from_millis(20);

/// Why this node has no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NotGiven {
    /// Its log begins behind this.
    Gone(Versionstamp),
    NotOfHistory,
    /// The versionstamp is of a later state than the one here.
    Ahead,
    /// For this reason.
    Refused(String),
}

impl From<ReadRefusal> for NotGiven {
    fn from(refusal: ReadRefusal) -> Self {
        Self::Refused(refusal.to_string())
    }
}

/// The logs of this node's shards, as readers of changes see them.
pub(crate) struct ChangeLogs {
    directory: Arc<Directory>,
    reads: LogReads,
}

impl ChangeLogs {
    pub(crate) fn new(directory: Arc<Directory>) -> Self {
        Self { directory, reads: LogReads::default() }
    }

    /// The changes of a database that were committed behind a versionstamp and are applied here.
    /// The state here is no older than `min_sequence`.
    pub(crate) async fn next(
        &self,
        local: &LocalShard,
        wanted: &ChangesWanted,
        min_sequence: u64,
    ) -> Result<Changed, NotGiven> {
        let until = Instant::now() + wanted.wait;
        let shard = local.state().shard();
        let Some(after) = wanted.after else {
            reaches(local, min_sequence).await?;
            let position = local.state().position();
            if !self.history(shard)?.holds(position) {
                return Err(ReadRefusal::OtherEpoch.into());
            }
            let reached = Versionstamp::behind(position);
            return Ok(Changed { transactions: Vec::new(), reached, next_bytes: 0 });
        };
        let history = self.history(shard)?;
        if !history.holds(after.position()) {
            let is_later = after.position().epoch > history.epoch();
            return Err(if is_later { NotGiven::Ahead } else { NotGiven::NotOfHistory });
        }
        reaches(local, after.position().sequence).await?;
        let mut gathering = Gathering::new(wanted, after);
        let mut applied = local.applied();
        let looks_until = until.max(Instant::now() + CHANGES_LOOK);
        while !gathering.is_enough(LOOKED_THROUGH_BYTES) {
            applied.borrow_and_update();
            let (history, behind) = (self.history(shard)?, gathering.behind());
            let next_look = Instant::now() + PACE;
            let batches = self.reads.behind(local, &history, behind);
            // It may be the turn of others for long: what was come to is told.
            let Ok(batches) = timeout_at(looks_until, batches).await else { break };
            let Some(batches) = batches? else { return Err(gone(local, &history, behind).await) };
            if !batches.is_empty() {
                gathering.add(&batches);
                continue;
            }
            let has_more = tokio::select! {
                changed = timeout_at(until, applied.changed()) => {
                    changed.is_ok_and(|changed| changed.is_ok())
                }
                // Others go on with the shard, and this question would wait in vain.
                () = local.ended() => false,
            };
            if !has_more {
                break;
            }
            sleep_until(next_look).await;
        }
        Ok(gathering.finish())
    }

    fn history(&self, shard: ShardId) -> Result<EpochHistory, NotGiven> {
        let known = self.directory.shard(shard).ok_or(ReadRefusal::OtherEpoch)?;
        Ok(EpochHistory::new(known.bases))
    }
}

async fn reaches(local: &LocalShard, sequence: u64) -> Result<(), NotGiven> {
    local.reaches(sequence).await.map_err(|not_served| match not_served {
        NotServed::Refused(ReadRefusal::BehindGateway) => NotGiven::Ahead,
        NotServed::Refused(refusal) => refusal.into(),
        NotServed::NotLeader(_) => ReadRefusal::Stopping.into(),
    })
}

/// The answer where the log does not go back so far.
async fn gone(local: &LocalShard, history: &EpochHistory, behind: u64) -> NotGiven {
    match log_reads::purged(local).await {
        // It was emptied for another state right now.
        Ok(purged) if purged <= behind => ReadRefusal::NotCaughtUp.into(),
        Ok(purged) => NotGiven::Gone(Versionstamp::behind(history.at(purged))),
        Err(refused) => refused,
    }
}
