//! Drills: a real cluster of many processes, real clients, a fault, and what the clients saw of it.
//!
//! | module | what it holds |
//! |---|---|
//! | `cluster` | [`Cluster`]: one `meridian serve` process a node, stateless gateways, signals |
//! | `network` | [`Network`]: emulated links between all of them; cuts in one direction, rates |
//! | `operator` | [`Operator`]: what an operator asks and orders: status, inspection, changes |
//! | `kv_connect` | [`KvClient`]: KV Connect that hides nothing, every answer as it came |
//! | `recorder` | recording histories while clients run, and their files |
//! | `workload` | recorded clients: a history for `meridian-checker`, and samples on a time line |
//! | `scene`, `script` | who plays which part at present; a fault as a script over time |
//! | `drill` | the scripts that come with the program, by name |
//! | `stage` | [`Stage`]: one run, from the start of the cluster to its judgement |
//! | `watch` | what nodes say of themselves, all the time: leaders, epochs, lag |
//! | `ping` | what the emulated network takes by itself |
//! | `gap`, `loss` | the two objectives as clients measure them: time and transactions |
//! | `report` | what came out: as a table, as JSON, as one HTML page |
//! | `promise`, `suite` | the promises of the product, and the drills that measure them |
//! | `poll` | waiting on conditions, with a deadline |
//!
//! What always holds here: nothing knows the inside of a node. A cluster is seen through its
//! program, its configuration files, its ports and its signals, and judged by what clients were
//! answered. What the cluster says of itself is reported beside it, and is itself judged.
//!
//! Absent on purpose: faults of disks and clocks (the simulation's business), faults on a cluster
//! that somebody uses. A drill makes its own cluster and removes it.

pub mod cluster;
pub mod drill;
pub mod gap;
pub mod kv_connect;
pub mod loss;
pub mod network;
pub mod operator;
mod ping;
pub mod poll;
pub mod promise;
pub mod recorder;
pub mod report;
pub mod scene;
pub mod script;
pub mod stage;
pub mod suite;
mod watch;
pub mod workload;

pub use cluster::{Cluster, ClusterError, ClusterOptions, READ_ONLY_TOKEN, TOKEN, with_causes};
pub use kv_connect::KvClient;
pub use network::{Machine, Network};
pub use operator::{Operator, OperatorError};
pub use stage::{Stage, StageOptions};
