//! KV Connect and queues over a small [`Database`] trait: HTTP/1.1 and HTTP/2 on one port, plain or
//! with TLS.
//!
//! | module | contents |
//! |---|---|
//! | `server` | sockets: accepting, eviction when there are too many, idle connections, draining |
//! | `gateway` | one request from its head to its answer |
//! | `request_id` | ids of writes |
//! | `route` | the paths, all of them |
//! | `forwarded` | the address, scheme and host of a client, behind trusted proxies |
//! | `head`, `body` | reading a request before it is understood |
//! | `metadata` | the metadata exchange |
//! | `reserved` | reserved keys: what a client says that its library cannot send |
//! | `validation` | protobuf to `meridian-types`, with every limit |
//! | `order` | the order of the writes of one connection |
//! | `unabandoned` | writes that run to their end without their client |
//! | `answer`, `refusal` | results and errors to HTTP, all of them |
//! | `watch_stream`, `watched_value` | the answer to a watch, and the values that it tells of |
//! | `queue_json`, `listen_stream` | what clients of queues send and get, and the answer to a listener |
//! | `stream_access` | the right to a stream, for as long as it lasts |
//! | `changes` | what a change feed asks of the database |
//! | `change_query`, `change_stream`, `change_lines` | what its client asks for, the feed, and its text |
//! | `database`, `catalogue` | the traits behind which a cluster serves |
//! | `access` | tokens and their rights |
//! | `failed_authentication` | why a request showed no token that opens its database, for operators |
//! | `rights`, `forbidden` | the rights that each request needs, and the refusal for want of one |
//! | `shares` | requests and bytes in progress, divided among tokens |
//! | `usage` | how much each database and token uses, and quotas on that |
//! | `room` | room for what is kept for one client, as the database counts it, too |
//! | `options` | settings and limits |
//! | `telemetry` | metrics |
//! | `audit` | the audit log: a line of JSON for each request, in a file |
//!
//! Invariants:
//! - A 5xx to a write says that it did not commit and never will. A write whose outcome is unknown
//!   is not answered at all: its connection (HTTP/1.1) or stream (HTTP/2) is dropped.
//! - A write that began is finished, whether or not its client is still there.
//! - Only the path decides how a read is served: `read_is_strongly_consistent` is true on the strong
//!   path and false on the eventual one.
//! - No 429, and no `DISABLED` status: clients give up on them. The [`Database`] holds an operation
//!   that cannot be served yet, and the gateway then refuses it with 503.
//! - Keys, values and tokens are in no log line, no metric and no error text. Keys and values are in
//!   the audit log where operators ask for them, tokens never.
//!
//! Absent on purpose: certificates and their files (the caller makes a `tls::Server` of them, and
//! changes it), routing to leaders, retries and evaluation (the [`Database`]'s), which listener gets
//! which message (a leader's).

mod access;
mod answer;
mod audit;
mod body;
mod catalogue;
mod change_lines;
mod change_query;
mod change_stream;
mod changes;
mod database;
mod failed_authentication;
mod forbidden;
mod forwarded;
mod gateway;
mod head;
mod listen_stream;
mod metadata;
mod options;
mod order;
mod queue_json;
mod refusal;
mod request_id;
mod reserved;
mod rights;
mod room;
mod route;
mod server;
mod shares;
mod stream_access;
mod telemetry;
mod unabandoned;
mod usage;
mod validation;
mod watch_stream;
mod watched_value;

pub use access::{
    Access, AccessToken, Databases, Denial, Expiring, Grant, InvalidAccess, LastUsed, TokenName,
    digest,
};
pub use answer::{Answer, AnswerBody, Interrupted};
pub use audit::{Audit, AuditSettings, Sample, UnusableAuditLog, WhenFull};
pub use catalogue::Catalogue;
pub use changes::{Change, Changed, ChangedTransaction, ChangesWanted};
pub use database::{
    Database, Heard, ListFrom, ListedLetter, ListedMessage, ListedQueue, ListedTotals, Listen,
    Listened, NoChanges, QueueList, QueuePage, QueuedMessage, Read, ReadOutput, Reports,
    Unavailable, Watch, Watching, Write, WriteFailure,
};
pub use forwarded::{InvalidNetwork, TrustedProxies};
pub use gateway::{Gateway, Unanswered};
pub use options::{HandshakeLimits, InvalidPublicUrl, Options, PublicUrl};
pub use request_id::new_request_id;
pub use room::{Kept, NoRoom, Room};
pub use route::{EVENTUAL_PATH, STRONG_PATH};
pub use server::serve;
pub use usage::{Account, Usage, Used};
pub use watched_value::{WatchNews, WatchedValue, size_of_news};
