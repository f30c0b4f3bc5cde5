//! Reads of one node's states: how many run at a time, and what they may hold in memory.

pub(crate) mod execution;
pub(crate) mod freshness;
mod line;
pub(crate) mod messages;
pub(crate) mod read_index;
pub(crate) mod refusal;
pub(crate) mod shared_call;
