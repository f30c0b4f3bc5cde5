//! The cluster as this process knows it, the lease that the directory grants it, and how both are
//! kept up to date.
//!
//! The view may be old and does not say so; what must not be old is guarded by the epoch lease.
//! Absent on purpose: the directory's own Raft group (`directory_group`).

pub(crate) mod certificates;
pub(crate) mod client;
pub(crate) mod directory_shard;
pub(crate) mod epoch_lease;
pub(crate) mod store;
pub(crate) mod token_uses;
pub(crate) mod view;
pub(crate) mod wire;
