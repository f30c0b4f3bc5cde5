//! A gateway on a real socket, over a database in memory whose outcomes a test plans.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use meridian_gateway::{
    Access, AccessToken, Catalogue, Changed, ChangesWanted, Database, Databases, Grant, Listen,
    Listened, NoChanges, Options, QueueList, QueuePage, Read, ReadOutput, Reports, TokenName,
    Unavailable, Watch, Write, WriteFailure, digest, serve,
};
use meridian_net::Listener;
use meridian_proto::kv_connect as pb;
use meridian_queue::Answer;
use meridian_types::{
    Consistency, DatabaseId, Entry, Permissions, Quotas, RequestId, ShardId, V8Format, Value,
    Versionstamp, WriteOutcome,
};
use prost::Message;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinHandle;

use crate::gate::Gate;
use crate::logged::Logged;
pub(crate) use crate::messages::{all, set};
use crate::queues::Queues;
pub(crate) use crate::reply::Reply;
use crate::watched::MemoryWatch;

pub(crate) const MAIN: DatabaseId = DatabaseId([0xab; 16]);
pub(crate) const OTHER: DatabaseId = DatabaseId([0xcd; 16]);
pub(crate) const MAIN_TEXT: &str = "abababab-abab-abab-abab-abababababab";
pub(crate) const WRITER: &str = "token-that-may-write";
pub(crate) const SECOND_WRITER: &str = "another-token-that-may-write";
pub(crate) const READER: &str = "token-that-may-read";
pub(crate) const OTHERS: &str = "token-for-the-other-database";
/// Known once the catalogue is current.
pub(crate) const NEW: &str = "token-made-a-moment-ago";

/// The planned outcome of the next operations.
#[derive(Debug, Clone)]
pub(crate) enum Plan {
    Work,
    Unavailable,
    Unknown,
    Reject(&'static str),
    /// A write waits for `Memory::release`, then works.
    Hold,
    /// As [`Plan::Hold`], but then its outcome is unknown.
    HoldUnknown,
}

/// The last sequence, and all entries.
pub(crate) type State = (u64, BTreeMap<(DatabaseId, Bytes), (Value, Versionstamp)>);

pub(crate) struct Memory {
    pub(crate) state: Mutex<State>,
    plan: Mutex<Plan>,
    pub(crate) release: Notify,
    pub(crate) writes_begun: AtomicU64,
    pub(crate) request_ids: Mutex<Vec<RequestId>>,
    pub(crate) reads: Mutex<Vec<Consistency>>,
    pub(crate) logged: Logged,
    /// Changes with every commit.
    pub(crate) commits: watch::Sender<()>,
    pub(crate) queues: Queues,
}

impl Memory {
    pub(crate) fn new() -> Self {
        Self {
            state: Mutex::new((0, BTreeMap::new())),
            plan: Mutex::new(Plan::Work),
            release: Notify::new(),
            writes_begun: AtomicU64::new(0),
            request_ids: Mutex::new(Vec::new()),
            reads: Mutex::new(Vec::new()),
            logged: Logged::default(),
            commits: watch::Sender::new(()),
            queues: Queues::default(),
        }
    }

    pub(crate) fn get(&self, database: DatabaseId, key: &Bytes) -> Option<Entry> {
        let (value, versionstamp) =
            self.state.lock().unwrap().1.get(&(database, key.clone())).cloned()?;
        Some(Entry { key: key.clone(), value, versionstamp })
    }

    pub(crate) fn plan(&self, plan: Plan) {
        *self.plan.lock().unwrap() = plan;
    }

    pub(crate) fn committed(&self) -> u64 {
        self.state.lock().unwrap().0
    }
}

impl Database for Memory {
    type Watching = MemoryWatch;

    async fn watch(self: &Arc<Self>, watch: Watch) -> Result<MemoryWatch, Unavailable> {
        self.reads.lock().unwrap().push(watch.consistency);
        if matches!(*self.plan.lock().unwrap(), Plan::Unavailable) {
            return Err(Unavailable { reason: "no leader".to_owned() });
        }
        Ok(MemoryWatch::new(Arc::clone(self), watch))
    }

    fn listen(self: &Arc<Self>, listen: Listen) -> Listened {
        self.queues.listen(listen)
    }

    async fn report(&self, reports: Reports) -> Result<Vec<Answer>, Unavailable> {
        if matches!(*self.plan.lock().unwrap(), Plan::Unavailable) {
            return Err(Unavailable { reason: "no leader".to_owned() });
        }
        Ok(self.queues.report(reports))
    }

    async fn changes(&self, wanted: ChangesWanted) -> Result<Changed, NoChanges> {
        self.changes_behind(wanted).await
    }

    async fn list_queue(&self, list: QueueList) -> Result<QueuePage, Unavailable> {
        if matches!(*self.plan.lock().unwrap(), Plan::Unavailable) {
            return Err(Unavailable { reason: "no leader".to_owned() });
        }
        Ok(self.queues.list(list))
    }

    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        self.reads.lock().unwrap().push(read.consistency);
        if matches!(*self.plan.lock().unwrap(), Plan::Unavailable) {
            return Err(Unavailable { reason: "no leader".to_owned() });
        }
        let state = self.state.lock().unwrap();
        let ranges = read.ranges.iter().map(|range| {
            let bounds = (read.database, range.start.clone())..(read.database, range.end.clone());
            let found = state.1.range(bounds).map(|((_, key), (value, versionstamp))| Entry {
                key: key.clone(),
                value: value.clone(),
                versionstamp: *versionstamp,
            });
            let limit = range.limit as usize;
            if range.reverse {
                found.rev().take(limit).collect()
            } else {
                found.take(limit).collect()
            }
        });
        Ok(ReadOutput { ranges: ranges.collect() })
    }

    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        self.writes_begun.fetch_add(1, Ordering::SeqCst);
        self.request_ids.lock().unwrap().push(write.request_id);
        let plan = self.plan.lock().unwrap().clone();
        match plan {
            Plan::Work => {}
            Plan::Unavailable => return Err(Unavailable { reason: "no leader".to_owned() }.into()),
            Plan::Unknown => return Err(WriteFailure::Unknown("the leader is gone".to_owned())),
            Plan::Reject(text) => return Ok(WriteOutcome::Rejected(text.to_owned())),
            Plan::Hold => self.release.notified().await,
            Plan::HoldUnknown => {
                self.release.notified().await;
                return Err(WriteFailure::Unknown("the leader is gone".to_owned()));
            }
        }
        Ok(self.commit(&write))
    }
}

/// A gateway that serves until it is dropped or stopped.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) memory: Arc<Memory>,
    pub(crate) hearing: Arc<Hearing>,
    /// Whether the tokens of the reader and of the second writer are no more.
    pub(crate) revoked: Arc<AtomicBool>,
    /// Of the main database.
    pub(crate) quotas: Arc<Mutex<Quotas>>,
    pub(crate) stop: Option<oneshot::Sender<()>>,
    pub(crate) serving: JoinHandle<()>,
}

/// `main`, which is the default, and `other`.
pub(crate) struct TwoDatabases {
    access: Access,
    hearing: Arc<Hearing>,
    revoked: Arc<AtomicBool>,
    quotas: Arc<Mutex<Quotas>>,
}

/// The catalogue's knowledge of its cluster.
pub(crate) struct Hearing {
    pub(crate) current: AtomicBool,
    /// How often it was asked for a token.
    pub(crate) asked: AtomicU64,
}

impl Catalogue for TwoDatabases {
    fn default_database(&self) -> Option<DatabaseId> {
        Some(MAIN)
    }

    fn by_name(&self, name: &str) -> Option<DatabaseId> {
        match name {
            "main" => Some(MAIN),
            "other" => Some(OTHER),
            _ => None,
        }
    }

    fn name(&self, database: DatabaseId) -> Option<String> {
        (database == MAIN).then(|| "main".to_owned())
    }

    fn token_name(&self, sha256: &[u8; 32]) -> Option<Arc<TokenName>> {
        let name = TokenName { id: 7, label: "a\nreader".to_owned() };
        (*sha256 == digest(READER)).then(|| Arc::new(name))
    }

    fn shard(&self, database: DatabaseId) -> Option<ShardId> {
        [(MAIN, ShardId(1)), (OTHER, ShardId(2))]
            .into_iter()
            .find_map(|(id, shard)| (id == database).then_some(shard))
    }

    fn v8_format(&self, _: DatabaseId) -> V8Format {
        V8Format::default()
    }

    fn quotas(&self, database: DatabaseId) -> Quotas {
        if database == MAIN { *self.quotas.lock().unwrap() } else { Quotas::default() }
    }

    fn is_current(&self) -> bool {
        self.hearing.current.load(Ordering::SeqCst)
    }

    fn authorize(&self, bearer: &str) -> Option<Grant> {
        self.hearing.asked.fetch_add(1, Ordering::SeqCst);
        let is_known = bearer != NEW || self.is_current();
        let is_revoked =
            [READER, SECOND_WRITER].contains(&bearer) && self.revoked.load(Ordering::SeqCst);
        self.access.authorize(bearer, 0).filter(|_| is_known && !is_revoked)
    }
}

impl TwoDatabases {
    /// With these tokens beside the usual ones.
    pub(crate) fn with_tokens(current: bool, tokens: Vec<AccessToken>) -> Self {
        let token = |secret: &str, databases, permissions| AccessToken {
            secret: secret.to_owned(),
            grant: Grant::new(databases, permissions),
        };
        let access = Access::new(
            [
                token(WRITER, Databases::All, Permissions::ALL),
                token(SECOND_WRITER, Databases::All, Permissions::ALL),
                token(NEW, Databases::All, Permissions::ALL),
                token(READER, Databases::All, Permissions::READ_ONLY),
                token(OTHERS, Databases::Only(vec![OTHER]), Permissions::ALL),
            ]
            .into_iter()
            .chain(tokens),
        );
        let hearing = Hearing { current: AtomicBool::new(current), asked: AtomicU64::new(0) };
        let (revoked, quotas) = Default::default();
        Self { access: access.unwrap(), hearing: Arc::new(hearing), revoked, quotas }
    }
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Options::default()).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        Self::knowing(options, true).await
    }

    /// With a catalogue that is current, or with a catalogue that may not have received the whole state
    /// yet.
    pub(crate) async fn knowing(options: Options, current: bool) -> Self {
        Self::with_tokens(options, current, Vec::new()).await
    }

    /// With these tokens beside the usual ones.
    pub(crate) async fn with_tokens(
        options: Options,
        current: bool,
        tokens: Vec<AccessToken>,
    ) -> Self {
        let catalogue = TwoDatabases::with_tokens(current, tokens);
        let (hearing, revoked) = (Arc::clone(&catalogue.hearing), Arc::clone(&catalogue.revoked));
        let quotas = Arc::clone(&catalogue.quotas);
        let memory = Arc::new(Memory::new());
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async { drop(stopped.await) };
        let serving = tokio::spawn(serve(
            listener,
            Arc::clone(&memory),
            Arc::new(catalogue),
            options,
            shutdown,
        ));
        Self { address, memory, hearing, revoked, quotas, stop: Some(stop), serving }
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// From another address of this machine.
    pub(crate) async fn connect_from(&self, last: u8) -> TcpStream {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from(([127, 0, 0, last], 0))).unwrap();
        socket.connect(self.address).await.unwrap()
    }

    /// Over HTTP/2, through a gate that can hold back the server's bytes from the client.
    pub(crate) async fn gated(&self) -> (Client, Gate) {
        let (gate, stream) = Gate::before(self.connect().await);
        (Self::http2_over(stream).await, gate)
    }

    pub(crate) async fn http1(&self) -> Client {
        Self::http1_over(self.connect().await).await
    }

    pub(crate) async fn http1_over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Client {
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        Client {
            sender: Sender::Http1(sender),
            driver: tokio::spawn(async { drop(connection.await) }),
        }
    }

    pub(crate) async fn http2(&self) -> Client {
        Self::http2_over(self.connect().await).await
    }

    pub(crate) async fn http2_over(
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    ) -> Client {
        let io = TokioIo::new(stream);
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        Client {
            sender: Sender::Http2(sender),
            driver: tokio::spawn(async { drop(connection.await) }),
        }
    }
}

enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

pub(crate) struct Client {
    sender: Sender,
    /// Ends when the connection does; aborting it closes the connection.
    pub(crate) driver: JoinHandle<()>,
}

impl Client {
    /// Another client on the same HTTP/2 connection.
    pub(crate) fn again(&self) -> Self {
        match &self.sender {
            Sender::Http2(sender) => {
                Self { sender: Sender::Http2(sender.clone()), driver: tokio::spawn(async {}) }
            }
            Sender::Http1(_) => panic!("an HTTP/1.1 connection has one request at a time"),
        }
    }

    pub(crate) async fn send(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Reply, hyper::Error> {
        let response = self.begin(request).await?;
        let content_type =
            response.headers().get("content-type").map(|value| value.to_str().unwrap().to_owned());
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        Ok(Reply { status, content_type: content_type.unwrap_or_default(), body })
    }

    /// The head of the answer, whose body streams.
    pub(crate) async fn begin(
        &mut self,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, hyper::Error> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
            Sender::Http2(sender) => {
                sender.ready().await?;
                sender.send_request(request).await
            }
        }
    }

    /// A `POST` with a `host`, the `headers`, and nothing else.
    pub(crate) async fn post(
        &mut self,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Result<Reply, hyper::Error> {
        let request = self.request(path, headers, body.into());
        self.send(request).await
    }

    pub(crate) fn request(
        &self,
        path: &str,
        headers: &[(&str, &str)],
        body: Bytes,
    ) -> Request<Full<Bytes>> {
        let absolute = matches!(self.sender, Sender::Http2(_));
        let uri = if absolute { format!("http://kv.test:4512{path}") } else { path.to_owned() };
        let mut request = Request::post(uri);
        if !absolute {
            request = request.header("host", "kv.test:4512");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(Full::new(body)).unwrap()
    }

    /// A request of the data path in version 3, for the main database.
    pub(crate) async fn data(
        &mut self,
        path: &str,
        token: &str,
        message: &impl Message,
    ) -> Result<Reply, hyper::Error> {
        let authorization = format!("Bearer {token}");
        let headers = [
            ("authorization", authorization.as_str()),
            ("x-denokv-version", "3"),
            ("x-denokv-database-id", MAIN_TEXT),
        ];
        self.post(path, &headers, message.encode_to_vec()).await
    }

    pub(crate) async fn write(&mut self, message: &pb::AtomicWrite) -> Result<Reply, hyper::Error> {
        self.data("/kv/strong/atomic_write", WRITER, message).await
    }

    pub(crate) async fn read(&mut self, message: &pb::SnapshotRead) -> Result<Reply, hyper::Error> {
        self.data("/kv/strong/snapshot_read", WRITER, message).await
    }
}

/// Waits until `condition` holds.
pub(crate) async fn until(condition: impl Fn() -> bool) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while !condition() {
        assert!(tokio::time::Instant::now() < deadline, "waited in vain");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
    }
}
