//! The write path of a shard's leader: admission, group commit, and the answer.
//!
//! Invariant: an answer says what is committed and applied under this node's epoch lease, or that
//! nothing is known.

pub(crate) mod division;
pub(crate) mod leader_term;
pub(crate) mod proposer;
pub(crate) mod shard_limits;
pub(crate) mod stored_sizes;
