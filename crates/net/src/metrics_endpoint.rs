//! The metrics of this process, and the endpoint that serves them.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::listener::Listener;

/// Between two times that samples are put into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);
/// Of scrapers, open at a time.
const MAX_CONNECTIONS: usize = 32;
/// Beyond, a scraper connects anew.
const CONNECTION_LIFE: Duration = Duration::from_secs(300);
const HEAD_BYTES: usize = 16 * 1024;

/// The metrics of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
}

impl Metrics {
    /// Records from now on what all of this process measures. `None` if another recorder does already.
    pub fn install() -> Option<Self> {
        let buckets =
            [0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0];
        let builder = PrometheusBuilder::new().set_buckets(&buckets).ok()?;
        Some(Self { handle: builder.install_recorder().ok()? })
    }

    /// Moves the samples of histograms into their buckets, again and again. Without it every sample
    /// is kept until the metrics are asked for, which may be never.
    async fn keep_up(self) {
        loop {
            tokio::time::sleep(UPKEEP).await;
            self.handle.run_upkeep();
        }
    }
}

/// Serves the metrics as Prometheus text at `/metrics`, until `stop`.
pub async fn serve_metrics(mut listener: Listener, metrics: Metrics, stop: CancellationToken) {
    tokio::spawn({
        let (metrics, stop) = (metrics.clone(), stop.clone());
        async move { stop.run_until_cancelled(metrics.keep_up()).await }
    });
    let room = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let (stream, _) = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        // Without room the connection is closed: a scraper comes again.
        let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
        let (metrics, stop) = (metrics.clone(), stop.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let service = service_fn(move |request: Request<Incoming>| {
                let answer = if request.method() == Method::GET
                    && request.uri().path() == "/metrics"
                {
                    Response::new(Full::new(Bytes::from(metrics.handle.render())))
                } else {
                    let mut answer =
                        Response::new(Full::new(Bytes::from_static(b"metrics are at /metrics\n")));
                    *answer.status_mut() = StatusCode::NOT_FOUND;
                    answer
                };
                async move { Ok::<_, Infallible>(answer) }
            });
            // One answer at a time: over HTTP/2 a client may ask for hundreds, take none, and have
            // each kept.
            let mut server = http1::Builder::new();
            server.timer(TokioTimer::new()).max_buf_size(HEAD_BYTES);
            tokio::select! {
                () = stop.cancelled() => {}
                () = tokio::time::sleep(CONNECTION_LIFE) => {}
                // A client that breaks off is no news.
                _ = server.serve_connection(TokioIo::new(stream), service) => {}
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;

    async fn answer(address: SocketAddr, request: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        // A reset ends it as well.
        drop(stream.read_to_end(&mut answer).await);
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn metrics_are_answered_one_at_a_time() {
        let handle = PrometheusBuilder::new().build_recorder().handle();
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let (address, stop) = (listener.local_address().unwrap(), CancellationToken::new());
        let serving = tokio::spawn(serve_metrics(listener, Metrics { handle }, stop.clone()));
        let scraped =
            answer(address, "GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        assert!(scraped.starts_with("HTTP/1.1 200 OK"), "{scraped}");
        let preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
        let refused = answer(address, preface).await;
        assert!(refused.is_empty() || refused.starts_with("HTTP/1.1 4"), "{refused:?}");
        stop.cancel();
        serving.await.unwrap();
    }
}
