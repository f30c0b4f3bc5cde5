//! Every listener and every dial of Meridian, with their limits and timeouts.
//!
//! | module | what it holds |
//! |---|---|
//! | `stream` | [`Stream`]: a connection, dialled or accepted, with or without TLS |
//! | `tls` | [`tls::Identity`], and both sides of TLS: [`tls::Server`], [`tls::Client`] |
//! | `listener`, `ports` | [`Listener`]: binding and accepting; advice about ports that outgoing connections take |
//! | `http` | settings of the HTTP server that clients use |
//! | `grpc` | settings of the gRPC server and of channels, for nodes and for operators; [`MAX_MESSAGE_BYTES`] |
//! | `mutual` | [`Mutual`]: mutual TLS between processes of a cluster; [`Caller`] |
//! | `live` | connections with certificates, to be ended when these are believed no more |
//! | `connector` | dialling a node, in the clear or with TLS |
//! | `post` | POSTs to servers outside of the cluster, with TLS where the URL says so |
//! | `admission` | connections of nodes and gateways, within limits for all and for each address |
//! | `origin` | [`Origin`]: the addresses of one client, and how often it may come |
//! | `standing` | [`Standing`]: the end of a connection whose calls show no proof |
//! | `control` | connections that are told from all others by a mark |
//! | `capacity` | how many files a process may open, and how many connections that leaves room for |
//! | `metrics_endpoint` | the endpoint that serves metrics |
//!
//! Invariants:
//! - A listener that cannot accept pauses, and goes on accepting.
//! - Nagle's algorithm is off on every connection.
//! - Every dial and every connection without traffic has a time limit, but for a gateway's clients,
//!   of which the gateway decides.
//!
//! TLS is in this crate alone. Absent on purpose: requests, and whether a caller may make them.
//! Nothing here knows what is said over a connection.

pub mod admission;
pub mod capacity;
mod connector;
pub mod control;
pub mod grpc;
pub mod http;
mod listener;
mod live;
mod metrics_endpoint;
mod mutual;
mod origin;
mod ports;
pub mod post;
mod standing;
mod stream;
pub mod tls;

pub use grpc::MAX_MESSAGE_BYTES;
pub use listener::Listener;
pub use metrics_endpoint::{Metrics, serve_metrics};
pub use mutual::{Caller, CertificateChanges, Credentials, Expected, Mutual};
pub use origin::Origin;
pub use standing::Standing;
pub use stream::Stream;
