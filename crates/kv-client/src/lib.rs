//! A client of KV Connect that hides nothing: no retries, no checks of its own, each answer as it
//! came. For the load generator, drills, `meridian latency` and tests.
//!
//! | module | what it holds |
//! |---|---|
//! | `endpoint` | [`Endpoint`]: a URL that requests go to |
//! | `link` | [`Link`]: one connection, or streams on a shared one, and what a request over it gives |
//! | `metadata` | [`Metadata`]: the metadata exchange |
//! | `target` | [`Target`]: what all requests to one method share |
//! | [`answer`] | which answers are successes, and what they hold |
//! | `client` | [`KvClient`]: one database through one gateway |
//! | `lines` | [`Lines`]: an answer that goes on, a line at a time |
//! | `changes` | [`ChangeFeed`]: a feed of its changes |
//! | `watching` | [`Watching`]: a watch of that database |
//! | [`message`] | the messages of requests |
//! | `trust` | [`trust()`]: the authorities that are believed of servers over TLS |
//! | `http_version`, `error` | [`HttpVersion`], [`ClientError`] |
//!
//! Absent on purpose: retries, but of a request that certainly was not sent.

pub mod answer;
mod changes;
mod client;
mod endpoint;
mod error;
mod http_version;
mod lines;
mod link;
pub mod message;
mod metadata;
mod target;
mod trust;
mod watching;

pub use changes::{Change, ChangeFeed, ChangeLine, ChangesFrom};
pub use client::{CallError, KvClient, Reply};
pub use endpoint::Endpoint;
pub use error::ClientError;
pub use http_version::HttpVersion;
pub use lines::Lines;
pub use link::Link;
pub use metadata::Metadata;
pub use target::{Headers, Target};
pub use trust::trust;
pub use watching::{WatchMessage, Watching};
