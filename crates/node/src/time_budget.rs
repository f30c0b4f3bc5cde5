//! Durations that depend on each other, each with its meaning, and the relations between them,
//! which the compiler checks: also those with other crates' durations.
//!
//! A duration that stands in no relation is beside the code that waits for it.

use std::time::Duration;

use meridian_consensus::RaftTiming;
use meridian_failover::{
    ASK_TIMEOUT, ControllerConfig, LEADER_SILENT, RENEW, RENEW_TIMEOUT, SEARCH,
};
use meridian_placement::{DRAIN_TIMEOUT, ORDER_TIMEOUT};
use meridian_queue::{GRACE, HOLD};
use meridian_shipping::RelayConfig;
use meridian_types::limits::REQUEST_ID_RETENTION_MS;

// Leases on epochs.

/// A leader whose lease ends sooner hands over. Looked for each [`ANNOUNCE`].
pub(crate) const LEASE_LOW: Duration = Duration::from_millis(1200);
/// The leadership is not handed to a voter whose lease ends sooner. Beyond [`LEASE_LOW`] by more
/// than leases of the same time are apart, so that nothing is handed over when the directory is
/// silent to all.
pub(crate) const LEASE_GOOD: Duration = Duration::from_millis(1900);

const LEASE_TTL_MS: u128 = ControllerConfig::DEFAULT.lease_ttl.as_millis();

const _: () = {
    // A renewal that gets no answer leaves time for another; a leader that falls silent is found to
    // have done so, and another is asked, within one lease.
    assert!(ms(RENEW) + ms(RENEW_TIMEOUT) < LEASE_TTL_MS);
    assert!(ms(LEADER_SILENT) + ms(SEARCH) + ms(ASK_TIMEOUT) < LEASE_TTL_MS);
    assert!(ms(SEARCH) < ms(RENEW));
    // Leases that are renewed in time are good; good and low ones are further apart than renewals.
    assert!(ms(LEASE_GOOD) + ms(RENEW) <= LEASE_TTL_MS);
    assert!(ms(LEASE_LOW) + ms(RENEW) < ms(LEASE_GOOD));
    // One renewal may be lost and the node still counts as reachable.
    assert!(2 * ms(RENEW) < ms(ControllerConfig::DEFAULT.reachable_within));
    // Leases of a lost region have run out before it is failed over.
    assert!(
        LEASE_TTL_MS + ms(ControllerConfig::DEFAULT.drift_margin)
            < ms(ControllerConfig::DEFAULT.failover_after)
    );
};

// The cluster, as nodes and gateways follow it.

/// Without news, an empty message so often says that the stream is alive, and no news missed.
pub(crate) const FOLLOW_HEARTBEAT: Duration = Duration::from_millis(500);
/// A source that says nothing for so long is given up.
pub(crate) const FOLLOW_TIMEOUT: Duration = FOLLOW_HEARTBEAT.saturating_mul(4);

// The end of an epoch: the directory's leader asks nodes to seal, and to pull what they lack.

/// An order that has not had its turn by then is dropped: it was decided upon old knowledge, and
/// the controller asks again.
pub(crate) const TURN_TIMEOUT: Duration = Duration::from_secs(1);
/// The controller asks again.
pub(crate) const DIRECTORY_CALL_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a drain may take on this side.
pub(crate) const ORDER_ANSWER_TIMEOUT: Duration = Duration::from_millis(2500);
/// How long a node whose part in a group has ended carries the group's log over, before it takes its
/// next part. Until then it serves nothing of the shard, and its region's copy does not go on.
pub(crate) const CARRY_OVER: Duration = Duration::from_secs(1);

const _: () = {
    // The controller counts a pull as under way for as long as it may be.
    assert!(
        ms(TURN_TIMEOUT) + ms(DIRECTORY_CALL_TIMEOUT) + ms(ORDER_TIMEOUT)
            <= ms(ControllerConfig::DEFAULT.drain_lasts)
    );
    // An order that ran out of time is answered, and the answer is waited for.
    assert!(ms(ORDER_TIMEOUT) < ms(ORDER_ANSWER_TIMEOUT));
    assert!(ms(ORDER_ANSWER_TIMEOUT) < ms(DIRECTORY_CALL_TIMEOUT));
    // A leader that drains answers while its seal is waited for.
    assert!(ms(DRAIN_TIMEOUT) < ms(ControllerConfig::DEFAULT.seal_timeout));
    assert!(ms(ControllerConfig::DEFAULT.seal_timeout) < ms(DIRECTORY_CALL_TIMEOUT));
    // A founder that voted in the epoch before has time left to reach the base.
    assert!(ms(CARRY_OVER) + 2 * ms(ORDER_TIMEOUT) < ms(ControllerConfig::DEFAULT.forming_after));
};

// Announcements of nodes.

/// How often it is looked whether something has changed. Replication lag is known no better than
/// this: the bound on what may be lost is counted with it.
pub(crate) const ANNOUNCE: Duration = Duration::from_millis(150);
/// To nodes that vote with this one: a leader hands over to no node that was silent for
/// [`HEIR_HEARD`].
pub(crate) const TO_VOTERS: Duration = Duration::from_millis(300);
/// To the other nodes. They take a node for lost that was silent for longer than
/// [`RelayConfig::relay_timeout`]; the readings of clocks, the connection of followers and the
/// comparison of states have seconds.
pub(crate) const TO_OTHERS: Duration = Duration::from_millis(450);
/// The leadership is handed to no node that was silent for longer: a node that has just lost its
/// power cannot say so.
pub(crate) const HEIR_HEARD: Duration = Duration::from_millis(650);

const _: () = {
    // Where a look comes late, no node is silent for too long yet.
    assert!(ms(TO_VOTERS) + 2 * ms(ANNOUNCE) < ms(HEIR_HEARD));
    assert!(ms(TO_OTHERS) + ms(ANNOUNCE) < ms(RelayConfig::DEFAULT.relay_timeout));
};

// Elections.

/// The directory's voters are regions apart.
pub(crate) const DIRECTORY_TIMING: RaftTiming =
    RaftTiming { heartbeat_ms: 150, election_timeout_min_ms: 600, election_timeout_max_ms: 900 };

const _: () = {
    assert!(DIRECTORY_TIMING.heartbeat_ms * 3 < DIRECTORY_TIMING.election_timeout_min_ms);
    assert!(DIRECTORY_TIMING.election_timeout_min_ms < DIRECTORY_TIMING.election_timeout_max_ms);
    // A directory that elects a leader costs no epoch lease.
    assert!((DIRECTORY_TIMING.election_timeout_max_ms as u128) < LEASE_TTL_MS);
    // A voter waits for a leader longer than an election takes.
    assert!((RaftTiming::DEFAULT.election_timeout_max_ms as u128) < ms(LEADER_TIMEOUT));
};

// Requests.

/// How long one try may take to its first sign of life, beyond two round trips. A node that lost
/// its power says nothing; a slow node answers the next try, which has the same id.
pub(crate) const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(800);
/// How long a write waits at a node, from when it came until it is evaluated; then it is refused.
/// Less than a gateway waits for its answer: what was not done is known not to have been.
pub(crate) const PATIENCE: Duration = Duration::from_millis(700);
/// How long a write waits for a leader at a voter that knows none: longer than an election takes.
pub(crate) const LEADER_TIMEOUT: Duration = Duration::from_millis(600);
/// How long a voter may take to fetch a read index, and then to apply up to it.
pub(crate) const READ_INDEX_TIMEOUT: Duration = Duration::from_secs(1);
/// Beyond the usual time to answer, another is asked as well.
pub(crate) const HEDGE_AFTER: Duration = Duration::from_millis(100);
/// How often the node says that it is at work, while it has no answer.
pub(crate) const WORKING_EVERY: Duration = Duration::from_millis(250);
/// By when a node that is at work on a read has said so; the round trip comes on top.
pub(crate) const SAYS_THAT_IT_IS_AT_WORK: Duration =
    WORKING_EVERY.saturating_add(Duration::from_millis(50));
/// A node of which anything was heard so lately is not silent, whatever else of it is awaited: it
/// may be slow with one large answer.
pub(crate) const RECEIVED_LATELY: Duration = Duration::from_millis(500);

const _: () = {
    // A voter refuses what it cannot carry out before the gateway stops waiting: else what did not
    // commit would pass for unknown.
    assert!(ms(PATIENCE) + 100 <= ms(ATTEMPT_TIMEOUT));
    assert!(ms(LEADER_TIMEOUT) < ms(PATIENCE));
    assert!(ms(HEDGE_AFTER) < ms(ATTEMPT_TIMEOUT));
    // A node that is at work is not taken for silent.
    assert!(ms(WORKING_EVERY) < ms(SAYS_THAT_IT_IS_AT_WORK));
    assert!(ms(SAYS_THAT_IT_IS_AT_WORK) < ms(RECEIVED_LATELY));
    assert!(ms(RECEIVED_LATELY) < ms(ATTEMPT_TIMEOUT));
};

// Change feeds.

/// How long a node looks through its log for one question, where the caller waits no longer for a
/// change.
pub(crate) const CHANGES_LOOK: Duration = Duration::from_millis(500);
/// How long a node waits for room for its answer to another process.
pub(crate) const CHANGES_ROOM: Duration = Duration::from_millis(200);

const _: () = {
    // The answer has time to come, whatever the node had to wait for: a gateway would take it for
    // silent.
    assert!(ms(CHANGES_ROOM) + ms(CHANGES_LOOK) + 100 <= ms(ATTEMPT_TIMEOUT));
};

// Queues.

/// How often a leader says to a listener's gateway that it is alive, while there are no messages.
pub(crate) const ALIVE_EVERY: Duration = Duration::from_millis(500);
/// A leader that says nothing for so long is looked for elsewhere.
pub(crate) const LISTENING_SILENT: Duration = Duration::from_millis(1500);
/// Between two times that a gateway asks for a leader of a listener, at most.
pub(crate) const LISTEN_PAUSE: Duration = Duration::from_millis(200);
/// The same, where it has asked in vain for longer.
pub(crate) const LONG_LISTEN_PAUSE: Duration = Duration::from_secs(2);

const _: () = {
    // A gateway that lost its leader without a word asks all three voters, the next leader at last,
    // and says what its listeners hold, while that waits for it, and while the one before would wait
    // for it. Half a second is for round trips.
    assert!(ms(LISTENING_SILENT) + ms(LISTEN_PAUSE) + 3 * ms(ATTEMPT_TIMEOUT) + 500 < ms(HOLD));
    // As does a gateway that has looked for a leader for long.
    assert!(ms(LONG_LISTEN_PAUSE) + 3 * ms(ATTEMPT_TIMEOUT) + 500 < ms(HOLD));
    // No leader that is alive is taken for silent, and one without a quorum says that it is none.
    assert!(2 * ms(ALIVE_EVERY) < ms(LISTENING_SILENT));
    // A client that comes back in time at a leader that stays is in time at the next one, too.
    assert!(ms(HOLD) >= ms(GRACE));
};

// Request ids.

/// A write whose outcome is unknown is asked for until request ids may be forgotten, with some to
/// spare.
pub(crate) const UNKNOWN_DEADLINE: Duration =
    Duration::from_millis(REQUEST_ID_RETENTION_MS * 4 / 5);
/// Twice as long as request ids must be remembered.
pub(crate) const FORGET_AFTER: Duration = Duration::from_millis(REQUEST_ID_RETENTION_MS * 2);
/// The time for which a node's announced clock is relied on. Clocks of machines drift, and a
/// virtual machine that its host stops does not notice: the less of that, the shorter this is. Ids
/// are remembered for ten minutes at least, and asked for four; the rest bounds it.
pub(crate) const CLOCK_KNOWN_FOR: Duration = Duration::from_secs(5 * 60);

const _: () = {
    assert!(ms(UNKNOWN_DEADLINE) < REQUEST_ID_RETENTION_MS as u128);
    // A client that sends a write again as late as it may is itself asked for.
    assert!(REQUEST_ID_RETENTION_MS as u128 + ms(UNKNOWN_DEADLINE) < ms(FORGET_AFTER));
    // The drift of clocks while one is relied on is far less than the rest.
    assert!(ms(UNKNOWN_DEADLINE) + ms(CLOCK_KNOWN_FOR) < ms(FORGET_AFTER));
};

// Whole states.

/// A snapshot without a reader for so long is dropped: it holds on to the engine's old
/// files.
pub(crate) const SNAPSHOT_IDLE: Duration = Duration::from_secs(120);
/// A snapshot that was not read for so long gives way to another.
pub(crate) const GIVES_WAY_AFTER: Duration = Duration::from_secs(30);
pub(crate) const SNAPSHOT_CHUNK_TIMEOUT: Duration = Duration::from_secs(30);
/// A receiver that takes no chunk for so long is gone, or as good as gone: it may ask for the rest
/// again.
pub(crate) const READER_STALLED: Duration = Duration::from_secs(60);
/// The log is kept for a follower that copies a state as long as it gets on in so short a time.
pub(crate) const COPY_STALLED: Duration = Duration::from_secs(120);

const _: () = {
    // A reader that is waited for finds the snapshot, and the log behind it is kept as long.
    assert!(ms(READER_STALLED) < ms(SNAPSHOT_IDLE));
    assert!(ms(SNAPSHOT_IDLE) <= ms(COPY_STALLED));
    assert!(ms(SNAPSHOT_CHUNK_TIMEOUT) < ms(READER_STALLED));
    assert!(ms(GIVES_WAY_AFTER) < ms(SNAPSHOT_IDLE));
};

const fn ms(duration: Duration) -> u128 {
    duration.as_millis()
}
