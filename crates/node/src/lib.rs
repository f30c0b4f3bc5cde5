//! Puts Meridian together: one node, or a stateless gateway, from its configuration.
//!
//! | module | what it holds |
//! |---|---|
//! | `config`, `topology` | what the operator says, and what is refused of it |
//! | `control` | threads and connections for what decides who may serve |
//! | `directory` | what the cluster is at present, behind one small trait |
//! | `node`, `standalone_gateway`, `dev` | starting and stopping: one node, one gateway, a whole cluster |
//! | `shard` | one shard here: as a voter or as a replica; strong and eventual reads |
//! | `reads` | carries reads out, a few at a time, within the bytes they may hold |
//! | `proposer` | the write path of a leader: group commit |
//! | `replica` | the follower of a shard in a replica region |
//! | `shipping_service`, `followers` | the source's side: subscriptions, lag, retention |
//! | `shipping_compression` | log batches on their way between nodes, on both sides |
//! | `state_exchange` | whole states between nodes |
//! | `router`, `hedge` | from a gateway to the shard's leader, with retries, and what they may cost |
//! | `read_answer`, `write_calls`, `departure` | how the answer to a read, and a write, travel between nodes |
//! | `shard_service`, `admin_service` | gRPC faces |
//! | `seals` | what was promised about the end of epochs, over restarts |
//! | `maintenance`, `counters` | flushing, purging, forgetting, gauges; what is measured from the start |
//!
//! What always holds here: an answer to a write says what is true and durable, or nothing; a strong
//! read is served only where leadership was confirmed after the read began. Absent on purpose: HTTP
//! (the gateway's), rules of shipping (`meridian-shipping`), Raft (`meridian-consensus`).

mod admin_service;
mod announcements;
mod clock;
mod clocks;
mod comparison;
pub mod config;
mod control;
mod counters;
mod departure;
pub mod dev;
mod directory;
mod disk;
mod drain;
mod failover_service;
mod followers;
mod hedge;
mod history;
mod identity;
mod incoming;
mod keeper;
mod lost_tail;
mod maintenance;
mod node;
mod open_files;
mod orphans;
mod outgoing_ports;
mod peers;
pub mod private_file;
mod proposer;
mod read_answer;
mod reads;
mod replica;
mod round;
mod router;
mod seals;
mod shard;
mod shard_limits;
mod shard_service;
mod shard_table;
mod shipping_compression;
mod shipping_service;
mod shipping_wire;
mod standalone_gateway;
mod standing;
mod state_exchange;
mod telemetry;
#[cfg(test)]
mod testing;
pub mod topology;
mod write_calls;

pub use meridian_storage::abort_soon;
pub use node::{Node, StartError};
pub use peers::Dial;
pub use standalone_gateway::StandaloneGateway;
pub use telemetry::{Metrics, serve_metrics};
