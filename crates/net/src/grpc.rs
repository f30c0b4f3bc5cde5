//! Settings of the gRPC server, and of channels: from node to node, and from an operator to a node.

use std::error::Error;
use std::time::Duration;
use std::{fmt, io};

use hyper::Uri;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Channel, Endpoint, Server};
use tonic::{Request, Status};

use crate::connector::Connector;
pub use crate::connector::Way;
use crate::mutual::{Believed, Dialler, Expected};
use crate::tls::{self, Identity, PemFile};

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
    way: Way,
}

impl Peer {
    /// `address` is `host:port`. `authority` is what calls name, instead of the address.
    ///
    /// # Errors
    /// [`NotAnAddress`].
    pub fn new(address: &str, authority: Option<Uri>, way: Way) -> Result<Self, NotAnAddress> {
        let endpoint = endpoint(address)?;
        let endpoint = match authority {
            Some(authority) => endpoint.origin(authority),
            None => endpoint,
        };
        let endpoint = endpoint
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            // Each answer to a cancelled call, and hedged calls are cancelled all day, counts for
            // as long as the connection lives: a node of the cluster would be cut off for being
            // late, with every other call to it.
            .http2_max_local_error_reset_streams(None);
        Ok(Self { endpoint, way })
    }

    /// The same node for many streams that are read slowly: little of each is on the way.
    #[must_use]
    pub fn narrow(&self) -> Self {
        let endpoint = self.endpoint.clone();
        let endpoint = endpoint.initial_stream_window_size(NARROW_STREAM_WINDOW_BYTES);
        Self { endpoint, way: self.way.clone() }
    }

    /// A channel with a connection of its own.
    #[must_use]
    pub fn channel(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(self.connector(false))
    }

    /// The same, of which the other side knows that it is for control.
    #[must_use]
    pub fn control_channel(&self) -> Channel {
        self.endpoint.connect_with_connector_lazy(self.connector(true))
    }

    fn connector(&self, is_control: bool) -> Connector {
        Connector { way: self.way.clone(), is_control, timeout: PEER_CONNECT_TIMEOUT }
    }
}

/// The way of an operator to nodes, with the token to show, if there is one.
#[derive(Clone)]
pub struct Access {
    way: Way,
    token: Token,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access").field("way", &self.way).finish_non_exhaustive()
    }
}

impl Access {
    /// In the clear, without any proof.
    #[must_use]
    pub fn open() -> Self {
        Self { way: Way::Plain, token: Token(None) }
    }

    /// Over TLS to any node of the cluster, whose authorities the file has; with a certificate in
    /// a file (and its key in the same), if there is one.
    ///
    /// # Errors
    /// A file cannot be used.
    pub fn secure(
        cluster: String,
        authorities: &PemFile,
        identity: Option<&PemFile>,
    ) -> io::Result<Self> {
        let authorities = tls::authorities(authorities).map_err(io::Error::other)?;
        let identity = identity.map(|file| Identity::from_pem(file, file)).transpose();
        let identity = identity.map_err(io::Error::other)?;
        let dialler = Dialler::new(identity.as_ref(), Believed::Authorities(authorities))?;
        let expected = Expected { cluster: Some(cluster), node: None };
        Ok(Self { way: Way::Tls { dialler, expected, or_plain: false }, token: Token(None) })
    }

    /// The same, showing an operator's token.
    ///
    /// # Errors
    /// It has other characters than visible ASCII.
    pub fn with_token(self, token: &str) -> io::Result<Self> {
        let value = format!("Bearer {token}").parse();
        let value = value.map_err(|_| io::Error::other("the token is no visible ASCII"))?;
        Ok(Self { token: Token(Some(value)), ..self })
    }

    /// Of a process that joins a cluster: over TLS to a node whose authority has this certificate
    /// (its SHA-256, in hex), without any proof.
    ///
    /// # Errors
    /// Never, as far as is known.
    pub fn pinned(cluster: String, authority: String) -> io::Result<Self> {
        let dialler = Dialler::new(None, Believed::Pinned(authority))?;
        let expected = Expected { cluster: Some(cluster), node: None };
        Ok(Self { way: Way::Tls { dialler, expected, or_plain: false }, token: Token(None) })
    }
}

/// Shows the operator's token with each call.
#[derive(Clone)]
pub struct Token(Option<MetadataValue<Ascii>>);

impl Interceptor for Token {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(token) = &self.0 {
            request.metadata_mut().insert("authorization", token.clone());
        }
        Ok(request)
    }
}

/// A channel of an operator.
pub type OperatorChannel = InterceptedService<Channel, Token>;

/// Connects an operator to a node. Nothing has been asked of the node then.
///
/// # Errors
/// [`Unreachable`].
pub async fn connect(
    address: &str,
    access: &Access,
    timeouts: Timeouts,
) -> Result<OperatorChannel, Unreachable> {
    let endpoint = operators_endpoint(address, timeouts);
    let endpoint = endpoint.map_err(|error| Unreachable::new(&error))?;
    let connect = endpoint.connect_with_connector(access.connector(timeouts));
    let connected = tokio::time::timeout(timeouts.connect, connect).await;
    let connected = connected.map_err(|error| Unreachable::new(&error))?;
    let channel = connected.map_err(|error| Unreachable::new(&error))?;
    Ok(InterceptedService::new(channel, access.token.clone()))
}

/// A channel from an operator to a node, which connects when first used. Within a tokio runtime
/// only.
///
/// # Errors
/// [`NotAnAddress`].
pub fn connect_lazily(
    address: &str,
    access: &Access,
    timeouts: Timeouts,
) -> Result<OperatorChannel, NotAnAddress> {
    let endpoint = operators_endpoint(address, timeouts)?;
    let channel = endpoint.connect_with_connector_lazy(access.connector(timeouts));
    Ok(InterceptedService::new(channel, access.token.clone()))
}

impl Access {
    fn connector(&self, timeouts: Timeouts) -> Connector {
        Connector { way: self.way.clone(), is_control: false, timeout: timeouts.connect }
    }
}

fn operators_endpoint(address: &str, timeouts: Timeouts) -> Result<Endpoint, NotAnAddress> {
    let endpoint = endpoint(address)?;
    Ok(match timeouts.call {
        Some(call) => endpoint.timeout(call),
        None => endpoint,
    })
}

/// Without a time limit on connecting, which [`Connector`] has: a limit of tonic's own is no
/// [`tonic::ConnectError`] when it is reached, so that a call that was never sent would look like a
/// call that may have been.
fn endpoint(address: &str) -> Result<Endpoint, NotAnAddress> {
    Endpoint::from_shared(format!("http://{address}")).map_err(|_| NotAnAddress(address.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use futures::future::join_all;
    use hyper::http;
    use tokio::net::{TcpSocket, TcpStream};
    use tonic::body::Body;
    use tonic::codegen::Service;

    use super::*;

    const TIMEOUTS: Timeouts = Timeouts { connect: Duration::from_secs(2), call: None };

    #[tokio::test]
    async fn failed_connection_names_its_innermost_cause() {
        let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error =
            connect(&refused.to_string(), &Access::open(), TIMEOUTS).await.unwrap_err().to_string();
        assert!(error.starts_with("Connection refused"), "{error}");
        let error = connect("no address", &Access::open(), TIMEOUTS).await.unwrap_err().to_string();
        assert_eq!(error, "`no address` is no address");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn channel_that_is_not_connected_in_time_says_of_each_call_that_it_was_not() {
        // A listener whose backlog is full answers no connection.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = socket.listen(1).unwrap();
        let address = listener.local_addr().unwrap();
        let mut filling = Vec::new();
        while let Ok(connected) =
            tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
        {
            filling.push(connected.unwrap());
        }
        let peer = Peer::new(&address.to_string(), None, Way::Plain).unwrap();
        let calls = (0..300).map(|_| async {
            let mut channel = peer.channel();
            poll_fn(|cx| channel.poll_ready(cx)).await.unwrap();
            let request = http::Request::post("http://unused/a/method").body(Body::empty());
            channel.call(request.unwrap()).await.unwrap_err()
        });
        for error in join_all(calls).await {
            let (mut cause, mut is_of_connecting) = (Some(&error as &(dyn Error + 'static)), false);
            while let Some(error) = cause {
                is_of_connecting |= error.is::<tonic::ConnectError>();
                cause = error.source();
            }
            assert!(is_of_connecting, "{error:?}");
        }
    }

    #[tokio::test]
    async fn text_that_is_no_address_gives_no_channel() {
        assert!(connect_lazily("127.0.0.1:1", &Access::open(), TIMEOUTS).is_ok());
        let refused = Err(NotAnAddress("a b".to_owned()));
        assert_eq!(connect_lazily("a b", &Access::open(), TIMEOUTS).map(drop), refused);
        assert_eq!(Peer::new("a b", None, Way::Plain).map(drop), refused);
    }
}
