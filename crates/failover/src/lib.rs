//! What the cluster has decided, and how it decides again when a region is lost: pure.
//!
//! | type | where it lives | what it decides |
//! |---|---|---|
//! | [`Cluster`] | replicated by the directory group | nodes, shards, databases, tokens, epochs |
//! | [`Change`] | proposed by the directory leader | the one way from a `Cluster` to the next |
//! | [`Controller`] | on the directory leader | leases; when to seal, drain, promote |
//! | [`LeaseHolder`] | on every node | whether strong operations may be served now |
//! | [`Hearsay`] | on every node | how far each shard came, for the next directory leader |
//!
//! What always holds:
//! - An epoch begins with one `Change::Promote`, which names its region, voters and base for ever.
//! - `Promote` comes after every lease on the epoch before has run out, or its holder has sealed.
//! - A lease is counted by its holder from when it asked, by the grantor from when it answered.
//! - The controller keeps nothing that it needs to be safe: a new one goes on from the `Cluster`
//!   alone, and waits a full lease before it judges anybody.
//!
//! Absent on purpose: tokio, storage, clocks, randomness. `now` is the time since an arbitrary
//! start of this process (monotonic).

mod change;
mod cluster;
mod controller;
mod furthest;
mod lease;
#[cfg(test)]
mod testing;
mod voters;

pub use change::{Change, Refused};
pub use cluster::{
    Cluster, Database, Deletion, FailoverMode, FailoverReport, Loss, Node, Phase, Plan, Rpo,
    RpoMode, Shard, Token, TokenScope, VoterChange,
};
pub use controller::{
    Action, Controller, ControllerConfig, Event, Progress, SealAnswer, ShardReport,
};
pub use furthest::{Furthest, Hearsay};
pub use lease::{Lease, LeaseHolder};
