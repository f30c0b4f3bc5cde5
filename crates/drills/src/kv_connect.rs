//! KV Connect without a client library, to clusters for development.

use meridian_types::DatabaseId;

pub use meridian_kv_client::message::{delete, mutation, point, range, set, sum};
pub use meridian_kv_client::{
    CallError, Change, ChangeFeed, ChangeLine, ChangesFrom, KvClient, Reply, Watching,
};

/// The token that opens every database of every drill's cluster.
pub const TOKEN: &str = "a-token-for-drills-only";
/// The token that opens them for reads.
pub const READ_ONLY_TOKEN: &str = "a-token-for-reading-only";
/// `default` of every development cluster, in shard 1.
pub const DEFAULT_DATABASE: DatabaseId = database(1);
/// `second` of every development cluster, in shard 2.
pub const SECOND_DATABASE: DatabaseId = database(2);

const fn database(number: u8) -> DatabaseId {
    DatabaseId([0, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, 0, number])
}

/// A client of a gateway, with the token that opens all databases of a drill's cluster. `base` is
/// the gateway's URL, without a slash at its end.
pub fn client(base: impl Into<String>, database: DatabaseId) -> KvClient {
    KvClient::new(base, TOKEN, database)
}
