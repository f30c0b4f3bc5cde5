//! The gRPC faces of a node: from the wire to a call, from its result to the wire, and nothing else.

pub(crate) mod admin;
pub(crate) mod arriving;
pub(crate) mod authorization;
pub(crate) mod changes;
pub(crate) mod cluster_gate;
pub(crate) mod directory;
pub(crate) mod failover;
pub(crate) mod leaving;
pub(crate) mod membership;
pub(crate) mod queue;
pub(crate) mod replication;
pub(crate) mod roles;
pub(crate) mod server;
pub(crate) mod shard;
