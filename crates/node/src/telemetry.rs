use std::convert::Infallible;
use std::net::SocketAddr;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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
}

/// Serves the metrics as Prometheus text at `/metrics`, until `stop`.
pub async fn serve_metrics(listener: TcpListener, metrics: Metrics, stop: CancellationToken) {
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
        let (metrics, stop) = (metrics.clone(), stop.clone());
        tokio::spawn(async move {
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
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            tokio::select! {
                () = stop.cancelled() => {}
                // A client that breaks off is no news.
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
            }
        });
    }
}
