//! Forgets the ids of requests that no client sends again.

use std::collections::{HashMap, VecDeque};
use std::time::Instant;

use meridian_storage::RequestsSoFar;
use meridian_types::ShardId;
use parking_lot::Mutex;

use crate::background::parts::{DutyParts, GrowingLogs};
use crate::time_budget::FORGET_AFTER;

/// The request ids of each shard here.
pub(crate) struct RequestIds {
    logs: GrowingLogs,
    applied: Mutex<HashMap<ShardId, VecDeque<(Instant, RequestsSoFar)>>>,
}

impl RequestIds {
    pub(crate) fn new(parts: &DutyParts) -> Self {
        Self { logs: GrowingLogs::new(parts), applied: Mutex::default() }
    }

    /// Lets go of request ids by how long ago, on this node's monotonic clock, they were applied
    /// here: no jump of a wall clock forgets one too soon.
    pub(crate) fn forget(&self, now: Instant) {
        let mut applied = self.applied.lock();
        for (id, shard) in self.logs.all() {
            let samples = applied.entry(id).or_default();
            samples.push_back((now, shard.state().requests_so_far()));
            while samples
                .front()
                .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= FORGET_AFTER)
                && let Some((_, requests)) = samples.pop_front()
            {
                tracing::debug!(shard = %id, ?requests, "request ids may be forgotten");
                shard.state().forget_requests(&requests);
            }
        }
    }
}
