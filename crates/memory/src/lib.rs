//! Budgets of memory for a process: the bytes that may be held at a time, for each purpose.
//!
//! | module | contents |
//! |---|---|
//! | `budget` | [`ByteBudget`]: bytes that are taken, and given back when [`Held`] is dropped |
//! | `machine` | the memory that the machine leaves to this process |
//! | `shares` | [`Shares`]: the memory of a process, divided by purpose |
//!
//! Invariants:
//!
//! - The bytes held of a budget are never more than it has.
//! - Requests for bytes are served in the order of asking, large or small, and wait for a bounded
//!   time.
//! - Budgets do not wait for each other in a circle: a request takes of [`Shares::bodies`] first,
//!   then of [`Shares::writes`] or [`Shares::reads`], then of [`Shares::answers`], and a request
//!   that waits for bytes of a budget holds none of it. A change feed's question waits for another
//!   node's [`Shares::reads`] with room that is beside its own answers, for a fraction of a second.
//!
//! How it is used: a node makes each budget once, from [`Shares`], and hands out clones. Use
//! `budget.try_take(bytes)` where an immediate refusal is right, and `budget.take(bytes,
//! within).await` where a short wait is; then keep the [`Held`] beside the bytes, shrink it with
//! [`Held::shrink_to`] to their true size, and drop it when they have left. The text of
//! [`Exhausted`] is fit for the body of a 503.
//!
//! Absent on purpose: knowledge of what the bytes are. Their holder counts them.

mod budget;
mod machine;
mod shares;

pub use budget::{ByteBudget, Exhausted, Held};
pub use machine::default_max_bytes;
pub use shares::{MIN_BYTES, Shares};
