//! Announcements of a node's status to all others: soon after a change, and else often enough for
//! their time-outs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_proto::shipping::{AnnounceRequest, Status, shipping_client::ShippingClient};
use meridian_shipping::RelayConfig;
use meridian_types::NodeId;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::interval_at;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::{IntervalStream, WatchStream};

use crate::host::clock::wall_ms;
use crate::network::peers::PeerChannels;
use crate::time_budget::{ANNOUNCE, TO_OTHERS, TO_VOTERS};

/// For so long after a change, and after a node was reached anew, the status is repeated every
/// [`ANNOUNCE`]. A part of a shard that the same change or start created may have begun to listen
/// just after the first.
const SETTLING: Duration = Duration::from_secs(1);
/// A wall clock that moved by more, against the monotonic clock, is a change: the other nodes count
/// time by it.
const CLOCK_MOVED_MS: i128 = 20;
/// Before a node that was not reached, or has ended the stream, is told anew.
const AGAIN: Duration = ANNOUNCE;

/// One stream to each other node. A newer status replaces an older one in the queue.
#[derive(Default)]
pub(crate) struct Announcements(Mutex<State>);

#[derive(Default)]
struct State {
    said: Option<Said>,
    listeners: BTreeMap<NodeId, Listener>,
}

/// The newest announcement, and since when it has been so.
struct Said {
    /// Without what changes all the time.
    lasting: AnnounceRequest,
    since: Instant,
    wall_ms: u64,
}

impl Said {
    fn is_still(&self, lasting: &AnnounceRequest, now: Instant, wall_ms: u64) -> bool {
        let passed = i128::try_from(now.saturating_duration_since(self.since).as_millis())
            .unwrap_or(i128::MAX);
        let moved = i128::from(wall_ms) - i128::from(self.wall_ms) - passed;
        moved.abs() <= CLOCK_MOVED_MS && self.lasting == *lasting
    }
}

struct Listener {
    latest: watch::Sender<Arc<AnnounceRequest>>,
    told: Instant,
    task: JoinHandle<()>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Announcements {
    /// To be called each [`ANNOUNCE`] with all that is to be said, and the time by both clocks.
    /// `others`: and whether this node votes with them.
    pub(crate) fn say(
        &self,
        (now, wall_ms): (Instant, u64),
        request: AnnounceRequest,
        others: impl Iterator<Item = (NodeId, bool)>,
        peers: &Arc<PeerChannels>,
    ) {
        let mut state = self.0.lock();
        let lasting = lasting(&request);
        let said = match state.said.take() {
            Some(said) if said.is_still(&lasting, now, wall_ms) => said,
            _ => Said { lasting, since: now, wall_ms },
        };
        let settles = now.saturating_duration_since(said.since) < SETTLING;
        state.said = Some(said);
        let request = Arc::new(request);
        let mut before = std::mem::take(&mut state.listeners);
        for (node, votes) in others {
            let pace = if votes { TO_VOTERS } else { TO_OTHERS };
            let listener = match before.remove(&node) {
                // The time of a look that came a little early or late.
                Some(known)
                    if !settles
                        && now.saturating_duration_since(known.told) + ANNOUNCE / 2 < pace =>
                {
                    known
                }
                Some(mut known) => {
                    known.latest.send_replace(Arc::clone(&request));
                    known.told = now;
                    known
                }
                None => {
                    let (latest, said) = watch::channel(Arc::clone(&request));
                    Listener {
                        latest,
                        told: now,
                        task: tokio::spawn(tell(Arc::clone(peers), node, said)),
                    }
                }
            };
            state.listeners.insert(node, listener);
        }
    }
}

/// The part of an announcement whose change is sent at once: all but how long ago a replica heard
/// of its primary region, as long as it is in touch.
fn lasting(request: &AnnounceRequest) -> AnnounceRequest {
    let stale_ms = RelayConfig::DEFAULT.stale_after.as_millis();
    let of = |status: &Status| Status {
        primary_age_ms: u64::from(u128::from(status.primary_age_ms) > stale_ms),
        ..*status
    };
    AnnounceRequest {
        statuses: request.statuses.iter().map(of).collect(),
        clock_ms: 0,
        ..request.clone()
    }
}

/// Tells one node what is said, the latest at once when it is reached anew.
async fn tell(
    peers: Arc<PeerChannels>,
    node: NodeId,
    latest: watch::Receiver<Arc<AnnounceRequest>>,
) {
    let mut updates = peers.updates();
    loop {
        updates.mark_unchanged();
        if let Some(channel) = peers.shipping(node) {
            let again =
                IntervalStream::new(interval_at(tokio::time::Instant::now() + ANNOUNCE, ANNOUNCE));
            let settling =
                usize::try_from(SETTLING.as_millis() / ANNOUNCE.as_millis()).unwrap_or_default();
            let repeated = latest.clone();
            let again = again.take(settling).map(move |_| Arc::clone(&repeated.borrow()));
            let said = WatchStream::new(latest.clone()).merge(again);
            let said = said.map(|request| AnnounceRequest {
                clock_ms: wall_ms(),
                ..AnnounceRequest::clone(&request)
            });
            let mut client = ShippingClient::new(channel);
            tokio::select! {
                // It ends when the connection does.
                ended = client.announce(said) => if let Err(status) = ended {
                    tracing::debug!(%node, %status, "a node is not told where this one stands");
                },
                // The node may be elsewhere.
                _ = updates.changed() => {}
            }
        }
        tokio::time::sleep(AGAIN).await;
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;

    use futures::Stream;
    use meridian_config::DevLayout;
    use meridian_directory::Cluster;
    use meridian_proto::shipping as wire;
    use meridian_proto::shipping::shipping_server::{self, ShippingServer};
    use tokio::net::TcpListener;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::TcpListenerStream;
    use tonic::{Request, Response, Streaming};

    use super::*;

    const WALL_MS: u64 = 1_700_000_000_000;

    /// Peers that are all at this address, which the test may change.
    fn peers(address: &str) -> (Cluster, Arc<PeerChannels>, Arc<Mutex<String>>) {
        let cluster =
            DevLayout::new(&[3]).found(|node| format!("127.0.0.1:{node}"), |_| None).unwrap();
        let address = Arc::new(Mutex::new(address.to_owned()));
        let dialled = Arc::clone(&address);
        let peers =
            PeerChannels::new(&cluster, Arc::new(move |_| Some(dialled.lock().clone()))).unwrap();
        (cluster, Arc::new(peers), address)
    }

    /// Says one thing again and again, unless it is changed. Node 2 votes with this one, node 3
    /// does not.
    struct Speaker {
        announcements: Announcements,
        peers: Arc<PeerChannels>,
        start: Instant,
        looks: u32,
        request: AnnounceRequest,
        clock_is_ahead_ms: u64,
    }

    impl Speaker {
        fn new() -> Self {
            let request = AnnounceRequest {
                statuses: vec![Status::default()],
                node_id: 1,
                ..Default::default()
            };
            let (announcements, (_, peers, _)) = (Announcements::default(), peers("127.0.0.1:1"));
            Self {
                announcements,
                peers,
                start: Instant::now(),
                looks: 0,
                request,
                clock_is_ahead_ms: 0,
            }
        }

        /// Whether a voter and another node are told at the next look.
        fn looks(&mut self) -> [bool; 2] {
            let passed = ANNOUNCE * self.looks;
            self.looks += 1;
            let now = self.start + passed;
            let wall_ms =
                WALL_MS + u64::try_from(passed.as_millis()).unwrap() + self.clock_is_ahead_ms;
            let others = [(NodeId(2), true), (NodeId(3), false)].into_iter();
            self.announcements.say((now, wall_ms), self.request.clone(), others, &self.peers);
            let state = self.announcements.0.lock();
            [2, 3].map(|node| state.listeners[&NodeId(node)].told == now)
        }

        fn until_it_is_settled(&mut self) {
            for _ in 0..20 {
                self.looks();
            }
        }
    }

    #[tokio::test]
    async fn what_changes_is_told_at_the_next_look_and_what_does_not_as_often_as_others_count_on() {
        let mut speaker = Speaker::new();
        // A node that begins to listen just after the others hears the status soon.
        for look in 0..7 {
            assert_eq!(speaker.looks(), [true; 2], "look {look}");
        }
        for (node, at_most) in [2, 3].into_iter().enumerate() {
            let told: Vec<bool> = (0..60).map(|_| speaker.looks()[node]).collect();
            assert!(told.windows(at_most).all(|looks| looks.contains(&true)), "{told:?}");
            let times = told.iter().filter(|told| **told).count();
            assert!(times <= 60 / at_most + 1, "{times} times");
        }
        type Change = fn(&mut Speaker);
        let changes: [Change; 7] = [
            |speaker| {
                speaker.request.statuses[0].durable = Some(wire::Position { epoch: 1, sequence: 7 })
            },
            |speaker| speaker.request.statuses[0].may_lead = true,
            |speaker| speaker.request.statuses[0].fetching_snapshot = true,
            |speaker| speaker.request.statuses[0].primary_age_ms = 3001,
            |speaker| speaker.request.disk_full = true,
            |speaker| speaker.request.checkpoints.push(wire::Checkpoint::default()),
            |speaker| speaker.clock_is_ahead_ms = 1000,
        ];
        for (number, change) in changes.into_iter().enumerate() {
            for looks in 0..3 {
                // Whenever each was told last.
                speaker.until_it_is_settled();
                for _ in 0..looks {
                    speaker.looks();
                }
                let before = (speaker.request.clone(), speaker.clock_is_ahead_ms);
                change(&mut speaker);
                assert_eq!(speaker.looks(), [true; 2], "change {number}");
                (speaker.request, speaker.clock_is_ahead_ms) = before;
                assert_eq!(speaker.looks(), [true; 2], "change {number} is taken back");
            }
        }
    }

    /// It hears what node 7 says, and ends the stream.
    struct Forgetful(mpsc::UnboundedSender<AnnounceRequest>);

    type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, tonic::Status>> + Send>>;

    #[tonic::async_trait]
    impl shipping_server::Shipping for Forgetful {
        type SubscribeStream = Answers<wire::Shipment>;
        type FetchStateStream = Answers<wire::StateChunk>;

        async fn subscribe(
            &self,
            _: Request<Streaming<wire::SubscribeRequest>>,
        ) -> Result<Response<Self::SubscribeStream>, tonic::Status> {
            Err(tonic::Status::unimplemented("not here"))
        }

        async fn fetch_state(
            &self,
            _: Request<wire::FetchStateRequest>,
        ) -> Result<Response<Self::FetchStateStream>, tonic::Status> {
            Err(tonic::Status::unimplemented("not here"))
        }

        async fn announce(
            &self,
            request: Request<Streaming<AnnounceRequest>>,
        ) -> Result<Response<wire::AnnounceResponse>, tonic::Status> {
            let mut requests = request.into_inner();
            while let Some(said) = requests.message().await? {
                let is_enough = said.node_id == 7;
                self.0.send(said).unwrap();
                if is_enough {
                    break;
                }
            }
            Ok(Response::new(wire::AnnounceResponse {}))
        }
    }

    async fn listener() -> (String, mpsc::UnboundedReceiver<AnnounceRequest>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (said, heard) = mpsc::unbounded_channel();
        let server =
            tonic::transport::Server::builder().add_service(ShippingServer::new(Forgetful(said)));
        tokio::spawn(server.serve_with_incoming(TcpListenerStream::new(listener)));
        (address, heard)
    }

    #[tokio::test]
    async fn a_node_that_is_reached_anew_or_elsewhere_hears_the_latest() {
        let ((first, mut heard), (second, mut heard_there)) = (listener().await, listener().await);
        let (cluster, peers, address) = peers(&first);
        let announcements = Announcements::default();
        let say = |node_id| {
            let request = AnnounceRequest { node_id, ..Default::default() };
            announcements.say(
                (Instant::now(), WALL_MS),
                request,
                std::iter::once((NodeId(2), true)),
                &peers,
            );
        };
        say(7);
        for _ in 0..3 {
            let said = heard.recv().await.unwrap();
            assert_eq!(said.node_id, 7);
            assert!(said.clock_ms > WALL_MS, "the clock is that of when it was sent");
        }
        say(8);
        while heard.recv().await.unwrap().node_id != 8 {}
        *address.lock() = second;
        peers.update(&cluster);
        // Also for a part of a shard that begins to listen just after the first.
        for _ in 0..3 {
            assert_eq!(heard_there.recv().await.unwrap().node_id, 8);
        }
    }
}
