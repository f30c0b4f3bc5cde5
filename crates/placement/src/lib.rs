//! The role of a node in a shard, and the way to it: pure.
//!
//! - `role`: [`RoleChange`], from what the directory says of a shard and what this node finds on its
//!   disk to the steps that make it a voter or a replica.
//! - `catch_up`: [`CatchUp`], which node is asked for the batches that are missing up to a position,
//!   what is taken of the answer, and when the whole state is fetched instead.
//! - `seal`: [`Seal`] and [`Sealing`], what a node writes down, waits for and answers when the epoch
//!   ends.
//! - `divergence`: [`DivergenceCount`] and [`shown`], how much of what a node holds the shard's
//!   history does not.
//!
//! The node drives these machines over tokio, gRPC and RocksDB; the simulation drives the same ones
//! over its own network, clock and disks. A machine gets an event, and returns actions; the driver
//! carries them out in order, each to its end, and reports what the machine waits for.
//!
//! Invariants:
//! - A node founds a group only while the directory says that the group is being formed, and only
//!   with a state that stands at the base.
//! - Batches beyond a base are kept before anything takes their place.
//! - A batch or a state that another node sent is taken only where it lies in the shard's history,
//!   and not past the position that is asked for.
//! - A seal is durable before it is answered, and what it answers stays true over a restart.
//!
//! Absent on purpose: tokio, storage, the wire format, clocks and randomness. `now` is the time since
//! an arbitrary start of this process (monotonic).

mod catch_up;
mod divergence;
mod role;
mod seal;

pub use catch_up::{
    CALL_TIMEOUT, CHUNK_TIMEOUT, CatchUp, CatchUpAction, CatchUpEvent, CatchUpFailure, NotASource,
    ORDER_TIMEOUT, PULL_PAUSE, PULL_ROUNDS, check_source, check_state, sources,
};
pub use divergence::{DivergenceCount, Kept, Missing, Reached, Shown, Stretch, shown};
pub use role::{Local, Role, RoleAction, RoleChange, RoleEvent, Vote};
pub use seal::{DRAIN_TIMEOUT, Seal, SealAction, SealEvent, Sealing, knows_voters};
