//! The right to a stream, for as long as it lasts.

use std::sync::Arc;

use meridian_types::{DatabaseId, Permission};

use crate::{Catalogue, Grant};

/// The right of a client to its stream, looked at before each message and each ping.
pub(crate) struct StreamAccess<C> {
    pub(crate) catalogue: Arc<C>,
    pub(crate) token: Box<str>,
    pub(crate) database: DatabaseId,
    /// The stream needs this permission.
    pub(crate) needs: Permission,
    /// The grant that it began with, for the same keys.
    pub(crate) grant: Grant,
}

impl<C: Catalogue> StreamAccess<C> {
    /// False once the token was revoked, or the database deleted. That the metadata expired which
    /// the client began with changes nothing.
    pub(crate) fn holds(&self) -> bool {
        let grant = self.catalogue.authorize(&self.token);
        let is_granted = grant.is_some_and(|grant| {
            grant.allows(self.database) && grant.may(self.needs) && grant.has_keys_of(&self.grant)
        });
        is_granted && self.catalogue.shard(self.database).is_some() || !self.catalogue.is_current()
    }
}

/// A catalogue for tests of streams.
#[cfg(test)]
pub(crate) mod revocable {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use meridian_types::{DatabaseId, Permissions, ShardId, V8Format};

    use crate::{Catalogue, Databases, Grant};

    /// Knows one database, in which every token may do all until it is revoked.
    pub(crate) struct Revocable {
        database: DatabaseId,
        pub(crate) is_revoked: AtomicBool,
        pub(crate) is_deleted: AtomicBool,
    }

    impl Revocable {
        pub(crate) fn new(database: DatabaseId) -> Arc<Self> {
            let [is_revoked, is_deleted] = Default::default();
            Arc::new(Self { database, is_revoked, is_deleted })
        }

        pub(crate) fn grant(&self) -> Grant {
            Grant::new(Databases::Only(vec![self.database]), Permissions::ALL)
        }
    }

    impl Catalogue for Revocable {
        fn default_database(&self) -> Option<DatabaseId> {
            None
        }

        fn by_name(&self, _: &str) -> Option<DatabaseId> {
            None
        }

        fn shard(&self, _: DatabaseId) -> Option<ShardId> {
            (!self.is_deleted.load(Ordering::SeqCst)).then_some(ShardId(1))
        }

        fn authorize(&self, _: &str) -> Option<Grant> {
            let is_valid = !self.is_revoked.load(Ordering::SeqCst);
            is_valid.then(|| self.grant())
        }

        fn v8_format(&self, _: DatabaseId) -> V8Format {
            V8Format::default()
        }

        fn is_current(&self) -> bool {
            true
        }
    }
}
