//! A gate before a server, which can hold back what it sends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Passes on the server's bytes, or holds them back.
pub(crate) struct Gate {
    open: watch::Sender<bool>,
    held_bytes: Arc<AtomicU64>,
}

impl Gate {
    pub(crate) fn before(server: TcpStream) -> (Self, DuplexStream) {
        let (near, far) = tokio::io::duplex(1 << 20);
        let (mut from_server, mut to_server) = server.into_split();
        let (mut from_client, mut to_client) = tokio::io::split(far);
        let (open, mut is_open) = watch::channel(true);
        let held_bytes = Arc::new(AtomicU64::new(0));
        let held = Arc::clone(&held_bytes);
        tokio::spawn(async move { drop(tokio::io::copy(&mut from_client, &mut to_server).await) });
        tokio::spawn(async move {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                if !*is_open.borrow() {
                    held.fetch_add(read as u64, Ordering::SeqCst);
                }
                if is_open.wait_for(|open| *open).await.is_err()
                    || to_client.write_all(&buffer[..read]).await.is_err()
                {
                    return;
                }
            }
        });
        (Self { open, held_bytes }, near)
    }

    pub(crate) fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Whether bytes of the server are held back.
    pub(crate) fn holds(&self) -> bool {
        self.held_bytes.load(Ordering::SeqCst) > 0
    }
}
