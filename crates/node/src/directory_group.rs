//! This node's part in the directory's own Raft group: its vote, and its term as leader.

pub(crate) mod calls;
pub(crate) mod leader;
pub(crate) mod member;
pub(crate) mod record;
mod token_uses;
