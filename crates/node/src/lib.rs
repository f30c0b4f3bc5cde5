//! Puts Meridian together: one node, or a stateless gateway, from its configuration.
//!
//! Its rooms are the floors of a house. The work on one floor uses those below it and none above; a
//! test of the tree checks it. From the top:
//!
//! | module | what happens there |
//! |---|---|
//! | `process` | starting and stopping: one node, one stateless gateway, a whole cluster for development |
//! | `rpc` | the gRPC faces of a node: wire in, wire out |
//! | `background` | what a node does periodically: status, purging, forgetting, gauges |
//! | `directory_group` | the node's vote in the directory's own group, and its term as its leader |
//! | `placement` | bringing the node to its part in each shard, and reporting how it stands |
//! | `webhooks` | messages of the shards that this node leads, sent to the webhooks of their queues |
//! | `routing` | from a gateway to the node that can answer, with retries and hedges |
//! | `changes` | changes of a database behind a versionstamp, from the log that this node has |
//! | `watches` | watched keys: what this node tells of them, as it applies what changes them |
//! | `shard` | one shard here: as a voter or as a replica |
//! | `queues` | messages of the shards that this node leads: to listeners, and what became of them |
//! | `write` | the write path of a leader: admission and group commit |
//! | `read` | reads of a state, a few at a time, within the bytes they may hold |
//! | `divergence` | batches that a later epoch's history does not hold, kept in files |
//! | `replication` | how logs and states travel between nodes, and how far each node has come |
//! | `cluster_view` | the cluster as this process knows it, and the lease that it has |
//! | `network` | connections to other nodes and from them, and TLS of clients |
//! | `host` | clocks, disk room |
//! | `time_budget` | durations that depend on each other, and their relations |
//!
//! Invariants: an answer to a write says what is true and durable, or nothing; a strong read is
//! served only where leadership was confirmed after the read began. Absent on purpose: HTTP (the
//! gateway's), rules of shipping (`meridian-shipping`), Raft (`meridian-consensus`).

mod background;
mod changes;
mod cluster_view;
mod directory_group;
mod divergence;
mod host;
mod network;
mod placement;
mod process;
mod queues;
mod read;
mod replication;
mod routing;
mod rpc;
mod shard;
#[cfg(test)]
mod testing;
mod time_budget;
mod watches;
mod webhooks;
mod write;

pub use meridian_storage::abort_soon;
pub use network::peers::Dial;
pub use process::dev;
pub use process::joining::join;
pub use process::node::Node;
pub use process::standalone_gateway::StandaloneGateway;
pub use process::start_error::StartError;
