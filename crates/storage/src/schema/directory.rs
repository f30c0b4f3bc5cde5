//! User keys of the directory's database, in the state of its shard.

/// The cluster.
pub const DIRECTORY_CLUSTER_KEY: &[u8] = b"cluster";
/// Before the version (8 bytes, big-endian) of a change that is recorded.
pub const DIRECTORY_CHANGE_PREFIX: &[u8] = b"change";
/// The last uses of tokens.
pub const DIRECTORY_TOKEN_USES_KEY: &[u8] = b"token_uses";
