//! Everything that is stored, and where: the column families, the keys in them, and the values of
//! state. No other file has a literal of a key; each layout has a golden test here. Numbers in keys
//! are big-endian, so that they sort.
//!
//! | family | key | value | owner |
//! |---|---|---|---|
//! | `log` | group ‖ `e` ‖ index | Raft entry, as a record | `consensus::log_store` |
//! | `log` | group ‖ `v` | `meridian.log.v1.Vote`, as a record | `consensus::log_store` |
//! | `log` | group ‖ `c` | committed log id, as a record | `consensus::log_store` |
//! | `log` | group ‖ `p` | purged log id, as a record | `consensus::log_store` |
//! | `log` | group ‖ `l` | log id that the log went up to when this node left the group, as a record | `consensus::log_store` |
//! | `log` | shard ‖ epoch 0 ‖ `s` ‖ sequence | shipped batch, as a record | `storage::ShippedLog` |
//! | `log` | shard ‖ epoch 0 ‖ `p` | purged sequence (8 bytes), as a record | `storage::ShippedLog` |
//! | `meta` | `node` | the node whose data folder this is (8 bytes) | `node`, at its start |
//! | `meta` | `node-incarnation` | UUID, made with the data folder | `node`, directory |
//! | `meta` | `cluster` | the cluster as this node last knew it, JSON | `node`, directory |
//! | `meta` | `seal` ‖ shard | epoch (2) ‖ planned (1) | `node`, seals |
//! | `meta` | `standing` ‖ group ‖ 0 (8) | `member` or `voteless` | `consensus::membership` |
//! | `meta` | `incarnation` ‖ group ‖ node (8) | UUID of a member's part in the group | `consensus::membership` |
//! | `meta` | `follows-from` ‖ group ‖ 0 (8) | term (8) | `consensus::membership` |
//! | `meta` | `state` ‖ shard | name of the state family in use | `storage::ShardState` |
//! | `meta` | `reclaimed` ‖ shard ‖ database | name of the state family that was compacted after the database was dropped | `storage::ShardState` |
//! | `state-<shard>-<generation>` | `d` ‖ database ‖ user key | versionstamp ‖ encoding ‖ expiry ‖ data | `storage::ShardState` |
//! | | `x` ‖ expiry ‖ database ‖ user key | versionstamp (a stale one is ignored and swept) | |
//! | | `q` ‖ database ‖ due time ‖ versionstamp ‖ index (2) | `meridian.log.v1.QueuedMessage` | |
//! | | `n` ‖ database ‖ length (1) ‖ queue's name ‖ due time ‖ versionstamp ‖ index (2) | `meridian.log.v1.QueuedMessage`, of a named queue | |
//! | | `u` ‖ database ‖ number (8) | `meridian.log.v1.DeadLetter`, undelivered and without keys | |
//! | | `m` ‖ `q` ‖ database | `meridian.log.v1.QueueTotals` | |
//! | | `m` ‖ `n` ‖ database ‖ queue's name | `meridian.log.v1.QueueTotals`, `undelivered` alone: a named queue that has such messages | |
//! | | `m` ‖ `applied` | `meridian.log.v1.Applied` | |
//! | | `m` ‖ `r` ‖ request id | `meridian.log.v1.RequestRow` | |
//! | | `m` ‖ `d` ‖ database | versionstamp of the transaction that dropped the database | |
//!
//! A group is shard (4 bytes) ‖ epoch (2); no Raft group has epoch 0. A record is crc32c (4 bytes,
//! little-endian) ‖ payload.
//!
//! The directory's shard has one database, whose user keys are here as well:
//!
//! | user key | value | owner |
//! |---|---|---|
//! | `cluster` | the cluster, JSON | `node`, directory |
//! | `change` ‖ version (8) | a change, with its time and its author, JSON | `node`, directory |
//!
//! Beside the database lie `high-water` ([`crate::HighWater`]) and the folder `orphans` (`node`).

mod directory;
mod log;
mod meta;
mod queue;
mod state;
mod value;

pub use directory::{DIRECTORY_CHANGE_PREFIX, DIRECTORY_CLUSTER_KEY, DIRECTORY_TOKEN_USES_KEY};
pub use log::{GroupId, LOG_FAMILY, LogMark, RecordKind, mark_key, record_key};
pub use meta::{
    CLUSTER_KEY, META_FAMILY, NODE_INCARNATION_KEY, NODE_KEY, VOTING_STATUS_MEMBER,
    VOTING_STATUS_NON_VOTING, current_family_key, follows_from_key, incarnation_key, reclaimed_key,
    seal_key, voting_status_key,
};
pub use queue::{
    dead_letter_key, dead_letters_range, message_key, messages_bound, messages_range,
    named_messages_range, named_totals_key, named_totals_range, parse_dead_letter_key,
    parse_message_key, parse_named_totals_key, parse_queue_totals_key, queue_totals_key,
    queue_totals_range,
};
pub use state::{
    APPLIED_KEY, data_key, data_range, dropped_key, dropped_range, expiry_bound, expiry_database,
    expiry_key, expiry_range, is_forgettable_request, parse_dropped_key, parse_expiry_key,
    parse_state_family, request_key, state_family, user_key,
};
pub use value::{StoredValue, is_expired};
