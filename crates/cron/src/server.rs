//! The socket that Deno finds by `DENO_UNSTABLE_CRON_SOCK`.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use meridian_kv_client::{CallError, ClientError};
use meridian_net::Listener;
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::program;
use crate::rows::{self, Rows, RowsError};

/// Each is a program of this machine, or a worker of one.
const MAX_PROGRAMS: usize = 1024;

/// Handlers that run have so long to end when this process does, as the requests of a gateway have.
const DRAIN: Duration = Duration::from_secs(10);

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum CronError {
    #[error("the cron socket `{0}` is not an address such as 127.0.0.1:4600")]
    Address(String),
    #[error(
        "the cron socket would be open to the network at {0}, and it asks for no token: let it \
         listen on a loopback address, such as 127.0.0.1"
    )]
    NotLoopback(SocketAddr),
    #[error("cannot listen on {address} for crons: {cause}")]
    Listen { address: SocketAddr, cause: std::io::Error },
    #[error("crons cannot use their database: {0}")]
    Database(RowsError),
}

/// A cron socket that is served.
pub struct CronServer {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl CronServer {
    /// The address of a socket that may be served.
    ///
    /// # Errors
    /// When it is none, or not on loopback.
    pub fn check(address: &str) -> Result<SocketAddr, CronError> {
        let parsed = match address.strip_prefix("localhost:") {
            Some(port) => port.parse().ok().map(|port| SocketAddr::from(([127, 0, 0, 1], port))),
            None => address.parse().ok(),
        };
        let parsed: SocketAddr = parsed.ok_or_else(|| CronError::Address(address.to_owned()))?;
        let is_loopback = match parsed.ip() {
            IpAddr::V4(ip) => ip.is_loopback(),
            IpAddr::V6(ip) => ip.to_canonical().is_loopback(),
        };
        if is_loopback { Ok(parsed) } else { Err(CronError::NotLoopback(parsed)) }
    }

    /// Serves crons whose rows are in a database, which is opened by its URL as clients open it. A
    /// gateway that cannot be reached is asked again, and again.
    ///
    /// # Errors
    /// [`CronError`], also where the gateway refuses the token or the database.
    pub async fn start(address: &str, url: String, token: String) -> Result<Self, CronError> {
        let address = Self::check(address)?;
        let rows = Rows::new(url, token);
        match rows.may_write().await {
            Err(error) if is_for_good(&error) => return Err(CronError::Database(error)),
            Err(error) => tracing::warn!(%error, "crons wait for their gateway"),
            Ok(()) => {}
        }
        let listen = |cause| CronError::Listen { address, cause };
        let listener = Listener::bind(&address.to_string()).await.map_err(listen)?;
        let address = listener.local_address().map_err(listen)?;
        let stop = CancellationToken::new();
        let task = tokio::spawn(accept(listener, rows, stop.clone()));
        Ok(Self { address, stop, task })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The value of `DENO_UNSTABLE_CRON_SOCK`.
    pub fn variable(&self) -> String {
        format!("tcp:{}", self.address)
    }

    /// Begins no handler, waits ten seconds for those that run, and ends the connections. Others run
    /// again what has not ended by then, when its lease has run out.
    pub async fn stop(self) {
        self.stop.cancel();
        // A task that failed has said so.
        drop(self.task.await);
    }
}

/// Whether it is no use to ask again.
fn is_for_good(error: &RowsError) -> bool {
    match error {
        RowsError::Open(error) => is_refusal(error),
        RowsError::Call(CallError::Refused { status, .. }) => rows::is_refusal(status.as_u16()),
        RowsError::Database { .. } => true,
        RowsError::Call(_) | RowsError::Refused(_) | RowsError::NoRow => false,
    }
}

/// Whether the gateway has answered that it will not.
fn is_refusal(error: &ClientError) -> bool {
    match error {
        ClientError::Metadata { source, .. } => is_refusal(source),
        ClientError::Status { status, .. } => status.is_client_error(),
        ClientError::Connect { .. } | ClientError::Transport(_) | ClientError::Timeout(_) => false,
        _ => true,
    }
}

async fn accept(mut listener: Listener, rows: Rows, stop: CancellationToken) {
    let mut programs = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            (stream, _) = listener.accept(), if programs.len() < MAX_PROGRAMS => {
                programs.spawn(program::serve(stream, rows.clone(), stop.clone()));
            }
            Some(_) = programs.join_next() => {}
        }
    }
    drop(listener);
    let ended = async { while programs.join_next().await.is_some() {} };
    if tokio::time::timeout(DRAIN, ended).await.is_err() {
        tracing::warn!("a handler of a cron has not ended: it may be run again elsewhere");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_is_on_loopback_or_nowhere() {
        for address in ["127.0.0.1:4600", "127.8.0.1:0", "[::1]:1", "localhost:4600"] {
            assert!(CronServer::check(address).is_ok(), "{address}");
        }
        for address in ["0.0.0.0:4600", "10.0.0.1:4600", "[::]:4600", "[2001:db8::1]:1"] {
            let error = CronServer::check(address).unwrap_err().to_string();
            assert!(error.contains("loopback"), "{address}: {error}");
        }
        for address in ["4600", "kv.example.com:4600", "localhost:x", ""] {
            let error = CronServer::check(address).unwrap_err().to_string();
            assert!(error.contains("is not an address"), "{address}: {error}");
        }
    }
}
