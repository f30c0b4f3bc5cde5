//! An emulated WAN: TCP links with delay, jitter, a rate and cuts, and the plan of such links
//! between regions.
//!
//! A [`Link`] listens on one address and forwards every connection to another, so that real
//! processes talk over a distance they do not have. [`WanPlan`] says how far the regions lie from
//! each other.
//!
//! | module | what it holds |
//! |---|---|
//! | `link` | [`Link`]: accepting, and changing a link while it runs |
//! | `controls` | [`LinkProfile`], [`Direction`], and what every connection of a link obeys |
//! | `connection` | one connection from its set-up to its end |
//! | `lane` | one direction of one connection: when its bytes arrive, when they leave |
//! | `shaper` | the due time of a chunk: rate, delay, jitter by seed |
//! | `timer` | sleeping more precisely than tokio does |
//! | `plan`, `spec` | [`WanPlan`], and how it is written on a command line |
//!
//! Invariants:
//! - The bytes of a connection keep their order, whatever the jitter and however the profile
//!   changes.
//! - Delay limits no throughput: bytes travel together, up to [`LANE_CAPACITY_BYTES`] in each
//!   direction.
//! - A cut loses nothing. It holds bytes, as TCP does that keeps retransmitting into a dead
//!   network.
//!
//! Absent on purpose: acknowledgements (a sender whose way back is cut is heard until buffers are
//! full, where TCP would stop after a window), congestion control, and loss below TCP.

mod connection;
mod controls;
mod lane;
mod link;
mod plan;
mod shaper;
mod spec;
mod timer;

pub use controls::{Direction, LinkProfile, MAX_DELAY};
pub use lane::LANE_CAPACITY_BYTES;
pub use link::{Link, MAX_CONNECTIONS};
pub use plan::WanPlan;
pub use spec::InvalidWanSpec;
