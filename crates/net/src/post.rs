//! POSTs to servers outside of the cluster, over HTTP/1.1, with TLS where the URL says so.
//!
//! Redirects are not followed. Of an answer the head is told and no byte of its body, which is read
//! up to a bound so that its connection can serve the next request.

use std::error::Error;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body_util::{BodyExt, Full};
use hyper::body::{Body as _, Bytes, Incoming};
use hyper::header::RETRY_AFTER;
use hyper::{Request, Response, StatusCode, Uri};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::client::legacy::{Client, Error as ClientError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::Semaphore;
use tonic::codegen::Service;

use crate::tls::{self, Versions};

/// Servers of others are as old as they are.
const VERSIONS: Versions = Versions::Tls12AndLater;
/// Of one address of a host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Of all addresses, with the look-up before and TLS behind. A connection that is begun for a request
/// may go on without it.
const CONNECTED_WITHIN: Duration = Duration::from_secs(30);
/// A connection without a request is kept so long: less than servers do, which close theirs. A
/// request that is written as its server closes has failed.
const IDLE: Duration = Duration::from_millis(1500);
/// Connections without a request, at most, as long as more may be in use.
const MAX_IDLE: usize = 32;
/// A head that is longer is an error.
const MAX_HEAD_BYTES: usize = 16 << 10;
/// A body that is longer, or comes more slowly, costs its connection.
const MAX_BODY_BYTES: usize = 64 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(1);

/// Names that are looked up at a time in this process. Each takes a thread, also when its request has
/// been given up, of those that disks are written with.
static LOOKUPS: Semaphore = Semaphore::const_new(4);

/// The body of a request: whole, and in memory.
pub type Body = Full<Bytes>;

/// The authorities whose certificates are believed.
#[derive(Clone)]
pub struct Trust(Arc<ClientConfig>);

impl Trust {
    /// Those of this machine, or of the files that `SSL_CERT_FILE` and `SSL_CERT_DIR` name. Reads
    /// files.
    ///
    /// # Errors
    /// None was found.
    pub fn of_machine() -> io::Result<Self> {
        tls::public_client(None, VERSIONS, &[]).map(Arc::new).map(Self)
    }

    /// No authority: for `http` alone.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn none() -> io::Result<Self> {
        Self::of(RootCertStore::empty())
    }

    fn of(roots: RootCertStore) -> io::Result<Self> {
        let config = tls::client_config(VERSIONS)?.with_root_certificates(roots);
        Ok(Self(Arc::new(config.with_no_client_auth())))
    }
}

/// The head of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    /// As the server wrote it, if it is text.
    pub retry_after: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAnswered {
    /// Nothing was sent.
    #[error("no connection: {0}")]
    NotConnected(String),
    /// The request may have been carried out.
    #[error("no answer within {} s", .0.as_secs_f64())]
    Late(Duration),
    /// The request may have been carried out.
    #[error("the answer is broken: {0}")]
    Broken(String),
}

/// A client of one server. It has as many connections as there are requests at a time, and a bounded
/// number without a request.
#[derive(Clone)]
pub struct Posts {
    client: Client<Within<HttpsConnector<HttpConnector<Resolver>>>, Body>,
}

impl Posts {
    #[must_use]
    pub fn new(trust: Trust, concurrency: usize) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(Resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let config = Arc::unwrap_or_clone(trust.0);
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(IDLE)
            .pool_max_idle_per_host(concurrency.min(MAX_IDLE))
            .http1_max_buf_size(MAX_HEAD_BYTES)
            .build(Within(connector));
        Self { client }
    }

    /// The head of the answer, if it comes within `timeout`. To drop the future closes the
    /// connection.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn post(
        &self,
        request: Request<Body>,
        timeout: Duration,
    ) -> Result<Answer, NotAnswered> {
        let answered = tokio::time::timeout(timeout, self.client.request(request)).await;
        let response = answered.map_err(|_| NotAnswered::Late(timeout))?.map_err(not_answered)?;
        let answer = answer(&response);
        drop(tokio::time::timeout(BODY_TIMEOUT, pass_over(response.into_body())).await);
        Ok(answer)
    }
}

/// Connects in bounded time.
#[derive(Clone)]
struct Within<C>(C);

impl<C> Service<Uri> for Within<C>
where
    C: Service<Uri, Error = BoxError>,
    C::Future: Send + 'static,
{
    type Response = C::Response;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<C::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.0.call(uri);
        Box::pin(async move {
            let connected = tokio::time::timeout(CONNECTED_WITHIN, connecting).await;
            connected.map_err(|_| format!("none within {} s", CONNECTED_WITHIN.as_secs()))?
        })
    }
}

type BoxError = Box<dyn Error + Send + Sync>;

/// Finds the addresses of hosts, a few at a time.
#[derive(Clone)]
struct Resolver;

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        Box::pin(async move {
            let turn = LOOKUPS.acquire().await.map_err(io::Error::other)?;
            let looked_up = tokio::task::spawn_blocking(move || {
                let _until_found = turn;
                (name.as_str(), 0).to_socket_addrs()
            });
            looked_up.await.map_err(io::Error::other)?
        })
    }
}

fn answer(response: &Response<Incoming>) -> Answer {
    let retry_after = response.headers().get(RETRY_AFTER);
    let retry_after = retry_after.and_then(|value| Some(value.to_str().ok()?.to_owned()));
    Answer { status: response.status(), retry_after }
}

/// Reads the body to its end, or to its bound.
async fn pass_over(mut body: Incoming) {
    let mut bytes = 0;
    while bytes <= MAX_BODY_BYTES
        && !body.is_end_stream()
        && let Some(Ok(frame)) = body.frame().await
    {
        bytes += frame.data_ref().map_or(0, Bytes::len);
    }
}

fn not_answered(error: ClientError) -> NotAnswered {
    let text = innermost(&error);
    if error.is_connect() { NotAnswered::NotConnected(text) } else { NotAnswered::Broken(text) }
}

/// The cause that says most.
fn innermost(error: &dyn Error) -> String {
    let mut innermost = error;
    while let Some(cause) = innermost.source() {
        innermost = cause;
    }
    innermost.to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn request(uri: &str) -> Request<Body> {
        let uri: Uri = uri.parse().unwrap();
        Request::post(uri).body(Full::new(Bytes::from_static(b"{}"))).unwrap()
    }

    fn posts() -> Posts {
        Posts::new(Trust::none().unwrap(), 4)
    }

    /// A server that answers each request of each connection so.
    async fn server(answer: &'static [u8]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, answer));
            }
        });
        format!("http://{address}/")
    }

    async fn serve(mut stream: TcpStream, answer: &[u8]) {
        let mut read = Vec::new();
        loop {
            let mut part = [0; 1024];
            let count = stream.read(&mut part).await.unwrap_or(0);
            if count == 0 {
                return;
            }
            read.extend(&part[..count]);
            if read.ends_with(b"\r\n\r\n{}") {
                read.clear();
                if stream.write_all(answer).await.is_err() {
                    return;
                }
            }
        }
    }

    #[tokio::test]
    async fn head_of_an_answer_is_told_and_a_redirect_is_not_followed() {
        let url = server(
            b"HTTP/1.1 302 Found\r\nlocation: /elsewhere\r\nretry-after: 7\r\ncontent-length: 2\r\n\r\nok",
        )
        .await;
        let posts = posts();
        for _ in 0..3 {
            let answer = posts.post(request(&url), LONG).await.unwrap();
            assert_eq!((answer.status.as_u16(), answer.retry_after.as_deref()), (302, Some("7")));
        }
    }

    #[tokio::test]
    async fn answer_that_is_silent_endless_or_broken_ends_within_its_bounds() {
        let posts = posts();
        let url = server(b"").await;
        let within = Duration::from_millis(50);
        assert_eq!(posts.post(request(&url), within).await, Err(NotAnswered::Late(within)));
        // A body that has no end, which is not waited for.
        let url = server(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let started = Instant::now();
        assert_eq!(posts.post(request(&url), LONG).await.unwrap().status, StatusCode::OK);
        assert!(started.elapsed() < LONG / 2, "{:?}", started.elapsed());
        let url = server(b"no HTTP\r\n\r\n").await;
        let broken = posts.post(request(&url), LONG).await;
        assert!(matches!(broken, Err(NotAnswered::Broken(_))), "{broken:?}");
        // A head without an end.
        let head: &'static [u8] = Vec::leak(b"HTTP/1.1 200 OK\r\nx: ".repeat(4096));
        let broken = posts.post(request(&server(head).await), LONG).await;
        assert!(matches!(broken, Err(NotAnswered::Broken(_))), "{broken:?}");
    }

    #[tokio::test]
    async fn body_of_an_answer_is_read_up_to_its_bound() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let endless = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert!(stream.read(&mut [0; 1024]).await.unwrap() > 0);
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n")
                .await
                .unwrap();
            let mut written = 0_usize;
            while stream.write_all(&[b'x'; 65536]).await.is_ok() {
                written += 65536;
            }
            written
        });
        assert_eq!(posts().post(request(&url), LONG).await.unwrap().status, StatusCode::OK);
        // The buffers of the kernel take more.
        assert!(endless.await.unwrap() < 100_000_000);
    }

    /// A server of `localhost` that answers one request of each connection over TLS, and the
    /// authority that vouches for it.
    async fn tls_server() -> (String, RootCertStore) {
        let rcgen::CertifiedKey { cert, signing_key } =
            rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let mut roots = RootCertStore::empty();
        roots.add(cert.der().clone()).unwrap();
        let key = signing_key.serialize_der().try_into().unwrap();
        let config = tls::server_config(VERSIONS)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                if stream.read(&mut [0; 1024]).await.is_ok_and(|count| count > 0) {
                    drop(stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await);
                }
            }
        });
        (format!("https://localhost:{port}/"), roots)
    }

    #[tokio::test]
    async fn server_over_tls_is_posted_to_if_its_certificate_is_trusted_and_has_its_name() {
        let (url, roots) = tls_server().await;
        let trusting = Posts::new(Trust::of(roots).unwrap(), 4);
        let answer = trusting.post(request(&url), LONG).await.unwrap();
        assert_eq!(answer.status, StatusCode::NO_CONTENT);
        for (posts, url) in
            [(posts(), url.clone()), (trusting.clone(), url.replace("localhost", "127.0.0.1"))]
        {
            let refused = posts.post(request(&url), LONG).await;
            let Err(NotAnswered::NotConnected(text)) = refused else { panic!("{refused:?}") };
            assert!(text.contains("certificate"), "{text}");
        }
    }

    #[tokio::test]
    async fn server_that_is_not_there_or_not_trusted_is_not_connected_to() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let refused = posts().post(request(&format!("http://{free}/")), LONG).await;
        let Err(NotAnswered::NotConnected(text)) = refused else { panic!("{refused:?}") };
        assert!(text.contains("Connection refused"), "{text}");
        let plain = server(b"HTTP/1.1 200 OK\r\n\r\n").await.replace("http:", "https:");
        let refused = posts().post(request(&plain), Duration::from_secs(2)).await;
        assert!(refused.is_err(), "{refused:?}");
    }
}
