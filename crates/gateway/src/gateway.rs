use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use chrono::Utc;
use hyper::body::Body;
use hyper::http::request::Parts;
use hyper::{Method, Request};
use meridian_proto::kv_connect as pb;
use meridian_types::{Consistency, DatabaseId, RequestId, WriteOutcome};
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tracing::warn;

use crate::answer::{self, Answer};
use crate::database::{Database, Read, Unavailable, Write, WriteFailure};
use crate::metadata::{self, Exchange};
use crate::options::{Options, PublicUrl};
use crate::refusal::Refusal;
use crate::route::{Route, Target};
use crate::telemetry::Telemetry;
use crate::{Catalogue, body, head, validation};

/// A write whose outcome nobody can tell. There is no answer to give: whoever serves the connection drops
/// it (HTTP/1.1) or resets the stream (HTTP/2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outcome of a write is unknown, so that it has no answer")]
pub struct Unanswered;

/// KV Connect over a [`Database`]: requests to answers, without sockets. See [`serve`](crate::serve).
pub struct Gateway<D, C> {
    database: Arc<D>,
    catalogue: Arc<C>,
    options: Options,
    telemetry: Telemetry,
    /// One permit for each request in progress. A write keeps its own until the database is done with it,
    /// also when its client has left.
    slots: Arc<Semaphore>,
}

/// Why a request has no result.
enum Failure {
    Refused(Refusal),
    Unanswered,
}

impl<R: Into<Refusal>> From<R> for Failure {
    fn from(refusal: R) -> Self {
        Self::Refused(refusal.into())
    }
}

impl From<Unavailable> for Refusal {
    fn from(unavailable: Unavailable) -> Self {
        Self::Unavailable(unavailable.reason)
    }
}

impl<D: Database, C: Catalogue> Gateway<D, C> {
    pub fn new(database: Arc<D>, catalogue: Arc<C>, options: Options) -> Self {
        let slots = Arc::new(Semaphore::new(options.max_concurrent_requests as usize));
        Self { database, catalogue, options, telemetry: Telemetry::new(), slots }
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Answers one request.
    ///
    /// May be dropped at any await, as happens when its client leaves: a read then ends, and a write that
    /// was handed to the database goes on to its end.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Answer, Unanswered>
    where
        B: Body<Data = Bytes>,
    {
        let start = Instant::now();
        let (parts, body) = request.into_parts();
        let route = (parts.method == Method::POST).then(|| Route::of(parts.uri.path())).flatten();
        let answer = match self.route(route, &parts, body).await {
            Ok(answer) => Ok(answer),
            Err(Failure::Refused(refusal)) => Ok(refusal.into()),
            Err(Failure::Unanswered) => Err(Unanswered),
        };
        self.telemetry.record(route, answer.as_ref().ok().map(|answer| answer.status()), start);
        answer
    }

    /// Returns when no request is in progress, including writes whose clients have left. Nothing is
    /// accepted after it: requests get 503.
    pub async fn drained(&self) {
        // An error means that the semaphore is closed, which it never is.
        if let Ok(all) = self.slots.acquire_many(self.options.max_concurrent_requests).await {
            all.forget();
        }
    }

    async fn route<B>(&self, route: Option<Route<'_>>, parts: &Parts, body: B) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let route = route.ok_or(Refusal::UnknownPath)?;
        let slot = Arc::clone(&self.slots).try_acquire_owned().map_err(|_| Refusal::Overloaded)?;
        match route {
            Route::Metadata(target) => self.metadata(target, parts, body).await,
            Route::SnapshotRead(consistency) => self.read(consistency, parts, body).await,
            Route::AtomicWrite => self.write(slot, parts, body).await,
        }
    }

    async fn metadata<B>(&self, target: Target<'_>, parts: &Parts, body: B) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let token = head::bearer(&parts.headers)?;
        let grant = self.catalogue.authorize(token).ok_or(Refusal::UnknownToken)?;
        let database = match target {
            Target::Default => self.catalogue.default_database().ok_or(Refusal::NoDefaultDatabase)?,
            Target::Id(id) => id,
            Target::Name(name) => self.catalogue.by_name(name).ok_or(Refusal::NoSuchDatabase)?,
        };
        if !grant.allows(database) {
            return Err(Refusal::UnknownToken.into());
        }
        if !self.catalogue.contains(database) {
            return Err(Refusal::NoSuchDatabase.into());
        }
        let consistency = head::consistency(&parts.uri)?;
        let body = self.body(body).await?;
        let base_url = match &self.options.public_url {
            Some(url) => Some(PublicUrl::as_str(url).to_owned()),
            None => head::base_url(&parts.uri, &parts.headers),
        };
        let expires_at = metadata::expiry(Utc::now(), self.options.token_lifetime);
        let exchange = Exchange { database, token, consistency, base_url: base_url.as_deref(), expires_at };
        Ok(answer::json(metadata::exchange(&body, &exchange)?))
    }

    async fn read<B>(&self, consistency: Consistency, parts: &Parts, body: B) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let database = self.authorize(parts, false)?;
        let message = pb::SnapshotRead::decode(self.body(body).await?).map_err(Refusal::from)?;
        let ranges = validation::read(message).map_err(Refusal::from)?;
        let output = self.database.read(Read { database, consistency, ranges }).await.map_err(Refusal::from)?;
        Ok(answer::read(output, consistency))
    }

    /// The write runs in a task of its own: a client that leaves, or resets its stream, drops this future,
    /// and dropping a write halfway would leave its outcome to chance and the retry with the same request
    /// id inside the cluster undone.
    async fn write<B>(&self, slot: OwnedSemaphorePermit, parts: &Parts, body: B) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let database = self.authorize(parts, true)?;
        let message = pb::AtomicWrite::decode(self.body(body).await?).map_err(Refusal::from)?;
        let transaction = validation::write(message).map_err(Refusal::from)?;
        let request_id = RequestId::generate();
        let write = Write { database, request_id, transaction };
        let service = Arc::clone(&self.database);
        let running = tokio::spawn(async move {
            let outcome = service.write(write).await;
            drop(slot);
            outcome
        });
        match running.await {
            Ok(Ok(WriteOutcome::Committed(versionstamp))) => Ok(answer::committed(versionstamp)),
            Ok(Ok(WriteOutcome::CheckFailed(failed))) => Ok(answer::check_failed(failed)),
            Ok(Ok(WriteOutcome::Rejected(text))) => Err(Refusal::Rejected(text).into()),
            Ok(Err(WriteFailure::NotCommitted(unavailable))) => Err(Refusal::from(unavailable).into()),
            Ok(Err(WriteFailure::Unknown(reason))) => {
                warn!(%request_id, %database, reason, "write left unanswered: its outcome is unknown");
                Err(Failure::Unanswered)
            }
            // The task panicked or its runtime ends: how far it got is not known.
            Err(error) => {
                warn!(%request_id, %database, %error, "write left unanswered: its task ended early");
                Err(Failure::Unanswered)
            }
        }
    }

    /// The database of a request of the data path, if its token may use it so.
    fn authorize(&self, parts: &Parts, write: bool) -> Result<DatabaseId, Refusal> {
        let token = head::bearer(&parts.headers)?;
        let grant = self.catalogue.authorize(token).ok_or(Refusal::UnknownToken)?;
        let database = head::database_id(&parts.headers)?;
        // Before `contains`: a token for some databases says nothing about others.
        if !grant.allows(database) {
            return Err(Refusal::UnknownToken);
        }
        if !self.catalogue.contains(database) {
            return Err(Refusal::DatabaseId);
        }
        if write && !grant.may_write() {
            return Err(Refusal::ReadOnlyToken);
        }
        Ok(database)
    }

    async fn body<B>(&self, body: B) -> Result<Bytes, Refusal>
    where
        B: Body<Data = Bytes>,
    {
        body::collect(body, self.options.max_body_bytes, self.options.body_timeout).await
    }
}
