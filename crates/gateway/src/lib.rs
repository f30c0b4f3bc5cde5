//! KV Connect over a small [`Database`] trait: HTTP/1.1 and HTTP/2 on one plain TCP port.
//!
//! | module | what it holds |
//! |---|---|
//! | `server` | sockets: accepting, which connections stay when there are too many, idle connections, draining |
//! | `gateway` | one request from its head to its answer |
//! | `route` | the paths, all of them |
//! | `head`, `body` | what is read of a request before it is understood |
//! | `metadata` | the metadata exchange |
//! | `validation` | protobuf to `meridian-types`, with every limit |
//! | `answer`, `refusal` | results and errors to HTTP, all of them |
//! | `access`, `catalogue` | who may do what, and which databases there are |
//! | `shares` | requests and bytes in progress, and that no token takes them all |
//! | `telemetry` | metrics |
//!
//! What always holds here:
//! - A 5xx to a write says that it did not commit and never will. A write whose outcome is unknown
//!   is not answered at all: its connection (HTTP/1.1) or stream (HTTP/2) is dropped.
//! - A write that began is finished, whether or not its client is still there.
//! - Only the path says how a read is served: `read_is_strongly_consistent` is true on the strong
//!   path and false on the eventual one.
//! - No 429, and no `DISABLED` status: clients give up on them. What cannot be served is held by
//!   the [`Database`], then refused with 503.
//! - Keys, values and tokens are in no log line, no metric and no error text.
//!
//! Absent on purpose: TLS (a proxy's business), routing to leaders, retries and evaluation (the
//! [`Database`]'s), and for now watches and queues.

mod access;
mod answer;
mod body;
mod catalogue;
mod database;
mod gateway;
mod head;
mod metadata;
mod options;
mod order;
mod refusal;
mod route;
mod server;
mod shares;
mod telemetry;
mod unabandoned;
mod validation;

pub use access::{Access, AccessToken, Databases, Grant, InvalidAccess};
pub use catalogue::Catalogue;
pub use database::{Database, Read, ReadOutput, Unavailable, Write, WriteFailure};
pub use gateway::{Gateway, Unanswered};
pub use options::{InvalidPublicUrl, Options, PublicUrl};
pub use route::{EVENTUAL_PATH, STRONG_PATH};
pub use server::serve;
