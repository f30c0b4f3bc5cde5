//! Batches that a later epoch's history does not hold: found in the logs of this node, and kept in
//! files for operators before anything takes their place.

pub(crate) mod collect;
pub(crate) mod orphan_files;
