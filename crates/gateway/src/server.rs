//! The server's sockets: accepting, serving, closing and draining connections.
//!
//! A connection is served by a task of its own. `admission` decides which connections stay when
//! there are too many, `waiting` holds the sockets for which there is no room yet, `activity`
//! decides when a connection is idle or its client too slow, `handshakes` adds TLS, and `strangers`
//! slows requests without a valid token.

mod activity;
mod admission;
mod handshakes;
mod sending;
mod strangers;
mod waiting;

use std::future::Future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use meridian_net::{Listener, Origin, Stream, http};
use tokio::sync::{Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::activity::{Activity, Busy, CLOSE_GRACE, NotBegun, StreamRoom};
use self::admission::{Admission, Ticket};
use self::handshakes::Handshakes;
use self::sending::Sending;
use self::strangers::Strangers;
use self::waiting::Waiting;
use crate::answer::{Answer, AnswerBody, ToStranger};
use crate::failed_authentication::FailedAuthentication;
use crate::forwarded::Way;
use crate::order::Arrivals;
use crate::refusal::Refusal;
use crate::route::Route;
use crate::shares::{Holder, Shares};
use crate::usage::{Metered, MeteredConnection};
use crate::{Catalogue, Database, Gateway, Options, Unanswered};

/// The time for an evicted connection to say goodbye; after it, another connection may be evicted.
const EVICTION_GRACE: Duration = Duration::from_millis(50);
/// The search for connections to evict goes through all of them: a flood of connections makes it
/// take no more than a tenth of the time.
const EVICTION_TAKES_ONE_IN: u32 = 10;

/// The requests that a connection without a valid token may have, answered ones included that its
/// client has not taken. Each is a kilobyte or so, of what [`Options::CONNECTION_BYTES`] has for a
/// connection's task.
const STRANGER_REQUESTS: usize = 16;
/// And those that all such connections may have beyond that: a proxy sends those of many clients.
const MORE_STRANGER_REQUESTS: usize = 4096;
/// The requests over HTTP/2 of all clients with tokens, as far: a kilobyte or so each. None gets all.
const MAX_STREAMS: u64 = 32_768;

/// Serves KV Connect on `listener` until `shutdown` is ready: HTTP/1.1 and HTTP/2, told apart by the
/// first bytes of each connection, with TLS if [`Options::tls`] has it. Then lets requests in progress end,
/// writes whose clients have left among them, for [`Options::drain_timeout`], and returns.
///
/// Dropping the future closes every connection at once; writes already handed to the database go
/// on.
pub async fn serve<D, C>(
    listener: Listener,
    database: Arc<D>,
    catalogue: Arc<C>,
    options: Options,
    shutdown: impl Future<Output = ()>,
) where
    D: Database,
    C: Catalogue,
{
    let gateway = Arc::new(Gateway::new(database, catalogue, options));
    let options = gateway.options();
    let address = listener.local_address().map(|address| address.to_string()).unwrap_or_default();
    info!(
        address,
        region = options.region,
        max_connections = options.max_connections,
        https = options.tls.is_some(),
        "gateway serves"
    );
    let (stop, stopping) = watch::channel(());
    let mut connections = Connections::new(Arc::clone(&gateway), stopping);
    connections.accept(listener, shutdown).await;
    drop(stop); // tells every connection
    gateway.end_polls();
    info!(address, connections = connections.open.len(), "gateway drains");
    let drained = timeout(options.drain_timeout, async {
        connections.ended().await;
        gateway.drained().await;
    });
    if drained.await.is_err() {
        let connections = connections.open.len();
        warn!(address, connections, "gateway stops with requests in progress");
    }
    connections.open.shutdown().await;
    if let Some(audit) = &gateway.options().audit {
        audit.flush().await;
    }
}

/// The open connections of a server, and the sockets that wait for room.
struct Connections<D, C> {
    shared: Arc<Shared<Gateway<D, C>>>,
    /// Given to each connection; closed when the server stops.
    stopping: watch::Receiver<()>,
    admission: Admission,
    /// The task of each connection, which returns its ticket.
    open: JoinSet<Ticket>,
    /// With their peers' addresses.
    waiting: Waiting<(Stream, IpAddr)>,
    /// When to evict connections for the sockets that wait, and the earliest time for it.
    evict_at: Instant,
    evict_not_before: Instant,
}

impl<D: Database, C: Catalogue> Connections<D, C> {
    fn new(gateway: Arc<Gateway<D, C>>, stopping: watch::Receiver<()>) -> Self {
        let waiting = Waiting::new(gateway.options().first_request_timeout);
        let http = http::server(gateway.options().max_http2_streams());
        let now = Instant::now();
        Self {
            shared: Arc::new(Shared::new(http, gateway)),
            stopping,
            admission: Admission::default(),
            open: JoinSet::new(),
            waiting,
            evict_at: now,
            evict_not_before: now,
        }
    }

    /// Accepts and serves until `shutdown` is ready. Sockets that still wait then are closed.
    async fn accept(&mut self, mut listener: Listener, shutdown: impl Future<Output = ()>) {
        let mut shutdown = pin!(shutdown);
        loop {
            self.serve_waiting();
            self.make_room();
            tokio::select! {
                () = &mut shutdown => break,
                Some(result) = self.open.join_next() => self.left(result),
                (stream, peer) = listener.accept() => {
                    let newcomer = (stream, peer.ip());
                    self.waiting.add(Origin::of(peer.ip()), newcomer, Instant::now());
                    self.evict_at = self.evict_at.min(self.evict_not_before);
                }
                () = sleep_until(self.evict_at), if !self.waiting.is_empty() => {}
            }
        }
        self.waiting = Waiting::new(Duration::ZERO);
    }

    /// Serves the sockets that wait, as far as there is room.
    fn serve_waiting(&mut self) {
        while self.open.len() < self.shared.gateway.options().max_connections
            && let Some((origin, (stream, peer))) =
                self.waiting.next(|origin| self.admission.open(origin))
        {
            let (activity, evicted) =
                (Arc::new(Activity::new(Instant::now())), CancellationToken::new());
            let ticket = self.admission.admit(origin, Arc::clone(&activity), evicted.clone());
            let shared = Arc::clone(&self.shared);
            let metered = Arc::default();
            let connection = Connection { shared, peer, origin, activity, evicted, metered };
            let stopping = self.stopping.clone();
            self.open.spawn(async move {
                connection.serve(stream, stopping).await;
                ticket
            });
        }
    }

    /// Evicts connections for the sockets that wait, when it is time to.
    fn make_room(&mut self) {
        let now = Instant::now();
        if self.evict_at <= now && !self.waiting.is_empty() {
            let evicted = self.admission.make_room(&self.waiting.newcomers(now));
            self.shared.gateway.telemetry().evicted(evicted);
            self.evict_at = now + EVICTION_GRACE;
            self.evict_not_before = now + now.elapsed() * EVICTION_TAKES_ONE_IN;
        }
    }

    /// Waits until all connections have ended.
    async fn ended(&mut self) {
        while let Some(result) = self.open.join_next().await {
            self.left(result);
        }
    }

    fn left(&mut self, ended: Result<Ticket, JoinError>) {
        match ended {
            Ok(ticket) => self.admission.left(ticket),
            Err(error) => warn!(%error, "a connection's task ended early"),
        }
    }
}

/// The parts of a server that its connections share.
struct Shared<G> {
    http: auto::Builder<TokioExecutor>,
    gateway: Arc<G>,
    /// `None`: connections are plain.
    handshakes: Option<Handshakes>,
    strangers: Strangers,
    /// Of clients with tokens.
    streams: Shares,
    more_of_strangers: Arc<Semaphore>,
}

impl<G: Handle> Shared<G> {
    fn new(http: auto::Builder<TokioExecutor>, gateway: Arc<G>) -> Self {
        let options = gateway.options();
        let tls = options.tls.clone();
        let handshakes = tls.map(|server| Handshakes::new(server, options.handshakes));
        let (strangers, streams) = (Strangers::default(), Shares::new(MAX_STREAMS));
        let more_of_strangers = Arc::new(Semaphore::new(MORE_STRANGER_REQUESTS));
        Self { http, gateway, handshakes, strangers, streams, more_of_strangers }
    }
}

/// The receiver of requests: a [`Gateway`], or in tests a handler with streaming answers.
trait Handle: Send + Sync + 'static {
    fn handle(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Answer, Unanswered>> + Send;

    fn options(&self) -> &Options;

    fn caller(&self, headers: &HeaderMap) -> Caller;
}

/// The sender of a request, by its head.
pub(crate) enum Caller {
    /// It has a valid token, of this hash.
    Known(u64),
    Stranger,
    /// The token may be valid: the cluster was not heard yet.
    Unclear,
}

impl<D: Database, C: Catalogue> Handle for Gateway<D, C> {
    fn handle(
        &self,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Answer, Unanswered>> + Send {
        Gateway::handle(self, request)
    }

    fn options(&self) -> &Options {
        Gateway::options(self)
    }

    fn caller(&self, headers: &HeaderMap) -> Caller {
        Gateway::caller(self, headers)
    }
}

struct Connection<G> {
    shared: Arc<Shared<G>>,
    peer: IpAddr,
    origin: Origin,
    activity: Arc<Activity>,
    evicted: CancellationToken,
    metered: Arc<MeteredConnection>,
}

impl<G: Handle> Connection<G> {
    /// Begins on a request. Looks for a token in the head, so that a client with many requests is
    /// known by its first. Over HTTP/2 the request has room until its answer was taken.
    fn begin(&self, request: &Request<Incoming>) -> Result<(Busy, Option<StreamRoom>), NotBegun> {
        let (activity, is_multiplexed) = (&self.activity, request.version() == Version::HTTP_2);
        let caller = activity.holder().map_or_else(
            || {
                let caller = self.shared.gateway.caller(request.headers());
                if let Caller::Known(holder) = caller {
                    activity.carried(holder);
                    if let Some(handshakes) = &self.shared.handshakes {
                        handshakes.was_worth_it(self.origin);
                    }
                }
                caller
            },
            Caller::Known,
        );
        let room = is_multiplexed.then(|| self.room(&caller)).transpose()?;
        Ok((activity.begin(Instant::now())?, room))
    }

    fn room(&self, caller: &Caller) -> Result<StreamRoom, NotBegun> {
        if let Caller::Known(token) = *caller {
            let share = self.shared.streams.take(Holder { token, shard: None }, 1);
            let share = share.ok_or(NotBegun::Untaken)?;
            return Ok(StreamRoom { _share: Some(share), _permit: None });
        }
        if self.activity.requests() < STRANGER_REQUESTS {
            return Ok(StreamRoom::default());
        }
        match Arc::clone(&self.shared.more_of_strangers).try_acquire_owned() {
            Ok(permit) => Ok(StreamRoom { _share: None, _permit: Some(permit) }),
            // Perhaps it has a token that was not heard of yet.
            Err(_) if matches!(caller, Caller::Unclear) => Err(NotBegun::Untaken),
            Err(_) => Err(self.activity.end_overrun()),
        }
    }

    /// Adds TLS, where the server has it. `None`: the connection is over before it carried a
    /// request.
    async fn secured(&self, stream: Stream, stopping: &mut watch::Receiver<()>) -> Option<Stream> {
        let Some(handshakes) = &self.shared.handshakes else { return Some(stream) };
        let trusted = &self.shared.gateway.options().trusted_proxies;
        // A proxy's connections are those of many clients.
        let origin = (!trusted.trusts(self.peer.to_canonical())).then_some(self.origin);
        tokio::select! {
            secured = handshakes.secure(stream, origin) => secured,
            () = self.evicted.cancelled() => None,
            _ = stopping.changed() => None,
        }
    }

    /// Notes in a request its connection, the way that it came by, and its place among the writes of its connection,
    /// where that is asked for. Returns the origin of its client.
    fn note_way(
        &self,
        request: &mut Request<Incoming>,
        direct: Way,
        arrivals: &Arc<Arrivals>,
    ) -> Origin {
        request.extensions_mut().insert(Arc::clone(&self.metered));
        let way = direct.behind(&self.shared.gateway.options().trusted_proxies, request.headers());
        let origin = Origin::of(way.address);
        let (is_http2, route) =
            (request.version() == Version::HTTP_2, Route::of(request.uri().path()));
        let is_ordered = is_http2 && matches!(route, Some(Route::AtomicWrite));
        let tells_way = matches!(route, Some(Route::Metadata(_)))
            || self.shared.gateway.options().audit.is_some();
        // Done here, where requests come in the order of their heads; later each request has a task
        // of its own. Over HTTP/1.1 a request ends before the next begins.
        if is_ordered {
            request.extensions_mut().insert(Arc::new(arrivals.enter()));
        }
        if tells_way {
            request.extensions_mut().insert(way);
        }
        origin
    }

    /// Serves the connection to its end: the client's, an error, idleness, eviction, or the
    /// server's.
    async fn serve(&self, stream: Stream, mut stopping: watch::Receiver<()>) {
        let options = self.shared.gateway.options();
        let Some(stream) = self.secured(stream, &mut stopping).await else { return };
        let direct = Way::direct(self.peer, stream.has_tls());
        let arrivals = Arc::new(Arrivals::default());
        let service = service_fn(|mut request| {
            let origin = self.note_way(&mut request, direct.clone(), &arrivals);
            let (shared, activity) = (Arc::clone(&self.shared), Arc::clone(&self.activity));
            let begun = self.begin(&request);
            // On the heap: the future is large, and hyper and the tasks of HTTP/2 streams move it
            // several times.
            Box::pin(async move {
                let idle_timeout = shared.gateway.options().idle_timeout;
                let send = |mut answer: Answer, busy, room| {
                    let metered = answer.extensions_mut().remove::<Metered>();
                    answer.map(|body| {
                        Sending::new(body, busy, &activity, idle_timeout, room).metered(metered)
                    })
                };
                let (busy, room) = match begun {
                    Ok(begun) => begun,
                    Err(NotBegun::Closing) => return Ok(send(refused(), None, None)),
                    // Its connection ends, or it alone: nothing of it was done.
                    Err(NotBegun::Overrun | NotBegun::Untaken) => return Err(Unanswered),
                };
                let answer = shared.gateway.handle(request).await;
                let stranger = answer.as_ref().ok().and_then(to_stranger);
                if stranger.is_none() {
                    activity.authorized();
                }
                // A whole answer is on its way now; a streaming one is in progress to its end.
                let streams = |answer: &Answer| matches!(answer.body(), AnswerBody::Frames(_));
                let busy = answer.as_ref().is_ok_and(streams).then_some(busy);
                let failed = answer.as_ref().ok().and_then(failed_authentication);
                // Counted as an answer that was not taken, from here on.
                let sent = answer.map(|answer| send(answer, busy, room));
                if let Some(asked) = stranger {
                    shared.strangers.pause(origin, asked, failed).await;
                }
                sent
            })
        });
        let mut served = pin!(self.shared.http.serve_connection(TokioIo::new(stream), service));
        let mut watchdog =
            pin!(self.activity.idle(options.first_request_timeout, options.idle_timeout));
        let grace = tokio::select! {
            biased;
            ended = served.as_mut() => return report(ended),
            () = &mut watchdog => CLOSE_GRACE,
            () = self.evicted.cancelled() => EVICTION_GRACE,
            () = self.activity.overrun() => {
                return debug!(origin = %self.origin, "a stranger had too many requests");
            }
            _ = stopping.changed() => {
                // Requests in progress are answered first; the server's drain timeout bounds that.
                self.activity.end_streams();
                served.as_mut().graceful_shutdown();
                return tokio::select! {
                    biased;
                    ended = served.as_mut() => report(ended),
                    () = self.activity.overrun() => {}
                };
            }
        };
        self.activity.closes(Instant::now());
        served.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            ended = served.as_mut() => report(ended),
            () = self.activity.overrun() => {}
            () = self.activity.may_be_cut(grace) => debug!("idle connection was cut"),
        }
    }
}

fn to_stranger(answer: &Answer) -> Option<ToStranger> {
    answer.extensions().get().copied()
}

fn failed_authentication(answer: &Answer) -> Option<FailedAuthentication> {
    answer.extensions().get().copied()
}

/// The answer to a request that came long after its client was told that the connection closes.
fn refused() -> Answer {
    let text = "This connection takes no more requests. Send the request over another.";
    Refusal::Unavailable(text.to_owned()).into()
}

fn report(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        debug!(error, "connection ended with an error");
    }
}

#[cfg(test)]
mod tests;
