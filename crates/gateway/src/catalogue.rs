//! The cluster's list of databases and tokens, as the gateway asks for it.

use std::sync::Arc;

use meridian_types::{DatabaseId, Quotas, ShardId, V8Format};

use crate::{Denial, Grant, TokenName};

/// Which databases exist and which tokens open them. Asked on every request: an implementation
/// answers from memory.
pub trait Catalogue: Send + Sync + 'static {
    /// The database that a client opens at `/`.
    fn default_database(&self) -> Option<DatabaseId>;

    /// The database that a client opens at `/db/<name>`. Names are compared as they stand in the
    /// path, undecoded.
    fn by_name(&self, name: &str) -> Option<DatabaseId>;

    /// The name of a database, for logs.
    fn name(&self, _database: DatabaseId) -> Option<String> {
        None
    }

    /// The shard that a database lives in. The databases of a shard become unavailable together.
    /// `None`: the database does not exist.
    fn shard(&self, database: DatabaseId) -> Option<ShardId>;

    /// How the V8 values that a database is sent are stored.
    fn v8_format(&self, database: DatabaseId) -> V8Format;

    /// The quotas on a database.
    fn quotas(&self, _database: DatabaseId) -> Quotas {
        Quotas::default()
    }

    /// `None`: the token is unknown, was removed or has expired.
    fn authorize(&self, bearer: &str) -> Option<Grant>;

    /// The name of a token, by the SHA-256 of its secret, for logs.
    fn token_name(&self, _sha256: &[u8; 32]) -> Option<Arc<TokenName>> {
        None
    }

    /// Why a token that was not authorized opens nothing, as far as it is known. Asked when it is
    /// refused.
    fn denial(&self, _bearer: &str) -> Denial {
        Denial::Unknown
    }

    /// Whether this process has received the cluster's state since it started. Until then, a
    /// database or token that is unknown here may exist: it may have been created while this
    /// process was down.
    fn is_current(&self) -> bool;
}
