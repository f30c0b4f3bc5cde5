//! Each request counts for its database and its token, and waits or is refused as their quotas say.

use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use hyper::http::request::Parts;
use tokio::time::Instant;

use super::Gateway;
use super::lookup::Authorized;
use crate::Catalogue;
use crate::database::Database;
use crate::refusal::{OverQuota, Refusal};
use crate::shares::Share;
use crate::usage::{Account, Exceeded, Metered, MeteredConnection, Opened, Turn};

/// The accounts that a request counts for, once they are known.
pub(crate) type Slot = Arc<OnceLock<Metered>>;

/// The body of a request, whose bytes count as they come.
pub(super) struct CountedBody<'a, B> {
    body: Pin<&'a mut B>,
    slot: Slot,
    is_refused: bool,
}

impl<'a, B> CountedBody<'a, B> {
    pub(super) fn new(body: Pin<&'a mut B>, slot: Slot) -> Self {
        Self { body, slot, is_refused: false }
    }

    /// The rest counts, and is not charged: a token that is over its quota would otherwise use up that
    /// of its database, for all others.
    pub(super) fn is_of_a_refused_request(&mut self) {
        self.is_refused = true;
    }
}

impl<B: Body<Data = Bytes>> Body for CountedBody<'_, B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = self.get_mut();
        let frame = ready!(this.body.as_mut().poll_frame(context));
        if let (Some(Ok(frame)), Some(metered)) = (&frame, this.slot.get())
            && let Some(data) = frame.data_ref()
        {
            let bytes = data.len() as u64;
            if this.is_refused {
                metered.thrown_away(bytes);
            } else {
                metered.received(bytes, Instant::now());
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// The accounts that the request counts for.
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
        let metered = self.meter(authorized, parts);
        self.count_connection(parts, &metered)?;
        let now = Instant::now();
        let turn = match metered.request(now) {
            Turn::At(turn) => turn,
            Turn::Refused(exceeded) => return Err(self.over_quota(exceeded)),
        };
        if turn > now {
            tokio::time::sleep_until(turn).await;
            // The token may have ended meanwhile.
            self.looked_up(|| self.on_data_path(parts))?;
        }
        Ok(())
    }

    /// Counts a request that has its turn at once, whatever the quotas say.
    pub(super) fn have_turn(&self, authorized: &Authorized<'_>, parts: &Parts) {
        let metered = self.meter(authorized, parts);
        // A connection beyond the quota does not count.
        drop(self.count_connection(parts, &metered));
        metered.count_request(Instant::now());
    }

    fn count_connection(&self, parts: &Parts, metered: &Metered) -> Result<(), Refusal> {
        let connection = parts.extensions.get::<Arc<MeteredConnection>>();
        let carries = connection.map_or(Ok(()), |connection| connection.carries(metered));
        carries.map_err(|exceeded| self.over_quota(exceeded))
    }

    /// The accounts of a request, noted for its body and its answer.
    fn meter(&self, authorized: &Authorized<'_>, parts: &Parts) -> Metered {
        let Authorized { grant, database, .. } = authorized;
        let of_database = (Account::Database(*database), self.catalogue.quotas(*database));
        let of_token = (grant.account, grant.quotas);
        let metered = Metered::new(&self.options.usage, [of_database, of_token]);
        let slot = parts.extensions.get::<Slot>();
        // Set also for a request that is refused: the rest of its body counts. A request is authorized
        // again where its rights may have ended meanwhile.
        slot.inspect(|slot| drop(slot.set(metered.clone())));
        metered
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
        let Some(metered) = metered(parts) else { return Ok(share) };
        let open = metered.open(what).map_err(|exceeded| self.over_quota(exceeded))?;
        Ok(share.of_open(open))
    }

    fn over_quota(&self, exceeded: Exceeded) -> Refusal {
        self.telemetry.over_quota(exceeded.quota);
        let database = match exceeded.of {
            Account::Database(id) => self.catalogue.name(id),
            Account::Token(_) | Account::ConfiguredTokens => None,
        };
        Refusal::OverQuota(OverQuota { exceeded, database })
    }
}
