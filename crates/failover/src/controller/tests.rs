use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use meridian_types::{DatabaseId, Epoch, NodeId, Position, ShardId};

use super::*;
use crate::cluster::{FailoverMode, Plan, Shard};
use crate::furthest::Hearsay;
use crate::lease::LeaseHolder;
use crate::testing::{SHARD, at, cluster, database, node};

mod failovers;
mod grants;
mod starvation;
mod story;
mod switchovers;
mod verdicts;
mod watches;

pub(super) const MS: Duration = Duration::from_millis(1);
