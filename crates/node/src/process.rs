//! Starting and stopping: one node, one stateless gateway, a whole cluster for development.

pub mod dev;
pub(crate) mod node;
pub(crate) mod standalone_gateway;
pub(crate) mod telemetry;
