//! A link: a listener, its connections, and the hand that changes them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::connection::{Route, carry};
use crate::controls::{Controls, Direction, LinkProfile};
use crate::shaper::{Line, SplitMix};

/// How many connections a link carries at a time; more wait to be accepted.
pub const MAX_CONNECTIONS: usize = 4096;

/// How long a link that cannot accept (no file descriptor is left) waits before it tries again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A TCP link with a delay, a rate and cuts. Dropping it stops it and resets its connections.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    controls: watch::Sender<Controls>,
    accepting: JoinHandle<()>,
}

impl Link {
    /// Listens on `listen` (port 0 takes a free one) and forwards every connection to `target`,
    /// which need not listen yet. Within a tokio runtime only.
    ///
    /// The same `seed` gives the same jitter to the same chunks of the same connection, counted as
    /// accepted.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(
        listen: SocketAddr,
        target: SocketAddr,
        profile: LinkProfile,
        seed: u64,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        let (controls, watching) = watch::channel(Controls::new(profile));
        let now = Instant::now();
        let route = Route {
            target,
            controls: watching,
            forward_line: Line::new(now),
            backward_line: Line::new(now),
        };
        let accepting = tokio::spawn(accept(listener, route, SplitMix(seed)));
        Ok(Self { address, controls, accepting })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes delay, jitter and rate. Bytes under way arrive as they were going to.
    pub fn set(&self, profile: LinkProfile) {
        self.controls.send_modify(|controls| controls.profile = profile.bounded());
    }

    /// The profile that was set last, within [`MAX_DELAY`](crate::MAX_DELAY).
    #[must_use]
    pub fn profile(&self) -> LinkProfile {
        self.controls.borrow().profile
    }

    /// From now on resets a connection of which any direction is cut for longer than this. None, as
    /// at first: it hangs until healed.
    pub fn set_reset_after(&self, reset_after: Option<Duration>) {
        self.controls.send_modify(|controls| controls.reset_after = reset_after);
    }

    /// Cuts a direction, besides a direction that is cut already. Its bytes are held, those under
    /// way too, and so are new connections whichever direction is cut: they are accepted, and hang.
    ///
    /// A chunk that another thread is writing at this moment may still get through.
    pub fn cut(&self, direction: Direction) {
        self.controls.send_modify(|controls| controls.cut(direction, Instant::now()));
    }

    /// Cuts and heals at once, so that just these directions are cut: for a caller that keeps
    /// account of several cuts that lie over each other. As [`Link::cut`] and [`Link::heal`] in all
    /// else.
    pub fn set_cuts(&self, forward: bool, backward: bool) {
        self.controls
            .send_if_modified(|controls| controls.set_cuts(forward, backward, Instant::now()));
    }

    /// Heals both directions. Held bytes arrive one delay later, in order.
    pub fn heal(&self) {
        self.controls.send_modify(Controls::heal);
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

/// Accepts for ever; the connections end with this task.
async fn accept(listener: TcpListener, route: Route, mut seeds: SplitMix) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => match accepted {
                Ok((client, _)) => {
                    connections.spawn(carry(client, route.clone(), seeds.next()));
                }
                Err(error) => {
                    tracing::warn!(%error, "an emulated link cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(ended) = connections.join_next(), if !connections.is_empty() => {
                if let Err(error) = ended {
                    tracing::warn!(%error, "a connection of an emulated link ended badly");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
