use std::time::Duration;

use openraft::ServerState;
use openraft::async_runtime::WatchReceiver;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::MeridianRaft;

/// Makes a leader send heartbeats. openraft would, but it gives a follower only the time between two of them
/// to answer, and between regions the answer takes longer than heartbeats should be apart.
pub(super) struct Heartbeat(JoinHandle<()>);

impl Heartbeat {
    pub(super) fn start(raft: MeridianRaft, interval: Duration) -> Self {
        Self(tokio::spawn(async move {
            let mut ticks = tokio::time::interval(interval);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                let state = raft.metrics().borrow_watched().state;
                let stopped = match state {
                    ServerState::Leader => raft.trigger().heartbeat().await.is_err(),
                    state => state == ServerState::Shutdown,
                };
                if stopped {
                    return;
                }
            }
        }))
    }
}

impl Drop for Heartbeat {
    /// Else the task would keep a group alive that nobody else has.
    fn drop(&mut self) {
        self.0.abort();
    }
}
