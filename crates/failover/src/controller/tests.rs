//! The controller against seven nodes that behave, and each of its judgements by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_directory::{FailoverMode, Plan, Shard};
use meridian_types::{DatabaseId, Epoch, NodeId, Position, ShardId};

use super::*;
use crate::lease::LeaseHolder;
use crate::progress_hints::ProgressHints;
use meridian_directory::testing::{self, SHARD, at, database, node};

mod failovers;
mod first_epoch;
mod grants;
mod previews;
mod scenario;
mod scenario_files;
mod starvation;
mod switchovers;
mod verdicts;
mod watches;

pub(super) const MS: Duration = Duration::from_millis(1);

/// All of its nodes have come.
fn cluster() -> Cluster {
    let mut cluster = testing::cluster();
    cluster.nodes.values_mut().for_each(|node| node.incarnation = Some("0a".to_owned()));
    cluster
}
