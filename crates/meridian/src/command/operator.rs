//! The parts that operators' commands share: the nodes to ask, the view of the cluster, tables and
//! JSON.
//!
//! Absent on purpose: the decision whether a change may be made. The directory decides, and says
//! why it refuses.

mod connect;
pub(crate) mod contexts;
mod directory;
mod every_node;
pub(crate) mod format;
mod output;
pub(crate) mod resolve;
mod table;
mod view;

#[cfg(test)]
pub(crate) mod samples;

pub(crate) use connect::{Connect, Target};
pub(crate) use directory::{Directory, actor, admin, no_leader, seeds};
pub(crate) use every_node::every_node;
pub(crate) use output::{print, print_json};
pub(crate) use table::Table;
pub(crate) use view::{View, is_fresh};
