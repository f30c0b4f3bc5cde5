//! The token, the database and the shard of a request, looked up in the catalogue.

use std::time::{Duration, Instant};

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use hyper::http::request::Parts;
use meridian_types::{DatabaseId, ShardId};

use super::Gateway;
use crate::access::{Denial, digest};
use crate::database::Database;
use crate::failed_authentication::{FailedAuthentication, Fingerprint, Reason};
use crate::refusal::Refusal;
use crate::rights::Needed;
use crate::route::{Route, Target};
use crate::server::Caller;
use crate::{Catalogue, Grant, audit, head};

/// Between two looks whether the cluster is known.
const HOLD_PAUSE: Duration = Duration::from_millis(20);

/// A request of the data path whose token is known.
pub(super) struct Authorized<'a> {
    pub(super) token: &'a str,
    pub(super) grant: Grant,
    pub(super) database: DatabaseId,
    pub(super) shard: ShardId,
}

impl<D: Database, C: Catalogue> Gateway<D, C> {
    /// The catalogue's answer, or that it may not have heard of the token or the database yet.
    pub(super) fn looked_up<T>(
        &self,
        look: impl FnOnce() -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        // Asked before: what is unknown then, and known when the catalogue is current, is not
        // absent.
        let is_current = self.catalogue.is_current();
        look().map_err(|refusal| refusal.unless_current(is_current))
    }

    /// The sender of a request with these headers.
    pub(crate) fn caller(&self, headers: &HeaderMap) -> Caller {
        let is_current = self.catalogue.is_current();
        match head::bearer(headers) {
            Ok(token) if self.catalogue.authorize(token).is_some() => {
                Caller::Known(self.holder(token, None).token.max(1))
            }
            _ if !is_current => Caller::Unclear,
            _ => Caller::Stranger,
        }
    }

    /// The token of a metadata request, and the database that it opens. Held for a time while that
    /// is not known: `Deno.openKv` fails at the first answer that is not a success.
    pub(super) async fn opened<'a>(
        &self,
        target: Target<'_>,
        parts: &'a Parts,
    ) -> Result<(&'a str, DatabaseId), Refusal> {
        let until = Instant::now() + self.options.hearing_timeout;
        let mut held = None;
        loop {
            match self.looked_up(|| self.open(target, parts)) {
                Err(Refusal::NotCurrent)
                    if Instant::now() < until && !self.exchanges.is_closed() => {}
                opened => return opened,
            }
            if held.is_none() {
                let holder = self.holder(head::bearer(&parts.headers)?, None);
                held = Some(self.held.take(holder, 1).ok_or(Refusal::NotCurrent)?);
            }
            tokio::time::sleep(HOLD_PAUSE).await;
        }
    }

    fn open<'a>(
        &self,
        target: Target<'_>,
        parts: &'a Parts,
    ) -> Result<(&'a str, DatabaseId), Refusal> {
        let (token, grant) = self.bearer(parts)?;
        let database = match target {
            Target::Default => {
                Ok(self.catalogue.default_database().ok_or(Refusal::NoDefaultDatabase)?)
            }
            Target::Id(id) => Ok(id),
            Target::Name(name) => self.catalogue.by_name(name).ok_or(Refusal::NoSuchDatabase),
        };
        // A token for some databases does not learn which others exist.
        let database = match database {
            Ok(database) if !grant.allows(database) => Err(Refusal::OtherDatabase),
            Err(_) if !grant.allows_all() => Err(Refusal::OtherDatabase),
            Ok(database) if self.catalogue.shard(database).is_none() => {
                Err(Refusal::NoSuchDatabase)
            }
            other => other,
        }?;
        Ok((token, database))
    }

    /// Why a request with these headers was refused with 401.
    pub(super) fn failed_authentication(
        &self,
        headers: &HeaderMap,
        refusal: &Refusal,
    ) -> FailedAuthentication {
        let Ok(token) = head::bearer(headers) else {
            let is_there = headers.contains_key(AUTHORIZATION);
            let reason = if is_there { Reason::Malformed } else { Reason::Missing };
            return FailedAuthentication { reason, fingerprint: None };
        };
        let reason = match (refusal, self.catalogue.denial(token)) {
            (Refusal::OtherDatabase, _) => Reason::Database,
            (_, Denial::Unknown) => Reason::Unknown,
            (_, Denial::Expired) => Reason::Expired,
            (_, Denial::Revoked) => Reason::Revoked,
        };
        FailedAuthentication { reason, fingerprint: Some(Fingerprint::of(digest(token))) }
    }

    /// The token of a request, and the rights that it grants.
    fn bearer<'a>(&self, parts: &'a Parts) -> Result<(&'a str, Grant), Refusal> {
        let token = head::bearer(&parts.headers)?;
        let grant = self.catalogue.authorize(token).ok_or(Refusal::UnknownToken)?;
        Ok((token, grant))
    }

    /// The token, the database and the shard of a request of the data path, if the token may use
    /// the database and has the rights that `route` needs by itself.
    pub(super) fn authorize<'a>(
        &self,
        parts: &'a Parts,
        route: Route<'_>,
    ) -> Result<Authorized<'a>, Refusal> {
        let authorized = self.looked_up(|| self.on_data_path(parts))?;
        Needed::of(route).map_or(Ok(()), |needed| needed.check(&authorized.grant))?;
        audit::of(parts).admit()?;
        Ok(authorized)
    }

    pub(super) fn on_data_path<'a>(&self, parts: &'a Parts) -> Result<Authorized<'a>, Refusal> {
        let (token, grant) = self.bearer(parts)?;
        let database = head::database_id(&parts.headers)?;
        // Checked before the database is looked up: a token for some databases says nothing about
        // others.
        if !grant.allows(database) {
            return Err(Refusal::OtherDatabase);
        }
        let shard = self.catalogue.shard(database).ok_or(Refusal::UnknownDatabase)?;
        Ok(Authorized { token, grant, database, shard })
    }
}
