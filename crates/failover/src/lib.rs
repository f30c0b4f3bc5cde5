//! When a shard fails over or is switched over, and whether a node may serve meanwhile: pure.
//!
//! | type | where it lives | what it decides |
//! |---|---|---|
//! | [`DirectoryLeader`] | on the directory leader | which node gets a lease; what is committed next |
//! | [`Controller`] | in it | leases; when to seal, drain, promote |
//! | [`LeaderSearch`] | on every node | which node is asked for a lease, and when |
//! | [`LeaseHolder`] | on every node | whether strong operations may be served now |
//! | [`ProgressHints`] | on every node | how far each shard came, for the next directory leader |
//!
//! In the modules `leader`, `controller`, `search`, `lease` and `progress_hints`. The controller's
//! choice of a region is in `target`, which `preview` asks, too: [`FailoverPreview`] shows operators
//! what a failover would do. The cluster that it decides about, and the changes of it, are
//! `meridian-directory`'s.
//!
//! Invariants:
//! - `Promote` comes after every lease on the epoch before has run out, or its holder has sealed.
//! - A lease is counted by its holder from when it asked, by the grantor from when it answered.
//! - A lease is granted to a node whose incarnation is committed, and to no other.
//! - Changes are committed one list at a time, each made from what the one before left; a decision
//!   upon another version is dropped.
//! - The controller keeps nothing that it needs to be safe: a new one goes on from the `Cluster`
//!   alone, and waits a full lease before it judges any node.
//!
//! Absent on purpose: tokio, storage, clocks, randomness. `now` is the time since an arbitrary
//! start of this process (monotonic).

mod controller;
mod leader;
mod lease;
mod preview;
mod progress_hints;
mod search;
mod target;

pub use controller::{Action, Controller, ControllerConfig, Event, Progress, SealAnswer};
pub use leader::{
    DirectoryLeader, ExecuteFailure, Executed, LeaderAction, LeaderEvent, LostTail, Made, Renewal,
    Renewed,
};
pub use lease::{Lease, LeaseHolder};
pub use preview::{Contact, FailoverPreview, Holder, KnownLoss};
pub use progress_hints::{ProgressHint, ProgressHints};
pub use search::{
    ASK_TIMEOUT, FIRST_GRANT_AFTER, Inquiry, LEADER_SILENT, LeaderSearch, Next, RENEW,
    RENEW_TIMEOUT, Reply, SEARCH,
};
