//! From a transaction and a view of state to effects.
//!
//! The shard leader's proposer evaluates each waiting transaction with [`evaluate`] against the
//! applied state ([`View`], implemented by the storage) with its own not yet applied batches laid
//! over it ([`Overlay`], [`Overlaid`]). Followers never come here: they apply effects blindly.
//!
//! Invariants:
//! - a transaction takes effect whole or not at all, and each of its mutations sees the earlier
//!   ones;
//! - there is at most one effect a row, with the final value;
//! - a message has one row at a time, and what a settlement of a row does is done once;
//! - no bytes of a client or of the store can make this crate panic.
//!
//! Absent on purpose: clocks (the time is an argument), I/O, the limits of requests (the
//! gateway checks those), and the delivery of messages.
//!
//! | file | what it holds |
//! |---|---|
//! | `evaluate.rs` | checks, then mutations in order, then messages |
//! | `messages.rs` | settlements and enqueues |
//! | `dead_letters.rs` | messages that died, as the transaction at hand leaves them |
//! | `write_set.rs` | what the transaction at hand has written so far |
//! | `arithmetic.rs` | `sum`, `min`, `max`: the rules of the reference implementation, denokv_sqlite 0.14 |
//! | `number.rs` | the numbers that a sum can add |
//! | `rejection.rs` | why a mutation cannot be carried out, in the words clients know |
//! | `view.rs`, `overlay.rs` | what a transaction reads from |

mod arithmetic;
mod dead_letters;
mod evaluate;
mod messages;
mod number;
mod overlay;
mod rejection;
mod view;
mod write_set;

pub use evaluate::{Evaluation, evaluate};
pub use overlay::{InFlight, Overlaid, Overlay};
pub use view::{Stored, View};
