//! The directory's own group, which no configuration can name.

use meridian_storage::GroupId;
use meridian_types::{DatabaseId, Epoch, ShardId};

/// The directory's Raft group: shard 0, which no configuration can name.
pub(crate) const DIRECTORY_GROUP: GroupId = GroupId { shard: ShardId(0), epoch: Epoch::FIRST };
/// The database that its state lies in.
pub(crate) const DIRECTORY_DATABASE: DatabaseId = DatabaseId([0; 16]);
