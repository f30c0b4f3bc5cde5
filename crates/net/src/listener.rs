//! Binding and accepting.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::{Instant, sleep_until};

use crate::ports;
use crate::stream::Stream;

/// How long a listener rests when it cannot accept, as when file descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A port that is listened on. Dropping it closes the port.
#[derive(Debug)]
pub struct Listener {
    tcp: TcpListener,
    rests_until: Option<Instant>,
}

impl Listener {
    /// Listens on `address`, which is `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// When the port cannot be had; with advice where an outgoing connection may hold it.
    pub async fn bind(address: &str) -> io::Result<Self> {
        let bound = TcpListener::bind(address).await;
        Ok(Self::new(bound.map_err(|cause| ports::explain(cause, address))?))
    }

    fn new(tcp: TcpListener) -> Self {
        Self { tcp, rests_until: None }
    }

    /// # Errors
    /// When the system does not say.
    pub fn local_address(&self) -> io::Result<SocketAddr> {
        self.tcp.local_addr()
    }

    /// The next connection, and the peer's address. May be dropped at any await, and called again.
    pub async fn accept(&mut self) -> (Stream, SocketAddr) {
        loop {
            if let Some(until) = self.rests_until {
                sleep_until(until).await;
                self.rests_until = None;
            }
            match self.tcp.accept().await {
                Ok((tcp, peer)) => match Stream::new(tcp) {
                    Ok(stream) => return (stream, peer),
                    Err(error) => {
                        tracing::debug!(%error, "connection ended before it was served");
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    self.rests_until = Some(Instant::now() + ACCEPT_PAUSE);
                }
            }
        }
    }

    /// Takes the listener from the runtime that it belongs to.
    ///
    /// # Errors
    /// When the system does not let go of it.
    pub fn detach(self) -> io::Result<DetachedListener> {
        self.tcp.into_std().map(DetachedListener)
    }
}

/// A listener that belongs to no runtime.
#[derive(Debug)]
pub struct DetachedListener(std::net::TcpListener);

impl DetachedListener {
    /// Gives the listener to the present runtime.
    ///
    /// # Errors
    /// When the runtime cannot watch it.
    pub fn attach(self) -> io::Result<Listener> {
        TcpListener::from_std(self.0).map(Listener::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_in_use_of_the_outgoing_range_is_advised_against() {
        let Some(range) = ports::outgoing() else { return };
        // The system chooses a port of that range.
        let taken = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_address().unwrap().to_string();
        let text = Listener::bind(&address).await.unwrap_err().to_string();
        assert!(text.contains(&format!("choose one below {}", range.start())), "{text}");
    }

    #[tokio::test]
    async fn listener_that_moved_to_another_runtime_accepts_there() {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        let mut listener = listener.detach().unwrap().attach().unwrap();
        let dialled = Stream::dial("127.0.0.1", address.port(), Duration::from_secs(5));
        let (dialled, (_, peer)) = tokio::join!(dialled, listener.accept());
        assert!(dialled.is_ok() && peer.ip() == address.ip());
    }
}
