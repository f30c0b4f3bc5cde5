//! A gateway over a database that notes what it is asked, and looks at every limit.

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, StatusCode};
use meridian_gateway::{
    AnswerBody, Catalogue, Change, Changed, ChangedTransaction, ChangesWanted, Database, Databases,
    Gateway, Grant, Heard, ListFrom, ListedLetter, ListedMessage, Listen, Listened, NoChanges,
    NoRoom, Options, QueueList, QueuePage, QueuedMessage, Read, ReadOutput, Reports, Unavailable,
    Watch, WatchNews, WatchedValue, Watching, Write, WriteFailure,
};
use meridian_queue::{Answer, MAX_CREDITS, MessageKey};
use meridian_types::{
    DatabaseId, Entry, Epoch, MessageId, MutationKind, Permissions, Position, ShardId, Transaction,
    V8Format, Value, ValueEncoding, Versionstamp, WriteOutcome, limits,
};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

const DATABASE: DatabaseId = DatabaseId([7; 16]);
/// No other token opens anything.
pub const TOKEN: &str = "a-token-of-the-fuzzer";

/// A question to a database.
#[derive(Debug)]
pub enum Asked {
    Read(Read),
    Watch(Watch),
    Changes(ChangesWanted),
    Write(Write),
    Listen(Listen),
    Report(Reports),
    List(QueueList),
}

/// An answer, and the questions that it took.
pub struct Told {
    pub status: StatusCode,
    pub body: Bytes,
    pub asked: Vec<Asked>,
}

impl Told {
    /// The write that it was.
    pub fn write(&self) -> Option<&Write> {
        self.asked.iter().find_map(|asked| match asked {
            Asked::Write(write) => Some(write),
            _ => None,
        })
    }
}

/// Requests to one gateway, which lives for as long as its process: a share that a request does not
/// give back is missed by later ones. Time passes when everything waits for it.
struct Teller {
    gateway: Gateway<Limits, Limits>,
    database: Arc<Limits>,
    runtime: Runtime,
}

impl Teller {
    fn new() -> Self {
        let mut builder = Builder::new_current_thread();
        let runtime = builder.enable_time().start_paused(true).build().expect("a runtime");
        let database = Arc::new(Limits::default());
        let gateway =
            Gateway::new(Arc::clone(&database), Arc::clone(&database), Options::default());
        Self { gateway, database, runtime }
    }

    fn tell(&self, request: Request<Full<Bytes>>) -> Told {
        let (status, body) = self.runtime.block_on(async {
            let answer = self.gateway.handle(request).await.expect("an answer");
            let (head, body) = answer.into_parts();
            let body = match body {
                AnswerBody::Whole(body) => body,
                AnswerBody::Frames(frames) => {
                    frames.collect().await.expect("the stream has an end").to_bytes()
                }
            };
            (head.status, body)
        });
        let asked = std::mem::take(&mut *self.database.asked.lock().expect("no panic before"));
        Told { status, body, asked }
    }
}

pub fn post(path: &str, body: Bytes) -> Told {
    tell(request("POST", path).body(Full::new(body)).expect("a request"))
}

/// `None`: the path or a header cannot be sent.
pub fn get(path: &str, headers: &[(&str, &[u8])]) -> Option<Told> {
    told_with(request("GET", path), headers)
}

/// A request with these headers alone. `None`: it cannot be sent.
pub fn from_a_stranger(method: &str, path: &str, headers: &[(&str, &[u8])]) -> Option<Told> {
    told_with(Request::builder().method(method).uri(path), headers)
}

fn told_with(
    mut request: hyper::http::request::Builder,
    headers: &[(&str, &[u8])],
) -> Option<Told> {
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Some(tell(request.body(Full::default()).ok()?))
}

fn request(method: &str, path: &str) -> hyper::http::request::Builder {
    Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {TOKEN}"))
        .header("x-denokv-version", "3")
        .header("x-denokv-database-id", DATABASE.to_string())
}

fn tell(request: Request<Full<Bytes>>) -> Told {
    thread_local! {
        static TELLER: RefCell<Teller> = RefCell::new(Teller::new());
    }
    TELLER.with_borrow(|teller| teller.tell(request))
}

/// A database that has nothing and takes everything.
#[derive(Default)]
struct Limits {
    asked: Mutex<Vec<Asked>>,
}

impl Limits {
    fn note(&self, asked: Asked) {
        self.asked.lock().expect("no panic before").push(asked);
    }
}

/// Tells of all keys once, and ends.
pub struct Once(Option<WatchNews>);

impl Watching for Once {
    fn poll_news(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<WatchNews, NoRoom>>> {
        Poll::Ready(self.0.take().map(Ok))
    }

    fn take_back(&mut self, _: &WatchNews) {}
}

fn stamp() -> Versionstamp {
    Versionstamp::new(Position::new(Epoch(1), 7), 3)
}

fn value(data: &Bytes) -> Value {
    Value { encoding: ValueEncoding::Bytes, data: data.clone() }
}

impl Database for Limits {
    type Watching = Once;

    /// Every other key is there.
    async fn watch(self: &Arc<Self>, watch: Watch) -> Result<Once, Unavailable> {
        assert!((1..=limits::MAX_WATCHED_KEYS).contains(&watch.keys.len()));
        assert!(watch.keys.iter().all(|key| key.len() <= limits::MAX_READ_KEY_BYTES));
        let news = watch.keys.iter().enumerate().map(|(at, key)| {
            let entry = Entry { key: key.clone(), value: value(key), versionstamp: stamp() };
            Some(if at % 2 == 0 { WatchedValue::present(entry) } else { WatchedValue::absent() })
        });
        let news = news.collect();
        self.note(Asked::Watch(watch));
        Ok(Once(Some(news)))
    }

    /// One change of each kind, then none, and at last a reason to end.
    async fn changes(&self, wanted: ChangesWanted) -> Result<Changed, NoChanges> {
        assert!(wanted.prefix.len() <= limits::MAX_READ_KEY_BYTES);
        if self.asked.lock().expect("no panic before").len() >= 3 {
            return Err(NoChanges::NotOfHistory);
        }
        let reached = Versionstamp::behind(stamp().position());
        let key = || wanted.prefix.clone();
        let changes = vec![
            Change::Set { key: key(), value: value(&wanted.prefix), expire_at_ms: 0 },
            Change::Set { key: key(), value: value(&wanted.prefix), expire_at_ms: u64::MAX },
            Change::Deleted { key: key() },
            Change::Expired { key: key() },
            Change::DatabaseDropped,
        ];
        let has_more = wanted.after.is_some_and(|after| after != reached);
        let transaction = ChangedTransaction { versionstamp: stamp(), changes };
        let transactions = has_more.then_some(transaction).into_iter().collect();
        self.note(Asked::Changes(wanted));
        Ok(Changed { transactions, reached, next_bytes: 0 })
    }

    /// Hands out and releases what is held, with the ids for payloads.
    fn listen(self: &Arc<Self>, listen: Listen) -> Listened {
        assert!((1..=MAX_CREDITS).contains(&listen.credits));
        assert!(listen.held.len() <= MAX_CREDITS as usize);
        let message = |key: &meridian_queue::MessageKey| QueuedMessage {
            key: *key,
            attempt: u32::MAX,
            payload: Bytes::copy_from_slice(&key.id.to_bytes()),
            enqueued_ms: key.due_ms,
            lease: listen.lease,
        };
        let messages = Heard::Messages(listen.held.iter().map(message).collect());
        let heard = vec![messages, Heard::Released(listen.held.clone()), Heard::Ended("\"".into())];
        self.note(Asked::Listen(listen));
        Listened { heard: Box::pin(futures::stream::iter(heard)), enough: oneshot::channel().0 }
    }

    /// A page of one message that is listed whole, or of one dead letter.
    async fn list_queue(&self, list: QueueList) -> Result<QueuePage, Unavailable> {
        assert!((1..=1000).contains(&list.limit));
        let mut page = QueuePage::default();
        let id = MessageId { enqueued: stamp(), index: u16::MAX };
        let payload = list.whole.then(|| Bytes::from_static(b"\xff\x0f0"));
        match list.from {
            ListFrom::Messages { after } => page.messages.push(ListedMessage {
                key: after.unwrap_or(MessageKey { due_ms: u64::MAX, id }),
                failed: u32::MAX,
                enqueued_ms: u64::MAX,
                payload_bytes: 3,
                keys: 1,
                leased: true,
                whole: payload.map(|payload| (payload.clone(), vec![payload])),
            }),
            ListFrom::DeadLetters { first } => page.dead_letters.push(ListedLetter {
                number: first,
                queue: list.queue.name.clone(),
                id,
                failed: u32::MAX,
                enqueued_ms: u64::MAX,
                died_ms: u64::MAX,
                payload_bytes: 3,
                payload,
            }),
        }
        self.note(Asked::List(list));
        Ok(page)
    }

    async fn report(&self, reports: Reports) -> Result<Vec<Answer>, Unavailable> {
        assert!(reports.reports.len() <= MAX_CREDITS as usize);
        let answers = reports.reports.iter().map(|_| Answer::Done).collect();
        self.note(Asked::Report(reports));
        Ok(answers)
    }

    async fn read(&self, read: Read) -> Result<ReadOutput, Unavailable> {
        assert!(read.ranges.len() <= limits::MAX_READ_RANGES);
        let entries: u64 = read.ranges.iter().map(|range| u64::from(range.limit)).sum();
        assert!(entries <= limits::MAX_READ_ENTRIES as u64);
        for range in &read.ranges {
            assert!(range.limit > 0 && range.start <= range.end);
            assert!(range.start.len() <= limits::MAX_READ_KEY_BYTES);
            assert!(range.end.len() <= limits::MAX_READ_KEY_BYTES);
        }
        let ranges = read.ranges.iter().map(|_| Vec::new()).collect();
        self.note(Asked::Read(read));
        Ok(ReadOutput { ranges })
    }

    async fn write(&self, write: Write) -> Result<WriteOutcome, WriteFailure> {
        is_within_limits(&write.transaction);
        self.note(Asked::Write(write));
        Ok(WriteOutcome::Committed(stamp()))
    }
}

fn is_within_limits(transaction: &Transaction) {
    let Transaction { checks, mutations, enqueues, settlements } = transaction;
    assert!(checks.len() <= limits::MAX_CHECKS);
    assert!(checks.iter().all(|check| check.key.len() <= limits::MAX_READ_KEY_BYTES));
    assert!(mutations.len() + enqueues.len() <= limits::MAX_MUTATIONS);
    let mut bytes = 0;
    for mutation in mutations {
        assert!(mutation.key.len() <= limits::MAX_WRITE_KEY_BYTES);
        let value = match &mutation.kind {
            MutationKind::Delete => continue,
            MutationKind::SetSuffixVersionstampedKey(value) => {
                let suffix = limits::VERSIONSTAMP_SUFFIX_BYTES;
                assert!(mutation.key.len() + suffix <= limits::MAX_WRITE_KEY_BYTES);
                value
            }
            MutationKind::Sum { operand, bounds } => {
                assert!(bounds.min.len() <= limits::MAX_VALUE_BYTES);
                assert!(bounds.max.len() <= limits::MAX_VALUE_BYTES);
                operand
            }
            MutationKind::Set(value) | MutationKind::Min(value) | MutationKind::Max(value) => value,
        };
        assert!(value.data.len() <= limits::MAX_VALUE_BYTES);
        assert!(value.encoding != ValueEncoding::Le64 || value.data.len() == 8);
        bytes += mutation.key.len() + value.data.len();
    }
    for enqueue in enqueues {
        assert!(enqueue.payload.len() <= limits::MAX_VALUE_BYTES);
        assert!(enqueue.keys_if_undelivered.len() <= limits::MAX_UNDELIVERED_KEYS);
        let keys = enqueue.keys_if_undelivered.iter();
        assert!(keys.clone().all(|key| key.len() <= limits::MAX_WRITE_KEY_BYTES));
        let schedule = enqueue.backoff_ms.as_deref().unwrap_or_default();
        assert!(schedule.len() <= limits::MAX_BACKOFF_INTERVALS);
        assert!(schedule.iter().all(|interval| *interval <= limits::MAX_BACKOFF_INTERVAL_MS));
        bytes += enqueue.payload.len() + keys.map(Bytes::len).sum::<usize>();
    }
    assert!(bytes <= limits::MAX_TRANSACTION_BYTES);
    assert!(settlements.len() <= 1000);
}

impl Catalogue for Limits {
    fn default_database(&self) -> Option<DatabaseId> {
        Some(DATABASE)
    }

    fn by_name(&self, _: &str) -> Option<DatabaseId> {
        None
    }

    fn shard(&self, database: DatabaseId) -> Option<ShardId> {
        (database == DATABASE).then_some(ShardId(1))
    }

    fn v8_format(&self, _: DatabaseId) -> V8Format {
        V8Format::Portable
    }

    fn authorize(&self, token: &str) -> Option<Grant> {
        (token == TOKEN).then(|| Grant::new(Databases::All, Permissions::ALL))
    }

    fn is_current(&self) -> bool {
        true
    }
}
