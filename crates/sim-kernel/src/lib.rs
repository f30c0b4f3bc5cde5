//! A simulated kernel: threads, clocks, sockets, fsync and chance below unchanged programs.
//!
//! A program that links this crate has its own definitions of some functions of libc, which go
//! before those of the system. Threads of a simulation come to them with all that they would ask
//! the operating system for, and get it from a seed: one thread runs at a time, and which one is
//! drawn; time passes when no thread can run; a message is a byte string that arrives later. So
//! whole nodes, with their runtimes and threads as they ship, run in one process and do the same
//! again for the same seed. Threads outside of a simulation get what the system has.
//!
//! | module | what it holds |
//! |---|---|
//! | `doors` | the functions that libc has elsewhere |
//! | `real` | libc's own, for threads outside and for what is not simulated |
//! | `kernel` | the state of a simulation, for the thread with the baton |
//! | `scheduler` | which thread runs next, and the passing of time |
//! | `machine` | the machines that threads belong to, and their clocks |
//! | `files`, `readiness` | file descriptors: sockets, `epoll`, `eventfd`, and what is ready |
//! | `durable` | what fsyncs have made durable of files, and what a loss of power leaves |
//! | `network`, `transport` | links and connections, and what travels over them |
//! | `settings` | what all of a simulation has |
//! | `chance` | numbers from a seed |
//! | `control` | the scenario's side: machines, crashes, pauses, cuts |
//!
//! Invariants: the state is touched by the thread that holds the baton and by no other, and only a
//! thread that blocks passes the baton on. The course of a simulation is a function of its seed and
//! of the program. A machine that is killed runs no instruction any more: its threads are never
//! scheduled again, and no destructor runs.
//!
//! Absent on purpose: the content of files (the system's own are used, but an fsync takes simulated
//! time, and what was not synced can be lost), memory that is shared without locks of the standard
//! library (interleavings lie at calls of the kernel), signals, UDP and IPv6. Linux on 64 bits alone
//! is supported.

#![allow(
    unsafe_code,
    reason = "functions in place of libc's are called by C's rules, and call the system's own"
)]

mod chance;
mod control;
mod doors;
mod durable;
mod files;
mod kernel;
mod machine;
mod network;
mod readiness;
mod real;
mod scheduler;
mod settings;
mod transport;

pub use chance::Chance;
pub use control::{
    Crash, MachineId, begin, crash, cut, digest, exit, heal, here, is_running, lose_unsynced,
    machine, now, on_machine, pause, restart, resume, set_clock, set_link, sever, start, threads,
};
pub use settings::{LinkProfile, Settings};
