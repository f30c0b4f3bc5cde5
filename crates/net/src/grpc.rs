//! Settings of the gRPC server, and of channels: from node to node, and from an operator to a node.

use std::error::Error;
use std::time::Duration;

use hyper::Uri;
use tonic::transport::{Channel, Endpoint, Server};

use crate::control::ControlConnector;

/// Bytes of one message between nodes, and of one to an operator, at most.
pub const MAX_MESSAGE_BYTES: usize = 64 << 20;

/// To send the log, and whole states, over a distance at the rate of the line.
const STREAM_WINDOW_BYTES: u32 = 8 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// About one part of what is sent to a listener.
const NARROW_STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Between probes of a connection without traffic, from both sides.
const PING_INTERVAL: Duration = Duration::from_secs(2);
/// How long a probe may go unanswered, for the dialling and for the accepting side.
const PING_TIMEOUT: Duration = Duration::from_secs(3);
const SERVER_PING_TIMEOUT: Duration = Duration::from_secs(5);
const TCP_KEEPALIVE: Duration = Duration::from_secs(5);
const PEER_CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// Calls in progress on one connection, and cancelled ones not noticed yet.
const MAX_STREAMS: u32 = 8192;

/// Text that is not the address of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no address")]
pub struct NotAnAddress(pub String);

/// Why there is no connection: the innermost cause, such as `Connection refused`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Unreachable(String);

impl Unreachable {
    fn new(error: &dyn Error) -> Self {
        let mut innermost = error;
        while let Some(cause) = innermost.source() {
            innermost = cause;
        }
        Self(innermost.to_string())
    }
}

/// How long an operator waits.
#[derive(Debug, Clone, Copy)]
pub struct Timeouts {
    pub connect: Duration,
    /// `None`: the caller decides for each call.
    pub call: Option<Duration>,
}

/// A server with the settings for nodes, gateways and operators.
#[must_use]
pub fn server() -> Server {
    Server::builder()
        .http2_keepalive_interval(Some(PING_INTERVAL))
        .http2_keepalive_timeout(Some(SERVER_PING_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(MAX_STREAMS)
        // Callers cancel calls as a matter of course: the slower of two hedged calls, or the call
        // of a client that left.
        .http2_max_pending_accept_reset_streams(Some(MAX_STREAMS as usize))
}

/// A node as other nodes and gateways dial it. Channels connect when first used, and again when
/// broken.
#[derive(Debug, Clone)]
pub struct Peer {
    endpoint: Endpoint,
}

impl Peer {
    /// `address` is `host:port`. `authority` is what calls name, instead of the address.
    ///
    /// # Errors
    /// [`NotAnAddress`].
    pub fn new(address: &str, authority: Option<Uri>) -> Result<Self, NotAnAddress> {
        let endpoint = endpoint(address)?;
        let endpoint = match authority {
            Some(authority) => endpoint.origin(authority),
            None => endpoint,
        };
        let endpoint = endpoint
            .connect_timeout(PEER_CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(TCP_KEEPALIVE))
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            // Each answer to a cancelled call, and hedged calls are cancelled all day, counts for
            // as long as the connection lives: a node of the cluster would be cut off for being
            // late, with every other call to it.
            .http2_max_local_error_reset_streams(None);
        Ok(Self { endpoint })
    }

    /// The same node for many streams that are read slowly: little of each is on the way.
    #[must_use]
    pub fn narrow(&self) -> Self {
        let endpoint = self.endpoint.clone();
        Self { endpoint: endpoint.initial_stream_window_size(NARROW_STREAM_WINDOW_BYTES) }
    }

    /// A channel with a connection of its own.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.endpoint.connect_lazy()
    }

    /// The same, of which the other side knows that it is for control.
    #[must_use]
    pub fn control_channel(&self) -> Channel {
        let connector = ControlConnector { connect_timeout: PEER_CONNECT_TIMEOUT };
        self.endpoint.connect_with_connector_lazy(connector)
    }
}

/// Connects an operator to a node. Nothing has been asked of the node then.
///
/// # Errors
/// [`Unreachable`].
pub async fn connect(address: &str, timeouts: Timeouts) -> Result<Channel, Unreachable> {
    let endpoint = operators_endpoint(address, timeouts);
    let endpoint = endpoint.map_err(|error| Unreachable::new(&error))?;
    let connected = tokio::time::timeout(timeouts.connect, endpoint.connect()).await;
    let connected = connected.map_err(|error| Unreachable::new(&error))?;
    connected.map_err(|error| Unreachable::new(&error))
}

/// A channel from an operator to a node, which connects when first used. Within a tokio runtime
/// only.
///
/// # Errors
/// [`NotAnAddress`].
pub fn connect_lazily(address: &str, timeouts: Timeouts) -> Result<Channel, NotAnAddress> {
    Ok(operators_endpoint(address, timeouts)?.connect_lazy())
}

fn operators_endpoint(address: &str, timeouts: Timeouts) -> Result<Endpoint, NotAnAddress> {
    let endpoint = endpoint(address)?.connect_timeout(timeouts.connect);
    Ok(match timeouts.call {
        Some(call) => endpoint.timeout(call),
        None => endpoint,
    })
}

fn endpoint(address: &str) -> Result<Endpoint, NotAnAddress> {
    Endpoint::from_shared(format!("http://{address}")).map_err(|_| NotAnAddress(address.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), call: None };

    #[tokio::test]
    async fn failed_connection_names_its_innermost_cause() {
        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = connect(&refused.to_string(), TIMEOUTS).await.unwrap_err().to_string();
        assert!(error.starts_with("Connection refused"), "{error}");
        let error = connect("no address", TIMEOUTS).await.unwrap_err().to_string();
        assert_eq!(error, "`no address` is no address");
    }

    #[tokio::test]
    async fn text_that_is_no_address_gives_no_channel() {
        assert!(connect_lazily("127.0.0.1:1", TIMEOUTS).is_ok());
        let refused = Err(NotAnAddress("a b".to_owned()));
        assert_eq!(connect_lazily("a b", TIMEOUTS).map(drop), refused);
        assert_eq!(Peer::new("a b", None).map(drop), refused);
    }
}
