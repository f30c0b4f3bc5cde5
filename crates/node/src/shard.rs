//! The part of this node in each shard: a voter of an epoch, or a replica.

pub(crate) mod local;
pub(crate) mod replica;
pub(crate) mod table;
pub(crate) mod voter;
