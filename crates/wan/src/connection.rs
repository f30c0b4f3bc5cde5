//! One connection of a link, from its set-up to its end.

use std::net::SocketAddr;

use tokio::net::TcpStream;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

use crate::controls::{Broken, Controls, Way, cut_for_too_long};
use crate::lane::{Entrance, Exit, lane};
use crate::shaper::{Line, Shaper, SplitMix};
use crate::timer::sleep_until;

/// The route that the connections of a link share.
#[derive(Debug, Clone)]
pub(crate) struct Route {
    pub(crate) target: SocketAddr,
    pub(crate) controls: watch::Receiver<Controls>,
    pub(crate) forward_line: Line,
    pub(crate) backward_line: Line,
}

/// A socket that resets its peer when it is dropped, unless both directions ended well.
struct Socket {
    stream: TcpStream,
    ended_well: bool,
}

impl Socket {
    fn new(stream: TcpStream) -> Self {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "an emulated link cannot set TCP_NODELAY");
        }
        Self { stream, ended_well: false }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.ended_well {
            return;
        }
        if let Err(error) = self.stream.set_zero_linger() {
            tracing::debug!(%error, "an emulated link cannot reset a connection");
        }
    }
}

/// Carries one connection until it ended, failed, or was cut for too long.
///
/// May be dropped at any await; both ends are reset then.
pub(crate) async fn carry(client: TcpStream, route: Route, seed: u64) {
    let accepted_at = Instant::now();
    let mut client = Socket::new(client);
    let too_long = cut_for_too_long(route.controls.clone(), accepted_at);
    let ended_well = tokio::select! {
        outcome = forward_and_back(&mut client.stream, route, seed, accepted_at) => outcome.is_ok(),
        Broken = too_long => false,
    };
    client.ended_well = ended_well;
}

/// Both directions. The client's bytes are taken in from the start, though the target does not listen yet.
async fn forward_and_back(
    client: &mut TcpStream,
    route: Route,
    seed: u64,
    accepted_at: Instant,
) -> Result<(), Broken> {
    let mut seeds = SplitMix(seed);
    let (entrance, exit) =
        lane(Way::Forward, Shaper::new(route.forward_line.clone(), seeds.next()));
    let back = lane(Way::Backward, Shaper::new(route.backward_line.clone(), seeds.next()));
    let (client_reader, client_writer) = client.split();
    let (client_open, client_ended) = oneshot::channel::<()>();
    let taking_in = async {
        entrance.take_in(client_reader, route.controls.clone()).await;
        drop(client_open);
        Ok(())
    };
    let session = async {
        let (mut target, syn_at) = open(&route, accepted_at, client_ended).await?;
        both_ways(&mut target, syn_at, &route.controls, exit, client_writer, back).await
    };
    tokio::try_join!(taking_in, session).map(|((), ())| ())
}

/// Connects to the target as a handshake over the link would; returns the socket and when the first
/// packet that got through was sent.
///
/// The client's own handshake is over at once, since the kernel does it. So the link delays what
/// follows: the target sees the connection after one way, the client a refusal after one round
/// trip, and the target the client's first bytes after three ways, as if they had waited for the
/// handshake. While any direction is cut nothing happens, and a client that gives up meanwhile is
/// never seen by the target.
async fn open(
    route: &Route,
    accepted_at: Instant,
    mut client_ended: oneshot::Receiver<()>,
) -> Result<(Socket, Instant), Broken> {
    let mut controls = route.controls.clone();
    let mut syn_at = accepted_at;
    let delay = loop {
        if controls.borrow().is_cut_anyhow() {
            tokio::select! {
                healed = controls.wait_for(|now| !now.is_cut_anyhow()) => drop(healed?),
                _ = &mut client_ended => return Err(Broken),
            }
            syn_at = Instant::now();
        }
        let delay = controls.borrow().profile.one_way_delay;
        sleep_until(syn_at + delay).await;
        if !controls.borrow().is_cut_anyhow() {
            break delay;
        }
    };
    match TcpStream::connect(route.target).await {
        Ok(stream) => Ok((Socket::new(stream), syn_at)),
        Err(error) => {
            tracing::debug!(%error, target = %route.target, "an emulated link cannot reach its target");
            sleep_until(syn_at + delay * 2).await;
            Err(Broken)
        }
    }
}

async fn both_ways(
    target: &mut Socket,
    syn_at: Instant,
    controls: &watch::Receiver<Controls>,
    exit: Exit,
    client_writer: tokio::net::tcp::WriteHalf<'_>,
    (back_entrance, back_exit): (Entrance, Exit),
) -> Result<(), Broken> {
    let first_bytes_at = syn_at + controls.borrow().profile.one_way_delay * 3;
    let (target_reader, target_writer) = target.stream.split();
    let taking_in = async {
        back_entrance.take_in(target_reader, controls.clone()).await;
        Ok(())
    };
    let outcome = tokio::try_join!(
        exit.deliver(target_writer, controls.clone(), first_bytes_at),
        taking_in,
        back_exit.deliver(client_writer, controls.clone(), syn_at),
    );
    target.ended_well = outcome.is_ok();
    outcome.map(|((), (), ())| ())
}
