//! Raft over `meridian-storage`: the only crate that names openraft.
//!
//! | module | what it holds |
//! |---|---|
//! | `group` | a member of a group: its parts are files of that folder |
//! | `service` | what the other members ask of this one |
//! | `network`, `commit_carrier` | what this member says to the others |
//! | `log_store`, `log_cache` | the log, and the newest of it in memory |
//! | `state_machine` | committed entries, applied to the shard's state |
//! | `votes`, `membership`, `member_marks` | whose votes count: after a start, a wipe, a rollback |
//! | `lease_trust` | when a leader's read lease may be trusted |
//! | `orphans` | the logs of groups that are stopped |
//! | `claims` | what no member can truly say |
//! | `wire`, `type_config` | types of openraft, and their sent and stored forms |
//! | `config`, `clock`, `blocking` | timing, suspensions of the machine, work that blocks on a disk |
//!
//! Invariants:
//! - A group is named by shard and epoch on every call; a call for another group or node is
//!   refused.
//! - An append is acknowledged when its bytes are fsynced, off the core loop.
//! - A batch is proposed for one term only: in another it is not appended.
//! - A member that was wiped, or has just started, does not vote: it has forgotten what it granted.
//! - A member that holds less than the others remember, or than its own mark says, does not vote
//!   until it is sent the rest.
//! - A group begins at a base that its founders' states have; a member without it gets a snapshot.
//! - The Raft position in a state counts in the group that it names only; a state that left the
//!   shard's history is neither announced nor applied to.
//! - State is not durable when applied; [`RaftGroup::purge_through`] flushes it before the log is
//!   cut.
//!
//! Absent on purpose: evaluation, request ids, routing, and anything about replica regions.

mod blocking;
mod claims;
mod clock;
mod commit_carrier;
mod config;
mod group;
mod lease_trust;
mod log_cache;
mod log_store;
mod member_marks;
mod membership;
mod network;
mod orphans;
mod service;
mod state_machine;
#[cfg(test)]
mod storage_suite;
pub mod testing;
mod type_config;
mod votes;
mod wire;

pub use clock::boot_time;
pub use config::RaftTiming;
pub use group::{
    ChangeVotersFailure, Formed, GroupStatus, Leadership, MAX_BATCH_BYTES, NotLeading, Proposal,
    ProposalFailure, RaftGroup, RaftGroupOptions, ReadLogFailure, Role, TransferFailure,
};
pub use log_cache::LogCache;
pub use network::{Peers, StateTransfer, Transfer};
pub use orphans::{
    VisitPieces, applied_batches_back, forget_group, has_log, is_in_use, leave_group,
    log_batches_beyond,
};
pub use service::RaftService;
