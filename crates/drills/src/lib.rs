//! Drills: a real cluster of many processes, real clients, a fault, and the clients' view of it.
//!
//! | module | contents |
//! |---|---|
//! | `cluster` | [`Cluster`]: one `meridian serve` process a node, stateless gateways, signals |
//! | `network` | [`Network`]: emulated links between all of them; cuts in one direction, rates |
//! | `operator` | [`Operator`]: an operator's questions and orders: status, inspection, changes |
//! | `kv_connect` | [`KvClient`]: KV Connect that hides nothing, every answer as it came |
//! | `recorder` | recording histories while clients run, and their files |
//! | `workload` | recorded clients: a history for `meridian-checker`, and samples on a time line |
//! | `queue` | recorded clients of a queue: messages, listeners, deaths |
//! | `roles`, `script` | the machines behind the names of a script; a fault as a script over time |
//! | `drill` | the scripts that come with the program, by name |
//! | `stage` | [`Stage`]: one run, from the start of the cluster to its judgement |
//! | `watch` | the statuses of all nodes, all the time: leaders, epochs, lag |
//! | `ping` | the round trips of the emulated network itself |
//! | `gap`, `loss` | the two objectives as clients measure them: time and transactions |
//! | `report` | the report of a run: as a table, as JSON, as one HTML page |
//! | `promise`, `verdict`, `suite` | the promises of the product, and the drills that measure them |
//! | `poll` | waiting on conditions, with a deadline |
//!
//! Invariants: nothing knows the inside of a node. A cluster is seen through its program, its
//! configuration files, its ports and its signals, and judged by the answers to its clients. The
//! cluster's own reports are shown beside them, and are themselves judged.
//!
//! Absent on purpose: faults of disks and clocks (left to the simulation), faults on a cluster in
//! use. A drill makes its own cluster and removes it.

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
mod queue;
pub mod recorder;
pub mod report;
pub mod roles;
pub mod script;
pub mod stage;
pub mod suite;
pub mod verdict;
mod watch;
pub mod workload;

pub use cluster::{Cluster, ClusterError, ClusterOptions, Trust, with_causes};
pub use kv_connect::{KvClient, READ_ONLY_TOKEN, TOKEN};
pub use network::{Machine, Network};
pub use operator::{Operator, OperatorError};
pub use stage::{Stage, StageOptions};
