//! Each request counts for its database and its token, and waits or is refused as their quotas say.

use std::sync::{Arc, OnceLock};

use hyper::header::CONTENT_LENGTH;
use hyper::http::request::Parts;
use tokio::time::Instant;

use super::Gateway;
use super::lookup::Authorized;
use crate::Catalogue;
use crate::database::Database;
use crate::refusal::{OverQuota, Refusal};
use crate::shares::Share;
use crate::usage::{Account, Exceeded, Metered, MeteredConnection, Opened, Turn};

/// What a request counts for, once that is known.
pub(crate) type Slot = Arc<OnceLock<Metered>>;

/// What the request counts for.
pub(crate) fn metered(parts: &Parts) -> Option<&Metered> {
    parts.extensions.get::<Slot>()?.get()
}

impl<D: Database, C: Catalogue> Gateway<D, C> {
    /// Counts a request, and waits for its turn.
    ///
    /// # Errors
    /// [`Refusal::OverQuota`].
    pub(super) async fn take_turn(
        &self,
        authorized: &Authorized<'_>,
        parts: &Parts,
    ) -> Result<(), Refusal> {
        let Authorized { grant, database, .. } = authorized;
        let of_database = (Account::Database(*database), self.catalogue.quotas(*database));
        let of_token = (grant.account, grant.quotas);
        let metered = Metered::new(&self.options.usage, [of_database, of_token]);
        if let Some(connection) = parts.extensions.get::<Arc<MeteredConnection>>() {
            connection.carries(&metered).map_err(|exceeded| self.over_quota(exceeded))?;
        }
        let (now, bytes) = (Instant::now(), self.declared_bytes(parts));
        let turn = match metered.request(bytes, now) {
            Turn::At(turn) => turn,
            Turn::Refused(exceeded) => return Err(self.over_quota(exceeded)),
        };
        if let Some(slot) = parts.extensions.get::<Slot>() {
            // A request is authorized again where its rights may have ended meanwhile.
            drop(slot.set(metered));
        }
        if turn > now {
            tokio::time::sleep_until(turn).await;
        }
        Ok(())
    }

    /// Counts the bytes of a body that came, beyond those that its head declared.
    pub(super) fn count_body(&self, parts: &Parts, bytes: usize) {
        if let Some(metered) = metered(parts) {
            let undeclared = (bytes as u64).saturating_sub(self.declared_bytes(parts));
            metered.received(undeclared, Instant::now());
        }
    }

    /// Counts something as open for as long as its share is held.
    ///
    /// # Errors
    /// [`Refusal::OverQuota`].
    pub(super) fn count_open(
        &self,
        parts: &Parts,
        what: Opened,
        share: Share,
    ) -> Result<Share, Refusal> {
        match metered(parts).map(|metered| metered.open(what)).transpose() {
            Ok(Some(open)) => Ok(share.of_open(open)),
            Ok(None) => Ok(share),
            Err(exceeded) => Err(self.over_quota(exceeded)),
        }
    }

    fn over_quota(&self, exceeded: Exceeded) -> Refusal {
        self.telemetry.over_quota(exceeded.quota);
        let database = match exceeded.of {
            Account::Database(id) => self.catalogue.name(id),
            Account::Token(_) | Account::ConfiguredTokens => None,
        };
        Refusal::OverQuota(OverQuota { exceeded, database })
    }

    /// Of the body, as the head says. A longer one than may come does not come, and is not charged.
    fn declared_bytes(&self, parts: &Parts) -> u64 {
        let declared = parts.headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok());
        let declared: u64 = declared.and_then(|length| length.parse().ok()).unwrap_or(0);
        declared.min(self.options.max_body_bytes as u64)
    }
}
