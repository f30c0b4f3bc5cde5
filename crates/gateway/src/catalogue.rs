use meridian_types::{DatabaseId, ShardId};

use crate::Grant;

/// Which databases there are and who may open them. Asked on every request: an implementation
/// answers from memory.
pub trait Catalogue: Send + Sync + 'static {
    /// What a client opens at `/`.
    fn default_database(&self) -> Option<DatabaseId>;

    /// What a client opens at `/db/<name>`. Names are compared as they stand in the path,
    /// undecoded.
    fn by_name(&self, name: &str) -> Option<DatabaseId>;

    /// The shard that a database lives in. Those of one shard are served, or not, together. `None`:
    /// there is no such database.
    fn shard(&self, database: DatabaseId) -> Option<ShardId>;

    /// `None`: the token is not known (any more).
    fn authorize(&self, bearer: &str) -> Option<Grant>;

    /// Whether this process has heard from the cluster since it started. Until then, what is not
    /// known here may be there: a database or a token that was made while this process was away.
    fn is_current(&self) -> bool;
}
