use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

/// Between two times that samples are put into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// Of scrapers, open at a time.
const MAX_CONNECTIONS: usize = 32;
/// Beyond, a scraper connects anew.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
const HEAD_BYTES: u32 = 16 * 1024;

/// The metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Records from now on what all of this process measures. `None` if somebody else does already.
    pub fn install() -> Option<Self> {
        let buckets = [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
        let builder = PrometheusBuilder::new().set_buckets(&buckets).ok()?;
        Some(Self { handle: builder.install_recorder().ok()? })
    }

    /// Moves what histograms were told into their buckets, again and again. Without it every sample is kept until
    /// somebody asks for the metrics, which may be never.
    async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.handle.run_upkeep();
        }
    }
}

/// Serves the metrics as Prometheus text at `/metrics`, until `stop`.
pub async fn serve_metrics(listener: TcpListener, metrics: Metrics, stop: CancellationToken) {
    tokio::spawn({
        let (metrics, stop) = (metrics.clone(), stop.clone());
        async move { stop.run_until_cancelled(metrics.keep_up()).await }
    });
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, _): (_, SocketAddr) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a metrics connection");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
        };
        // Who finds no room is hung up on, and a scraper comes again.
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (metrics, stop) = (metrics.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = if request.method() == Method::GET && request.uri().path() == "/metrics" {
                    Response::new(Full::new(Bytes::from(metrics.handle.render())))
                } else {
                    let mut answer = Response::new(Full::new(Bytes::from_static(b"metrics are at /metrics\n")));
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                    answer
                };
                async move { Ok::<_, Infallible>(answer) }
            });
            let mut server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            server.http1().timer(TokioTimer::new()).max_buf_size(HEAD_BYTES as usize);
            server.http2().timer(TokioTimer::new()).max_header_list_size(HEAD_BYTES);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(CONNECTION_LIFE) => {}
                // A client that breaks off is no news.
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
            }
        });
    }
}
