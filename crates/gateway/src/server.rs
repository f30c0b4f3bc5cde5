mod activity;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::{debug, info, warn};

use self::activity::{Activity, Busy};
use crate::{Catalogue, Database, Gateway, Options};

/// How long to leave the listener alone when it cannot accept, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Between probes of an HTTP/2 connection, and how long each may go unanswered.
const HTTP2_PING_INTERVAL: Duration = Duration::from_secs(20);
/// Room for the largest atomic write, so that it comes in one go.
const HTTP2_STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
const HTTP2_CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
const MAX_HEADER_LIST_BYTES: u32 = 16 * 1024;
/// For an idle connection to say goodbye.
const CLOSE_GRACE: Duration = Duration::from_secs(1);

/// Serves KV Connect on `listener` until `shutdown` is ready: HTTP/1.1 and HTTP/2 with prior knowledge,
/// told apart by the first bytes of each connection. Then lets requests in progress end, writes whose
/// clients have left among them, for [`Options::drain_timeout`], and returns.
///
/// Dropping the future closes every connection at once; writes already handed to the database go on.
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
    info!(address, region = options.region, "gateway serves");
    let http = Arc::new(http(options));
    let (stop, stopping) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listener.accept(), if connections.len() < options.max_connections => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(stream, Arc::clone(&gateway), Arc::clone(&http), stopping.clone()));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    drop(listener);
    drop(stop); // every connection hears of it
    info!(address, connections = connections.len(), "gateway drains");
    let deadline = Instant::now() + options.drain_timeout;
    let drained = timeout_at(deadline, async {
        while let Some(ended) = connections.join_next().await {
            report(ended);
        }
        gateway.drained().await;
    });
    if drained.await.is_err() {
        warn!(address, connections = connections.len(), "gateway stops with requests in progress");
    }
    connections.shutdown().await;
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        warn!(%error, "a connection's task ended early");
    }
}

fn http(options: &Options) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    // Idle connections and slow heads are this module's business for both versions: hyper's own timeout
    // for HTTP/1.1 makes and drops a timer for every request.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(None);
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

/// Serves one connection to its end: the client's, an error, idleness, or the server's.
async fn connection<D, C>(
    stream: TcpStream,
    gateway: Arc<Gateway<D, C>>,
    http: Arc<auto::Builder<TokioExecutor>>,
    mut stopping: watch::Receiver<()>,
) where
    D: Database,
    C: Catalogue,
{
    // Without it every request of a native client costs some 40 ms more.
    if let Err(error) = stream.set_nodelay(true) {
        debug!(%error, "connection ended before it was served");
        return;
    }
    let options = gateway.options();
    let activity = Arc::new(Activity::new(Instant::now()));
    let service = service_fn(|request| {
        let gateway = Arc::clone(&gateway);
        let busy = Busy::new(&activity);
        async move {
            let answer = gateway.handle(request).await;
            drop(busy);
            answer
        }
    });
    let mut served = pin!(http.serve_connection(TokioIo::new(stream), service));
    let mut watchdog = pin!(activity.idle(options.first_request_timeout, options.idle_timeout));
    let ended = tokio::select! {
        biased;
        ended = served.as_mut() => Some(ended),
        () = &mut watchdog => None,
        _ = stopping.changed() => {
            // Requests in progress are answered first; the server's drain timeout bounds it.
            served.as_mut().graceful_shutdown();
            Some(served.as_mut().await)
        }
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            served.as_mut().graceful_shutdown();
            match timeout(CLOSE_GRACE, served.as_mut()).await {
                Ok(ended) => ended,
                Err(_) => return debug!("idle connection was cut"),
            }
        }
    };
    if let Err(error) = ended {
        debug!(error, "connection ended with an error");
    }
}
