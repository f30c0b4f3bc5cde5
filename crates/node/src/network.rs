//! Connections to other nodes and from them: which nodes to dial, which calls are for this cluster,
//! which runtime serves.
//!
//! Absent on purpose: what is said over a connection.

pub(crate) mod call_failure;
pub(crate) mod clients;
pub(crate) mod control;
pub(crate) mod departure;
pub(crate) mod identity;
mod lanes;
pub(crate) mod members;
pub(crate) mod peers;
