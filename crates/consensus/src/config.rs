//! Timing of a group, and what of it openraft is told.

use std::time::Duration;

use openraft::{Config, ConfigError, SnapshotPolicy};

/// Raft's clocks, in milliseconds. The defaults suit DCs 1 to 2 ms apart: a lost leader is replaced
/// when its lease has run out, after half a second, or up to 0.9 s. A disk that stalls
/// for less, as shared ones do, costs no election. Members must be able to answer each other
/// within two thirds of the shortest election timeout, and to save a vote within the longest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTiming {
    pub heartbeat_ms: u64,
    pub election_timeout_min_ms: u64,
    /// Also the length of the leader's lease.
    pub election_timeout_max_ms: u64,
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl RaftTiming {
    pub const DEFAULT: Self =
        Self { heartbeat_ms: 50, election_timeout_min_ms: 300, election_timeout_max_ms: 450 };

    /// How long an answer may take where no other member can answer in its place.
    const ANSWER: Duration = Duration::from_secs(1);

    pub(crate) fn election_timeout_max(self) -> Duration {
        Duration::from_millis(self.election_timeout_max_ms)
    }

    /// How long a question for a vote may take to be answered: as long as openraft waits for it at
    /// most.
    pub(crate) fn vote_answer_ms(self) -> u64 {
        self.election_timeout_max_ms - 1
    }

    /// How long a heartbeat may take to be answered: less than an election timeout.
    pub(crate) fn heartbeat_answer_ms(self) -> u64 {
        self.heartbeat_ms.max(self.election_timeout_min_ms * 2 / 3)
    }

    /// For an answer that includes an fsync, or a round of answers by a quorum.
    pub(crate) fn answer_timeout(self) -> Duration {
        self.election_timeout_max().max(Self::ANSWER)
    }
}

pub(crate) fn openraft_config(timing: RaftTiming, name: String) -> Result<Config, ConfigError> {
    let config = Config {
        cluster_name: name,
        // Only how long one may take to be answered. Heartbeats themselves are sent by
        // `group::timers`, which also says when this member stands for election.
        heartbeat_interval: timing.heartbeat_answer_ms(),
        enable_heartbeat: false,
        enable_elect: false,
        // It drives these two, and nothing else.
        enable_tick: false,
        // How long a vote may take to be answered: a fsync, and a round trip.
        election_timeout_min: timing.vote_answer_ms(),
        // The leader's lease.
        election_timeout_max: timing.election_timeout_max_ms,
        // A member that was wiped, or lost an end of its log, comes back with a shorter one, and
        // must be sent everything again. Entries that its earlier acknowledgements committed are
        // not lost: it does not vote, or not before its log is as long as it was, so later leaders
        // are elected by others that hold them. New acknowledgements count, which is right only
        // since it gives none to a leader of an earlier term than the votes that it may have
        // forgotten: see `RaftGroup::may_follow`.
        allow_log_reversion: Some(true),
        // A deposed or restarted node must not disturb a leader that is well.
        enable_pre_vote: Some(true),
        // State is flushed late, so a leader that restarts may be behind its own commits.
        enable_leader_restore: Some(false),
        // Snapshots and purging follow what replica regions still need: see
        // `RaftGroup::purge_through`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: u64::MAX,
        // Counts entries, not bytes: the log reader cuts by bytes.
        max_payload_entries: 64,
        // Said in errors only: what bounds a copy is that a member reads from it, see
        // `StateTransfer::abandoned`.
        install_snapshot_timeout: 10 * 60 * 1000,
        backoff: "20ms 50ms 100ms ...300ms".to_owned(),
        ..Config::default()
    };
    config.validate()
}
