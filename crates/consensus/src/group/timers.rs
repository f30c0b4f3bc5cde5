use std::sync::Arc;
use std::time::{Duration, Instant};

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use super::MeridianRaft;
use crate::RaftTiming;
use crate::votes::Votes;

/// When this member last led, followed a leader, or gave another its vote.
#[derive(Debug, Clone, Default)]
pub(crate) struct Contact(Arc<Mutex<Option<Instant>>>);

impl Contact {
    /// To be called when Raft has taken the message: the lease that it granted ends no later then than counted
    /// from here.
    pub(crate) fn renew(&self) {
        *self.0.lock() = Some(Instant::now());
    }

    pub(super) fn is_since(&self, time: Instant) -> bool {
        self.0.lock().is_some_and(|last| last >= time)
    }

    /// `None`: never.
    fn last(&self) -> Option<Instant> {
        *self.0.lock()
    }
}

/// What goes by the clock beside openraft's own election timer.
///
/// A leader sends heartbeats. openraft would, but it gives a follower only the time between two of them to
/// answer, and between regions the answer takes longer than heartbeats should be apart.
///
/// The first of the voters beside the leader stands for election as soon as the leader's lease has run out, the
/// next one a round trip later, and so on: in a line there is no vote to be split, and no reason to wait for a
/// random time. Where nobody wins so, openraft's own timers bring somebody up.
pub(super) struct Timers(JoinHandle<()>);

impl Timers {
    pub(super) fn start(
        raft: MeridianRaft,
        node_id: u64,
        contact: Contact,
        votes: Arc<Votes>,
        timing: RaftTiming,
    ) -> Self {
        // The others' leases end a little later or sooner.
        let lease = timing.election_timeout_max() + Duration::from_millis(timing.heartbeat_ms / 2);
        let step = Duration::from_millis(timing.heartbeat_answer_ms());
        let heartbeat = Duration::from_millis(timing.heartbeat_ms);
        // Later than the answers of most: a new try gives up the one before.
        let again = 2 * heartbeat;
        Self(tokio::spawn(async move {
            let mut stood: Option<Instant> = None;
            loop {
                let (state, rank) = {
                    let metrics = raft.metrics();
                    let metrics = metrics.borrow_watched();
                    let line =
                        metrics.membership_config.voter_ids().filter(|voter| Some(*voter) != metrics.current_leader);
                    let rank = (0u32..).zip(line).find_map(|(rank, voter)| (voter == node_id).then_some(rank));
                    (metrics.state, rank)
                };
                let now = Instant::now();
                let stands_at = match (state, rank, contact.last()) {
                    (ServerState::Follower, Some(rank), Some(last)) => {
                        Some((last + lease + step * rank).max(stood.map_or(last, |stood| stood + again)))
                    }
                    _ => None,
                };
                let stopped = match state {
                    ServerState::Leader => {
                        contact.renew();
                        raft.trigger().heartbeat().await.is_err()
                    }
                    _ if stands_at.is_some_and(|at| at <= now) && votes.check(false).is_ok() => {
                        stood = Some(now);
                        raft.trigger().elect(true).await.is_err()
                    }
                    state => state == ServerState::Shutdown,
                };
                if stopped {
                    return;
                }
                let next = stands_at.filter(|at| *at > now).unwrap_or(now + heartbeat).min(now + heartbeat);
                tokio::time::sleep_until(next.into()).await;
            }
        }))
    }
}

impl Drop for Timers {
    /// Else the task would keep a group alive that nobody else has.
    fn drop(&mut self) {
        self.0.abort();
    }
}
