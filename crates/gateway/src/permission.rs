//! The right to a stream, for as long as it lasts.

use std::sync::Arc;

use meridian_types::DatabaseId;

use crate::Catalogue;

/// The right of a client to its stream, looked at before each message and each ping.
pub(crate) struct Permission<C> {
    pub(crate) catalogue: Arc<C>,
    pub(crate) token: Box<str>,
    pub(crate) database: DatabaseId,
    /// The stream needs the right to write.
    pub(crate) writes: bool,
}

impl<C: Catalogue> Permission<C> {
    /// False once the token was revoked, or the database deleted. That the metadata expired which
    /// the client began with changes nothing.
    pub(crate) fn holds(&self) -> bool {
        let grant = self.catalogue.authorize(&self.token);
        let is_granted = grant.is_some_and(|grant| {
            grant.allows(self.database) && (grant.may_write() || !self.writes)
        });
        is_granted && self.catalogue.shard(self.database).is_some() || !self.catalogue.is_current()
    }
}
