//! One budget of memory for a process: how many bytes may be held at a time, for each purpose.
//!
//! | module | what it holds |
//! |---|---|
//! | `budget` | [`ByteBudget`]: bytes that are taken, and given back when [`Held`] is dropped |
//! | `machine` | how much memory the machine gives this process |
//! | `shares` | [`Shares`]: the process's memory, divided by purpose |
//!
//! What always holds here:
//! - No more bytes are held of a budget than it has.
//! - Who waits is served in the order of asking, large or small, and for a bounded time.
//! - Budgets do not wait for each other in a circle: requests take of [`Shares::bodies`] first,
//!   then of [`Shares::writes`] or [`Shares::reads`], then of [`Shares::answers`], and whoever
//!   waits for bytes of a budget holds none of it.
//!
//! How it is used: a node makes each budget once, from [`Shares`], and gives clones to whoever
//! needs bytes. `budget.try_take(bytes)` where a refusal at once is right, `budget.take(bytes,
//! within).await` where a short wait is; then keep the [`Held`] beside the bytes,
//! [`Held::shrink_to`] what they turn out to be, and drop it when they have left. [`Exhausted`]'s
//! text is fit for the body of a 503.
//!
//! Absent on purpose: knowledge of what the bytes are. Whoever holds them counts them.

mod budget;
mod machine;
mod shares;

pub use budget::{ByteBudget, Exhausted, Held};
pub use machine::default_max_bytes;
pub use shares::{MIN_BYTES, Shares};
