//! Whole nodes in a simulation: what ships runs from a seed, and its clients' history is judged.
//!
//! Each node has a machine of [`meridian_sim_kernel`], a thread of `meridian serve`'s kind on it
//! with the runtimes and threads that it starts, and an engine in memory that loses on a crash what
//! was not synced. Clients are those of the drills; they write and read through the nodes' own
//! gateways, and `meridian-checker` judges what they were told. Faults come from the seed: crashes
//! with loss of what was not synced, restarts, pauses, cut and slow links, broken connections, slow
//! disks, clocks that differ.
//!
//! | module | what it holds |
//! |---|---|
//! | `scenario` | a run, from a seed to its [`Outcome`] |
//! | `cluster` | the machines, their nodes and what happens to them |
//! | `faults` | the faults of a run, and when they come |
//! | `clients` | the clients, on a machine of their own |
//! | `disk` | an engine in memory whose calls take the time of a disk |
//! | `story` | the course of events, in their order |
//! | `bugs` | bugs that have to be found |
//!
//! Invariants: a run is a function of its options; two runs of one seed record the same
//! bytes. Nothing here decides in the place of a node. Absent on purpose: RocksDB, whose threads
//! and files are not simulated.

mod bugs;
mod clients;
mod cluster;
mod disk;
mod faults;
mod scenario;
mod story;

pub use bugs::Bug;
pub use scenario::{Options, Outcome, World, run};
