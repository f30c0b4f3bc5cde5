//! The round trips of the emulated network itself: a `ping` between regions, through links like
//! those of the cluster.

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use meridian_net::{Listener, Stream};
use meridian_wan::{Link, LinkProfile};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use crate::gap::quantile;

const EVERY: Duration = Duration::from_millis(50);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// The size of a packet that `ping` sends by default.
const BYTES: usize = 56;

type RoundTrips = Arc<Mutex<BTreeMap<usize, Vec<Duration>>>>;

/// Pings that run until this is dropped. Cuts in the cluster do not affect them.
pub(crate) struct Pings {
    round_trips: RoundTrips,
    _links: Vec<Link>,
    _tasks: JoinSet<()>,
}

impl Pings {
    /// Pings the regions with these numbers, each at its one-way delay.
    ///
    /// # Errors
    /// When a port cannot be had.
    pub(crate) async fn start(
        regions: impl IntoIterator<Item = (usize, LinkProfile)>,
    ) -> io::Result<Self> {
        let round_trips = RoundTrips::default();
        let (mut links, mut tasks) = (Vec::new(), JoinSet::new());
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        for (region, profile) in regions {
            let mut listener = Listener::bind(&any_port.to_string()).await?;
            let link = Link::start(any_port, listener.local_address()?, profile, 0).await?;
            let (there, round_trips) = (link.address(), Arc::clone(&round_trips));
            links.push(link);
            tasks.spawn(async move {
                let answers = async {
                    let (stream, _) = listener.accept().await;
                    let (mut read, mut write) = tokio::io::split(stream);
                    tokio::io::copy(&mut read, &mut write).await
                };
                // A failed ping is not counted.
                tokio::select! {
                    _ = answers => {}
                    _ = ping(there, region, &round_trips) => {}
                }
            });
        }
        Ok(Self { round_trips, _links: links, _tasks: tasks })
    }

    /// The median round trip to a region; `None` without any answer.
    pub(crate) fn median(&self, region: usize) -> Option<Duration> {
        let round_trips = self.round_trips.lock().unwrap_or_else(PoisonError::into_inner);
        let mut measured = round_trips.get(&region)?.clone();
        measured.sort_unstable();
        Some(quantile(&measured, 50))
    }
}

async fn ping(there: SocketAddr, region: usize, round_trips: &RoundTrips) -> io::Result<()> {
    let mut stream = Stream::dial(&there.ip().to_string(), there.port(), CONNECT_TIMEOUT).await?;
    let mut payload = [0; BYTES];
    loop {
        let sent = Instant::now();
        stream.write_all(&payload).await?;
        stream.read_exact(&mut payload).await?;
        let took = sent.elapsed();
        round_trips
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(region)
            .or_default()
            .push(took);
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ping_takes_little_more_than_the_round_trip_of_its_link() {
        let profile = |ms| LinkProfile::of_round_trip(Duration::from_millis(ms));
        let pings = Pings::start([(0, LinkProfile::default()), (2, profile(30))]).await.unwrap();
        let measured = async || {
            loop {
                if let (Some(near), Some(far)) = (pings.median(0), pings.median(2)) {
                    return (near, far);
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let (near, far) = measured().await;
        assert!(far >= Duration::from_millis(30) && near < far, "{near:?} {far:?}");
        assert_eq!(pings.median(1), None);
    }
}
