//! Starting and stopping: one node, one stateless gateway, a whole cluster for development.

pub(crate) mod credentials;
pub(crate) mod data_folder;
pub mod dev;
pub(crate) mod founding;
pub(crate) mod hand_over;
pub(crate) mod joining;
pub(crate) mod node;
pub(crate) mod settings;
pub(crate) mod standalone_gateway;
pub(crate) mod start_error;
