//! What the commands of operators share: whom to ask, what the cluster is, and how it is said.
//!
//! Absent on purpose: judging whether a change may be made. The directory does, and says why not.

pub(crate) mod amounts;
mod directory;
mod output;
mod reach;
pub(crate) mod selection;
mod table;
mod view;

#[cfg(test)]
pub(crate) mod samples;

pub(crate) use directory::{Directory, actor, connect, no_leader};
pub(crate) use output::{print, print_json};
pub(crate) use reach::Reach;
pub(crate) use table::Table;
pub(crate) use view::{View, is_fresh};
