//! Keys of the family `meta`: what a node remembers of itself, and of its part in shards and
//! groups.

use meridian_types::{DatabaseId, NodeId, ShardId};

use super::GroupId;

pub const META_FAMILY: &str = "meta";

/// The node whose data folder this is.
pub const NODE_KEY: &[u8] = b"node";
/// A random number that tells a data folder from another one of the same node.
pub const NODE_INCARNATION_KEY: &[u8] = b"node-incarnation";
/// The cluster as this node last knew it.
pub const CLUSTER_KEY: &[u8] = b"cluster";

/// Values of [`voting_status_key`].
pub const VOTING_STATUS_MEMBER: &[u8] = b"member";
pub const VOTING_STATUS_NON_VOTING: &[u8] = b"voteless";

/// The newest seal of a shard on this node.
pub fn seal_key(shard: ShardId) -> Vec<u8> {
    [b"seal".as_slice(), &shard.0.to_be_bytes()].concat()
}

/// The name of the state family in use for a shard.
pub fn current_family_key(shard: ShardId) -> Vec<u8> {
    [b"state".as_slice(), &shard.0.to_be_bytes()].concat()
}

/// Whether the disk has got back what a dropped database took.
pub fn reclaimed_key(shard: ShardId, database: DatabaseId) -> Vec<u8> {
    [b"reclaimed".as_slice(), &shard.0.to_be_bytes(), &database.0].concat()
}

/// Whether this node may vote in a group.
pub fn voting_status_key(group: GroupId) -> Vec<u8> {
    of_member(b"standing", group, NodeId(0))
}

/// The incarnation in which a member takes part in a group.
pub fn incarnation_key(group: GroupId, node: NodeId) -> Vec<u8> {
    of_member(b"incarnation", group, node)
}

/// The term from which on a member without a vote follows leaders.
pub fn follows_from_key(group: GroupId) -> Vec<u8> {
    of_member(b"follows-from", group, NodeId(0))
}

/// `node`: 0 where the key is of this node itself.
fn of_member(name: &[u8], group: GroupId, node: NodeId) -> Vec<u8> {
    [name, &group.shard.0.to_be_bytes(), &group.epoch.0.to_be_bytes(), &node.0.to_be_bytes()]
        .concat()
}

#[cfg(test)]
mod tests {
    use meridian_types::Epoch;

    use super::*;

    #[test]
    fn keys_of_meta_are_golden() {
        let database = DatabaseId([0xdd; 16]);
        assert_eq!((NODE_KEY, CLUSTER_KEY), (b"node".as_slice(), b"cluster".as_slice()));
        assert_eq!(NODE_INCARNATION_KEY, b"node-incarnation");
        assert_eq!(
            (VOTING_STATUS_MEMBER, VOTING_STATUS_NON_VOTING),
            (b"member".as_slice(), b"voteless".as_slice())
        );
        assert_eq!(seal_key(ShardId(0x0102_0304)), b"seal\x01\x02\x03\x04");
        assert_eq!(current_family_key(ShardId(258)), b"state\0\0\x01\x02");
        assert_eq!(
            reclaimed_key(ShardId(258), database),
            [b"reclaimed\0\0\x01\x02".as_slice(), &database.0].concat()
        );
        let group = GroupId { shard: ShardId(0x0102_0304), epoch: Epoch(0x0506) };
        assert_eq!(voting_status_key(group), b"standing\x01\x02\x03\x04\x05\x06\0\0\0\0\0\0\0\0");
        assert_eq!(
            incarnation_key(group, NodeId(7)),
            b"incarnation\x01\x02\x03\x04\x05\x06\0\0\0\0\0\0\0\x07"
        );
        assert_eq!(
            follows_from_key(group),
            b"follows-from\x01\x02\x03\x04\x05\x06\0\0\0\0\0\0\0\0"
        );
    }
}
