//! The whole failover protocol, simulated from a seed.
//!
//! | module | what it holds |
//! |---|---|
//! | `world` | nodes, clients, the network and real time; `world::chaos` breaks things, `world::operator` changes voters |
//! | `node` | one process and its disk, around the **real** `RoleChange`, `CatchUp`, `Sealing`, `Receiver`, `Sender`, `RelayElection`, `LeaderSearch`, `LeaseHolder`, `DirectoryLeader` and `Cluster` |
//! | `node::queues`, `queue_rows` | the queue of a leader around the **real** `Dispatcher`; its rows, as the real `evaluate` makes them |
//! | `listeners` | in every fourth run: listeners that stream and poll, through gateways that live and die |
//! | `raft` | a small Raft with joint consensus, for the shard's groups and for the directory |
//! | `invariants`, `heals` | what has to hold, each in a file of its own; that a world without faults recovers |
//! | `client`, `message`, `network`, `clock`, `rng`, `topology` | what surrounds the nodes |
//! | `story` | one run |
//! | `bugs` | what can be planted, to see that the invariants catch it |
//!
//! A run is a function of its seed: [`run`] with the same seed does the same, step by step.
//!
//! Absent on purpose: tokio, threads, wall clocks. Changes of the directory's own voters, replaced
//! nodes, keys and values other than a queue's, disks that lose what they said was durable, clocks
//! that stand still while a machine sleeps, and operators' orders for messages are not simulated.

mod bugs;
mod client;
mod clock;
mod heals;
mod invariants;
mod listeners;
mod message;
mod network;
mod node;
mod queue_rows;
mod raft;
mod rng;
mod story;
mod topology;
mod world;

pub use bugs::Bug;
pub use invariants::Counts;
pub use story::run;
