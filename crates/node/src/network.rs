//! Connections to other nodes and from them: whom to dial, who may connect, on which runtime.
//!
//! Absent on purpose: what is said over a connection.

pub(crate) mod call_failure;
pub(crate) mod control;
pub(crate) mod departure;
pub(crate) mod identity;
pub(crate) mod incoming;
pub(crate) mod peers;
