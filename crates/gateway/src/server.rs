//! The server's sockets: accepting, serving, closing and draining connections.
//!
//! A connection is served by a task of its own. `admission` decides which connections stay when
//! there are too many, `waiting` holds the sockets for which there is no room yet, `activity`
//! decides when a connection is idle or its client too slow, and `strangers` slows requests without
//! a valid token.

mod activity;
mod admission;
mod sending;
mod strangers;
mod waiting;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{HeaderMap, Request, StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use meridian_net::{Listener, Stream, http};
use tokio::sync::watch;
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::activity::{Activity, CLOSE_GRACE, NotBegun};
use self::admission::{Admission, Origin, Ticket};
use self::sending::Sending;
use self::strangers::Strangers;
use self::waiting::Waiting;
use crate::answer::{Answer, AnswerBody, ToStranger};
use crate::order::Arrivals;
use crate::refusal::Refusal;
use crate::route::Route;
use crate::{Catalogue, Database, Gateway, Options, Unanswered};

/// The time for an evicted connection to say goodbye; after it, another connection may be evicted.
const EVICTION_GRACE: Duration = Duration::from_millis(50);
/// The search for connections to evict goes through all of them: a flood of connections makes it
/// take no more than a tenth of the time.
const EVICTION_TAKES_ONE_IN: u32 = 10;

/// The requests that a connection without a valid token may have, answered ones included that its
/// client has not taken. Each is a kilobyte or so, of what [`Options::CONNECTION_BYTES`] has for a
/// connection's task.
const STRANGER_REQUESTS: u32 = 16;

/// Serves KV Connect on `listener` until `shutdown` is ready: HTTP/1.1 and HTTP/2 with prior
/// knowledge, told apart by the first bytes of each connection. Then lets requests in progress end,
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
}

/// The open connections of a server, and the sockets that wait for room.
struct Connections<D, C> {
    shared: Arc<Shared<Gateway<D, C>>>,
    /// Given to each connection; closed when the server stops.
    stopping: watch::Receiver<()>,
    admission: Admission,
    /// The task of each connection, which returns its ticket.
    open: JoinSet<Ticket>,
    waiting: Waiting<Stream>,
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
            shared: Arc::new(Shared { http, gateway, strangers: Strangers::default() }),
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
                    self.waiting.add(Origin::of(peer.ip()), stream, Instant::now());
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
            && let Some((origin, stream)) = self.waiting.next()
        {
            let (activity, evicted) =
                (Arc::new(Activity::new(Instant::now())), CancellationToken::new());
            let ticket = self.admission.admit(origin, Arc::clone(&activity), evicted.clone());
            let shared = Arc::clone(&self.shared);
            let connection = Connection { shared, origin, activity, evicted };
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
    strangers: Strangers,
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
    origin: Origin,
    activity: Arc<Activity>,
    evicted: CancellationToken,
}

impl<G: Handle> Connection<G> {
    /// The requests that the connection may have as one without a valid token. Looks for one in the
    /// head, so that a client with many requests is known by its first.
    fn max_of_stranger(&self, headers: &HeaderMap) -> u32 {
        if self.activity.holder().is_some() {
            return u32::MAX;
        }
        match self.shared.gateway.caller(headers) {
            Caller::Known(holder) => {
                self.activity.carried(holder);
                u32::MAX
            }
            Caller::Stranger => STRANGER_REQUESTS,
            Caller::Unclear => self.shared.gateway.options().max_streams_per_connection,
        }
    }

    /// Serves the connection to its end: the client's, an error, idleness, eviction, or the
    /// server's.
    async fn serve(&self, stream: Stream, mut stopping: watch::Receiver<()>) {
        let options = self.shared.gateway.options();
        let arrivals = Arc::new(Arrivals::default());
        let service = service_fn(|mut request| {
            // Done here, where requests come in the order of their heads; later each request has a
            // task of its own. Over HTTP/1.1 a request ends before the next begins.
            if request.version() == Version::HTTP_2
                && Route::of(request.uri().path()) == Some(Route::AtomicWrite)
            {
                request.extensions_mut().insert(Arc::new(arrivals.enter()));
            }
            let (shared, activity, origin) =
                (Arc::clone(&self.shared), Arc::clone(&self.activity), self.origin);
            let max_of_stranger = self.max_of_stranger(request.headers());
            let busy = activity.begin(Instant::now(), max_of_stranger);
            let is_multiplexed = request.version() == Version::HTTP_2;
            // On the heap: the future is large, and hyper and the tasks of HTTP/2 streams move it
            // several times.
            Box::pin(async move {
                let idle_timeout = shared.gateway.options().idle_timeout;
                let send = |answer: Answer, busy| {
                    answer.map(|body| {
                        Sending::new(body, busy, &activity, idle_timeout, is_multiplexed)
                    })
                };
                let busy = match busy {
                    Ok(busy) => busy,
                    Err(NotBegun::Closing) => return Ok(send(refused(), None)),
                    // Its connection ends, and it with that.
                    Err(NotBegun::Overrun) => return Err(Unanswered),
                };
                let answer = shared.gateway.handle(request).await;
                let is_stranger = answer
                    .as_ref()
                    .is_ok_and(|answer| answer.extensions().get::<ToStranger>().is_some());
                if !is_stranger {
                    activity.authorized();
                }
                // A whole answer is on its way now; a streaming one is in progress to its end.
                let streams = |answer: &Answer| matches!(answer.body(), AnswerBody::Frames(_));
                let busy = answer.as_ref().is_ok_and(streams).then_some(busy);
                // A request for a file or an unknown path guesses no token.
                let guesses = |answer: &Answer| {
                    !answer.status().is_success() && answer.status() != StatusCode::NOT_FOUND
                };
                if is_stranger && answer.as_ref().is_ok_and(guesses) {
                    shared.strangers.pause(origin).await;
                }
                answer.map(|answer| send(answer, busy))
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
                return report(served.as_mut().await);
            }
        };
        self.activity.closes(Instant::now());
        served.as_mut().graceful_shutdown();
        tokio::select! {
            biased;
            ended = served.as_mut() => report(ended),
            () = self.activity.may_be_cut(grace) => debug!("idle connection was cut"),
        }
    }
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
