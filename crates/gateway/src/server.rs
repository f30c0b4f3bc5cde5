mod activity;
mod admission;
mod strangers;
mod waiting;

use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http_body_util::Full;
use hyper::service::service_fn;
use hyper::{StatusCode, Version};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use self::activity::{Activity, CLOSE_GRACE};
use self::admission::{Admission, Origin, Ticket};
use self::strangers::Strangers;
use self::waiting::Waiting;
use crate::answer::{Answer, ToStranger};
use crate::options::HTTP1_BUFFER_BYTES;
use crate::order::Arrivals;
use crate::refusal::Refusal;
use crate::route::Route;
use crate::{Catalogue, Database, Gateway, Options};

/// How long to leave the listener alone when it cannot accept, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between probes of an HTTP/2 connection, and how long each may go unanswered.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Room for the largest atomic write, so that it comes in one go.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// For a connection that makes room for another to say goodbye; then another is looked for.
const EVICTION_GRACE: Duration = Duration::from_millis(50);
/// To look for one goes through all connections: whoever floods the listener makes it no more than
/// a tenth of the time.
const LOOKS_TAKE_ONE_IN: u32 = 10;

/// Serves KV Connect on `listener` until `shutdown` is ready: HTTP/1.1 and HTTP/2 with prior
/// knowledge, told apart by the first bytes of each connection. Then lets requests in progress end,
/// writes whose clients have left among them, for [`Options::drain_timeout`], and returns.
///
/// Dropping the future closes every connection at once; writes already handed to the database go
/// on.
pub async fn serve<D, C>(
    listener: TcpListener,
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
    let address = listener.local_addr().map(|address| address.to_string()).unwrap_or_default();
    info!(
        address,
        region = options.region,
        max_connections = options.max_connections,
        "gateway serves"
    );
    let (stop, stopping) = watch::channel(());
    let shared = Arc::new(Shared {
        http: http(options),
        gateway: Arc::clone(&gateway),
        strangers: Strangers::default(),
    });
    let admission = Mutex::new(Admission::default());
    let admission = || admission.lock().unwrap_or_else(PoisonError::into_inner);
    let mut connections = JoinSet::new();
    let ended = |ended: Result<Ticket, tokio::task::JoinError>| match ended {
        Ok(ticket) => admission().left(ticket),
        Err(error) => warn!(%error, "a connection's task ended early"),
    };
    let mut shutdown = pin!(shutdown);
    let mut waiting = Waiting::new(options.first_request_timeout);
    let (mut look_at, mut no_look_before) = (Instant::now(), Instant::now());
    loop {
        while connections.len() < options.max_connections
            && let Some((origin, stream)) = waiting.next()
        {
            let (activity, evicted) =
                (Arc::new(Activity::new(Instant::now())), CancellationToken::new());
            let ticket = admission().admit(origin, Arc::clone(&activity), evicted.clone());
            let connection = Connection { shared: Arc::clone(&shared), origin, activity, evicted };
            let stopping = stopping.clone();
            connections.spawn(async move {
                connection.serve(stream, stopping).await;
                ticket
            });
        }
        let now = Instant::now();
        if look_at <= now && !waiting.is_empty() {
            let evicted = admission().make_room(&waiting.newcomers(now));
            shared.gateway.telemetry().evicted(evicted);
            (look_at, no_look_before) =
                (now + EVICTION_GRACE, now + now.elapsed() * LOOKS_TAKE_ONE_IN);
        }
        tokio::select! {
            () = &mut shutdown => break,
            Some(result) = connections.join_next() => ended(result),
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => {
                    waiting.add(Origin::of(peer.ip()), stream, Instant::now());
                    look_at = look_at.min(no_look_before);
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
            () = sleep_until(look_at), if !waiting.is_empty() => {}
        }
    }
    drop(waiting);
    drop(listener);
    drop(stop); // every connection hears of it
    info!(address, connections = connections.len(), "gateway drains");
    let deadline = Instant::now() + options.drain_timeout;
    let drained = timeout_at(deadline, async {
        while let Some(result) = connections.join_next().await {
            ended(result);
        }
        gateway.drained().await;
    });
    if drained.await.is_err() {
        warn!(address, connections = connections.len(), "gateway stops with requests in progress");
    }
    connections.shutdown().await;
}

fn http(options: &Options) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Idle connections and slow heads are this module's business for both versions: hyper's own
    // timeout for HTTP/1.1 makes and drops a timer for every request.
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_buf_size(HTTP1_BUFFER_BYTES);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_streams_per_connection)
        .initial_stream_window_size(HTTP2_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(HTTP2_CONNECTION_WINDOW_BYTES)
        .max_header_list_size(MAX_HEADER_LIST_BYTES)
        .keep_alive_interval(HTTP2_PING_INTERVAL)
        .keep_alive_timeout(HTTP2_PING_INTERVAL);
    builder
}

/// What all connections of a gateway have in common.
struct Shared<D, C> {
    http: auto::Builder<TokioExecutor>,
    gateway: Arc<Gateway<D, C>>,
    strangers: Strangers,
}

struct Connection<D, C> {
    shared: Arc<Shared<D, C>>,
    origin: Origin,
    activity: Arc<Activity>,
    evicted: CancellationToken,
}

impl<D: Database, C: Catalogue> Connection<D, C> {
    /// Serves the connection to its end: the client's, an error, idleness, eviction, or the
    /// server's.
    async fn serve(&self, stream: TcpStream, mut stopping: watch::Receiver<()>) {
        // Without it every request of a native client costs some 40 ms more.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "connection ended before it was served");
            return;
        }
        let options = self.shared.gateway.options();
        let arrivals = Arc::new(Arrivals::default());
        let service = service_fn(|mut request| {
            // Here, where requests come in the order of their heads; then each has a task of its
            // own. Over HTTP/1.1 one ends before the next begins.
            if request.version() == Version::HTTP_2
                && Route::of(request.uri().path()) == Some(Route::AtomicWrite)
            {
                request.extensions_mut().insert(Arc::new(arrivals.enter()));
            }
            let (shared, activity, origin) =
                (Arc::clone(&self.shared), Arc::clone(&self.activity), self.origin);
            let busy = activity.begin(Instant::now());
            // On the heap: hyper, and a task for each stream of HTTP/2, move it several times, and
            // it is large.
            Box::pin(async move {
                let Some(busy) = busy else { return Ok(refused_late().map(Full::new)) };
                let answer = shared.gateway.handle(request).await;
                let is_stranger = answer
                    .as_ref()
                    .is_ok_and(|answer| answer.extensions().get::<ToStranger>().is_some());
                if !is_stranger {
                    activity.authorized();
                }
                drop(busy);
                // Who asks for what is nowhere guesses nothing.
                if is_stranger
                    && answer.as_ref().is_ok_and(|answer| answer.status() != StatusCode::NOT_FOUND)
                {
                    shared.strangers.pause(origin).await;
                }
                answer.map(|answer| {
                    answer.map(|body| {
                        Full::new(activity.sending(body, shared.gateway.options().idle_timeout))
                    })
                })
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
            _ = stopping.changed() => {
                // Requests in progress are answered first; the server's drain timeout bounds it.
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

/// To a request that came long after its client was told that the connection closes.
fn refused_late() -> Answer {
    Refusal::Unavailable("This connection closes. Send the request over another.".to_owned()).into()
}

fn report(ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
    if let Err(error) = ended {
        debug!(error, "connection ended with an error");
    }
}
