//! An HTTP server that answers as a test says.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::HeaderMap;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// One request.
#[derive(Clone)]
pub(super) struct Seen {
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// The answer to a request.
pub(super) struct Reply {
    /// `None`: none comes, until the test says so.
    status: Option<u16>,
    headers: Vec<(&'static str, String)>,
    /// So many requests are to have come by then, if as many are left.
    together: usize,
}

impl Reply {
    pub(super) fn status(status: u16) -> Self {
        Self { status: Some(status), headers: Vec::new(), together: 1 }
    }

    pub(super) fn never() -> Self {
        Self { status: None, headers: Vec::new(), together: 1 }
    }

    pub(super) fn with(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }

    pub(super) fn after_others(self, together: usize) -> Self {
        Self { together, ..self }
    }
}

type Replies = dyn Fn(usize) -> Reply + Send + Sync;

#[derive(Default)]
struct Counts {
    seen: Mutex<Vec<Seen>>,
    open: AtomicUsize,
    most_open: AtomicUsize,
}

pub(super) struct Endpoint {
    pub(super) url: String,
    counts: Arc<Counts>,
    /// The status for requests without an answer.
    answers: watch::Sender<Option<u16>>,
}

/// Counts a request for as long as its client waits for it.
struct Open(Arc<Counts>);

impl Open {
    fn new(counts: &Arc<Counts>) -> Self {
        let open = counts.open.fetch_add(1, Ordering::SeqCst) + 1;
        counts.most_open.fetch_max(open, Ordering::SeqCst);
        Self(Arc::clone(counts))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Endpoint {
    /// `replies` says what to answer to the request of this number.
    pub(super) async fn start(replies: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hook", listener.local_addr().unwrap());
        let (counts, replies) =
            (Arc::<Counts>::default(), Arc::<Replies>::from(replies_of(replies)));
        let (answers, answered) = watch::channel(None);
        let all = Arc::clone(&counts);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (counts, replies) = (Arc::clone(&all), Arc::clone(&replies));
                let answered = answered.clone();
                let service = service_fn(move |request| {
                    serve(request, Arc::clone(&counts), Arc::clone(&replies), answered.clone())
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::spawn(async move { drop(connection.await) });
            }
        });
        Self { url, counts, answers }
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.counts.seen.lock().clone()
    }

    pub(super) fn open(&self) -> usize {
        self.counts.open.load(Ordering::SeqCst)
    }

    pub(super) fn most_open(&self) -> usize {
        self.counts.most_open.load(Ordering::SeqCst)
    }

    /// To all that wait for an answer.
    pub(super) fn answer(&self, status: u16) {
        self.answers.send_replace(Some(status));
    }
}

fn replies_of(replies: impl Fn(usize) -> Reply + Send + Sync + 'static) -> Box<Replies> {
    Box::new(replies)
}

async fn serve(
    request: Request<Incoming>,
    counts: Arc<Counts>,
    replies: Arc<Replies>,
    mut answered: watch::Receiver<Option<u16>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let _open = Open::new(&counts);
    let (parts, body) = request.into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    let number = {
        let mut seen = counts.seen.lock();
        seen.push(Seen { headers: parts.headers, body });
        seen.len() - 1
    };
    let Reply { status, headers, together } = replies(number);
    while counts.seen.lock().len() < together {
        tokio::task::yield_now().await;
    }
    let status = match status {
        Some(status) => status,
        None => {
            answered.wait_for(Option::is_some).await.map_or(500, |status| status.unwrap_or(500))
        }
    };
    let mut response = Response::builder().status(status);
    for (name, value) in headers {
        response = response.header(name, value);
    }
    Ok(response.body(Full::default()).unwrap())
}
