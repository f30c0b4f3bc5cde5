use openraft::{Config, ConfigError, SnapshotPolicy};

/// Raft's clocks, in milliseconds. The defaults suit DCs 1 to 2 ms apart: a lost leader is replaced within
/// about a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftTiming {
    pub heartbeat_ms: u64,
    pub election_timeout_min_ms: u64,
    /// Also the length of the leader's lease.
    pub election_timeout_max_ms: u64,
}

impl Default for RaftTiming {
    fn default() -> Self {
        Self { heartbeat_ms: 50, election_timeout_min_ms: 200, election_timeout_max_ms: 400 }
    }
}

pub(crate) fn openraft_config(timing: RaftTiming, name: String) -> Result<Config, ConfigError> {
    let config = Config {
        cluster_name: name,
        heartbeat_interval: timing.heartbeat_ms,
        election_timeout_min: timing.election_timeout_min_ms,
        election_timeout_max: timing.election_timeout_max_ms,
        // Not before it is safe: see `RaftGroup::take_part`.
        enable_elect: false,
        // A deposed or restarted node must not disturb a leader that is well.
        enable_pre_vote: Some(true),
        // State is flushed late, so a leader that restarts may be behind its own commits.
        enable_leader_restore: Some(false),
        // Snapshots and purging follow what replica regions still need: see `RaftGroup::purge_through`.
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: u64::MAX,
        replication_lag_threshold: u64::MAX,
        // Counts entries, not bytes: the log reader cuts by bytes.
        max_payload_entries: 64,
        install_snapshot_timeout: 10 * 60 * 1000,
        backoff: "20ms 50ms 100ms ...300ms".to_owned(),
        ..Config::default()
    };
    config.validate()
}
