//! Connections of control: they begin with a mark, by which the side that accepts tells them from
//! all others and serves them on another runtime. Behind the mark comes gRPC, as on every other
//! connection.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};

use crate::admission::{Connection, Detached};
use crate::mutual::Mutual;

/// No HTTP/2 preface and no TLS record begins so.
pub(crate) const MARK: [u8; 4] = *b"MRDc";
/// The time for the first bytes of a connection.
const FIRST_BYTES_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two looks at what has come of the first bytes.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(500);
/// Accepted, and not yet taken by a server.
const BACKLOG: usize = 64;

/// Connections as a server takes them.
pub type Connections = ReceiverStream<io::Result<Connection>>;

/// Tells connections of control, which the present runtime is to serve, from all others, which
/// another is to [`adopt`].
///
/// `mutual`: the certificate of this process, with which connections may have TLS.
pub fn divide(
    accepted: impl Stream<Item = io::Result<Connection>> + Send + 'static,
    mutual: Arc<Mutual>,
) -> (Connections, mpsc::Receiver<Detached>) {
    let (control, of_control) = mpsc::channel(BACKLOG);
    let (other, others) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        tokio::pin!(accepted);
        loop {
            let next = tokio::select! {
                () = control.closed() => return,
                next = accepted.next() => next,
            };
            // It comes without end, and with no error that concerns others.
            let Some(Ok(connection)) = next else { continue };
            let (control, other, mutual) = (control.clone(), other.clone(), Arc::clone(&mutual));
            tokio::spawn(async move {
                let sort = sort(connection, control, other, mutual);
                if let Ok(Err(error)) = tokio::time::timeout(FIRST_BYTES_TIMEOUT, sort).await {
                    tracing::debug!(%error, "a connection ended before it said what it is for");
                }
            });
        }
    });
    (ReceiverStream::new(of_control), others)
}

type FirstBytes = [u8; MARK.len()];

/// Whether what comes begins with the [`MARK`]; `peek` looks at what has come, and how much that
/// is.
async fn is_control<F>(mut peek: impl FnMut() -> F) -> io::Result<bool>
where
    F: Future<Output = io::Result<(FirstBytes, usize)>>,
{
    let mut pause = FIRST_PAUSE;
    loop {
        let (first, count) = peek().await?;
        let seen = first.get(..count).unwrap_or_default();
        if count == 0 || !MARK.starts_with(seen) {
            return Ok(false);
        }
        if count == MARK.len() {
            return Ok(true);
        }
        // The rest of it is on its way; what is there already would be seen again at once. A
        // connection that never sends it is looked at less and less: these threads renew leases.
        tokio::time::sleep(pause).await;
        pause = (2 * pause).min(LONGEST_PAUSE);
    }
}

async fn sort(
    mut connection: Connection,
    control: mpsc::Sender<io::Result<Connection>>,
    other: mpsc::Sender<Detached>,
    mutual: Arc<Mutual>,
) -> io::Result<()> {
    let peek = || async {
        let mut first = FirstBytes::default();
        let count = connection.stream().peek(&mut first).await?;
        Ok((first, count))
    };
    // A server that takes no more is stopping.
    if is_control(peek).await? {
        // Before its handshake, which costs these threads a signature.
        if !connection.may_be_of_control() {
            return Err(io::Error::other("its origin begins too many connections of control"));
        }
        connection.read_exact(&mut FirstBytes::default()).await?;
        let connection = connection.with_tls(&mutual).await?;
        if !connection.may_be_a_nodes() {
            return Err(io::Error::other("a node alone has connections of control"));
        }
        drop(control.send(Ok(connection)).await);
    } else {
        drop(other.send(connection.detach()?).await);
    }
    Ok(())
}

/// Has the present runtime serve what [`divide`] accepted elsewhere, with the same certificate.
pub fn adopt(mut others: mpsc::Receiver<Detached>, mutual: Arc<Mutual>) -> Connections {
    let (connections, adopted) = mpsc::channel(BACKLOG);
    tokio::spawn(async move {
        loop {
            let other = tokio::select! {
                () = connections.closed() => return,
                other = others.recv() => other,
            };
            let Some(other) = other else { return };
            let (connections, mutual) = (connections.clone(), Arc::clone(&mutual));
            // A slow handshake holds up no other connection.
            tokio::spawn(async move {
                let attached = async { other.attach()?.with_tls(&mutual).await };
                match tokio::time::timeout(FIRST_BYTES_TIMEOUT, attached).await {
                    Ok(Ok(connection)) => drop(connections.send(Ok(connection)).await),
                    Ok(Err(error)) => {
                        metrics::counter!("meridian_rpc_failed_handshakes_total").increment(1);
                        tracing::debug!(%error, "a connection ended before it was served");
                    }
                    Err(_) => tracing::debug!("a connection said nothing"),
                }
            });
        }
    });
    ReceiverStream::new(adopted)
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpStream;
    use tokio::sync::watch;

    use super::*;
    use crate::admission::{Limits, admitted};
    use crate::listener::Listener;

    fn no_certificate() -> Arc<Mutual> {
        Arc::new(Mutual::empty())
    }

    #[tokio::test]
    async fn a_connection_that_stops_amid_its_mark_costs_next_to_nothing() {
        let mut looks = 0;
        let looking = is_control(|| {
            looks += 1;
            std::future::ready(Ok((*b"M\0\0\0", 1)))
        });
        assert!(tokio::time::timeout(Duration::from_secs(2), looking).await.is_err());
        assert!(looks < 40, "it was looked at {looks} times");
    }

    #[tokio::test]
    async fn connections_of_control_are_told_from_others_whatever_arrives_when() {
        let listener = Listener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_address().unwrap();
        let limits = Limits { in_all: 9, of_one_address: 9, of_a_node: 0 };
        let (mut control, others) = divide(
            admitted(listener, limits, watch::Sender::default().subscribe()),
            no_certificate(),
        );
        let mut others = adopt(others, no_certificate());
        // A silent connection holds up no other.
        let _silent = TcpStream::connect(address).await.unwrap();
        let mut other = TcpStream::connect(address).await.unwrap();
        other.write_all(b"MR or not").await.unwrap();
        let mut taken = others.next().await.unwrap().unwrap();
        let mut text = [0; 9];
        taken.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"MR or not");
        let mut marked = TcpStream::connect(address).await.unwrap();
        marked.write_all(&MARK[..2]).await.unwrap();
        tokio::task::yield_now().await;
        marked.write_all(&MARK[2..]).await.unwrap();
        marked.write_all(b"PRI").await.unwrap();
        let mut taken = control.next().await.unwrap().unwrap();
        let mut text = [0; 3];
        taken.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"PRI");
    }
}
