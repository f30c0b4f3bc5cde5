//! One request from its head to its answer: authorization, shares of what the gateway has,
//! validation, the database. No sockets here; see [`serve`](crate::serve).

mod changes;
mod lookup;
mod queues;
mod quotas;

use self::lookup::Authorized;
use self::quotas::{CountedBody, Slot, metered};
use std::hash::{BuildHasher, RandomState};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Instant;

use bytes::Bytes;
use chrono::Utc;
use http_body_util::BodyExt;
use hyper::body::Body;
use hyper::header::EXPECT;
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode, Version};
use meridian_types::{Consistency, Permission, ShardId, WriteOutcome};
use prost::Message;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::answer::{self, Answer, AnswerBody};
use crate::audit::{self, Asked, Audited, Noted};
use crate::database::{Database, Read, Unavailable, Watch, Write, WriteFailure};
use crate::forwarded::Way;
use crate::metadata::{self, Base, Exchange};
use crate::options::Options;
use crate::order::{self, Place};
use crate::refusal::{Overload, Refusal};
use crate::request_id::{new_request_id, request_id_of};
use crate::room::Room;
use crate::route::{Route, Target};
use crate::shares::{Holder, Share, Shares};
use crate::stream_access::StreamAccess;
use crate::telemetry::Telemetry;
use crate::unabandoned::Unabandoned;
use crate::usage::Opened;
use crate::watch_stream::{Counted, WatchStream};
use crate::watched_value::{self, PING};
use crate::{Catalogue, body, head, rights, validation};

/// The outcome of a write is unknown, so there is no answer to give: the server drops the
/// connection (HTTP/1.1) or resets the stream (HTTP/2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the outcome of a write is unknown, so that it has no answer")]
pub struct Unanswered;

/// The number of metadata requests in progress at a time.
const MAX_EXCHANGES: u64 = 512;
/// The number of metadata requests that are held while the cluster is not known.
const MAX_HELD: u64 = 512;
/// The number of listeners of queues at a time.
const MAX_LISTENERS: u64 = 10_000;
/// As much of the bytes of answers, and beside them, is for changes that feeds have asked for. It
/// has room for the largest transaction also in the smallest process.
const ASKED_CHANGES_PART: u64 = 16;
/// The largest body of a metadata request: an object with a list of versions.
const MAX_EXCHANGE_BYTES: usize = 4096;

/// KV Connect over a [`Database`]: requests to answers, without sockets. See
/// [`serve`](crate::serve).
pub struct Gateway<D, C> {
    database: Arc<D>,
    catalogue: Arc<C>,
    options: Options,
    telemetry: Telemetry,
    /// Requests in progress. A write keeps its share until the database has finished it, even after
    /// its client has left.
    requests: Shares,
    /// Metadata requests in progress, counted apart so that operations cannot crowd them out: a
    /// client needs an answer before it can open its database.
    exchanges: Shares,
    /// Metadata requests that wait until the cluster is known.
    held: Shares,
    /// Bytes of the bodies of operations.
    bodies: Shares,
    /// Bytes of answers that clients have not taken yet.
    answers: Shares,
    /// Bytes of changes that feeds which catch up have asked for, until they are here. Beside the
    /// answers: feeds hold it while they wait for nodes.
    asked_changes: Shares,
    /// Open watches, which may last for as long as their clients do.
    watches: Shares,
    /// Listeners of queues that stream or poll.
    listeners: Shares,
    /// Cancelled when the server stops: polls of queues end then.
    stopping: CancellationToken,
    /// Open change feeds, which last as long.
    feeds: Shares,
    /// Tokens are told apart by a hash with a random key, so that a client cannot choose a token
    /// that collides with another.
    holders: RandomState,
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
        Self {
            database,
            catalogue,
            telemetry: Telemetry::new(),
            requests: Shares::new(options.max_concurrent_requests.into()),
            exchanges: Shares::new(MAX_EXCHANGES),
            held: Shares::new(MAX_HELD),
            bodies: Shares::new(options.max_bodies_bytes),
            answers: Shares::new(options.max_answers_bytes),
            asked_changes: Shares::new(options.max_answers_bytes / ASKED_CHANGES_PART),
            watches: Shares::new(options.max_watches.into()),
            listeners: Shares::new(MAX_LISTENERS),
            stopping: CancellationToken::new(),
            feeds: Shares::new(options.max_change_feeds.into()),
            holders: RandomState::new(),
            options,
        }
    }

    pub(crate) fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    pub fn options(&self) -> &Options {
        &self.options
    }

    /// Answers one request.
    ///
    /// May be dropped at any await, as happens when its client leaves: a read then ends, and a
    /// write that was handed to the database runs to its end.
    pub async fn handle<B>(&self, request: Request<B>) -> Result<Answer, Unanswered>
    where
        B: Body<Data = Bytes>,
    {
        let start = Instant::now();
        let (mut parts, body) = request.into_parts();
        let route = match parts.method {
            Method::POST => Route::of(parts.uri.path()),
            Method::GET => Route::of_get(parts.uri.path()),
            _ => None,
        };
        let address = parts.extensions.get().map(|way: &Way| way.address);
        let asked = Asked { route, headers: &parts.headers, address, began: start };
        let audited = Audited::begin(self.options.audit.as_ref(), asked, &*self.catalogue);
        if let Some(entry) = audited.entry() {
            parts.extensions.insert(Arc::clone(entry));
        }
        let slot = Slot::default();
        parts.extensions.insert(Arc::clone(&slot));
        let body = pin!(body);
        let mut body = CountedBody::new(body, slot);
        let answer = match self.route(route, &parts, &mut body).await {
            Ok(mut answer) => {
                if let Some(metered) = metered(&parts) {
                    answer.extensions_mut().insert(metered.clone());
                }
                Ok(audited.answered(answer))
            }
            Err(Failure::Refused(refusal)) => {
                let failed = (refusal.status() == StatusCode::UNAUTHORIZED)
                    .then(|| self.failed_authentication(&parts.headers, &refusal));
                audited.refused(&refusal, failed);
                audit::over(&mut parts.extensions);
                // Over HTTP/2 a refused stream ends by itself. A client that sent `Expect:
                // 100-continue` has sent nothing of its body yet.
                let sends = parts.version < Version::HTTP_2 && !parts.headers.contains_key(EXPECT);
                if sends && refusal.hears_out() {
                    body.is_of_a_refused_request();
                    body::discard(body, self.options.max_body_bytes).await;
                }
                let mut answer = Answer::from(refusal);
                if let Some(failed) = failed {
                    self.telemetry.unauthorized(failed.reason);
                    answer.extensions_mut().insert(failed);
                }
                Ok(answer)
            }
            Err(Failure::Unanswered) => {
                audited.unanswered();
                Err(Unanswered)
            }
        };
        self.telemetry.record(route, answer.as_ref().ok().map(|answer| answer.status()), start);
        answer
    }

    /// Ends polls of queues, which would wait for longer than a server that stops.
    pub(crate) fn end_polls(&self) {
        self.stopping.cancel();
    }

    /// Returns when no request is in progress, including writes whose clients have left. From the
    /// call on, new requests are refused with 503.
    pub async fn drained(&self) {
        self.exchanges.close().await;
        self.requests.close().await;
    }

    async fn route<B>(
        &self,
        route: Option<Route<'_>>,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let route = route.ok_or(Refusal::UnknownPath)?;
        // The rarer ones on the heap: the future of a read or write is as large as the largest here.
        match route {
            Route::SnapshotRead(consistency) => self.read(consistency, parts, body).await,
            Route::AtomicWrite => self.write(parts, body).await,
            Route::Metadata(target) => Box::pin(self.metadata(target, parts, body)).await,
            Route::Watch(consistency) => Box::pin(self.watch(consistency, parts, body)).await,
            Route::Queue(route) => Box::pin(self.queue(route, parts, body)).await,
            Route::Changes => Box::pin(self.changes(parts)).await,
            Route::File(file) => Ok(file.answer()),
        }
    }

    async fn metadata<B>(
        &self,
        target: Target<'_>,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let (token, database) = self.opened(target, parts).await?;
        let _exchange = self.share(Overload::Metadata, self.holder(token, None), 1)?;
        let consistency = head::consistency(&parts.uri)?;
        audit::of(parts).opened(database, consistency, &*self.catalogue);
        audit::of(parts).admit()?;
        let max_bytes = self.options.max_body_bytes.min(MAX_EXCHANGE_BYTES);
        let body = body::collect_small(body, max_bytes, self.options.body_timeout).await?;
        audit::of(parts).body(&body);
        let own_url;
        let expires_at = metadata::expiry(Utc::now(), self.options.token_lifetime);
        let path = parts.uri.path();
        let base = match &self.options.public_url {
            Some(url) => Base::Public(url.as_str()),
            None => {
                own_url = head::base_url(&parts.uri, &parts.headers, parts.extensions.get());
                Base::Asked { path, url: own_url.as_deref() }
            }
        };
        let exchange = Exchange { database, token, consistency, base, expires_at };
        Ok(answer::json(metadata::exchange(&body, &exchange)?))
    }

    async fn read<B>(
        &self,
        consistency: Consistency,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let authorized = self.authorize(parts, Route::SnapshotRead(consistency))?;
        let Authorized { token, ref grant, database, shard } = authorized;
        let holder = self.holder(token, Some(shard));
        let _request = self.begin(&authorized, parts).await?;
        let max_bytes = self.options.max_body_bytes.min(validation::MAX_READ_BYTES);
        let (body, _share) = self.body(holder, body, max_bytes).await?;
        audit::of(parts).body(&body);
        let message = validation::decode_read(body)?;
        let ranges = validation::read(message).map_err(Refusal::from)?;
        audit::of(parts).read(&ranges)?;
        rights::check_ranges(grant, &ranges)?;
        let output = self
            .database
            .read(Read { database, consistency, ranges })
            .await
            .map_err(Refusal::from)?;
        audit::of(parts).found(&output);
        let output = answer::read(output, consistency);
        // Taken before the result is encoded: a refused answer allocates nothing.
        let share =
            self.share(Overload::Answers, self.holder(token, None), output.encoded_len() as u64)?;
        let answer = answer::protobuf(&output);
        drop(output);
        // The share is given back when the last byte has left, or the connection is gone.
        Ok(answer.map(|body| body.map_whole(|bytes| share.held_with(bytes))))
    }

    /// Answers when the first news can be had: what cannot be served is refused before the stream
    /// begins. Until then the watch is a request in progress like others.
    async fn watch<B>(
        &self,
        consistency: Consistency,
        parts: &Parts,
        body: B,
    ) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let authorized = self.authorize(parts, Route::Watch(consistency))?;
        let Authorized { token, ref grant, database, shard } = authorized;
        let holder = self.holder(token, Some(shard));
        let _request = self.begin(&authorized, parts).await?;
        let open = self.share(Overload::Watches, self.holder(token, None), 1)?;
        let open = self.count_open(parts, Opened::Watch, open)?;
        let max_bytes = self.options.max_body_bytes.min(validation::MAX_WATCH_BYTES);
        let (body, share) = self.body(holder, body, max_bytes).await?;
        audit::of(parts).body(&body);
        let message = validation::decode_watch(body)?;
        let keys = validation::watch(message)?;
        audit::of(parts).watch(&keys)?;
        rights::check_watched(grant, &keys)?;
        drop(share);
        if keys.is_empty() {
            let mut pieces = watched_value::message(&Vec::new());
            pieces.insert(0, PING);
            return Ok(answer::watch(AnswerBody::Whole(pieces.concat().into())));
        }
        let room = Room::new(self.answers.clone(), self.holder(token, None));
        let of_keys = room.take(keys.iter().map(|key| key.len() as u64).sum());
        let of_keys = of_keys.map_err(|_| self.overloaded(Overload::Answers))?;
        let watch = Watch { database, consistency, keys, room: room.clone() };
        let watching = self.database.watch(watch).await;
        let watching = watching.map_err(Refusal::from)?;
        let access = self.stream_access(&authorized, Permission::Watch);
        let counted = Counted { room, _of_keys: of_keys, _open: open };
        let stream = WatchStream::new(watching, access, counted, self.telemetry.open_watches());
        Ok(answer::watch(AnswerBody::Frames(stream.boxed_unsync())))
    }

    async fn write<B>(&self, parts: &Parts, body: B) -> Result<Answer, Failure>
    where
        B: Body<Data = Bytes>,
    {
        let authorized = self.authorize(parts, Route::AtomicWrite)?;
        let Authorized { token, ref grant, database, shard } = authorized;
        let holder = self.holder(token, Some(shard));
        let request = self.begin(&authorized, parts).await?;
        let place = parts.extensions.get::<Arc<Place>>();
        let body = self.body(holder, body, self.options.max_body_bytes);
        let (body, share) = match place {
            Some(place) => place.complete(body).await,
            None => body.await,
        }?;
        audit::of(parts).body(&body);
        let message = validation::decode_write(body.clone())?;
        let valid = validation::write(message, self.catalogue.v8_format(database), now_ms());
        let (transaction, reserved) = valid.map_err(Refusal::from)?;
        audit::of(parts).write(&transaction)?;
        rights::check_write(grant, &transaction)?;
        let may_come_again = reserved.has_request_id;
        let request_id =
            if may_come_again { request_id_of(database, &body) } else { new_request_id() };
        drop(body);
        let write = Write { database, request_id, may_come_again, transaction };
        match self.carry_out(write, place, (request, share), audit::of(parts)).await? {
            WriteOutcome::Committed(versionstamp) => Ok(answer::committed(versionstamp)),
            WriteOutcome::CheckFailed(failed) => Ok(answer::check_failed(failed)),
            WriteOutcome::Rejected(text) => Err(Refusal::Rejected(text).into()),
        }
    }

    /// A write runs as [`Unabandoned`]: a client that leaves, or resets its stream, drops this
    /// future, and dropping a write halfway would leave its outcome unknown and its retries inside
    /// the cluster undone. `shares`: of the request and its body, until the database has finished it.
    async fn carry_out(
        &self,
        write: Write,
        place: Option<&Arc<Place>>,
        shares: (Share, Share),
        noted: Noted<'_>,
    ) -> Result<WriteOutcome, Failure> {
        let Write { request_id, database, .. } = write;
        let (service, entry) = (Arc::clone(&self.database), noted.entry());
        let mut running = Box::pin(async move {
            let outcome = service.write(write).await;
            audit::written(entry, &outcome);
            drop(shares);
            outcome
        });
        // Runs the write up to its first wait, in its turn among the writes of its connection.
        let begun = order::begin(&mut running).await;
        if let Some(place) = place {
            place.leave();
        }
        let outcome = match begun {
            Poll::Ready(outcome) => outcome,
            Poll::Pending => Unabandoned::new(running).await,
        };
        match outcome {
            Ok(outcome) => Ok(outcome),
            Err(WriteFailure::NotCommitted(unavailable)) => Err(Refusal::from(unavailable).into()),
            Err(WriteFailure::Unknown(reason)) => {
                warn!(%request_id, %database, reason, "write left unanswered: its outcome is unknown");
                Err(Failure::Unanswered)
            }
        }
    }

    fn stream_access(&self, authorized: &Authorized<'_>, needs: Permission) -> StreamAccess<C> {
        let Authorized { token, grant, database, .. } = authorized;
        let (token, grant) = ((*token).into(), grant.clone());
        StreamAccess {
            catalogue: Arc::clone(&self.catalogue),
            token,
            database: *database,
            needs,
            grant,
        }
    }

    fn holder(&self, token: &str, shard: Option<ShardId>) -> Holder {
        Holder { token: self.holders.hash_one(token), shard }
    }

    /// Counts a request as one in progress, and waits for its turn under quotas.
    async fn begin(&self, authorized: &Authorized<'_>, parts: &Parts) -> Result<Share, Refusal> {
        let share = self.in_progress(authorized)?;
        self.take_turn(authorized, parts).await?;
        Ok(share)
    }

    /// A share of the requests that may be in progress.
    fn in_progress(&self, authorized: &Authorized<'_>) -> Result<Share, Refusal> {
        let holder = self.holder(authorized.token, Some(authorized.shard));
        self.share(Overload::Requests, holder, 1)
    }

    async fn body<B>(
        &self,
        holder: Holder,
        body: B,
        max_bytes: usize,
    ) -> Result<(Bytes, Share), Refusal>
    where
        B: Body<Data = Bytes>,
    {
        let share = self.share(Overload::Bodies, holder, 0)?;
        let collected = body::collect(body, share, max_bytes, self.options.body_timeout).await;
        collected.inspect_err(|refusal| {
            if let Refusal::Overloaded { what, .. } = refusal {
                self.telemetry.overloaded(*what);
            }
        })
    }

    /// Why a share of `what` was not to be had.
    /// A share of what all requests have together, or why there is none.
    fn share(&self, what: Overload, holder: Holder, amount: u64) -> Result<Share, Refusal> {
        self.pool(what).take(holder, amount).ok_or_else(|| self.overloaded(what))
    }

    fn pool(&self, what: Overload) -> &Shares {
        match what {
            Overload::Requests => &self.requests,
            Overload::Metadata => &self.exchanges,
            Overload::Bodies => &self.bodies,
            Overload::Answers => &self.answers,
            Overload::Watches => &self.watches,
            Overload::Listeners => &self.listeners,
            Overload::ChangeFeeds => &self.feeds,
        }
    }

    fn overloaded(&self, what: Overload) -> Refusal {
        let shares = self.pool(what);
        if shares.is_closed() {
            return Refusal::Stopping;
        }
        self.telemetry.overloaded(what);
        Refusal::Overloaded { what, limit: shares.total() }
    }
}

/// The wall clock, in milliseconds since the Unix epoch.
fn now_ms() -> u64 {
    u64::try_from(Utc::now().timestamp_millis()).unwrap_or(0)
}
